//! How fast steps are: prompts of 512 tokens, and decoding of 1 to 32 sequences behind 128 tokens each, without engine or server.
//!
//! ```bash
//! cargo bench -p tandem-candle --bench steps -- MODEL [THREADS]
//! ```
//!
//! `MODEL` is a GGUF file or a model directory; without one it is the model that ships with the project.

#![expect(clippy::print_stdout, reason = "a table is what it is for")]

use std::{path::PathBuf, time::Instant};

use tandem_candle::{CandleLoader, CandleSettings, Dtype, Quantization};
use tandem_core::{BackendLoader, BlockId, Chunk, InferenceBackend, SampleRow, SamplingParams, SlotId, Step, TokenId};

const PROMPT: usize = 512;
const BEFORE: usize = 128;
const BLOCK: usize = 16;
const DECODED: usize = 24;
const REPEATS: usize = 3;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let shipped = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny"));
    let model = words.first().map_or_else(shipped, PathBuf::from);
    let threads = words.get(1).map(|threads| threads.parse().expect("a number of threads"));
    let settings = CandleSettings {
        model: model.clone(),
        sha256: None,
        context: Some(1024),
        parallel: 32,
        dtype: Dtype::Auto,
        quantization: Quantization::None,
        block_size: BLOCK as u32,
        max_step_tokens: PROMPT as u32,
        kv_tokens: None,
        kv_type: tandem_candle::KvType::Auto,
        device: tandem_candle::ComputeDevice::Cpu,
        threads,
    };
    let bench = |backend: &mut dyn InferenceBackend| {
        println!(
            "{}, {} threads, {}",
            model.display(),
            settings.threads.map_or("all".to_owned(), |n| n.to_string()),
            tandem_kernels::instructions()
        );
        let prefill = best(|| prefill(backend, PROMPT, &[0]));
        println!("prompt of {PROMPT}: {:.1} tokens/s", PROMPT as f64 / prefill);
        for sequences in [1, 2, 4, 8, 16, 32] {
            let slots: Vec<u32> = (0..sequences).collect();
            let seconds = best(|| {
                prefill_all(backend, &slots);
                decode(backend, &slots)
            });
            println!("decoding {sequences}: {:.1} tokens/s", f64::from(sequences) * DECODED as f64 / seconds);
        }
    };
    Box::new(CandleLoader::new(settings.clone()))
        .with_backend(&mut |loaded| bench(loaded.backend.generator().expect("a model that generates")))
        .expect("a model");
}

fn best(mut run: impl FnMut() -> f64) -> f64 {
    (0..REPEATS).map(|_| run()).fold(f64::INFINITY, f64::min)
}

fn table(slot: u32) -> Vec<BlockId> {
    let blocks = 1024 / BLOCK as u32;
    (slot * blocks..(slot + 1) * blocks).map(BlockId).collect()
}

fn tokens(seed: u32, len: usize, vocab: u32) -> Vec<TokenId> {
    (0..len as u32).map(|at| (seed * 7919 + at * 104_729) % vocab).collect()
}

fn run(backend: &mut dyn InferenceBackend, chunks: &[Chunk<'_>]) -> Vec<TokenId> {
    backend.forward(&Step { kv_ops: &[], chunks, adapter: None }).expect("a step");
    let params = SamplingParams::greedy();
    let rows: Vec<_> = chunks
        .iter()
        .filter(|chunk| chunk.sample)
        .map(|chunk| SampleRow {
            slot: chunk.slot,
            params: &params,
            u: 0.0,
            prompt: &[],
            output: &[],
            banned: &[],
            allowed: None,
            logprobs: None,
        })
        .collect();
    let mut out = Vec::new();
    backend.sample(&rows, &mut out).expect("samples");
    out.into_iter().map(|result| result.expect("finite logits").token).collect()
}

/// Seconds for a prompt in each slot, one step each.
fn prefill(backend: &mut dyn InferenceBackend, len: usize, slots: &[u32]) -> f64 {
    let vocab = backend.spec().vocab_size;
    let begun = Instant::now();
    for &slot in slots {
        let (tokens, table) = (tokens(slot + 1, len, vocab), table(slot));
        run(
            backend,
            &[Chunk { slot: SlotId(slot), start: 0, tokens: &tokens, block_table: &table, sample: true, score: false }],
        );
    }
    begun.elapsed().as_secs_f64()
}

fn prefill_all(backend: &mut dyn InferenceBackend, slots: &[u32]) {
    prefill(backend, BEFORE, slots);
}

fn decode(backend: &mut dyn InferenceBackend, slots: &[u32]) -> f64 {
    let tables: Vec<_> = slots.iter().map(|&slot| table(slot)).collect();
    let mut last: Vec<TokenId> = slots.to_vec();
    let begun = Instant::now();
    for at in 0..DECODED {
        let chunks: Vec<_> = slots
            .iter()
            .zip(&tables)
            .zip(&last)
            .map(|((&slot, table), token)| Chunk {
                slot: SlotId(slot),
                start: (BEFORE + at) as u32,
                tokens: std::slice::from_ref(token),
                block_table: table,
                sample: true,
                score: false,
            })
            .collect();
        last = run(backend, &chunks);
    }
    begun.elapsed().as_secs_f64()
}
