use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// When the step that is being carried out began, for others to see.
#[derive(Debug)]
pub(crate) struct Pulse {
    epoch: Instant,
    /// Nanoseconds from the epoch to the step's beginning, and one; 0 between steps.
    began: AtomicU64,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { epoch: Instant::now(), began: AtomicU64::new(0) }
    }
}

impl Pulse {
    pub(crate) fn begin(&self) {
        self.began.store(self.now() + 1, Ordering::Relaxed);
    }

    pub(crate) fn rest(&self) {
        self.began.store(0, Ordering::Relaxed);
    }

    pub(crate) fn busy_for(&self) -> Option<Duration> {
        let began = self.began.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Duration::from_nanos(self.now().saturating_sub(began)))
    }

    /// Nanoseconds since the epoch: enough for five centuries.
    fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }
}
