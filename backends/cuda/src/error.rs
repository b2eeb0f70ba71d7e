use thiserror::Error;

/// Why a device did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CudaError {
    /// There is no card to use, or what it needs is not installed; a sentence for the operator.
    #[error("{0}")]
    Unavailable(String),
    /// Nothing was taken; what the device holds is as it was.
    #[error("the GPU has no {bytes} bytes left")]
    OutOfMemory {
        /// What was asked for.
        bytes: usize,
    },
    /// The context is lost, and with it all that the device holds.
    #[error("{call}: {reason}")]
    Failed {
        /// What failed.
        call: &'static str,
        /// The driver's words.
        reason: String,
    },
}
