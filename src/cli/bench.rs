use std::{
    env,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Subcommand, ValueEnum};
use indicatif::ProgressBar;

use super::{bar::bar, exit::Failure, print};
use crate::{
    bench::{
        self, BenchError, Comparison, Goal, GpuRates, Length, Load, Mode, Order, Own, Place, Remote, Report, Sizes,
        Verdict, Watcher, Workload,
    },
    telemetry,
};

/// Measure servers side by side: profiles of ours, and any others that speak OpenAI's API
///
/// Targets get the same requests by turns, repeat by repeat, and every answer is checked. Without a target it is both backends on the small
/// model. Keys of servers come from `TANDEM_BENCH_KEY_NAME`, by the target's name in capitals, or else from `OPENAI_API_KEY`.
/// Exit codes: 0 when everything was measured and all answers were good; 1 when not, or when something got slower (--compare); 64 to 78 as
/// in sysexits.h when the command itself fails.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct BenchCommand {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    run: Run,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print reports as sections for BENCHMARKS.md
    Report {
        /// Directories that earlier runs have written
        #[arg(required = true, value_name = "DIR")]
        dirs: Vec<PathBuf>,
        /// Tell what got slower than in an older report.json; the exit code is 1 if anything did
        #[arg(long, value_name = "OLD.json")]
        compare: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct Run {
    /// A profile to start and measure, such as demo, demo:candle or a100,parallel=64; may be given several times
    #[arg(long = "profile", value_name = "NAME[:BACKEND][,KEY=VALUE...]", value_parser = Own::parse)]
    profiles: Vec<Own>,
    /// A server that is running, as vllm=http://127.0.0.1:8001, with #MODEL behind it to name one; may be given several times
    #[arg(long = "target", value_name = "NAME=URL", value_parser = Remote::parse)]
    remotes: Vec<Remote>,
    /// A model to measure: for profiles a SPEC as of `serve`, for servers a name that they list; may be given several times
    #[arg(long = "model", value_name = "SPEC")]
    models: Vec<String>,
    /// Through HTTP, through run-batch, or both
    #[arg(long, value_enum, default_value_t = Modes::Server)]
    mode: Modes,
    #[command(flatten)]
    work: Work,
    /// Each target once a repeat, by turns
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeats: u32,
    /// Ask for whole answers: then there is no time to the first text
    #[arg(long)]
    no_stream: bool,
    /// What is good enough, in milliseconds: ttft=N, itl=N or e2e=N; may be given several times
    #[arg(long = "goal", value_name = "WHAT=MS", value_parser = goal)]
    goals: Vec<Goal>,
    /// Compare the answers of all targets to so many greedy chats
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "16", default_value_t = 0, hide_default_value = true)]
    check: usize,
    /// What the GPU copies and multiplies (BF16) at most, as measured: then the fraction of its roofline is told
    #[arg(long, value_name = "TB/S,TFLOP/S", value_parser = GpuRates::parse)]
    gpu_rates: Option<GpuRates>,
    /// Where the report, charts and logs go
    #[arg(long, value_name = "DIR", default_value = "bench-report")]
    out: PathBuf,
    /// Tell what got slower than in an older report.json; the exit code is 1 if anything did
    #[arg(long, value_name = "OLD.json")]
    compare: Option<PathBuf>,
    /// Seconds that one request may take
    #[arg(long, value_name = "S", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// Seconds that a profile may take to load
    #[arg(long, value_name = "S", default_value_t = 900, value_parser = clap::value_parser!(u64).range(1..))]
    start_timeout: u64,
}

