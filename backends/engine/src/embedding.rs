//! Texts to vectors: requests that wait, and the passes that their inputs are packed into.

use std::{
    collections::BTreeMap,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use tandem_core::{DeviceError, EmbeddingBackend, EmbeddingSpec, TokenId};
use thiserror::Error;
use tokio::sync::oneshot;

use crate::{Priority, Stats, places::Ticket, sequence::Urgency};

/// Waiting requests that are told one by one.
const MAX_LISTED: usize = 16;

/// What to turn into vectors: everything is checked and resolved before it gets here.
#[derive(Clone, Debug)]
pub struct EmbedRequest {
    /// At least one, none of them empty; all ids within the vocabulary.
    pub inputs: Vec<Vec<TokenId>>,
    /// Who goes first.
    pub priority: Priority,
    /// Within a priority lower numbers go first; of equal ones, who came first.
    pub rank: i64,
    /// Numbers of a vector that are kept, its first ones; `None` keeps all.
    pub dimensions: Option<u32>,
    /// Whether vectors, as far as they are kept, are brought to length 1.
    pub normalize: bool,
}

/// Why there are no vectors, by what the submitter can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EmbedError {
    /// This request alone: the vector of one of its inputs was not finite.
    #[error("the model produced a vector that is not finite")]
    NonFinite,
    /// The engine ended; the request may be tried again on another.
    #[error("the engine has ended")]
    Gone,
}

/// One vector for each input, in their order.
pub type Vectors = Vec<Vec<f32>>;

/// Vectors to come. Dropping this gives the request up before the next pass.
#[derive(Debug)]
#[must_use = "a request whose vectors nobody waits for is given up"]
pub struct Embedding(oneshot::Receiver<Result<Vectors, EmbedError>>);

impl Embedding {
    pub(crate) fn channel() -> (oneshot::Sender<Result<Vectors, EmbedError>>, Self) {
        let (answer, vectors) = oneshot::channel();
        (answer, Self(vectors))
    }
}

impl Future for Embedding {
    type Output = Result<Vectors, EmbedError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // A channel that closes without an answer is an engine that ended without one.
        Pin::new(&mut self.0).poll(cx).map(|answer| answer.unwrap_or(Err(EmbedError::Gone)))
    }
}

/// A request on its way to the engine's thread.
pub(crate) struct EmbedSubmission {
    pub(crate) request: EmbedRequest,
    pub(crate) answer: oneshot::Sender<Result<Vectors, EmbedError>>,
    pub(crate) ticket: Ticket,
}

/// Packs inputs of several requests into passes: interactive requests first, within a priority who came first, and the inputs of a request
/// in their order. A request may take several passes, and others share them with it.
pub(crate) struct Passes<'a> {
    backend: &'a mut dyn EmbeddingBackend,
    spec: EmbeddingSpec,
    waiting: BTreeMap<Urgency, Pending>,
    arrivals: u64,
    stats: Stats,
    /// Of the last pass; kept for its memory.
    numbers: Vec<f32>,
}

struct Pending {
    request: EmbedRequest,
    /// Of the first inputs, as far as they are computed.
    vectors: Vectors,
    answer: oneshot::Sender<Result<Vectors, EmbedError>>,
    _ticket: Ticket,
}

impl<'a> Passes<'a> {
    pub(crate) fn new(backend: &'a mut dyn EmbeddingBackend) -> Self {
        let spec = backend.spec().clone();
        Self { backend, spec, waiting: BTreeMap::new(), arrivals: 0, stats: Stats::default(), numbers: Vec::new() }
    }

    pub(crate) fn add(&mut self, submission: EmbedSubmission) {
        let EmbedSubmission { request, answer, ticket } = submission;
        let urgency = Urgency { priority: request.priority, rank: request.rank, arrival: self.arrivals };
        self.arrivals += 1;
        self.waiting.insert(urgency, Pending { request, vectors: Vec::new(), answer, _ticket: ticket });
    }

    pub(crate) fn has_work(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats { waiting: self.waiting.len() as u32, ..self.stats }
    }

    /// Computes as many inputs as fit one pass, and answers the requests whose last ones are among them.
    ///
    /// # Errors
    /// When the backend is finished. Every request is still here, for [`Self::fail_all`].
    pub(crate) fn pass(&mut self) -> Result<(), DeviceError> {
        self.reap();
        let inputs = pack(&self.waiting, &self.spec);
        if inputs.is_empty() {
            return Ok(());
        }
        let (count, tokens) = (inputs.len(), inputs.iter().map(|input| input.len() as u64).sum::<u64>());
        self.numbers.clear();
        self.backend.embed(&inputs, &mut self.numbers)?;
        assert_eq!(self.numbers.len(), count * self.spec.dimensions as usize, "the backend answers every input");
        self.stats.steps += 1;
        self.stats.computed_tokens += tokens;
        self.stats.prompt_tokens += tokens;
        self.hand_out();
        Ok(())
    }

