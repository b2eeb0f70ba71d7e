use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use tandem_core::LoadedBytes;

use super::bar::bar;
use crate::models::Models;

/// How often it is looked how far loading has come.
const LOOK: Duration = Duration::from_millis(100);
/// Between two lines of the log: a model that is loaded sooner has none.
const BETWEEN_LINES: Duration = Duration::from_secs(2);

/// Waits for `loaded`, and shows meanwhile how far the loading of the models has come: as a bar on a terminal, as lines of the log elsewhere.
pub(super) async fn shown<T>(models: &Models, loaded: impl Future<Output = T>) -> T {
    let mut meter = Meter::new(Instant::now());
    let mut looks = tokio::time::interval(LOOK);
    let mut loaded = std::pin::pin!(loaded);
    loop {
        tokio::select! {
            result = &mut loaded => {
                meter.end();
                return result;
            }
            _ = looks.tick() => {
                if let Some(bytes) = models.loading() {
                    meter.show(bytes);
                }
            }
        }
    }
}

struct Meter {
    bar: Option<ProgressBar>,
    lines: Lines,
}

impl Meter {
    fn new(now: Instant) -> Self {
        let bar = bar("{bar:40} {bytes}/{total_bytes} of weights, {bytes_per_sec}, {eta} left");
        Self { bar, lines: Lines { last: now, tenth: 0 } }
    }

    fn show(&mut self, bytes: LoadedBytes) {
        let LoadedBytes { done, total } = bytes;
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        } else if self.lines.due(Instant::now(), bytes) {
            tracing::info!(bytes.done = done, bytes.total = total, "loading weights");
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Which lines of the log are worth it: one for each tenth of the way at most, and none soon after another.
struct Lines {
    last: Instant,
    /// Tenths of the way that were told of.
    tenth: u64,
}

impl Lines {
    fn due(&mut self, now: Instant, LoadedBytes { done, total }: LoadedBytes) -> bool {
        let tenth = done.saturating_mul(10) / total.max(1);
        let due = tenth > self.tenth && now.saturating_duration_since(self.last) >= BETWEEN_LINES;
        if due {
            *self = Self { last: now, tenth };
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_needs_a_tenth_and_some_time() {
        let begun = Instant::now();
        let mut lines = Lines { last: begun, tenth: 0 };
        let mut due =
            |seconds: f64, done| lines.due(begun + Duration::from_secs_f64(seconds), LoadedBytes { done, total: 1000 });
        assert!(!due(1.0, 990), "too soon");
        assert!(!due(3.0, 99), "not a tenth");
        assert!(due(3.1, 100));
        assert!(!due(9.0, 199), "the same tenth");
        assert!(due(9.1, 450));
        assert!(!due(11.0, 900), "too soon after the last");
        assert!(due(11.2, 1000));
    }
}
