//! Answers of generations: whole as JSON, or as server-sent events.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::http::header::{CACHE_CONTROL, ContentType, HeaderName, HeaderValue};
use actix_web::web::Bytes;
use actix_web::{HttpResponse, HttpResponseBuilder};
use futures_core::Stream;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::completion::Started;
use crate::openai::error::ApiError;

const IGNORED_PARAMS: HeaderName = HeaderName::from_static("x-tandem-ignored-params");
/// A stream says something at least this often, so that no proxy takes it for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Answers a request in the way that it asked for.
pub(super) async fn answer(started: Started) -> Result<HttpResponse, ApiError> {
    let mut response = HttpResponse::Ok();
    name_ignored(&mut response, started.ignored());
    if started.is_stream() {
        response.insert_header(("content-type", "text/event-stream")).insert_header((CACHE_CONTROL, "no-cache"));
        return Ok(response.streaming(EventStream::new(started.into_stream(), KEEP_ALIVE)));
    }
    let answer = started.collect().await?;
    Ok(response.content_type(ContentType::json()).body(answer.body.get().to_owned()))
}

/// Fields that were not understood, for whoever wonders why they change nothing. Names that no header can carry are left out.
fn name_ignored(response: &mut HttpResponseBuilder, ignored: &[String]) {
    const MAX_NAMES: usize = 32;
    let plain = |name: &&String| name.len() <= 64 && name.bytes().all(|b| b.is_ascii_graphic() && b != b',');
    let names: Vec<&str> = ignored.iter().filter(plain).map(String::as_str).take(MAX_NAMES).collect();
    if let Ok(value) = HeaderValue::from_str(&names.join(", "))
        && !names.is_empty()
    {
        response.insert_header((IGNORED_PARAMS, value));
    }
}

/// Chunks as events, `[DONE]` behind the last; comments in silence. An error ends the stream and is not followed by `[DONE]`.
struct EventStream<S> {
    chunks: Option<Pin<Box<S>>>,
    silence: Interval,
}

impl<S: Stream<Item = Result<String, ApiError>>> EventStream<S> {
    fn new(chunks: S, keep_alive: Duration) -> Self {
        let mut silence = interval_at(Instant::now() + keep_alive, keep_alive);
        silence.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { chunks: Some(Box::pin(chunks)), silence }
    }
}

impl<S: Stream<Item = Result<String, ApiError>>> Stream for EventStream<S> {
    type Item = Result<Bytes, ApiError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let Some(chunks) = &mut this.chunks else { return Poll::Ready(None) };
        let event = match chunks.as_mut().poll_next(cx) {
            Poll::Ready(Some(Ok(chunk))) => event(&chunk),
            Poll::Ready(Some(Err(error))) => {
                this.chunks = None;
                event(&serde_json::to_string(&error.envelope()).unwrap_or_default())
            }
            Poll::Ready(None) => {
                this.chunks = None;
                event("[DONE]")
            }
            Poll::Pending => {
                std::task::ready!(this.silence.poll_tick(cx));
                return Poll::Ready(Some(Ok(Bytes::from_static(b": keep-alive\n\n"))));
            }
        };
        this.silence.reset();
        Poll::Ready(Some(Ok(event)))
    }
}

/// JSON has no line breaks outside of strings and none unescaped within, so one line of data is all that an event needs.
fn event(data: &str) -> Bytes {
    Bytes::from(format!("data: {data}\n\n"))
}

#[cfg(test)]
mod tests {
    use futures_util::stream::{self, StreamExt};

    use super::*;

    async fn transcript(chunks: Vec<Result<String, ApiError>>) -> String {
        let mut events = EventStream::new(stream::iter(chunks), KEEP_ALIVE);
        let mut text = String::new();
        while let Some(event) = events.next().await {
            text += std::str::from_utf8(&event.unwrap()).unwrap();
        }
        text
    }

    #[tokio::test]
    async fn a_stream_ends_with_done() {
        let chunks = vec![Ok("{\"a\":1}".to_owned()), Ok("{}".to_owned())];
        assert_eq!(transcript(chunks).await, "data: {\"a\":1}\n\ndata: {}\n\ndata: [DONE]\n\n");
    }

    #[tokio::test]
    async fn an_error_is_the_last_event() {
        let text = transcript(vec![Ok("{}".to_owned()), Err(ApiError::engine_gone()), Ok("{}".to_owned())]).await;
        assert!(text.starts_with("data: {}\n\ndata: {\"error\":{"), "{text}");
        assert_eq!(text.matches("data:").count(), 2);
    }

    #[tokio::test]
    async fn silence_is_broken_by_comments() {
        let pause = Duration::from_millis(20);
        let mut events = EventStream::new(stream::pending(), pause);
        let begun = Instant::now();
        for _ in 0..2 {
            assert_eq!(events.next().await.unwrap().unwrap(), ": keep-alive\n\n");
        }
        assert!(begun.elapsed() >= 2 * pause);
    }
}
