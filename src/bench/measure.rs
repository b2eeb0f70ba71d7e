use std::time::Duration;

use super::{
    answer::Verdict,
    figures::{Percentiles, Spread, rounded},
    gpus,
    report::{Counts, Figures, Goal, Goodput, GpuUse, Level, Ratio, Run},
    sample::Sample,
};
use crate::bench::figures::ratios;

/// A run with the requests that it is made of.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) run: Run,
    pub(super) samples: Vec<Sample>,
    /// Which of several loads it had.
    pub(super) level: usize,
}

const REASONS_MAX: usize = 5;
/// So many requests have to keep the goal.
const WITHIN_GOAL: f64 = 0.9;
/// Of the most that a target gives, at the knee.
const KNEE: f64 = 0.95;

/// The figures of requests that took so long together.
pub(super) fn figures(samples: &[Sample], wall: Duration, goal: Goal) -> Figures {
    let wall_s = wall.as_secs_f64();
    let good: Vec<&Sample> = samples.iter().filter(|sample| sample.is_ok()).collect();
    let total = |of: fn(&Sample) -> u64| good.iter().map(|sample| of(sample)).sum::<u64>();
    let (input, output) = (total(|sample| sample.input_tokens), total(|sample| sample.output_tokens));
    let rate = |count: u64| (wall_s > 0.0).then(|| rounded(count as f64 / wall_s));
    Figures {
        wall_s: Some(rounded(wall_s)),
        requests_per_s: rate(good.len() as u64),
        output_tokens_per_s: rate(output),
        input_tokens_per_s: rate(input),
        ..pooled(samples, wall_s, goal)
    }
}

/// What can be said of requests without when they were sent: counts, totals, percentiles.
fn pooled(samples: &[Sample], wall_s: f64, goal: Goal) -> Figures {
    let good: Vec<&Sample> = samples.iter().filter(|sample| sample.is_ok()).collect();
    let total = |of: fn(&Sample) -> u64| good.iter().map(|sample| of(sample)).sum::<u64>();
    let percentiles = |of: &dyn Fn(&Sample) -> Option<f64>| {
        Percentiles::of(&good.iter().filter_map(|sample| of(sample)).collect::<Vec<_>>())
    };
    let gaps: Vec<f64> = good.iter().flat_map(|sample| &sample.gaps_ms).map(|gap| f64::from(*gap)).collect();
    let timed = |sample: &Sample| (sample.e2e_ms > 0.0).then_some(sample.e2e_ms);
    Figures {
        requests: counts(samples),
        input_tokens: total(|sample| sample.input_tokens),
        output_tokens: total(|sample| sample.output_tokens),
        cached_input_tokens: total(|sample| sample.cached_tokens),
        ttft_ms: percentiles(&|sample| sample.ttft_ms),
        itl_ms: Percentiles::of(&gaps),
        tpot_ms: percentiles(&Sample::tpot_ms),
        e2e_ms: percentiles(&timed),
        goodput: goodput(samples, wall_s, goal),
        ..Figures::default()
    }
}

fn counts(samples: &[Sample]) -> Counts {
    let mut counts = Counts::default();
    for sample in samples {
        let (counter, reason) = match &sample.verdict {
            Verdict::Ok => (&mut counts.ok, None),
            Verdict::Failed(reason) => (&mut counts.failed, Some(reason)),
            Verdict::Empty => (&mut counts.empty, None),
            Verdict::Cut(reason) => (&mut counts.cut, Some(reason)),
        };
        *counter += 1;
        if let Some(reason) = reason
            && counts.reasons.len() < REASONS_MAX
            && !counts.reasons.contains(reason)
        {
            counts.reasons.push(reason.clone());
        }
    }
    counts
}

fn goodput(samples: &[Sample], wall_s: f64, goal: Goal) -> Option<Goodput> {
    if !goal.is_set() || samples.is_empty() || wall_s <= 0.0 {
        return None;
    }
    let kept = |limit: Option<f64>, value: Option<f64>| match (limit, value) {
        (Some(limit), Some(value)) => value <= limit,
        (None, _) | (_, None) => true,
    };
    let good = |sample: &&Sample| {
        sample.is_ok()
            && kept(goal.ttft_ms, sample.ttft_ms)
            && kept(goal.itl_ms, sample.tpot_ms())
            && kept(goal.e2e_ms, Some(sample.e2e_ms))
    };
    let good = samples.iter().filter(good).count() as f64;
    Some(Goodput { requests_per_s: rounded(good / wall_s), fraction: rounded(good / samples.len() as f64) })
}

