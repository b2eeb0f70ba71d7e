use std::io::Write as _;

use super::{
    answer::Answer,
    gpu_roofline::GpuRates,
    measure::{self, Measured},
    order::Order,
    report::{Figures, Host, Level, Mode, TargetReport},
    roofline::{self, Reads},
    target::{Own, Place, Target},
};
use crate::settings::Settings;

/// A target and what is known of it so far.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) target: Target,
    pub(super) backend: Option<String>,
    pub(super) quantization: Option<String>,
    /// By the name that requests have.
    pub(super) model: Option<String>,
    /// Of each step, or why that is not known.
    pub(super) reads: Result<Reads, String>,
    /// Why it is not measured any more.
    pub(super) error: Option<String>,
    pub(super) runs: Vec<Measured>,
    /// To the requests of the check; empty before.
    pub(super) answers: Vec<Option<Answer>>,
}

impl Standing {
    pub(super) fn of(target: Target) -> Self {
        let reads = Err("the weights of a server that is not ours are not known".to_owned());
        Self {
            target,
            backend: None,
            quantization: None,
            model: None,
            reads,
            error: None,
            runs: Vec::new(),
            answers: Vec::new(),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.error.is_none()
    }

    /// What the settings of a profile of ours come to, without starting it.
    ///
    /// # Errors
    /// When they cannot be used; with the reason.
    pub(super) fn describe(&mut self, gpu_rates: Option<GpuRates>) -> Result<(), String> {
        let Place::Own(own) = &self.target.place else { return Ok(()) };
        let settings = settings(own, self.target.model.as_deref())?;
        let plan = roofline::plan(&settings);
        // The type that most weights have.
        let most = plan.as_ref().and_then(|plan| plan.formats.iter().max_by_key(|(_, bytes)| *bytes));
        self.quantization = most.map(|(format, _)| format.clone());
        self.reads = Reads::of(&settings, plan.as_ref(), gpu_rates);
        self.backend = Some(settings.backend.name().to_owned());
        self.model = settings.models.first().map(|model| model.name.clone());
        Ok(())
    }

    pub(super) fn report(&self, order: &Order, host: &Host) -> TargetReport {
        // Offline there is but one load, whatever servers have.
        let loads = if self.target.mode == Mode::Offline { &[][..] } else { &order.loads[..] };
        let levels: Vec<Level> = if loads.len() > 1 { self.levels(order) } else { Vec::new() };
        let best = measure::best(&levels).unwrap_or(0);
        let runs = measure::finished(&self.runs, best);
        let figures = if runs.is_empty() { self.failures() } else { measure::together(&runs, order.goal) };
        let (fraction, reason) = self.roofline(&runs, host);
        let energy_reason = figures.energy_j.is_none().then(|| no_energy(&self.target.place, &runs, host).to_owned());
        TargetReport {
            name: self.target.name.clone(),
            backend: self.backend.clone(),
            mode: self.target.mode,
            url: match &self.target.place {
                Place::Own(_) => None,
                Place::Url(remote) => Some(remote.base.clone()),
            },
            model: self.model.clone(),
            quantization: self.quantization.clone(),
            error: self.error.clone(),
            runs: self.runs.iter().map(|measured| measured.run.clone()).collect(),
            figures,
            concurrency: loads.get(best).and_then(|load| load.concurrency()),
            knee: measure::knee(&levels),
            sweep: levels,
            roofline_fraction: fraction,
            roofline_reason: reason,
            energy_reason,
        }
    }

    fn levels(&self, order: &Order) -> Vec<Level> {
        let of = |(index, load): (usize, &super::load::Load)| {
            let runs = measure::finished(&self.runs, index);
            (!runs.is_empty()).then(|| measure::level(load.concurrency().unwrap_or(0), &runs, order.goal))
        };
        // A target that was given up in the middle has the first of them.
        order.loads.iter().enumerate().map_while(of).collect()
    }

    /// Of a target without a finished run: what became of the requests that were sent, and no rates.
    fn failures(&self) -> Figures {
        let runs: Vec<&Measured> = self.runs.iter().collect();
        let Figures { requests, .. } = measure::together(&runs, super::report::Goal::default());
        Figures { requests, ..Figures::default() }
    }

    fn roofline(&self, runs: &[&Measured], host: &Host) -> (Option<f64>, Option<String>) {
        let reads = match &self.reads {
            Ok(reads) => reads,
            Err(reason) => return (None, Some(reason.clone())),
        };
        let bytes_per_s = match (&reads.gpu, host.memory_bytes_per_s) {
            (Some((_, rates)), _) => rates.bytes_per_s,
            (None, Some(bytes_per_s)) => bytes_per_s,
            (None, None) => return (None, Some("the speed of memory was not measured".to_owned())),
        };
        let fractions = runs.iter().filter_map(|measured| {
            let concurrency = measured.run.concurrency.unwrap_or(reads.parallel);
            reads.fraction(&measured.samples, concurrency, measured.run.figures.wall_s?, bytes_per_s)
        });
        let fractions: Vec<f64> = fractions.collect();
        match super::figures::Spread::of(&fractions) {
            Some(spread) => (Some(spread.median), None),
            None => (None, Some("no token was brought".to_owned())),
        }
    }
}

/// Why it is not known what energy was taken.
fn no_energy(place: &Place, runs: &[&Measured], host: &Host) -> &'static str {
    if matches!(place, Place::Url(remote) if !remote.is_here()) {
        "the server is on another machine"
    } else if runs.is_empty() {
        "no run was finished"
    } else if !host.gpus.is_empty() {
        "not all GPUs count their energy"
    } else if host.gpu.is_some() {
        "NVML, which has the counters of GPUs, cannot be used"
    } else {
        "there is no GPU, and processors do not tell"
    }
}

/// Settings as the program that is started will have them.
fn settings(own: &Own, model: Option<&str>) -> Result<Settings, String> {
    let changes = own.changes().map(|text| {
        let mut file = tempfile::Builder::new().suffix(".toml").tempfile()?;
        file.write_all(text.as_bytes())?;
        Ok(file)
    });
    let changes = changes.transpose().map_err(|error: std::io::Error| format!("cannot hold its settings: {error}"))?;
    let path = changes.as_ref().map(|file| file.path().to_owned());
    Settings::load(&own.overrides(model, path)).map_err(|error| error.to_string())
}
