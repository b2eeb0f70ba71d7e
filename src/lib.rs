//! Tandem: a batch LLM inference server.
//!
//! The code map, from the outside in; each depends only on what stands below it:
//!
//! - [`cli`]: the commands. [`bench`](mod@bench): servers side by side. [`app`]: the server as a value with a port.
//! - [`api`]: HTTP handlers, one file per resource.
//! - [`access`]: who may ask for what, and how much.
//! - [`batch`]: the Batch API's life, from an input file to an output file. [`store`]: SQLite and files on disk.
//! - [`webhooks`]: tells a URL that batches have ended.
//! - [`completion`]: the one path from a request to tokens and back, online and in batches.
//! - [`models`]: which models are resident; the one place that names concrete backends.
//! - [`openai`]: wire types. [`settings`]: what the server is told. [`telemetry`]: logs. [`http`]: requests to others. [`tls`]: certificates.
//!   [`clock`]: wall time. [`failpoint`]: where tests kill the process.

pub mod access;
pub mod api;
pub mod app;
pub mod batch;
pub mod bench;
pub mod cli;
pub mod clock;
pub mod completion;
pub mod failpoint;
pub mod http;
pub mod models;
pub mod openai;
pub mod settings;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod webhooks;
