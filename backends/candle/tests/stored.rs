//! Checkpoints whose layers are stored in few bits, against plain ones of the same numbers.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;

use half::f16;
use safetensors::Dtype;
use serde_json::{Value, json};
use support::{Model, greedy, load, settings, write_raw};
use tandem_core::TokenId;

type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// A Llama whose layers are whole words of eight in each direction.
fn model() -> Model {
    let mut config = Model::awkward().config;
    for (name, size) in [("hidden_size", 48), ("intermediate_size", 64), ("head_dim", 16)] {
        config[name] = size.into();
    }
    Model::random(config)
}

fn is_layer(name: &str) -> bool {
    name.ends_with("_proj.weight")
}

/// Writes the model twice: with layers as `store` has them, and as the values that it says they are.
fn twins(quantization: Value, store: impl Fn(&str, &[usize]) -> (Vec<Tensor>, Vec<f32>)) -> [tempfile::TempDir; 2] {
    let mut stored = model();
    let mut plain = stored.clone();
    stored.config["quantization_config"] = quantization;
    let mut tensors = Vec::new();
    for (name, (shape, values)) in &mut plain.tensors {
        if is_layer(name) {
            let (parts, meant) = store(name.strip_suffix(".weight").unwrap(), shape);
            tensors.extend(parts);
            *values = meant;
        } else {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            tensors.push((name.clone(), Dtype::F32, shape.clone(), bytes));
        }
    }
    let dir = stored.write_without_weights();
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| (name.as_str(), *dtype, shape.clone(), &bytes[..]));
    write_raw(&dir.path().join("model.safetensors"), views);
    [dir, plain.write()]
}

/// The likeliest tokens after a prompt.
fn likeliest(path: &Path) -> Vec<(TokenId, f32)> {
    let prompt: Vec<TokenId> = (0..40).map(|at| at * 7 % 250).collect();
    let mut top = Vec::new();
    load(settings(path), |loaded| top = greedy(loaded.backend.generator().unwrap(), &prompt, 1).0).unwrap();
    top
}

#[test]
fn four_bits_are_the_numbers_that_they_stand_for() {
    let twins = twins(json!({ "quant_method": "gptq", "bits": 4, "group_size": 16 }), |layer, shape| {
        let (outputs, inputs) = (shape[0], shape[1]);
        let groups = inputs / 16;
        let seed = layer.len();
        let quant = |output: usize, input: usize| ((output * 5 + input * 11 + seed) % 16) as u32;
        let zero = |output: usize, group: usize| ((output + group) % 9 + 3) as u32;
        let scale = |output: usize, group: usize| f16::from_f32(0.01 * (1.0 + ((output * 3 + group) % 7) as f32));
        let words = |rows: usize, columns: usize, word: &dyn Fn(usize, usize) -> u32| {
            (0..rows * columns).flat_map(|at| word(at / columns, at % columns).to_le_bytes()).collect::<Vec<u8>>()
        };
        let quants = words(inputs / 8, outputs, &|row, output| {
            (0..8).map(|bit| quant(output, row * 8 + bit) << (4 * bit)).sum()
        });
        let zeros = words(groups, outputs / 8, &|group, word| {
            (0..8).map(|bit| (zero(word * 8 + bit, group) - 1) << (4 * bit)).sum()
        });
        let scales = (0..groups * outputs).flat_map(|at| scale(at % outputs, at / outputs).to_le_bytes()).collect();
        let order = words(inputs, 1, &|input, _| (input / 16) as u32);
        let parts = vec![
            (format!("{layer}.qweight"), Dtype::I32, vec![inputs / 8, outputs], quants),
            (format!("{layer}.qzeros"), Dtype::I32, vec![groups, outputs / 8], zeros),
            (format!("{layer}.scales"), Dtype::F16, vec![groups, outputs], scales),
            (format!("{layer}.g_idx"), Dtype::I32, vec![inputs], order),
        ];
        let meant = (0..outputs * inputs).map(|at| {
            let (output, input) = (at / inputs, at % inputs);
            let steps = quant(output, input) as f32 - zero(output, input / 16) as f32;
            f16::from_f32(scale(output, input / 16).to_f32() * steps).to_f32()
        });
        (parts, meant.collect())
    });
    assert_eq!(likeliest(twins[0].path()), likeliest(twins[1].path()));
}

#[test]
fn eight_bit_floats_are_multiplied_with_their_scales() {
    let twins = twins(json!({ "quant_method": "fp8", "weight_block_size": [32, 32] }), |layer, shape| {
        let (outputs, inputs) = (shape[0], shape[1]);
        let (rows, columns) = (outputs.div_ceil(32), inputs.div_ceil(32));
        // Powers of two between 1/4 and 2, with both signs.
        let exponent = |output: usize, input: usize| (output * 3 + input * 7 + layer.len()) % 4;
        let sign = |output: usize, input: usize| (output + input * input).is_multiple_of(3);
        let scale = |row: usize, column: usize| 0.05 + 0.02 * (row + 2 * column) as f32;
        let at = |at: usize| (at / inputs, at % inputs);
        let bytes = (0..outputs * inputs).map(|place| {
            let (output, input) = at(place);
            (5 + exponent(output, input) as u8) << 3 | u8::from(sign(output, input)) << 7
        });
        let scales = (0..rows * columns).flat_map(|at| scale(at / columns, at % columns).to_le_bytes()).collect();
        let parts = vec![
            (format!("{layer}.weight"), Dtype::F8_E4M3, vec![outputs, inputs], bytes.collect()),
            (format!("{layer}.weight_scale_inv"), Dtype::F32, vec![rows, columns], scales),
        ];
        let meant = (0..outputs * inputs).map(|place| {
            let (output, input) = at(place);
            let size = 2f32.powi(exponent(output, input) as i32 - 2) * scale(output / 32, input / 32);
            half::bf16::from_f32(if sign(output, input) { -size } else { size }).to_f32()
        });
        (parts, meant.collect())
    });
    assert_eq!(likeliest(twins[0].path()), likeliest(twins[1].path()));
}
