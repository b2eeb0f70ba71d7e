use serde::{Deserialize, Serialize};

use super::figures::{Percentiles, Spread};

/// Everything that was measured, as `report.json` has it. What is not known is `null`, beside a reason where one is needed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub tandem: String,
    pub commit: String,
    /// When it began, in UTC.
    pub started_at: String,
    /// The command line, without the program.
    pub command: Vec<String>,
    /// Whether it was ended early; what was finished is here.
    pub interrupted: bool,
    pub host: Host,
    pub workload: WorkloadReport,
    pub targets: Vec<TargetReport>,
    pub ratios: Vec<Ratio>,
    /// How far targets say the same, where that was asked for.
    #[serde(default)]
    pub agreement: Vec<Agreement>,
}

/// The machine that measured, and where targets of ours ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Host {
    pub cpu: String,
    pub cores: usize,
    pub memory_bytes: Option<u64>,
    pub os: String,
    /// The names of all cards.
    pub gpu: Option<String>,
    /// Those that the library of NVIDIA's driver tells of.
    #[serde(default)]
    pub gpus: Vec<Gpu>,
    pub gpu_driver: Option<String>,
    /// Of the last minute, before anything was started: above 0.5 something else was running.
    pub load_before: Option<f64>,
    /// What all cores together read from memory in a second, measured; `null` if no target needs it.
    pub memory_bytes_per_s: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    pub name: String,
    pub memory_bytes: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkloadReport {
    pub name: String,
    /// Requests of one run.
    pub requests: usize,
    /// Of one run, as the first target that finished one counts them.
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// Of the requests of the first run, without the model's name.
    pub sha256: String,
    pub seed: u64,
    pub repeats: u32,
    /// `closed 8`, `open 2.5/s`.
    pub loads: Vec<String>,
    pub streamed: bool,
    /// Whether prompts were measured by a target's tokenizer, or by words.
    pub sized_by: Option<String>,
    /// Lines of a file that are no requests.
    pub bad_lines: Vec<BadLine>,
    /// What answers have to keep to count as good, in milliseconds.
    pub goal: Goal,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadLine {
    /// From 1 on.
    pub line: u64,
    pub reason: String,
}

/// The longest times that are good enough, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Goal {
    pub ttft_ms: Option<f64>,
    /// On the average over an answer.
    pub itl_ms: Option<f64>,
    pub e2e_ms: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetReport {
    pub name: String,
    pub backend: Option<String>,
    pub mode: Mode,
    /// Of a server that was there before.
    pub url: Option<String>,
    pub model: Option<String>,
    pub quantization: Option<String>,
    /// Why it was not measured, or not to the end.
    pub error: Option<String>,
    pub runs: Vec<Run>,
    /// Of the runs at the load that gave the most: counts and totals over all of them, medians of rates, and percentiles over all requests.
    #[serde(flatten)]
    pub figures: Figures,
    /// At the best of several loads.
    pub concurrency: Option<u32>,
    /// How it went at each of several loads; empty for one.
    pub sweep: Vec<Level>,
    /// The fewest requests at a time that give 95 % of the most.
    pub knee: Option<u32>,
    /// Of the time that reading weights and KV from memory takes at least, in the time that was taken.
    pub roofline_fraction: Option<f64>,
    pub roofline_reason: Option<String>,
    /// Why it is not known what energy was taken.
    pub energy_reason: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Server,
    Offline,
}

/// All requests of a workload once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// From 1 on.
    pub repeat: u32,
    /// Requests at a time; `null` for an open loop and offline.
    pub concurrency: Option<u32>,
    /// Requests a second of an open loop.
    pub rate: Option<f64>,
    /// From the start of the program until its model was ready.
    pub load_s: Option<f64>,
    /// Why it ended early: its figures are then not used for the target's.
    pub broken: Option<String>,
    #[serde(flatten)]
    pub figures: Figures,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    pub requests: Counts,
    pub wall_s: Option<f64>,
    pub requests_per_s: Option<f64>,
    pub output_tokens_per_s: Option<f64>,
    pub input_tokens_per_s: Option<f64>,
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub cached_input_tokens: u64,
    /// To the first text.
    pub ttft_ms: Option<Percentiles>,
    /// Between pieces of text.
    pub itl_ms: Option<Percentiles>,
    /// Of each token after the first, by answers.
    pub tpot_ms: Option<Percentiles>,
    /// Of whole answers.
    pub e2e_ms: Option<Percentiles>,
    /// Requests that kept the goal.
    pub goodput: Option<Goodput>,
    /// Of our own program: the most that it had resident.
    pub peak_memory_bytes: Option<u64>,
    /// Of our own program: processor time during the run.
    pub cpu_s: Option<f64>,
    /// What sending and reading took of the processors: near to `wall_s`, the bench was the limit.
    pub client_cpu_s: Option<f64>,
    /// What each card of the machine did during the run, whoever had it; `null` where none tells.
    pub gpus: Option<Vec<GpuUse>>,
    /// That all cards took.
    pub energy_j: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuUse {
    /// The part of the time in which something was computed.
    pub utilization: Option<f64>,
    pub peak_memory_bytes: Option<u64>,
    pub energy_j: Option<f64>,
}

/// What became of requests. Only `ok` ones are in the figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub ok: u64,
    pub failed: u64,
    /// Answers without anything in them.
    pub empty: u64,
    /// Answers that broke off, or are shorter than was asked for, or no JSON.
    pub cut: u64,
    /// The first reasons, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Goodput {
    /// Requests within the goal, in a second.
    pub requests_per_s: f64,
    /// Of all requests.
    pub fraction: f64,
}

