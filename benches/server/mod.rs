//! The program under measurement, and a client that does next to nothing.
#![allow(dead_code, clippy::allow_attributes, reason = "each bench uses a part of it")]

use std::{
    io::BufRead as _,
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    time::timeout,
};

/// Nothing that works takes this long.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);
/// What `/proc` counts in; the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// A process that listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) pid: u32,
}

/// The program, on a port and a data directory of its own.
pub(crate) struct Server {
    child: Child,
    pub(crate) target: Target,
    _storage: tempfile::TempDir,
}

impl Server {
    /// Starts profile `sim` with no delay and settings from the environment.
    pub(crate) async fn start(settings: &[(&str, &str)]) -> Self {
        let storage = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_tandem"))
            .args(["serve", "--profile", "sim", "--port", "0"])
            .env("STORAGE_PATH", storage.path())
            .env("TANDEM__BACKEND__STEP_DELAY_MS", "0")
            .envs(settings.iter().copied())
            .env("RUST_LOG", "error")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("Tandem is listening on http://").unwrap_or_else(|| panic!("{line:?}"));
        let target = Target { address: address.parse().unwrap(), pid: child.id() };
        let server = Self { child, target, _storage: storage };
        let started = Instant::now();
        while !server.is_ready().await {
            assert!(started.elapsed() < TIMEOUT, "the server does not become ready");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        server
    }

    async fn is_ready(&self) -> bool {
        let request = b"GET /health/ready HTTP/1.1\r\nhost: localhost\r\n\r\n";
        Connection::open(self.target.address).await.ask(request).await.0 == 200
    }
}

impl Target {
    /// Processor seconds of the whole program and of its engine's thread so far.
    pub(crate) fn processor(&self) -> Option<(f64, f64)> {
        let process = format!("/proc/{}", self.pid);
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
pub(crate) struct Connection {
    socket: BufReader<TcpStream>,
    line: String,
    address: SocketAddr,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Self { socket: BufReader::with_capacity(1 << 16, socket), line: String::new(), address }
    }

    /// Status and body.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> (u16, Vec<u8>) {
        if !self.is_taken(request).await {
            // Some servers end a connection after so many requests, between two of them.
            *self = Self::open(self.address).await;
            assert!(self.is_taken(request).await, "a new connection is closed");
        }
        timeout(TIMEOUT, self.response()).await.expect("an answer comes in time")
    }

    /// Sends the request; whether an answer begins.
    async fn is_taken(&mut self, request: &[u8]) -> bool {
        let sent = self.socket.write_all(request).await;
        let begun = timeout(TIMEOUT, self.socket.fill_buf()).await.expect("an answer comes in time");
        sent.is_ok() && begun.is_ok_and(|bytes| !bytes.is_empty())
    }

    pub(crate) async fn send(&mut self, request: &[u8]) {
        self.socket.write_all(request).await.unwrap();
    }

    async fn response(&mut self) -> (u16, Vec<u8>) {
        let status = self.line().await.split(' ').nth(1).unwrap().parse().unwrap();
        let mut length = None;
        loop {
            let line = self.line().await;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').unwrap();
            if name.eq_ignore_ascii_case("content-length") {
                length = Some(value.trim().parse().unwrap());
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

/// A whole HTTP request with a JSON body.
pub(crate) fn post(path: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: ");
    format!("{head}{}\r\n\r\n{body}", body.len()).into_bytes()
}

/// The median, and from where to where.
pub(crate) fn range(values: impl Iterator<Item = f64>) -> String {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let digits = usize::from(values[0] < 100.0) * 2;
    let (least, median, most) = (values[0], values[values.len() / 2], values[values.len() - 1]);
    format!("{median:.digits$} ({least:.digits$}, {most:.digits$})")
}
