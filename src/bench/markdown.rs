use std::fmt::Write as _;

use super::{
    figures::{Percentiles, Spread},
    report::{Agreement, Figures, GpuUse, Level, Ratio, Report, Run, TargetReport},
};

/// What a table is made of: the head, and rows of as many cells. The first column is text, the others are figures.
struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

/// The table of all targets, for a terminal as well as for Markdown.
#[must_use]
pub fn table(report: &Report) -> String {
    let head = vec![
        "target",
        "requests/s",
        "output tok/s (min to max)",
        "TTFT p50/p99 ms",
        "ITL p50/p99 ms",
        "E2E p50/p99 ms",
        "ok",
        "bad",
        "cached",
        "memory MiB",
        "CPU s",
        "roofline",
    ];
    let rows = report.targets.iter().map(target_row).collect();
    let mut table = Table { head, rows };
    if report.targets.iter().any(|target| target.figures.gpus.is_some()) {
        table.head.extend(["GPU %", "GPU MiB", "energy J"]);
        for (row, target) in std::iter::zip(&mut table.rows, &report.targets) {
            row.extend(gpu_cells(&target.figures));
        }
    }
    table.render()
}

/// Everything under the table in a few sentences: ratios, knees, what went wrong.
#[must_use]
pub fn summary(report: &Report) -> String {
    let mut text = String::new();
    for ratio in &report.ratios {
        line(&mut text, &ratio_sentence(ratio));
    }
    for target in &report.targets {
        if let Some(knee) = target.knee {
            let best = target.sweep.iter().find(|level| Some(level.concurrency) == target.concurrency);
            line(&mut text, &knee_sentence(target, knee, best));
        }
    }
    for agreement in &report.agreement {
        line(&mut text, &agreement_sentence(agreement));
    }
    for target in &report.targets {
        if let Some(reason) = &target.error {
            line(&mut text, &format!("- {}: {reason}", target.name));
        }
        let requests = &target.figures.requests;
        if !requests.all_ok() {
            let (failed, empty, cut) = (requests.failed, requests.empty, requests.cut);
            let reasons = requests.reasons.join("; ");
            line(
                &mut text,
                &format!("- {}: {failed} requests failed, {empty} were empty, {cut} cut: {reasons}", target.name),
            );
        }
    }
    for bad in &report.workload.bad_lines {
        line(&mut text, &format!("- line {} of the workload: {}", bad.line, bad.reason));
    }
    if report.interrupted {
        line(&mut text, "- interrupted: what was finished is above");
    }
    text
}

/// The whole report as a document.
pub(super) fn document(report: &Report, charts: &[&str]) -> String {
    let mut text = format!("# Side by side: {}\n\n{}\n\n", report.workload.name, about(report));
    line(&mut text, &table(report));
    line(&mut text, &summary(report));
    for chart in charts {
        line(&mut text, &format!("![{}]({chart})\n", chart.trim_end_matches(".svg")));
    }
    for target in report.targets.iter().filter(|target| !target.sweep.is_empty()) {
        line(&mut text, &format!("## {} by requests at a time\n\n{}", target.name, sweep(target)));
    }
    line(&mut text, &format!("## Every run\n\n{}", runs(report)));
    text += &machine(report);
    text
}

/// The report as a section for BENCHMARKS.md.
#[must_use]
pub fn section(report: &Report) -> String {
    let date = report.started_at.get(..10).unwrap_or("undated");
    let names: Vec<&str> = report.targets.iter().map(|target| target.name.as_str()).collect();
    let mut text = format!(
        "### {date}, {} cores of {}: {} on {}\n\n{}\n\n",
        report.host.cores,
        report.host.cpu,
        names.join(" against "),
        report.workload.name,
        about(report)
    );
    line(&mut text, &table(report));
    line(&mut text, &summary(report));
    text += &machine(report);
    text
}

/// What was asked, in a paragraph.
fn about(report: &Report) -> String {
    let workload = &report.workload;
    let sized =
        workload.sized_by.as_ref().map_or_else(String::new, |name| format!(", measured by the tokenizer of {name}"));
    format!(
        "{} requests of `{}` a run, {} input and {} output tokens{sized}; {}; {}; {} interleaved repeats. Rates are medians, ratios pair by \
         pair; failed, empty and cut answers are counted and not averaged in.",
        workload.requests,
        workload.name,
        workload.input_tokens,
        workload.output_tokens,
        workload.loads.join(", "),
        if workload.streamed { "streamed" } else { "not streamed" },
        workload.repeats,
    )
}

