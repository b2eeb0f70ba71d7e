use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// How far the loading of a model has come. Clones are handles to one and the same.
///
/// Counters rather than a callback: a loader counts from several threads and waits for nobody, and whoever shows it looks at its own pace.
#[derive(Clone, Debug, Default)]
pub struct LoadProgress(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    done: AtomicU64,
    /// Zero before it is known.
    total: AtomicU64,
}

/// Bytes of weights in memory, of those that there will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadedBytes {
    /// Never more than `total`.
    pub done: u64,
    pub total: u64,
}

impl LoadProgress {
    /// Begins a load, or begins anew: so many bytes of weights are to come.
    pub fn begin(&self, total: u64) {
        self.0.total.store(0, Ordering::Release);
        self.0.done.store(0, Ordering::Release);
        self.0.total.store(total, Ordering::Release);
    }

    /// So many bytes more are in memory.
    pub fn add(&self, bytes: u64) {
        self.0.done.fetch_add(bytes, Ordering::AcqRel);
    }

    /// So many bytes are in memory.
    pub fn set(&self, done: u64) {
        self.0.done.store(done, Ordering::Release);
    }

    /// All of them are: a file may hold some that are left where they are.
    pub fn complete(&self) {
        self.set(self.0.total.load(Ordering::Acquire));
    }

    /// Where it stands; `None` before it is known how much there is to load.
    #[must_use]
    pub fn bytes(&self) -> Option<LoadedBytes> {
        let total = self.0.total.load(Ordering::Acquire);
        let done = self.0.done.load(Ordering::Acquire).min(total);
        (total > 0).then_some(LoadedBytes { done, total })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_of_what_was_begun() {
        let (progress, seen) = {
            let progress = LoadProgress::default();
            (progress.clone(), progress)
        };
        progress.add(7);
        assert_eq!(seen.bytes(), None);
        progress.begin(10);
        assert_eq!(seen.bytes(), Some(LoadedBytes { done: 0, total: 10 }));
        progress.add(4);
        assert_eq!(seen.bytes(), Some(LoadedBytes { done: 4, total: 10 }));
        progress.add(40);
        assert_eq!(seen.bytes(), Some(LoadedBytes { done: 10, total: 10 }));
        progress.begin(20);
        progress.complete();
        assert_eq!(seen.bytes(), Some(LoadedBytes { done: 20, total: 20 }));
    }
}
