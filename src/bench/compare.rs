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

struct Figure {
    name: &'static str,
    of: fn(&Figures) -> Option<f64>,
    more_is_better: bool,
    /// In the figure's unit: what it differs by without anything having changed.
    noise: f64,
}

const FIGURES: [Figure; 6] = [
    Figure { name: "requests/s", of: |figures| figures.requests_per_s, more_is_better: true, noise: 0.0 },
    Figure { name: "output tokens/s", of: |figures| figures.output_tokens_per_s, more_is_better: true, noise: 0.0 },
    Figure {
        name: "TTFT p50 ms",
        of: |figures| figures.ttft_ms.map(|ttft| ttft.p50),
        more_is_better: false,
        noise: 0.0,
    },
    Figure { name: "ITL p50 ms", of: |figures| figures.itl_ms.map(|itl| itl.p50), more_is_better: false, noise: 0.0 },
    Figure { name: "E2E p50 ms", of: |figures| figures.e2e_ms.map(|e2e| e2e.p50), more_is_better: false, noise: 0.0 },
    Figure {
        name: "peak memory MiB",
        of: |figures| figures.peak_memory_bytes.map(|bytes| (bytes >> 20) as f64),
        more_is_better: false,
        // An allocator's arenas, one more or less.
        noise: 8.0,
    },
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
    let compared = each.filter_map(|(level, figure)| {
        let of = |runs| spread(runs, level, figure.of);
        let (before, now_spread) = (of(&before.runs)?, of(&now.runs)?);
        let at = level.filter(|_| several).map_or_else(String::new, |level| format!(" with {level} at a time"));
        let offline = if now.mode == Mode::Offline && !now.name.ends_with("offline") { " offline" } else { "" };
        Some(Comparison {
            target: format!("{}{offline}{at}", now.name),
            figure: figure.name,
            before,
            now: now_spread,
            verdict: verdict(before, now_spread, &figure),
        })
    });
    compared.collect()
}

fn spread(runs: &[Run], level: Option<u32>, of: fn(&Figures) -> Option<f64>) -> Option<Spread> {
    let runs = runs.iter().filter(|run| run.concurrency == level && run.broken.is_none());
    let values: Vec<f64> = runs.filter_map(|run| of(&run.figures)).filter(|value| *value > 0.0).collect();
    Spread::of(&values)
}

fn verdict(before: Spread, now: Spread, figure: &Figure) -> Verdict {
    let change = rounded(now.median / before.median - 1.0);
    if change.abs() <= LEAST || (now.median - before.median).abs() <= figure.noise {
        return Verdict::Same;
    }
    match (now.min > before.max, now.max < before.min, figure.more_is_better) {
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

    const RATE: &Figure = &FIGURES[0];
    const TIME: &Figure = &FIGURES[2];
    const MEMORY: &Figure = &FIGURES[5];

    #[test]
    fn slower_is_what_lies_below_all_runs_before() {
        let before = spread(95.0, 100.0, 105.0);
        assert_eq!(verdict(before, spread(80.0, 85.0, 90.0), RATE), Verdict::Worse);
        assert_eq!(verdict(before, spread(80.0, 85.0, 96.0), RATE), Verdict::Same);
        assert_eq!(verdict(before, spread(110.0, 115.0, 120.0), RATE), Verdict::Better);
        // Of a time less is better.
        assert_eq!(verdict(before, spread(80.0, 85.0, 90.0), TIME), Verdict::Better);
        assert_eq!(verdict(before, spread(110.0, 115.0, 120.0), TIME), Verdict::Worse);
    }

    #[test]
    fn a_hair_is_no_difference() {
        assert_eq!(verdict(spread(100.0, 100.0, 100.0), spread(98.0, 98.0, 98.0), RATE), Verdict::Same);
        assert_eq!(verdict(spread(100.0, 100.0, 100.0), spread(96.0, 96.0, 96.0), RATE), Verdict::Worse);
    }

    #[test]
    fn memory_differs_by_some_mebibytes_between_processes_that_are_alike() {
        let verdict = |before: f64, now: f64| verdict(spread(before, before, before), spread(now, now, now), MEMORY);
        assert_eq!((verdict(26.0, 27.0), verdict(27.0, 19.5)), (Verdict::Same, Verdict::Same));
        assert_eq!((verdict(1000.0, 1020.0), verdict(1000.0, 1040.0)), (Verdict::Same, Verdict::Worse));
        assert_eq!((verdict(26.0, 40.0), verdict(40.0, 26.0)), (Verdict::Worse, Verdict::Better));
    }
}
