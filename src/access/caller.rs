use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::bucket::{Bucket, Level};
use super::scope::{Scope, Scopes};
use crate::openai::AllowedModels;
use crate::openai::error::ApiError;
use crate::store::{ApiKey, Tenant};

/// Who a request comes from, as far as the server knows.
#[derive(Clone, Debug)]
pub struct Caller {
    pub(super) tenant: Tenant,
    pub(super) scopes: Scopes,
    pub(super) models: AllowedModels,
    /// `None` without a key: nothing is limited then.
    pub(super) meters: Option<Arc<Meters>>,
}

/// What a key has used of what it may use. Shared by its requests.
#[derive(Debug)]
pub(super) struct Meters {
    requests: Option<Mutex<Bucket>>,
    tokens: Option<Mutex<Bucket>>,
    max_concurrent: Option<u32>,
    running: AtomicU32,
    /// The minute, since 1970, that the key's use was last noted in.
    pub(super) noted: AtomicI64,
}

/// A request that counts as running until this is dropped.
#[derive(Debug)]
pub struct Running(Option<Arc<Meters>>);

/// A minute's allowance, as clients are told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// `requests` or `tokens`.
    pub of: &'static str,
    pub limit: u64,
    pub remaining: u64,
    /// Until the whole allowance is there again.
    pub reset: Duration,
}

impl Caller {
    /// Whoever asks a server that wants no keys.
    pub(super) fn anyone() -> Self {
        Self { tenant: Tenant::default(), scopes: Scopes::all(), models: AllowedModels::default(), meters: None }
    }

    #[must_use]
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// The models that there are for it.
    #[must_use]
    pub fn models(&self) -> &AllowedModels {
        &self.models
    }

    #[must_use]
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.contain(scope)
    }

    /// Begins a request, which takes one of the minute's, and holds a place among those that run.
    ///
    /// # Errors
    /// 429 when there is none left. `computes` is whether the request would cost tokens.
    pub fn begin(&self, computes: bool) -> Result<Running, ApiError> {
        let Some(meters) = &self.meters else { return Ok(Running(None)) };
        let now = Instant::now();
        let running = meters.enter()?;
        if let Some(tokens) = meters.tokens.as_ref().filter(|_| computes) {
            let mut tokens = lock(tokens);
            let limit = tokens.level(now).limit;
            tokens.check(now).map_err(|wait| ApiError::rate_limited("tokens", limit, wait))?;
        }
        if let Some(requests) = &meters.requests {
            let mut requests = lock(requests);
            let limit = requests.level(now).limit;
            requests.check(now).map_err(|wait| ApiError::rate_limited("requests", limit, wait))?;
            requests.charge(1, now);
        }
        Ok(running)
    }

    /// Whether what it uses is counted.
    #[must_use]
    pub fn is_metered(&self) -> bool {
        self.meters.is_some()
    }

    /// Counts tokens that a request has cost.
    pub fn charge(&self, tokens: u64) {
        if let Some(bucket) = self.meters.as_ref().and_then(|meters| meters.tokens.as_ref()) {
            lock(bucket).charge(tokens, Instant::now());
        }
    }

    /// What is left of the minute.
    #[must_use]
    pub fn rate_limits(&self) -> Vec<RateLimit> {
        let Some(meters) = &self.meters else { return Vec::new() };
        let now = Instant::now();
        let shown = |of, bucket: &Option<Mutex<Bucket>>| {
            let Level { limit, remaining, reset } = lock(bucket.as_ref()?).level(now);
            Some(RateLimit { of, limit, remaining, reset })
        };
        [shown("requests", &meters.requests), shown("tokens", &meters.tokens)].into_iter().flatten().collect()
    }
}

impl Meters {
    pub(super) fn new(key: &ApiKey) -> Self {
        let now = Instant::now();
        // The column is never negative, and a limit beyond 32 bits limits nothing.
        let limit = |column: Option<i64>| column.and_then(|limit| u32::try_from(limit).ok());
        let bucket = |column| limit(column).map(|limit| Mutex::new(Bucket::new(limit, now)));
        Self {
            requests: bucket(key.max_requests_per_minute),
            tokens: bucket(key.max_tokens_per_minute),
            max_concurrent: limit(key.max_concurrent),
            running: AtomicU32::new(0),
            noted: AtomicI64::new(key.last_used_at.unwrap_or(0) / 60),
        }
    }

    fn enter(self: &Arc<Self>) -> Result<Running, ApiError> {
        let max = self.max_concurrent.unwrap_or(u32::MAX);
        let entered = self.running.fetch_update(Ordering::AcqRel, Ordering::Acquire, |running| {
            running.checked_add(1).filter(|running| *running <= max)
        });
        match entered {
            Ok(_) => Ok(Running(Some(Arc::clone(self)))),
            Err(_) => Err(ApiError::too_many_concurrent(max)),
        }
    }
}

impl Running {
    /// Whether anything depends on when it ends.
    #[must_use]
    pub fn counts(&self) -> bool {
        self.0.as_ref().is_some_and(|meters| meters.max_concurrent.is_some())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(meters) = &self.0 {
            meters.running.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

fn lock(bucket: &Mutex<Bucket>) -> std::sync::MutexGuard<'_, Bucket> {
    bucket.lock().unwrap_or_else(PoisonError::into_inner)
}
