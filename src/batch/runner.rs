use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::Instant;

use super::feed::Feed;
use super::line::{self, Execution, LineExecutor, Ran, Source};
use super::meter::Meter;
use super::publish::{publish, purge};
use super::settings::Settings;
use super::shares::{Claimant, Shares, choose};
use super::state::{BatchStatus, StopReason};
use super::twins::Twins;
use super::validate::{damaged_input, fail, validate};
use super::writer::Writer;
use crate::store::{Batch, ClaimOrder, Claimed, Done, LineEnd, Store, StoreError};

/// Looks again at least this often, whatever it was told.
const POLL: Duration = Duration::from_secs(30);
const JOB_RETRY: Duration = Duration::from_secs(5);
const SUSPECT_POLL: Duration = Duration::from_secs(1);
/// Windows of lines that a batch has left when it takes the longest first.
const TAIL_WINDOWS: usize = 2;
/// Lines that wait for the answer of another are claimed beside those that have work, up to so many windows in all.
const CLAIMED_WINDOWS: usize = 8;

/// Does for each unfinished batch what its row says is next, at its own pace: events only make it look.
pub(super) struct Runner<E> {
    store: Store,
    executor: Arc<E>,
    settings: Arc<Settings>,
    signals: Signals,
    lines: JoinSet<Result<(), StoreError>>,
    in_flight: HashMap<Id, InFlight>,
    twins: Arc<Twins>,
    shares: Shares,
    jobs: JoinSet<Result<(), StoreError>>,
    /// Batches with a job: checked, ended or purged by one task at a time.
    busy: HashMap<Id, String>,
    /// Batches whose job failed: not again before this time.
    resting: HashMap<String, Instant>,
    /// Batches that have no line to claim before this time.
    dry: HashMap<String, Instant>,
    /// When the windows of batches are over by the clock that nobody sets.
    windows: HashMap<String, Window>,
    sources: HashMap<String, Source>,
    /// Batches whose input turned out to be damaged.
    damaged: HashSet<String>,
    /// Whether a line may be left that was in the hands of a process that died.
    suspects: bool,
    /// The batches that could run lines at the last look: what comes anew may bring suspects along.
    runnable: HashSet<String>,
}

/// What the runner hears of others, and others of it.
pub(super) struct Signals {
    pub(super) wake: Arc<Notify>,
    pub(super) feed: Feed,
    pub(super) meter: Meter,
    pub(super) stopped: watch::Receiver<bool>,
}

/// The end of a batch's window, by [`Clock::elapsed_millis`](crate::clock::Clock::elapsed_millis).
#[derive(Debug)]
struct Window {
    /// The end by the wall clock that it was told from.
    expires_at: i64,
    end: i64,
    /// Whether it was said that the wall clock thinks otherwise.
    told: bool,
}

/// A line that was claimed.
#[derive(Debug)]
struct InFlight {
    batch_id: String,
    tenant: String,
    task: AbortHandle,
    /// Whether it only waits for the answer of another.
    follows: bool,
}

impl<E: LineExecutor> Runner<E> {
    pub(super) fn new(store: Store, executor: Arc<E>, settings: Arc<Settings>, signals: Signals) -> Self {
        Self {
            store,
            executor,
            twins: Arc::new(Twins::new(CLAIMED_WINDOWS * settings.window)),
            settings,
            signals,
            shares: Shares::default(),
            lines: JoinSet::new(),
            in_flight: HashMap::new(),
            jobs: JoinSet::new(),
            busy: HashMap::new(),
            resting: HashMap::new(),
            dry: HashMap::new(),
            windows: HashMap::new(),
            sources: HashMap::new(),
            damaged: HashSet::new(),
            suspects: true,
            runnable: HashSet::new(),
        }
    }

    pub(super) async fn run(mut self) {
        let Signals { wake, feed, meter: _, stopped } = &self.signals;
        let (wake, mut stopped) = (Arc::clone(wake), stopped.clone());
        let (writer, writing) =
            Writer::spawn(self.store.clone(), Arc::clone(&self.settings), Arc::clone(&wake), feed.clone());
        loop {
            let next = match self.tick(&writer).await {
                Ok(next) => next,
                Err(error) => {
                    tracing::error!(error = ?error, "could not look after the batches; trying again");
                    Instant::now() + JOB_RETRY
                }
            };
            tokio::select! {
                // A wake during the look is kept for here.
                () = wake.notified() => {}
                () = tokio::time::sleep_until(next) => {}
                () = self.room() => {}
                _ = stopped.wait_for(|stopped| *stopped) => break,
            }
        }
        self.stop(writer, writing).await;
    }

