use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// What submitters and the engine's thread both count: generations or requests for vectors that are taken on, and submitters that left early.
#[derive(Debug, Default)]
pub(crate) struct Places {
    taken: AtomicUsize,
    departures: AtomicUsize,
}

impl Places {
    /// Says that a submitter no longer listens, after its channel was closed.
    pub(crate) fn depart(&self) {
        self.departures.fetch_add(1, Ordering::Release);
    }

    /// Submitters that have left, ever: while this stays the same nobody has to be looked for.
    pub(crate) fn departures(&self) -> usize {
        self.departures.load(Ordering::Acquire)
    }

    #[cfg(test)]
    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::Acquire)
    }
}

/// A place among what an engine has taken on; given back when dropped.
#[derive(Debug)]
pub(crate) struct Ticket(Arc<Places>);

impl Ticket {
    /// Takes a place, if fewer than `limit` are taken.
    pub(crate) fn take(places: &Arc<Places>, limit: usize) -> Option<Self> {
        places
            .taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| (taken < limit).then_some(taken + 1))
            .ok()
            .map(|_| Self(Arc::clone(places)))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::AcqRel);
    }
}
