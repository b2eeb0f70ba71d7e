//! The engine's thread.

use std::{
    hash::{BuildHasher, RandomState},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError, TryRecvError},
    },
    time::{Duration, Instant},
};

use tandem_core::{Backend, BackendLoader, DeviceError, InferenceBackend, LoadError, Loaded, StepError};
use tokio::sync::{oneshot, watch};

use crate::{
    EmbedderInfo, End, EngineError, EngineLimits, Grammars, ModelInfo, Stats,
    embedding::{EmbedSubmission, Passes},
    places::Places,
    pulse::Pulse,
    scheduler::{Options, Outcome, Scheduler},
    sequence::Submission,
};

/// While all sequences pause, their readers are looked at this often.
const PAUSE: Duration = Duration::from_millis(5);

/// What the engine's thread works with.
pub(crate) struct Room {
    pub(crate) limits: EngineLimits,
    pub(crate) places: Arc<Places>,
    pub(crate) publish: watch::Sender<Stats>,
    pub(crate) pulse: Arc<Pulse>,
}

/// The way to a loaded model, by what the model does.
pub(crate) enum Door {
    Generator(Arc<ModelInfo>, mpsc::Sender<Command<Submission>>),
    Embedder(Arc<EmbedderInfo>, mpsc::Sender<Command<EmbedSubmission>>),
}

/// What the engine's thread is asked to do. As many submissions as there are tickets can be under way, whatever the channel would hold.
pub(crate) enum Command<S> {
    Submit(Box<S>),
    Describe(oneshot::Sender<String>),
}

/// What an engine does with its model over and over.
trait Work {
    type Submission;

    fn add(&mut self, submission: Self::Submission);

    fn has_work(&self) -> bool;

    /// Carries out one step, or finds that nothing can be done before somebody reads.
    ///
    /// # Errors
    /// When the backend is finished. Everything that was submitted is still here, for `fail_all`.
    fn step(&mut self) -> Result<Outcome, StepError>;

    /// Ends everything that was submitted, when the backend is finished.
    fn fail_all(&mut self);

    fn stats(&self) -> Stats;

    fn describe(&self) -> String;
}

struct Generating<'a> {
    scheduler: Scheduler,
    backend: &'a mut dyn InferenceBackend,
}

impl Work for Generating<'_> {
    type Submission = Submission;

    fn add(&mut self, submission: Submission) {
        self.scheduler.add(submission);
    }

    fn has_work(&self) -> bool {
        self.scheduler.has_work()
    }

    fn step(&mut self) -> Result<Outcome, StepError> {
        self.scheduler.step(self.backend, &Instant::now)
    }

    fn fail_all(&mut self) {
        self.scheduler.fail_all(EngineError::Gone, Instant::now());
    }

    fn stats(&self) -> Stats {
        self.scheduler.stats()
    }

    fn describe(&self) -> String {
        self.scheduler.to_string()
    }
}

impl Work for Passes<'_> {
    type Submission = EmbedSubmission;

    fn add(&mut self, submission: EmbedSubmission) {
        self.add(submission);
    }

    fn has_work(&self) -> bool {
        self.has_work()
    }

    fn step(&mut self) -> Result<Outcome, StepError> {
        self.pass().map_err(|DeviceError(error)| StepError::Device(error))?;
        Ok(Outcome::Worked)
    }

    fn fail_all(&mut self) {
        self.fail_all();
    }

    fn stats(&self) -> Stats {
        self.stats()
    }

    fn describe(&self) -> String {
        self.to_string()
    }
}

