//! What the server is told: layers of files, environment and flags, resolved once and checked.
//!
//! Later layers win: `config/default.toml` (built in), `config/<profile>.toml`, `config/local.toml`, the file named by `--config`, the
//! environment, flags. Nothing after this module reads a file or the environment for its settings, and nothing re-checks them.

mod backend;
mod checked;
mod layers;
mod llama_cpp;
mod model;
mod raw;
mod server;
mod sha256;
mod show;
mod source;
mod webhooks;

use std::path::PathBuf;

use thiserror::Error;

pub use backend::{BackendSettings, CandleDevice, CandleDtype, CandleKvType, CandleQuantization, SimFaults};
pub use checked::{BatchOrder, BatchSettings, LimitSettings, LogFormat, LogSettings, Settings};
pub use layers::{Resolved, profile_and_backend};
pub use llama_cpp::{FlashAttention, GpuLayers, GpuSplit, KvType, LlamaCppSettings, Numa};
pub use model::{AdapterSettings, GenerationConfig, Matryoshka, ModelSettings, Task};
pub use server::{ServerSettings, TlsSettings};
pub use source::ModelSource;
pub use webhooks::{WebhookSecret, WebhookSettings};

/// What a command line says about settings.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub profile: Option<String>,
    pub config: Option<PathBuf>,
    pub backend: Option<String>,
    pub model: Option<String>,
    pub host: Option<String>,
    pub port: Option<u16>,
    pub insecure_no_auth: bool,
}

/// Settings that cannot be used. The process exits with 78, `EX_CONFIG`.
#[derive(Debug, Error)]
#[error("config: {key}: {reason}")]
pub struct SettingsError {
    /// The key, dotted, or the file at fault.
    pub key: String,
    pub reason: String,
}

impl SettingsError {
    pub(crate) fn new(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { key: key.into(), reason: reason.into() }
    }
}

impl Settings {
    /// Reads all layers and checks what they say together.
    ///
    /// # Errors
    /// When a layer cannot be read, a key is unknown or has a wrong value, or values contradict each other.
    pub fn load(overrides: &Overrides) -> Result<Self, SettingsError> {
        Resolved::load(overrides)?.settings()
    }
}

#[cfg(test)]
mod tests;
