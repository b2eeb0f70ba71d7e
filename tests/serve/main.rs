//! The program itself: started as a user starts it, killed as machines kill it, and given what it cannot use.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod access;
mod bad_input;
mod bench;
mod catalogue;
mod check;
mod crash;
mod disconnects;
mod disk;
mod embeddings;
mod faults;
mod kills;
mod power;
mod program;
mod rerank;
mod tenants;
mod tls;
mod transport;
