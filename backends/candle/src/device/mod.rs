//! The decoder on a GPU: the same steps as on the CPU, of the operations of `tandem-cuda`.
//!
//! A model may be divided among several devices, of which each is a rank with a thread of its own; what it has of the model is a decoder like
//! any other, that adds up with the others what it made.
//!
//! The hidden state and what products give is F32; what products and attention take is rounded to the numbers that weights are kept in. All
//! memory is taken when the model is loaded, so that no step can find too little of it.

mod backend;
mod batch;
mod buffers;
mod decoder;
mod layer;
mod linear;
mod loader;
mod memory;
mod parallel;
mod split;

pub(crate) use backend::DeviceBackend;
pub(crate) use decoder::{DeviceDecoder, Shape};
pub(crate) use linear::DeviceLinear;
pub(crate) use memory::{DeviceNeeds, kv_number, kv_tokens, number, room, unsupported};
pub(crate) use parallel::ParallelDecoder;
pub(crate) use split::Split;

use tandem_core::LoadError;
use tandem_cuda::CudaError;

/// Why an embedding model is not loaded to one.
pub(crate) const EMBEDDERS_STAY: &str = "embedding models are computed on the CPU (backend.device = \"cpu\")";

/// What a device said, as the reason why a model is not loaded.
pub(crate) fn refused(error: CudaError) -> LoadError {
    match error {
        CudaError::Unavailable(reason) => LoadError::Unsupported(reason),
        CudaError::OutOfMemory { .. } => LoadError::Unsupported(error.to_string()),
        CudaError::Failed { .. } => LoadError::DeviceLost(error.into()),
    }
}
