use std::{
    io::Write as _,
    process::{self, ExitCode},
    thread,
    time::Duration,
};

use tandem_core::LoadError;

use crate::{app::AppError, models::Fatal, settings::SettingsError, store::StoreError};

/// Between the log's word on the reason and the end: readiness says no, and what batches have finished is committed.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// What libraries do at a process's end may hang as well.
const LONGEST_EXIT: Duration = Duration::from_secs(5);

/// Why a command did not do what it was asked, and the exit code that says so: those of `sysexits.h`.
#[derive(Debug)]
pub(super) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// The command line says what makes no sense, as clap has it.
    pub(super) const USAGE: u8 = 2;
    /// `EX_DATAERR`: the input is wrong.
    pub(super) const DATA: u8 = 65;
    /// `EX_NOINPUT`: the input is not there.
    pub(super) const NO_INPUT: u8 = 66;
    /// `EX_UNAVAILABLE`: something that the command needs is taken.
    pub(super) const UNAVAILABLE: u8 = 69;
    /// `EX_SOFTWARE`: an error of ours.
    const SOFTWARE: u8 = 70;
    /// `EX_CANTCREAT`: a file cannot be written.
    pub(super) const CANNOT_CREATE: u8 = 73;
    /// `EX_IOERR`: reading or writing failed.
    pub(super) const IO: u8 = 74;
    /// `EX_TEMPFAIL`: trying again later makes sense.
    pub(super) const TEMPORARY: u8 = 75;
    /// `EX_PROTOCOL`: a server said what cannot be understood.
    pub(super) const PROTOCOL: u8 = 76;
    /// `EX_NOPERM`: a server does not let us.
    pub(super) const NO_PERMISSION: u8 = 77;
    /// `EX_CONFIG`: a setting is wrong, or what it names is.
    const CONFIG: u8 = 78;

    pub(super) fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(super) fn config(message: impl Into<String>) -> Self {
        Self::new(Self::CONFIG, message)
    }

    pub(super) fn software(message: impl Into<String>) -> Self {
        Self::new(Self::SOFTWARE, message)
    }

    pub(super) fn from_store(what: &str, error: &StoreError) -> Self {
        let code = match error {
            StoreError::Locked { .. } | StoreError::Busy(_) => Self::TEMPORARY,
            StoreError::Corrupt(_) => Self::DATA,
            StoreError::Lost(_) => Self::IO,
            StoreError::Full(_) | StoreError::Quota | StoreError::Io(_) => Self::CANNOT_CREATE,
            StoreError::NotFound | StoreError::Database(_) => Self::SOFTWARE,
        };
        Self::new(code, format!("{what}: {}", crate::app::with_causes(error)))
    }

    /// Prints one line on standard error.
    pub(super) fn report(self) -> ExitCode {
        let _ = writeln!(std::io::stderr(), "error: {}", self.message);
        ExitCode::from(self.code)
    }
}

/// Ends the process: a thread that is inside a foreign library cannot be stopped, so nothing less frees what it holds; nor does anything less
/// give a driver the device back.
pub(super) fn on_end(fatal: Fatal) {
    match fatal {
        Fatal::Hang { model, busy } => {
            tracing::error!(
                model.name = model,
                step.seconds = busy.as_secs_f64(),
                "the engine hangs; the process ends"
            );
        }
        Fatal::DeviceLost { model } => tracing::error!(model.name = model, "the device is lost; the process ends"),
    }
    thread::sleep(LAST_WORDS);
    let abort = || {
        thread::sleep(LONGEST_EXIT);
        process::abort();
    };
    // Without it there is still the exit below.
    let _ = thread::Builder::new().name("last-resort".to_owned()).spawn(abort);
    process::exit(Failure::SOFTWARE.into());
}

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Self {
        Self::new(Self::CONFIG, error.to_string())
    }
}

impl From<AppError> for Failure {
    fn from(error: AppError) -> Self {
        match &error {
            AppError::Bind { .. } => Self::new(Self::UNAVAILABLE, error.to_string()),
            AppError::Settings(error) => Self::new(Self::CONFIG, error.to_string()),
            AppError::Store { path, source } => Self::from_store(&format!("storage {path}"), source),
            AppError::Model { source, .. } if matches!(**source, LoadError::DeviceLost(_)) => {
                Self::software(error.to_string())
            }
            AppError::Model { .. } => Self::new(Self::CONFIG, error.to_string()),
            AppError::Disk => Self::new(Self::IO, error.to_string()),
            AppError::Server(_) => Self::software(error.to_string()),
        }
    }
}