impl Room {
    /// The engine's thread: loads, serves, unloads. `alive` is closed when it serves no more.
    pub(crate) fn load_and_serve(
        self,
        loader: Box<dyn BackendLoader>,
        ready: oneshot::Sender<Result<Door, LoadError>>,
        alive: watch::Sender<End>,
    ) {
        let (mut ready, mut alive) = (Some(ready), Some(alive));
        let loaded = catch_unwind(AssertUnwindSafe(|| {
            loader.with_backend(&mut |loaded| {
                let (Some(ready), Some(alive)) = (ready.take(), alive.take()) else { return };
                self.open(loaded, ready, alive);
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

    /// Gives out the way to the model and serves it.
    fn open(&self, loaded: Loaded<'_>, ready: oneshot::Sender<Result<Door, LoadError>>, alive: watch::Sender<End>) {
        let Loaded { backend, vocab, tokenizer, chat_template, defaults, matryoshka, pair_template } = loaded;
        match backend {
            Backend::Generator(backend) => {
                let spec = backend.spec().clone();
                let options = Options {
                    prefix_cache: self.limits.prefix_cache,
                    // Clients cannot know it, so they cannot make prompts whose hashes collide.
                    hash_seed: RandomState::new().hash_one(0),
                    stall_timeout: self.limits.stall_timeout,
                    places: Arc::clone(&self.places),
                };
                let scheduler = Scheduler::new(spec.clone(), Arc::clone(&vocab), options);
                let grammars = Arc::new(Grammars::new(Arc::clone(&vocab), spec.vocab_size));
                let info = Arc::new(ModelInfo { spec, vocab, tokenizer, chat_template, defaults, grammars });
                let (commands, received) = mpsc::channel();
                self.publish.send_replace(scheduler.stats());
                if ready.send(Ok(Door::Generator(info, commands))).is_ok() {
                    self.serve(&mut Generating { scheduler, backend }, &received, alive);
                }
            }
            Backend::Embedder(backend) => {
                let spec = backend.spec().clone();
                let info = Arc::new(EmbedderInfo { spec, vocab, tokenizer, matryoshka, pair_template });
                let (commands, received) = mpsc::channel();
                if ready.send(Ok(Door::Embedder(info, commands))).is_ok() {
                    self.serve(&mut Passes::new(backend), &received, alive);
                }
            }
        }
    }

    /// Carries out steps until the engine is dropped or the backend fails. `alive` is closed before anything that was submitted fails, also
    /// when a step panics, since the work outlives this call: whoever sees a generation end with the engine sees the engine ended too.
    fn serve<W: Work>(
        &self,
        work: &mut W,
        received: &mpsc::Receiver<Command<W::Submission>>,
        alive: watch::Sender<End>,
    ) {
        let mut outcome = Outcome::Worked;
        while receive(work, received, outcome) {
            self.pulse.begin();
            let result = work.step();
            self.pulse.rest();
            outcome = match result {
                Ok(outcome) => outcome,
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "the backend failed; the engine ends");
                    if matches!(error, StepError::Lost(_)) {
                        alive.send_replace(End::DeviceLost);
                    }
                    drop(alive);
                    work.fail_all();
                    self.publish.send_replace(work.stats());
                    return;
                }
            };
            self.publish.send_replace(work.stats());
        }
    }
}

/// Does what was asked for, waiting for it if there is nothing else to do. False when the engine was dropped.
fn receive<W: Work>(work: &mut W, received: &mpsc::Receiver<Command<W::Submission>>, outcome: Outcome) -> bool {
    let first = if !work.has_work() {
        received.recv().map_err(|_| TryRecvError::Disconnected)
    } else if outcome == Outcome::Paused {
        received.recv_timeout(PAUSE).map_err(|error| match error {
            RecvTimeoutError::Timeout => TryRecvError::Empty,
            RecvTimeoutError::Disconnected => TryRecvError::Disconnected,
        })
    } else {
        received.try_recv()
    };
    let mut next = first;
    loop {
        match next {
            Ok(Command::Submit(submission)) => work.add(*submission),
            Ok(Command::Describe(answer)) => {
                // Whoever asked may have left.
                let _ = answer.send(work.describe());
            }
            Err(TryRecvError::Empty) => return true,
            Err(TryRecvError::Disconnected) => return false,
        }
        next = received.try_recv();
    }
}
