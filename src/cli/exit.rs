use std::{io::Write as _, process::ExitCode};

use crate::settings::SettingsError;

/// Why a command did not do what it was asked, and the exit code that says so: those of `sysexits.h`.
#[derive(Debug)]
pub(super) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// `EX_CONFIG`: a setting is wrong, or what it names is.
    pub(super) const CONFIG: u8 = 78;
    /// `EX_UNAVAILABLE`: something that the command needs is taken or missing.
    pub(super) const UNAVAILABLE: u8 = 69;
    /// `EX_SOFTWARE`: an error of ours.
    pub(super) const SOFTWARE: u8 = 70;

    pub(super) fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// Prints one line on standard error.
    pub(super) fn report(self) -> ExitCode {
        let _ = writeln!(std::io::stderr(), "error: {}", self.message);
        ExitCode::from(self.code)
    }
}

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Self {
        Self::new(Self::CONFIG, error.to_string())
    }
}