    /// Returns when enough has ended that a look is worth it: a job, or a quarter of the window.
    async fn room(&mut self) {
        loop {
            tokio::select! {
                Some(ended) = self.jobs.join_next_with_id() => {
                    self.job_ended(ended);
                    return;
                }
                Some(ended) = self.lines.join_next_with_id() => {
                    self.line_ended(ended);
                    if self.has_room() || !self.damaged.is_empty() {
                        return;
                    }
                }
                else => std::future::pending().await,
            }
        }
    }

    /// Claims are made for several lines at once: a claim is a transaction, and costs a sync of the disk.
    fn has_room(&self) -> bool {
        let free = self.free();
        free > 0 && (free * 4 >= self.settings.window)
    }

    /// Requests that may be begun.
    fn free(&self) -> usize {
        let working = self.in_flight.values().filter(|line| !line.follows).count();
        let window = self.settings.window;
        window.saturating_sub(working).min((CLAIMED_WINDOWS * window).saturating_sub(self.in_flight.len()))
    }

    /// One look at every unfinished batch. Answers when to look again at the latest.
    async fn tick(&mut self, writer: &Writer) -> Result<Instant, StoreError> {
        let now = self.settings.clock.seconds();
        if writer.take_reopened() {
            self.dry.clear();
            self.suspects = true;
        }
        self.store.delete_expired_files(self.settings.clock.seconds_at_least()).await?;
        let batches = self.store.live_batches().await?;
        let mut next = Instant::now() + POLL;
        let mut running = Vec::new();
        for batch in batches {
            let Ok(status) = batch.status() else {
                tracing::error!(batch.id = %batch.id, status = batch.status, "a batch has an unknown status");
                continue;
            };
            if matches!(status, BatchStatus::Validating | BatchStatus::InProgress) {
                let left = self.window_left(&batch);
                if left.is_zero() && self.store.stop_batch(&batch.id, StopReason::Expire, now).await? {
                    self.signals.wake.notify_one();
                    continue;
                }
                next = next.min(Instant::now() + left);
            }
            if status == BatchStatus::InProgress && !self.damaged.contains(&batch.id) {
                let wait = batch.not_before.map_or(0, |from| u64::try_from(from - now).unwrap_or(0));
                if wait > 0 {
                    next = next.min(Instant::now() + Duration::from_secs(wait));
                } else if batch.paused_at.is_none() {
                    running.push(batch);
                }
            } else {
                self.begin_job(batch, status, writer);
            }
        }
        // The rest wait their turn until one before them has ended.
        let running = choose(running, self.settings.concurrent_max);
        for batch in &running {
            if !self.runnable.contains(&batch.id) && self.store.has_suspects(&batch.id).await? {
                self.suspects = true;
            }
        }
        self.runnable = running.iter().map(|batch| batch.id.clone()).collect();
        self.fill(&running, writer).await?;
        Ok(self.resting.values().chain(self.dry.values()).copied().fold(next, Instant::min))
    }

    /// How long a batch may still run. Its window is over when the wall clock says so and as much time has gone by since the batch was first
    /// seen here: a clock that is set forward by a day ends no batch.
    fn window_left(&mut self, batch: &Batch) -> Duration {
        let clock = &self.settings.clock;
        let (by_wall, elapsed) = (batch.expires_at * 1000 - clock.millis(), clock.elapsed_millis());
        let new = || Window { expires_at: batch.expires_at, end: elapsed + by_wall, told: false };
        let window = self.windows.entry(batch.id.clone()).or_insert_with(new);
        if window.expires_at != batch.expires_at {
            *window = new();
        }
        let left = by_wall.max(window.end - elapsed);
        if by_wall <= 0 && left > 0 && !std::mem::replace(&mut window.told, true) {
            tracing::warn!(batch.id = %batch.id, left_s = left / 1000, "the clock was set forward: a batch keeps its window");
        }
        Duration::from_millis(u64::try_from(left).unwrap_or(0))
    }

    /// Starts what a batch that runs no lines needs next, unless that is under way.
    fn begin_job(&mut self, batch: Batch, status: BatchStatus, writer: &Writer) {
        self.abort_lines(&batch.id);
        if status.has_ended() {
            self.signals.meter.forget_batch(&batch.id);
            self.windows.remove(&batch.id);
        }
        if self.busy.values().any(|id| *id == batch.id) || is_later(&mut self.resting, &batch.id) {
            return;
        }
        let id = batch.id.clone();
        let (store, settings, executor) = (self.store.clone(), Arc::clone(&self.settings), Arc::clone(&self.executor));
        let writer = writer.clone();
        let damaged = self.damaged.remove(&id);
        let job = self.jobs.spawn(async move {
            let result = match status {
                _ if damaged => Err(StoreError::Corrupt("a line is not what it was".to_owned())),
                BatchStatus::Validating => validate(&*executor, &store, &settings, &batch).await,
                BatchStatus::Cancelling => settle(&store, &writer, &batch).await,
                BatchStatus::Finalizing => publish(&store, &settings, &batch).await,
                BatchStatus::InProgress => Ok(()),
                BatchStatus::Failed | BatchStatus::Completed | BatchStatus::Expired | BatchStatus::Cancelled => {
                    purge(&store, &batch).await
                }
            };
            match result {
                Err(StoreError::Corrupt(reason)) if !status.has_ended() => {
                    tracing::error!(batch.id = %batch.id, reason, "the stored input of a batch is damaged");
                    fail(&store, &settings, &batch, &[damaged_input()]).await
                }
                result => result,
            }
        });
        self.busy.insert(job.id(), id);
    }

