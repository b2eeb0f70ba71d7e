use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix_web::web::{self, Bytes, Data};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use serde_json::{Value, json};
use tandem::batch::Settings;
use tandem::clock::Clock;
use tandem::settings::WebhookSettings;
use tandem::webhooks::Webhooks;
use tokio::sync::mpsc;

use crate::helpers::{Server, answer, line};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A webhook as it arrived.
#[derive(Debug)]
struct Received {
    path: String,
    id: String,
    timestamp: String,
    signature: String,
    payload: Value,
}

struct Script {
    statuses: Mutex<VecDeque<u16>>,
    received: mpsc::Sender<Received>,
}

/// Answers with these statuses, one after the other, and with 200 then.
struct Receiver {
    url: String,
    script: Data<Script>,
    received: mpsc::Receiver<Received>,
}

async fn take(request: HttpRequest, body: Bytes, script: Data<Script>) -> HttpResponse {
    let header = |name: &str| request.headers().get(name).unwrap().to_str().unwrap().to_owned();
    let received = Received {
        path: request.path().to_owned(),
        id: header("webhook-id"),
        timestamp: header("webhook-timestamp"),
        signature: header("webhook-signature"),
        payload: serde_json::from_slice(&body).unwrap(),
    };
    script.received.send(received).await.unwrap();
    let status = script.statuses.lock().unwrap().pop_front().unwrap_or(200);
    let mut response = HttpResponse::build(actix_web::http::StatusCode::from_u16(status).unwrap());
    response.insert_header(("location", "/elsewhere")).finish()
}

impl Receiver {
    fn start(statuses: &[u16]) -> Self {
        let (sender, received) = mpsc::channel(64);
        let script = Data::new(Script { statuses: Mutex::new(statuses.iter().copied().collect()), received: sender });
        let shared = script.clone();
        let server = HttpServer::new(move || App::new().app_data(shared.clone()).default_service(web::to(take)));
        let server = server.workers(1).disable_signals().bind(("127.0.0.1", 0)).unwrap();
        let url = format!("http://{}/hook", server.addrs()[0]);
        tokio::spawn(server.run());
        Self { url, script, received }
    }

    async fn next(&mut self) -> Received {
        tokio::time::timeout(Duration::from_secs(60), self.received.recv()).await.unwrap().unwrap()
    }
}

async fn server(dir: &Path) -> Server {
    Server::start_with(dir, Settings { tell_ends: true, ..Settings::default() }, &[]).await
}

fn sender(server: &Server, receiver: &Receiver, clock: &Arc<AtomicI64>) -> Webhooks {
    let clock = Arc::clone(clock);
    let clock = Clock::from_fn(move || Clock::system().millis() + clock.load(Ordering::SeqCst));
    let settings = WebhookSettings::new(&receiver.url, SECRET).unwrap();
    Webhooks::start(server.store.clone(), settings, clock, server.batches.ends()).unwrap()
}

async fn submit(server: &Server, text: &str) -> Value {
    let file_id = server.upload(text).await;
    let body = json!({"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"});
    answer(server.post("/v1/batches").json(&body)).await.1["id"].clone()
}

async fn forgotten(server: &Server) {
    let none_left = async {
        while server.store.next_event_at().await.unwrap().is_some() {
            // sleep: between two polls, within the deadline
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), none_left).await.expect("the event stays");
}

