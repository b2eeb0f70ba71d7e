//! Side by side: the same requests to several servers by turns, and what each made of them.
//!
//! [`run`] measures an [`Order`] and writes a [`Report`], with charts, into a directory. A target is a profile of ours, which is started for
//! each repeat as a process of its own and stopped after it, or any server that speaks OpenAI's API.

mod agreement;
mod answer;
mod chart;
mod client;
mod compare;
mod contest;
mod counter;
mod figures;
mod file;
mod gpu_roofline;
mod gpus;
mod host;
mod length;
mod load;
mod markdown;
mod measure;
mod offline;
mod order;
mod output;
mod program;
mod report;
mod request;
mod roofline;
mod sample;
mod sse;
mod standing;
mod target;
mod text;
mod workload;

pub use compare::{Comparison, Incomparable, Verdict, compare};
pub use figures::{Percentiles, Spread};
pub use gpu_roofline::GpuRates;
pub use length::Length;
pub use load::Load;
pub use markdown::{section, summary, table};
pub use order::{BenchError, Order, Watcher};
pub use report::{
    Agreement, BadLine, Counts, Difference, Figures, Goal, Goodput, Gpu, GpuUse, Host, Level, LogprobDistance, Mode,
    Ratio, Report, Run, TargetReport, WorkloadReport,
};
pub use target::{Own, Place, Remote, Target, targets};
pub use workload::{Sizes, Workload, sample_batch};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use self::{contest::Contest, measure::Measured, standing::Standing, workload::sha256};
use crate::clock::Clock;

/// Measures what is ordered, writes what was found to [`Order::out`], and tells it. Ended by `interrupted`, it tells what was finished.
///
/// Targets that cannot be measured are in the report, with the reason, beside those that can.
///
/// # Errors
/// When there is nothing to ask, or the report cannot be written.
pub async fn run(
    order: &Order,
    watcher: &dyn Watcher,
    interrupted: impl Future<Output = ()>,
) -> Result<Report, BenchError> {
    let started = OffsetDateTime::from_unix_timestamp(Clock::system().seconds()).ok();
    let started = started.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default();
    let mut contest = Contest::new(order, watcher)?;
    let interrupted = tokio::select! {
        () = contest.work() => false,
        () = interrupted => true,
    };
    let report = report(&contest, started, interrupted);
    let measured: Vec<(&str, &[Measured])> =
        contest.standings.iter().map(|standing| (standing.target.name.as_str(), &standing.runs[..])).collect();
    output::write(&order.out, &report, &measured).map_err(BenchError::Out)?;
    Ok(report)
}

fn report(contest: &Contest<'_>, started_at: String, interrupted: bool) -> Report {
    let Contest { order, host, standings, sets, sized_by, bad_lines, .. } = contest;
    let targets: Vec<TargetReport> = standings.iter().map(|standing| standing.report(order, host)).collect();
    let first = standings.iter().flat_map(|standing| measure::finished(&standing.runs, 0)).next();
    let requests = sets.first().map_or(0, |set| set.iter().flatten().count());
    let workload = WorkloadReport {
        name: order.workload.name(),
        requests,
        input_tokens: first.map_or(0, |measured| measured.run.figures.input_tokens),
        output_tokens: first.map_or(0, |measured| measured.run.figures.output_tokens),
        sha256: sets.first().map(|set| sha256(set)).unwrap_or_default(),
        seed: order.sizes.seed,
        repeats: order.repeats,
        loads: order.loads.iter().map(|load| load.label()).collect(),
        streamed: order.stream,
        sized_by: sized_by.clone(),
        bad_lines: bad_lines.clone(),
        goal: order.goal,
    };
    Report {
        tandem: env!("CARGO_PKG_VERSION").to_owned(),
        commit: env!("TANDEM_COMMIT").to_owned(),
        started_at,
        command: order.command.clone(),
        interrupted,
        host: host.clone(),
        workload,
        targets,
        ratios: ratios(order, standings),
        agreement: pairs(standings).filter_map(|(a, b)| agreement(a, b)).collect(),
    }
}

/// Each with each that comes after it.
fn pairs(standings: &[Standing]) -> impl Iterator<Item = (&Standing, &Standing)> {
    standings.iter().enumerate().flat_map(|(index, a)| standings[index + 1..].iter().map(move |b| (a, b)))
}

/// Of those pairs that have something to be compared by.
fn ratios(order: &Order, standings: &[Standing]) -> Vec<Ratio> {
    let several = order.loads.len() > 1;
    let each = pairs(standings).flat_map(|(a, b)| {
        order.loads.iter().enumerate().map(move |(level, load)| {
            let concurrency = if several { load.concurrency() } else { None };
            measure::ratio((&a.target.name, &a.runs), (&b.target.name, &b.runs), level, concurrency)
        })
    });
    each.filter(|ratio| ratio.requests_per_s.is_some()).collect()
}

fn agreement(a: &Standing, b: &Standing) -> Option<Agreement> {
    agreement::compare((&a.target.name, &a.answers), (&b.target.name, &b.answers))
}
