//! What the server shows who it is with, if it encrypts: a certificate and its key, checked before anything listens.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use crate::settings::{SettingsError, TlsSettings};

const CERT: &str = "server.tls.cert";
const KEY: &str = "server.tls.key";
/// Bits of a file's mode that let everyone on the machine at it.
const EVERYONE: u32 = 0o007;

/// Reads certificate and key.
///
/// # Errors
/// When they cannot be read, do not belong together, the certificate's time is over or has not begun, or everyone may read the key.
pub fn load(settings: &TlsSettings) -> Result<ServerConfig, SettingsError> {
    let TlsSettings { cert, key } = settings;
    let unreadable = |key, path: &std::path::Path, reason: &dyn std::fmt::Display| {
        SettingsError::new(key, format!("{}: {reason}", path.display()))
    };
    let certs = fs_err::read(cert).map_err(|error| SettingsError::new(CERT, error.to_string()))?;
    let certs: Vec<_> = CertificateDer::pem_slice_iter(&certs)
        .collect::<Result<_, _>>()
        .map_err(|_| unreadable(CERT, cert, &"is no certificate in PEM"))?;
    let Some(first) = certs.first() else { return Err(unreadable(CERT, cert, &"is no certificate in PEM")) };
    check_time(first).map_err(|reason| unreadable(CERT, cert, &reason))?;

    let mode = fs_err::metadata(key).map_err(|error| SettingsError::new(KEY, error.to_string()))?.permissions().mode();
    if mode & EVERYONE != 0 {
        let reason = format!("everyone on this machine may read it (mode {:04o}): chmod 600 it", mode & 0o7777);
        return Err(unreadable(KEY, key, &reason));
    }
    let text = fs_err::read(key).map_err(|error| SettingsError::new(KEY, error.to_string()))?;
    let private =
        PrivateKeyDer::from_pem_slice(&text).map_err(|_| unreadable(KEY, key, &"is no private key in PEM"))?;

    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| SettingsError::new("server.tls", error.to_string()))?
        .with_no_client_auth();
    config.with_single_cert(certs, private).map_err(|error| {
        if let rustls::Error::InconsistentKeys(_) = error {
            SettingsError::new(KEY, "does not belong to the certificate")
        } else {
            SettingsError::new(KEY, format!("cannot be used: {error}"))
        }
    })
}

fn check_time(certificate: &CertificateDer<'_>) -> Result<(), String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
        return Err("is no X.509 certificate".to_owned());
    };
    let (validity, now) = (parsed.validity(), x509_parser::time::ASN1Time::now());
    if validity.not_after < now {
        Err(format!("expired on {}", validity.not_after))
    } else if validity.not_before > now {
        Err(format!("is not valid before {}", validity.not_before))
    } else {
        Ok(())
    }
}
