//! HTTPS, and certificates that cannot be used.

use std::{path::Path, sync::Arc};

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::CertificateDer},
};

use crate::program::{Program, tandem};

/// Writes a certificate for localhost and its key, in PEM, readable by their owner alone.
fn write(dir: &Path, name: &str, change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    fs_err::write(dir.join(format!("{name}.pem")), certificate.pem()).unwrap();
    let path = dir.join(format!("{name}.key"));
    fs_err::write(&path, key.serialize_pem()).unwrap();
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    certificate.der().clone()
}

#[tokio::test]
async fn a_server_with_a_certificate_speaks_https() {
    let dir = tempfile::tempdir().unwrap();
    let certificate = write(dir.path(), "good", |_| {});
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (cert, key) = (path("good.pem"), path("good.key"));
    let settings = [("TANDEM__SERVER__TLS__CERT", cert.as_str()), ("TANDEM__SERVER__TLS__KEY", key.as_str())];
    let server = Program::spawn("sim", dir.path(), &settings);
    assert!(server.url().starts_with("https://127.0.0.1:"), "{}", server.url());

    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let tcp = TcpStream::connect(format!("127.0.0.1:{}", server.port())).await.unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), tcp).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]), "the one that is spoken");
    stream.write_all(b"GET /version HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // The server need not say goodbye in TLS.
    let _ = stream.read_to_end(&mut answer).await;
    assert!(String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 200 OK"));
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn certificates_that_cannot_be_used_are_named() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "good", |_| {});
    write(dir.path(), "other", |_| {});
    write(dir.path(), "old", |params| params.not_after = date_time_ymd(2020, 1, 1));
    write(dir.path(), "early", |params| params.not_before = date_time_ymd(2120, 1, 1));
    fs_err::copy(dir.path().join("good.key"), dir.path().join("seen.key")).unwrap();
    fs_err::set_permissions(dir.path().join("seen.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let storage = dir.path().join("data");
    for (cert, key, at, reason) in [
        ("good.pem", "other.key", "key", "does not belong to the certificate\n"),
        ("old.pem", "old.key", "cert", "old.pem: expired on "),
        ("early.pem", "early.key", "cert", "early.pem: is not valid before "),
        ("good.pem", "seen.key", "key", "everyone on this machine may read it (mode 0644): chmod 600 it\n"),
        ("good.key", "good.key", "cert", "good.key: is no certificate in PEM\n"),
        ("good.pem", "none.key", "key", "none.key"),
    ] {
        let path = |name: &str| dir.path().join(name);
        let output = tandem(&["serve", "--profile", "sim", "--port", "0"])
            .env("STORAGE_PATH", &storage)
            .env("TANDEM__SERVER__TLS__CERT", path(cert))
            .env("TANDEM__SERVER__TLS__KEY", path(key))
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{error}");
        assert!(error.starts_with(&format!("error: config: server.tls.{at}: ")) && error.contains(reason), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    assert!(!storage.exists(), "nothing is made");
}
