use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tandem_core::{BackendLoader, LoadError, LoadProgress, LoadedBytes};
use tandem_engine::{End, Engine, EngineLimits, ModelKind};
use tokio::sync::watch;

use super::back_off::{BackOff, CRASH_LOOP, Verdict};

/// How long the engine may take to say what it does: between two steps it answers at once.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Makes a loader for each attempt, which tells how far it has come.
pub(super) type MakeLoader = Box<dyn Fn(&LoadProgress) -> Result<Box<dyn BackendLoader>, LoadError> + Send + Sync>;

/// One model, kept loaded: when its engine ends, it is loaded again.
pub(super) struct Resident {
    name: Arc<str>,
    created: i64,
    state: watch::Sender<State>,
    /// Of the present attempt to load it, or the last.
    progress: LoadProgress,
    /// A step does not return. Once true, always true.
    hangs: AtomicBool,
    /// The device is lost to this process. Once true, always true.
    device_lost: AtomicBool,
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
        let progress = LoadProgress::default();
        let [hangs, device_lost] = [false, false].map(AtomicBool::new);
        let resident = Arc::new(Self { name, created, state, progress: progress.clone(), hangs, device_lost });
        tokio::spawn(keep_loaded(Arc::downgrade(&resident), limits, make, progress));
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

    /// How far its loading has come; `None` where that is not known.
    pub(super) fn progress(&self) -> Option<LoadedBytes> {
        self.progress.bytes()
    }

    /// The engine, while it works.
    pub(super) fn engine(&self) -> Option<Arc<Engine>> {
        match &*self.state.borrow() {
            State::Loaded(engine) if engine.is_alive() && !self.hangs() => Some(Arc::clone(engine)),
            State::Loaded(_) | State::Loading | State::Failed(_) => None,
        }
    }

    /// How long the engine has been in its present step, if it is in one. Loading is none.
    pub(super) fn busy_for(&self) -> Option<Duration> {
        match &*self.state.borrow() {
            State::Loaded(engine) => engine.busy_for(),
            State::Loading | State::Failed(_) => None,
        }
    }

    pub(super) fn hangs(&self) -> bool {
        self.hangs.load(Ordering::Relaxed)
    }

    pub(super) fn device_lost(&self) -> bool {
        self.device_lost.load(Ordering::Relaxed)
    }

    /// Nobody is given the engine any more.
    pub(super) fn give_up(&self) {
        self.hangs.store(true, Ordering::Relaxed);
    }

    /// What the engine does, as text for people.
    pub(super) async fn describe(&self) -> String {
        let state = self.state.borrow().clone();
        match state {
            State::Loading => "being loaded\n".to_owned(),
            // The reason may hold paths of this machine; it is in the log.
            State::Failed(_) => "cannot be loaded; will be tried again\n".to_owned(),
            State::Loaded(engine) => match tokio::time::timeout(DESCRIBE_TIMEOUT, engine.describe()).await {
                Ok(Some(text)) => text,
                Ok(None) => "ended; will be loaded again\n".to_owned(),
                Err(_) => match engine.busy_for() {
                    Some(busy) => format!("in a step for {:.1} s\n", busy.as_secs_f64()),
                    None => "too busy to say\n".to_owned(),
                },
            },
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

fn tell_loaded(name: &str, kind: &ModelKind, took: Duration) {
    match kind {
        ModelKind::Generator(info) => tracing::info!(
            model.name = name,
            backend = info.spec.name,
            context = info.spec.max_context,
            sequences = info.spec.max_sequences,
            kv.tokens = info.spec.kv.capacity(),
            load.seconds = took.as_secs_f64(),
            "model loaded"
        ),
        ModelKind::Embedder(info) => tracing::info!(
            model.name = name,
            backend = info.spec.name,
            dimensions = info.spec.dimensions,
            pooling = %info.spec.pooling,
            input.tokens = info.spec.max_input_tokens,
            pass.tokens = info.spec.max_pass_tokens,
            load.seconds = took.as_secs_f64(),
            "embedding model loaded"
        ),
    }
}

/// Until the last handle is dropped, or the device is lost: then whoever watches the models ends the process.
async fn keep_loaded(resident: Weak<Resident>, limits: EngineLimits, make: MakeLoader, progress: LoadProgress) {
    let mut back_off = BackOff::default();
    loop {
        let started = Instant::now();
        let loaded = match make(&progress) {
            Ok(loader) => Engine::load(loader, limits).await,
            Err(error) => Err(error),
        };
        let Some(there) = resident.upgrade() else { return };
        let name = there.name_arc();
        let verdict = match loaded {
            Ok(engine) => {
                let engine = Arc::new(engine);
                let loaded = Instant::now();
                tell_loaded(&name, engine.kind(), loaded.duration_since(started));
                there.state.send_replace(State::Loaded(Arc::clone(&engine)));
                drop(there);
                if engine.ended().await == End::DeviceLost {
                    if let Some(there) = resident.upgrade() {
                        there.device_lost.store(true, Ordering::Relaxed);
                    }
                    return;
                }
                let verdict = back_off.ended(loaded, Instant::now());
                // Joining the engine's thread is no work for the runtime's own threads.
                let _ = tokio::task::spawn_blocking(move || drop(engine)).await;
                verdict
            }
            Err(error) => {
                let error = Arc::new(error);
                let cause = &*error as &(dyn std::error::Error + 'static);
                tracing::error!(model.name = &*name, error = cause, "the model cannot be loaded");
                let device_lost = matches!(*error, LoadError::DeviceLost(_));
                there.state.send_replace(State::Failed(error));
                if device_lost {
                    there.device_lost.store(true, Ordering::Relaxed);
                    return;
                }
                drop(there);
                back_off.failed()
            }
        };
        let Verdict { wait, crash_loop } = verdict;
        if crash_loop {
            tracing::error!(
                model.name = &*name,
                next_attempt.seconds = wait.as_secs_f64(),
                "crash loop: the engine ended {} times within {} s",
                CRASH_LOOP.0,
                CRASH_LOOP.1.as_secs()
            );
        } else {
            tracing::warn!(
                model.name = &*name,
                next_attempt.seconds = wait.as_secs_f64(),
                "the model will be loaded again"
            );
        }
        tokio::time::sleep(wait).await;
    }
}
