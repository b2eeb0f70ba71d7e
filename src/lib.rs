//! Tandem: a batch LLM inference server.
//!
//! The code map, in the order of dependencies; nothing depends on what stands before it:
//!
//! - [`cli`]: the commands; [`app`]: the server as a value with a port; [`telemetry`]: logs.
//! - [`settings`]: layers of files, environment and flags, resolved once.
//! - [`models`]: which models are resident; the one place that names concrete backends.
//! - [`openai`]: wire types.

//APP
//CLI
pub mod models;
pub mod openai;
pub mod settings;
pub mod telemetry;