    /// Claims lines until the window is full: suspects first and alone, then every batch its share, and others what it leaves.
    async fn fill(&mut self, running: &[Batch], writer: &Writer) -> Result<(), StoreError> {
        if self.suspects && self.run_suspect(running, writer).await? {
            return Ok(());
        }
        if !self.has_room() {
            return Ok(());
        }
        let mut waiting: Vec<&Batch> = running.iter().filter(|batch| !is_later(&mut self.dry, &batch.id)).collect();
        // Again while what was claimed only follows others, or one has left of its share to the others.
        while !waiting.is_empty() && self.free() > 0 {
            let working = || self.in_flight.values().filter(|line| !line.follows);
            let claimants: Vec<_> = waiting
                .iter()
                .map(|batch| Claimant {
                    tenant: &batch.tenant,
                    batch_id: &batch.id,
                    priority: batch.priority,
                    held: working().filter(|line| line.batch_id == batch.id).count(),
                    held_by_tenant: working().filter(|line| line.tenant == batch.tenant).count(),
                })
                .collect();
            let free = self.free();
            let shares = self.shares.deal(&claimants, free);
            let mut left = Vec::with_capacity(waiting.len());
            for (batch, share) in std::iter::zip(waiting, shares) {
                if share == 0 || self.claim(batch, share, writer).await? {
                    left.push(batch);
                }
            }
            waiting = left;
        }
        Ok(())
    }

    /// False if there are fewer lines to claim than wanted.
    async fn claim(&mut self, batch: &Batch, wanted: usize, writer: &Writer) -> Result<bool, StoreError> {
        let Some(source) = self.source(batch).await? else { return Ok(false) };
        let now_ms = self.settings.clock.millis();
        let few = TAIL_WINDOWS * self.settings.window;
        let is_tail = usize::try_from(batch.open_lines).is_ok_and(|open| open <= few);
        let order = if is_tail { ClaimOrder::LongestFirst } else { ClaimOrder::Prefix };
        let lines = self.store.claim(&batch.id, order, wanted, now_ms).await?;
        let enough = lines.len() == wanted;
        if !enough {
            let due = self.store.next_due(&batch.id).await?;
            let wait = due.map_or(POLL, |due| Duration::from_millis(u64::try_from(due - now_ms).unwrap_or(0)));
            self.dry.insert(batch.id.clone(), Instant::now() + wait.min(POLL));
        }
        for line in lines {
            self.begin_line(batch, line, source.clone(), writer);
        }
        Ok(enough)
    }

    /// True while a suspect runs or waits for its turn: nothing else may start then.
    async fn run_suspect(&mut self, running: &[Batch], writer: &Writer) -> Result<bool, StoreError> {
        for batch in running {
            if !self.store.has_suspects(&batch.id).await? {
                continue;
            }
            if self.in_flight.is_empty()
                && let Some(source) = self.source(batch).await?
            {
                // A line whose answer is not yet written would be held for an accomplice of the next.
                writer.flush().await;
                match self.store.claim_suspect(&batch.id, self.settings.clock.millis()).await? {
                    Some(line) => self.begin_line(batch, line, source, writer),
                    None => drop(self.dry.insert(batch.id.clone(), Instant::now() + SUSPECT_POLL)),
                }
            }
            return Ok(true);
        }
        // The last one may still be in flight, and may come back.
        self.suspects = !self.in_flight.is_empty();
        Ok(self.suspects)
    }

