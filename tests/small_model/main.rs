//! The engine over both backends, on the model that ships with the project.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

#[path = "../../backends/llama-cpp/tests/backend/adapter_writer.rs"]
#[expect(dead_code, reason = "broken files are for the tests of the backend")]
mod adapter_writer;
mod adapters;
mod architectures;
#[path = "../../backends/llama-cpp/tests/backend/gguf.rs"]
#[expect(dead_code, reason = "broken files are for the tests of the backends")]
mod gguf_writer;
mod helpers;
mod parity;
mod prefix;
mod schemas;
mod seeds;
mod structured;
mod tokenizers;
