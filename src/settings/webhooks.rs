use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;

use super::{SettingsError, raw::RawWebhooks};

/// How a secret is written: this, and Base64 behind it.
const PREFIX: &str = "whsec_";
/// As Standard Webhooks recommends.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// Where the ends of batches are told of.
#[derive(Clone, Debug)]
pub struct WebhookSettings {
    /// `https`, or `http` to this machine.
    pub url: Url,
    pub secret: WebhookSecret,
}

/// What the receiver of webhooks and this server know and nobody else.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookSecret(Vec<u8>);

impl WebhookSecret {
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookSecret(***)")
    }
}

pub(super) fn check(raw: RawWebhooks) -> Result<Option<WebhookSettings>, SettingsError> {
    let missing =
        |key: &str| SettingsError::new(format!("webhooks.{key}"), "is missing: webhooks need a URL and a secret");
    match raw {
        RawWebhooks { url: None, secret: None } => Ok(None),
        RawWebhooks { url: None, .. } => Err(missing("url")),
        RawWebhooks { secret: None, .. } => Err(missing("secret")),
        RawWebhooks { url: Some(url), secret: Some(secret) } => WebhookSettings::new(&url, &secret).map(Some),
    }
}

impl WebhookSettings {
    /// Checks both as they are written.
    ///
    /// # Errors
    /// When the URL could give events away, or the secret is none.
    pub fn new(url: &str, secret: &str) -> Result<Self, SettingsError> {
        let url = check_url(url).map_err(|reason| SettingsError::new("webhooks.url", reason))?;
        let secret = read_secret(secret).ok_or_else(|| {
            let reason = "is no secret for webhooks: 'whsec_' and Base64 of 24 to 64 bytes";
            SettingsError::new("webhooks.secret", reason)
        })?;
        Ok(Self { url, secret })
    }
}

fn check_url(text: &str) -> Result<Url, &'static str> {
    let url = Url::parse(text).map_err(|_| "is no URL")?;
    let local = match url.host_str() {
        Some("localhost") => true,
        Some(host) => {
            host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        None => return Err("names no host"),
    };
    match url.scheme() {
        "https" => {}
        "http" if local => {}
        _ => return Err("has to begin with https:// (http:// is for this machine alone)"),
    }
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err("must have neither a user nor a fragment");
    }
    Ok(url)
}

fn read_secret(text: &str) -> Option<WebhookSecret> {
    let bytes = STANDARD.decode(text.strip_prefix(PREFIX)?).ok()?;
    SECRET_BYTES.contains(&bytes.len()).then_some(WebhookSecret(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn checked(url: &str, secret: &str) -> Result<Option<WebhookSettings>, String> {
        check(RawWebhooks { url: Some(url.to_owned()), secret: Some(secret.to_owned()) })
            .map_err(|error| error.to_string())
    }

    #[test]
    fn webhooks_go_over_tls_or_stay_on_this_machine() {
        for url in ["https://example.com/hook?a=b", "http://127.0.0.1:9/x", "http://localhost/", "http://[::1]:81/"] {
            assert_eq!(checked(url, SECRET).unwrap().unwrap().url.as_str(), url);
        }
        let cases = [
            ("http://example.com/", "has to begin with https://"),
            ("http://127.0.0.1.example.com/", "has to begin with https://"),
            ("http://169.254.169.254/", "has to begin with https://"),
            ("file:///etc/passwd", "names no host"),
            ("ftp://localhost/", "has to begin with https://"),
            ("https://user:password@example.com/", "must have neither a user"),
            ("nonsense", "is no URL"),
        ];
        for (url, reason) in cases {
            let error = checked(url, SECRET).unwrap_err();
            assert!(error.starts_with(&format!("config: webhooks.url: {reason}")), "{url}: {error}");
        }
    }

    #[test]
    fn a_secret_has_a_form_and_is_not_shown() {
        for secret in ["", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_c2hvcnQ=", "whsec_!!!!"] {
            let error = checked("https://example.com/", secret).unwrap_err();
            assert!(error.starts_with("config: webhooks.secret: is no secret"), "{secret}: {error}");
        }
        let settings = checked("https://example.com/", SECRET).unwrap().unwrap();
        assert!(format!("{settings:?}").contains("WebhookSecret(***)"));
        assert_eq!(settings.secret.bytes().len(), 24);
    }

    #[test]
    fn one_of_the_two_is_too_little() {
        let url = RawWebhooks { url: Some("https://example.com/".to_owned()), secret: None };
        assert_eq!(check(url).unwrap_err().key, "webhooks.secret");
        assert_eq!(check(RawWebhooks { url: None, secret: Some(SECRET.to_owned()) }).unwrap_err().key, "webhooks.url");
        assert!(check(RawWebhooks::default()).unwrap().is_none());
    }
}
