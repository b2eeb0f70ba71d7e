use std::{path::PathBuf, process::ExitCode};

use clap::Subcommand;

use super::{SettingsArgs, exit::Failure, print};
use crate::settings::{Overrides, Resolved, Settings};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Print the resolved settings, with the source of each value
    Show(SettingsArgs),
    /// Say whether a file of settings can be used
    Check {
        file: PathBuf,
        /// The profile that the file goes over [default: demo]
        #[arg(long, value_name = "NAME")]
        profile: Option<String>,
    },
}

impl ConfigCommand {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        match self {
            Self::Show(args) => {
                let resolved = Resolved::load(&args.overrides())?;
                print(resolved.show().trim_end());
                // Shown even when they are wrong: that is when one wants to see them.
                resolved.settings()?;
            }
            Self::Check { file, profile } => {
                let settings =
                    Settings::load(&Overrides { config: Some(file.clone()), profile, ..Overrides::default() })?;
                print(&format!("{}: ok over profile {}", file.display(), settings.profile));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
