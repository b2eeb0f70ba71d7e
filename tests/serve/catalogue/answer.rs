use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use reqwest::Response;
use serde_json::Value;

const SILENCE: Duration = Duration::from_secs(20);
/// What a refusal may be told by; nothing else ever is.
const STATUSES: [u16; 16] = [400, 401, 403, 404, 405, 408, 409, 413, 414, 415, 416, 429, 431, 500, 503, 507];

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
    /// Whether the server has closed the connection; known of raw requests alone.
    pub(crate) closed: bool,
}

impl Answer {
    pub(crate) async fn of(response: Response) -> Self {
        let status = response.status().as_u16();
        let text = |(name, value): (&reqwest::header::HeaderName, &reqwest::header::HeaderValue)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let headers = response.headers().iter().map(text).collect();
        let body = response.bytes().await.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Self { status, headers, body: body.unwrap_or_else(|error| error.to_string()), closed: false }
    }

    /// Sends bytes as they are, and reads until the server closes, falls silent or, unless it `has_to_close`, has said all.
    pub(crate) fn to_raw(port: &str, request: &[u8], has_to_close: bool) -> Result<Self, String> {
        let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).map_err(|error| error.to_string())?;
        // The server may have said its word, and closed, before all is written.
        let _ = stream.write_all(request);
        Self::read(&mut stream, has_to_close)
    }

    pub(crate) fn read(stream: &mut TcpStream, has_to_close: bool) -> Result<Self, String> {
        stream.set_read_timeout(Some(SILENCE)).map_err(|error| error.to_string())?;
        let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            let read = stream.read(&mut buffer);
            let closed = matches!(read, Ok(0));
            if let Ok(some @ 1..) = read {
                bytes.extend_from_slice(&buffer[..some]);
            }
            let answer = Self::parse(&bytes);
            match (read, answer) {
                (_, Some(answer)) if closed || !has_to_close => return Ok(Self { closed, ..answer }),
                (Ok(1..), _) => {}
                (read, _) => return Err(format!("{read:?} behind {:?}", String::from_utf8_lossy(&bytes))),
            }
        }
    }

    /// None while it is not whole.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers: Vec<_> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let (_, length) = headers.iter().find(|(name, _)| name == "content-length")?;
        let body = body.get(..length.parse().ok()?)?.to_owned();
        Some(Self { status, headers, body, closed: false })
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }

    /// The error, in the form that every refusal has, whatever it is for.
    pub(crate) fn refusal(&self) -> Result<Value, String> {
        let body = self.json();
        let is_error = body.as_object().is_some_and(|body| body.len() == 1 && body.contains_key("error"));
        let error = &body["error"];
        let has_four = error.as_object().is_some_and(|error| {
            error.keys().map(String::as_str).eq(["message", "type", "param", "code"])
                && error["message"].is_string()
                && error["type"].is_string()
        });
        let code = error["code"].as_str();
        let passes = matches!(self.status, 408 | 429) && code != Some("quota_exceeded");
        let should_retry = match self.status {
            _ if self.status >= 500 => None,
            429 if passes => Some("true"),
            _ if passes => None,
            _ => Some("false"),
        };
        let waits = self.status == 503 || self.status == 507 || (self.status == 429 && passes);
        let tells_when =
            self.header("retry-after").is_some_and(|after| after.parse::<u32>().is_ok_and(|after| after > 0));
        let text = error["message"].as_str().unwrap_or_default();
        let laws = [
            (STATUSES.contains(&self.status), "a status of the list"),
            (is_error && has_four, "an error and nothing else"),
            (self.header("content-type") == Some("application/json"), "application/json"),
            (self.header("x-request-id").is_some_and(|id| id.len() == 28 && id.starts_with("req_")), "an id"),
            (self.header("x-content-type-options") == Some("nosniff"), "nosniff"),
            (self.header("x-should-retry") == should_retry, "x-should-retry"),
            (tells_when == waits, "Retry-After where waiting helps"),
            (self.status != 401 || self.header("www-authenticate") == Some("Bearer"), "WWW-Authenticate"),
            (
                !["src/", ".rs", "SELECT", "panicked"].iter().any(|inside| text.contains(inside)),
                "nothing of its insides",
            ),
        ];
        let broken: Vec<&str> = laws.iter().filter(|(holds, _)| !holds).map(|(_, law)| *law).collect();
        if broken.is_empty() { Ok(error.clone()) } else { Err(format!("{} wanting in {self:?}", broken.join(", "))) }
    }
}
