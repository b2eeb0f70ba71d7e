//! A backend whose model is a hash of its context: for tests of everything above it, and for client development with `--profile sim`.
//!
//! Each KV cell is a hash of its token, its position, the adapter that computed it and the cell before it; the next token is a hash of every
//! cell that the sequence can see. A stale, shared or misplaced cell therefore changes the answer, and [`Oracle`] knows what the answer must
//! be. KV memory is kept as a real backend keeps it, by slot or by block; reading a cell that was never written panics.
//!
//! Beside it there is an embedding model, whose vectors are hashes of their inputs; or, in its place, one that ranks documents by the words that
//! they share with a query.

mod ahead;
mod backend;
mod embedder;
mod memory;
mod model;

pub use backend::{Faults, SimLayout, SimLoader, SimSettings};
pub use embedder::{SimEmbedderLoader, SimEmbedderSettings, SimPairs};
pub use model::{CHAT_TEMPLATE, Oracle, VOCAB_SIZE, score, vector, vocab};
