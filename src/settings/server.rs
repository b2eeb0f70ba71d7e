use std::{path::PathBuf, time::Duration};

use super::{
    SettingsError,
    checked::in_range,
    raw::{RawServer, RawTls},
};

#[derive(Clone, Debug)]
pub struct ServerSettings {
    pub host: String,
    pub port: u16,
    /// Whether there is a window into the engine's state.
    pub debug: bool,
    /// Nobody needs a key, and nobody's is looked at.
    pub insecure_no_auth: bool,
    /// In lower case.
    pub allowed_hosts: Vec<String>,
    pub cors_origins: Vec<String>,
    pub max_connections: usize,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub tls: Option<TlsSettings>,
}

/// Files in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    /// The server's certificate, and behind it those that it stands on.
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl ServerSettings {
    /// Whether others than this machine can reach it.
    #[must_use]
    pub fn is_exposed(&self) -> bool {
        let ip = self.host.parse::<std::net::IpAddr>();
        self.host != "localhost" && !ip.is_ok_and(|address| address.is_loopback())
    }
}

pub(super) fn check(raw: RawServer) -> Result<ServerSettings, SettingsError> {
    let RawServer {
        host,
        port,
        insecure_no_auth,
        debug,
        allowed_hosts,
        cors_origins,
        max_connections,
        header_timeout_ms,
        body_timeout_ms,
        tls,
    } = raw;
    in_range("server.max_connections", max_connections as u64, 1, 1 << 20)?;
    // The clock that it is measured by moves twice a second.
    in_range("server.header_timeout_ms", header_timeout_ms, 1000, 3_600_000)?;
    in_range("server.body_timeout_ms", body_timeout_ms, 100, 3_600_000)?;
    let mut allowed_hosts: Vec<_> = allowed_hosts.words().iter().map(|name| name.to_ascii_lowercase()).collect();
    if let Some(wrong) = allowed_hosts.iter().find(|name| !is_host(name)) {
        return Err(SettingsError::new("server.allowed_hosts", format!("'{wrong}' is no name of a host")));
    }
    // Whoever listens on a name goes by it.
    allowed_hosts.push(host.to_ascii_lowercase());
    let cors_origins = cors_origins.words();
    if let Some(wrong) = cors_origins.iter().find(|origin| !is_origin(origin)) {
        let reason = format!("'{wrong}' is no origin such as https://chat.example or http://localhost:3000");
        return Err(SettingsError::new("server.cors_origins", reason));
    }
    let tls = match tls {
        None | Some(RawTls { cert: None, key: None }) => None,
        Some(RawTls { cert: Some(cert), key: Some(key) }) => Some(TlsSettings { cert, key }),
        Some(RawTls { cert: None, .. }) => return Err(SettingsError::new("server.tls.cert", "is missing")),
        Some(RawTls { key: None, .. }) => return Err(SettingsError::new("server.tls.key", "is missing")),
    };
    Ok(ServerSettings {
        host,
        port,
        debug,
        insecure_no_auth,
        allowed_hosts,
        cors_origins,
        max_connections,
        header_timeout: Duration::from_millis(header_timeout_ms),
        body_timeout: Duration::from_millis(body_timeout_ms),
        tls,
    })
}

fn is_host(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

/// A scheme, a host and perhaps a port: as a browser writes it, with nothing behind.
fn is_origin(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, rest)| {
        let (host, port) = rest.split_once(':').unwrap_or((rest, "0"));
        matches!(scheme, "http" | "https") && is_host(host) && port.parse::<u16>().is_ok()
    })
}
