//! The parts that transformer models are made of, over row-major matrices with one row per token.

mod embedding;
mod linear;
mod mlp;
mod norm;
mod rope;

pub(crate) use embedding::Embedding;
pub(crate) use linear::Linear;
pub(crate) use mlp::swiglu;
pub(crate) use norm::RmsNorm;
pub(crate) use rope::RotaryEmbedding;

/// Rows that are worth a task of their own in the cheap, elementwise layers.
const ROWS_PER_TASK: usize = 16;
