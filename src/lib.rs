//! Tandem: a batch LLM inference server.

pub mod api;
pub mod batch;
pub mod clock;
pub mod openai;
pub mod store;
