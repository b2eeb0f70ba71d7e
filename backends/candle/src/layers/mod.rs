//! The parts that transformer models are made of, over row-major matrices with one row per token.

mod activation;
mod embedding;
mod experts;
mod layer_norm;
mod linear;
mod mlp;
mod norm;
mod plain_mlp;
mod rope;
mod soft_cap;

pub(crate) use embedding::Embedding;
pub(crate) use experts::{ExpertBuffers, Experts};
pub(crate) use layer_norm::LayerNorm;
pub(crate) use linear::Linear;
pub(crate) use mlp::{Mlp, MlpBuffers};
pub(crate) use norm::RmsNorm;
pub(crate) use plain_mlp::PlainMlp;
pub(crate) use rope::{RotaryEmbedding, Rotation};
pub(crate) use soft_cap::soft_cap;

/// Rows that are worth a task of their own in the cheap, elementwise layers.
const ROWS_PER_TASK: usize = 16;
