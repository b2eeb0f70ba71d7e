use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tandem_engine::Priority;

use crate::openai::AllowedModels;

/// Whom a request is answered for.
#[derive(Clone, Debug)]
pub struct Asker {
    pub priority: Priority,
    /// Askers with different salts share no cached prefixes; 0 for who is alone.
    pub cache_salt: u64,
    /// The models that there are for it.
    pub models: AllowedModels,
    /// Who is told what the request has cost.
    pub meter: Option<Arc<dyn Meter>>,
}

/// Is told of tokens that were computed.
pub trait Meter: Debug + Send + Sync {
    /// Once for a request, when it is over, however it ended.
    fn spend(&self, tokens: u64);
}

impl From<Priority> for Asker {
    fn from(priority: Priority) -> Self {
        Self { priority, cache_salt: 0, models: AllowedModels::default(), meter: None }
    }
}

impl Asker {
    /// The salt of a request that names one of its own.
    pub(super) fn salted(&self, request: u64) -> u64 {
        // Odd, so that no two salts of a request become one.
        request.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(self.cache_salt)
    }
}

/// Tokens of one request, told to the meter when the request is dropped.
#[derive(Debug, Default)]
pub(super) struct Spent {
    tokens: AtomicU64,
    meter: Option<Arc<dyn Meter>>,
}

impl Spent {
    pub(super) fn new(meter: Option<Arc<dyn Meter>>) -> Self {
        Self { tokens: AtomicU64::new(0), meter }
    }

    pub(super) fn add(&self, tokens: u64) {
        self.tokens.fetch_add(tokens, Ordering::Relaxed);
    }
}

impl Drop for Spent {
    fn drop(&mut self) {
        if let Some(meter) = &self.meter {
            meter.spend(*self.tokens.get_mut());
        }
    }
}
