use std::{ops::Deref, sync::Arc};

use tandem_engine::{EmbedderInfo, Engine, ModelInfo, ModelKind};
use thiserror::Error;

/// A right to use a loaded model; while one is held, the model is not unloaded.
#[derive(Clone, Debug)]
pub struct Lease {
    name: Arc<str>,
    engine: Arc<Engine>,
}

/// A lease on a model that continues prompts.
#[derive(Clone, Debug)]
pub struct Generator {
    lease: Lease,
    info: Arc<ModelInfo>,
}

/// A lease on a model that turns texts into vectors.
#[derive(Clone, Debug)]
pub struct Embedder {
    lease: Lease,
    info: Arc<EmbedderInfo>,
}

/// A lease on a model that tells how well documents answer a query.
#[derive(Clone, Debug)]
pub struct Reranker {
    lease: Lease,
    info: Arc<EmbedderInfo>,
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

    /// The model as one that continues prompts, if it does.
    #[must_use]
    pub fn generator(self) -> Option<Generator> {
        match self.kind() {
            ModelKind::Generator(info) => Some(Generator { info: Arc::clone(info), lease: self }),
            ModelKind::Embedder(_) => None,
        }
    }

    /// The model as one that turns texts into vectors, if it does.
    #[must_use]
    pub fn embedder(self) -> Option<Embedder> {
        match self.kind() {
            ModelKind::Embedder(info) if !info.spec.ranks() => Some(Embedder { info: Arc::clone(info), lease: self }),
            ModelKind::Embedder(_) | ModelKind::Generator(_) => None,
        }
    }

    /// The model as one that ranks documents, if it does.
    #[must_use]
    pub fn reranker(self) -> Option<Reranker> {
        match self.kind() {
            ModelKind::Embedder(info) if info.spec.ranks() => Some(Reranker { info: Arc::clone(info), lease: self }),
            ModelKind::Embedder(_) | ModelKind::Generator(_) => None,
        }
    }
}

impl Generator {
    /// What is known of the model.
    #[must_use]
    pub fn info(&self) -> &Arc<ModelInfo> {
        &self.info
    }
}

impl Embedder {
    /// What is known of the model.
    #[must_use]
    pub fn info(&self) -> &Arc<EmbedderInfo> {
        &self.info
    }
}

impl Reranker {
    /// What is known of the model.
    #[must_use]
    pub fn info(&self) -> &Arc<EmbedderInfo> {
        &self.info
    }
}

impl Deref for Generator {
    type Target = Lease;

    fn deref(&self) -> &Lease {
        &self.lease
    }
}

impl Deref for Embedder {
    type Target = Lease;

    fn deref(&self) -> &Lease {
        &self.lease
    }
}

impl Deref for Reranker {
    type Target = Lease;

    fn deref(&self) -> &Lease {
        &self.lease
    }
}

impl Deref for Lease {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
}