/// What is asked, and how it comes.
#[derive(Debug, Args)]
struct Work {
    /// fixed, sharegpt-like, shared-prefix, multi-turn, structured, embeddings, or a batch file
    #[arg(long, value_name = "NAME|FILE.jsonl", default_value = "fixed", value_parser = workload)]
    workload: Workload,
    /// Of one run [default: 64; of a file all]
    #[arg(long, value_name = "N", value_parser = positive)]
    requests: Option<usize>,
    /// Requests at a time [default: 8]
    #[arg(long, value_name = "C", value_parser = clap::value_parser!(u32).range(1..=4096))]
    concurrency: Option<u32>,
    /// Requests a second, however long answers take, at times that follow from the seed (Poisson)
    #[arg(long, value_name = "R", conflicts_with_all = ["concurrency", "sweep"], value_parser = rate)]
    rate: Option<f64>,
    /// Several numbers of requests at a time, to find where more of them give nothing
    #[arg(
        long, value_name = "C,...", num_args = 0..=1, value_delimiter = ',', default_missing_value = "1,2,4,8,16,32",
        conflicts_with = "concurrency", value_parser = clap::value_parser!(u32).range(1..=4096)
    )]
    sweep: Vec<u32>,
    /// Tokens of a prompt, with what the chat template adds, or from N to M, drawn evenly; of multi-turn of all questions together
    #[arg(long, value_name = "N[..M]", default_value = "256", value_parser = Length::parse)]
    input_tokens: Length,
    /// Tokens of an answer, or from N to M
    #[arg(long, value_name = "N[..M]", default_value = "64", value_parser = Length::parse)]
    output_tokens: Length,
    /// Tokens of the system prompt of shared-prefix
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    shared_tokens: u32,
    /// Questions of a conversation of multi-turn
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    turns: u32,
    /// Tokens of prompt and answer together, at most, of sharegpt-like
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(64..))]
    longest: u32,
    /// What requests and arrivals follow from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Modes {
    Server,
    Offline,
    Both,
}

impl BenchCommand {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let Self { action, run } = self;
        match action {
            Some(Action::Report { dirs, compare }) => report(&dirs, compare.as_deref()),
            None => {
                telemetry::start_if_asked();
                super::runtime()?.block_on(run.run())
            }
        }
    }
}

impl Run {
    async fn run(self) -> Result<ExitCode, Failure> {
        let old = self.compare.as_deref().map(read).transpose()?;
        let order = self.order();
        let interrupted = super::interrupted()?;
        let meter = Meter::new();
        let report = bench::run(&order, &meter, interrupted).await?;
        meter.finish();
        print(bench::table(&report).trim_end());
        let summary = bench::summary(&report);
        if !summary.is_empty() {
            print(&format!("\n{}", summary.trim_end()));
        }
        print(&format!("\nreport.json, report.md and charts are in {}", order.out.display()));
        let slower = old.is_some_and(|old| tell_comparison(&old, &report));
        Ok(ExitCode::from(u8::from(slower || !report.is_all_well())))
    }

    fn order(self) -> Order {
        let Self { profiles, remotes, models, mode, work, repeats, no_stream, goals, check, gpu_rates, out, .. } = self;
        let mut places: Vec<Place> = profiles.into_iter().map(Place::Own).collect();
        places.extend(remotes.into_iter().map(Place::Url));
        if places.is_empty() {
            let own = |backend: &str| Own {
                profile: "demo".to_owned(),
                backend: Some(backend.to_owned()),
                settings: Vec::new(),
            };
            places = ["llama-cpp", "candle"].map(own).map(Place::Own).into();
        }
        let modes: &[Mode] = match mode {
            Modes::Server => &[Mode::Server],
            Modes::Offline => &[Mode::Offline],
            Modes::Both => &[Mode::Server, Mode::Offline],
        };
        let goal = goals.into_iter().fold(Goal::default(), |all, one| Goal {
            ttft_ms: one.ttft_ms.or(all.ttft_ms),
            itl_ms: one.itl_ms.or(all.itl_ms),
            e2e_ms: one.e2e_ms.or(all.e2e_ms),
        });
        Order {
            targets: bench::targets(places, &models, modes),
            loads: work.loads(),
            sizes: work.sizes(),
            requests: work.requests,
            workload: work.workload,
            repeats,
            stream: !no_stream,
            goal,
            check,
            gpu_rates,
            out,
            key,
            request_timeout: Duration::from_secs(self.timeout),
            start_timeout: Duration::from_secs(self.start_timeout),
            command: env::args().skip(1).collect(),
        }
    }
}

impl Work {
    fn loads(&self) -> Vec<Load> {
        if let Some(rate) = self.rate {
            return vec![Load::Open(rate)];
        }
        if self.sweep.is_empty() {
            return vec![Load::Closed(self.concurrency.unwrap_or(8))];
        }
        let mut loads = self.sweep.clone();
        loads.sort_unstable();
        loads.dedup();
        loads.into_iter().map(Load::Closed).collect()
    }

    fn sizes(&self) -> Sizes {
        Sizes {
            input: self.input_tokens,
            output: self.output_tokens,
            shared: self.shared_tokens,
            turns: self.turns,
            longest: self.longest,
            seed: self.seed,
        }
    }
}

