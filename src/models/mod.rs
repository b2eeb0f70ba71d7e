//! Which models are resident, and the right to use one.

mod back_off;
mod lease;
mod loader;
mod overridden;
mod plan;
mod registry;
mod resident;
mod synth;
mod watchdog;

pub use lease::{Embedder, Generator, Lease, LeaseError, Reranker};
pub use loader::{backend_versions, plan, synthesize};
pub use plan::{Place, Plan, Room, Share, Work};
pub use registry::{ModelCard, Models};
pub use synth::{SynthFailure, SynthOrder};
pub use watchdog::Fatal;
