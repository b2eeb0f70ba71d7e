use std::process::ExitCode;

use clap::Args;

use super::{SettingsArgs, exit::Failure, print};
use crate::{
    models::{self, Plan},
    settings::Settings,
};

/// Tell how much memory the models would take, and what fits; the exit code is 1 when they do not
#[derive(Debug, Args)]
pub(super) struct PlanCommand {
    #[command(flatten)]
    settings: SettingsArgs,
    /// Plan for so many GiB instead of what is free on this machine
    #[arg(long, value_name = "GIB", value_parser = gibibytes)]
    memory: Option<u64>,
}

impl PlanCommand {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let settings = Settings::load(&self.settings.overrides())?;
        let mut taken = 0;
        let mut room = 0;
        for model in &settings.models {
            let plan = models::plan(&settings.backend, model, self.memory)
                .map_err(|error| Failure::config(format!("{}: {error}", model.name)))?;
            print(&describe(&model.name, &plan));
            taken += plan.total();
            room = plan.room;
        }
        if settings.models.len() > 1 {
            print(&format!("all models      {:>9}", size(taken)));
        }
        let fits = taken <= room;
        print(if fits { "fits" } else { "does not fit" });
        Ok(if fits { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}

fn describe(name: &str, plan: &Plan) -> String {
    let &Plan { weights, ref formats, kv, compute, room, place, parallel, context, trained, .. } = plan;
    let &Plan { longest_context, most_sequences, .. } = plan;
    let formats: String = formats.iter().map(|(name, bytes)| format!("  {name:<14}{:>9}\n", size(*bytes))).collect();
    let longest = longest_context.map_or("none".to_owned(), |tokens| format!("{tokens} tokens"));
    let most = most_sequences.map_or("none".to_owned(), |sequences| sequences.to_string());
    format!(
        "model {name}: {parallel} sequences of {context} tokens (trained on {trained})\n\
         weights         {:>9}\n{formats}\
         KV              {:>9}  {} a token\n\
         work space      {:>9}\n\
         together        {:>9}\n\
         {:<16}{:>9}\n\
         longest context {longest:>9} for {parallel} sequences\n\
         most sequences  {most:>9} of {context} tokens",
        size(weights),
        size(kv),
        size(kv / (u64::from(parallel) * u64::from(context)).max(1)),
        size(compute),
        size(plan.total()),
        place,
        size(room),
    )
}

fn size(bytes: u64) -> String {
    let bytes = bytes as f64;
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(power, _)| bytes >= f64::from(1u32 << power)) {
        Some((power, unit)) => format!("{:.1} {unit}", bytes / f64::from(1u32 << power)),
        None => format!("{bytes} B"),
    }
}

fn gibibytes(text: &str) -> Result<u64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number < 1e6 => Ok((number * f64::from(1 << 30)) as u64),
        Ok(_) | Err(_) => Err("a number of GiB, such as 16".to_owned()),
    }
}
