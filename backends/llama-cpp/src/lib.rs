//! GGUF models through llama.cpp, in this process.
//!
//! One context holds all sequences, and every step is one `llama_decode` over those that run: eight sequences cost little more than one,
//! since the weights are read once for all of them. (Eight contexts would read them eight times.) The mapping from the contract is direct: a
//! slot is a sequence id, a chunk is a run of batch entries, [`KvOp`](tandem_core::KvOp)s are the memory's `seq_rm` and `seq_cp`, and a row to
//! sample is the logits of a chunk's last token.
//!
//! A file whose model turns texts into vectors is run by a backend of its own (`embedder`): each input is a sequence, and all of a pass are
//! computed in one call. One that ranks documents is run in the same way (`ranking`).
//!
//! llama.cpp trusts its input: a forged file, a sequence id that it does not have or logits that were not computed end in an abort, a
//! panic or worse. So files are checked before it sees them (`tandem_gguf`, `model_file`, `hyper_parameters`, `ranking`, `adapter_file`) and steps before they
//! reach it (`backend`, `embedder`).
//!
//! Invariants: no `unsafe` here, all of it is behind the safe wrapper; nothing of a model outlives
//! [`with_backend`](tandem_core::BackendLoader::with_backend) but the vocabulary and the tokenizer, which hold no weights.

mod adapter_file;
mod backend;
mod devices;
mod embedder;
mod hyper_parameters;
#[cfg(any(feature = "dynamic-backends", test))]
mod libraries;
mod loader;
mod logged;
mod model_file;
mod params;
mod placement;
mod plan;
mod ranking;
mod runtime;
mod settings;
mod tokenizer;
mod vocab;

pub use loader::LlamaCppLoader;
pub use plan::{Assumptions, GPU_MARGIN, MemoryPlace, MemoryPlan, Planner, Share};
pub use runtime::{system_info, version};
pub use settings::{AdapterSettings, FlashAttention, GpuLayers, GpuSettings, GpuSplit, KvType, LlamaCppSettings, Numa};
