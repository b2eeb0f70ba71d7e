//! Answers of generations, whole as JSON or as server-sent events, and other streams of such events.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::http::header::{CACHE_CONTROL, ContentType, HeaderMap, HeaderName, HeaderValue};
use actix_web::web::Bytes;
use actix_web::{HttpResponse, HttpResponseBuilder};
use futures_core::Stream;
use tokio::time::{Instant, Sleep, sleep_until};

use super::request_id;
use crate::completion::{Frame, Started};
use crate::openai::error::ApiError;

const IGNORED_PARAMS: HeaderName = HeaderName::from_static("x-tandem-ignored-params");
/// A stream says something at least this often, so that no proxy takes it for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// What is ready at one time is sent together, until it is as much as this.
const MAX_SENT: usize = 64 << 10;
/// JSON has no line breaks outside of strings and none unescaped within, so one line of data is all that an event needs.
const EVENT: Frame = Frame { before: b"data: ", after: b"\n\n" };

/// Answers a request in the way that it asked for.
pub(super) async fn answer(started: Started) -> Result<HttpResponse, ApiError> {
    let mut response = HttpResponse::Ok();
    request_id::name(&mut response, started.request_id());
    let ignored = started.ignored().to_vec();
    let mut response = if started.is_stream() {
        let mut chunks = started.into_chunks();
        stream(&mut response, move |cx: &mut Context<'_>, out: &mut Vec<u8>| chunks.poll(cx, out, EVENT))
    } else {
        let answer = started.collect().await?;
        response.content_type(ContentType::json()).body(answer.body.get().to_owned())
    };
    name_ignored(response.headers_mut(), &ignored);
    Ok(response)
}

/// A stream of what `next` appends: whole events, each ending in an empty line.
pub(super) fn events<N>(next: N) -> HttpResponse
where
    N: FnMut(&mut Context<'_>, &mut Vec<u8>) -> Poll<Option<Result<(), ApiError>>> + Unpin + 'static,
{
    stream(&mut HttpResponse::Ok(), next)
}

fn stream<N>(response: &mut HttpResponseBuilder, next: N) -> HttpResponse
where
    N: FnMut(&mut Context<'_>, &mut Vec<u8>) -> Poll<Option<Result<(), ApiError>>> + Unpin + 'static,
{
    response.insert_header(("content-type", "text/event-stream")).insert_header((CACHE_CONTROL, "no-cache"));
    response.streaming(EventStream::new(next, KEEP_ALIVE))
}

/// Fields and parameters that were not understood, for whoever wonders why they change nothing; beside those that are named already. Names that
/// no header can carry are left out.
pub(super) fn name_ignored(headers: &mut HeaderMap, ignored: &[String]) {
    const MAX_NAMES: usize = 32;
    let plain = |name: &&String| name.len() <= 64 && name.bytes().all(|b| b.is_ascii_graphic() && b != b',');
    let named = headers.get(IGNORED_PARAMS).and_then(|named| named.to_str().ok());
    let new = ignored.iter().filter(plain).map(String::as_str).take(MAX_NAMES);
    let names: Vec<&str> = named.into_iter().chain(new).collect();
    if let Ok(value) = HeaderValue::from_str(&names.join(", "))
        && !names.is_empty()
    {
        headers.insert(IGNORED_PARAMS, value);
    }
}

/// Chunks as events, `[DONE]` behind the last; comments in silence. An error ends the stream and is not followed by `[DONE]`.
///
/// `next` appends the events of what happens next to what is to be sent. All that is ready goes out together: a client that reads as fast as
/// tokens come gets each on its own, and for one that does not, many cost no more than one.
struct EventStream<N> {
    next: Option<N>,
    /// Written to be sent; kept for its memory.
    text: Vec<u8>,
    keep_alive: Duration,
    last_sent: Instant,
    silence: Pin<Box<Sleep>>,
}

impl<N> EventStream<N>
where
    N: FnMut(&mut Context<'_>, &mut Vec<u8>) -> Poll<Option<Result<(), ApiError>>> + Unpin,
{
    fn new(next: N, keep_alive: Duration) -> Self {
        let now = Instant::now();
        let silence = Box::pin(sleep_until(now + keep_alive));
        Self { next: Some(next), text: Vec::new(), keep_alive, last_sent: now, silence }
    }

    /// Writes the events that are ready.
    fn gather(&mut self, cx: &mut Context<'_>) {
        let Self { next: source, text, .. } = self;
        while let Some(next) = source
            && text.len() < MAX_SENT
        {
            match next(cx, text) {
                Poll::Ready(Some(Ok(()))) => continue,
                Poll::Ready(Some(Err(error))) => {
                    write_event(text, &serde_json::to_vec(&error.envelope()).unwrap_or_default());
                }
                Poll::Ready(None) => write_event(text, b"[DONE]"),
                Poll::Pending => return,
            }
            *source = None;
        }
    }

    /// Ready when nothing was sent for long. The timer is not set back by what is sent, which would be often, but looks when it goes off.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            std::task::ready!(self.silence.as_mut().poll(cx));
            let due = self.last_sent + self.keep_alive;
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            self.silence.as_mut().reset(due);
        }
    }
}

impl<N> Stream for EventStream<N>
where
    N: FnMut(&mut Context<'_>, &mut Vec<u8>) -> Poll<Option<Result<(), ApiError>>> + Unpin,
{
    type Item = Result<Bytes, ApiError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        this.gather(cx);
        let sent = if !this.text.is_empty() {
            let sent = Bytes::copy_from_slice(&this.text);
            this.text.clear();
            sent
        } else if this.next.is_none() {
            return Poll::Ready(None);
        } else {
            std::task::ready!(this.poll_silence(cx));
            this.silence.as_mut().reset(Instant::now() + this.keep_alive);
            Bytes::from_static(b": keep-alive\n\n")
        };
        this.last_sent = Instant::now();
        Poll::Ready(Some(Ok(sent)))
    }
}

fn write_event(text: &mut Vec<u8>, data: &[u8]) {
    text.extend_from_slice(EVENT.before);
    text.extend_from_slice(data);
    text.extend_from_slice(EVENT.after);
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use futures_util::stream::StreamExt;

    use super::*;

    type Next = Poll<Option<Result<(), ApiError>>>;

    /// What happens next, again and again; `None` is that nothing happens yet, after which the task is woken.
    fn script(
        steps: Vec<Option<Result<&'static str, ApiError>>>,
    ) -> impl FnMut(&mut Context<'_>, &mut Vec<u8>) -> Next {
        let mut steps = VecDeque::from(steps);
        move |cx, out| match steps.pop_front() {
            Some(Some(Ok(chunk))) => {
                write_event(out, chunk.as_bytes());
                Poll::Ready(Some(Ok(())))
            }
            Some(Some(Err(error))) => Poll::Ready(Some(Err(error))),
            Some(None) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            None => Poll::Ready(None),
        }
    }

    /// What was sent at a time.
    async fn sent(steps: Vec<Option<Result<&'static str, ApiError>>>) -> Vec<String> {
        let events = EventStream::new(script(steps), KEEP_ALIVE);
        events.map(|sent| String::from_utf8(sent.unwrap().to_vec()).unwrap()).collect().await
    }

    #[tokio::test]
    async fn a_stream_ends_with_done() {
        let sent = sent(vec![Some(Ok("{\"a\":1}")), None, None, Some(Ok("{}")), None]).await;
        assert_eq!(sent, ["data: {\"a\":1}\n\n", "data: {}\n\n", "data: [DONE]\n\n"]);
    }

    #[tokio::test]
    async fn an_error_is_the_last_event() {
        let sent = sent(vec![Some(Ok("{}")), Some(Err(ApiError::engine_gone())), Some(Ok("{}"))]).await;
        let [text] = &sent[..] else { panic!("{sent:?}") };
        assert!(text.starts_with("data: {}\n\ndata: {\"error\":{"), "{text}");
        assert_eq!(text.matches("data:").count(), 2);
    }

    #[tokio::test]
    async fn what_is_ready_is_sent_together_and_never_more_than_so_much() {
        let chunk: &str = "x".repeat(1000).leak();
        // Three times what goes at once, and some.
        let chunks = 3 * MAX_SENT / chunk.len() + 10;
        let sent = sent(vec![Some(Ok(chunk)); chunks]).await;
        assert_eq!(sent.len(), 4);
        assert!(sent.iter().all(|text| text.len() < MAX_SENT + chunk.len() + 16));
        assert_eq!(sent.concat().matches("data: x").count(), chunks);
        assert!(sent.concat().ends_with("data: [DONE]\n\n"));
    }

    #[tokio::test]
    async fn silence_is_broken_by_comments() {
        let pause = Duration::from_millis(20);
        let mut events = EventStream::new(|_: &mut Context<'_>, _: &mut Vec<u8>| Poll::Pending, pause);
        let begun = Instant::now();
        for _ in 0..2 {
            assert_eq!(events.next().await.unwrap().unwrap(), ": keep-alive\n\n");
        }
        assert!(begun.elapsed() >= 2 * pause);
    }
}