/// What several runs at one load come to: medians of rates, totals of counts, percentiles over all requests.
pub(super) fn together(runs: &[&Measured], goal: Goal) -> Figures {
    let samples: Vec<Sample> = runs.iter().flat_map(|measured| measured.samples.iter().cloned()).collect();
    let wall_s: f64 = runs.iter().filter_map(|measured| measured.run.figures.wall_s).sum();
    let median = |of: fn(&Figures) -> Option<f64>| spread(runs, of).map(|spread| spread.median);
    let pooled = pooled(&samples, wall_s, goal);
    let used: Vec<&[GpuUse]> = runs.iter().filter_map(|measured| measured.run.figures.gpus.as_deref()).collect();
    Figures {
        wall_s: median(|figures| figures.wall_s),
        requests_per_s: median(|figures| figures.requests_per_s),
        output_tokens_per_s: median(|figures| figures.output_tokens_per_s),
        input_tokens_per_s: median(|figures| figures.input_tokens_per_s),
        peak_memory_bytes: runs.iter().filter_map(|measured| measured.run.figures.peak_memory_bytes).max(),
        cpu_s: median(|figures| figures.cpu_s),
        client_cpu_s: median(|figures| figures.client_cpu_s),
        energy_j: median(|figures| figures.energy_j),
        gpus: gpus::together(&used),
        ..pooled
    }
}

/// How a figure lies over the runs.
pub(super) fn spread(runs: &[&Measured], of: fn(&Figures) -> Option<f64>) -> Option<Spread> {
    Spread::of(&runs.iter().filter_map(|measured| of(&measured.run.figures)).collect::<Vec<_>>())
}

/// The runs at a load that were finished.
pub(super) fn finished(runs: &[Measured], level: usize) -> Vec<&Measured> {
    runs.iter().filter(|measured| measured.level == level && measured.run.broken.is_none()).collect()
}

/// How it went at one of several loads.
pub(super) fn level(concurrency: u32, runs: &[&Measured], goal: Goal) -> Level {
    let figures = together(runs, goal);
    Level {
        concurrency,
        requests_per_s: spread(runs, |figures| figures.requests_per_s),
        output_tokens_per_s: spread(runs, |figures| figures.output_tokens_per_s),
        ttft_ms: figures.ttft_ms,
        itl_ms: figures.itl_ms,
        e2e_ms: figures.e2e_ms,
        goodput: figures.goodput,
        within_goal: figures.goodput.map(|goodput| goodput.fraction >= WITHIN_GOAL),
    }
}

impl Level {
    /// What a load gives: tokens where there are any, requests where there are none.
    #[must_use]
    pub fn throughput(&self) -> f64 {
        let median = |spread: Option<Spread>| spread.map(|spread| spread.median).filter(|median| *median > 0.0);
        median(self.output_tokens_per_s).or_else(|| median(self.requests_per_s)).unwrap_or(0.0)
    }
}

/// The level that is best: the fastest of those within the goal, if there is one.
pub(super) fn best(levels: &[Level]) -> Option<usize> {
    let fastest = |within: bool| {
        let of = levels.iter().enumerate().filter(|(_, level)| !within || level.within_goal == Some(true));
        let best = of.max_by(|(_, a), (_, b)| a.throughput().total_cmp(&b.throughput()));
        best.map(|(index, _)| index)
    };
    fastest(true).or_else(|| fastest(false))
}

/// The fewest requests at a time that give nearly the most: more of them only wait.
pub(super) fn knee(levels: &[Level]) -> Option<u32> {
    let most = levels.iter().map(Level::throughput).fold(0.0, f64::max);
    let enough = |level: &&Level| most > 0.0 && level.throughput() >= KNEE * most;
    levels.iter().filter(enough).map(|level| level.concurrency).min()
}

