//! Files and batches over HTTP, on a data directory that outlives the process.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod batches;
mod client;
mod crash;
mod files;
mod helpers;
mod steer;
mod transcript;
mod webhooks;
