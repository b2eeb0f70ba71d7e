//! The engine over both backends, on the model that ships with the project.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod helpers;
mod parity;
mod prefix;
mod seeds;
