//! What quantising changes of what the shipped model says: the more bits, the less, and none of it more than it should.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;

use support::settings;
use tandem_candle::{CandleSettings, Dtype, Quantization, accuracy::Reference};

#[test]
fn fewer_bits_say_other_things() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny");
    let kept = |dtype, quantization| CandleSettings { context: Some(64), dtype, quantization, ..settings(&model) };
    let texts = ["capital of France", "What is 17+25?<|im_end|>\n<|im_start|>assistant\n"];
    let reference = Reference::new(kept(Dtype::F32, Quantization::None), &texts, 10).unwrap();

    let same = reference.compare(kept(Dtype::F32, Quantization::None)).unwrap();
    assert!(same.tokens > 2 * 10, "{same:?}");
    assert_eq!((same.kl, same.logprob_error, same.agreement), (0.0, 0.0, 1.0));

    let eight = reference.compare(kept(Dtype::F32, Quantization::Q8_0)).unwrap();
    let four = reference.compare(kept(Dtype::F32, Quantization::Q4_0)).unwrap();
    assert!(eight.kl > 0.0 && eight.kl < 0.01 && eight.logprob_error > 0.0, "{eight:?}");
    assert!(eight.agreement > 0.9, "{eight:?}");
    assert!(four.kl > 2.0 * eight.kl && four.logprob_error > eight.logprob_error, "{four:?} and {eight:?}");
}
