//! What a client of the Batch API is told, word for word, as recorded transcripts: every state that a batch stays in for a while, and every
//! refusal. What comes of cancelling in the moments between is in the table of bad inputs.
//!
//! Ids and times are named in the order in which they appear, rates are left out, and everything else is as it goes over the wire. `cargo insta review` shows
//! what a change to the API makes of them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use reqwest::RequestBuilder;
use reqwest::multipart::Form;
use serde_json::{Value, json};
use tandem::batch::Settings;
use tandem::clock::Clock;

use crate::helpers::{Server, line, part};

/// A server with a clock that stands still, and what was said to it.
struct Talk {
    server: Server,
    now: Arc<AtomicI64>,
    said: String,
    /// What ids are called, by kind and order.
    names: HashMap<String, String>,
}

impl Talk {
    async fn begin(dir: &Path) -> Self {
        // Files are uploaded by the system's clock, and expire by that of batches.
        let now = Arc::new(AtomicI64::new(Clock::system().seconds()));
        let hand = Arc::clone(&now);
        let clock = Clock::from_fn(move || hand.load(Ordering::SeqCst) * 1000);
        let server = Server::start_with(dir, Settings { clock, ..Settings::default() }, &[]).await;
        Self { server, now, said: String::new(), names: HashMap::new() }
    }

    async fn get(&mut self, path: &str) -> Value {
        let request = self.server.get(path);
        self.exchange("GET", path, "", request).await
    }

    async fn delete(&mut self, path: &str) -> Value {
        let request = self.server.delete(path);
        self.exchange("DELETE", path, "", request).await
    }

    async fn post(&mut self, path: &str, body: &Value) -> Value {
        let request = self.server.post(path).json(body);
        self.exchange("POST", path, &body.to_string(), request).await
    }

    async fn post_text(&mut self, path: &str, body: &'static str) -> Value {
        let request = self.server.post(path).header("content-type", "application/json").body(body);
        self.exchange("POST", path, body, request).await
    }

    async fn upload(&mut self, filename: &str, text: &str, fields: &[(&str, &str)]) -> Value {
        let mut form = Form::new();
        for (name, value) in fields {
            form = form.text((*name).to_owned(), (*value).to_owned());
        }
        let request = self.server.post("/v1/files").multipart(form.part("file", part(filename, text)));
        let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let said = format!("{} file={filename}\n{}", fields.join(" "), text.trim_end());
        self.exchange("POST", "/v1/files", &said, request).await
    }

    /// Sends a request and notes it with its answer, which is returned as it came.
    async fn exchange(&mut self, method: &str, path: &str, body: &str, request: RequestBuilder) -> Value {
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        let named = self.named(&format!("{method} {path}\n{body}"));
        self.said += &format!("> {}\n", named.trim_end().replace('\n', "\n> "));
        self.said += &format!("{status}\n");
        match serde_json::from_str::<Value>(&text) {
            Ok(value) => {
                let shown = self.shown(&value);
                self.said += &format!("{}\n\n", serde_json::to_string_pretty(&shown).unwrap());
                value
            }
            // Lines of JSON.
            Err(_) => {
                for line in text.lines() {
                    let shown = self.shown(&serde_json::from_str(line).unwrap());
                    self.said += &format!("{shown}\n");
                }
                self.said.push('\n');
                Value::String(text)
            }
        }
    }

    /// Waits unseen until a batch looks so, then asks for it once more.
    async fn get_when(&mut self, batch: &Value, look: impl Fn(&Value) -> bool) -> Value {
        self.server.batch_when(&batch["id"], look).await;
        self.get(&path(batch, "")).await
    }

    async fn ended(&mut self, batch: &Value, status: &str) -> Value {
        let batch = self.get_when(batch, |batch| batch["status"] == status).await;
        for file in ["output_file_id", "error_file_id"] {
            if let Some(id) = batch[file].as_str() {
                self.get(&format!("/v1/files/{id}/content")).await;
            }
        }
        batch
    }

    /// Uploads lines and makes a batch of them.
    async fn submit(&mut self, text: &str) -> Value {
        let file = self.upload("in.jsonl", text, &[("purpose", "batch")]).await;
        self.post("/v1/batches", &create(&file["id"])).await
    }

    /// A value with ids and times by name. Times are told from when their object was created.
    fn shown(&mut self, value: &Value) -> Value {
        match value {
            Value::Object(fields) => {
                let created = fields.get("created_at").and_then(Value::as_i64);
                let show = |this: &mut Self, name: &str, value: &Value| match (value.as_i64(), created) {
                    // By the real time that passed.
                    _ if ["tokens_per_second", "eta_seconds"].contains(&name) => json!("measured"),
                    (Some(time), Some(created)) if name.ends_with("_at") => match time - created {
                        0 => json!("created"),
                        after => json!(format!("created + {after}")),
                    },
                    _ => this.shown(value),
                };
                fields.iter().map(|(name, value)| (name.clone(), show(self, name, value))).collect()
            }
            Value::Array(items) => items.iter().map(|item| self.shown(item)).collect(),
            Value::String(text) => Value::String(self.named(text)),
            Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        }
    }