    /// The input of a batch; `None` if it is gone, which ends the batch.
    async fn source(&mut self, batch: &Batch) -> Result<Option<Source>, StoreError> {
        if let Some(source) = self.sources.get(&batch.id) {
            return Ok(Some(source.clone()));
        }
        match Source::open(&self.store, batch).await {
            Ok(source) => Ok(Some(self.sources.entry(batch.id.clone()).or_insert(source).clone())),
            Err(StoreError::Corrupt(reason)) => {
                tracing::error!(batch.id = %batch.id, reason, "the input of a batch is gone");
                self.damaged.insert(batch.id.clone());
                self.signals.wake.notify_one();
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn begin_line(&mut self, batch: &Batch, line: Claimed, source: Source, writer: &Writer) {
        let (shared, follows) = match &line.twin {
            Some(twin) => {
                let (answer, asked) = self.twins.answer(&batch.id, twin);
                (Some(answer), asked)
            }
            None => (None, false),
        };
        let execution = Execution { batch_id: batch.id.clone(), line, source, shared };
        let (store, settings, executor) = (self.store.clone(), Arc::clone(&self.settings), Arc::clone(&self.executor));
        let (writer, twins) = (writer.clone(), Arc::clone(&self.twins));
        let running = self.signals.meter.begin(&batch.id, &execution.line.model);
        let handle = self.lines.spawn(async move {
            let Ran { done, repeated } = match line::run(&*executor, &store, &settings, &execution).await {
                Ok(ran) => ran,
                Err(error @ StoreError::Corrupt(_)) => return Err(error),
                Err(error) => {
                    tracing::error!(batch.id = %execution.batch_id, error = ?error, "a line was not run; trying again");
                    Ran { done: execution.reopen(&settings), repeated: false }
                }
            };
            // An answer that is too large to wait in memory is not kept there for others either.
            if let (Some(twin), LineEnd::Record { spill_key: Some(_), .. }) = (&execution.line.twin, &done.end) {
                twins.forget_one(&execution.batch_id, twin);
            }
            // What is measured is how fast answers are computed.
            if let Done { end: LineEnd::Record { tokens, .. }, .. } = &done
                && !repeated
            {
                running.answered(*tokens);
            }
            drop(running);
            writer.send(done).await;
            Ok(())
        });
        self.in_flight.insert(
            handle.id(),
            InFlight { batch_id: batch.id.clone(), tenant: batch.tenant.clone(), task: handle, follows },
        );
    }

    fn line_ended(&mut self, ended: Result<(Id, Result<(), StoreError>), JoinError>) {
        let (id, result) = match ended {
            Ok((id, result)) => (id, result),
            Err(error) => (error.id(), Ok(())),
        };
        let Some(InFlight { batch_id, .. }) = self.in_flight.remove(&id) else { return };
        match result {
            Ok(()) => {}
            Err(StoreError::Corrupt(reason)) => {
                tracing::error!(batch.id = %batch_id, reason, "a line could not be read");
                self.damaged.insert(batch_id);
            }
            Err(error) => tracing::error!(batch.id = %batch_id, error = ?error, "a line was not run"),
        }
    }

    fn job_ended(&mut self, ended: Result<(Id, Result<(), StoreError>), JoinError>) {
        let (id, result) = match ended {
            Ok((id, result)) => (id, result),
            Err(error) => (error.id(), Err(std::io::Error::other(error).into())),
        };
        let Some(batch_id) = self.busy.remove(&id) else { return };
        self.signals.feed.announce_status(&batch_id);
        if let Err(error) = result {
            tracing::error!(batch.id = %batch_id, error = ?error, "work on a batch failed; trying again");
            self.resting.insert(batch_id, Instant::now() + JOB_RETRY);
        }
    }

    /// Drops the futures of a batch's lines, which cancels them in the engine.
    fn abort_lines(&mut self, batch_id: &str) {
        self.sources.remove(batch_id);
        self.twins.forget(batch_id);
        self.in_flight.values().filter(|line| line.batch_id == batch_id).for_each(|line| line.task.abort());
    }

    async fn stop(mut self, writer: Writer, writing: tokio::task::JoinHandle<()>) {
        self.jobs.shutdown().await;
        let grace = tokio::time::sleep(self.settings.stop_grace);
        tokio::pin!(grace);
        while !self.lines.is_empty() {
            tokio::select! {
                Some(ended) = self.lines.join_next_with_id() => self.line_ended(ended),
                () = &mut grace => break,
            }
        }
        let aborted = self.lines.len();
        self.lines.shutdown().await;
        drop(writer);
        let mut writing = writing;
        if tokio::time::timeout(self.settings.stop_grace.max(Duration::from_secs(1)), &mut writing).await.is_err() {
            writing.abort();
        }
        match self.store.release_leases(None).await {
            Ok(released) => tracing::info!(aborted, released, "stopped the batches"),
            Err(error) => tracing::error!(error = ?error, "could not release the lines in flight"),
        }
    }
}

/// Whether the time noted for a batch is still to come; one that has come is forgotten.
fn is_later(times: &mut HashMap<String, Instant>, batch_id: &str) -> bool {
    let later = times.get(batch_id).is_some_and(|until| *until > Instant::now());
    if !later {
        times.remove(batch_id);
    }
    later
}

/// Brings the lines of a stopped batch to rest: what ended is written, what was aborted is open, and nothing runs.
async fn settle(store: &Store, writer: &Writer, batch: &Batch) -> Result<(), StoreError> {
    writer.flush().await;
    store.release_leases(Some(&batch.id)).await?;
    store.finalize_stopped(&batch.id).await
}
