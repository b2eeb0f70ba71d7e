//! How fast steps are on a card, and how near to what it could do: decoding of 1 to 256 sequences, and prompts of 512 to 8,192 tokens, without
//! engine or server.
//!
//! ```bash
//! cargo bench -p tandem-candle --features cuda --bench card -- MODEL [--json FILE]
//! ```
//!
//! `MODEL` is a GGUF file or a model directory, such as `tandem dev synth` writes. Measured first is what the card does at most: a copy of a
//! gibibyte, and a BF16 product of 8,192 on each side.

#![expect(clippy::print_stdout, reason = "a table is what it is for")]

use std::{path::PathBuf, time::Instant};

use serde_json::{Value, json};
use tandem_candle::{CandleLoader, CandleSettings, ComputeDevice, Dtype, KvType, Planner, Quantization};
use tandem_core::{
    BackendLoader, BlockId, Chunk, InferenceBackend, KvLayout, SampleRow, SamplingParams, SlotId, Step, TokenId,
};
use tandem_cuda::{CudaError, Device, Input, Number, Weight, WeightFormat};

const BLOCK: usize = 16;
/// Tokens before those that are decoded.
const BEFORE: usize = 512;
const DECODED: usize = 64;
const SEQUENCES: [usize; 5] = [1, 8, 32, 128, 256];
const PROMPTS: [usize; 3] = [512, 2048, 8192];
const REPEATS: usize = 3;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let Some(model) = words.first().filter(|word| !word.starts_with("--")).map(PathBuf::from) else {
        println!("usage: card MODEL [--json FILE]");
        return;
    };
    let device = match Device::open(0) {
        Ok(device) => device,
        Err(error) => {
            println!("nothing to measure: {error}");
            return;
        }
    };
    let settings = CandleSettings {
        model: model.clone(),
        sha256: None,
        context: Some(PROMPTS[2] as u32 + 16),
        parallel: SEQUENCES[4] as u32,
        dtype: Dtype::Auto,
        quantization: Quantization::None,
        block_size: BLOCK as u32,
        max_step_tokens: PROMPTS[2] as u32,
        kv_tokens: None,
        kv_type: KvType::Auto,
        device: ComputeDevice::Cuda { ordinal: 0, ranks: 1, memory_fraction: 0.9 },
        threads: None,
    };
    let (bandwidth, rate) = ceilings(&device).expect("a card that works");
    println!("{}: copies {:.2} TB/s, BF16 {:.0} TFLOP/s", device.name(), bandwidth / 1e12, rate / 1e12);
    let needs = Planner::new(settings.clone()).and_then(|planner| planner.plan_within(None)).expect("a model").needs;
    let mut results = Vec::new();
    let bench = |backend: &mut dyn InferenceBackend| {
        results = measure(backend, needs.weights as f64, bandwidth);
    };
    let mut bench = bench;
    Box::new(CandleLoader::new(settings).on(device.clone()))
        .with_backend(&mut |loaded| bench(loaded.backend.generator().expect("a model that generates")))
        .expect("a model");
    let report = json!({
        "model": model.display().to_string(), "device": device.name(), "copy_bytes_per_second": bandwidth,
        "bf16_flop_per_second": rate, "weight_bytes": needs.weights, "results": results
    });
    if let Some(file) = words.iter().position(|word| word == "--json").and_then(|at| words.get(at + 1)) {
        fs_err::write(file, format!("{report:#}\n")).expect("a file to write to");
    }
}

/// Bytes per second of a copy, read and written, and operations per second of a product.
fn ceilings(device: &Device) -> Result<(f64, f64), CudaError> {
    let (from, to) = (device.allocate(1 << 30)?, device.allocate(1 << 30)?);
    from.clear()?;
    let copies = 20;
    let seconds = best(|| {
        device.synchronize()?;
        let begun = Instant::now();
        (0..copies).try_for_each(|_| device.copy(&from, &to))?;
        device.synchronize()?;
        Ok(begun.elapsed().as_secs_f64())
    })?;
    let bandwidth = f64::from(copies) * 2.0 * from.len() as f64 / seconds;
    let side = 8192;
    let weight = Weight::new(device, WeightFormat::Plain(Number::Bf16), side, side, &vec![0; side * side * 2])?;
    let (products, scratch) = (10, device.allocate(1)?);
    let input = Input { x: from.all(), number: Number::Bf16, rows: side };
    let seconds = best(|| {
        device.synchronize()?;
        let begun = Instant::now();
        (0..products).try_for_each(|_| device.multiply(&weight, input, to.all(), side, &scratch))?;
        device.synchronize()?;
        Ok(begun.elapsed().as_secs_f64())
    })?;
    Ok((bandwidth, f64::from(products) * 2.0 * (side as f64).powi(3) / seconds))
}

