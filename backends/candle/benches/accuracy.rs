//! What each way to keep weights costs: bytes, and how far what the model says is from what it says with its weights in F32.
//!
//! ```bash
//! cargo bench -p tandem-candle --bench accuracy -- [MODEL]
//! ```
//!
//! `MODEL` is a model directory of weights that are not quantised; without one it is the model that ships with the project. KL divergence and
//! the error of log-probabilities are means over the tokens of a few texts and of what the model goes on with after each, in nats.

#![expect(clippy::print_stdout, reason = "a table is what it is for")]

use std::path::PathBuf;

use tandem_candle::{CandleSettings, Dtype, Planner, Quantization, accuracy::Reference};

/// Chats that the shipped model was made for; other models take them for text.
const TEXTS: [&str; 6] = [
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWhat is 17+25?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWhat is the opposite of hot?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nCount from 3 to 12.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWhat is the capital of Japan?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWhat color is the sky?<|im_end|>\n<|im_start|>assistant\n",
];
const CONTINUED: usize = 24;

const KEPT: [(&str, Dtype, Quantization); 8] = [
    ("f32", Dtype::F32, Quantization::None),
    ("bf16", Dtype::Bf16, Quantization::None),
    ("f16", Dtype::F16, Quantization::None),
    ("q8_0", Dtype::F32, Quantization::Q8_0),
    ("q6k", Dtype::F32, Quantization::Q6K),
    ("q5k", Dtype::F32, Quantization::Q5K),
    ("q4k", Dtype::F32, Quantization::Q4K),
    ("q4_0", Dtype::F32, Quantization::Q4_0),
];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let shipped = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny"));
    let model = words.first().map_or_else(shipped, PathBuf::from);
    let settings = |dtype: Dtype, quantization: Quantization| CandleSettings {
        model: model.clone(),
        sha256: None,
        context: Some(256),
        parallel: TEXTS.len() as u32,
        dtype,
        quantization,
        block_size: 16,
        max_step_tokens: 64,
        kv_tokens: None,
        kv_type: tandem_candle::KvType::Auto,
        device: tandem_candle::ComputeDevice::Cpu,
        threads: None,
    };
    let reference = Reference::new(settings(Dtype::F32, Quantization::None), &TEXTS, CONTINUED).expect("a model");
    println!("{}", model.display());
    println!("{:<6} {:>11} {:>12} {:>14} {:>10}", "", "weights", "KL", "logprob error", "agreement");
    for (name, dtype, quantization) in KEPT {
        let weights = Planner::new(settings(dtype, quantization)).expect("a plan").plan().needs.weights;
        let distance = reference.compare(settings(dtype, quantization)).expect("the same model");
        println!(
            "{name:<6} {:>7.1} MiB {:>12.3e} {:>14.3e} {:>8.1} % of {} tokens",
            weights as f64 / f64::from(1 << 20),
            distance.kl,
            distance.logprob_error,
            100.0 * distance.agreement,
            distance.tokens,
        );
    }
}
