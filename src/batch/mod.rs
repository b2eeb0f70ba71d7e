//! The Batch API's life: from an input file to an output file in which every line is answered exactly once.
//!
//! One task, the [`runner`], looks at what the database says of each unfinished batch and does the next thing: check its input, run
//! its lines, publish, purge. It keeps nothing that it could not read again, which is why a restart needs no special path: what a
//! dead process held is made open ([`recover`]) and the runner goes on. Results go through one [`writer`] that commits them in groups.

mod estimate;
mod feed;
mod index;
mod jsonl;
mod line;
mod meter;
mod offline;
mod order;
mod publish;
mod recover;
mod results;
mod retry;
mod runner;
mod settings;
mod shares;
mod state;
mod twins;
mod validate;
mod writer;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use tokio::sync::{Mutex, Notify, watch};
use tokio::task::JoinHandle;

use crate::store::{Batch, CancelOutcome, Created, NewBatch, Page, Store, StoreError, Tenant};

use estimate::Estimator;
use feed::Feed;
use meter::Meter;

pub use estimate::{Estimate, EstimateError, EstimateOrder, ModelEstimate};
pub use line::{LineAnswer, LineExecutor, LineSize};
pub use meter::BatchRate;
pub use offline::{OfflineError, OfflineJob, OfflineReport, Progress, run_offline};
pub use order::LineOrder;
pub use results::{Followed, Follower, ResultLine, ResultsError, ResultsPage, ResultsQuery};
pub use retry::{RETRY_OF, RetryError};
pub use settings::{CompletionWindow, Settings};
pub use state::{BatchStatus, StopReason};

/// An uploaded input, and one that we make, goes after 30 days unless the client says otherwise.
pub(crate) const FILE_EXPIRES_S: i64 = 30 * 24 * 3600;

/// A handle to the batches of a store and to the task that runs them. Clones share it.
#[derive(Clone, Debug)]
pub struct Batches {
    store: Store,
    settings: Arc<Settings>,
    wake: Arc<Notify>,
    feed: Feed,
    meter: Meter,
    estimator: Estimator,
    stop: watch::Sender<bool>,
    task: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Batches {
    /// Recovers what an earlier process left and starts to run what is unfinished.
    pub async fn start<E: LineExecutor>(store: Store, executor: E, settings: Settings) -> Result<Self, StoreError> {
        recover::recover(&store).await?;
        let settings = Arc::new(settings);
        let wake = Arc::new(Notify::new());
        let (stop, stopped) = watch::channel(false);
        let (feed, meter, executor) = (Feed::default(), Meter::default(), Arc::new(executor));
        let estimator = Estimator::new(Arc::clone(&executor), store.clone(), Arc::clone(&settings), meter.clone());
        let signals = runner::Signals { wake: Arc::clone(&wake), feed: feed.clone(), meter: meter.clone(), stopped };
        let runner = runner::Runner::new(store.clone(), executor, Arc::clone(&settings), signals);
        let task = Arc::new(Mutex::new(Some(tokio::spawn(runner.run()))));
        Ok(Self { store, settings, wake, feed, meter, estimator, stop, task })
    }

    pub async fn create(&self, new: NewBatch) -> Result<Created, StoreError> {
        let created = self.store.create_batch(new, self.settings.active_max, self.settings.clock.seconds()).await?;
        self.wake();
        Ok(created)
    }

    pub async fn get(&self, tenant: &Tenant, id: &str) -> Result<Batch, StoreError> {
        self.store.batch(tenant, id).await
    }

    pub async fn list(&self, tenant: &Tenant, page: &Page) -> Result<(Vec<Batch>, bool), StoreError> {
        self.store.batches(tenant, page).await
    }

    /// Stops a batch that still validates or runs; its lines in flight are aborted, those that ended are published.
    pub async fn cancel(&self, tenant: &Tenant, id: &str) -> Result<CancelOutcome, StoreError> {
        let outcome = self.store.cancel_batch(tenant, id, self.settings.clock.seconds()).await?;
        self.wake();
        Ok(outcome)
    }

    /// Has no more lines of a batch start, or lets them start again; those that run come to their end. Its window goes on. Answers the batch,
    /// which is not changed if it is ending.
    pub async fn pause(&self, tenant: &Tenant, id: &str, paused: bool) -> Result<Batch, StoreError> {
        let batch = self.store.pause_batch(tenant, id, paused, self.settings.clock.seconds()).await?;
        self.wake();
        Ok(batch)
    }

    /// How fast a batch's lines are answered, over the last minute; `None` if none has started in this process.
    pub fn rate(&self, id: &str) -> Option<BatchRate> {
        self.meter.batch(id)
    }

    /// How many readers follow the results of a batch.
    pub fn followers(&self, id: &str) -> usize {
        self.feed.watchers(id)
    }

    /// Changes whenever a batch may have ended.
    pub fn ends(&self) -> watch::Receiver<()> {
        self.feed.statuses()
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Has the runner look at the database now.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Stops claiming, waits for the lines in flight as long as the settings allow, and lets go of the rest. Repeated calls wait too.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        self.feed.close();
        let mut task = self.task.lock().await;
        if let Some(handle) = task.as_mut()
            && let Err(error) = handle.await
        {
            tracing::error!(error = %error, "the batch runner did not end in order");
        }
        *task = None;
    }
}
