use std::{fmt, sync::Arc};

use crate::{
    BackendSpec, EmbeddingBackend, GenerationDefaults, LoadError, LookAhead, Matryoshka, SampleError, SampleRow,
    Sampled, ScoreRow, Step, StepError, TokenLogprobs, Tokenizer, Vocab,
};

/// Owns a loaded model and runs it one step at a time, on one thread.
///
/// No method has a default body: a wrapper that forgets one should not compile.
pub trait InferenceBackend {
    /// What the model can do; the same for the backend's whole life.
    fn spec(&self) -> &BackendSpec;

    /// Enqueues one forward pass. May return before the device has finished.
    ///
    /// # Errors
    /// [`StepError::KvFull`] when the step does not fit, with nothing computed; [`StepError::Device`] when the backend is finished.
    fn forward(&mut self, step: &Step<'_>) -> Result<(), StepError>;

    /// Waits for the last `forward` and appends one result per row to `out`.
    ///
    /// `rows` are the last step's chunks with `sample` set, in the same order, each exactly once.
    ///
    /// # Errors
    /// [`StepError::Device`] when the backend is finished. A row that yields no token is an `Err` in `out`.
    fn sample(&mut self, rows: &[SampleRow<'_>], out: &mut Vec<Result<Sampled, SampleError>>) -> Result<(), StepError>;

    /// Waits for the last `forward` and appends one result for each target of each row to `out`.
    ///
    /// `rows` are the last step's chunks with `score` set, in the same order, each exactly once.
    ///
    /// # Errors
    /// [`StepError::Device`] when the backend is finished. Logits that are not finite are an `Err` in `out`.
    fn score(
        &mut self,
        rows: &[ScoreRow<'_>],
        out: &mut Vec<Result<TokenLogprobs, SampleError>>,
    ) -> Result<(), StepError>;

    /// The same backend, if steps can be asked for before the tokens of the last one are known. The same answer for the backend's whole life.
    fn look_ahead(&mut self) -> Option<&mut dyn LookAhead>;
}

/// Loads a model on the engine's thread and lends it out.
///
/// A scope rather than a return value: a llama.cpp context borrows its model and is not `Send`, so the pair lives in one stack frame, and
/// unloading is that frame's return.
pub trait BackendLoader: Send + 'static {
    /// Loads the model, calls `serve` once with it, and unloads it when `serve` returns.
    ///
    /// # Errors
    /// When the model cannot be loaded; `serve` is then never called.
    fn with_backend(self: Box<Self>, serve: &mut dyn FnMut(Loaded<'_>)) -> Result<(), LoadError>;
}

/// A loaded model, lent for the length of one call.
pub struct Loaded<'a> {
    /// The model.
    pub backend: Backend<'a>,
    /// Token ids to bytes, and which of them are special.
    pub vocab: Arc<Vocab>,
    /// Text to token ids.
    pub tokenizer: Arc<dyn Tokenizer>,
    /// The model's chat template (Jinja), if it ships one.
    pub chat_template: Option<String>,
    /// How its makers would have its tokens chosen.
    pub defaults: GenerationDefaults,
    /// How its vectors may be cut, if it has vectors.
    pub matryoshka: Matryoshka,
    /// Of a model that ranks documents: the prompt to put a query and a document into, as `{query}` and `{document}`. What else stands in it
    /// may be control tokens. Without one they stand between what is around any text, as a pair.
    pub pair_template: Option<String>,
}

impl fmt::Debug for Loaded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded").field("backend", &self.backend).finish_non_exhaustive()
    }
}

/// A model by what it does. One that could do either is loaded as one of them.
pub enum Backend<'a> {
    /// Continues prompts.
    Generator(&'a mut dyn InferenceBackend),
    /// Turns texts into vectors.
    Embedder(&'a mut dyn EmbeddingBackend),
}

impl<'a> Backend<'a> {
    /// The model, if it continues prompts.
    #[must_use]
    pub fn generator(self) -> Option<&'a mut dyn InferenceBackend> {
        match self {
            Self::Generator(backend) => Some(backend),
            Self::Embedder(_) => None,
        }
    }

    /// The model, if it turns texts into vectors.
    #[must_use]
    pub fn embedder(self) -> Option<&'a mut dyn EmbeddingBackend> {
        match self {
            Self::Generator(_) => None,
            Self::Embedder(backend) => Some(backend),
        }
    }
}

impl fmt::Debug for Backend<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Generator(backend) => f.debug_tuple("Generator").field(backend.spec()).finish(),
            Self::Embedder(backend) => f.debug_tuple("Embedder").field(backend.spec()).finish(),
        }
    }
}
