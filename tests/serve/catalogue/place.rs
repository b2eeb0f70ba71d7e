use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use reqwest::{
    Method, RequestBuilder, StatusCode,
    multipart::{Form, Part},
};
use serde_json::{Value, json};
use tandem::{
    access::{KeyText, hash},
    openai::AllowedModels,
    store::{ApiKeys, NewApiKey},
};
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle, time::sleep};

use super::{answer::Answer, generate::generate, table::ServerSpec};
use crate::program::{Program, keys, new_key, tandem};

/// Growth that is no leak: what the largest requests take, and allocators keep.
const SLACK_BYTES: usize = 192 << 20;
const PATIENCE: Duration = Duration::from_secs(60);
/// In which nothing is left of an upload that was refused.
const TIDIED: Duration = Duration::from_secs(1);

/// A server with what requests may name, and a stream that runs beside them.
pub(super) struct Place {
    pub(super) program: Program,
    pub(super) storage: TempDir,
    names: Mutex<BTreeMap<String, String>>,
    memory: usize,
    canary: Option<Canary>,
}

struct Canary {
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<usize, String>>,
}

impl Place {
    pub(super) async fn start(name: &str, spec: &ServerSpec) -> Self {
        let storage = tempfile::tempdir().unwrap();
        let data = storage.path().join("data");
        let config = storage.path().join("config.toml");
        fs_err::write(&config, toml::to_string(&spec.settings).unwrap()).unwrap();
        let mut names = BTreeMap::new();
        for (key, options) in &spec.keys {
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            names.insert(format!("key.{key}"), make_key(&data, key, &options).await);
        }
        let mut command = tandem(&["serve", "--profile", "sim", "--port", "0", "--config", config.to_str().unwrap()]);
        command.env("STORAGE_PATH", &data).env("RUST_LOG", "off").envs(&spec.environment);
        let program = Program::launch_as(command).unwrap_or_else(|line| panic!("{name}: {line}"));
        program.until_status("/health", StatusCode::OK).await;
        let mut place = Self { program, memory: 0, names: Mutex::new(names), canary: None, storage };
        if spec.furnished {
            place.furnish().await;
        }
        place.memory = place.program.memory();
        place.canary = if spec.canary { Some(place.canary().await) } else { None };
        place
    }

    /// The directory of the database and the files.
    pub(super) fn data(&self) -> std::path::PathBuf {
        self.storage.path().join("data")
    }

    pub(super) fn names(&self) -> BTreeMap<String, String> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn name(&self, name: &str) -> String {
        self.names().get(name).cloned().unwrap_or_else(|| panic!("nothing is named {name}"))
    }

    /// What the table means by a text.
    pub(super) fn fill(&self, text: &str) -> String {
        generate(text, &self.names())
    }

