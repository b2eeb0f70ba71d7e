//! Generated schemas through the whole server, on both backends: an answer that was not cut off is valid under its schema, and a schema that
//! cannot be enforced is refused.

use boon::{Compiler, Schemas};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tandem::{
    app::App,
    settings::{Overrides, Settings},
};
use tempfile::TempDir;

use crate::{helpers::BACKENDS, schemas};

/// All of them; the default suite takes one in so many.
const SCHEMAS: u64 = 200;
const SHARE: usize = 9;
/// Schemas that a prompt tells, as those of functions, leave room for an answer in the small model's context.
const TOLD_BYTES: usize = 600;
/// Requests at once.
const CONCURRENCY: usize = 16;

#[tokio::test]
async fn an_answer_is_valid_under_its_schema() {
    for backend in BACKENDS {
        answers_are_valid(backend, (0..SCHEMAS).step_by(SHARE)).await;
    }
}

#[tokio::test]
async fn a_schema_that_cannot_be_enforced_is_refused() {
    let server = Server::start(BACKENDS[0]).await;
    let refused = stream::iter(0..SCHEMAS).map(async |number| {
        let (schema, keyword) = schemas::unenforceable(number);
        for body in bodies(number, &schema) {
            let (status, answer) = server.chat(&body).await;
            let error = &answer["error"];
            assert_eq!(
                (status, error["code"].as_str()),
                (400, Some("invalid_schema")),
                "{keyword} in {schema}: {answer}"
            );
            let place = error["param"].as_str().unwrap();
            // A long one is cut.
            assert!(place.ends_with(keyword) || place.ends_with('…'), "{keyword} is told at {place}");
        }
    });
    refused.buffer_unordered(CONCURRENCY).collect::<Vec<()>>().await;
}

mod slow {
    use super::*;

    #[tokio::test]
    async fn an_answer_is_valid_under_every_schema() {
        for backend in BACKENDS {
            answers_are_valid(backend, 0..SCHEMAS).await;
        }
    }
}

async fn answers_are_valid(backend: &str, numbers: impl Iterator<Item = u64>) {
    let server = Server::start(backend).await;
    let outcomes = stream::iter(numbers).map(|number| server.outcome(number)).buffer_unordered(CONCURRENCY);
    let outcomes: Vec<_> = outcomes.collect().await;
    let wrong: String = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).cloned().collect();
    assert!(wrong.is_empty(), "{backend}:\n{wrong}");
    let cut = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Outcome::Cut))).count();
    assert!(cut <= 2 + outcomes.len() / 20, "{backend}: {cut} of {} answers were cut off", outcomes.len());
}

enum Outcome {
    Valid,
    /// By the end of the context.
    Cut,
}

/// The ways to ask for it: every other schema describes an object, which the arguments of a function are.
fn bodies(number: u64, schema: &Value) -> Vec<Value> {
    let mut bodies = vec![formatted(number, schema)];
    bodies.extend(number.is_multiple_of(2).then(|| called(number, schema)));
    bodies
}

/// By the format of the response.
fn formatted(number: u64, schema: &Value) -> Value {
    let format = json!({"type": "json_schema", "json_schema": {"name": "answer", "strict": true, "schema": schema}});
    let mut body = body(number);
    body["response_format"] = format;
    body
}

/// By the parameters of a function that has to be called.
fn called(number: u64, schema: &Value) -> Value {
    let mut body = body(number);
    body["tools"] = json!([{"type": "function", "function": {"name": "answer", "parameters": schema}}]);
    body["tool_choice"] = "required".into();
    body["parallel_tool_calls"] = false.into();
    body
}

fn body(number: u64) -> Value {
    let messages = json!([{"role": "user", "content": "Give me an example as JSON."}]);
    json!({"model": "tiny", "messages": messages, "seed": number, "temperature": 1.0})
}

/// The whole server with the small model.
struct Server {
    url: String,
    client: reqwest::Client,
    _storage: TempDir,
}

impl Server {
    async fn start(backend: &str) -> Self {
        let storage = tempfile::tempdir().unwrap();
        let overrides = Overrides {
            backend: Some(backend.to_owned()),
            profile: Some("demo".to_owned()),
            port: Some(0),
            ..Overrides::default()
        };
        let settings = Settings { storage: storage.path().to_owned(), ..Settings::load(&overrides).unwrap() };
        let app = App::build(&settings).await.unwrap();
        let (url, models) = (format!("http://{}", app.address()), app.models().clone());
        tokio::spawn(app.run_until_stopped(std::future::pending()));
        models.ready().await.unwrap();
        Self { url, client: tandem::http::client().build().unwrap(), _storage: storage }
    }

    async fn chat(&self, body: &Value) -> (u16, Value) {
        let response = self.client.post(format!("{}/v1/chat/completions", self.url)).json(body).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    /// What became of a number's schema, or what is wrong with the answer.
    async fn outcome(&self, number: u64) -> Result<Outcome, String> {
        let schema = schemas::schema(number);
        let is_call = number.is_multiple_of(2) && schema.to_string().len() <= TOLD_BYTES;
        let body = if is_call { called(number, &schema) } else { formatted(number, &schema) };
        let (status, answer) = self.chat(&body).await;
        let wrong = |what: &str| Err(format!("{number}: {what}\n  {schema}\n  {answer}\n"));
        if status != 200 {
            return wrong("refused");
        }
        let choice = &answer["choices"][0];
        let text = match is_call {
            true => choice["message"]["tool_calls"][0]["function"]["arguments"].as_str(),
            false => choice["message"]["content"].as_str(),
        };
        match (choice["finish_reason"].as_str(), text) {
            (Some("length"), _) => Ok(Outcome::Cut),
            (Some("stop" | "tool_calls"), Some(text)) => match check(&schema, text) {
                Ok(()) => Ok(Outcome::Valid),
                Err(error) => wrong(&error),
            },
            _ => wrong("no answer"),
        }
    }
}

fn check(schema: &Value, text: &str) -> Result<(), String> {
    const URL: &str = "http://tandem.test/schema.json";
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
    compiler.enable_format_assertions();
    compiler.add_resource(URL, schema.clone()).map_err(|error| error.to_string())?;
    let index = compiler.compile(URL, &mut schemas).map_err(|error| error.to_string())?;
    schemas.validate(&value, index).map_err(|error| error.to_string())
}
