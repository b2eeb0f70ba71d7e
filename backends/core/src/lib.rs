//! The contract between the engine and a backend.
//!
//! A backend *owns a loaded model and runs one step at a time*; everything else that a user can observe about generation
//! (admission, prefix reuse, preemption, stop conditions, seeds, text) is decided above it, once, in the engine.
//!
//! Three choices shape [`InferenceBackend`]:
//!
//! - **A step, not a request and a stream.** A backend that owns its loop owns a scheduler too, and two schedulers drift apart. A step is
//!   self-contained and borrowed: between two of them a backend remembers its KV memory and nothing else, but for the tokens that it goes on
//!   from by itself where it looks ahead.
//! - **Two calls, [`forward`](InferenceBackend::forward) and [`sample`](InferenceBackend::sample).** What the host has to do for a step
//!   happens between them, while the device works. Sampling is *called* by the backend, because logits are too large to move for
//!   nothing; it is *specified* in [`sampling`], and its randomness is drawn by the engine. A third, [`score`](InferenceBackend::score), reduces rows of
//!   logits to what they say of tokens that are given, for the same reason.
//! - **Loading is a scope.** [`BackendLoader`] lends the backend to a closure instead of returning it, since a llama.cpp context borrows
//!   its model and may not leave its thread. Unloading is the scope's end.
//!
//! Differences between backends are data in [`BackendSpec`], never methods with default bodies. One is more than data: a backend whose device
//! goes on from tokens that the host has not read yet has calls of its own for that, those of [`LookAhead`].
//!
//! A model that turns texts into vectors has none of this: no KV memory between passes, no sampling, no end. It is another kind of
//! backend, an [`EmbeddingBackend`], loaded by the same [`BackendLoader`].

mod ahead;
mod backend;
pub mod conformance;
mod embedding;
mod error;
mod ids;
mod mask;
mod memory;
mod model;
mod progress;
pub mod sampling;
mod spec;
mod step;
mod vocab;

pub use ahead::{AheadChunk, AheadStep, Choice, Chosen, Input, LookAhead};
pub use backend::{Backend, BackendLoader, InferenceBackend, Loaded};
pub use embedding::{EmbeddingBackend, EmbeddingSpec, Matryoshka, Pooling};
pub use error::{BoxError, DeviceError, LoadError, SampleError, StepError};
pub use ids::{AdapterId, BlockId, SlotId, TokenId};
pub use mask::TokenMask;
pub use memory::{MemoryNeeds, free_ram};
pub use model::{GenerationDefaults, TokenizeError, Tokenizer};
pub use progress::{LoadProgress, LoadedBytes};
pub use sampling::SamplingParams;
pub use spec::{BackendSpec, KvLayout};
pub use step::{Chunk, KvOp, SampleRow, Sampled, ScoreRow, Step, TokenLogprobs};
pub use vocab::{FillInTheMiddle, Special, TokenKind, Vocab, VocabParts};
