//! Tandem: a batch LLM inference server.

pub mod openai;