    fn named(&mut self, text: &str) -> String {
        let is_of_id = |byte: char| byte.is_ascii_alphanumeric();
        let mut named = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['-', '_']) {
            let (before, after) = rest.split_at(at + 1);
            let end = after.find(|byte| !is_of_id(byte)).unwrap_or(after.len());
            let (word, behind) = after.split_at(end);
            named += before;
            // Made by the server: the test's own words are shorter.
            match word.len() >= 20 {
                true => named += &self.name(before, word),
                false => named += word,
            }
            rest = behind;
        }
        named + rest
    }

    fn name(&mut self, before: &str, id: &str) -> String {
        let kind =
            before.rsplit(|byte: char| !byte.is_ascii_alphanumeric() && byte != '_' && byte != '-').next().unwrap();
        let of_kind = self.names.keys().filter(|known| known.starts_with(kind)).count();
        self.names.entry(format!("{kind}{id}")).or_insert_with(|| (of_kind + 1).to_string()).clone()
    }
}

fn path(batch: &Value, rest: &str) -> String {
    format!("/v1/batches/{}{rest}", batch["id"].as_str().unwrap())
}

fn create(file_id: &Value) -> Value {
    json!({"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"})
}

/// A line whose body is as given.
fn line_of(custom_id: &str, url: &str, body: &Value) -> String {
    json!({"custom_id": custom_id, "method": "POST", "url": url, "body": body}).to_string() + "\n"
}

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn completed() {
    let dir = tempfile::tempdir().unwrap();
    let mut talk = Talk::begin(dir.path()).await;
    let file = talk.upload("in.jsonl", &(line("a", "hello") + &line("b", "refuse")), &[("purpose", "batch")]).await;
    let mut body = create(&file["id"]);
    body["metadata"] = json!({"night": "1"});
    body["output_expires_after"] = json!({"anchor": "created_at", "seconds": 3600});
    let batch = talk.post("/v1/batches", &body).await;
    let batch = talk.ended(&batch, "completed").await;
    talk.get(&format!("/v1/files/{}", batch["output_file_id"].as_str().unwrap())).await;
    talk.post(&path(&batch, "/cancel"), &json!({})).await;
    let refused = talk.submit(&line("a", "refuse")).await;
    talk.ended(&refused, "completed").await;
    talk.get("/v1/batches?limit=1").await;
    talk.get(&format!("/v1/batches?after={}", refused["id"].as_str().unwrap())).await;
    insta::assert_snapshot!(talk.said);
}

#[tokio::test]
async fn failed() {
    let dir = tempfile::tempdir().unwrap();
    let mut talk = Talk::begin(dir.path()).await;
    let messages = json!([{"role": "user", "content": "x"}]);
    let chat = json!({"model": "m", "messages": messages});
    // The first line alone is looked at when a file is uploaded.
    let lines = [
        line("a", "good"),
        "not JSON\n".to_owned(),
        "[1]\n".to_owned(),
        "\n".to_owned(),
        json!({"method": "POST", "url": CHAT, "body": chat}).to_string() + "\n",
        json!({"custom_id": 5, "method": "POST", "url": CHAT, "body": chat}).to_string() + "\n",
        json!({"custom_id": "c", "url": CHAT, "body": chat}).to_string() + "\n",
        json!({"custom_id": "d", "method": "GET", "url": CHAT, "body": chat}).to_string() + "\n",
        json!({"custom_id": "e", "method": "POST", "body": chat}).to_string() + "\n",
        line_of("f", "/v1/embeddings", &chat),
        line_of("g", "http://169.254.169.254/", &chat),
        json!({"custom_id": "h", "method": "POST", "url": CHAT}).to_string() + "\n",
        line_of("i", CHAT, &json!("text")),
        line_of("j", CHAT, &json!({"model": "m", "messages": messages, "stream": true})),
        line_of("k", CHAT, &json!({"messages": messages})),
        line_of("l", CHAT, &json!({"model": "m"})),
        line_of("m", CHAT, &json!({"model": "nobody", "messages": messages})),
        line("a", "a second time"),
    ];
    let batch = talk.submit(&lines.concat()).await;
    let batch = talk.ended(&batch, "failed").await;
    talk.post(&path(&batch, "/cancel"), &json!({})).await;
    let unknown = talk.post("/v1/batches", &create(&json!("file-nobody"))).await;
    talk.ended(&unknown, "failed").await;
    let other = talk.upload("in.txt", "x", &[("purpose", "user_data")]).await;
    let wrong = talk.post("/v1/batches", &create(&other["id"])).await;
    talk.ended(&wrong, "failed").await;
    insta::assert_snapshot!(talk.said);
}

