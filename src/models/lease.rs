use std::{ops::Deref, sync::Arc};

use tandem_engine::Engine;
use thiserror::Error;

/// A right to use a loaded model; while one is held, the model is not unloaded.
#[derive(Clone, Debug)]
pub struct Lease {
    name: Arc<str>,
    engine: Arc<Engine>,
}

/// Why there is no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LeaseError {
    /// No model has this name.
    #[error("no such model")]
    Unknown,
    /// The model is being loaded, or failed and will be loaded again.
    #[error("the model is not loaded at the moment")]
    Unavailable,
}

impl Lease {
    pub(super) fn new(name: Arc<str>, engine: Arc<Engine>) -> Self {
        Self { name, engine }
    }

    /// The name that the model is served under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Deref for Lease {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
}
