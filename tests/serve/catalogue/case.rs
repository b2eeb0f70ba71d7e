use std::sync::Arc;

use reqwest::{
    Method, RequestBuilder,
    multipart::{Form, Part},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{answer::Answer, place::Place};

/// A request and what is answered.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    server: Option<String>,
    /// The name of an API key.
    key: Option<String>,
    /// Method and path, where the body does not say it.
    call: Option<String>,
    /// Each as `name: value`.
    #[serde(default)]
    headers: Vec<String>,
    /// Fields of a request for a chat completion, over those of a good one.
    chat: Option<String>,
    /// The same for a completion.
    text: Option<String>,
    /// The same for a batch.
    batch: Option<String>,
    /// A body as it is.
    body: Option<String>,
    /// Parts of an upload.
    form: Option<Vec<FormPart>>,
    /// A whole request as it is.
    raw: Option<String>,
    status: Option<u16>,
    #[serde(rename = "type")]
    kind: Option<String>,
    /// `null` is the word for none.
    code: Option<String>,
    param: Option<String>,
    /// Whole, or its beginning if it ends with `…`, or its end if it begins with that.
    message: Option<String>,
    /// Headers of the answer, as `name: value` or `name: …`.
    #[serde(default)]
    answers: Vec<String>,
    /// Beginnings of headers' names that the answer does not have.
    #[serde(default)]
    absent: Vec<String>,
    /// What the answer has, by JSON pointers; null is for nothing.
    has: Option<String>,
    /// Whether the server closes the connection.
    #[serde(default)]
    closes: bool,
    /// In what this answer is not the catalogue's, and why.
    #[serde(default)]
    pub(super) deviates: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FormPart {
    name: String,
    filename: Option<String>,
    text: String,
}

impl FormPart {
    fn add_to(&self, form: Form, place: &Place) -> Form {
        let text = Part::text(place.fill(&self.text));
        let text = match &self.filename {
            Some(name) => text.file_name(place.fill(name)),
            None => text,
        };
        form.part(self.name.clone(), text)
    }
}

impl Case {
    pub(super) fn server(&self) -> &str {
        self.server.as_deref().unwrap_or("open")
    }

    fn status(&self) -> u16 {
        self.status.unwrap_or(400)
    }

    /// Status and code, if it is refused with one.
    pub(super) fn refusal(&self) -> Option<String> {
        let code = self.code.as_deref().filter(|code| self.status() >= 400 && *code != "null")?;
        Some(format!("{} {code}", self.status()))
    }

    pub(super) async fn run(&self, place: &Arc<Place>) -> Result<(), String> {
        let answer = self.ask(place).await?;
        self.check(place, &answer)
    }

    async fn ask(&self, place: &Arc<Place>) -> Result<Answer, String> {
        if let Some(raw) = &self.raw {
            let (request, port, closes) = (place.fill(raw), place.program.port().to_owned(), self.closes);
            let asked = tokio::task::spawn_blocking(move || Answer::to_raw(&port, request.as_bytes(), closes));
            return asked.await.map_err(|error| error.to_string())?;
        }
        let response = self.request(place).send().await.map_err(|error| format!("{error:?}"))?;
        Ok(Answer::of(response).await)
    }

    fn request(&self, place: &Arc<Place>) -> RequestBuilder {
        let chat =
            json!({"model": "sim", "messages": [{"role": "user", "content": "Hello"}], "seed": 7, "max_tokens": 12});
        let text = json!({"model": "sim", "prompt": "x", "seed": 7, "max_tokens": 8});
        let batch = json!({"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "24h"});
        let over = [
            (&self.chat, "/v1/chat/completions", chat),
            (&self.text, "/v1/completions", text),
            (&self.batch, "/v1/batches", batch),
        ];
        let over = over.into_iter().find_map(|(fields, path, base)| Some((fields.as_ref()?, path, base)));
        let usual = match &over {
            Some((_, path, _)) => format!("POST {path}"),
            None if self.form.is_some() => "POST /v1/files".to_owned(),
            None => String::new(),
        };
        let call = place.fill(self.call.as_deref().unwrap_or(&usual));
        let (method, path) = call.split_once(' ').expect("a method and a path");
        let key = self.key.as_ref().map(|key| place.name(&format!("key.{key}"))).unwrap_or_default();
        let mut request = place.program.call(Method::from_bytes(method.as_bytes()).unwrap(), path, &key);
        if let Some((fields, _, base)) = over {
            request = request.json(&merged(base, &place.fill(fields)));
        }
        if let Some(body) = &self.body {
            if !self.headers.iter().any(|header| header.starts_with("content-type:")) {
                request = request.header("content-type", "application/json");
            }
            request = request.body(place.fill(body));
        }
        if let Some(parts) = &self.form {
            request = request.multipart(parts.iter().fold(Form::new(), |form, part| part.add_to(form, place)));
        }
        for header in &self.headers {
            let header = place.fill(header);
            let (name, value) = header.split_once(": ").expect("a name and a value");
            request = request.header(name, value.as_bytes());
        }
        request
    }

    fn check(&self, place: &Place, answer: &Answer) -> Result<(), String> {
        let mut wrong = Vec::new();
        let mut compare = |what: &str, expected: String, got: String| {
            if expected != got {
                wrong.push(format!("{what} is {got}, not {expected}"));
            }
        };
        compare("status", self.status().to_string(), answer.status.to_string());
        if self.closes {
            compare("closed", true.to_string(), answer.closed.to_string());
        }
        for header in &self.answers {
            let (name, expected) = header.split_once(": ").expect("a name and a value");
            let got = answer.header(name).unwrap_or("nothing").to_owned();
            let is_any = expected == "…" && got != "nothing";
            compare(name, if is_any { got.clone() } else { expected.to_owned() }, got);
        }
        for start in &self.absent {
            let found = answer.headers.iter().find(|(name, _)| name.starts_with(start));
            compare("what is absent", format!("{:?}", None::<()>), format!("{found:?}"));
        }
        if let Some(has) = &self.has {
            let (body, has) = (answer.json(), place.fill(has));
            let has: Map<String, Value> = serde_json::from_str(&has).expect("pointers and values");
            for (pointer, expected) in has {
                let got = body.pointer(&pointer).cloned().unwrap_or_default();
                compare(&pointer, expected.to_string(), got.to_string());
            }
        }
        if self.status() >= 400 {
            let error = answer.refusal()?;
            let text = |name: &str| error[name].as_str().unwrap_or("null").to_owned();
            let of = |expected: &Option<String>, usual: &str| expected.as_deref().unwrap_or(usual).to_owned();
            compare("type", of(&self.kind, "invalid_request_error"), text("type"));
            compare("code", of(&self.code, "not said by the table"), text("code"));
            compare("param", of(&self.param, "null"), text("param"));
            if let Some(message) = &self.message {
                let (expected, got) = (place.fill(message), text("message"));
                let fits = match (expected.strip_suffix('…'), expected.strip_prefix('…')) {
                    (Some(start), _) => got.starts_with(start),
                    (_, Some(end)) => got.ends_with(end),
                    _ => got == expected,
                };
                compare("message", if fits { got.clone() } else { expected }, got);
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(format!("{}: {:.400}", wrong.join("; "), answer.body)) }
    }
}

fn merged(mut base: Value, fields: &str) -> Value {
    let fields: Map<String, Value> = serde_json::from_str(fields).expect("fields of a body");
    for (name, value) in fields {
        base[name] = value;
    }
    base
}
