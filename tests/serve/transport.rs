//! What is wrong with a request before anyone looks at what it asks for.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use crate::program::Program;

/// Sends bytes as they are; all that comes back until the server closes, or has been silent for long.
fn raw(server: &Program, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(format!("127.0.0.1:{}", server.port())).unwrap();
    // The server may have said its word, and closed, before all is written.
    let _ = stream.write_all(request);
    read(&mut stream)
}

fn read(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
        answer.extend_from_slice(&buffer[..bytes]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn get(server: &Program, path: &str, headers: &str) -> String {
    raw(server, format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n").as_bytes())
}

fn assert_refused(answer: &str, status: u16, error: &str) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    assert!(answer.contains("application/json") && answer.contains("x-request-id: req_"), "{answer}");
    assert!(answer.contains(error), "{answer}");
}

#[tokio::test]
async fn heads_that_are_too_large_are_refused() {
    let storage = tempfile::tempdir().unwrap();
    let server = Program::start(storage.path(), 0).await;
    let before = server.memory();
    let large = format!("x-large: {}\r\n", "x".repeat(16 << 10));
    let message = "\"message\":\"Request header block exceeds 16384 bytes.\"";
    let answer = get(&server, "/version", &large);
    assert_refused(&answer, 431, message);
    assert!(answer.contains("\"code\":\"request_header_fields_too_large\""), "{answer}");
    let many: String = (0..65).map(|n| format!("x-{n}: y\r\n")).collect();
    assert_refused(&get(&server, "/version", &many), 431, "request_header_fields_too_large");
    // Of what follows the app never hears.
    let far_too_many: String = (0..200).map(|n| format!("x-{n}: y\r\n")).collect();
    assert_refused(&get(&server, "/version", &far_too_many), 431, "request_header_fields_too_large");
    let endless = format!("GET / HTTP/1.1\r\nx: {}", "x".repeat(1 << 20));
    assert_refused(&raw(&server, endless.as_bytes()), 431, message);
    let long = format!("/version?{}", "x".repeat(8 << 10));
    assert_refused(&get(&server, &long, ""), 414, "\"message\":\"Request URI exceeds 8192 bytes.\"");
    assert!(server.memory() < before + (16 << 20), "{} {before}", server.memory());
    let fine = format!("x-large: {}\r\n", "x".repeat(15 << 10));
    assert!(get(&server, "/version", &fine).starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn lengths_that_can_be_read_in_two_ways_are_refused() {
    let storage = tempfile::tempdir().unwrap();
    let server = Program::start(storage.path(), 0).await;
    let post = |headers: &str| {
        let head = "POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json";
        raw(&server, format!("{head}\r\n{headers}\r\n\r\n0\r\n\r\n").as_bytes())
    };
    for lengths in [
        "content-length: 5\r\ntransfer-encoding: chunked",
        "content-length: 5\r\ncontent-length: 6",
        "transfer-encoding: gzip",
        "content-length: -1",
    ] {
        let answer = post(lengths);
        assert_refused(&answer, 400, "malformed_request");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "the connection is closed: {answer}");
    }
}

#[tokio::test]
async fn clients_that_dawdle_are_not_waited_for() {
    let storage = tempfile::tempdir().unwrap();
    let settings = [("TANDEM__SERVER__HEADER_TIMEOUT_MS", "1000"), ("TANDEM__SERVER__BODY_TIMEOUT_MS", "300")];
    let server = Program::start_with(storage.path(), &settings).await;
    let begun = Instant::now();
    // Not a byte, half a head, and a body that stops.
    assert_eq!(raw(&server, b""), "");
    let head = "Request head was not received in time.";
    assert_refused(&raw(&server, b"GET /version HTTP/1.1\r\nhost: loc"), 408, head);
    // The first head of a connection is no different from the next.
    let mut stream = TcpStream::connect(format!("127.0.0.1:{}", server.port())).unwrap();
    stream.write_all(b"GET /version HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
    stream.write_all(b"GET /version HTTP/1.1\r\nhost: loc").unwrap();
    assert_refused(&read(&mut stream), 408, head);
    // Nor is a body waited for that has its answer.
    let mut stream = TcpStream::connect(format!("127.0.0.1:{}", server.port())).unwrap();
    let endless = b"POST /v1/nope HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n";
    stream.write_all(endless).unwrap();
    assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
    stream.write_all(b"1\r\nx\r\n").unwrap();
    let answered = Instant::now();
    read(&mut stream);
    assert!(answered.elapsed() < Duration::from_secs(10), "{:?}", answered.elapsed());
    let slow = "POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 2000";
    let answer = raw(&server, format!("{slow}\r\n\r\n{{\"model\"").as_bytes());
    assert_refused(&answer, 408, "\"message\":\"Request body was not received in time.\"");
    assert!(answer.contains("\"code\":\"request_timeout\""), "{answer}");
    let upload = "POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=b";
    let part = "--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"x.jsonl\"\r\n\r\n{";
    let answer = raw(&server, format!("{upload}\r\ncontent-length: 2000\r\n\r\n{part}").as_bytes());
    assert_refused(&answer, 408, "\"code\":\"request_timeout\"");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_body_in_crumbs_is_not_collected() {
    let storage = tempfile::tempdir().unwrap();
    let server = Program::start(storage.path(), 0).await;
    let head = "POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close";
    let crumbs = "1\r\n \r\n".repeat(100_001);
    let crumbs = format!("{head}\r\ntransfer-encoding: chunked\r\n\r\n{crumbs}0\r\n\r\n");
    let mut stream = TcpStream::connect(format!("127.0.0.1:{}", server.port())).unwrap();
    stream.write_all(crumbs.as_bytes()).unwrap();
    assert_refused(&read(&mut stream), 413, "\"code\":\"request_too_large\"");
    let few = format!("{head}\r\ntransfer-encoding: chunked\r\n\r\n{}0\r\n\r\n", "1\r\n \r\n".repeat(1000));
    assert_refused(&raw(&server, few.as_bytes()), 400, "invalid_json");
}

#[tokio::test]
async fn names_and_pages_of_others_are_refused() {
    let storage = tempfile::tempdir().unwrap();
    let settings = [
        ("TANDEM__SERVER__ALLOWED_HOSTS", "gpu.example, other.example"),
        ("TANDEM__SERVER__CORS_ORIGINS", "https://chat.example"),
    ];
    let server = Program::start_with(storage.path(), &settings).await;
    let ask = |method: &str, headers: &str| {
        raw(&server, format!("{method} /v1/models HTTP/1.1\r\n{headers}\r\nconnection: close\r\n\r\n").as_bytes())
    };
    for host in ["localhost", "127.0.0.1:8000", "[::1]", "192.0.2.7", "gpu.example:80", "OTHER.example"] {
        assert!(ask("GET", &format!("host: {host}")).starts_with("HTTP/1.1 200 "), "{host}");
    }
    for host in ["evil.example", "gpu.example.evil.example", ""] {
        assert_refused(
            &ask("GET", &format!("host: {host}")),
            403,
            "\"type\":\"permission_error\",\"param\":null,\"code\":\"host_not_allowed\"",
        );
    }
    let absolute = "GET http://evil.example/version HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    assert_refused(&raw(&server, absolute.as_bytes()), 403, "host_not_allowed");

    let page = |method: &str, origin: &str| {
        ask(method, &format!("host: localhost:1\r\norigin: {origin}\r\naccess-control-request-method: POST"))
    };
    for method in ["OPTIONS", "GET"] {
        let refused = page(method, "https://evil.example");
        assert_refused(&refused, 403, "\"code\":\"origin_not_allowed\"");
        assert!(!refused.to_ascii_lowercase().contains("access-control"), "{refused}");
    }
    assert_refused(&page("GET", "null"), 403, "origin_not_allowed");
    let allowed = page("OPTIONS", "https://chat.example");
    assert!(allowed.starts_with("HTTP/1.1 204 "), "{allowed}");
    assert!(allowed.contains("access-control-allow-origin: https://chat.example"), "{allowed}");
    let allowed = page("GET", "https://chat.example");
    assert!(allowed.starts_with("HTTP/1.1 200 ") && allowed.contains("access-control-allow-origin: "), "{allowed}");
    assert!(page("GET", "http://localhost:1").starts_with("HTTP/1.1 200 "), "a page of its own");
    assert!(allowed.contains("x-content-type-options: nosniff") && allowed.contains("cache-control: no-store"));
}

/// As many connections as are allowed stay open; one more waits until one of them is closed.
#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let storage = tempfile::tempdir().unwrap();
    // One for each worker, which is the least.
    let server = Program::spawn("sim", storage.path(), &[("TANDEM__SERVER__MAX_CONNECTIONS", "1")]);
    let connect = |wait: Duration| {
        let mut stream = TcpStream::connect(format!("127.0.0.1:{}", server.port())).unwrap();
        stream.write_all(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        stream.set_read_timeout(Some(wait)).unwrap();
        let answered = stream.read(&mut [0; 1024]).is_ok();
        (stream, answered)
    };
    let workers = std::thread::available_parallelism().unwrap().get();
    let mut held: Vec<_> = (0..workers).map(|_| connect(Duration::from_secs(20))).collect();
    assert!(held.iter().all(|(_, answered)| *answered));
    let (mut waiting, answered) = connect(Duration::from_millis(300));
    assert!(!answered);
    drop(held.pop());
    waiting.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert!(waiting.read(&mut [0; 1024]).is_ok_and(|bytes| bytes > 0));
}
