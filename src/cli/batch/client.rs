use std::{path::Path, time::Duration};

use futures_util::{Stream, StreamExt as _, stream};
use reqwest::{
    Body, Method, RequestBuilder, Response,
    header::{AUTHORIZATION, HeaderValue},
    multipart::{Form, Part},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::io::ReaderStream;

use crate::cli::exit::Failure;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two pieces of an answer. Streams of ours say something every 15 seconds.
const READ_TIMEOUT: Duration = Duration::from_secs(120);
/// A record of a line; more is no answer of a model.
const LINE_BYTES_MAX: usize = 256 << 20;
/// Codes of errors by which a server tells that it knows the route, and not what is asked for on it.
const KNOWN_ROUTE: [&str; 4] = ["batch_not_found", "results_gone", NOTHING_TO_RETRY, "not_found"];
const NOTHING_TO_RETRY: &str = "nothing_to_retry";

/// A client of a server with the Batch API.
pub(super) struct Client {
    http: reqwest::Client,
    base: String,
    key: Option<HeaderValue>,
}

/// Why a request came to nothing.
#[derive(Debug)]
pub(super) enum ClientError {
    /// There was no answer, or it broke off.
    Unreachable(String),
    /// The server's own words, under its status.
    Refused { status: u16, code: Option<String>, message: String },
    /// The answer is none that this API has.
    Unreadable(String),
    /// A file on this side.
    File(std::io::Error),
}

pub(super) type Result<T> = std::result::Result<T, ClientError>;

impl Client {
    /// `base` is the URL that `/batches` comes behind; `key` goes along as the bearer.
    pub(super) fn new(base: &str, key: Option<&str>) -> std::result::Result<Self, Failure> {
        let key = match key.filter(|key| !key.is_empty()) {
            None => None,
            Some(key) => {
                let header = HeaderValue::from_str(&format!("Bearer {key}"));
                let mut header = header.map_err(|_| Failure::config("OPENAI_API_KEY: is no text for a header"))?;
                header.set_sensitive(true);
                Some(header)
            }
        };
        let base = base.trim_end_matches('/').to_owned();
        if reqwest::Url::parse(&base).is_err() {
            return Err(Failure::config(format!("{base}: is no URL of a server")));
        }
        let http = crate::http::client().connect_timeout(CONNECT_TIMEOUT).read_timeout(READ_TIMEOUT).build();
        let http = http.map_err(|error| Failure::software(format!("cannot make a client: {error}")))?;
        Ok(Self { http, base, key })
    }

    pub(super) async fn get(&self, path: &str, query: &[(&str, String)]) -> Result<Value> {
        json_of(self.open(path, query).await?).await
    }

    pub(super) async fn post(&self, path: &str, body: Option<&Value>) -> Result<Value> {
        let request = self.request(Method::POST, path);
        json_of(send(if let Some(body) = body { request.json(body) } else { request }).await?).await
    }

    pub(super) async fn delete(&self, path: &str) -> Result<()> {
        send(self.request(Method::DELETE, path)).await.map(drop)
    }

    /// An answer that is read as it comes.
    pub(super) async fn open(&self, path: &str, query: &[(&str, String)]) -> Result<Response> {
        send(self.request(Method::GET, path).query(query)).await
    }

    /// The lines of a stored file.
    pub(super) async fn file_lines(
        &self,
        id: &str,
    ) -> Result<impl Stream<Item = Result<Vec<u8>>> + Send + Unpin + use<>> {
        Ok(lines(self.open(&format!("/files/{id}/content"), &[]).await?))
    }

    /// Uploads a file of lines as input of a batch; its id. `-` is standard input.
    pub(super) async fn upload(&self, path: &Path) -> Result<String> {
        let (source, name) = if path == Path::new("-") {
            (Path::new("/dev/stdin"), "stdin.jsonl".to_owned())
        } else {
            (path, path.file_name().unwrap_or_default().to_string_lossy().into_owned())
        };
        let file = fs_err::tokio::File::open(source).await.map_err(ClientError::File)?;
        let metadata = file.metadata().await.map_err(ClientError::File)?;
        let body = Body::wrap_stream(ReaderStream::new(file));
        let part = if metadata.is_file() { Part::stream_with_length(body, metadata.len()) } else { Part::stream(body) };
        self.upload_part(part.file_name(name)).await
    }

    pub(super) async fn upload_part(&self, part: Part) -> Result<String> {
        let form = Form::new().text("purpose", "batch").part("file", part);
        let file = json_of(send(self.request(Method::POST, "/files").multipart(form)).await?).await?;
        let id = file["id"].as_str().ok_or_else(|| ClientError::Unreadable("a file without an id".to_owned()))?;
        Ok(id.to_owned())
    }

    pub(super) async fn create(&self, file_id: &str, endpoint: &str, window: &str, metadata: Value) -> Result<Value> {
        let mut body = json!({"input_file_id": file_id, "endpoint": endpoint, "completion_window": window});
        if metadata.as_object().is_some_and(|metadata| !metadata.is_empty()) {
            body["metadata"] = metadata;
        }
        self.post("/batches", Some(&body)).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(key) = &self.key { request.header(AUTHORIZATION, key.clone()) } else { request }
    }
}

async fn send(request: RequestBuilder) -> Result<Response> {
    let response = request.send().await.map_err(|error| unreachable(&error))?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let text = response.text().await.unwrap_or_default();
    let error: Option<Envelope> = serde_json::from_str(&text).ok();
    let (code, message) = error.map_or((None, None), |envelope| (envelope.error.code, envelope.error.message));
    let message = message.unwrap_or_else(|| status.canonical_reason().unwrap_or("no reason given").to_owned());
    Err(ClientError::Refused {
        status: status.as_u16(),
        code: code.and_then(|code| code.as_str().map(str::to_owned)),
        message,
    })
}

async fn json_of(response: Response) -> Result<Value> {
    let text = response.text().await.map_err(|error| unreachable(&error))?;
    serde_json::from_str(&text).map_err(|_| ClientError::Unreadable("an answer that is not JSON".to_owned()))
}

fn unreachable(error: &reqwest::Error) -> ClientError {
    ClientError::Unreachable(crate::app::with_causes(error))
}

#[derive(Deserialize)]
struct Envelope {
    error: ErrorFields,
}

#[derive(Deserialize)]
struct ErrorFields {
    message: Option<String>,
    code: Option<Value>,
}

/// An answer line by line, without line ends and blank lines.
pub(super) fn lines(response: Response) -> impl Stream<Item = Result<Vec<u8>>> + Send + Unpin {
    Box::pin(pieces(response).filter(|line| std::future::ready(!matches!(line, Ok(line) if line.is_empty()))))
}

/// An answer line by line. Memory is bounded by the longest line.
pub(super) fn pieces(response: Response) -> impl Stream<Item = Result<Vec<u8>>> + Send {
    let state = (Some(response), Vec::new());
    stream::unfold(state, |(mut response, mut rest): (Option<Response>, Vec<u8>)| async move {
        let mut searched = 0;
        loop {
            if let Some(end) = rest.iter().skip(searched).position(|byte| *byte == b'\n') {
                let after = rest.split_off(searched + end + 1);
                rest.truncate(rest.trim_ascii_end().len());
                return Some((Ok(rest), (response, after)));
            }
            searched = rest.len();
            let Some(open) = &mut response else {
                return (!rest.is_empty()).then(|| (Ok(std::mem::take(&mut rest)), (None, Vec::new())));
            };
            match open.chunk().await {
                Ok(Some(bytes)) if rest.len() + bytes.len() <= LINE_BYTES_MAX => rest.extend_from_slice(&bytes),
                Ok(Some(_)) => {
                    let error = ClientError::Unreadable(format!("a line of more than {LINE_BYTES_MAX} bytes"));
                    return Some((Err(error), (None, Vec::new())));
                }
                Ok(None) => response = None,
                Err(error) => return Some((Err(unreachable(&error)), (None, Vec::new()))),
            }
        }
    })
}

impl ClientError {
    /// Whether the server does not have the route, as one that speaks OpenAI's API and no more.
    pub(super) fn is_unknown_route(&self) -> bool {
        match self {
            Self::Refused { status: 404 | 405 | 501, code, .. } => {
                !code.as_deref().is_some_and(|code| KNOWN_ROUTE.contains(&code))
            }
            Self::Refused { .. } | Self::Unreachable(_) | Self::Unreadable(_) | Self::File(_) => false,
        }
    }

    /// Whether the same may work in a moment.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Refused { status, .. } => matches!(status, 408 | 429 | 500..),
            Self::Unreadable(_) | Self::File(_) => false,
        }
    }
}

impl std::fmt::Display for ClientError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreachable(reason) => write!(f, "the server cannot be reached: {reason}"),
            Self::Refused { status, message, .. } => write!(f, "{message} ({status})"),
            Self::Unreadable(what) => write!(f, "the server sent {what}"),
            Self::File(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for ClientError {}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let code = match &error {
            ClientError::Unreachable(_) => Self::UNAVAILABLE,
            ClientError::Refused { code: Some(code), .. } if code == NOTHING_TO_RETRY => 1,
            ClientError::Refused { status, .. } => match status {
                401 | 403 => Self::NO_PERMISSION,
                404 | 409 => 1,
                400..=407 | 410..=428 => Self::DATA,
                _ => Self::TEMPORARY,
            },
            ClientError::Unreadable(_) => Self::PROTOCOL,
            ClientError::File(cause) if cause.kind() == std::io::ErrorKind::NotFound => Self::NO_INPUT,
            ClientError::File(_) => Self::IO,
        };
        Self::new(code, error.to_string())
    }
}
