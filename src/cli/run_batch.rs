use std::{path::PathBuf, process::ExitCode, time::Instant};

use clap::Args;
use indicatif::ProgressBar;
use tandem_engine::EngineLimits;

use super::{SettingsArgs, bar::bar, exit::Failure, loading};
use crate::{
    app::{AppError, CompletionExecutor, offline_settings},
    batch::{OfflineError, OfflineJob, Progress, run_offline},
    models::Models,
    settings::Settings,
    telemetry,
};

/// Answer a batch file without a server. Run again with the same files, it goes on where it stopped
#[derive(Debug, Args)]
pub(super) struct RunBatch {
    /// Requests, one JSON object a line, as the Batch API has them; - is standard input
    #[arg(short, long = "input-file", value_name = "IN.jsonl")]
    input: PathBuf,
    /// Where answers go; - is standard output
    #[arg(short, long = "output-file", value_name = "OUT.jsonl")]
    output: PathBuf,
    /// Where failed lines go; to the output, in their places, if not given
    #[arg(long, value_name = "ERR.jsonl")]
    error_file: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingsArgs,
}

impl RunBatch {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let Self { input, output, error_file, settings } = self;
        let settings = Settings::load(&settings.overrides())?;
        telemetry::start(&settings);
        let job = OfflineJob { input, output, errors: error_file };
        super::runtime()?.block_on(run_batch(&job, &settings))
    }
}

async fn run_batch(job: &OfflineJob, settings: &Settings) -> Result<ExitCode, Failure> {
    let interrupted = super::interrupted()?;
    let limits =
        EngineLimits { queue: settings.limits.queue, prefix_cache: settings.prefix_cache, ..EngineLimits::default() };
    let models = Models::start(&settings.backend, &settings.models, limits);
    super::watch(&models, settings)?;
    loading::shown(&models, models.ready()).await.map_err(|(name, source)| AppError::Model { name, source })?;
    let executor = CompletionExecutor::new(models, settings.limits);
    let started = Instant::now();
    let meter = Meter::new();
    let report = run_offline(job, executor, offline_settings(settings), |progress| meter.show(progress), interrupted);
    let report = report.await.map_err(offline_failure)?;
    meter.finish();
    let seconds = started.elapsed().as_secs_f64();
    let rate = report.output_tokens as f64 / seconds.max(1e-3);
    tracing::info!(
        completed = report.completed,
        failed = report.failed,
        input.tokens = report.input_tokens,
        output.tokens = report.output_tokens,
        seconds,
        output.tokens_per_second = rate,
        "batch done"
    );
    Ok(if report.failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn offline_failure(error: OfflineError) -> Failure {
    match error {
        OfflineError::Invalid(_) => Failure::new(Failure::DATA, error.to_string()),
        OfflineError::Interrupted => Failure::new(Failure::TEMPORARY, error.to_string()),
        OfflineError::Io(ref cause) if cause.kind() == std::io::ErrorKind::NotFound => {
            Failure::new(Failure::NO_INPUT, error.to_string())
        }
        OfflineError::Io(_) => Failure::new(Failure::IO, error.to_string()),
        OfflineError::Store(source) => Failure::from_store("run-batch", &source),
    }
}

/// A bar on a terminal; a line for each tenth of the way elsewhere.
struct Meter {
    bar: Option<ProgressBar>,
    last_tenth: std::cell::Cell<i64>,
}

impl Meter {
    fn new() -> Self {
        Self { bar: bar("{bar:40} {pos}/{len} lines, {msg}, {eta} left"), last_tenth: std::cell::Cell::new(-1) }
    }

    fn show(&self, progress: Progress) {
        let Progress { total, completed, failed } = progress;
        if total == 0 {
            return;
        }
        let ended = completed + failed;
        if let Some(bar) = &self.bar {
            bar.set_length(total.unsigned_abs());
            bar.set_position(ended.unsigned_abs());
            bar.set_message(format!("{failed} failed"));
            return;
        }
        let tenth = ended * 10 / total;
        if tenth > self.last_tenth.replace(tenth) {
            tracing::info!(lines.ended = ended, lines.total = total, lines.failed = failed, "batch running");
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }
}
