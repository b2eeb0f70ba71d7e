use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError, TryRecvError},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tandem_core::{BackendLoader, BackendSpec, InferenceBackend, LoadError, Loaded, Tokenizer, Vocab};
use tokio::sync::{oneshot, watch};

use crate::{
    EngineError, GenerateRequest, Generation, Grammars, Stats, SubmitError,
    grammar::GrammarState,
    places::{Places, Ticket},
    pulse::Pulse,
    scheduler::{Options, Outcome, Scheduler},
    sequence::Submission,
};

/// Events of one generation that may wait for their reader: several seconds of text at the speed of a large model.
const UNREAD: usize = 256;
/// While all sequences pause, their readers are looked at this often.
const PAUSE: Duration = Duration::from_millis(5);

/// A loaded model, usable from any task. Dropping it unloads the model and waits until that is done.
pub struct Engine {
    // Before the thread, so that dropping it tells the thread to end.
    commands: Option<mpsc::Sender<Command>>,
    info: Arc<ModelInfo>,
    stats: watch::Receiver<Stats>,
    /// Closed when the engine's thread ends.
    life: watch::Receiver<()>,
    pulse: Arc<Pulse>,
    places: Arc<Places>,
    limits: EngineLimits,
    thread: Option<JoinHandle<()>>,
}

/// What the engine's thread is asked to do. As many submissions as there are tickets can be under way, whatever the channel would hold.
enum Command {
    Submit(Box<Submission>),
    Describe(oneshot::Sender<String>),
}

/// What the engine allows beyond what the model can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineLimits {
    /// Generations that may wait beside those that run.
    pub queue: usize,
    /// Whether KV outlives its sequence, to serve prompts that begin alike.
    pub prefix_cache: bool,
    /// A generation whose reader is far behind pauses; after this long it is given up.
    pub stall_timeout: Duration,
}

impl Default for EngineLimits {
    fn default() -> Self {
        Self { queue: 512, prefix_cache: true, stall_timeout: Duration::from_secs(60) }
    }
}

/// What is known of a loaded model.
pub struct ModelInfo {
    /// What the model can do.
    pub spec: BackendSpec,
    /// Token ids to bytes.
    pub vocab: Arc<Vocab>,
    /// Text to token ids.
    pub tokenizer: Arc<dyn Tokenizer>,
    /// The model's chat template (Jinja), if it ships one.
    pub chat_template: Option<String>,
    /// Compiles what outputs of this model must look like.
    pub grammars: Arc<Grammars>,
}

impl fmt::Debug for ModelInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelInfo").field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("info", &self.info).field("alive", &self.is_alive()).finish_non_exhaustive()
    }
}

impl Engine {
    /// Loads a model on a thread of its own.
    ///
    /// # Errors
    /// When the model cannot be loaded.
    pub async fn load(loader: Box<dyn BackendLoader>, limits: EngineLimits) -> Result<Self, LoadError> {
        let (commands, received) = mpsc::channel();
        let (ready, loaded) = oneshot::channel();
        let (publish, stats) = watch::channel(Stats::default());
        let (alive, life) = watch::channel(());
        let (places, pulse) = (Arc::<Places>::default(), Arc::<Pulse>::default());
        let options = Options {
            prefix_cache: limits.prefix_cache,
            // Clients cannot know it, so they cannot make prompts whose hashes collide.
            hash_seed: RandomState::new().hash_one(0),
            stall_timeout: limits.stall_timeout,
            places: Arc::clone(&places),
        };
        let room = Room { options, received, publish, pulse: Arc::clone(&pulse) };
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || room.load_and_serve(loader, ready, alive))
            .map_err(|error| LoadError::Other { context: "cannot start a thread".to_owned(), source: error.into() })?;
        let info = loaded.await.unwrap_or_else(|_| {
            Err(LoadError::Other {
                context: "the backend panicked while it loaded the model".to_owned(),
                source: "panic".into(),
            })
        })?;
        Ok(Self {
            commands: Some(commands),
            info: Arc::new(info),
            stats,
            life,
            pulse,
            places,
            limits,
            thread: Some(thread),
        })
    }

    /// Starts a generation.
    ///
    /// # Errors
    /// When the request could never run, the queue is full, or the engine has ended.
    pub fn submit(&self, mut request: GenerateRequest) -> Result<Generation, SubmitError> {
        // Its thread may still be about to close the channel.
        if !self.is_alive() {
            return Err(SubmitError::Gone);
        }
        let spec = &self.info.spec;
        debug_assert!(!request.prompt.is_empty(), "an empty prompt is refused where requests are parsed");
        if let Some(adapter) = request.adapter.filter(|adapter| adapter.index() >= spec.adapters.len()) {
            return Err(SubmitError::NoSuchAdapter { adapter, adapters: spec.adapters.len() });
        }
        let needed = (request.prompt.len() as u64) + u64::from(request.stop.max_tokens);
        let available = spec.kv.capacity().min(u64::from(spec.max_context));
        // The last token of a sequence is never computed, so a context's worth of tokens is the most that anyone needs.
        if request.prompt.len() as u64 >= available || needed.min(u64::from(spec.max_context)) > spec.kv.capacity() {
            return Err(SubmitError::TooLarge { needed, available });
        }
        let limit = self.limits.queue + spec.max_sequences as usize;
        let ticket = Ticket::take(&self.places, limit).ok_or(SubmitError::Overloaded)?;
        let (events, generation) = Generation::channel(&self.places, UNREAD);
        // Copied here rather than on the engine's thread: a large grammar takes a while.
        let grammar = request.grammar.take().map(|grammar| GrammarState::new(&grammar));
        let submission = Submission { request, grammar, events, submitted: Instant::now(), ticket };
        self.send(Command::Submit(Box::new(submission))).ok_or(SubmitError::Gone)?;
        Ok(generation)
    }

    /// What is known of the model.
    #[must_use]
    pub fn info(&self) -> &Arc<ModelInfo> {
        &self.info
    }

    /// Counters, as of the last step.
    #[must_use]
    pub fn stats(&self) -> Stats {
        *self.stats.borrow()
    }

    /// How long the step that is being carried out has been so; `None` between steps. One that takes very long hangs.
    #[must_use]
    pub fn busy_for(&self) -> Option<Duration> {
        self.pulse.busy_for()
    }

    /// What runs and what waits, as text for people: counts and places, nothing of prompts or outputs. `None` when the engine has ended.
    pub async fn describe(&self) -> Option<String> {
        let (answer, text) = oneshot::channel();
        self.send(Command::Describe(answer))?;
        text.await.ok()
    }

    /// Whether requests are still served. Once false, always false.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.life.has_changed().is_ok()
    }

    /// Waits until the engine has ended by itself, as it does when its device fails.
    pub async fn ended(&self) {
        let mut life = self.life.clone();
        // Nothing is ever sent: it ends by being closed.
        while life.changed().await.is_ok() {}
    }

    fn send(&self, command: Command) -> Option<()> {
        self.commands.as_ref()?.send(command).ok()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // The thread catches panics itself; there is nothing to learn from its result.
            let _ = thread.join();
        }
    }
}

