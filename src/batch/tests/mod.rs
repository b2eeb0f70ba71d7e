mod clock;
mod life;
mod offline;
mod order;
mod recovery;
mod results;
mod retry;
mod shares;
mod steer;
mod validation;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};

use super::{Batches, LineAnswer, LineExecutor, LineSize, Settings};
use crate::clock::Clock;
use crate::openai::error::{ApiError, ErrorBody};
use crate::openai::{AllowedModels, Endpoint};
use crate::store::{Batch, Created, NewBatch, NewFile, Store, Tenant, Tokens};

const NOW: i64 = 1_800_000_000;
const DAY_S: i64 = 24 * 3600;

/// Answers by what the message says: `refuse` 400, `busy` 503, `busy-once` 503 the first time, `panic`, `gate` waits to be let
/// through, all else an echo.
#[derive(Clone, Default)]
struct Fake {
    state: Arc<FakeState>,
}

struct FakeState {
    /// Whether requests would be taken.
    ready: watch::Sender<bool>,
    /// Lines that wait for that.
    waiting: AtomicUsize,
    gate: Semaphore,
    executions: Mutex<HashMap<String, usize>>,
    /// What was asked, in its order.
    order: Mutex<Vec<String>>,
    endpoints: Mutex<Vec<&'static str>>,
    running: AtomicUsize,
    running_max: AtomicUsize,
    started: AtomicUsize,
}

impl Default for FakeState {
    fn default() -> Self {
        Self {
            ready: watch::Sender::new(true),
            waiting: AtomicUsize::new(0),
            gate: Semaphore::new(0),
            executions: Mutex::default(),
            order: Mutex::default(),
            endpoints: Mutex::default(),
            running: AtomicUsize::new(0),
            running_max: AtomicUsize::new(0),
            started: AtomicUsize::new(0),
        }
    }
}

struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Fake {
    fn open_gate(&self) {
        self.state.gate.add_permits(1 << 20);
    }

    fn running(&self) -> usize {
        self.state.running.load(Ordering::SeqCst)
    }

    fn running_max(&self) -> usize {
        self.state.running_max.load(Ordering::SeqCst)
    }

    fn executions(&self, content: &str) -> usize {
        self.state.executions.lock().unwrap().get(content).copied().unwrap_or(0)
    }
}

impl LineExecutor for Fake {
    fn knows(&self, model: &str) -> bool {
        model.starts_with('m')
    }

    async fn ready(&self) {
        let mut ready = self.state.ready.subscribe();
        if !*ready.borrow() {
            self.state.waiting.fetch_add(1, Ordering::SeqCst);
        }
        ready.wait_for(|ready| *ready).await.unwrap();
    }

    async fn execute(&self, _: &Tenant, endpoint: Endpoint, body: &[u8]) -> Result<LineAnswer, ApiError> {
        self.state.endpoints.lock().unwrap().push(endpoint.path());
        let body: Value = serde_json::from_slice(body).unwrap();
        let content = body["messages"][0]["content"].as_str().unwrap().to_owned();
        let now = self.state.running.fetch_add(1, Ordering::SeqCst) + 1;
        let _running = Running(&self.state.running);
        self.state.running_max.fetch_max(now, Ordering::SeqCst);
        self.state.started.fetch_add(1, Ordering::SeqCst);
        self.state.order.lock().unwrap().push(content.clone());
        let execution = {
            let mut executions = self.state.executions.lock().unwrap();
            let count = executions.entry(content.clone()).or_default();
            *count += 1;
            *count
        };
        match content.split(' ').next().unwrap() {
            "refuse" => return Err(error(400, "context_length_exceeded")),
            "busy" => return Err(error(503, "overloaded")),
            "busy-once" if execution == 1 => return Err(error(503, "overloaded")),
            "panic" => panic!("as asked"),
            "gate" => drop(self.state.gate.acquire().await.unwrap()),
            _ => tokio::task::yield_now().await,
        }
        let body = serde_json::value::to_raw_value(&json!({"echo": content})).unwrap();
        Ok(LineAnswer { body, tokens: Tokens { input: 3, cached: 1, output: 2, reasoning: 0 } })
    }

    async fn measure(&self, _: Endpoint, body: &[u8]) -> Result<LineSize, ApiError> {
        let body: Value = serde_json::from_slice(body).unwrap();
        let content = body["messages"][0]["content"].as_str().unwrap();
        match content.split(' ').next().unwrap() {
            "refuse" => Err(error(400, "context_length_exceeded")),
            "busy" => Err(error(503, "overloaded")),
            _ => Ok(LineSize { input_tokens: content.len() as u64, max_output_tokens: 10 }),
        }
    }
}

fn error(status: u16, code: &'static str) -> ApiError {
    let body = ErrorBody { message: "no".to_owned(), kind: "invalid_request_error", param: None, code: Some(code) };
    ApiError { status, body, retry_after: None }
}

