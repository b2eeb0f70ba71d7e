//! What goes over the wire: serde types of OpenAI's API, without policy.

pub mod batches;
pub mod error;
pub mod files;
