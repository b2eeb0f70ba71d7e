use std::{collections::BTreeMap, process::ExitCode};

use clap::Args;

use super::{SettingsArgs, exit::Failure, print};
use crate::{
    models::{self, Place, Plan, Room, Share},
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
        let room = self.memory.map_or(Room::Meant, Room::Given);
        let mut places: BTreeMap<Place, (u64, u64)> = BTreeMap::new();
        let mut together = 0;
        for model in &settings.models {
            let plan = models::plan(&settings.backend, model, room)
                .map_err(|error| Failure::config(format!("{}: {error}", model.name)))?;
            print(&describe(&model.name, &plan));
            together += plan.total();
            for share in &plan.shares {
                let (taken, room) = places.entry(share.place.clone()).or_default();
                *taken += share.total();
                *room = share.room.saturating_sub(share.margin);
            }
        }
        if settings.models.len() > 1 {
            print(&format!("all models      {:>9}", size(together)));
        }
        let fits = places.values().all(|(taken, room)| taken <= room);
        print(if fits { "fits" } else { "does not fit" });
        Ok(if fits { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}

fn describe(name: &str, plan: &Plan) -> String {
    let &Plan { weights, ref formats, kv, compute, ref shares, gpu_layers, parallel, context, trained, .. } = plan;
    let &Plan { longest_context, most_sequences, .. } = plan;
    let formats: String = formats.iter().map(|(name, bytes)| format!("  {name:<14}{:>9}\n", size(*bytes))).collect();
    let layers =
        gpu_layers.map_or_else(String::new, |(on_gpus, all)| format!("layers on GPUs  {on_gpus:>9} of {all}\n"));
    let places: String = match &shares[..] {
        [share] => format!("{:<16}{:>9}\n", place(&share.place), size(share.room)),
        shares => shares.iter().map(describe_share).collect(),
    };
    let longest = longest_context.map_or("none".to_owned(), |tokens| format!("{tokens} tokens"));
    let most = most_sequences.map_or("none".to_owned(), |sequences| sequences.to_string());
    format!(
        "model {name}: {parallel} sequences of {context} tokens (trained on {trained})\n\
         {layers}\
         weights         {:>9}\n{formats}\
         KV              {:>9}  {} a token\n\
         work space      {:>9}\n\
         together        {:>9}\n\
         {places}\
         longest context {longest:>9} for {parallel} sequences\n\
         most sequences  {most:>9} of {context} tokens",
        size(weights),
        size(kv),
        size(kv / (u64::from(parallel) * u64::from(context)).max(1)),
        size(compute),
        size(plan.total()),
    )
}

/// One line for each place, where a model lies in several.
fn describe_share(share: &Share) -> String {
    let &Share { weights, kv, compute, room, margin, .. } = share;
    let spare = if margin > 0 { format!(", of which {} stay free", size(margin)) } else { String::new() };
    format!(
        "in {}: {} of {}{spare} (weights {}, KV {}, work space {})\n",
        place(&share.place),
        size(share.total()),
        size(room),
        size(weights),
        size(kv),
        size(compute),
    )
}

fn place(place: &Place) -> &str {
    match place {
        Place::Ram => "free memory",
        Place::Given => "of",
        Place::Gpu(name) => name,
        Place::AbsentGpu => "a GPU that is not here",
    }
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
