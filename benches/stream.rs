//! What a streamed token costs the server: processor time of the real program, from the engine to the socket, over the simulated model.
//!
//! `cargo bench --bench stream` starts `tandem` on a free port, streams answers over keep-alive connections with a client that does nothing
//! but read, and divides the tokens by the wall time and by the processor time that the program took (`/proc/PID/stat`; elsewhere than on
//! Linux only the wall time is told). Nothing is reported unless every answer is whole: as many tokens as were asked for, one event for each
//! that has text, and the text of the same request without a stream.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on should panic")]

mod server;

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::{Value, json};

use server::{Connection, Server, post, range};

/// Requests at once, each on a connection of its own.
const CONNECTIONS: usize = 64;
/// Tokens of one answer.
const TOKENS: usize = 512;
/// Requests on one connection, one after the other.
const ROUNDS: usize = 4;
const REPEATS: usize = 3;

/// One thread reads all connections: with a thread for each, the server would pay for waking it at every write.
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let server = Server::start(&[("TANDEM__BACKEND__PARALLEL", &CONNECTIONS.to_string())]).await;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{CONNECTIONS} connections, {ROUNDS} requests each, {TOKENS} tokens; median of {REPEATS} (from, to)")
        .unwrap();
    for endpoint in [Endpoint::Chat, Endpoint::Completions] {
        let (whole, _) = measure(&server, endpoint, false).await;
        let texts: Vec<String> = whole.iter().map(|answers| endpoint.text(&answers[0])).collect();
        for stream in [true, false] {
            let mut runs = Vec::new();
            for _ in 0..REPEATS {
                let (answers, cost) = measure(&server, endpoint, stream).await;
                check(endpoint, stream, &answers, &texts);
                runs.push(cost);
            }
            let how = if stream { "streamed" } else { "whole" };
            writeln!(out, "{:<12} {how:<9} {}", endpoint.name(), summary(&runs)).unwrap();
        }
    }
}

#[derive(Clone, Copy)]
enum Endpoint {
    Chat,
    Completions,
}

/// What a run took.
struct Cost {
    wall: Duration,
    /// Processor seconds of the whole program, and of its engine's thread.
    processor: Option<(f64, f64)>,
}

impl Endpoint {
    fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
        }
    }

    /// A whole HTTP request. Each connection has a prompt of its own.
    fn request(self, connection: usize, stream: bool) -> Vec<u8> {
        let (path, mut body) = match self {
            Self::Chat => (
                "/v1/chat/completions",
                json!({"messages": [{"role": "user", "content": format!("Question {connection}")}]}),
            ),
            Self::Completions => ("/v1/completions", json!({"prompt": format!("Text {connection}")})),
        };
        body["model"] = "sim".into();
        body["max_tokens"] = TOKENS.into();
        body["temperature"] = 0.into();
        body["ignore_eos"] = true.into();
        if stream {
            body["stream"] = true.into();
            body["stream_options"] = json!({"include_usage": true});
        }
        post(path, &body)
    }

    /// The text of an answer that is not a stream.
    fn text(self, body: &[u8]) -> String {
        let answer: Value = serde_json::from_slice(body).unwrap();
        assert_eq!(answer["usage"]["completion_tokens"], TOKENS, "{answer}");
        let choice = &answer["choices"][0];
        let text = match self {
            Self::Chat => &choice["message"]["content"],
            Self::Completions => &choice["text"],
        };
        text.as_str().unwrap().to_owned()
    }

    /// The pieces of text of a stream.
    fn pieces(self, body: &[u8]) -> Vec<String> {
        let text = std::str::from_utf8(body).unwrap();
        let mut events: Vec<&str> =
            text.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap()).collect();
        assert_eq!(events.pop(), Some("[DONE]"));
        let mut chunks: Vec<Value> = events.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect();
        let usage = chunks.pop().unwrap();
        assert_eq!(usage["usage"]["completion_tokens"], TOKENS, "{usage}");
        let piece = |chunk: &Value| {
            let choice = &chunk["choices"][0];
            let text = match self {
                Self::Chat => &choice["delta"]["content"],
                Self::Completions => &choice["text"],
            };
            text.as_str().unwrap_or_default().to_owned()
        };
        chunks.iter().map(piece).filter(|piece| !piece.is_empty()).collect()
    }
}

/// Panics unless every answer is what it has to be. The model's tokens are bytes, and without chance all of them are ASCII, so that a piece
/// of text is a token, and a token without a piece is one without text.
fn check(endpoint: Endpoint, stream: bool, answers: &[Vec<Vec<u8>>], texts: &[String]) {
    for (answers, text) in std::iter::zip(answers, texts) {
        assert_eq!(answers.len(), ROUNDS);
        assert!(text.is_ascii() && text.len() > TOKENS * 3 / 4, "{text:?}");
        for body in answers {
            if stream {
                let pieces = endpoint.pieces(body);
                assert_eq!(&pieces.concat(), text);
                assert_eq!(pieces.len(), text.len(), "one event for each token with text");
            } else {
                assert_eq!(&endpoint.text(body), text);
            }
        }
    }
}

fn summary(runs: &[Cost]) -> String {
    let tokens = (CONNECTIONS * ROUNDS * TOKENS) as f64;
    let mut text = format!("{} tokens/s", range(runs.iter().map(|run| tokens / run.wall.as_secs_f64())));
    let processor: Option<Vec<(f64, f64)>> = runs.iter().map(|run| run.processor).collect();
    if let Some(processor) = processor {
        let all = range(processor.iter().map(|(all, _)| tokens / all));
        let engine = range(processor.iter().map(|(_, engine)| engine / tokens * 1e6));
        let rest = range(processor.iter().map(|(all, engine)| (all - engine) / tokens * 1e6));
        text += &format!("; {all} tokens per processor second; us a token: engine {engine}, the rest {rest}");
    }
    text
}

/// Every connection's bodies, and what they cost.
async fn measure(server: &Server, endpoint: Endpoint, stream: bool) -> (Vec<Vec<Vec<u8>>>, Cost) {
    let connections = join_all((0..CONNECTIONS).map(|_| Connection::open(server.target.address))).await;
    let clients = connections.into_iter().enumerate().map(|(number, mut connection)| async move {
        let request = endpoint.request(number, stream);
        let mut bodies = Vec::new();
        for _ in 0..ROUNDS {
            let (status, body) = connection.ask(&request).await;
            assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
            bodies.push(body);
        }
        bodies
    });
    let before = server.target.processor();
    let started = Instant::now();
    let bodies = join_all(clients).await;
    let wall = started.elapsed();
    let processor =
        before.zip(server.target.processor()).map(|(before, after)| (after.0 - before.0, after.1 - before.1));
    (bodies, Cost { wall, processor })
}
