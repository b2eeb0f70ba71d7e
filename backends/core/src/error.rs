use thiserror::Error;

/// Any error of a foreign library, kept for the log.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a step was not carried out, by what the engine can do about it.
#[derive(Debug, Error)]
pub enum StepError {
    /// Nothing was computed; KV memory is as it was after the step's `kv_ops`. Plan a smaller step.
    #[error("the KV cache cannot hold this step")]
    KvFull,
    /// The backend is finished: every generation fails and the model is unloaded.
    #[error("the device failed")]
    Device(#[source] BoxError),
    /// The same, and no backend of this process can have the device again: what a card says after an illegal access, it says to all that
    /// follows. The process has to end.
    #[error("the device is lost to this process")]
    Lost(#[source] BoxError),
}

/// An embedding backend is finished: every request fails and the model is unloaded.
#[derive(Debug, Error)]
#[error("the device failed")]
pub struct DeviceError(#[source] pub BoxError);

/// Why one row yielded no token. Other rows are not affected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SampleError {
    /// The model produced NaN, or no finite logit at all.
    #[error("the model produced non-finite logits")]
    NonFinite,
    /// Bans and biases left nothing to choose from.
    #[error("no token is left to sample")]
    NothingLeft,
}

/// Why a model could not be loaded. The message names the file and the rule it breaks; it is fit for the operator's eyes.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The file or directory is not there or cannot be read.
    #[error("cannot read {path}: {reason}")]
    Unreadable {
        /// What was looked for.
        path: String,
        /// Why it could not be read.
        reason: String,
    },
    /// The file is there and wrong.
    #[error("{path}: {reason}")]
    Invalid {
        /// The file.
        path: String,
        /// The rule that it breaks.
        reason: String,
    },
    /// The settings ask for something that this backend or machine cannot give.
    #[error("{0}")]
    Unsupported(String),
    /// The device is lost to this process, as [`StepError::Lost`] has it.
    #[error("the device is lost to this process")]
    DeviceLost(#[source] BoxError),
    /// Anything else, from the library below.
    #[error("{context}")]
    Other {
        /// What was being done.
        context: String,
        /// The library's error.
        #[source]
        source: BoxError,
    },
}
