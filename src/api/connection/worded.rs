use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use actix_web::ResponseError as _;
use actix_web::body::MessageBody as _;
use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::Serving;
use super::framing::{Bare, Framing};
use crate::api::guard::{HEAD_BYTES_MAX, HEADERS_MAX, URI_BYTES_MAX};
use crate::api::request_id;
use crate::openai::error::ApiError;

/// What a client has sent that was told to go is thrown away for so long: a connection that is closed with unread bytes takes the answer along.
const LINGER: Duration = Duration::from_secs(1);
/// Longer than the library keeps a connection that has nothing to say. What it waits for beyond that is the end of a body that nobody reads.
const IDLE: Duration = Duration::from_secs(6);
/// A method and a version stand beside the URI.
const LINE_BYTES_MAX: usize = URI_BYTES_MAX + 64;

/// A connection on which the HTTP library's own refusals are put into words.
///
/// What the library cannot read as a request never reaches the app; it answers with a status, an empty body, and the end of the connection.
/// Such an answer is replaced here. And the library times the first head of a connection alone, and waits for ever for the end
/// of a body in chunks that was answered before: that is timed here.
#[derive(Debug)]
pub(super) struct Worded<T> {
    io: T,
    sent: Framing,
    asked: Asked,
    serving: Serving,
    /// In which a head that has begun has to end.
    head_timeout: Duration,
    /// Set while one is awaited.
    head_due: Option<Pin<Box<Sleep>>>,
    refusal: Option<Refusal>,
}

/// What has come in since the last answer began.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    bytes: usize,
    /// Bytes of the first line.
    line: usize,
    line_ended: bool,
}

/// What is said in the place of a bare refusal. Nothing comes after it.
#[derive(Debug)]
struct Refusal {
    words: Vec<u8>,
    said: usize,
    step: Step,
}

#[derive(Debug)]
enum Step {
    Speak,
    HangUp,
    Linger(Pin<Box<Sleep>>),
    Gone,
}

impl<T> Worded<T> {
    pub(super) fn new(io: T, head_timeout: Duration) -> Self {
        let (sent, asked) = (Framing::default(), Asked::default());
        Self { io, sent, asked, serving: Serving::default(), head_timeout, head_due: None, refusal: None }
    }

    /// For the app to say when it serves a request.
    pub(super) fn serving(&self) -> Serving {
        self.serving.clone()
    }

    /// Ready when a head has been awaited for too long. What is under way is not interrupted.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.serving.is_so() {
            // The clock is set anew for the head behind this request.
            self.head_due = None;
        }
        if self.serving.is_so() || !self.sent.is_between() {
            return Poll::Pending;
        }
        let timeout = if self.asked.bytes > 0 { self.head_timeout } else { self.head_timeout.max(IDLE) };
        let due = self.head_due.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + timeout)));
        due.as_mut().poll(cx)
    }
}

impl Asked {
    fn note(&mut self, bytes: &[u8]) {
        self.bytes = self.bytes.saturating_add(bytes.len());
        if !self.line_ended {
            let end = bytes.iter().position(|byte| *byte == b'\n');
            self.line += end.unwrap_or(bytes.len());
            self.line_ended = end.is_some();
        }
    }

    /// Why the library refuses it, which knows no more than a status of it. `None` is for who has not asked for anything.
    fn refused(self, status: StatusCode) -> Option<ApiError> {
        match status {
            StatusCode::REQUEST_TIMEOUT if self.bytes == 0 => None,
            StatusCode::REQUEST_TIMEOUT => Some(ApiError::head_timeout()),
            _ if status.is_server_error() => Some(ApiError::internal()),
            _ if self.line > LINE_BYTES_MAX => Some(ApiError::uri_too_long(URI_BYTES_MAX)),
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE if self.bytes <= HEAD_BYTES_MAX => {
                Some(ApiError::too_many_headers(HEADERS_MAX))
            }
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => Some(ApiError::head_too_large(HEAD_BYTES_MAX)),
            _ => Some(ApiError::malformed_request()),
        }
    }
}

impl Refusal {
    fn new(error: Option<&ApiError>) -> Self {
        let words = error.map(words).unwrap_or_default();
        Self { words, said: 0, step: Step::Speak }
    }

    /// Done when the client has been told and has gone, or was waited for long enough.
    fn poll<T: AsyncRead + AsyncWrite + Unpin>(&mut self, io: &mut T, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match &mut self.step {
                Step::Speak if self.said == self.words.len() => {
                    ready!(Pin::new(&mut *io).poll_flush(cx))?;
                    self.step = Step::HangUp;
                }
                Step::Speak => match ready!(Pin::new(&mut *io).poll_write(cx, &self.words[self.said..]))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    bytes => self.said += bytes,
                },
                Step::HangUp => {
                    ready!(Pin::new(&mut *io).poll_shutdown(cx))?;
                    self.step = Step::Linger(Box::pin(sleep_until(Instant::now() + LINGER)));
                }
                Step::Linger(until) => {
                    let mut rest = [0; 4096];
                    let mut rest = ReadBuf::new(&mut rest);
                    let gone = match Pin::new(&mut *io).poll_read(cx, &mut rest) {
                        Poll::Ready(Ok(())) => rest.filled().is_empty(),
                        Poll::Ready(Err(_)) => true,
                        Poll::Pending => {
                            ready!(until.as_mut().poll(cx));
                            true
                        }
                    };
                    if gone || until.is_elapsed() {
                        self.step = Step::Gone;
                    }
                }
                Step::Gone => return Poll::Ready(Ok(())),
            }
        }
    }
}

