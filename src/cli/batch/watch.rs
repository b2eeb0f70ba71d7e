use std::{io::IsTerminal as _, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::{
    client::{Client, ClientError, Result},
    say,
    view::BatchView,
};

const POLL: Duration = Duration::from_secs(1);
/// A server that is being restarted is waited for.
const FAILURES_MAX: u32 = 30;

/// Looks at a batch until it has ended, and shows how it gets on.
pub(super) async fn watch(client: &Client, id: &str) -> Result<Value> {
    let mut meter = Meter::new();
    let mut failures = Failures::default();
    loop {
        match client.get(&format!("/batches/{id}"), &[]).await {
            Ok(batch) => {
                failures = Failures::default();
                let view = BatchView::of(&batch)?;
                meter.show(&view);
                if view.has_ended() {
                    meter.finish();
                    return Ok(batch);
                }
            }
            Err(error) => failures.bear(error)?,
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Failures in a row.
#[derive(Debug, Default)]
pub(super) struct Failures(u32);

impl Failures {
    /// Takes one more, unless it is of the kind that stays or one too many.
    pub(super) fn bear(&mut self, error: ClientError) -> Result<()> {
        self.0 += 1;
        if self.0 > FAILURES_MAX || !error.is_passing() {
            return Err(error);
        }
        if self.0 == 1 {
            say(&format!("{error}; trying again"));
        }
        Ok(())
    }
}

/// A bar on a terminal; elsewhere a line for each tenth of the way and each status.
struct Meter {
    bar: Option<ProgressBar>,
    told: Option<(String, u64)>,
}

impl Meter {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:40} {pos}/{len} lines, {msg}");
            ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { bar, told: None }
    }

    fn show(&mut self, view: &BatchView) {
        let counts = view.counts();
        let ended = counts.completed + counts.failed;
        if let Some(bar) = &self.bar {
            bar.set_length(counts.total);
            bar.set_position(ended);
            let left = view.progress.as_ref().and_then(|progress| progress.eta_seconds);
            let left = left.map_or_else(|| bar.eta(), Duration::from_secs);
            let rate = view.progress.as_ref().and_then(|progress| progress.tokens_per_second);
            let rate = rate.map_or_else(String::new, |rate| format!(", {rate:.0} tokens/s"));
            let failed = counts.failed;
            bar.set_message(format!("{}, {failed} failed{rate}, {} s left", view.status, left.as_secs()));
            return;
        }
        let tenth = (ended * 10).checked_div(counts.total).unwrap_or(0);
        let now = Some((view.status.clone(), tenth));
        if self.told != now {
            self.told = now;
            say(&view.line());
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
