use std::{
    fmt,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tandem_core::{
    BackendLoader, BackendSpec, EmbeddingSpec, GenerationDefaults, LoadError, Matryoshka, Tokenizer, Vocab,
};
use tokio::sync::{oneshot, watch};

use crate::{
    EmbedRequest, Embedding, GenerateRequest, Generation, Grammars, Stats, SubmitError,
    embedding::EmbedSubmission,
    grammar::GrammarState,
    places::{Places, Ticket},
    pulse::Pulse,
    room::{Command, Door, Room},
    sequence::Submission,
};

/// Events of one generation that may wait for their reader: several seconds of text at the speed of a large model.
const UNREAD: usize = 256;

/// A loaded model, usable from any task. Dropping it unloads the model and waits until that is done.
pub struct Engine {
    /// Dropped before the thread is waited for, which tells the thread to end.
    door: Option<Door>,
    kind: ModelKind,
    stats: watch::Receiver<Stats>,
    /// Closed when the engine's thread ends.
    life: watch::Receiver<End>,
    pulse: Arc<Pulse>,
    places: Arc<Places>,
    limits: EngineLimits,
    thread: Option<JoinHandle<()>>,
}

/// What the engine allows beyond what the model can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineLimits {
    /// Generations, or requests for vectors, that may wait beside those that run.
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

/// What a loaded model does, and what is known of it.
#[derive(Clone, Debug)]
pub enum ModelKind {
    /// It continues prompts.
    Generator(Arc<ModelInfo>),
    /// It turns texts into vectors, or ranks documents.
    Embedder(Arc<EmbedderInfo>),
}

/// What is known of a loaded model that continues prompts.
pub struct ModelInfo {
    /// What the model can do.
    pub spec: BackendSpec,
    /// Token ids to bytes.
    pub vocab: Arc<Vocab>,
    /// Text to token ids.
    pub tokenizer: Arc<dyn Tokenizer>,
    /// The model's chat template (Jinja), if it ships one.
    pub chat_template: Option<String>,
    /// How its makers would have its tokens chosen.
    pub defaults: GenerationDefaults,
    /// Compiles what outputs of this model must look like.
    pub grammars: Arc<Grammars>,
}

impl fmt::Debug for ModelInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelInfo").field("spec", &self.spec).finish_non_exhaustive()
    }
}

/// What is known of a loaded model that turns texts into vectors, or ranks documents.
pub struct EmbedderInfo {
    /// What the model can do.
    pub spec: EmbeddingSpec,
    /// Token ids to bytes, and what a text begins and ends with.
    pub vocab: Arc<Vocab>,
    /// Text to token ids.
    pub tokenizer: Arc<dyn Tokenizer>,
    /// How vectors may be cut.
    pub matryoshka: Matryoshka,
    /// Of a model that ranks documents: the prompt that a query and a document are put into, if it has one.
    pub pair_template: Option<String>,
}

impl fmt::Debug for EmbedderInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbedderInfo").field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl ModelKind {
    /// Token ids to bytes.
    #[must_use]
    pub fn vocab(&self) -> &Arc<Vocab> {
        match self {
            Self::Generator(info) => &info.vocab,
            Self::Embedder(info) => &info.vocab,
        }
    }

    /// Text to token ids.
    #[must_use]
    pub fn tokenizer(&self) -> &Arc<dyn Tokenizer> {
        match self {
            Self::Generator(info) => &info.tokenizer,
            Self::Embedder(info) => &info.tokenizer,
        }
    }

    /// Tokens of one sequence, prompt and output together, or of one input.
    #[must_use]
    pub fn max_tokens(&self) -> u32 {
        match self {
            Self::Generator(info) => info.spec.max_context,
            Self::Embedder(info) => info.spec.max_input_tokens,
        }
    }

    /// The names of the adapters that a request may ask for, in order of their ids.
    #[must_use]
    pub fn adapters(&self) -> &[String] {
        match self {
            Self::Generator(info) => &info.spec.adapters,
            Self::Embedder(_) => &[],
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("kind", &self.kind).field("alive", &self.is_alive()).finish_non_exhaustive()
    }
}

/// What an engine that has ended by itself took with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing: the next one may do better.
    Alone,
    /// The device, which no other engine of this process can have again.
    DeviceLost,
}