    /// Ends every request with an error, when the backend is finished.
    pub(crate) fn fail_all(&mut self) {
        for pending in std::mem::take(&mut self.waiting).into_values() {
            self.stats.failed += 1;
            // Whoever asked may have left.
            let _ = pending.answer.send(Err(EmbedError::Gone));
        }
    }

    /// Lets go of requests whose submitter has left.
    fn reap(&mut self) {
        let all = self.waiting.len();
        self.waiting.retain(|_, pending| !pending.answer.is_closed());
        self.stats.cancelled += (all - self.waiting.len()) as u64;
    }

    /// Gives the vectors of the last pass to the requests whose inputs they are of, which are the first ones.
    fn hand_out(&mut self) {
        let mut vectors = self.numbers.chunks_exact(self.spec.dimensions as usize);
        while vectors.len() > 0 {
            let mut first = self.waiting.first_entry().expect("a pass holds inputs of requests that wait");
            match first.get_mut().take(&mut vectors) {
                Progress::Waiting => return,
                Progress::Done => {
                    let Pending { vectors, answer, .. } = first.remove();
                    self.stats.finished += 1;
                    let _ = answer.send(Ok(vectors));
                }
                Progress::NonFinite => {
                    self.stats.failed += 1;
                    let _ = first.remove().answer.send(Err(EmbedError::NonFinite));
                }
            }
        }
    }
}

/// The inputs of the next pass: the first one in any case, and what fits beside it, up to the first one that does not. One behind that would
/// otherwise overtake it for ever.
fn pack<'a>(waiting: &'a BTreeMap<Urgency, Pending>, spec: &EmbeddingSpec) -> Vec<&'a [TokenId]> {
    let mut room = spec.max_pass_tokens as usize;
    let open = waiting.values().flat_map(|pending| &pending.request.inputs[pending.vectors.len()..]);
    open.take(spec.max_inputs as usize)
        .enumerate()
        .map_while(|(at, input)| {
            room = if at == 0 { room.saturating_sub(input.len()) } else { room.checked_sub(input.len())? };
            Some(&**input)
        })
        .collect()
}

/// How far a request has come.
enum Progress {
    Waiting,
    Done,
    NonFinite,
}

impl Pending {
    /// Takes what is its own from the front of a pass's vectors. A vector that is not finite fails the request, whose others in this pass
    /// are passed over.
    fn take(&mut self, vectors: &mut std::slice::ChunksExact<'_, f32>) -> Progress {
        let open = self.request.inputs.len() - self.vectors.len();
        let mut finite = true;
        for vector in vectors.take(open) {
            finite &= vector.iter().all(|number| number.is_finite());
            let kept = self.request.dimensions.map_or(vector.len(), |kept| vector.len().min(kept as usize));
            let vector = &vector[..kept];
            self.vectors.push(if self.request.normalize { normalized(vector) } else { vector.to_vec() });
        }
        if !finite {
            Progress::NonFinite
        } else if self.vectors.len() < self.request.inputs.len() {
            Progress::Waiting
        } else {
            Progress::Done
        }
    }
}

/// The vector with length 1; one of length 0 as it is.
fn normalized(vector: &[f32]) -> Vec<f32> {
    let length = vector.iter().map(|&number| f64::from(number) * f64::from(number)).sum::<f64>().sqrt();
    let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
    vector.iter().map(|&number| (f64::from(number) * scale) as f32).collect()
}

impl fmt::Display for Passes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "pass {}: {} requests waiting", self.stats.steps, self.waiting.len())?;
        for (Urgency { priority, arrival, .. }, Pending { request, vectors, .. }) in
            self.waiting.iter().take(MAX_LISTED)
        {
            let class = match priority {
                Priority::Interactive => "interactive",
                Priority::Batch => "batch",
            };
            writeln!(f, "  #{arrival} ({class}): {} of {} inputs computed", vectors.len(), request.inputs.len())?;
        }
        if self.waiting.len() > MAX_LISTED {
            writeln!(f, "  and {} more", self.waiting.len() - MAX_LISTED)?;
        }
        Ok(())
    }
}