/// One target over another at one load, repeat by repeat.
pub(super) fn ratio(a: (&str, &[Measured]), b: (&str, &[Measured]), level: usize, concurrency: Option<u32>) -> Ratio {
    let of = |figure: fn(&Figures) -> Option<f64>| {
        let theirs = finished(b.1, level);
        let pairs = finished(a.1, level).into_iter().filter_map(|ours| {
            let other = theirs.iter().find(|theirs| theirs.run.repeat == ours.run.repeat)?;
            Some((figure(&ours.run.figures)?, figure(&other.run.figures)?))
        });
        ratios(pairs.collect::<Vec<_>>())
    };
    Ratio {
        a: a.0.to_owned(),
        b: b.0.to_owned(),
        concurrency,
        output_tokens_per_s: of(|figures| figures.output_tokens_per_s),
        requests_per_s: of(|figures| figures.requests_per_s),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(verdict: Verdict, ttft_ms: f64, tokens: u64) -> Sample {
        Sample {
            e2e_ms: ttft_ms + 10.0 * (tokens - 1) as f64,
            ttft_ms: Some(ttft_ms),
            gaps_ms: vec![10.0; tokens as usize - 1],
            input_tokens: 100,
            output_tokens: tokens,
            cached_tokens: 16,
            verdict,
            refused: false,
        }
    }

    fn measured(repeat: u32, level: usize, samples: Vec<Sample>, seconds: u64) -> Measured {
        let figures = figures(&samples, Duration::from_secs(seconds), Goal::default());
        let run = Run { repeat, concurrency: None, rate: None, load_s: None, broken: None, figures };
        Measured { run, samples, level }
    }

    #[test]
    fn answers_that_are_not_good_are_counted_and_not_averaged_in() {
        let samples = [
            sample(Verdict::Ok, 50.0, 11),
            sample(Verdict::Ok, 70.0, 11),
            sample(Verdict::Failed("away".to_owned()), 1.0, 1),
            sample(Verdict::Cut("3 tokens of 8".to_owned()), 1.0, 3),
            sample(Verdict::Empty, 1.0, 1),
        ];
        let figures = figures(&samples, Duration::from_secs(2), Goal::default());
        let Counts { ok, failed, empty, cut, reasons } = &figures.requests;
        assert_eq!((ok, failed, empty, cut), (&2, &1, &1, &1));
        assert_eq!(reasons, &["away", "3 tokens of 8"]);
        assert_eq!((figures.output_tokens, figures.output_tokens_per_s), (22, Some(11.0)));
        assert_eq!((figures.input_tokens_per_s, figures.cached_input_tokens), (Some(100.0), 32));
        assert_eq!(figures.ttft_ms, Some(Percentiles { p50: 50.0, p90: 70.0, p99: 70.0 }));
        assert_eq!(figures.itl_ms.unwrap().p99, 10.0);
        assert_eq!(figures.tpot_ms.unwrap().p50, 10.0);
        assert_eq!(figures.goodput, None);
    }

    #[test]
    fn goodput_is_of_all_requests() {
        let goal = Goal { ttft_ms: Some(60.0), ..Goal::default() };
        let samples = [
            sample(Verdict::Ok, 50.0, 2),
            sample(Verdict::Ok, 70.0, 2),
            sample(Verdict::Failed(String::new()), 1.0, 1),
        ];
        let goodput = figures(&samples, Duration::from_secs(2), goal).goodput.unwrap();
        assert_eq!((goodput.requests_per_s, goodput.fraction), (0.5, 0.333));
    }

    #[test]
    fn runs_come_together_as_medians_and_totals() {
        let runs = [1, 2, 4].map(|seconds| measured(1, 0, vec![sample(Verdict::Ok, 50.0, 4)], seconds));
        let figures = together(&runs.iter().collect::<Vec<_>>(), Goal::default());
        assert_eq!((figures.requests.ok, figures.output_tokens), (3, 12));
        assert_eq!((figures.wall_s, figures.output_tokens_per_s), (Some(2.0), Some(2.0)));
    }

    #[test]
    fn pairs_are_of_the_same_repeat_and_load() {
        let fast = |repeat, level| measured(repeat, level, vec![sample(Verdict::Ok, 50.0, 4); 4], 2);
        let slow = |repeat, level| measured(repeat, level, vec![sample(Verdict::Ok, 50.0, 4); 2], 2);
        let a = [fast(1, 0), slow(1, 1), fast(2, 0), slow(2, 1), fast(3, 0)];
        let b = [slow(1, 0), slow(1, 1), slow(2, 0)];
        let at = |level| ratio(("a", &a), ("b", &b), level, None).output_tokens_per_s.unwrap();
        assert_eq!(at(0), Spread { min: 2.0, median: 2.0, max: 2.0 });
        assert_eq!(at(1).median, 1.0);
    }

    #[test]
    fn the_knee_is_where_more_at_a_time_gives_nothing() {
        let level = |concurrency, rate: f64, within_goal| Level {
            concurrency,
            requests_per_s: None,
            output_tokens_per_s: Spread::of(&[rate]),
            ttft_ms: None,
            itl_ms: None,
            e2e_ms: None,
            goodput: None,
            within_goal,
        };
        let rates = [(1, 100.0), (2, 190.0), (4, 350.0), (8, 360.0), (16, 355.0)];
        let levels = rates.map(|(concurrency, rate)| level(concurrency, rate, None));
        assert_eq!(knee(&levels), Some(4));
        assert_eq!(best(&levels), Some(3));
        let goals = rates.map(|(concurrency, rate)| level(concurrency, rate, Some(concurrency <= 2)));
        assert_eq!(best(&goals), Some(1));
        assert_eq!((knee(&[]), best(&[])), (None, None));
    }
}
