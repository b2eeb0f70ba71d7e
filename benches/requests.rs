//! Requests per second of the real program, and the memory that it needs for many clients at once, over the simulated model without a delay.
//!
//! `cargo bench --bench requests` starts `tandem` on a free port and asks it over keep-alive connections, each of which sends its next request
//! when it has the answer to the last; the client does nothing but read. It tells requests per second, the latency that half of them and
//! 99 of 100 stay under, and the processor time of the server for each. Then it opens streams, requests that wait in the queue and idle
//! connections, all at once, and tells the server's resident memory. `--seconds N` changes how long each run takes. `--address HOST:PORT
//! --pid PID` asks a server that runs already, such as llama.cpp's, for what it has too: `/v1/models` and `/health`.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on should panic")]

mod server;

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::{Value, json};

use server::{Connection, Server, TIMEOUT, Target, post, range};

/// Connections that ask at once.
const CONNECTIONS: usize = 64;
const REPEATS: usize = 3;
const SECONDS: f64 = 5.0;
/// Tokens of a chat's answer.
const TOKENS: u32 = 16;
/// Clients of the measurement of memory.
const STREAMS: usize = 64;
const QUEUED: usize = 512;
const IDLE: usize = 1024;

/// One thread reads all connections: with a thread for each, the server would pay for waking it at every write.
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let run = Duration::from_secs_f64(seconds());
    let mut out = std::io::stdout().lock();
    writeln!(out, "{CONNECTIONS} connections, {run:?} a run; median of {REPEATS} (from, to)").unwrap();
    if let Some(address) = option("--address") {
        let target = Target { address: address.parse().unwrap(), pid: option("--pid").unwrap().parse().unwrap() };
        gets(&target, run, &mut out).await;
        return;
    }
    {
        let server = Server::start(&[("TANDEM__BACKEND__PARALLEL", &CONNECTIONS.to_string())]).await;
        let server = &server.target;
        gets(server, run, &mut out).await;
        let chats: Vec<_> = (0..CONNECTIONS).map(chat).collect();
        let whole = |answer: &Value| assert_eq!(answer["usage"]["completion_tokens"], TOKENS, "{answer}");
        let text = repeated(server, &chats, run, whole).await;
        writeln!(out, "chat, {TOKENS} tokens  {text}").unwrap();
    }
    writeln!(out, "{STREAMS} streams, {QUEUED} queued requests, {IDLE} idle connections: {}", memory().await).unwrap();
}

/// What every server of models has.
async fn gets(target: &Target, run: Duration, out: &mut impl std::io::Write) {
    for path in ["/v1/models", "/health"] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").into_bytes();
        let told =
            |answer: &Value| assert!(answer["data"][0]["id"].is_string() || answer["status"] == "ok", "{answer}");
        let text = repeated(target, &vec![request; CONNECTIONS], run, told).await;
        writeln!(out, "{:<16} {text}", format!("GET {path}")).unwrap();
    }
}

fn seconds() -> f64 {
    option("--seconds").map_or(SECONDS, |seconds| seconds.parse().expect("--seconds is followed by a number"))
}

fn option(name: &str) -> Option<String> {
    std::env::args().skip_while(|argument| argument != name).nth(1)
}

/// Each connection has a question of its own.
fn chat(connection: usize) -> Vec<u8> {
    let messages = json!([{"role": "user", "content": format!("Question {connection}")}]);
    post(
        "/v1/chat/completions",
        &json!({"model": "sim", "messages": messages, "max_tokens": TOKENS, "ignore_eos": true}),
    )
}

struct Run {
    wall: Duration,
    /// Of each request, the shortest first.
    latencies: Vec<Duration>,
    processor: Option<f64>,
}

impl Run {
    fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.wall.as_secs_f64()
    }

    /// Milliseconds that this share of the requests stays under.
    fn latency(&self, share: f64) -> f64 {
        let at = (self.latencies.len() as f64 * share) as usize;
        self.latencies[at.min(self.latencies.len() - 1)].as_secs_f64() * 1e3
    }

    /// Microseconds of the server's processors for a request.
    fn processor(&self) -> Option<f64> {
        Some(self.processor? * 1e6 / self.latencies.len() as f64)
    }
}

