//! The simulated backend keeps the contract, in both layouts.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use tandem_core::conformance;
use tandem_sim::{SimEmbedderLoader, SimEmbedderSettings, SimLayout, SimLoader, SimPairs, SimSettings};

fn check(layout: SimLayout, mixes_phases: bool) {
    let adapters = vec!["one".to_owned(), "two".to_owned()];
    let plain = SimSettings { layout, mixes_phases, adapters, ..SimSettings::default() };
    let ahead = SimSettings { looks_ahead: true, ..plain.clone() };
    let by_block = matches!(layout, SimLayout::Blocks { .. });
    for settings in [plain, ahead].into_iter().take(1 + usize::from(by_block)) {
        conformance::check(Box::new(SimLoader::new(settings)), 0.0).unwrap();
    }
}

#[test]
fn by_slot() {
    check(SimLayout::Slots { cells: 512, partial_reuse: true }, true);
    check(SimLayout::Slots { cells: 512, partial_reuse: false }, true);
}

#[test]
fn by_block() {
    check(SimLayout::Blocks { count: 64, block_size: 8 }, true);
}

#[test]
fn with_separate_phases() {
    check(SimLayout::Blocks { count: 64, block_size: 8 }, false);
}

fn check_embedder(pairs: Option<&SimPairs>) {
    for (max_inputs, max_pass_tokens) in [(3, 16), (3, 40), (8, 100)] {
        let pairs = pairs.cloned();
        let defaults = SimEmbedderSettings::default();
        let settings = SimEmbedderSettings { max_input_tokens: 40, max_inputs, max_pass_tokens, pairs, ..defaults };
        conformance::check_embedder(Box::new(SimEmbedderLoader::new(settings)), 0.0).unwrap();
    }
}

#[test]
fn vectors() {
    check_embedder(None);
}

#[test]
fn ranks() {
    check_embedder(Some(&SimPairs::Framed { separated: false }));
}
