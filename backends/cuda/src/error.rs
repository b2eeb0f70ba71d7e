use thiserror::Error;

/// Why a device did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CudaError {
    /// There is no card to use, or what it needs is not installed; a sentence for the operator.
    #[error("{0}")]
    Unavailable(String),
    /// Nothing was taken; what the device holds is as it was.
    #[error("the GPU has no memory left for {what}")]
    OutOfMemory {
        /// What was asked for: so many bytes, or a call that needs some.
        what: String,
    },
    /// The context is lost, with all that the device holds, to the whole process: the driver gives out no other one ("the process must be
    /// terminated and relaunched", as its documentation has it of each such error).
    #[error("{call}: {reason}")]
    Failed {
        /// What failed.
        call: &'static str,
        /// The driver's words.
        reason: String,
    },
}
