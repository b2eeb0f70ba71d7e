//! Wall time as the wire and the database write it, and a clock that nobody sets beside it.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// Where the time comes from: the system, or a test.
#[derive(Clone)]
pub struct Clock {
    millis: Source,
    elapsed: Source,
    /// What both of them said at first.
    first: [i64; 2],
}

type Source = Arc<dyn Fn() -> i64 + Send + Sync>;

impl Clock {
    pub fn system() -> Self {
        Self::from_fns(unix_millis, elapsed_millis)
    }

    /// A clock that asks `millis` for Unix milliseconds, and is never set.
    pub fn from_fn(millis: impl Fn() -> i64 + Clone + Send + Sync + 'static) -> Self {
        Self::from_fns(millis.clone(), millis)
    }

    /// The same, with a source of its own for the time that goes by.
    pub fn from_fns(
        millis: impl Fn() -> i64 + Send + Sync + 'static,
        elapsed: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> Self {
        let first = [millis(), elapsed()];
        Self { millis: Arc::new(millis), elapsed: Arc::new(elapsed), first }
    }

    /// Unix seconds.
    pub fn seconds(&self) -> i64 {
        self.millis() / 1000
    }

    /// Unix milliseconds.
    pub fn millis(&self) -> i64 {
        (self.millis)()
    }

    /// Milliseconds since some moment, those included in which the machine slept. Nobody sets this clock.
    pub fn elapsed_millis(&self) -> i64 {
        (self.elapsed)()
    }

    /// Unix seconds that it is at least, also when somebody has set the wall clock forward by mistake: for what cannot be undone.
    pub fn seconds_at_least(&self) -> i64 {
        let [millis, elapsed] = self.first;
        self.millis().min(millis + self.elapsed_millis() - elapsed) / 1000
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").finish_non_exhaustive()
    }
}

/// A clock before 1970 reads as 0.
fn unix_millis() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn elapsed_millis() -> i64 {
    // Elsewhere the monotonic clock goes on while the machine sleeps, or there is no other.
    #[cfg(target_os = "linux")]
    const ID: ClockId = ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    const ID: ClockId = ClockId::Monotonic;
    let time = clock_gettime(ID);
    time.tv_sec * 1000 + time.tv_nsec / 1_000_000
}
