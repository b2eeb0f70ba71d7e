//! Which models are resident, and the right to use one.

mod lease;
mod loader;
mod registry;
mod resident;

pub use lease::{Lease, LeaseError};
pub use loader::backend_versions;
pub use registry::{ModelCard, Models};
pub use resident::MakeLoader;