fn machine(report: &Report) -> String {
    let host = &report.host;
    let memory = host.memory_bytes.map_or_else(String::new, |bytes| format!(", {} GiB", bytes >> 30));
    let driver = host.gpu_driver.as_ref().map_or_else(String::new, |version| format!(" (driver {version})"));
    let gpu = host.gpu.as_ref().map_or_else(|| "no GPU".to_owned(), |names| format!("{names}{driver}"));
    let load = host.load_before.map_or_else(String::new, |load| format!(", load {load} before"));
    let reads = host.memory_bytes_per_s.map_or_else(String::new, |bytes| format!(", memory {:.1} GB/s", bytes / 1e9));
    let models = report.targets.iter().filter_map(|target| {
        let quantization = target.quantization.as_ref().map_or_else(String::new, |name| format!(" {name}"));
        let backend = target.backend.as_deref().unwrap_or("a server");
        Some(format!("{} is `{}`{quantization} on {backend}", target.name, target.model.as_ref()?))
    });
    format!(
        "- Machine: {}, {} cores{memory}, {}, {gpu}{reads}{load}.\n- Models: {}.\n- Tandem {}, commit {}. `tandem {}`. Workload {}.\n",
        host.cpu,
        host.cores,
        host.os,
        models.collect::<Vec<_>>().join("; "),
        report.tandem,
        report.commit,
        report.command.join(" "),
        report.workload.sha256.get(..12).unwrap_or_default(),
    )
}

fn target_row(target: &TargetReport) -> Vec<String> {
    let figures = &target.figures;
    let spread = match (&target.sweep[..], target.concurrency) {
        ([], _) => output_spread(target.runs.iter().filter(|run| run.broken.is_none())),
        (levels, at) => {
            levels.iter().find(|level| Some(level.concurrency) == at).and_then(|level| level.output_tokens_per_s)
        }
    };
    let requests = &figures.requests;
    vec![
        target.name.clone(),
        number(figures.requests_per_s),
        spread_cell(spread),
        percentiles(figures.ttft_ms),
        percentiles(figures.itl_ms),
        percentiles(figures.e2e_ms),
        requests.ok.to_string(),
        (requests.failed + requests.empty + requests.cut).to_string(),
        figures.cached_input_tokens.to_string(),
        figures.peak_memory_bytes.map_or_else(none, |bytes| (bytes >> 20).to_string()),
        number(figures.cpu_s),
        target.roofline_fraction.map_or_else(none, |fraction| format!("{fraction:.2}")),
    ]
}

/// Each card by itself, and the energy of all.
fn gpu_cells(figures: &Figures) -> [String; 3] {
    let cards = figures.gpus.as_deref().unwrap_or_default();
    let each = |of: &dyn Fn(&GpuUse) -> Option<String>| {
        let cells: Vec<String> = cards.iter().map(|card| of(card).unwrap_or_else(none)).collect();
        if cells.is_empty() { none() } else { cells.join(", ") }
    };
    [
        each(&|card| card.utilization.map(|part| format!("{:.0}", 100.0 * part))),
        each(&|card| card.peak_memory_bytes.map(|bytes| (bytes >> 20).to_string())),
        number(figures.energy_j),
    ]
}

fn output_spread<'a>(runs: impl Iterator<Item = &'a Run>) -> Option<Spread> {
    Spread::of(&runs.filter_map(|run| run.figures.output_tokens_per_s).collect::<Vec<_>>())
}

fn ratio_sentence(ratio: &Ratio) -> String {
    let at = ratio.concurrency.map_or_else(String::new, |concurrency| format!(" with {concurrency} at a time"));
    let (what, spread) = match (ratio.output_tokens_per_s, ratio.requests_per_s) {
        (Some(spread), _) => ("output tokens/s", spread),
        (None, Some(spread)) => ("requests/s", spread),
        (None, None) => return format!("- {} over {}{at}: no pair of runs", ratio.a, ratio.b),
    };
    let Spread { min, median, max } = spread;
    format!("- {} over {}{at}: {median:.2} times the {what} ({min:.2} to {max:.2})", ratio.a, ratio.b)
}

fn knee_sentence(target: &TargetReport, knee: u32, best: Option<&Level>) -> String {
    let best = best.map_or_else(String::new, |level| {
        let goal = match level.within_goal {
            Some(true) => " within the goal",
            Some(false) => ", and not even that within the goal",
            None => "",
        };
        let kept = level.goodput.map_or_else(String::new, |goodput| {
            format!(", {:.2} good requests/s ({:.0} %)", goodput.requests_per_s, 100.0 * goodput.fraction)
        });
        format!("; best with {}: {:.1}/s{kept}{goal}", level.concurrency, level.throughput())
    });
    format!("- {}: {knee} at a time give 95 % of the most{best}", target.name)
}

fn agreement_sentence(agreement: &Agreement) -> String {
    let Agreement { a, b, answers, exact, .. } = agreement;
    let distance = agreement.logprob_distance.map_or_else(String::new, |distance| {
        format!("; log-probabilities differ by {:.1e} at most over {} tokens", distance.max, distance.tokens)
    });
    let first = agreement.first_difference.as_ref().map_or_else(String::new, |first| {
        format!(
            "; the first that differs is request {}, after {} characters: {:?} and {:?}",
            first.request, first.characters, first.a, first.b
        )
    });
    format!("- {a} and {b}: {exact} of {answers} greedy answers are the same{distance}{first}")
}

