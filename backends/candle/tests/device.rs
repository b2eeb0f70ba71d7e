//! Models on a device: against a plain model in F64, against the same model on the CPU, and by the suite that every backend passes. The device
//! is the emulator, or a card where `TANDEM_TEST_DEVICE=cuda` says so.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;

use serde_json::json;
use support::{Model, device::on_device, greedy, settings};
use tandem_candle::{CandleSettings, Dtype, KvType, Quantization};
use tandem_core::{
    BackendLoader, BlockId, Chunk, InferenceBackend, LoadError, Loaded, SampleRow, SamplingParams, SlotId, Step,
    conformance,
};

fn load(settings: CandleSettings, mut serve: impl FnMut(Loaded<'_>)) -> Result<(), LoadError> {
    Box::new(on_device(settings)).with_backend(&mut serve)
}

/// Log-probabilities of the ten likeliest tokens after a prompt, by the root of the mean square of their differences, and its greedy
/// continuation, on the CPU and on the device.
fn compare(settings: &CandleSettings, prompt: &[u32], tokens: usize, tolerance: f32) {
    let (mut on_cpu, mut on_device) = (None, None);
    support::load(settings.clone(), |loaded| {
        on_cpu = Some(greedy(loaded.backend.generator().unwrap(), prompt, tokens));
    })
    .unwrap();
    load(settings.clone(), |loaded| {
        on_device = Some(greedy(loaded.backend.generator().unwrap(), prompt, tokens));
    })
    .unwrap();
    let ((cpu, cpu_tokens), (there, tokens_there)) = (on_cpu.unwrap(), on_device.unwrap());
    let find = |token: u32| there.iter().find(|(other, _)| *other == token).map(|(_, logprob)| *logprob);
    let differences = cpu[..10].iter().map(|(token, logprob)| find(*token).expect("the likeliest are those") - logprob);
    let error = (differences.map(|difference| difference.powi(2)).sum::<f32>() / 10.0).sqrt();
    assert!(error <= tolerance, "off by {error}: {cpu:?}, {there:?}");
    if tolerance < 1e-2 {
        assert_eq!(cpu_tokens, tokens_there);
    }
}

fn prompt(len: u32) -> Vec<u32> {
    (0..len).map(|at| (37 + at * at * 11 + at * 5) % 256).collect()
}

/// A family by the fields that tell it from Llama.
fn family(fields: &serde_json::Value) -> Model {
    let mut config = Model::awkward().config;
    config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    Model::random(config)
}

#[test]
fn a_random_model_is_what_it_is_on_the_cpu() {
    let dir = Model::awkward().write();
    compare(&settings(dir.path()), &prompt(50), 5, 1e-4);
}

#[test]
fn biases_and_tied_embeddings() {
    let fields = json!({ "tie_word_embeddings": true, "attention_bias": true, "mlp_bias": true });
    let dir = family(&fields).write();
    compare(&settings(dir.path()), &prompt(20), 3, 1e-4);
}

/// Heads that have kernels of their own, and matrices that are whole vectors.
fn wide() -> Model {
    family(&json!({
        "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 64
    }))
}

#[test]
fn numbers_of_all_kinds() {
    let dir = wide().write();
    // Of BF16 it is chance which of two neighbours a number becomes: with the order of sums, prompts differ by 0.02 to 0.08.
    for (dtype, tolerance) in [(Dtype::F32, 1e-4), (Dtype::Bf16, 0.1), (Dtype::F16, 0.01)] {
        compare(&CandleSettings { dtype, ..settings(dir.path()) }, &prompt(90), 3, tolerance);
    }
}

#[test]
fn weights_that_are_quantized_on_the_way() {
    let dir = wide().write();
    for quantization in [Quantization::Q8_0, Quantization::Q4K, Quantization::Q4_0] {
        // The CPU rounds activations to 8 bits, the device to BF16; that products are exact otherwise is seen with the kernels.
        let settings = CandleSettings { quantization, dtype: Dtype::Bf16, ..settings(dir.path()) };
        compare(&settings, &prompt(40), 2, 0.25);
    }
}

#[test]
fn keys_and_values_of_eight_bits() {
    let dir = wide().write();
    let (mut plain, mut eight) = (None, None);
    for (kv_type, result) in [(KvType::Auto, &mut plain), (KvType::Fp8, &mut eight)] {
        let settings = CandleSettings { kv_type, dtype: Dtype::Bf16, ..settings(dir.path()) };
        load(settings, |loaded| *result = Some(greedy(loaded.backend.generator().unwrap(), &prompt(70), 2).0)).unwrap();
    }
    let (plain, eight) = (plain.unwrap(), eight.unwrap());
    let differences = plain[..10].iter().map(|(token, logprob)| {
        let other = eight.iter().find(|(other, _)| other == token).expect("the likeliest are those");
        (other.1 - logprob).powi(2)
    });
    // Each number is off by up to a thirtieth.
    let error = (differences.sum::<f32>() / 10.0).sqrt();
    assert!(error > 0.0 && error < 0.4, "off by {error}");
    let on_cpu = CandleSettings { kv_type: KvType::Fp8, ..settings(dir.path()) };
    let error = support::load(on_cpu, |_| panic!("lent out")).unwrap_err().to_string();
    assert!(error.contains("for GPUs"), "{error}");
}

#[test]
fn a_device_conforms() {
    // To the bit but for the order in which parts of an attention are put together, which the number of rows decides.
    let dir = Model::awkward().write();
    conformance::check(Box::new(on_device(settings(dir.path()))), 1e-4).unwrap();
}

#[test]
fn the_shipped_model_is_what_it_is_on_the_cpu() {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny");
    compare(&CandleSettings { context: Some(128), ..settings(&tiny) }, &prompt(24), 2, 2e-3);
}

/// Steps of decoding come from a graph from the third of their size on; one that is larger than it has rows changes nothing.
#[test]
fn graphs_give_what_steps_give() {
    let dir = Model::awkward().write();
    let tokens = prompt(30);
    let run = |backend: &mut dyn InferenceBackend, rows: usize| {
        let tables: Vec<Vec<_>> = (0..3).map(|slot| (0..2).map(|page| BlockId(page * 3 + slot)).collect()).collect();
        let params = SamplingParams::greedy();
        let mut all = Vec::new();
        for at in 0..8 {
            let chunks: Vec<_> = (0..rows)
                .map(|slot| Chunk {
                    slot: SlotId(slot as u32),
                    start: at,
                    tokens: &tokens[at as usize + slot..][..1],
                    block_table: &tables[slot],
                    sample: true,
                    score: false,
                })
                .collect();
            backend.forward(&Step { kv_ops: &[], chunks: &chunks, adapter: None }).unwrap();
            let rows: Vec<_> = chunks
                .iter()
                .map(|chunk| SampleRow {
                    slot: chunk.slot,
                    params: &params,
                    u: 0.0,
                    prompt: &[],
                    output: &[],
                    banned: &[],
                    allowed: None,
                    logprobs: (at % 2 == 0).then_some(5),
                })
                .collect();
            let mut out = Vec::new();
            backend.sample(&rows, &mut out).unwrap();
            all.push(out.into_iter().map(|one| one.unwrap().token).collect::<Vec<_>>());
        }
        all
    };
    for rows in [1, 2, 3] {
        let (mut expected, mut got) = (Vec::new(), Vec::new());
        // Room for four, so that three rows are made four.
        let settings = CandleSettings { parallel: 4, context: Some(32), ..settings(dir.path()) };
        support::load(settings.clone(), |loaded| expected = run(loaded.backend.generator().unwrap(), rows)).unwrap();
        load(settings, |loaded| got = run(loaded.backend.generator().unwrap(), rows)).unwrap();
        assert_eq!(got, expected, "{rows} rows");
    }
}

#[test]
fn what_a_device_cannot_compute_is_refused() {
    let dir = Model::awkward().write();
    // No more than the memory that the emulator has.
    let large = CandleSettings { kv_tokens: Some(u32::MAX / 16 * 16), ..settings(dir.path()) };
    let error = load(large, |_| panic!("lent out")).unwrap_err().to_string();
    assert!(error.contains("on the GPU") && error.contains("GiB"), "{error}");
    for (key, count, reason) in [
        ("vocab_size", 500_001, "500001 tokens, more than 500000, are not computed on a GPU"),
        ("hidden_size", 16_512, "hidden states of 16512 numbers, more than 16384, are not computed on a GPU"),
    ] {
        let mut model = Model::awkward();
        model.config[key] = count.into();
        let dir = model.write();
        let error = load(settings(dir.path()), |_| panic!("lent out")).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}
