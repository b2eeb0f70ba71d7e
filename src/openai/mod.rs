//! What goes over the wire: serde types of OpenAI's API, without policy.

mod allowed;
pub mod batches;
pub mod chat;
pub mod completions;
pub mod embeddings;
mod endpoint;
pub mod error;
mod extras;
pub mod files;
pub mod models;
pub mod rerank;
mod usage;

pub use allowed::AllowedModels;
pub use endpoint::Endpoint;
pub use extras::{ChoiceExtras, PromptExtras, StopReason};
pub use usage::{CompletionTokensDetails, PromptTokensDetails, Usage};
