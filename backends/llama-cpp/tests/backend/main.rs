//! The backend on a real, tiny model.

mod adapter_writer;
mod adapters;
mod architectures;
mod bad_files;
mod batches;
mod embedder;
mod forged_files;
#[path = "../../../gguf/tests/forger/mod.rs"]
mod forger;
mod gguf;
mod gpu;
mod helpers;
mod hybrids;
#[cfg(not(any(feature = "dynamic-backends", feature = "metal")))]
mod no_gpu;
mod pins;
mod reranker;
mod shapes;
mod text;

use tandem_core::conformance;

use helpers::{loader, settings};
use tandem_llama_cpp::{KvType, LlamaCppLoader, LlamaCppSettings};

/// Rounding differs between one token and many, since other kernels run.
const TOLERANCE: f32 = 2e-2;

#[test]
fn it_keeps_the_contract() {
    conformance::check(Box::new(loader(4, 512)), TOLERANCE).expect("the model loads");
}

#[test]
fn it_keeps_the_contract_in_small_steps() {
    let settings = LlamaCppSettings { max_step_tokens: 40, ..settings(2, 128) };
    conformance::check(Box::new(LlamaCppLoader::new(settings)), TOLERANCE).expect("the model loads");
}

#[test]
fn it_keeps_the_contract_with_a_pool_for_each_slot() {
    let settings = LlamaCppSettings { kv_unified: false, ..settings(4, 512) };
    conformance::check(Box::new(LlamaCppLoader::new(settings)), TOLERANCE).expect("the model loads");
}

#[test]
fn a_quantized_cache_loads() {
    for kv_type in [KvType::Q8_0, KvType::Q4_0] {
        let settings = LlamaCppSettings { kv_type, ..settings(2, 128) };
        helpers::with_backend(LlamaCppLoader::new(settings), |loaded| {
            let tokens = helpers::greedy(helpers::generator(loaded), 0, &[5, 6, 7, 8], 4);
            assert_eq!(tokens.len(), 4);
        });
    }
}