/// The error as it goes over the wire.
fn words(error: &ApiError) -> Vec<u8> {
    let mut response = error.error_response();
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    request_id::name_anew(headers);
    let status = response.status();
    let (head, body) = response.into_parts();
    let body = body.try_into_bytes().unwrap_or_default();
    let mut words =
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n", body.len()).into_bytes();
    for (name, value) in head.headers() {
        words.extend_from_slice(name.as_str().as_bytes());
        words.extend_from_slice(b": ");
        words.extend_from_slice(value.as_bytes());
        words.extend_from_slice(b"\r\n");
    }
    words.extend_from_slice(b"\r\n");
    words.extend_from_slice(&body);
    words
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Worded<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(refusal) = &mut this.refusal {
            // Whatever else comes is not read.
            return refusal.poll(&mut this.io, cx);
        }
        let before = buf.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut this.io).poll_read(cx, buf) {
            if this.asked.bytes == 0 {
                // What was waited for begins.
                this.head_due = None;
            }
            this.asked.note(&buf.filled()[before..]);
            return Poll::Ready(read);
        }
        ready!(this.poll_overdue(cx));
        let error = this.asked.refused(StatusCode::REQUEST_TIMEOUT);
        this.refusal.insert(Refusal::new(error.as_ref())).poll(&mut this.io, cx)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Worded<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut rest = bytes;
        if this.refusal.is_none() {
            match this.sent.bare_refusal(bytes) {
                Some(Bare { status, at: 0 }) => {
                    this.refusal = Some(Refusal::new(this.asked.refused(status).as_ref()));
                }
                Some(Bare { at, .. }) => rest = &bytes[..at],
                None => {}
            }
        }
        if let Some(refusal) = &mut this.refusal {
            ready!(refusal.poll(&mut this.io, cx))?;
            // Whatever else is there to be said.
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = ready!(Pin::new(&mut this.io).poll_write(cx, rest))?;
        if this.sent.advance(bytes, written) {
            this.asked = Asked::default();
            this.head_due = None;
        }
        // Here the clock is set that the next read looks at.
        let _ = this.poll_overdue(cx);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.refusal.is_some() {
            // That has been done.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const BARE: &[u8] = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\n\r\n";

    /// What a client hears that has sent these bytes, and is then refused.
    async fn told(asked: &[u8], before: &[u8]) -> String {
        let (client, server) = tokio::io::duplex(1 << 20);
        let (mut hears, mut says) = tokio::io::split(client);
        says.write_all(asked).await.unwrap();
        let mut server = Worded::new(server, Duration::from_secs(60));
        if !asked.is_empty() {
            let mut taken = vec![0; asked.len()];
            server.read_exact(&mut taken).await.unwrap();
        }
        let answer = [before, BARE].concat();
        let (sent, heard) = tokio::join!(server.write_all(&answer), async {
            let mut heard = String::new();
            hears.read_to_string(&mut heard).await.unwrap();
            says.shutdown().await.unwrap();
            heard
        });
        sent.unwrap();
        heard
    }

    #[tokio::test]
    async fn a_head_that_does_not_end_is_not_waited_for() {
        let (mut client, server) = tokio::io::duplex(1 << 10);
        let mut server = Worded::new(server, Duration::from_millis(50));
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut taken = [0; 18];
        server.read_exact(&mut taken).await.unwrap();
        server.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        client.write_all(b"GET /").await.unwrap();
        let mut rest = Vec::new();
        let heard = async {
            let mut heard = String::new();
            client.read_to_string(&mut heard).await.unwrap();
            drop(client);
            heard
        };
        let (read, heard) = tokio::join!(server.read_to_end(&mut rest), heard);
        read.unwrap();
        assert_eq!(rest, b"GET /");
        assert!(
            heard.contains("HTTP/1.1 408 Request Timeout\r\n") && heard.contains("Request head was not received"),
            "{heard}"
        );
    }

    #[tokio::test]
    async fn a_bare_refusal_is_told_in_words() {
        let many: String = (0..100).map(|n| format!("x-{n}: y\r\n")).collect();
        let many = told(format!("GET / HTTP/1.1\r\n{many}\r\n").as_bytes(), b"").await;
        assert!(many.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: "), "{many}");
        assert!(many.contains("x-request-id: req_") && many.contains("content-type: application/json"), "{many}");
        assert!(many.contains("Request has more than 64 header fields."), "{many}");
        let large = format!("GET / HTTP/1.1\r\nx: {}", "x".repeat(200_000));
        assert!(told(large.as_bytes(), b"").await.contains("Request header block exceeds 16384 bytes."));
        let long = format!("GET /{}", "x".repeat(200_000));
        assert!(told(long.as_bytes(), b"").await.starts_with("HTTP/1.1 414 "));
        let before = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        let behind = told(b"GET / HTTP/1.1\r\n\r\n", before.as_bytes()).await;
        assert!(behind.starts_with(&format!("{before}HTTP/1.1 431 ")), "{behind}");
    }
}
