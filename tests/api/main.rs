//! The server over the simulated model, as a client sees it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod adapters;
mod chat;
mod completions;
mod contract;
mod embeddings;
mod errors;
mod fields;
mod helpers;
mod models;
mod openapi;
mod rerank;
mod stream;
mod structured;
mod tools;
