use std::{
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Subcommand};

use super::{bar::bar, exit::Failure, print};
use crate::{
    bench::sample_batch,
    models::{self, SynthFailure, SynthOrder},
};

#[derive(Debug, Subcommand)]
pub(super) enum DevCommand {
    Synth(Synth),
    SampleBatch(SampleBatch),
}

/// Write a batch file of chats, to try batches and to measure with; the same seed gives the same file
#[derive(Debug, Args)]
pub(super) struct SampleBatch {
    /// Where to write it; - is standard output
    #[arg(long, value_name = "FILE.jsonl")]
    out: PathBuf,
    /// Requests in it
    #[arg(long, value_name = "N", default_value_t = 5000)]
    lines: usize,
    /// What its requests name
    #[arg(long, value_name = "NAME", default_value = "tiny")]
    model: String,
    /// Of an answer, at most
    #[arg(long, value_name = "N", default_value_t = 100)]
    max_tokens: u32,
    /// What the requests follow from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Write a model of a true shape with random weights, to test and measure with where none can be downloaded
///
/// It computes what a true model of its shape does and says nothing sensible. The directory is one for the candle backend and has a
/// tokenizer with the full vocabulary; GGUF files of the same weights can be had beside it. The same seed gives the same files.
#[derive(Debug, Args)]
pub(super) struct Synth {
    /// Family, such as llama, qwen3 or gemma3; one that is unknown is answered with the list
    #[arg(long)]
    arch: String,
    /// Size, such as 0.2b, 1b or 8b, or tiny for tests
    #[arg(long)]
    size: String,
    /// Where to write it
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// GGUF files to write too: `F16`, `Q8_0`, `Q4_0`, `Q4_K_M`, `Q5_K_M`, `Q6_K`
    #[arg(long, value_name = "QUANTIZATIONS", value_delimiter = ',')]
    gguf: Vec<String>,
    /// What the weights follow from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write into a directory that is not empty
    #[arg(long)]
    force: bool,
}

impl DevCommand {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        match self {
            Self::Synth(synth) => synth.run(),
            Self::SampleBatch(sample) => sample.run(),
        }
    }
}

impl Synth {
    fn run(self) -> Result<ExitCode, Failure> {
        let Self { arch, size, out, gguf, seed, force } = self;
        let order = SynthOrder { arch, size, seed, directory: out, gguf, force };
        let bar = bar("{bar:40} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left");
        let written = models::synthesize(order, &mut |bytes, total| {
            if let Some(bar) = &bar {
                bar.set_length(total);
                bar.set_position(bytes);
            }
        })?;
        if let Some(bar) = &bar {
            bar.finish_and_clear();
        }
        written.iter().for_each(|path| print(&path.display().to_string()));
        Ok(ExitCode::SUCCESS)
    }
}

impl SampleBatch {
    fn run(self) -> Result<ExitCode, Failure> {
        let Self { out, lines, model, max_tokens, seed } = self;
        let failed = |error: std::io::Error| Failure::new(Failure::CANNOT_CREATE, error.to_string());
        let mut file: Box<dyn Write> = if out == Path::new("-") {
            Box::new(std::io::stdout().lock())
        } else {
            Box::new(fs_err::File::create(&out).map_err(failed)?)
        };
        let mut text = BufWriter::new(&mut file);
        for line in sample_batch(lines, &model, max_tokens, seed) {
            writeln!(text, "{line}").map_err(failed)?;
        }
        text.flush().map_err(failed)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl From<SynthFailure> for Failure {
    fn from(failure: SynthFailure) -> Self {
        match failure {
            SynthFailure::Refused(reason) => Self::config(reason),
            SynthFailure::Unwritten(reason) => Self::new(Self::CANNOT_CREATE, reason),
        }
    }
}
