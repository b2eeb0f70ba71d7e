use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use tokio::sync::mpsc;

use crate::{EngineError, Event, places::Places};

/// Places in its channel that must be free before a sequence takes part in a step: for a token of the step before that is not told yet, for the token of
/// this step, and for the end.
const RESERVED: usize = 3;

/// A running generation. Dropping it cancels it before the next step.
#[derive(Debug)]
pub struct Generation {
    events: mpsc::Receiver<Event>,
    ended: bool,
    places: Arc<Places>,
}

/// The engine's end of a [`Generation`].
#[derive(Debug)]
pub(crate) struct EventSender(mpsc::Sender<Event>);

impl Generation {
    /// As many events as `capacity` may wait for their reader. A reader further behind than this holds up its own generation, not the
    /// memory of everybody.
    pub(crate) fn channel(places: &Arc<Places>, capacity: usize) -> (EventSender, Self) {
        debug_assert!(capacity >= RESERVED, "otherwise no sequence would ever take part in a step");
        let (sender, events) = mpsc::channel(capacity);
        (EventSender(sender), Self { events, ended: false, places: Arc::clone(places) })
    }

    /// The next event, if there is one already.
    #[cfg(test)]
    pub(crate) fn try_next(&mut self) -> Option<Event> {
        let event = self.events.try_recv().ok()?;
        self.ended = !matches!(event, Event::Prompt(_) | Event::Token { .. });
        Some(event)
    }
}

impl Stream for Generation {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.ended {
            return Poll::Ready(None);
        }
        // A channel that closes without a last event is an engine that ended without one.
        let event = ready!(self.events.poll_recv(cx)).unwrap_or(Event::Failed(EngineError::Gone));
        self.ended = !matches!(event, Event::Prompt(_) | Event::Token { .. });
        Poll::Ready(Some(event))
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if !self.ended {
            // In this order: whoever sees the departure sees a closed channel.
            self.events.close();
            self.places.depart();
        }
    }
}

impl EventSender {
    /// A submitter that has left is noticed before the next step, not here.
    pub(crate) fn send(&self, event: Event) {
        let sent = self.0.try_send(event);
        debug_assert!(
            !matches!(sent, Err(mpsc::error::TrySendError::Full(_))),
            "a sequence takes part in a step only when there is room for what comes of it"
        );
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Whether the reader keeps up.
    pub(crate) fn has_room(&self) -> bool {
        self.0.capacity() >= RESERVED
    }
}
