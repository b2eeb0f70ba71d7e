//! Clients that come, ask and leave.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use serde_json::json;

use crate::program::Program;

/// Clients at a time: more than there are slots.
const CLIENTS: usize = 16;
/// Asks for more than anybody waits for.
const TOKENS: u32 = 500;

/// Asks for a long stream, and leaves: at once, when the answer begins, or some tokens later.
fn come_and_leave(port: &str, cycle: usize, model: &str) {
    let prompt = format!("Question {cycle} of many");
    let body = json!({"model": model, "prompt": prompt, "max_tokens": TOKENS, "ignore_eos": true, "stream": true});
    let body = body.to_string();
    let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    let head =
        "POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-type: application/json";
    write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut answer = Vec::new();
    let wanted = [0, 1, 2000][cycle % 3];
    while answer.len() < wanted {
        let mut buffer = [0; 1024];
        let bytes = stream.read(&mut buffer).unwrap();
        answer.extend_from_slice(&buffer[..bytes]);
        if bytes == 0 {
            // A model may say little with many tokens, when most of them are no text.
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.contains("data: [DONE]"), "cut short: {answer}");
            return;
        }
    }
}

async fn cycles(server: &Program, range: std::ops::Range<usize>, model: &'static str) {
    let clients = (0..CLIENTS).map(|client| {
        let (range, port) = (range.clone(), server.port().to_owned());
        tokio::task::spawn_blocking(move || {
            range.skip(client).step_by(CLIENTS).for_each(|cycle| come_and_leave(&port, cycle, model));
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
}

/// Nothing runs, and a request is answered, behind clients that left.
async fn all_is_quiet(server: &Program, model: &str) {
    server.text_when("/debug/engine", |text| text.contains("0 running") && text.contains("0 waiting")).await;
    let body = json!({"model": model, "prompt": "Is anybody there?", "max_tokens": 5, "ignore_eos": true});
    let answer = server.post("/v1/completions", &body).await.unwrap();
    let answer: serde_json::Value = answer.error_for_status().unwrap().json().await.unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 5, "{answer}");
}

#[tokio::test]
async fn clients_that_leave_take_nothing_along() {
    let storage = tempfile::tempdir().unwrap();
    let server = Program::start(storage.path(), 1).await;
    cycles(&server, 0..300, "sim").await;
    all_is_quiet(&server, "sim").await;
}

mod slow {
    use super::*;

    /// Growth that is no leak: allocators keep what they may need again.
    const SLACK_BYTES: usize = 16 << 20;

    #[tokio::test]
    async fn ten_thousand_clients_of_llama_cpp_leak_nothing() {
        let storage = tempfile::tempdir().unwrap();
        let settings = [("TANDEM__SERVER__DEBUG", "true")];
        let server = Program::start_profile("demo", storage.path(), &settings).await;
        cycles(&server, 0..1000, "tiny").await;
        all_is_quiet(&server, "tiny").await;
        let (memory, files) = (server.memory(), server.open_files());
        cycles(&server, 1000..11_000, "tiny").await;
        all_is_quiet(&server, "tiny").await;
        let (memory_now, files_now) = (server.memory(), server.open_files());
        assert!(memory_now < memory + SLACK_BYTES, "{memory} bytes became {memory_now}");
        assert!(files_now <= files + 2, "{files} open files became {files_now}");
    }
}
