use std::path::Path;
use std::time::Duration;

use actix_web::dev::Service as _;
use actix_web::web::Data;
use actix_web::{App, HttpResponse, HttpServer};
use reqwest::multipart::{Form, Part};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tandem::access::Access;
use tandem::api::{UploadLimits, batches, files};
use tandem::batch::{Batches, LineAnswer, LineExecutor, LineSize, Settings};
use tandem::openai::Endpoint;
use tandem::openai::error::ApiError;
use tandem::store::{Store, Tenant, Tokens};

/// Answers with what it was asked, or with so many bytes where that is `long …`; refuses `refuse`; never answers a message that begins
/// with `wait`.
#[derive(Debug)]
pub(crate) struct Echo;

impl LineExecutor for Echo {
    fn knows(&self, model: &str) -> bool {
        model == "m"
    }

    async fn ready(&self) {}

    async fn execute(&self, _: &Tenant, _: Endpoint, body: &[u8]) -> Result<LineAnswer, ApiError> {
        let body: Value = serde_json::from_slice(body).unwrap();
        let content = &body["messages"][0]["content"];
        if content.as_str().unwrap().starts_with("wait") {
            std::future::pending::<()>().await;
        }
        if content == "refuse" {
            return Err(refusal());
        }
        let content = match content.as_str().unwrap().strip_prefix("long ") {
            Some(bytes) => json!("x".repeat(bytes.parse().unwrap())),
            None => content.clone(),
        };
        let body = serde_json::value::to_raw_value(&json!({"echo": content})).unwrap();
        Ok(LineAnswer { body, tokens: Tokens { input: 5, cached: 0, output: 2, reasoning: 1 } })
    }

    async fn measure(&self, _: Endpoint, body: &[u8]) -> Result<LineSize, ApiError> {
        let body: Value = serde_json::from_slice(body).unwrap();
        match body["messages"][0]["content"].as_str() {
            Some("refuse") => Err(refusal()),
            _ => Ok(LineSize { input_tokens: 5, max_output_tokens: 20 }),
        }
    }
}

fn refusal() -> ApiError {
    ApiError::invalid_value("messages", "Invalid 'messages': refused.")
}

/// A server of these routes alone, on a port of its own.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) batches: Batches,
    pub(crate) store: Store,
    client: Client,
}

impl Server {
    pub(crate) async fn start(dir: &Path) -> Self {
        Self::start_with(dir, Settings::default(), &[]).await
    }

    /// A server that lacks the routes which end in these words.
    pub(crate) async fn start_with(dir: &Path, settings: Settings, lacking: &'static [&'static str]) -> Self {
        let store = Store::open(dir).await.unwrap();
        let batches = Batches::start(store.clone(), Echo, settings).await.unwrap();
        let shared = (store.clone(), batches.clone());
        let limits = UploadLimits { batch_bytes: 100_000, file_bytes: 200_000, tenant_bytes: None, free_bytes: 0 };
        let server = HttpServer::new(move || {
            App::new()
                .wrap_fn(move |request, service| {
                    let lacks = lacking.iter().any(|word| request.path().ends_with(word));
                    let answer = if lacks {
                        let error = r#"{"error": {"message": "Not Found", "code": null}}"#;
                        Err(request.into_response(HttpResponse::NotFound().body(error)))
                    } else {
                        Ok(service.call(request))
                    };
                    async move {
                        match answer {
                            Ok(call) => call.await,
                            Err(response) => Ok(response),
                        }
                    }
                })
                .app_data(Data::new(Access::open()))
                .app_data(Data::new(shared.0.clone()))
                .app_data(Data::new(shared.1.clone()))
                .app_data(Data::new(limits))
                .configure(files::routes)
                .configure(batches::routes)
        });
        let server = server.workers(1).h1_allow_half_closed(false).disable_signals().bind(("127.0.0.1", 0)).unwrap();
        let url = format!("http://{}", server.addrs()[0]);
        tokio::spawn(server.run());
        Self { url, batches, store, client: tandem::http::client().build().unwrap() }
    }

    pub(crate) fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.get(format!("{}{path}", self.url))
    }

    pub(crate) fn post(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.post(format!("{}{path}", self.url))
    }

    pub(crate) fn delete(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.delete(format!("{}{path}", self.url))
    }

    pub(crate) async fn upload(&self, text: &str) -> String {
        let form = Form::new().text("purpose", "batch").part("file", part("in.jsonl", text));
        let (status, file) = answer(self.post("/v1/files").multipart(form)).await;
        assert_eq!(status, 200, "{file}");
        file["id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn content(&self, file_id: &Value) -> String {
        let path = format!("/v1/files/{}/content", file_id.as_str().unwrap());
        self.get(&path).send().await.unwrap().text().await.unwrap()
    }

    /// The batch once `look` likes it.
    pub(crate) async fn batch_when(&self, id: &Value, look: impl Fn(&Value) -> bool) -> Value {
        let path = format!("/v1/batches/{}", id.as_str().unwrap());
        let wait = async {
            loop {
                let (_, batch) = answer(self.get(&path)).await;
                if look(&batch) {
                    return batch;
                }
                // sleep: between two polls, within the deadline
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.expect("the batch did not get there within a minute")
    }
}

pub(crate) fn part(filename: &str, text: &str) -> Part {
    Part::text(text.to_owned()).file_name(filename.to_owned())
}

pub(crate) async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    let text = response.text().await.unwrap();
    let body = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status}: {text}"));
    (StatusCode::as_u16(&status), body)
}

pub(crate) fn line(custom_id: &str, content: &str) -> String {
    let body = json!({"model": "m", "messages": [{"role": "user", "content": content}]});
    json!({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}).to_string() + "\n"
}
