use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, atomic::AtomicUsize},
    task::{Context, Poll, ready},
    thread::JoinHandle,
    time::Instant,
};

use futures_core::Stream;
use tandem_core::{BackendLoader, BackendSpec, LoadError, Loaded, Tokenizer, Vocab};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    EngineError, Event, GenerateRequest, Grammars, Stats, SubmitError, scheduler::Scheduler, sequence::Submission, stats::Ticket,
};

/// A loaded model, usable from any task. Dropping it unloads the model and waits until that is done.
pub struct Engine {
    // Before the thread, so that dropping it tells the thread to end.
    commands: Option<mpsc::UnboundedSender<Submission>>,
    info: Arc<ModelInfo>,
    stats: watch::Receiver<Stats>,
    places: Arc<AtomicUsize>,
    limits: EngineLimits,
    thread: Option<JoinHandle<()>>,
}

/// What the engine allows beyond what the model can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineLimits {
    /// Generations that may wait beside those that run.
    pub queue: usize,
    /// Whether KV outlives its sequence, to serve prompts that begin alike.
    pub prefix_cache: bool,
}

impl Default for EngineLimits {
    fn default() -> Self {
        Self { queue: 512, prefix_cache: true }
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
        // Unbounded in type; as many submissions as there are tickets in fact.
        let (commands, received) = mpsc::unbounded_channel();
        let (ready, loaded) = oneshot::channel();
        let (publish, stats) = watch::channel(Stats::default());
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || run(loader, limits, received, ready, &publish))
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
            places: Arc::default(),
            limits,
            thread: Some(thread),
        })
    }

    /// Starts a generation.
    ///
    /// # Errors
    /// When the request could never run, the queue is full, or the engine has ended.
    pub fn submit(&self, request: GenerateRequest) -> Result<Generation, SubmitError> {
        let spec = &self.info.spec;
        debug_assert!(!request.prompt.is_empty(), "an empty prompt is refused where requests are parsed");
        let needed = (request.prompt.len() as u64) + u64::from(request.stop.max_tokens);
        let available = spec.kv.capacity().min(u64::from(spec.max_context));
        // The last token of a sequence is never computed, so a context's worth of tokens is the most that anyone needs.
        if request.prompt.len() as u64 >= available || needed.min(u64::from(spec.max_context)) > spec.kv.capacity() {
            return Err(SubmitError::TooLarge { needed, available });
        }
        let limit = self.limits.queue + spec.max_sequences as usize;
        let ticket = Ticket::take(&self.places, limit).ok_or(SubmitError::Overloaded)?;
        let (events, received) = mpsc::unbounded_channel();
        let submission = Submission { request, events, submitted: Instant::now(), ticket };
        let commands = self.commands.as_ref().ok_or(SubmitError::Gone)?;
        commands.send(submission).map_err(|_| SubmitError::Gone)?;
        Ok(Generation { events: received, ended: false })
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

    /// Whether requests are still served. Once false, always false.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.commands.as_ref().is_some_and(|commands| !commands.is_closed())
    }

    /// Waits until the engine has ended by itself, as it does when its device fails.
    pub async fn ended(&self) {
        if let Some(commands) = &self.commands {
            commands.closed().await;
        }
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

/// A running generation. Dropping it cancels it before the next step.
#[derive(Debug)]
pub struct Generation {
    events: mpsc::UnboundedReceiver<Event>,
    ended: bool,
}

impl Stream for Generation {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.ended {
            return Poll::Ready(None);
        }
        // A channel that closes without a last event is an engine that ended without one.
        let event = ready!(self.events.poll_recv(cx)).unwrap_or(Event::Failed(EngineError::Gone));
        self.ended = !matches!(event, Event::Token { .. });
        Poll::Ready(Some(event))
    }
}

/// The engine's thread: loads, serves, unloads.
fn run(
    loader: Box<dyn BackendLoader>,
    limits: EngineLimits,
    mut received: mpsc::UnboundedReceiver<Submission>,
    ready: oneshot::Sender<Result<ModelInfo, LoadError>>,
    publish: &watch::Sender<Stats>,
) {
    let mut ready = Some(ready);
    let loaded = catch_unwind(AssertUnwindSafe(|| {
        loader.with_backend(&mut |loaded| {
            let Some(ready) = ready.take() else { return };
            let Loaded { backend, vocab, tokenizer, chat_template } = loaded;
            let spec = backend.spec().clone();
            let mut scheduler = Scheduler::new(spec.clone(), Arc::clone(&vocab), limits.prefix_cache);
            publish.send_replace(scheduler.stats());
            let grammars = Arc::new(Grammars::new(Arc::clone(&vocab), spec.vocab_size));
            if ready.send(Ok(ModelInfo { spec, vocab, tokenizer, chat_template, grammars })).is_err() {
                return;
            }
            while receive(&mut scheduler, &mut received) {
                let result = scheduler.step(backend, Instant::now());
                if let Err(error) = &result {
                    tracing::error!(error = error as &dyn std::error::Error, "the backend failed; the engine ends");
                    scheduler.fail_all(EngineError::Gone);
                }
                publish.send_replace(scheduler.stats());
                if result.is_err() {
                    break;
                }
            }
        })
    }));
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

/// Takes in what was submitted, waiting for it if there is nothing else to do. False when the engine was dropped.
fn receive(scheduler: &mut Scheduler, received: &mut mpsc::UnboundedReceiver<Submission>) -> bool {
    if !scheduler.has_work() {
        let Some(submission) = received.blocking_recv() else { return false };
        scheduler.add(submission);
    }
    loop {
        match received.try_recv() {
            Ok(submission) => scheduler.add(submission),
            Err(mpsc::error::TryRecvError::Empty) => return true,
            Err(mpsc::error::TryRecvError::Disconnected) => return false,
        }
    }
}
