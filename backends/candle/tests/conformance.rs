//! The suite that every backend passes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;

use support::{Model, settings};
use tandem_candle::{CandleLoader, CandleSettings};
use tandem_core::conformance;

/// Products of few rows and of many add up in other orders.
/// To the bit: every sum is added up in one order, whatever is computed beside it.
const TOLERANCE: f32 = 0.0;

#[test]
fn a_random_model_conforms() {
    let dir = Model::awkward().write();
    for (block_size, threads) in [(16, 1), (16, 2), (32, 2), (48, 1)] {
        let settings = CandleSettings { block_size, threads: Some(threads), ..settings(dir.path()) };
        conformance::check(Box::new(CandleLoader::new(settings)), TOLERANCE).unwrap();
    }
}

#[test]
fn the_shipped_model_conforms() {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny");
    assert!(tiny.join("config.json").exists(), "models/tiny belongs to the repository");
    conformance::check(Box::new(CandleLoader::new(settings(&tiny))), TOLERANCE).unwrap();
}
