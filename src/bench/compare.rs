use super::{
    figures::{Spread, rounded},
    report::{Figures, Mode, Report, Run, TargetReport},
};

/// One figure of one target, then and now.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    pub target: String,
    pub figure: &'static str,
    pub before: Spread,
    pub now: Spread,
    pub verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Better,
    /// Within what runs differ by anyway.
    Same,
    Worse,
}

/// Why two reports say nothing about each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Incomparable {
    #[error("the workloads differ: {before} before, {now} now")]
    Workload { before: String, now: String },
    #[error("the loads differ: {before} before, {now} now")]
    Load { before: String, now: String },
    #[error("no target was measured in both")]
    NoTarget,
}

/// A difference of less is none, however near the runs lie together.
const LEAST: f64 = 0.03;

/// A figure, how a run has it, and whether more is better.
type Figure = (&'static str, fn(&Figures) -> Option<f64>, bool);
const FIGURES: [Figure; 6] = [
    ("requests/s", |figures| figures.requests_per_s, true),
    ("output tokens/s", |figures| figures.output_tokens_per_s, true),
    ("TTFT p50 ms", |figures| figures.ttft_ms.map(|ttft| ttft.p50), false),
    ("ITL p50 ms", |figures| figures.itl_ms.map(|itl| itl.p50), false),
    ("E2E p50 ms", |figures| figures.e2e_ms.map(|e2e| e2e.p50), false),
    ("peak memory MiB", |figures| figures.peak_memory_bytes.map(|bytes| (bytes >> 20) as f64), false),
];

/// What got better or worse beyond the spread of the runs: the runs of now all lie on one side of all those before.
///
/// # Errors
/// When the two have measured different things.
pub fn compare(before: &Report, now: &Report) -> Result<Vec<Comparison>, Incomparable> {
    let what = |report: &Report| {
        let hash = report.workload.sha256.get(..12).unwrap_or_default();
        format!("{} {hash}", report.workload.name)
    };
    if before.workload.sha256 != now.workload.sha256 {
        return Err(Incomparable::Workload { before: what(before), now: what(now) });
    }
    let loads = |report: &Report| {
        let how = if report.workload.streamed { "streamed" } else { "not streamed" };
        format!("{}, {how}", report.workload.loads.join(", "))
    };
    if loads(before) != loads(now) {
        return Err(Incomparable::Load { before: loads(before), now: loads(now) });
    }
    let both = now.targets.iter().filter_map(|target| {
        let same = |other: &&TargetReport| other.name == target.name && other.mode == target.mode;
        Some((before.targets.iter().find(same)?, target))
    });
    let comparisons: Vec<Comparison> = both.flat_map(|(before, now)| of_target(before, now)).collect();
    if comparisons.is_empty() { Err(Incomparable::NoTarget) } else { Ok(comparisons) }
}

fn of_target(before: &TargetReport, now: &TargetReport) -> Vec<Comparison> {
    // Of a sweep each load by itself.
    let mut levels: Vec<Option<u32>> = now.runs.iter().map(|run| run.concurrency).collect();
    levels.dedup();
    levels.sort_unstable();
    levels.dedup();
    let several = levels.len() > 1;
    let each = levels.into_iter().flat_map(|level| FIGURES.into_iter().map(move |figure| (level, figure)));
    let compared = each.filter_map(|(level, (name, of, more_is_better))| {
        let (before, now_spread) = (spread(&before.runs, level, of)?, spread(&now.runs, level, of)?);
        let at = level.filter(|_| several).map_or_else(String::new, |level| format!(" with {level} at a time"));
        let offline = if now.mode == Mode::Offline && !now.name.ends_with("offline") { " offline" } else { "" };
        Some(Comparison {
            target: format!("{}{offline}{at}", now.name),
            figure: name,
            before,
            now: now_spread,
            verdict: verdict(before, now_spread, more_is_better),
        })
    });
    compared.collect()
}

fn spread(runs: &[Run], level: Option<u32>, of: fn(&Figures) -> Option<f64>) -> Option<Spread> {
    let runs = runs.iter().filter(|run| run.concurrency == level && run.broken.is_none());
    let values: Vec<f64> = runs.filter_map(|run| of(&run.figures)).filter(|value| *value > 0.0).collect();
    Spread::of(&values)
}

fn verdict(before: Spread, now: Spread, more_is_better: bool) -> Verdict {
    let change = rounded(now.median / before.median - 1.0);
    let (above, below) = (now.min > before.max && change > LEAST, now.max < before.min && change < -LEAST);
    match (above, below, more_is_better) {
        (true, _, true) | (_, true, false) => Verdict::Better,
        (true, _, false) | (_, true, true) => Verdict::Worse,
        (false, false, _) => Verdict::Same,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(min: f64, median: f64, max: f64) -> Spread {
        Spread { min, median, max }
    }

    #[test]
    fn slower_is_what_lies_below_all_runs_before() {
        let before = spread(95.0, 100.0, 105.0);
        assert_eq!(verdict(before, spread(80.0, 85.0, 90.0), true), Verdict::Worse);
        assert_eq!(verdict(before, spread(80.0, 85.0, 96.0), true), Verdict::Same);
        assert_eq!(verdict(before, spread(110.0, 115.0, 120.0), true), Verdict::Better);
        // Of a time less is better.
        assert_eq!(verdict(before, spread(80.0, 85.0, 90.0), false), Verdict::Better);
        assert_eq!(verdict(before, spread(110.0, 115.0, 120.0), false), Verdict::Worse);
    }

    #[test]
    fn a_hair_is_no_difference() {
        assert_eq!(verdict(spread(100.0, 100.0, 100.0), spread(98.0, 98.0, 98.0), true), Verdict::Same);
        assert_eq!(verdict(spread(100.0, 100.0, 100.0), spread(96.0, 96.0, 96.0), true), Verdict::Worse);
    }
}
