use std::path::PathBuf;

/// A model with random weights to be written.
#[derive(Clone, Debug)]
pub struct SynthOrder {
    pub arch: String,
    pub size: String,
    pub seed: u64,
    pub directory: PathBuf,
    /// Quantizations to write a GGUF file of each in.
    pub gguf: Vec<String>,
    /// Whether files that are there may be written over.
    pub force: bool,
}

/// Why a model was not written.
#[derive(Debug, thiserror::Error)]
pub enum SynthFailure {
    /// What was asked for cannot be had.
    #[error("{0}")]
    Refused(String),
    /// The directory cannot be written.
    #[error("{0}")]
    Unwritten(String),
}
