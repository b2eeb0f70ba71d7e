//! Who may ask for what, and how much: API keys, their scopes, the tenants they belong to, and their limits.
//!
//! [`Access`] is asked once for each request: it turns what the request presents into a [`Caller`] or an error. What a caller has used up is
//! known to the key's meters, which every request of the key shares.

mod bucket;
mod caller;
mod failures;
mod key;
mod keyring;
mod scope;

pub use caller::{Caller, RateLimit, Running};
pub use key::{KeyText, hash};
pub use keyring::Access;
pub use scope::{Scope, Scopes};
