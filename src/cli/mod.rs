//! The commands. Printing to standard output is theirs alone.

mod bar;
mod batch;
mod bench;
mod config;
mod db;
mod dev;
mod exit;
mod keys;
mod loading;
mod plan;
mod run_batch;
mod serve;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use self::exit::Failure;
use crate::{
    failpoint,
    models::{self, Models},
    settings::{Overrides, Settings},
};

/// A batch LLM inference server: the OpenAI API, online and in batches, over llama.cpp and candle.
#[derive(Debug, Parser)]
#[command(name = "tandem", version = long_version(), arg_required_else_help = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server: with no arguments, profile demo on 127.0.0.1:8000
    Serve(serve::Serve),
    RunBatch(run_batch::RunBatch),
    Batch(batch::BatchCommand),
    Bench(Box<bench::BenchCommand>),
    Plan(plan::PlanCommand),
    /// Show or check settings
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Make and revoke API keys
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Look after the database
    #[command(subcommand)]
    Db(db::DbCommand),
    /// Tools for those who work on Tandem
    #[command(subcommand)]
    Dev(dev::DevCommand),
}

/// Which settings to use.
#[derive(Clone, Debug, Default, Args)]
struct SettingsArgs {
    /// Settings that ship with the program, or config/NAME.toml [default: demo]
    #[arg(long, value_name = "NAME", env = "TANDEM_PROFILE")]
    profile: Option<String>,
    /// A file of settings that goes over the profile
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// llama-cpp, candle or sim
    #[arg(long, value_name = "KIND")]
    backend: Option<String>,
    #[arg(
        long,
        value_name = "SPEC",
        help = "A .gguf file, a Hugging Face model directory, or hf:org/repo[@revision][:file]"
    )]
    model: Option<String>,
}

impl SettingsArgs {
    fn overrides(self) -> Overrides {
        let Self { profile, config, backend, model } = self;
        Overrides { profile, config, backend, model, host: None, port: None, insecure_no_auth: false }
    }
}

/// Reads the command line, does what it says, and tells how it went.
pub fn run() -> ExitCode {
    failpoint::arm();
    let result = match Cli::parse().command {
        Command::Serve(serve) => serve.run(),
        Command::RunBatch(run_batch) => run_batch.run(),
        Command::Batch(batch) => batch.run(),
        Command::Bench(bench) => bench.run(),
        Command::Plan(plan) => plan.run(),
        Command::Config(command) => command.run(),
        Command::Keys(command) => command.run(),
        Command::Db(command) => command.run(),
        Command::Dev(command) => command.run(),
    };
    match result {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

fn long_version() -> String {
    let backends: Vec<_> =
        models::backend_versions().into_iter().map(|(name, version)| format!("{name} {version}")).collect();
    format!("{} ({})\nbackends: {}", env!("CARGO_PKG_VERSION"), env!("TANDEM_COMMIT"), backends.join(", "))
}

/// One line on standard output. A reader that has gone away is no failure of ours.
fn print(text: &str) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|error| Failure::software(format!("cannot start: {error}")))
}

/// Ends the process when a step of a model hangs, or its device is lost.
fn watch(models: &Models, settings: &Settings) -> Result<(), Failure> {
    let watching = models.watch(settings.step_timeout, exit::on_end);
    watching.map_err(|error| Failure::software(format!("cannot start a thread: {error}")))
}

/// Done when the process is asked to end: by Ctrl-C, or by `SIGTERM` as service managers do it.
fn interrupted() -> Result<impl Future<Output = ()>, Failure> {
    use tokio::signal::unix::{SignalKind, signal};

    let listen = |kind| signal(kind).map_err(|error| Failure::software(format!("cannot listen for signals: {error}")));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
