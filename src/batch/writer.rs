use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::feed::Feed;
use super::settings::Settings;
use crate::failpoint::failpoint;
use crate::store::{Done, Store};

/// Results that wait for their transaction. More would only hide a database that is too slow.
const QUEUE: usize = 256;
const RETRY_DELAY_MAX: Duration = Duration::from_secs(5);

/// The way to the one task that writes results, in groups: a sync of the disk costs the same for one row as for sixty-four.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    queue: mpsc::Sender<Message>,
    /// Whether a line has gone back to open since this was last asked.
    reopened: Arc<AtomicBool>,
}

#[derive(Debug)]
enum Message {
    Done(Done),
    /// Answered once everything sent before is committed.
    Flush(oneshot::Sender<()>),
}

impl Writer {
    /// The task ends when the last writer is dropped and the queue is written.
    pub(super) fn spawn(
        store: Store,
        settings: Arc<Settings>,
        wake: Arc<Notify>,
        feed: Feed,
    ) -> (Self, JoinHandle<()>) {
        let (queue, messages) = mpsc::channel(QUEUE);
        let reopened = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(write(store, settings, wake, feed, Arc::clone(&reopened), messages));
        (Self { queue, reopened }, task)
    }

    /// Waits while the queue is full. A result for a writer that is gone is lost, and its line is run again.
    pub(super) async fn send(&self, done: Done) {
        let _ = self.queue.send(Message::Done(done)).await;
    }

    pub(super) fn take_reopened(&self) -> bool {
        self.reopened.swap(false, Ordering::Relaxed)
    }

    pub(super) async fn flush(&self) {
        let (answer, flushed) = oneshot::channel();
        if self.queue.send(Message::Flush(answer)).await.is_ok() {
            let _ = flushed.await;
        }
    }
}

async fn write(
    store: Store,
    settings: Arc<Settings>,
    wake: Arc<Notify>,
    feed: Feed,
    reopened: Arc<AtomicBool>,
    mut messages: mpsc::Receiver<Message>,
) {
    while let Some(first) = messages.recv().await {
        let deadline = Instant::now() + settings.group_delay;
        let (mut group, mut flushes) = (Vec::with_capacity(settings.group_rows), Vec::new());
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Done(done) => group.push(done),
                Message::Flush(answer) => flushes.push(answer),
            }
            if group.len() >= settings.group_rows || !flushes.is_empty() {
                break;
            }
            next = tokio::time::timeout_at(deadline, messages.recv()).await.ok().flatten();
        }
        if commit(&store, &settings, &mut group).await > 0 {
            reopened.store(true, Ordering::Relaxed);
        }
        group.dedup_by(|a, b| a.batch_id == b.batch_id);
        group.iter().for_each(|done| feed.announce(&done.batch_id));
        for answer in flushes {
            let _ = answer.send(());
        }
        wake.notify_one();
    }
}

/// Writes a group, however long it takes: what the engine has done must not be done again because a disk was full for a minute.
/// Answers how many lines are open again.
async fn commit(store: &Store, settings: &Settings, group: &mut [Done]) -> usize {
    if group.is_empty() {
        return 0;
    }
    failpoint("result.queued");
    group.sort_unstable_by(|a, b| (&a.batch_id, a.line_no).cmp(&(&b.batch_id, b.line_no)));
    let mut delay = Duration::from_millis(50);
    loop {
        match store.complete(group, settings.clock.seconds()).await {
            Ok(outcome) => {
                tracing::debug!(
                    written = outcome.written,
                    reopened = outcome.reopened,
                    stale = outcome.stale,
                    "wrote a group of results"
                );
                return outcome.reopened;
            }
            Err(error) => {
                tracing::error!(error = ?error, rows = group.len(), "could not write results; trying again");
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(RETRY_DELAY_MAX);
            }
        }
    }
}
