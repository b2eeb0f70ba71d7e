use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Tells whoever waits that there is something new of a batch: committed results, or another status. What it is, the database says.
///
/// Register before looking: what changes after [`watch`](Self::watch) is not missed.
#[derive(Clone, Debug, Default)]
pub(super) struct Feed {
    topics: Arc<Mutex<Topics>>,
    /// Of any batch.
    statuses: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Topics {
    /// Only of batches that someone waits for.
    senders: HashMap<String, watch::Sender<()>>,
    closed: bool,
}

impl Feed {
    /// Changes with each piece of news, and is closed when the server stops.
    pub(super) fn watch(&self, batch_id: &str) -> watch::Receiver<()> {
        let mut topics = self.topics();
        if topics.closed {
            return watch::channel(()).1;
        }
        topics.senders.retain(|_, sender| sender.receiver_count() > 0);
        topics.senders.entry(batch_id.to_owned()).or_default().subscribe()
    }

    pub(super) fn watchers(&self, batch_id: &str) -> usize {
        self.topics().senders.get(batch_id).map_or(0, watch::Sender::receiver_count)
    }

    pub(super) fn announce(&self, batch_id: &str) {
        if let Some(sender) = self.topics().senders.get(batch_id) {
            sender.send_replace(());
        }
    }

    /// Announces what may be another status.
    pub(super) fn announce_status(&self, batch_id: &str) {
        self.announce(batch_id);
        self.statuses.send_replace(());
    }

    /// Changes whenever some batch may have another status.
    pub(super) fn statuses(&self) -> watch::Receiver<()> {
        self.statuses.subscribe()
    }

    /// Ends every wait for a batch, now and later.
    pub(super) fn close(&self) {
        let mut topics = self.topics();
        topics.closed = true;
        topics.senders.clear();
    }

    fn topics(&self) -> MutexGuard<'_, Topics> {
        // Nothing that holds the lock can leave it half changed.
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn news_of_a_batch_reach_those_who_wait_for_it() {
        let feed = Feed::default();
        let (mut one, mut other) = (feed.watch("a"), feed.watch("b"));
        feed.announce("a");
        feed.announce("nobody waits for this one");
        one.changed().await.unwrap();
        assert!(!other.has_changed().unwrap());
        feed.close();
        other.changed().await.unwrap_err();
        feed.watch("a").changed().await.unwrap_err();
    }

    #[test]
    fn what_nobody_waits_for_is_forgotten() {
        let feed = Feed::default();
        for index in 0..100 {
            drop(feed.watch(&index.to_string()));
        }
        assert_eq!(feed.topics().senders.len(), 1);
    }
}