/// What the engine's thread works with.
struct Room {
    options: Options,
    received: mpsc::Receiver<Command>,
    publish: watch::Sender<Stats>,
    pulse: Arc<Pulse>,
}

impl Room {
    /// The engine's thread: loads, serves, unloads. `alive` is closed when it serves no more.
    fn load_and_serve(
        self,
        loader: Box<dyn BackendLoader>,
        ready: oneshot::Sender<Result<ModelInfo, LoadError>>,
        alive: watch::Sender<()>,
    ) {
        let (mut ready, mut alive) = (Some(ready), Some(alive));
        let loaded = catch_unwind(AssertUnwindSafe(|| {
            loader.with_backend(&mut |loaded| {
                let (Some(ready), Some(alive)) = (ready.take(), alive.take()) else { return };
                let Loaded { backend, vocab, tokenizer, chat_template } = loaded;
                let spec = backend.spec().clone();
                let mut scheduler = Scheduler::new(spec.clone(), Arc::clone(&vocab), self.options.clone());
                self.publish.send_replace(scheduler.stats());
                let grammars = Arc::new(Grammars::new(Arc::clone(&vocab), spec.vocab_size));
                if ready.send(Ok(ModelInfo { spec, vocab, tokenizer, chat_template, grammars })).is_ok() {
                    self.serve(&mut scheduler, backend, alive);
                }
            })
        }));
        self.pulse.rest();
        match (loaded, ready) {
            (Ok(Ok(())), _) => {}
            (Ok(Err(error)), Some(ready)) => {
                // Nobody listens when loading was given up; then there is nobody to tell.
                let _ = ready.send(Err(error));
            }
            (Ok(Err(error)), None) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the model did not unload cleanly");
            }
            (Err(_), _) => tracing::error!("the engine panicked and ends"),
        }
    }

    /// Carries out steps until the engine is dropped or the backend fails. `alive` is closed before any generation fails, also when a step
    /// panics, since the scheduler outlives this call: whoever sees a generation end with the engine sees the engine ended too.
    fn serve(&self, scheduler: &mut Scheduler, backend: &mut dyn InferenceBackend, alive: watch::Sender<()>) {
        let mut outcome = Outcome::Worked;
        while self.receive(scheduler, outcome) {
            self.pulse.begin();
            let result = scheduler.step(backend, &Instant::now);
            self.pulse.rest();
            outcome = match result {
                Ok(outcome) => outcome,
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "the backend failed; the engine ends");
                    drop(alive);
                    scheduler.fail_all(EngineError::Gone, Instant::now());
                    self.publish.send_replace(scheduler.stats());
                    return;
                }
            };
            self.publish.send_replace(scheduler.stats());
        }
    }

    /// Does what was asked for, waiting for it if there is nothing else to do. False when the engine was dropped.
    fn receive(&self, scheduler: &mut Scheduler, outcome: Outcome) -> bool {
        let first = if !scheduler.has_work() {
            self.received.recv().map_err(|_| TryRecvError::Disconnected)
        } else if outcome == Outcome::Paused {
            self.received.recv_timeout(PAUSE).map_err(|error| match error {
                RecvTimeoutError::Timeout => TryRecvError::Empty,
                RecvTimeoutError::Disconnected => TryRecvError::Disconnected,
            })
        } else {
            self.received.try_recv()
        };
        let mut next = first;
        loop {
            match next {
                Ok(Command::Submit(submission)) => scheduler.add(*submission),
                Ok(Command::Describe(answer)) => {
                    // Whoever asked may have left.
                    let _ = answer.send(scheduler.to_string());
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
            next = self.received.try_recv();
        }
    }
}
