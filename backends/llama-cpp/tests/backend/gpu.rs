//! What needs a GPU, and a build that can use it: `cargo nextest run --profile gpu`, or `scripts/gpu-check`.

use tandem_core::conformance;
use tandem_llama_cpp::{
    Assumptions, FlashAttention, GpuLayers, GpuSettings, GpuSplit, KvType, LlamaCppLoader, LlamaCppSettings,
    MemoryPlace, Planner,
};

use crate::helpers;

/// Sums are taken in another order than on the processor, and of halves.
const TOLERANCE: f32 = 5e-2;

fn on_gpus(layers: GpuLayers, settings: LlamaCppSettings) -> LlamaCppSettings {
    let gpu = GpuSettings { layers, split: GpuSplit::Layer, main: 0, devices: Vec::new() };
    LlamaCppSettings { gpu, ..settings }
}

/// Without a GPU these tests would pass on the processor, and say nothing.
fn assert_used(settings: &LlamaCppSettings) {
    let plan = Planner::new(settings, Assumptions::default()).and_then(|planner| planner.plan());
    let plan = plan.expect("the model is there");
    let is_gpu = |place: &MemoryPlace| matches!(place, MemoryPlace::Gpu { .. });
    let on_gpus: u64 = plan.shares.iter().filter(|share| is_gpu(&share.place)).map(|share| share.needs.weights).sum();
    assert!(on_gpus > 0, "nothing is on a GPU: {plan:?}");
}

fn check(settings: LlamaCppSettings) {
    assert_used(&settings);
    conformance::check(Box::new(LlamaCppLoader::new(settings)), TOLERANCE).expect("the model loads");
}

#[test]
fn it_keeps_the_contract() {
    check(on_gpus(GpuLayers::All, helpers::settings(4, 512)));
}

#[test]
fn it_keeps_the_contract_with_a_pool_for_each_slot() {
    check(on_gpus(GpuLayers::All, LlamaCppSettings { kv_unified: false, ..helpers::settings(4, 512) }));
}

#[test]
fn it_keeps_the_contract_with_a_part_of_the_layers() {
    check(on_gpus(GpuLayers::Count(3), helpers::settings(4, 512)));
}

#[test]
fn it_keeps_the_contract_with_attention_over_tiles() {
    check(on_gpus(
        GpuLayers::All,
        LlamaCppSettings { flash_attention: FlashAttention::On, ..helpers::settings(4, 512) },
    ));
}

#[test]
fn as_many_layers_as_fit_are_all_of_a_small_model() {
    let settings = on_gpus(GpuLayers::Auto, helpers::settings(2, 128));
    let plan = Planner::new(&settings, Assumptions::default()).and_then(|planner| planner.plan());
    assert_eq!(plan.expect("the model is there").layers, (6, 6));
}

/// The likeliest tokens behind a prompt, as `settings` compute them.
fn likeliest(settings: LlamaCppSettings) -> Vec<(u32, f32)> {
    let mut found = Vec::new();
    helpers::with_backend(LlamaCppLoader::new(settings), |loaded| {
        let backend = helpers::generator(loaded);
        let prompt = helpers::prompt(0, 100);
        helpers::forward(backend, &[], &[(0, 0, &prompt, true)]).expect("a prompt that fits");
        found = helpers::likeliest(backend, &[0]).remove(0);
    });
    found
}

#[test]
fn it_computes_what_the_processor_computes() {
    let processor = likeliest(helpers::settings(2, 128));
    for (kv_type, tolerance) in [(KvType::F16, 0.02), (KvType::Q8_0, 0.1)] {
        let settings = on_gpus(GpuLayers::All, LlamaCppSettings { kv_type, ..helpers::settings(2, 128) });
        assert_used(&settings);
        let gpu = likeliest(settings);
        assert_eq!(gpu[0].0, processor[0].0, "{kv_type:?}: {gpu:?}, {processor:?}");
        for (token, logprob) in &processor {
            let other = gpu.iter().find(|(other, _)| other == token);
            // The last of five may be another one.
            let Some((_, other)) = other else { continue };
            assert!((logprob - other).abs() < tolerance, "{kv_type:?}, token {token}: {other}, {logprob}");
        }
    }
}