#[tokio::test]
async fn cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let mut talk = Talk::begin(dir.path()).await;
    let batch = talk.submit(&(line("a", "hello") + &line("b", "wait") + &line("c", "refuse"))).await;
    let run = |batch: &Value| {
        let counts = &batch["request_counts"];
        counts["completed"] == 1 && counts["failed"] == 1
    };
    let batch = talk.get_when(&batch, run).await;
    talk.now.fetch_add(60, Ordering::SeqCst);
    talk.post(&path(&batch, "/cancel"), &json!({})).await;
    let batch = talk.ended(&batch, "cancelled").await;
    talk.post(&path(&batch, "/cancel"), &json!({})).await;
    insta::assert_snapshot!(talk.said);
}

#[tokio::test]
async fn expired() {
    let dir = tempfile::tempdir().unwrap();
    let mut talk = Talk::begin(dir.path()).await;
    let batch = talk.submit(&(line("a", "hello") + &line("b", "wait"))).await;
    let batch = talk.get_when(&batch, |batch| batch["request_counts"]["completed"] == 1).await;
    talk.now.fetch_add(24 * 3600, Ordering::SeqCst);
    talk.server.batches.wake();
    let batch = talk.ended(&batch, "expired").await;
    talk.post(&path(&batch, "/cancel"), &json!({})).await;
    insta::assert_snapshot!(talk.said);
}

#[tokio::test]
async fn refusals_of_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut talk = Talk::begin(dir.path()).await;
    let good = line("a", "x");
    let batch = ("purpose", "batch");
    for (filename, text, fields) in [
        ("in.jsonl", good.as_str(), &[][..]),
        ("in.jsonl", &good, &[("purpose", "hack")]),
        ("in.jsonl", &good, &[("purpose", "batch_output")]),
        ("in.jsonl", "", &[batch]),
        ("in.jsonl", "not JSON\n", &[batch]),
        ("in.csv", &good, &[batch]),
        ("in.jsonl", &good, &[batch, ("expires_after[anchor]", "last_used"), ("expires_after[seconds]", "3600")]),
        ("in.jsonl", &good, &[batch, ("expires_after[anchor]", "created_at"), ("expires_after[seconds]", "3599")]),
        ("in.jsonl", &good, &[batch, ("expires_after[anchor]", "created_at"), ("expires_after[seconds]", "2592001")]),
    ] {
        talk.upload(filename, text, fields).await;
    }
    let file = talk.upload("in.jsonl", &good, &[batch]).await;
    let kept = format!("/v1/files/{}", file["id"].as_str().unwrap());
    talk.get(&kept).await;
    talk.get("/v1/files").await;
    for query in ["limit=0", "limit=10001", "limit=x", "order=up", "purpose=hack", "after=file-nobody"] {
        talk.get(&format!("/v1/files?{query}")).await;
    }
    talk.delete(&kept).await;
    talk.delete(&kept).await;
    talk.get(&kept).await;
    talk.get(&format!("{kept}/content")).await;
    insta::assert_snapshot!(talk.said);
}

#[tokio::test]
async fn refusals_of_batches() {
    let dir = tempfile::tempdir().unwrap();
    let mut talk = Talk::begin(dir.path()).await;
    let good = create(&json!("file-nobody"));
    for (field, value) in [
        ("input_file_id", Value::Null),
        ("input_file_id", json!(5)),
        ("endpoint", Value::Null),
        ("endpoint", json!("/v1/admin")),
        ("completion_window", Value::Null),
        ("completion_window", json!("1h")),
        ("metadata", json!("x")),
        ("metadata", json!({"tags": []})),
        ("metadata", json!({"k": "x".repeat(513)})),
        ("output_expires_after", json!({"anchor": "x", "seconds": 3600})),
        ("output_expires_after", json!({"anchor": "created_at", "seconds": 3599})),
    ] {
        let mut body = good.clone();
        body[field] = value;
        talk.post("/v1/batches", &body).await;
    }
    talk.post_text("/v1/batches", "{").await;
    talk.post_text("/v1/batches", "[]").await;
    talk.post_text("/v1/batches", r#"{"input_file_id": "a", "input_file_id": "b"}"#).await;
    for query in ["limit=0", "limit=101", "limit=x", "after=batch_nobody"] {
        talk.get(&format!("/v1/batches?{query}")).await;
    }
    talk.get("/v1/batches/batch_nobody").await;
    talk.post("/v1/batches/batch_nobody/cancel", &json!({})).await;
    insta::assert_snapshot!(talk.said);
}
