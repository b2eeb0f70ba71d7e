use std::process::ExitCode;

use clap::Subcommand;

use super::{SettingsArgs, exit::Failure, print};
use crate::{settings::Settings, store};

#[derive(Debug, Subcommand)]
pub(super) enum DbCommand {
    /// Bring the schema up to date, creating the database if there is none
    Migrate(SettingsArgs),
    /// Tell which migrations are applied; the exit code is 1 if any is not
    Status(SettingsArgs),
}

impl DbCommand {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let (args, migrate) = match self {
            Self::Migrate(args) => (args, true),
            Self::Status(args) => (args, false),
        };
        let dir = Settings::load(&args.overrides())?.storage;
        let failed = |source| crate::app::AppError::Store { path: dir.display().to_string(), source };
        super::runtime()?.block_on(async {
            if migrate {
                store::Store::open(&dir).await.map_err(failed)?.close().await.map_err(failed)?;
            }
            let migrations = store::migrations(&dir).await.map_err(failed)?;
            for (name, applied) in &migrations {
                print(&format!("{} {name}", if *applied { "applied" } else { "pending" }));
            }
            let current = migrations.iter().all(|(_, applied)| *applied);
            Ok(if current { ExitCode::SUCCESS } else { ExitCode::from(1) })
        })
    }
}