fn best<E>(mut run: impl FnMut() -> Result<f64, E>) -> Result<f64, E> {
    (0..REPEATS).try_fold(f64::INFINITY, |best, _| Ok(run()?.min(best)))
}

fn measure(backend: &mut dyn InferenceBackend, weights: f64, bandwidth: f64) -> Vec<Value> {
    let KvLayout::Blocks { count, .. } = backend.spec().kv else { unreachable!("candle pages its cache") };
    let mut results = Vec::new();
    for tokens in PROMPTS {
        let seconds = best(|| Ok::<_, ()>(prompts(backend, tokens, &[0]))).unwrap_or(f64::NAN);
        println!("prompt of {tokens:>5}: {:>9.0} tokens/s", tokens as f64 / seconds);
        results.push(json!({ "prompt": tokens, "tokens_per_second": tokens as f64 / seconds }));
    }
    for sequences in SEQUENCES {
        if sequences * (BEFORE + DECODED).div_ceil(BLOCK) > count as usize {
            println!("decoding  {sequences:>3}: no room");
            continue;
        }
        let slots: Vec<u32> = (0..sequences as u32).collect();
        prompts(backend, BEFORE, &slots);
        let mut host = 0.0;
        let seconds = best(|| {
            let (seconds, asked) = decode(backend, &slots);
            host = asked / seconds;
            Ok::<_, ()>(seconds)
        });
        let seconds = seconds.unwrap_or(f64::NAN);
        let rate = (sequences * DECODED) as f64 / seconds;
        // Each step reads all weights once; what it reads of the cache is left out here, and so the share is a lower bound.
        let share = weights * DECODED as f64 / seconds / bandwidth;
        println!(
            "decoding  {sequences:>3}: {rate:>9.0} tokens/s, weights alone {share:.2} of the copy rate, host {host:.3} of the time"
        );
        results.push(json!({
            "sequences": sequences, "tokens_per_second": rate, "weights_share_of_copy_rate": share, "host_share": host
        }));
    }
    results
}

fn table(slot: u32) -> Vec<BlockId> {
    let blocks = (BEFORE + DECODED).div_ceil(BLOCK) as u32;
    (slot * blocks..(slot + 1) * blocks).map(BlockId).collect()
}

/// Seconds for a prompt in each slot, one step each. The first one may be longer than its table, if it is alone.
fn prompts(backend: &mut dyn InferenceBackend, len: usize, slots: &[u32]) -> f64 {
    let vocab = backend.spec().vocab_size;
    let begun = Instant::now();
    for &slot in slots {
        let tokens: Vec<TokenId> = (0..len as u32).map(|at| ((slot + 1) * 7919 + at * 10_473) % vocab).collect();
        let table =
            if slots.len() == 1 { (0..len.div_ceil(BLOCK) as u32 + 1).map(BlockId).collect() } else { table(slot) };
        let chunk =
            Chunk { slot: SlotId(slot), start: 0, tokens: &tokens, block_table: &table, sample: true, score: false };
        run(backend, &[chunk]);
    }
    begun.elapsed().as_secs_f64()
}

/// Seconds in all, and those until the device had been asked.
fn decode(backend: &mut dyn InferenceBackend, slots: &[u32]) -> (f64, f64) {
    let tables: Vec<_> = slots.iter().map(|&slot| table(slot)).collect();
    let mut last: Vec<TokenId> = slots.to_vec();
    let (begun, mut asked) = (Instant::now(), 0.0);
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
        let (tokens, seconds) = run(backend, &chunks);
        last = tokens;
        asked += seconds;
    }
    (begun.elapsed().as_secs_f64(), asked)
}

/// The likeliest token of each chunk, and the seconds until `forward` returned.
fn run(backend: &mut dyn InferenceBackend, chunks: &[Chunk<'_>]) -> (Vec<TokenId>, f64) {
    let begun = Instant::now();
    backend.forward(&Step { kv_ops: &[], chunks, adapter: None }).expect("a step");
    let asked = begun.elapsed().as_secs_f64();
    let params = SamplingParams::greedy();
    let row = |chunk: &Chunk<'_>| SampleRow {
        slot: chunk.slot,
        params: &params,
        u: 0.0,
        prompt: &[],
        output: &[],
        banned: &[],
        allowed: None,
        logprobs: None,
    };
    let rows: Vec<_> = chunks.iter().map(row).collect();
    let mut out = Vec::new();
    backend.sample(&rows, &mut out).expect("samples");
    (out.into_iter().map(|result| result.expect("finite logits").token).collect(), asked)
}