/// A server's batches without the server.
struct World {
    fake: Fake,
    store: Store,
    batches: Batches,
    clock: Arc<AtomicI64>,
}

fn settings(clock: &Arc<AtomicI64>) -> Settings {
    let clock = Arc::clone(clock);
    Settings {
        window: 8,
        retry_delay: Duration::from_millis(1),
        stop_grace: Duration::from_secs(5),
        clock: Clock::from_fn(move || clock.load(Ordering::SeqCst)),
        ..Settings::default()
    }
}

impl World {
    async fn start(dir: &Path) -> Self {
        Self::start_with(dir, |_| {}).await
    }

    async fn start_with(dir: &Path, change: impl FnOnce(&mut Settings)) -> Self {
        let clock = Arc::new(AtomicI64::new(NOW * 1000));
        let mut settings = settings(&clock);
        change(&mut settings);
        let fake = Fake::default();
        let store = Store::open(dir).await.unwrap();
        let batches = Batches::start(store.clone(), fake.clone(), settings).await.unwrap();
        Self { fake, store, batches, clock }
    }

    async fn upload(&self, text: &str) -> String {
        self.upload_of(&Tenant::default(), text).await
    }

    async fn upload_of(&self, tenant: &Tenant, text: &str) -> String {
        let blob = self.store.blobs().put(text.as_bytes()).await.unwrap();
        let file = NewFile {
            tenant: tenant.clone(),
            purpose: "batch".to_owned(),
            filename: "in.jsonl".to_owned(),
            blob,
            created_at: NOW,
            expires_at: None,
        };
        self.store.add_file(file, None).await.unwrap().id
    }

    async fn create(&self, text: &str) -> String {
        let file_id = self.upload(text).await;
        self.create_from(&file_id).await
    }

    async fn create_from(&self, file_id: &str) -> String {
        self.create_for(Endpoint::ChatCompletions, file_id).await
    }

    async fn create_for(&self, endpoint: Endpoint, file_id: &str) -> String {
        let new = NewBatch { endpoint: endpoint.path().to_owned(), ..new_batch(&Tenant::default(), file_id) };
        let Created::New(batch) = self.batches.create(new).await.unwrap() else { panic!("not new") };
        batch.id
    }

    async fn create_of(&self, tenant: &Tenant, text: &str) -> String {
        let new = new_batch(tenant, &self.upload_of(tenant, text).await);
        let Created::New(batch) = self.batches.create(new).await.unwrap() else { panic!("not new") };
        batch.id
    }

    async fn ended(&self, id: &str) -> Batch {
        eventually(async || {
            let batch = self.batches.get(&Tenant::default(), id).await.unwrap();
            (batch.status().unwrap().has_ended() && batch.purged == 1).then_some(batch)
        })
        .await
    }

    async fn run(&self, text: &str) -> Batch {
        let id = self.create(text).await;
        self.ended(&id).await
    }

    /// The records of a published file; none if there is no file.
    async fn records(&self, file_id: Option<&String>) -> Vec<Value> {
        let Some(id) = file_id else { return Vec::new() };
        let file = self.store.file(&Tenant::default(), id, NOW).await.unwrap();
        let text = self.store.blobs().read(&file.storage_key).await.unwrap();
        assert_eq!(i64::try_from(text.len()).unwrap(), file.bytes);
        text.split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }

    async fn output(&self, batch: &Batch) -> Vec<Value> {
        self.records(batch.output_file_id.as_ref()).await
    }

    async fn errors(&self, batch: &Batch) -> Vec<Value> {
        self.records(batch.error_file_id.as_ref()).await
    }
}

/// An order of the lines of a file, as it comes without further wishes.
fn new_batch(tenant: &Tenant, file_id: &str) -> NewBatch {
    NewBatch {
        tenant: tenant.clone(),
        input_file_id: file_id.to_owned(),
        endpoint: Endpoint::ChatCompletions.path().to_owned(),
        window: "24h".to_owned(),
        window_s: DAY_S,
        metadata: None,
        output_expires_s: None,
        priority: 0,
        not_before: None,
        models: AllowedModels::default(),
        identity: None,
    }
}

/// Waits until `look` finds what it looks for. A test that waits for nothing to happen cannot be written with this.
async fn eventually<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            // sleep: between two polls, within the deadline
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), found).await.expect("it did not happen within a minute")
}

fn line(custom_id: &str, content: &str) -> String {
    let body = json!({"model": "m1", "messages": [{"role": "user", "content": content}]});
    json!({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}).to_string() + "\n"
}

fn lines(count: usize, content: &str) -> String {
    (0..count).map(|index| line(&format!("line-{index}"), &format!("{content} {index}"))).collect()
}

fn custom_ids(records: &[Value]) -> Vec<&str> {
    records.iter().map(|record| record["custom_id"].as_str().unwrap()).collect()
}
