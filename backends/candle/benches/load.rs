//! What loading a model costs: seconds, processor time, and memory at its peak beside what is left in the end. One model a run, so that the
//! peak is its own.
//!
//! ```bash
//! cargo bench -p tandem-candle --bench load -- MODEL [none|q4_0|q4k|q5k|q6k|q8_0] [THREADS] [auto|f32|bf16|f16]
//! ```
//!
//! `MODEL` is a GGUF file or a model directory; without one it is the model that ships with the project. Memory is what the kernel says of
//! this process (`/proc/self/status`, so on Linux alone), without pages of files: weights are read into memory of our own.

#![expect(clippy::print_stdout, reason = "a table is what it is for")]

use std::{path::PathBuf, time::Instant};

use tandem_candle::{CandleLoader, CandleSettings, Dtype, Planner, Quantization};
use tandem_core::BackendLoader;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let shipped = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny"));
    let settings = CandleSettings {
        model: words.first().map_or_else(shipped, PathBuf::from),
        sha256: None,
        context: Some(64),
        parallel: 1,
        dtype: match words.get(3).map_or("auto", String::as_str) {
            "auto" => Dtype::Auto,
            "f32" => Dtype::F32,
            "bf16" => Dtype::Bf16,
            "f16" => Dtype::F16,
            other => panic!("no such dtype: {other}"),
        },
        quantization: match words.get(1).map_or("none", String::as_str) {
            "none" => Quantization::None,
            "q4_0" => Quantization::Q4_0,
            "q4k" => Quantization::Q4K,
            "q5k" => Quantization::Q5K,
            "q6k" => Quantization::Q6K,
            "q8_0" => Quantization::Q8_0,
            other => panic!("no such quantization: {other}"),
        },
        block_size: 16,
        max_step_tokens: 64,
        kv_tokens: None,
        kv_type: tandem_candle::KvType::Auto,
        device: tandem_candle::ComputeDevice::Cpu,
        threads: words.get(2).map(|threads| threads.parse().expect("a number of threads")),
    };
    let weights = Planner::new(settings.clone()).expect("a plan").plan().needs.weights;
    let (before, processor, begun) = (anonymous("VmHWM"), processor_seconds(), Instant::now());
    Box::new(CandleLoader::new(settings))
        .with_backend(&mut |_| {
            let (seconds, processor) = (begun.elapsed().as_secs_f64(), processor_seconds() - processor);
            let (peak, after) = (anonymous("VmHWM"), anonymous("VmRSS"));
            println!(
                "weights {:.1} MiB, loaded in {seconds:.2} s ({processor:.2} s of processors); before {:.1}, peak {:.1}, after {:.1} MiB; \
                 peak over after {:.3}, above the weights by {:.3} of them",
                mebibytes(weights),
                mebibytes(before),
                mebibytes(peak),
                mebibytes(after),
                peak as f64 / after as f64,
                (peak as f64 - before as f64 - weights as f64) / weights as f64,
            );
        })
        .expect("a model");
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Bytes of the process, without those of mapped files.
fn anonymous(what: &str) -> u64 {
    let status = fs_err::read_to_string("/proc/self/status").expect("Linux");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a field");
        line.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u64>().expect("a number") * 1024
    };
    field(what).saturating_sub(field("RssFile"))
}

/// Seconds that all threads computed, in user mode and in the kernel.
fn processor_seconds() -> f64 {
    let stat = fs_err::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("a number");
    // In hundredths of a second, on every Linux there is.
    (ticks(11) + ticks(12)) / 100.0
}