#[tokio::test]
async fn the_end_of_each_batch_is_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut receiver = Receiver::start(&[]);
    let server = server(dir.path()).await;
    let webhooks = sender(&server, &receiver, &Arc::default());
    let completed = submit(&server, &line("a", "hello")).await;
    let told = receiver.next().await;
    let created_at = told.payload["created_at"].as_i64().unwrap();
    let expected = json!({"id": told.id, "object": "event", "created_at": created_at, "type": "batch.completed", "data": {"id": completed}});
    assert_eq!(told.payload, expected);
    assert!(told.id.starts_with("evt_") && told.signature.starts_with("v1,"), "{told:?}");
    assert!((told.timestamp.parse::<i64>().unwrap() - created_at).abs() < 60);
    let failed = submit(&server, "{}\n").await;
    let told = receiver.next().await;
    assert_eq!((&told.payload["type"], &told.payload["data"]["id"]), (&json!("batch.failed"), &failed));
    let cancelled = submit(&server, &line("a", "wait")).await;
    server.batch_when(&cancelled, |batch| batch["status"] == "in_progress").await;
    answer(server.post(&format!("/v1/batches/{}/cancel", cancelled.as_str().unwrap()))).await;
    let told = receiver.next().await;
    assert_eq!((&told.payload["type"], &told.payload["data"]["id"]), (&json!("batch.cancelled"), &cancelled));
    forgotten(&server).await;
    webhooks.stop().await;
}

#[tokio::test]
async fn what_is_not_taken_is_told_again_by_the_next_process_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut receiver = Receiver::start(&[500, 302]);
    let clock = Arc::new(AtomicI64::new(0));
    let server = server(dir.path()).await;
    let webhooks = sender(&server, &receiver, &clock);
    submit(&server, &line("a", "hello")).await;
    let first = receiver.next().await;
    put_off(&server, 1).await;
    webhooks.stop().await;
    // Not before its time.
    let webhooks = sender(&server, &receiver, &clock);
    webhooks.stop().await;
    clock.fetch_add(5_000, Ordering::SeqCst);
    let webhooks = sender(&server, &receiver, &clock);
    let second = receiver.next().await;
    put_off(&server, 2).await;
    webhooks.stop().await;
    clock.fetch_add(300_000, Ordering::SeqCst);
    let webhooks = sender(&server, &receiver, &clock);
    let third = receiver.next().await;
    forgotten(&server).await;
    webhooks.stop().await;
    for told in [&first, &second, &third] {
        assert_eq!((&told.id, &told.payload), (&first.id, &first.payload), "the same event");
        assert_eq!(told.path, "/hook", "no redirect is followed");
    }
    assert_ne!(second.signature, third.signature, "signed for its own time");
    assert!(receiver.received.try_recv().is_err());
    assert!(receiver.script.statuses.lock().unwrap().is_empty());
}

/// Waits until so many attempts are noted.
async fn put_off(server: &Server, attempts: i64) {
    let noted = async {
        loop {
            let events = server.store.due_events(i64::MAX, 10).await.unwrap();
            if events.iter().any(|event| event.attempts == attempts) {
                return;
            }
            // sleep: between two polls, within the deadline
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), noted).await.expect("no such attempt is noted");
}

#[tokio::test]
async fn an_event_is_given_up_at_last_or_when_it_is_unwanted() {
    let dir = tempfile::tempdir().unwrap();
    let mut receiver = Receiver::start(&[410, 500, 500, 500, 500, 500, 500, 500]);
    let clock = Arc::new(AtomicI64::new(0));
    let server = server(dir.path()).await;
    let webhooks = sender(&server, &receiver, &clock);
    submit(&server, &line("a", "hello")).await;
    receiver.next().await;
    forgotten(&server).await;
    webhooks.stop().await;
    submit(&server, &line("a", "hello")).await;
    // The first attempt comes with the end of the batch, the others after these times.
    for wait_s in [0, 5, 300, 1800, 7200, 28_800, 86_400] {
        clock.fetch_add(wait_s * 1000, Ordering::SeqCst);
        let webhooks = sender(&server, &receiver, &clock);
        receiver.next().await;
        let last = wait_s == 86_400;
        if last {
            forgotten(&server).await;
        } else {
            put_off_any(&server, &clock).await;
        }
        webhooks.stop().await;
    }
}

/// Waits until nothing is due.
async fn put_off_any(server: &Server, clock: &AtomicI64) {
    let none_due = async {
        while !server
            .store
            .due_events(Clock::system().millis() + clock.load(Ordering::SeqCst), 1)
            .await
            .unwrap()
            .is_empty()
        {
            // sleep: between two polls, within the deadline
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), none_due).await.expect("the event stays due");
}