impl Engine {
    /// Loads a model on a thread of its own.
    ///
    /// # Errors
    /// When the model cannot be loaded.
    pub async fn load(loader: Box<dyn BackendLoader>, limits: EngineLimits) -> Result<Self, LoadError> {
        let (ready, loaded) = oneshot::channel();
        let (publish, stats) = watch::channel(Stats::default());
        let (alive, life) = watch::channel(End::Alone);
        let (places, pulse) = (Arc::<Places>::default(), Arc::<Pulse>::default());
        let room = Room { limits, places: Arc::clone(&places), publish, pulse: Arc::clone(&pulse) };
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || room.load_and_serve(loader, ready, alive))
            .map_err(|error| LoadError::Other { context: "cannot start a thread".to_owned(), source: error.into() })?;
        let door = loaded.await.unwrap_or_else(|_| {
            Err(LoadError::Other {
                context: "the backend panicked while it loaded the model".to_owned(),
                source: "panic".into(),
            })
        })?;
        let kind = match &door {
            Door::Generator(info, _) => ModelKind::Generator(Arc::clone(info)),
            Door::Embedder(info, _) => ModelKind::Embedder(Arc::clone(info)),
        };
        Ok(Self { door: Some(door), kind, stats, life, pulse, places, limits, thread: Some(thread) })
    }

    /// Starts a generation.
    ///
    /// # Errors
    /// When the model does not generate, the request could never run, the queue is full, or the engine has ended.
    pub fn submit(&self, mut request: GenerateRequest) -> Result<Generation, SubmitError> {
        let Some(Door::Generator(info, commands)) = self.open_door()? else { return Err(SubmitError::WrongKind) };
        let spec = &info.spec;
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
        let ticket = self.ticket()?;
        let (events, generation) = Generation::channel(&self.places, UNREAD);
        // Copied here rather than on the engine's thread: a large grammar takes a while.
        let grammar = request.grammar.take().map(|grammar| GrammarState::new(&grammar));
        let submission = Submission { request, grammar, events, submitted: Instant::now(), ticket };
        send(commands, Command::Submit(Box::new(submission))).ok_or(SubmitError::Gone)?;
        Ok(generation)
    }

    /// Turns texts into vectors.
    ///
    /// # Errors
    /// When the model has no vectors, an input is too long for it, the queue is full, or the engine has ended.
    pub fn embed(&self, request: EmbedRequest) -> Result<Embedding, SubmitError> {
        let Some(Door::Embedder(info, commands)) = self.open_door()? else { return Err(SubmitError::WrongKind) };
        let (inputs, spec) = (&request.inputs, &info.spec);
        debug_assert!(!inputs.is_empty(), "a request without inputs is refused where requests are parsed");
        debug_assert!(inputs.iter().all(|input| !input.is_empty()), "and so is an empty input");
        let longest = inputs.iter().map(|input| input.len() as u64).max().unwrap_or(0);
        let available = u64::from(spec.max_input_tokens);
        if longest > available {
            return Err(SubmitError::TooLarge { needed: longest, available });
        }
        let ticket = self.ticket()?;
        let (answer, embedding) = Embedding::channel();
        let submission = EmbedSubmission { request, answer, ticket };
        send(commands, Command::Submit(Box::new(submission))).ok_or(SubmitError::Gone)?;
        Ok(embedding)
    }

    /// What the model does, and what is known of it.
    #[must_use]
    pub fn kind(&self) -> &ModelKind {
        &self.kind
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
        match self.door.as_ref()? {
            Door::Generator(_, commands) => send(commands, Command::Describe(answer))?,
            Door::Embedder(_, commands) => send(commands, Command::Describe(answer))?,
        }
        text.await.ok()
    }

    /// Whether requests are still served. Once false, always false.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.life.has_changed().is_ok()
    }

    /// Waits until the engine has ended by itself, as it does when its device fails.
    pub async fn ended(&self) -> End {
        let mut life = self.life.clone();
        // It ends by being closed.
        while life.changed().await.is_ok() {}
        *life.borrow()
    }

    /// The way to the model, while the engine is alive: its thread may still be about to close the channel.
    fn open_door(&self) -> Result<Option<&Door>, SubmitError> {
        if self.is_alive() { Ok(self.door.as_ref()) } else { Err(SubmitError::Gone) }
    }

    /// Generations, or requests for vectors, that may run and wait at a time: more can never be taken together.
    #[must_use]
    pub fn capacity(&self) -> usize {
        let running = match &self.kind {
            ModelKind::Generator(info) => info.spec.max_sequences,
            ModelKind::Embedder(info) => info.spec.max_inputs,
        };
        self.limits.queue + running as usize
    }

    /// A place for one more.
    fn ticket(&self) -> Result<Ticket, SubmitError> {
        Ticket::take(&self.places, self.capacity()).ok_or(SubmitError::Overloaded)
    }
}

fn send<S>(commands: &mpsc::Sender<Command<S>>, command: Command<S>) -> Option<()> {
    commands.send(command).ok()
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.door = None;
        if let Some(thread) = self.thread.take() {
            // The thread catches panics itself; there is nothing to learn from its result.
            let _ = thread.join();
        }
    }
}
