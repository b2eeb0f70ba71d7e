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

/// A model in four bits, with a bias of each layer where there is one, and the same in plain numbers.
fn four_bits(bias: Option<f32>) -> [tempfile::TempDir; 2] {
    twins(json!({ "quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": false }), |layer, shape| {
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
        let mut parts = vec![
            (format!("{layer}.qweight"), Dtype::I32, vec![inputs / 8, outputs], quants),
            (format!("{layer}.qzeros"), Dtype::I32, vec![groups, outputs / 8], zeros),
            (format!("{layer}.scales"), Dtype::F16, vec![groups, outputs], scales),
            (format!("{layer}.g_idx"), Dtype::I32, vec![inputs], order),
        ];
        if let Some(bias) = bias {
            let bias = f16::from_f32(bias).to_le_bytes().repeat(outputs);
            parts.push((format!("{layer}.bias"), Dtype::F16, vec![outputs], bias));
        }
        let meant = (0..outputs * inputs).map(|at| {
            let (output, input) = (at / inputs, at % inputs);
            let steps = quant(output, input) as f32 - zero(output, input / 16) as f32;
            f16::from_f32(scale(output, input / 16).to_f32() * steps).to_f32()
        });
        (parts, meant.collect())
    })
}

#[test]
fn four_bits_are_the_numbers_that_they_stand_for() {
    let twins = four_bits(None);
    assert_eq!(likeliest(twins[0].path()), likeliest(twins[1].path()));
}

/// Those who quantise write a bias to every layer, of zeros where the model has none. Any other would be of a model that is not this one.
#[test]
fn biases_of_zeros_change_nothing() {
    for zero in [0.0, -0.0] {
        let twins = four_bits(Some(zero));
        assert_eq!(likeliest(twins[0].path()), likeliest(twins[1].path()));
    }
    let [biased, _] = four_bits(Some(0.25));
    let error = load(settings(biased.path()), |_| ()).unwrap_err().to_string();
    let reason = "tensor model.layers.0.mlp.down_proj.bias: config.json has no place for it";
    assert!(error.contains(reason), "{error}");
}

/// A model as llm-compressor writes it: a scale for each output, or one for each matrix, with what its activations would be scaled by.
#[test]
fn compressed_floats_are_multiplied_with_their_scales() {
    for strategy in ["channel", "tensor"] {
        let quantization = json!({
            "quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"],
            "config_groups": { "group_0": { "targets": ["Linear"], "weights": {
                "num_bits": 8, "type": "float", "strategy": strategy, "symmetric": true, "dynamic": false
            } } }
        });
        let twins = twins(quantization, |layer, shape| {
            let (outputs, inputs) = (shape[0], shape[1]);
            let scales = if strategy == "tensor" { 1 } else { outputs };
            let scale = |output: usize| half::bf16::from_f32(0.05 + 0.002 * (output % scales + layer.len() % 3) as f32);
            // Between 1/8 and 1, with both signs.
            let exponent = |at: usize| (at * 7 + layer.len()) % 4;
            let negative = |at: usize| (at * at).is_multiple_of(3);
            let all = 0..outputs * inputs;
            let bytes = all.clone().map(|at| (4 + exponent(at) as u8) << 3 | u8::from(negative(at)) << 7).collect();
            let shape = if strategy == "tensor" { vec![1] } else { vec![outputs, 1] };
            let parts = vec![
                (format!("{layer}.weight"), Dtype::F8_E4M3, vec![outputs, inputs], bytes),
                (
                    format!("{layer}.weight_scale"),
                    Dtype::BF16,
                    shape,
                    (0..scales).flat_map(|output| scale(output).to_le_bytes()).collect(),
                ),
                (format!("{layer}.input_scale"), Dtype::BF16, vec![1], half::bf16::ONE.to_le_bytes().to_vec()),
            ];
            let meant = all.map(|at| {
                let size = 2f32.powi(exponent(at) as i32 - 3) * scale(at / inputs).to_f32();
                half::bf16::from_f32(if negative(at) { -size } else { size }).to_f32()
            });
            (parts, meant.collect())
        });
        assert_eq!(likeliest(twins[0].path()), likeliest(twins[1].path()), "{strategy}");
    }
}

/// Scales that are of something else than the configuration says.
#[test]
fn compressed_floats_with_other_scales_are_refused() {
    let quantization = json!({
        "quant_method": "compressed-tensors", "format": "float-quantized",
        "config_groups": { "group_0": { "weights": { "num_bits": 8, "type": "float", "strategy": "channel" } } }
    });
    let [stored, _] = twins(quantization, |layer, shape| {
        let parts = vec![
            (format!("{layer}.weight"), Dtype::F8_E4M3, shape.to_vec(), vec![0; shape.iter().product()]),
            (format!("{layer}.weight_scale"), Dtype::F32, vec![1], 1f32.to_le_bytes().to_vec()),
        ];
        (parts, vec![0.0; shape.iter().product()])
    });
    let error = load(settings(stored.path()), |_| ()).unwrap_err().to_string();
    let reason = "tensor model.layers.0.self_attn.q_proj.weight: 1 x 1 scales of blocks of 1 x 48";
    assert!(error.contains(reason), "{error}");
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
