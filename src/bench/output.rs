use std::{io::Write as _, path::Path};

use serde_json::json;

use super::{
    answer::Verdict,
    chart::{self, Bar, Chart, Line, Scale},
    figures::percentile,
    markdown,
    measure::Measured,
    report::Report,
};

/// Points of a curve of latencies.
const CURVE_POINTS: u32 = 200;

/// Writes the report as JSON, as Markdown and in charts, and each request by itself.
pub(super) fn write(dir: &Path, report: &Report, measured: &[(&str, &[Measured])]) -> std::io::Result<()> {
    let json = serde_json::to_string_pretty(report).map_err(std::io::Error::other)?;
    fs_err::write(dir.join("report.json"), json + "\n")?;
    write_requests(&dir.join("requests.jsonl"), measured)?;
    let mut names = Vec::new();
    for (name, chart) in charts(report, measured) {
        fs_err::write(dir.join(name), chart::svg(&chart)?)?;
        names.push(name);
    }
    fs_err::write(dir.join("report.md"), markdown::document(report, &names))
}

/// All that was seen of each request, for other tools.
fn write_requests(path: &Path, measured: &[(&str, &[Measured])]) -> std::io::Result<()> {
    let mut file = std::io::BufWriter::new(fs_err::File::create(path)?);
    for (target, runs) in measured {
        for Measured { run, samples, .. } in *runs {
            for sample in samples {
                let (verdict, reason) = match &sample.verdict {
                    Verdict::Ok => ("ok", None),
                    Verdict::Failed(reason) => ("failed", Some(reason)),
                    Verdict::Empty => ("empty", None),
                    Verdict::Cut(reason) => ("cut", Some(reason)),
                };
                let line = json!({
                    "target": target, "repeat": run.repeat, "concurrency": run.concurrency, "verdict": verdict,
                    "reason": reason, "e2e_ms": sample.e2e_ms, "ttft_ms": sample.ttft_ms,
                    "input_tokens": sample.input_tokens, "output_tokens": sample.output_tokens,
                    "cached_tokens": sample.cached_tokens,
                });
                writeln!(file, "{line}")?;
            }
        }
    }
    file.flush()
}

/// The charts that there is something for, each with the name of its file.
fn charts(report: &Report, measured: &[(&str, &[Measured])]) -> Vec<(&'static str, Chart)> {
    let mut charts = Vec::new();
    let bars = bars(report, measured);
    if !bars.is_empty() {
        let what = if has_output(report) { "output tokens/s" } else { "requests/s" };
        charts.push(("throughput.svg", Chart::Bars { title: format!("Throughput, {what}"), bars }));
    }
    let sweeps = lines(report, |target| {
        let point = |level: &super::report::Level| (f64::from(level.concurrency), level.throughput());
        target.sweep.iter().map(point).collect()
    });
    if !sweeps.is_empty() {
        let what = if has_output(report) { "output tokens/s" } else { "requests/s" };
        let title = "Throughput by requests at a time".to_owned();
        charts.push((
            "sweep.svg",
            Chart::Lines {
                title,
                x: "requests at a time",
                y: what,
                lines: sweeps,
                scale: Scale::Doublings,
                y_max: None,
            },
        ));
    }
    for (name, title, of) in CURVES {
        let curves = lines_of(measured, |samples| curve(samples.iter().filter(|s| s.is_ok()).filter_map(of).collect()));
        if !curves.is_empty() {
            let chart = Chart::Lines {
                title: title.to_owned(),
                x: "milliseconds",
                y: "% of requests",
                lines: curves,
                scale: Scale::FromZero,
                y_max: Some(100.0),
            };
            charts.push((name, chart));
        }
    }
    charts
}

type Timed = fn(&super::sample::Sample) -> Option<f64>;
const CURVES: [(&str, &str, Timed); 2] = [
    ("ttft.svg", "Time to the first text: requests that have it by then", |sample| sample.ttft_ms),
    ("e2e.svg", "Whole answers: requests that have theirs by then", |sample| {
        (sample.e2e_ms > 0.0).then_some(sample.e2e_ms)
    }),
];

fn has_output(report: &Report) -> bool {
    report.targets.iter().any(|target| target.figures.output_tokens > 0)
}

fn bars(report: &Report, measured: &[(&str, &[Measured])]) -> Vec<Bar> {
    let output = has_output(report);
    let bar = |(target, (name, runs)): (&super::report::TargetReport, &(&str, &[Measured]))| {
        let level = target.sweep.iter().position(|level| Some(level.concurrency) == target.concurrency).unwrap_or(0);
        let runs = super::measure::finished(runs, level);
        let spread = if output {
            super::measure::spread(&runs, |figures| figures.output_tokens_per_s)
        } else {
            super::measure::spread(&runs, |figures| figures.requests_per_s)
        }?;
        Some(Bar { name: (*name).to_owned(), spread })
    };
    std::iter::zip(&report.targets, measured).filter_map(bar).collect()
}

fn lines(report: &Report, of: impl Fn(&super::report::TargetReport) -> Vec<(f64, f64)>) -> Vec<Line> {
    let line = |target: &super::report::TargetReport| {
        let points = of(target);
        (!points.is_empty()).then(|| Line { name: target.name.clone(), points })
    };
    report.targets.iter().filter_map(line).collect()
}

fn lines_of(measured: &[(&str, &[Measured])], of: impl Fn(&[super::sample::Sample]) -> Vec<(f64, f64)>) -> Vec<Line> {
    let line = |(name, runs): &(&str, &[Measured])| {
        let finished = runs.iter().filter(|measured| measured.run.broken.is_none());
        let samples: Vec<_> = finished.flat_map(|measured| measured.samples.iter().cloned()).collect();
        let points = of(&samples);
        (points.len() > 1).then(|| Line { name: (*name).to_owned(), points })
    };
    measured.iter().filter_map(line).collect()
}

/// By which time how many percent are there.
fn curve(mut values: Vec<f64>) -> Vec<(f64, f64)> {
    values.sort_by(f64::total_cmp);
    let points = (1..=CURVE_POINTS).filter_map(|point| {
        let percent = 100.0 * f64::from(point) / f64::from(CURVE_POINTS);
        Some((percentile(&values, percent)?, percent))
    });
    points.collect()
}