fn sweep(target: &TargetReport) -> String {
    let head = vec![
        "at a time",
        "requests/s",
        "output tok/s (min to max)",
        "TTFT p50/p99 ms",
        "ITL p50/p99 ms",
        "E2E p50/p99 ms",
        "good",
    ];
    let row = |level: &Level| {
        vec![
            level.concurrency.to_string(),
            number(level.requests_per_s.map(|spread| spread.median)),
            spread_cell(level.output_tokens_per_s),
            percentiles(level.ttft_ms),
            percentiles(level.itl_ms),
            percentiles(level.e2e_ms),
            level.goodput.map_or_else(none, |goodput| format!("{:.0} %", 100.0 * goodput.fraction)),
        ]
    };
    Table { head, rows: target.sweep.iter().map(row).collect() }.render()
}

fn runs(report: &Report) -> String {
    let head = vec![
        "run",
        "at a time",
        "wall s",
        "requests/s",
        "output tok/s",
        "input tok/s",
        "TTFT p50/p99 ms",
        "E2E p50/p99 ms",
        "ok",
        "bad",
        "load s",
        "CPU s",
        "client CPU s",
    ];
    let row = |target: &TargetReport, run: &Run| {
        let Figures { requests, .. } = &run.figures;
        let at = match (run.concurrency, run.rate) {
            (Some(concurrency), _) => concurrency.to_string(),
            (None, Some(rate)) => format!("{rate}/s"),
            (None, None) => none(),
        };
        let broken = if run.broken.is_some() { ", broken" } else { "" };
        vec![
            format!("{} {}{broken}", target.name, run.repeat),
            at,
            number(run.figures.wall_s),
            number(run.figures.requests_per_s),
            number(run.figures.output_tokens_per_s),
            number(run.figures.input_tokens_per_s),
            percentiles(run.figures.ttft_ms),
            percentiles(run.figures.e2e_ms),
            requests.ok.to_string(),
            (requests.failed + requests.empty + requests.cut).to_string(),
            number(run.load_s),
            number(run.figures.cpu_s),
            number(run.figures.client_cpu_s),
        ]
    };
    let rows = report.targets.iter().flat_map(|target| target.runs.iter().map(move |run| row(target, run))).collect();
    Table { head, rows }.render()
}

impl Table {
    /// Aligned, so that it can be read as it stands.
    fn render(&self) -> String {
        let head: Vec<String> = self.head.iter().map(ToString::to_string).collect();
        // A bar would begin a cell.
        let escaped = |row: &Vec<String>| row.iter().map(|cell| cell.replace('|', "\\|")).collect::<Vec<_>>();
        let rows = || std::iter::once(head.clone()).chain(self.rows.iter().map(escaped));
        let width = |column: usize| rows().filter_map(|row: Vec<String>| Some(row.get(column)?.chars().count())).max();
        let widths: Vec<usize> = (0..self.head.len()).map(|column| width(column).unwrap_or(0).max(3)).collect();
        let mut text = String::new();
        for (index, row) in rows().enumerate() {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
                if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            line(&mut text, &format!("| {} |", cells.collect::<Vec<_>>().join(" | ")));
            if index == 0 {
                let rules = widths.iter().enumerate().map(|(column, width)| {
                    if column == 0 { "-".repeat(width + 2) } else { format!("{}:", "-".repeat(width + 1)) }
                });
                line(&mut text, &format!("|{}|", rules.collect::<Vec<_>>().join("|")));
            }
        }
        text
    }
}

fn line(text: &mut String, line: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{line}");
}

fn none() -> String {
    "–".to_owned()
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(none, short)
}

fn short(value: f64) -> String {
    if value >= 1000.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

fn spread_cell(spread: Option<Spread>) -> String {
    spread.map_or_else(none, |Spread { min, median, max }| {
        format!("{} ({} to {})", short(median), short(min), short(max))
    })
}

fn percentiles(of: Option<Percentiles>) -> String {
    of.map_or_else(none, |Percentiles { p50, p99, .. }| format!("{} / {}", short(p50), short(p99)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_keeps_its_columns() {
        let rows = vec![vec!["a|b".to_owned(), "1.00".to_owned()], vec!["long name".to_owned(), "100".to_owned()]];
        let text = Table { head: vec!["target", "x"], rows }.render();
        let expected = "| target    |    x |\n|-----------|-----:|\n| a\\|b      | 1.00 |\n| long name |  100 |\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn each_card_is_told_of_by_itself() {
        let card =
            |utilization, memory: u64| GpuUse { utilization, peak_memory_bytes: Some(memory << 20), energy_j: None };
        let gpus = Some(vec![card(Some(0.934), 70_000), card(None, 3)]);
        let cells = gpu_cells(&Figures { gpus, energy_j: Some(1234.5), ..Figures::default() });
        assert_eq!(cells, ["93, –", "70000, 3", "1234"]);
        assert_eq!(gpu_cells(&Figures::default()), ["–", "–", "–"]);
    }
}