    fn set(&self, name: &str, value: &str) {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), value.to_owned());
    }

    pub(super) fn call(&self, method: Method, path: &str) -> RequestBuilder {
        let key = self.names().get("key.ok").cloned().unwrap_or_default();
        self.program.call(method, path, &key)
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        Answer::of(self.call(Method::GET, path).send().await.unwrap()).await
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Answer {
        Answer::of(self.call(Method::POST, path).json(body).send().await.unwrap()).await
    }

    /// What has to succeed.
    pub(super) async fn ok(&self, request: RequestBuilder) -> Value {
        let answer = Answer::of(request.send().await.unwrap()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    pub(super) fn upload(&self, purpose: &str, text: &str) -> RequestBuilder {
        let part = Part::text(text.to_owned()).file_name("in.jsonl");
        let form = Form::new().text("purpose", purpose.to_owned()).part("file", part);
        self.call(Method::POST, "/v1/files").multipart(form)
    }

    pub(super) fn create(&self, file: &Value) -> RequestBuilder {
        let body = json!({"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"});
        self.call(Method::POST, "/v1/batches").json(&body)
    }

    /// Uploads lines and makes a batch of them.
    pub(super) async fn submit(&self, lines: &str) -> Value {
        let file = self.ok(self.upload("batch", lines)).await;
        self.ok(self.create(&file["id"])).await
    }

    pub(super) async fn steer(&self, batch: &Value, how: &str) -> Answer {
        let path = format!("/v1/batches/{}/{how}", batch["id"].as_str().unwrap());
        Answer::of(self.call(Method::POST, &path).send().await.unwrap()).await
    }

    /// The batch as soon as `look` likes it.
    pub(super) async fn batch_when(&self, batch: &Value, look: impl Fn(&Value) -> bool) -> Value {
        let path = format!("/v1/batches/{}", batch["id"].as_str().unwrap());
        let deadline = Instant::now() + PATIENCE;
        loop {
            let batch = self.ok(self.call(Method::GET, &path)).await;
            if look(&batch) {
                return batch;
            }
            assert!(Instant::now() < deadline, "never what is awaited: {batch}");
            // sleep: between two polls, within the deadline
            sleep(Duration::from_millis(5)).await;
        }
    }

    pub(super) async fn ended(&self, batch: &Value) -> Value {
        self.batch_when(batch, |batch| ENDS.iter().any(|end| batch["status"] == *end)).await
    }

    /// What requests may name: files and batches in every state.
    async fn furnish(&self) {
        let input = line("a", 2);
        let set = |name: &str, object: &Value| self.set(name, object["id"].as_str().unwrap());
        let file = self.ok(self.upload("batch", &input)).await;
        set("file.ok", &file);
        set("file.vision", &self.ok(self.upload("vision", "a picture")).await);
        let gone = self.ok(self.upload("batch", &input)).await;
        set("file.deleted", &gone);
        self.ok(self.call(Method::DELETE, &format!("/v1/files/{}", gone["id"].as_str().unwrap()))).await;
        let batch = self.ok(self.create(&file["id"])).await;
        set("batch.completed", &self.ended(&batch).await);
        let batch = self.ok(self.create(&gone["id"])).await;
        set("batch.failed", &self.ended(&batch).await);
        // One that is never done, so that there is always one that runs.
        let file = self.ok(self.upload("batch", &line("a", 2))).await;
        let batch = self.ok(self.create(&file["id"]).header("idempotency-key", "running")).await;
        set("file.running", &file);
        set("batch.running", &batch);
        self.steer(&batch, "pause").await;
        if let Some(other) = self.names().get("key.other") {
            let part = Part::text(input).file_name("in.jsonl");
            let form = Form::new().text("purpose", "batch").part("file", part);
            let file = self.ok(self.program.call(Method::POST, "/v1/files", other).multipart(form)).await;
            set("other.file", &file);
            let body = json!({"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"});
            set("other.batch", &self.ok(self.program.call(Method::POST, "/v1/batches", other).json(&body)).await);
        }
    }

    /// Whether the server answers, and nothing is left of what was refused.
    pub(super) async fn is_well(&self) -> Result<(), String> {
        let port = self.program.port().to_owned();
        let ask = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        let asked = tokio::task::spawn_blocking(move || Answer::to_raw(&port, ask, false)).await.unwrap();
        let answer = asked.map_err(|error| format!("no health behind it: {error}"))?;
        if answer.status != 200 {
            return Err(format!("the server is not well behind it: {answer:?}"));
        }
        let deadline = Instant::now() + TIDIED;
        while fs_err::read_dir(self.data().join("tmp")).unwrap().count() > 0 {
            if Instant::now() > deadline {
                return Err("something is left of an upload".to_owned());
            }
            // sleep: between two polls, within the deadline
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Streams the same answer again and again until it is told to stop, and looks at whether it is whole and the same.
    async fn canary(&self) -> Canary {
        let (stop, mut stopped) = watch::channel(false);
        let body = json!({"model": "sim", "prompt": "a canary", "temperature": 0, "max_tokens": 300, "ignore_eos": true, "stream": true});
        let request = self.call(Method::POST, "/v1/completions").json(&body);
        let sing = move || {
            let request = request.try_clone().unwrap();
            async move {
                let response = request.send().await.map_err(|error| format!("the canary: {error:?}"))?;
                let text = response.text().await.map_err(|error| format!("the canary: {error:?}"))?;
                text.strip_suffix("data: [DONE]\n\n")
                    .map(song)
                    .ok_or_else(|| format!("the canary is cut short: {text}"))
            }
        };
        let song = sing().await.unwrap();
        let task = tokio::spawn(async move {
            let mut songs = 0;
            loop {
                let again = sing().await?;
                if again != song {
                    return Err(format!("the canary sings {again:?}, not {song:?}"));
                }
                songs += 1;
                if *stopped.borrow_and_update() {
                    return Ok(songs);
                }
            }
        });
        Canary { stop, task }
    }

    /// Whether the stream beside it all was whole, and memory is bounded.
    pub(super) async fn end(&self) -> Result<(), String> {
        if let Some(Canary { stop, task }) = &self.canary {
            stop.send_replace(true);
            let deadline = Instant::now() + PATIENCE;
            while !task.is_finished() {
                if Instant::now() > deadline {
                    return Err("the canary never ends".to_owned());
                }
                // sleep: between two polls, within the deadline
                sleep(Duration::from_millis(5)).await;
            }
        }
        let memory = self.program.memory();
        if memory > self.memory + SLACK_BYTES {
            return Err(format!("{} bytes became {memory}", self.memory));
        }
        Ok(())
    }

    /// What the canary has to say.
    pub(super) async fn farewell(self) -> Result<(), String> {
        match self.canary {
            None => Ok(()),
            Some(Canary { task, .. }) => match task.await.map_err(|error| error.to_string())? {
                Ok(0) => Err("the canary never sang".to_owned()),
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            },
        }
    }
}

pub(super) const ENDS: [&str; 4] = ["completed", "failed", "expired", "cancelled"];

/// A line of a batch of completions.
pub(super) fn line(custom_id: &str, max_tokens: u32) -> String {
    let body =
        json!({"model": "sim", "prompt": format!("x {custom_id}"), "max_tokens": max_tokens, "ignore_eos": true});
    json!({"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}).to_string() + "\n"
}

/// The text of a stream.
fn song(events: &str) -> String {
    let chunks = events.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    let text =
        |chunk: &str| serde_json::from_str::<Value>(chunk).unwrap()["choices"][0]["text"].as_str().map(str::to_owned);
    chunks.filter_map(text).collect()
}

/// A key as `tandem keys` makes it; or, by its name, one that is no longer good, or was never made here.
async fn make_key(data: &Path, name: &str, options: &[&str]) -> String {
    match name {
        "expired" => {
            let key = KeyText::generate("live").unwrap();
            let new = NewApiKey {
                id: key.id().to_owned(),
                name: String::new(),
                tenant: "one".parse().unwrap(),
                digest: hash(&key),
                scopes: "inference".to_owned(),
                max_requests_per_minute: None,
                max_tokens_per_minute: None,
                max_concurrent: None,
                models: AllowedModels::default(),
                created_at: 0,
                expires_at: Some(1),
            };
            ApiKeys::open(data).await.unwrap().add(new).await.unwrap();
            key.reveal().to_owned()
        }
        "revoked" => {
            let key = new_key(data, options);
            keys(data, &["revoke", key.split('_').nth(2).unwrap()]);
            key
        }
        "stranger" => KeyText::generate("live").unwrap().reveal().to_owned(),
        _ => new_key(data, options),
    }
}
