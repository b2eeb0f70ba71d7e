use std::time::{Duration, Instant};

use reqwest::{
    Response, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    answer::{Answer, Verdict, error_message},
    request::{Expect, Request},
    sample::Sample,
    sse::Events,
};
use crate::app::with_causes;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Of what is answered from memory.
const LOOK_TIMEOUT: Duration = Duration::from_secs(30);

/// A client of one server, for one of its models.
#[derive(Clone, Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    /// In front of `/v1`, without a slash at its end.
    base: String,
    key: Option<HeaderValue>,
    pub(super) model: String,
    stream: bool,
    timeout: Duration,
}

/// A request in the bytes in which it is sent, made before the time runs.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    url: Url,
    body: Vec<u8>,
    streamed: bool,
    expect: Expect,
}

impl Client {
    /// `base` is the URL that `/v1` comes behind.
    ///
    /// # Errors
    /// When the URL or the key can be none; with the reason.
    pub(super) fn new(base: &str, key: Option<&str>, stream: bool, timeout: Duration) -> Result<Self, String> {
        let key = match key.filter(|key| !key.is_empty()) {
            None => None,
            Some(key) => {
                let header = HeaderValue::from_str(&format!("Bearer {key}"));
                let mut header = header.map_err(|_| "the API key is no text for a header".to_owned())?;
                header.set_sensitive(true);
                Some(header)
            }
        };
        let http = crate::http::client().connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true).build();
        let http = http.map_err(|error| format!("cannot make a client: {error}"))?;
        let base = base.trim_end_matches('/').to_owned();
        Ok(Self { http, base, key, model: String::new(), stream, timeout })
    }

    /// The models that the server lists.
    ///
    /// # Errors
    /// When it does not answer as such a server does; with the reason.
    pub(super) async fn served(&self) -> Result<Vec<String>, String> {
        #[derive(Deserialize)]
        struct List {
            data: Vec<Entry>,
        }
        #[derive(Deserialize)]
        struct Entry {
            id: String,
        }
        let request = self.http.get(format!("{}/v1/models", self.base)).timeout(LOOK_TIMEOUT);
        let response = self.authorized(request).send().await.map_err(|error| unreachable(&error))?;
        let (status, text) = (response.status(), response.text().await.map_err(|error| unreachable(&error))?);
        if !status.is_success() {
            return Err(format!("{}/v1/models: {} ({status})", self.base, error_message(&text)));
        }
        let list: List =
            serde_json::from_str(&text).map_err(|_| format!("{}/v1/models is no list of models", self.base))?;
        Ok(list.data.into_iter().map(|entry| entry.id).collect())
    }

    /// Whether the server is ready: its `/health` says so.
    pub(super) async fn is_healthy(&self) -> bool {
        let request = self.http.get(format!("{}/health", self.base)).timeout(LOOK_TIMEOUT);
        self.authorized(request).send().await.is_ok_and(|response| response.status() == StatusCode::OK)
    }

    /// What is answered to something that is no work for the model; `None` where the server does not do it.
    pub(super) async fn look<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Option<T> {
        let request = self.http.post(format!("{}{path}", self.base)).timeout(LOOK_TIMEOUT).json(body);
        let response = self.authorized(request).send().await.ok()?.error_for_status().ok()?;
        response.json().await.ok()
    }

    /// # Errors
    /// When its URL is none; with the reason.
    pub(super) fn prepare(&self, request: &Request) -> Result<Prepared, String> {
        let url = format!("{}{}", self.base, request.endpoint.path());
        Ok(Prepared {
            url: Url::parse(&url).map_err(|error| format!("{url}: {error}"))?,
            body: request.body_for(&self.model, self.stream),
            streamed: request.is_streamed(self.stream),
            expect: request.expect,
        })
    }

    /// Asks, and notes when what came. Times count from `due`.
    pub(super) async fn ask(&self, prepared: &Prepared, due: Instant) -> Sample {
        let mut times = Times::from(due);
        let mut answer = Answer::default();
        let result = self.exchange(prepared, &mut answer, &mut times).await;
        let (verdict, refused) = match result {
            Ok(()) => (answer.check(prepared.expect), false),
            Err(failure) => (Verdict::Failed(failure.reason), failure.refused),
        };
        times.sample(&answer, prepared.streamed, verdict, refused)
    }

    /// A request for its whole answer.
    ///
    /// # Errors
    /// When it is not answered; with the reason.
    pub(super) async fn answer(&self, request: &Request) -> Result<Answer, String> {
        let prepared = self.prepare(request)?;
        let mut times = Times::from(Instant::now());
        let mut answer = Answer::default();
        self.exchange(&prepared, &mut answer, &mut times).await.map_err(|failure| failure.reason)?;
        Ok(answer)
    }

    async fn exchange(&self, prepared: &Prepared, answer: &mut Answer, times: &mut Times) -> Result<(), Failure> {
        let request = self.http.post(prepared.url.clone()).timeout(self.timeout);
        let request = request.header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let response = self.authorized(request).body(prepared.body.clone()).send().await?;
        let status = response.status();
        if !status.is_success() {
            let text = response.text().await.unwrap_or_default();
            return Err(Failure { reason: format!("{} ({status})", error_message(&text)), refused: false });
        }
        if prepared.streamed {
            return read_stream(response, answer, times).await;
        }
        let body = response.bytes().await?;
        times.end = Some(Instant::now());
        answer.add(&body).map_err(Failure::answered)?;
        Ok(())
    }

    fn authorized(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        if let Some(key) = &self.key { request.header(AUTHORIZATION, key.clone()) } else { request }
    }
}

