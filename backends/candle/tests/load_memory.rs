//! What is in memory while a model is loaded: the weights as they are to be kept, and little of the file besides. The weights lie in pages
//! of the system's, which the allocator does not know of, so what it gives out is what there is besides.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use peak_alloc::PeakAlloc;
use serde_json::json;
use support::{Model, settings};
use tandem_candle::{CandleLoader, CandleSettings, Dtype, Planner, Quantization};
use tandem_core::{BackendLoader, LoadProgress, LoadedBytes};

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// What two threads work on, and what a tokenizer is made of, which is most of it: far less than the weights in their file.
const WORKED_ON: usize = 20 << 20;

/// Loads a model, and asserts that at no time there was much more in memory than in the end, and that all of it was told of.
#[track_caller]
fn assert_loads_within(settings: &CandleSettings) {
    let weights = Planner::new(settings.clone()).unwrap().plan().needs.weights;
    let before = ALLOCATED.current_usage();
    ALLOCATED.reset_peak_usage();
    let progress = LoadProgress::default();
    let loader = Box::new(CandleLoader::new(settings.clone()).with_progress(progress.clone()));
    let mut served = false;
    let serve = &mut |_: tandem_core::Loaded<'_>| {
        served = true;
        let (peak, after) = (ALLOCATED.peak_usage() - before, ALLOCATED.current_usage() - before);
        let allowed = after + weights as usize / 10 + WORKED_ON;
        assert!(peak <= allowed, "{settings:?}: a peak of {peak} bytes, {after} in the end, {weights} of weights");
    };
    assert_eq!(progress.bytes(), None);
    loader.with_backend(serve).unwrap();
    assert!(served);
    assert_eq!(progress.bytes(), Some(LoadedBytes { done: weights, total: weights }));
}

/// One matrix is most of the model: read as a whole, it would be in memory twice.
fn with_a_large_vocabulary() -> tempfile::TempDir {
    Model::random(json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 48_000, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
        "rope_theta": 500.0, "hidden_act": "silu", "tie_word_embeddings": true, "eos_token_id": 259
    }))
    .write()
}

/// All in one test, since the peak is of the whole process.
#[test]
fn weights_are_in_memory_once() {
    let model = with_a_large_vocabulary();
    for (dtype, quantization) in [
        (Dtype::Auto, Quantization::None),
        (Dtype::Bf16, Quantization::None),
        (Dtype::Auto, Quantization::Q8_0),
        (Dtype::Auto, Quantization::Q4K),
    ] {
        assert_loads_within(&CandleSettings {
            context: Some(32),
            parallel: 1,
            dtype,
            quantization,
            ..settings(model.path())
        });
    }
}