/// Every connection asks again and again until the time is over; the last answer of each is checked.
async fn measure(server: &Target, requests: &[Vec<u8>], time: Duration, check: fn(&Value)) -> Run {
    let connections = join_all(requests.iter().map(|_| Connection::open(server.address))).await;
    let before = server.processor();
    let started = Instant::now();
    let clients = std::iter::zip(connections, requests).map(|(mut connection, request)| async move {
        let mut latencies = Vec::new();
        let mut asked = Instant::now();
        while asked - started < time {
            let (status, body) = connection.ask(request).await;
            assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
            let answered = Instant::now();
            latencies.push(answered - asked);
            asked = answered;
            if asked - started >= time {
                check(&serde_json::from_slice(&body).unwrap());
            }
        }
        latencies
    });
    let mut latencies = join_all(clients).await.concat();
    let wall = started.elapsed();
    let processor = before.zip(server.processor()).map(|(before, after)| after.0 - before.0);
    latencies.sort_unstable();
    Run { wall, latencies, processor }
}

/// A run to get warm, and those that count.
async fn repeated(server: &Target, requests: &[Vec<u8>], time: Duration, check: fn(&Value)) -> String {
    measure(server, requests, time / 5, check).await;
    let mut runs = Vec::new();
    for _ in 0..REPEATS {
        runs.push(measure(server, requests, time, check).await);
    }
    summary(&runs)
}

fn summary(runs: &[Run]) -> String {
    let of = |value: &dyn Fn(&Run) -> f64| range(runs.iter().map(value));
    let mut text = format!("{} requests/s", of(&Run::per_second));
    text += &format!("; ms p50 {}, p99 {}", of(&|run| run.latency(0.5)), of(&|run| run.latency(0.99)));
    let processor: Option<Vec<f64>> = runs.iter().map(Run::processor).collect();
    if let Some(processor) = processor {
        text += &format!("; us of the server's processors a request: {}", range(processor.into_iter()));
    }
    text
}

/// What the server holds while all of them are there.
async fn memory() -> String {
    let (streams, queue) = (STREAMS.to_string(), QUEUED.to_string());
    let connections = (2 * (STREAMS + QUEUED + IDLE)).to_string();
    let settings = [
        ("TANDEM__BACKEND__PARALLEL", streams.as_str()),
        ("TANDEM__LIMITS__QUEUE", queue.as_str()),
        ("TANDEM__SERVER__MAX_CONNECTIONS", connections.as_str()),
        // Slow enough for the streams to be there all the time.
        ("TANDEM__BACKEND__STEP_DELAY_MS", "20"),
    ];
    let server = Server::start(&settings).await;
    let Target { address, pid } = server.target;
    let Some(before) = resident_bytes(pid) else { return "only Linux tells".to_owned() };
    let ask = |number: usize, stream: bool| {
        let messages = json!([{"role": "user", "content": format!("Question {number}")}]);
        let body =
            json!({"model": "sim", "messages": messages, "max_tokens": 4000, "ignore_eos": true, "stream": stream});
        post("/v1/chat/completions", &body)
    };
    let mut held = Vec::new();
    for number in 0..STREAMS + QUEUED {
        let mut connection = Connection::open(address).await;
        connection.send(&ask(number, number < STREAMS)).await;
        held.push(connection);
        if number + 1 == STREAMS {
            engine(&server, &format!("{STREAMS} running, 0 waiting")).await;
        }
    }
    let wanted = format!("{STREAMS} running, {QUEUED} waiting");
    engine(&server, &wanted).await;
    for _ in 0..IDLE {
        let mut connection = Connection::open(address).await;
        let (status, _) = connection.ask(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        assert_eq!(status, 200);
        held.push(connection);
    }
    let (now, open) = (resident_bytes(pid).unwrap(), open_sockets(pid).unwrap());
    engine(&server, &wanted).await;
    assert!(open >= STREAMS + QUEUED + IDLE, "only {open} connections are open");
    format!("{} MiB, of which {} MiB before they came", now >> 20, before >> 20)
}

/// Waits until the engine tells so.
async fn engine(server: &Server, wanted: &str) {
    let started = Instant::now();
    loop {
        let request = b"GET /debug/engine HTTP/1.1\r\nhost: localhost\r\n\r\n";
        let (_, body) = Connection::open(server.target.address).await.ask(request).await;
        let text = String::from_utf8(body).unwrap();
        if text.contains(wanted) {
            return;
        }
        assert!(started.elapsed() < TIMEOUT, "never {wanted}:\n{text}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The memory of a process, where the system tells.
fn resident_bytes(pid: u32) -> Option<usize> {
    let status = fs_err::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<usize>().ok()? << 10)
}

fn open_sockets(pid: u32) -> Option<usize> {
    let files = fs_err::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let links = files.filter_map(|file| fs_err::read_link(file.ok()?.path()).ok());
    Some(links.filter(|link| link.to_string_lossy().starts_with("socket:")).count())
}
