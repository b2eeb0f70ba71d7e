//! Wall time as the wire and the database write it.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Where the time comes from: the system, or a test.
#[derive(Clone)]
pub struct Clock {
    millis: Arc<dyn Fn() -> i64 + Send + Sync>,
}

impl Clock {
    pub fn system() -> Self {
        Self::from_fn(unix_millis)
    }

    /// A clock that asks `millis` for Unix milliseconds.
    pub fn from_fn(millis: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self { millis: Arc::new(millis) }
    }

    /// Unix seconds.
    pub fn seconds(&self) -> i64 {
        self.millis() / 1000
    }

    /// Unix milliseconds.
    pub fn millis(&self) -> i64 {
        (self.millis)()
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
