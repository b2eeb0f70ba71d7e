//! From a request's bytes to a checked request: after this nothing about its form is looked at again.
//!
//! What it asks of the model (context length, token ids) is checked in [`prepare`](super::prepare), where the model is known.

#[cfg(test)]
pub(crate) mod asked;
pub(super) mod body;
mod chat;
mod embeddings;
mod fields;
mod messages;
mod options;
mod prompts;
mod rerank;
mod structural_tag;
mod structured;
mod telling;
mod text;
mod tools;
mod truncation;
mod unhonoured;

pub(super) use chat::{ChatRequest, chat, ending};
pub(super) use embeddings::{EmbeddingOptions, EmbeddingRequest, Encoding, embeddings};
pub(super) use fields::Fields;
pub(crate) use fields::integer;
pub(super) use messages::{Message, ToolCall, messages};
pub(super) use options::Options;
pub(super) use prompts::{CompletionRequest, Prompt, completions};
pub(super) use rerank::{Document, PairLimits, RerankRequest, rerank};
pub(super) use structured::Structure;
pub(super) use telling::{StreamUsage, Telling};
pub(super) use tools::{Tool, ToolChoice, Tools, texts, tools};
pub(super) use truncation::{Side, TRUNCATE};
pub(super) use unhonoured::nothing_else;