/// One of several loads: medians over its runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Level {
    pub concurrency: u32,
    pub requests_per_s: Option<Spread>,
    pub output_tokens_per_s: Option<Spread>,
    pub ttft_ms: Option<Percentiles>,
    pub itl_ms: Option<Percentiles>,
    pub e2e_ms: Option<Percentiles>,
    pub goodput: Option<Goodput>,
    /// Whether 90 % of its requests keep the goal.
    pub within_goal: Option<bool>,
}

/// How much faster one is than the other, pair by pair.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    pub a: String,
    pub b: String,
    /// Where there were several loads.
    pub concurrency: Option<u32>,
    pub output_tokens_per_s: Option<Spread>,
    pub requests_per_s: Option<Spread>,
}

/// How far two targets say the same to greedy requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    pub a: String,
    pub b: String,
    /// That both answered.
    pub answers: usize,
    /// Answers that are the same to the last character.
    pub exact: usize,
    pub exact_fraction: Option<f64>,
    /// The first that is not.
    pub first_difference: Option<Difference>,
    /// Of tokens that are the same, up to the first that is not; `null` where a server tells no log-probabilities.
    pub logprob_distance: Option<LogprobDistance>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Of the requests of the check, from 0 on.
    pub request: usize,
    /// Characters that are the same.
    pub characters: usize,
    pub a: String,
    pub b: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogprobDistance {
    pub tokens: usize,
    pub mean: f64,
    pub max: f64,
}

impl Report {
    /// Whether everything that was asked for was done, and all answers were good.
    #[must_use]
    pub fn is_all_well(&self) -> bool {
        let well = |target: &TargetReport| {
            target.error.is_none()
                && target.runs.iter().all(|run| run.broken.is_none() && run.figures.requests.all_ok())
        };
        !self.interrupted && self.workload.bad_lines.is_empty() && self.targets.iter().all(well)
    }
}

impl Counts {
    #[must_use]
    pub fn all_ok(&self) -> bool {
        self.failed == 0 && self.empty == 0 && self.cut == 0
    }
}

impl Goal {
    #[must_use]
    pub fn is_set(&self) -> bool {
        *self != Self::default()
    }
}

impl Mode {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Offline => "offline",
        }
    }
}