fn report(dirs: &[PathBuf], compare: Option<&Path>) -> Result<ExitCode, Failure> {
    let old = compare.map(read).transpose()?;
    let mut slower = false;
    for dir in dirs {
        let report = read(&dir.join("report.json"))?;
        print(&bench::section(&report));
        if let Some(old) = &old {
            slower |= tell_comparison(old, &report);
        }
    }
    Ok(ExitCode::from(u8::from(slower)))
}

fn read(path: &Path) -> Result<Report, Failure> {
    let text = fs_err::read(path).map_err(|error| Failure::new(Failure::NO_INPUT, error.to_string()))?;
    let wrong = |error| Failure::new(Failure::DATA, format!("{}: is no report: {error}", path.display()));
    serde_json::from_slice(&text).map_err(wrong)
}

/// Prints what became of what was measured before; whether anything got slower, or nobody can tell.
fn tell_comparison(old: &Report, new: &Report) -> bool {
    let comparisons = match bench::compare(old, new) {
        Ok(comparisons) => comparisons,
        Err(reason) => {
            print(&format!("cannot be compared: {reason}"));
            return true;
        }
    };
    if old.host.cpu != new.host.cpu || old.host.cores != new.host.cores {
        print("another machine than before: differences are also those of machines");
    }
    for comparison in &comparisons {
        let Comparison { target, figure, before, now, verdict } = comparison;
        let word = match verdict {
            Verdict::Better => "better",
            Verdict::Same => "same",
            Verdict::Worse => "WORSE",
        };
        let range = |spread: &bench::Spread| format!("{:.1} ({:.1} to {:.1})", spread.median, spread.min, spread.max);
        print(&format!("{word:<6} {target}: {figure} {} before, {} now", range(before), range(now)));
    }
    comparisons.iter().any(|comparison| comparison.verdict == Verdict::Worse)
}

/// A bar on a terminal, a line for each thing that begins elsewhere.
struct Meter {
    bar: Option<ProgressBar>,
}

impl Meter {
    fn new() -> Self {
        Self { bar: bar("{bar:30} {pos}/{len}  {msg}") }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Watcher for Meter {
    fn begin(&self, what: &str, parts: u64) {
        match &self.bar {
            Some(bar) => {
                bar.set_length(parts);
                bar.set_position(0);
                bar.set_message(what.to_owned());
            }
            None => say(what),
        }
    }

    fn at(&self, parts: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(parts);
        }
    }

    fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        }
    }
}

fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The API key for a server: its own, or the one for all.
fn key(name: &str) -> Option<String> {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    let own = format!("TANDEM_BENCH_KEY_{}", name.chars().map(plain).collect::<String>());
    env::var(own).or_else(|_| env::var("OPENAI_API_KEY")).ok()
}

fn workload(text: &str) -> Result<Workload, String> {
    Workload::parse(text).ok_or_else(|| {
        let names = Workload::GENERATED.map(|workload| workload.name()).join(", ");
        format!("is none of {names}, and has no look of a file")
    })
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "has to be a number from 1 on".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| rate.is_finite() && *rate > 0.0);
    rate.ok_or_else(|| "has to be a number of requests a second, such as 2.5".to_owned())
}

fn goal(text: &str) -> Result<Goal, String> {
    let wrong = || "has to be ttft=, itl= or e2e= and a number of milliseconds".to_owned();
    let (what, limit) = text.split_once('=').ok_or_else(wrong)?;
    let limit = limit.parse::<f64>().ok().filter(|limit| limit.is_finite() && *limit > 0.0).ok_or_else(wrong)?;
    let goal = Goal::default();
    match what {
        "ttft" => Ok(Goal { ttft_ms: Some(limit), ..goal }),
        "itl" => Ok(Goal { itl_ms: Some(limit), ..goal }),
        "e2e" => Ok(Goal { e2e_ms: Some(limit), ..goal }),
        _ => Err(wrong()),
    }
}

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Self {
        let code = match &error {
            BenchError::Workload { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Self::NO_INPUT,
            BenchError::Workload { .. } => Self::IO,
            BenchError::NoRequests { .. } => Self::DATA,
            BenchError::Out(_) => Self::CANNOT_CREATE,
        };
        Self::new(code, error.to_string())
    }
}
