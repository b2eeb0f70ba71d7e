use std::{
    fmt,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use tandem_core::{BackendLoader, LoadError};
use tandem_engine::{Engine, EngineLimits};
use tokio::sync::watch;

/// Between an engine's end and the next attempt to load its model; doubled with each failure.
const FIRST_BACK_OFF: Duration = Duration::from_secs(1);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(60);

/// Makes a loader for each attempt.
pub(super) type MakeLoader = Box<dyn Fn() -> Result<Box<dyn BackendLoader>, LoadError> + Send + Sync>;

/// One model, kept loaded: when its engine ends, it is loaded again.
pub(super) struct Resident {
    name: Arc<str>,
    created: i64,
    state: watch::Sender<State>,
}

#[derive(Clone, Debug)]
enum State {
    /// For the first time, or again.
    Loading,
    Loaded(Arc<Engine>),
    Failed(Arc<LoadError>),
}

impl fmt::Debug for Resident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resident").field("name", &self.name).field("state", &*self.state.borrow()).finish()
    }
}

impl Resident {
    /// Begins to load the model. Loading stops and the model is unloaded when the last handle is dropped.
    pub(super) fn start(name: Arc<str>, created: i64, limits: EngineLimits, make: MakeLoader) -> Arc<Self> {
        let (state, _) = watch::channel(State::Loading);
        let resident = Arc::new(Self { name, created, state });
        tokio::spawn(keep_loaded(Arc::downgrade(&resident), limits, make));
        resident
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn name_arc(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    pub(super) fn created(&self) -> i64 {
        self.created
    }

    /// The engine, while it works.
    pub(super) fn engine(&self) -> Option<Arc<Engine>> {
        match &*self.state.borrow() {
            State::Loaded(engine) if engine.is_alive() => Some(Arc::clone(engine)),
            State::Loaded(_) | State::Loading | State::Failed(_) => None,
        }
    }

    /// Waits until the engine works.
    pub(super) async fn usable(&self) {
        let works = |state: &State| matches!(state, State::Loaded(engine) if engine.is_alive());
        // The sender is this very resident's: the channel does not close while it waits.
        let _ = self.state.subscribe().wait_for(works).await;
    }

    /// Waits until the model is loaded, or has failed to be.
    pub(super) async fn first_load(&self) -> Result<(), Arc<LoadError>> {
        let mut states = self.state.subscribe();
        let state = states.wait_for(|state| !matches!(state, State::Loading)).await;
        match state.as_deref() {
            Ok(State::Failed(error)) => Err(Arc::clone(error)),
            _ => Ok(()),
        }
    }
}

async fn keep_loaded(resident: Weak<Resident>, limits: EngineLimits, make: MakeLoader) {
    let mut back_off = FIRST_BACK_OFF;
    loop {
        let started = Instant::now();
        let loaded = match make() {
            Ok(loader) => Engine::load(loader, limits).await,
            Err(error) => Err(error),
        };
        let Some(resident) = resident.upgrade() else { return };
        match loaded {
            Ok(engine) => {
                let engine = Arc::new(engine);
                let spec = &engine.info().spec;
                tracing::info!(
                    model.name = &*resident.name,
                    backend = spec.name,
                    context = spec.max_context,
                    sequences = spec.max_sequences,
                    kv.tokens = spec.kv.capacity(),
                    load.seconds = started.elapsed().as_secs_f64(),
                    "model loaded"
                );
                resident.state.send_replace(State::Loaded(Arc::clone(&engine)));
                drop(resident);
                engine.ended().await;
                // Joining the engine's thread is no work for the runtime's own threads.
                let _ = tokio::task::spawn_blocking(move || drop(engine)).await;
                back_off = if started.elapsed() > LONGEST_BACK_OFF { FIRST_BACK_OFF } else { back_off };
            }
            Err(error) => {
                let error = Arc::new(error);
                let cause = &*error as &(dyn std::error::Error + 'static);
                tracing::error!(model.name = &*resident.name, error = cause, "the model cannot be loaded");
                resident.state.send_replace(State::Failed(error));
            }
        }
        tokio::time::sleep(back_off).await;
        back_off = (back_off * 2).min(LONGEST_BACK_OFF);
    }
}
