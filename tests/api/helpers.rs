use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tandem::{
    app::App,
    models::Models,
    settings::{LimitSettings, Overrides, Settings},
};
use tandem_core::BackendLoader;
use tandem_engine::{EngineLimits, Stats};
use tandem_sim::{SimEmbedderLoader, SimEmbedderSettings, SimLoader, SimSettings};
use tempfile::TempDir;

use crate::contract;

pub(crate) const MODEL: &str = "org/sim";

/// A running server and a client for it.
pub(crate) struct TestApp {
    pub(crate) url: String,
    pub(crate) client: reqwest::Client,
    models: Models,
    _storage: TempDir,
}

/// What differs from a server as it is by default.
pub(crate) struct Setup {
    pub(crate) sim: SimSettings,
    pub(crate) limits: LimitSettings,
    pub(crate) engine: EngineLimits,
}

impl Default for Setup {
    fn default() -> Self {
        Self { sim: SimSettings::default(), limits: settings().limits, engine: EngineLimits::default() }
    }
}

fn settings() -> Settings {
    let overrides = Overrides { profile: Some("sim".to_owned()), port: Some(0), ..Overrides::default() };
    Settings::load(&overrides).unwrap()
}

/// A server over the simulated embedding model.
pub(crate) async fn spawn_embedder(embedder: SimEmbedderSettings, limits: LimitSettings) -> TestApp {
    let make = move || -> Box<dyn BackendLoader> { Box::new(SimEmbedderLoader::new(embedder.clone())) };
    serve(make, limits, EngineLimits::default()).await
}

pub(crate) async fn spawn_app() -> TestApp {
    spawn(Setup::default()).await
}

/// The server as it is shipped, on a port of its own, over a simulated model.
pub(crate) async fn spawn(setup: Setup) -> TestApp {
    let Setup { sim, limits, engine } = setup;
    serve(move || Box::new(SimLoader::new(sim.clone())), limits, engine).await
}

async fn serve(
    make: impl Fn() -> Box<dyn BackendLoader> + Send + Sync + 'static,
    limits: LimitSettings,
    engine: EngineLimits,
) -> TestApp {
    let storage = tempfile::tempdir().unwrap();
    let settings = Settings { storage: storage.path().to_owned(), limits, ..settings() };
    let models = || Models::from_loader(MODEL, engine, move || Ok(make()));
    let app = App::build_with(&settings, models).await.unwrap();
    let (url, models) = (format!("http://{}", app.address()), app.models().clone());
    tokio::spawn(app.run_until_stopped(std::future::pending()));
    models.ready().await.unwrap();
    contract::learn(&url).await;
    TestApp { url, client: tandem::http::client().build().unwrap(), models, _storage: storage }
}

impl TestApp {
    /// An answer that is as documented.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Response {
        let response = self.request(Method::POST, path).json(body).send().await.unwrap();
        contract::checked(&Method::POST, path, response).await
    }

    /// An answer that is as documented.
    pub(crate) async fn get(&self, path: &str) -> Response {
        let response = self.request(Method::GET, path).send().await.unwrap();
        contract::checked(&Method::GET, path, response).await
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    /// Posts what has to succeed.
    pub(crate) async fn ok(&self, path: &str, body: &Value) -> Value {
        let response = self.post(path, body).await;
        let status = response.status();
        let body: Value = response.json().await.unwrap();
        assert_eq!(status, StatusCode::OK, "{body}");
        body
    }

    pub(crate) async fn chat(&self, extra: Value) -> Value {
        self.ok("/v1/chat/completions", &chat_body(extra)).await
    }

    pub(crate) async fn stats(&self) -> Stats {
        self.models.lease(MODEL).await.unwrap().stats()
    }

    /// Waits until the counters are as wanted.
    pub(crate) async fn until(&self, wanted: impl Fn(&Stats) -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while !wanted(&self.stats().await) {
            assert!(tokio::time::Instant::now() < deadline, "{:?}", self.stats().await);
            // sleep: between two polls, within the deadline
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// A chat request with the fields of `extra` put over it.
pub(crate) fn chat_body(extra: Value) -> Value {
    merged(
        json!({"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "seed": 7, "max_tokens": 12}),
        extra,
    )
}

pub(crate) fn merged(mut base: Value, extra: Value) -> Value {
    let Value::Object(extra) = extra else { panic!("fields are an object") };
    for (name, value) in extra {
        base[name] = value;
    }
    base
}

/// The data of a stream's events, which are as documented.
pub(crate) fn events(stream: &str) -> Vec<String> {
    let events = stream.split("\n\n").filter(|event| !event.is_empty());
    let events = events.map(|event| event.strip_prefix("data: ").expect("an event has data").to_owned());
    events.inspect(|data| contract::check_event(data)).collect()
}
