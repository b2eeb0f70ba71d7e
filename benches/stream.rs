//! What a streamed token costs the server: processor time of the real program, from the engine to the socket, over the simulated model.
//!
//! `cargo bench --bench stream` starts `tandem` on a free port, streams answers over keep-alive connections with a client that does nothing
//! but read, and divides the tokens by the wall time and by the processor time that the program took (`/proc/PID/stat`; elsewhere than on
//! Linux only the wall time is told). Nothing is reported unless every answer is whole: as many tokens as were asked for, one event for each
//! that has text, and the text of the same request without a stream.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on should panic")]

use std::{
    io::{BufRead as _, Write as _},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    time::timeout,
};

/// Requests at once, each on a connection of its own.
const CONNECTIONS: usize = 64;
/// Tokens of one answer.
const TOKENS: usize = 512;
/// Requests on one connection, one after the other.
const ROUNDS: usize = 4;
const REPEATS: usize = 3;
/// Nothing that works takes this long.
const TIMEOUT: Duration = Duration::from_secs(60);
/// What `/proc` counts in; the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// One thread reads all connections: with a thread for each, the server would pay for waking it at every write.
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let server = Server::start().await;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{CONNECTIONS} connections, {ROUNDS} requests each, {TOKENS} tokens; median of {REPEATS} (from, to)")
        .unwrap();
    for endpoint in [Endpoint::Chat, Endpoint::Completions] {
        let (whole, _) = server.measure(endpoint, false).await;
        let texts: Vec<String> = whole.iter().map(|answers| endpoint.text(&answers[0])).collect();
        for stream in [true, false] {
            let mut runs = Vec::new();
            for _ in 0..REPEATS {
                let (answers, cost) = server.measure(endpoint, stream).await;
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
        let body = body.to_string();
        let head = format!("POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: ");
        format!("{head}{}\r\n\r\n{body}", body.len()).into_bytes()
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

/// The median, and from where to where.
fn range(values: impl Iterator<Item = f64>) -> String {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let digits = usize::from(values[0] < 100.0) * 2;
    let (least, median, most) = (values[0], values[values.len() / 2], values[values.len() - 1]);
    format!("{median:.digits$} ({least:.digits$}, {most:.digits$})")
}

/// The program, on a port and a data directory of its own.
struct Server {
    child: Child,
    address: SocketAddr,
    _storage: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        let storage = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_tandem"))
            .args(["serve", "--profile", "sim", "--port", "0"])
            .env("STORAGE_PATH", storage.path())
            .env("TANDEM__BACKEND__PARALLEL", CONNECTIONS.to_string())
            .env("TANDEM__BACKEND__STEP_DELAY_MS", "0")
            .env("RUST_LOG", "error")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("Tandem is listening on http://").unwrap_or_else(|| panic!("{line:?}"));
        let server = Self { address: address.parse().unwrap(), child, _storage: storage };
        let started = Instant::now();
        while !server.is_ready().await {
            assert!(started.elapsed() < TIMEOUT, "the server does not become ready");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        server
    }

    async fn is_ready(&self) -> bool {
        let request = b"GET /health/ready HTTP/1.1\r\nhost: bench\r\n\r\n";
        Connection::open(self.address).await.ask(request).await.0 == 200
    }

    /// Every connection's bodies, and what they cost.
    async fn measure(&self, endpoint: Endpoint, stream: bool) -> (Vec<Vec<Vec<u8>>>, Cost) {
        let connections = join_all((0..CONNECTIONS).map(|_| Connection::open(self.address))).await;
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
        let before = self.processor();
        let started = Instant::now();
        let bodies = join_all(clients).await;
        let wall = started.elapsed();
        let processor = before.zip(self.processor()).map(|(before, after)| (after.0 - before.0, after.1 - before.1));
        (bodies, Cost { wall, processor })
    }

    /// Processor seconds of the whole program and of its engine's thread so far.
    fn processor(&self) -> Option<(f64, f64)> {
        let process = format!("/proc/{}", self.child.id());
        let all = processor_seconds(&format!("{process}/stat"))?.1;
        let threads = fs_err::read_dir(format!("{process}/task")).ok()?;
        let of_threads = threads.filter_map(|thread| processor_seconds(thread.ok()?.path().join("stat").to_str()?));
        let engine = of_threads.filter(|(name, _)| name == "engine").map(|(_, seconds)| seconds).sum();
        Some((all, engine))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Name, and user and system time, from a `stat` of `/proc`: fields 2, 14 and 15 of `proc(5)`, counted behind the name, which may hold
/// spaces.
fn processor_seconds(path: &str) -> Option<(String, f64)> {
    let stat = fs_err::read_to_string(path).ok()?;
    let (head, fields) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let mut ticks = fields.split_whitespace().skip(11).map(|field| field.parse::<u64>().ok());
    let ticks = ticks.next()?? + ticks.next()??;
    Some((name, ticks as f64 / TICKS_PER_SECOND))
}

/// A keep-alive connection that reads answers of a known length or in chunks, and knows nothing else of HTTP.
struct Connection {
    socket: BufReader<TcpStream>,
    line: String,
}

impl Connection {
    async fn open(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Self { socket: BufReader::with_capacity(1 << 16, socket), line: String::new() }
    }

    /// Status and body.
    async fn ask(&mut self, request: &[u8]) -> (u16, Vec<u8>) {
        self.socket.write_all(request).await.unwrap();
        timeout(TIMEOUT, self.response()).await.expect("an answer comes in time")
    }

    async fn response(&mut self) -> (u16, Vec<u8>) {
        let status = self.line().await.split(' ').nth(1).unwrap().parse().unwrap();
        let mut length = None;
        loop {
            let line = self.line().await;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(": ").unwrap();
            if name.eq_ignore_ascii_case("content-length") {
                length = Some(value.parse().unwrap());
            }
        }
        let mut body = Vec::new();
        if let Some(length) = length {
            self.append(&mut body, length).await;
            return (status, body);
        }
        loop {
            let length = usize::from_str_radix(self.line().await, 16).unwrap();
            self.append(&mut body, length).await;
            assert_eq!(self.line().await, "", "a chunk ends with its line");
            if length == 0 {
                return (status, body);
            }
        }
    }

    async fn append(&mut self, body: &mut Vec<u8>, length: usize) {
        let start = body.len();
        body.resize(start + length, 0);
        self.socket.read_exact(&mut body[start..]).await.unwrap();
    }

    async fn line(&mut self) -> &str {
        self.line.clear();
        self.socket.read_line(&mut self.line).await.unwrap();
        self.line.trim_end()
    }
}
