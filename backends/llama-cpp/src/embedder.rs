use std::{fmt, num::NonZero};

use llama_cpp_2::{DecodeError, context::LlamaContext, llama_batch::LlamaBatch, token::LlamaToken};
use tandem_core::{DeviceError, EmbeddingBackend, EmbeddingSpec, TokenId};
use thiserror::Error;

use crate::ranking::Head;

/// One llama.cpp context that computes whole inputs, each a sequence of its own, and keeps nothing of them.
///
/// A model that looks ahead has no KV memory, and llama.cpp runs it by its encoder; one that looks back only has some, which is emptied
/// before each pass. Either way a pass is one micro-batch: tokens that see each other have to be computed together, and the mean over a
/// sequence is taken within one.
pub(crate) struct LlamaEmbedder<'model> {
    context: LlamaContext<'model>,
    spec: EmbeddingSpec,
    /// What makes a score of llama.cpp's numbers, of a model that ranks.
    head: Option<Head>,
    batch: LlamaBatch<'static>,
}

/// Sizes of an embedder's context, in tokens. All fit llama.cpp's signed numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EmbedderSizes {
    /// Of one input.
    pub(crate) input: u32,
    /// Of one pass over several.
    pub(crate) pass: u32,
    /// Of any pass.
    pub(crate) batch: NonZero<u32>,
    /// Inputs of one pass.
    pub(crate) inputs: u32,
}

/// Inputs that break the contract, or that llama.cpp cannot compute.
#[derive(Debug, Error)]
enum Fault {
    #[error("a pass over {0} inputs")]
    Inputs(usize),
    #[error("an input of {0} tokens")]
    InputTokens(usize),
    #[error("a pass of more than {0} tokens")]
    TooManyTokens(u32),
    #[error("token {0} is beyond the vocabulary")]
    NoSuchToken(TokenId),
    #[error("llama_decode: {0}")]
    Decode(#[source] DecodeError),
    #[error("llama.cpp has no vector of {numbers} numbers for input {input}")]
    NoVector { input: usize, numbers: usize },
}

impl From<Fault> for DeviceError {
    fn from(fault: Fault) -> Self {
        Self(Box::new(fault))
    }
}

impl<'model> LlamaEmbedder<'model> {
    /// `batch_tokens` is what the context takes at once. A model has a `head` when it ranks.
    pub(crate) fn new(
        context: LlamaContext<'model>,
        spec: EmbeddingSpec,
        head: Option<Head>,
        batch_tokens: NonZero<u32>,
    ) -> Self {
        Self { context, spec, head, batch: LlamaBatch::new(batch_tokens.get() as usize, 1) }
    }

    /// Computes one token: weights are touched for the first time here rather than under the first request, and a model that computes
    /// nonsense is found out.
    ///
    /// # Errors
    /// With what is wrong about the model.
    pub(crate) fn warm_up(&mut self, token: TokenId) -> Result<(), String> {
        let mut vector = Vec::new();
        self.embed(&[&[token]], &mut vector).map_err(|error| format!("a first token cannot be computed: {error:?}"))?;
        let finite = vector.iter().all(|number| number.is_finite());
        let what = if self.head.is_some() { "score" } else { "vector" };
        if finite { Ok(()) } else { Err(format!("the model produced a {what} that is not finite")) }
    }

    /// Fills the batch. Everything is checked, because llama.cpp aborts the process on sequences, tokens and sizes that it does not have.
    fn fill_batch(&mut self, inputs: &[&[TokenId]]) -> Result<(), Fault> {
        let Self { spec, batch, .. } = self;
        batch.clear();
        if !(1..=spec.max_inputs as usize).contains(&inputs.len()) {
            return Err(Fault::Inputs(inputs.len()));
        }
        for (sequence, input) in std::iter::zip(0.., inputs) {
            if !(1..=spec.max_input_tokens as usize).contains(&input.len()) {
                return Err(Fault::InputTokens(input.len()));
            }
            for (position, &token) in std::iter::zip(0.., *input) {
                let id = i32::try_from(token).ok().filter(|_| token < spec.vocab_size);
                let id = id.map(LlamaToken).ok_or(Fault::NoSuchToken(token))?;
                // Every token is an output: they are what is pooled.
                let added = batch.add(id, position, &[sequence], true);
                added.map_err(|_| Fault::TooManyTokens(spec.max_pass_tokens))?;
            }
        }
        Ok(())
    }
}

impl EmbeddingBackend for LlamaEmbedder<'_> {
    fn spec(&self) -> &EmbeddingSpec {
        &self.spec
    }

    fn embed(&mut self, inputs: &[&[TokenId]], out: &mut Vec<f32>) -> Result<(), DeviceError> {
        self.fill_batch(inputs)?;
        let &mut Self { ref mut context, ref spec, head, ref mut batch } = self;
        // Nothing, where there is no memory.
        context.clear_kv_cache();
        // Encodes, where the model has no decoder.
        context.decode(batch).map_err(Fault::Decode)?;
        for (input, sequence) in (0..inputs.len()).zip(0..) {
            // Waits for the device, the first time.
            let vector = context.embeddings_seq_ith(sequence).ok();
            let numbers = head.map_or(spec.dimensions as usize, Head::labels);
            let vector = vector.filter(|vector| vector.len() == numbers);
            let vector = vector.ok_or(Fault::NoVector { input, numbers })?;
            match head {
                Some(head) => out.push(head.score(vector)),
                None => out.extend(vector),
            }
        }
        Ok(())
    }
}

impl fmt::Debug for LlamaEmbedder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LlamaEmbedder").field("spec", &self.spec).finish_non_exhaustive()
    }
}