async fn read_stream(mut response: Response, answer: &mut Answer, times: &mut Times) -> Result<(), Failure> {
    let (mut events, mut wrong) = (Events::default(), None);
    while let Some(bytes) = response.chunk().await? {
        let now = Instant::now();
        events.push(&bytes, |data| {
            if data == b"[DONE]" || wrong.is_some() {
                return;
            }
            match answer.add(data) {
                Ok(true) => times.text_at(now),
                Ok(false) => {}
                Err(reason) => wrong = Some(reason),
            }
        });
        times.end = Some(now);
        if let Some(reason) = wrong {
            return Err(Failure::answered(reason));
        }
    }
    Ok(())
}

/// Why there is no answer.
struct Failure {
    reason: String,
    /// There was not even a connection.
    refused: bool,
}

impl Failure {
    fn answered(reason: String) -> Self {
        Self { reason, refused: false }
    }
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        Self { refused: error.is_connect(), reason: unreachable(&error) }
    }
}

fn unreachable(error: &reqwest::Error) -> String {
    let reason = if error.is_timeout() { "no answer in time" } else { "the server cannot be reached" };
    format!("{reason}: {}", with_causes(error))
}

/// When what of an answer came.
struct Times {
    due: Instant,
    first_text: Option<Instant>,
    last_text: Option<Instant>,
    end: Option<Instant>,
    gaps_ms: Vec<f32>,
}

impl Times {
    fn from(due: Instant) -> Self {
        Self { due, first_text: None, last_text: None, end: None, gaps_ms: Vec::new() }
    }

    fn text_at(&mut self, now: Instant) {
        match self.last_text {
            Some(last) => self.gaps_ms.push(now.duration_since(last).as_secs_f32() * 1e3),
            None => self.first_text = Some(now),
        }
        self.last_text = Some(now);
    }

    fn sample(self, answer: &Answer, streamed: bool, verdict: Verdict, refused: bool) -> Sample {
        let Self { due, first_text, last_text: _, end, gaps_ms } = self;
        let ms = |at: Instant| at.saturating_duration_since(due).as_secs_f64() * 1e3;
        let end = end.unwrap_or_else(Instant::now);
        let usage = answer.usage.unwrap_or_default();
        let pieces = gaps_ms.len() as u64 + u64::from(first_text.is_some());
        Sample {
            e2e_ms: ms(end),
            // An answer of control tokens alone says for the first time that it is there when it ends.
            ttft_ms: streamed.then(|| ms(first_text.unwrap_or(end))),
            input_tokens: usage.input,
            output_tokens: if answer.usage.is_some() { usage.output } else { pieces },
            cached_tokens: usage.cached,
            gaps_ms,
            verdict,
            refused,
        }
    }
}
