//! How fast steps are on a card, and how near to what it could do: prompts, and decoding of some sequences, without engine or server.
//!
//! ```bash
//! cargo bench -p tandem-candle --features cuda --bench card -- MODEL [--json FILE] [--prompts 512,2048,8192] [--sequences 1,8,32,128,256]
//!     [--before 512] [--decoded 64] [--emulated]
//! ```
//!
//! `MODEL` is a GGUF file or a model directory, such as `tandem dev synth` writes. Measured first is what the card does at most: a copy of a
//! gibibyte, and a BF16 product of 8,192 on each side, of random numbers. A fraction is the time that reading weights, K and V and computing
//! take at least at these rates, over the time that was taken. With `--emulated` all of it runs on a processor, and says nothing but that it
//! runs: take a tiny model, and few and short sequences.

#![expect(clippy::print_stdout, reason = "a table is what it is for")]

mod ceilings;
mod orders;
mod steps;

use std::{process::ExitCode, time::Instant};

use serde_json::{Value, json};
use tandem_candle::{CandleLoader, CandleSettings, ComputeDevice, Dtype, KvType, Planner, Quantization, Work};
use tandem_core::{BackendLoader, InferenceBackend, KvLayout};
use tandem_cuda::Device;

use self::{
    ceilings::{Ceilings, REPEATS},
    orders::Orders,
    steps::Steps,
};

const BLOCK: u32 = 16;
/// There is nothing to measure on.
const NO_CARD: u8 = 2;

fn main() -> ExitCode {
    let orders = match Orders::parse(std::env::args().skip(1)) {
        Ok(orders) => orders,
        Err(reason) => {
            println!("error: {reason}\n{}", orders::USAGE);
            return ExitCode::FAILURE;
        }
    };
    let device = match if orders.emulated { Ok(Device::emulated()) } else { Device::open(0) } {
        Ok(device) => device,
        Err(error) => {
            println!("nothing to measure: {error}");
            return ExitCode::from(NO_CARD);
        }
    };
    match run(&orders, &device) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            println!("error: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn run(orders: &Orders, device: &Device) -> Result<(), String> {
    let ceilings = if orders.emulated { Ceilings::measure(device, 1 << 20, 64) } else { Ceilings::of_card(device) };
    let ceilings = ceilings.map_err(|error| error.to_string())?;
    let Ceilings { bytes_per_second, flop_per_second } = ceilings;
    println!(
        "{}: copies {:.3} TB/s, BF16 {:.1} TFLOP/s",
        device.name(),
        bytes_per_second / 1e12,
        flop_per_second / 1e12
    );
    let settings = settings(orders);
    let planner = Planner::new(settings.clone()).map_err(|error| error.to_string())?;
    let work = planner.work().ok_or("the model makes no text")?;
    let free = |device: &Device| device.memory().map(|(free, _)| free).map_err(|error| error.to_string());
    let (before, begun) = (free(device)?, Instant::now());
    let (mut loaded_in, mut taken, mut results) = (0.0, 0, Vec::new());
    let mut outcome = Ok(());
    let mut bench = |backend: &mut dyn InferenceBackend| {
        loaded_in = begun.elapsed().as_secs_f64();
        println!("loaded in {loaded_in:.1} s, {:.1} GiB read by each step", work.weights as f64 / f64::from(1 << 30));
        outcome = free(device).map(|free| taken = before.saturating_sub(free));
        results = measure(backend, orders, &work, ceilings);
    };
    Box::new(CandleLoader::new(settings).on(device.clone()))
        .with_backend(&mut |loaded| {
            if let Some(backend) = loaded.backend.generator() {
                bench(backend);
            }
        })
        .map_err(|error| error.to_string())?;
    outcome?;
    let planned = planner.plan_within(Some(before)).map_err(|error| error.to_string())?.needs;
    let report = json!({
        "model": orders.model.display().to_string(), "device": device.name(), "copy_bytes_per_second": bytes_per_second,
        "bf16_flop_per_second": flop_per_second, "weight_bytes": planned.weights, "read_bytes": work.weights,
        "load_seconds": loaded_in, "taken_bytes": taken, "tokens_before": orders.before,
        "tokens_decoded": orders.decoded, "results": results
    });
    match &orders.json {
        Some(file) => fs_err::write(file, format!("{report:#}\n")).map_err(|error| error.to_string()),
        None => Ok(()),
    }
}

fn settings(orders: &Orders) -> CandleSettings {
    let longest = orders.longest() as u32;
    CandleSettings {
        model: orders.model.clone(),
        sha256: None,
        context: Some(longest + BLOCK),
        parallel: orders.sequences.iter().copied().max().unwrap_or(1) as u32,
        dtype: Dtype::Auto,
        quantization: Quantization::None,
        block_size: BLOCK,
        max_step_tokens: longest.max(orders.sequences.iter().copied().max().unwrap_or(1) as u32),
        kv_tokens: None,
        kv_type: KvType::Auto,
        device: ComputeDevice::Cuda { ordinal: 0, ranks: 1, memory_fraction: 0.9 },
        threads: None,
    }
}

fn measure(backend: &mut dyn InferenceBackend, orders: &Orders, work: &Work, ceilings: Ceilings) -> Vec<Value> {
    let KvLayout::Blocks { count, .. } = backend.spec().kv else { unreachable!("candle pages its cache") };
    let least = |step: tandem_candle::Least| step.seconds(ceilings.bytes_per_second, ceilings.flop_per_second);
    let mut steps = Steps { backend, orders, block: BLOCK as usize };
    let mut results = Vec::new();
    for &tokens in &orders.prompts {
        let seconds = (0..REPEATS).map(|_| steps.prompts(tokens, &[0])).fold(f64::INFINITY, f64::min);
        let (rate, fraction) = (tokens as f64 / seconds, least(work.prompt(tokens)) / seconds);
        println!("prompt of {tokens:>6}: {rate:>9.0} tokens/s, {fraction:.3} of the roofline");
        results.push(json!({ "prompt": tokens, "tokens_per_second": rate, "roofline_fraction": fraction }));
    }
    for &sequences in &orders.sequences {
        if sequences * steps.blocks() > count as usize {
            println!("decoding    {sequences:>4}: no room for their K and V");
            results.push(json!({ "sequences": sequences, "tokens_per_second": null }));
            continue;
        }
        let slots: Vec<u32> = (0..sequences as u32).collect();
        steps.prompts(orders.before, &slots);
        let all = (0..REPEATS).map(|_| steps.decode(&slots));
        let (seconds, asked) = all.min_by(|one, other| one.0.total_cmp(&other.0)).unwrap_or((f64::NAN, f64::NAN));
        let rate = (sequences * orders.decoded) as f64 / seconds;
        let steps = (1..=orders.decoded).map(|at| work.decode(vec![orders.before + at; sequences]));
        let fraction = steps.map(least).sum::<f64>() / seconds;
        let host = asked / seconds;
        println!(
            "decoding    {sequences:>4}: {rate:>9.0} tokens/s, {fraction:.3} of the roofline, host {host:.3} of the time"
        );
        results.push(json!({
            "sequences": sequences, "tokens_per_second": rate, "roofline_fraction": fraction, "host_share": host
        }));
    }
    results
}
