//! Clients that are slow, leave, or come when there is no room; and a handler that panics.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use reqwest::Method;
use serde_json::{Value, json};

use super::{answer::Answer, place::Place};

/// As the settings of this server have it, and some.
const HEAD_TIMEOUT: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(10);

async fn connect(place: &Place) -> TcpStream {
    let address = format!("127.0.0.1:{}", place.program.port());
    tokio::task::spawn_blocking(move || TcpStream::connect(address).unwrap()).await.unwrap()
}

/// Sends bytes in drops until the server has said what it has to say, which is then read.
async fn in_drops(place: &Place, head: &'static str, drop: &'static [u8], pause: Duration) -> Answer {
    let mut stream = connect(place).await;
    let answer = tokio::task::spawn_blocking(move || {
        stream.write_all(head.as_bytes()).unwrap();
        let begun = Instant::now();
        loop {
            stream.set_read_timeout(Some(pause)).unwrap();
            if stream.peek(&mut [0]).is_ok() {
                return Answer::read(&mut stream, true);
            }
            assert!(begun.elapsed() < SOON, "the server goes on waiting");
            let _ = stream.write_all(drop);
        }
    });
    answer.await.unwrap().unwrap()
}

fn timed_out(answer: &Answer, message: &str) {
    let error = answer.refusal().unwrap();
    assert_eq!((answer.status, &error["code"]), (408, &json!("request_timeout")));
    assert_eq!((&error["type"], &error["message"]), (&json!("invalid_request_error"), &json!(message)));
    assert!(answer.closed);
}

pub(super) async fn a_head_in_drops(place: Arc<Place>) {
    let begun = Instant::now();
    let answer =
        in_drops(&place, "GET /version HTTP/1.1\r\nhost: localhost\r\nx: ", b"y", Duration::from_millis(200)).await;
    timed_out(&answer, "Request head was not received in time.");
    assert!(begun.elapsed() >= HEAD_TIMEOUT / 2, "{:?}", begun.elapsed());
}

/// Who says nothing is told nothing; and others are not kept waiting by many of the kind.
pub(super) async fn nothing_at_all(place: Arc<Place>) {
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(connect(&place).await);
    }
    place.is_well().await.unwrap();
    let heard = tokio::task::spawn_blocking(move || {
        silent
            .into_iter()
            .map(|mut stream| {
                stream.set_read_timeout(Some(SOON)).unwrap();
                let mut heard = Vec::new();
                stream.read_to_end(&mut heard).map(|_| heard)
            })
            .collect::<Vec<_>>()
    });
    for heard in heard.await.unwrap() {
        assert_eq!(heard.unwrap(), b"", "closed without a word");
    }
}

pub(super) async fn a_body_in_drops(place: Arc<Place>) {
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 5000\r\n\r\n{";
    timed_out(&in_drops(&place, head, b" ", Duration::from_millis(50)).await, "Request body was not received in time.");
    let head = "POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=b\r\ncontent-length: 5000\r\n\r\n\
                --b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"x.jsonl\"\r\n\r\n{";
    timed_out(&in_drops(&place, head, b" ", Duration::from_millis(50)).await, "Request body was not received in time.");
}

/// In the middle of an answer, and in the middle of a question.
pub(super) async fn clients_that_leave(place: Arc<Place>) {
    let body =
        json!({"model": "sim", "prompt": "x", "max_tokens": 2000, "ignore_eos": true, "stream": true}).to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = connect(&place).await;
    let question = format!("{head}{body}");
    let stream = tokio::task::spawn_blocking(move || {
        stream.write_all(question.as_bytes()).unwrap();
        assert!(stream.read(&mut [0; 64]).unwrap() > 0);
        stream
    });
    let stream = stream.await.unwrap();
    place.program.text_when("/debug/engine", |text| text.contains("1 running")).await;
    let left = Instant::now();
    stream.shutdown(Shutdown::Both).unwrap();
    place.program.text_when("/debug/engine", |text| text.contains("0 running")).await;
    // A quarter of a second on a machine that has nothing else to do.
    assert!(left.elapsed() < Duration::from_secs(2), "{:?}", left.elapsed());

    let mut stream = connect(&place).await;
    stream.write_all(&head.as_bytes()[..head.len()]).unwrap();
    stream.write_all(&body.as_bytes()[..10]).unwrap();
    drop(stream);
    place.program.text_when("/debug/engine", |text| text.contains("0 running")).await;
}

/// The settings have the first request panic.
pub(super) async fn a_handler_that_panics(place: Arc<Place>) {
    let answer = place.get("/v1/models").await;
    let error = answer.refusal().unwrap();
    let expected = json!({
        "message": "The server had an error while processing your request.", "type": "server_error", "param": null,
        "code": "internal_error",
    });
    assert_eq!((answer.status, error), (500, expected));
    assert_eq!(place.get("/v1/models").await.status, 200, "the next is served");
}

/// One runs, one waits, and there is no room for a third.
pub(super) async fn a_full_queue(place: Arc<Place>) {
    let long = json!({"model": "sim", "prompt": "x", "max_tokens": 2000, "ignore_eos": true, "stream": true});
    let stream = || place.call(Method::POST, "/v1/completions").json(&long).send();
    let running = stream().await.unwrap();
    place.program.text_when("/debug/engine", |text| text.contains("1 running")).await;
    let waiting = stream().await.unwrap();
    place.program.text_when("/debug/engine", |text| text.contains("1 waiting")).await;
    let answer = place.post("/v1/completions", &long).await;
    let error = answer.refusal().unwrap();
    let expected = json!({
        "message": "The server is overloaded, please retry later.", "type": "server_error", "param": null, "code": "overloaded",
    });
    assert_eq!((answer.status, error, answer.header("retry-after")), (503, expected, Some("1")));
    drop((running, waiting));
    place.program.text_when("/debug/engine", |text| text.contains("0 running") && text.contains("0 waiting")).await;
    let short: Value = json!({"model": "sim", "prompt": "x", "max_tokens": 1});
    assert_eq!(place.post("/v1/completions", &short).await.status, 200, "the next is served");
}
