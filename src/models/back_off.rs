use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Between an engine's end and the next attempt to load its model; doubled each time.
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(60);
/// An engine that has worked for so long has recovered from whatever ended the one before.
const WORKED_WELL: Duration = Duration::from_secs(60);
/// So many ends within such a time are no accidents.
pub(super) const CRASH_LOOP: (usize, Duration) = (3, Duration::from_secs(90));

/// When to load a model again whose engine has ended, or that could not be loaded.
#[derive(Debug)]
pub(super) struct BackOff {
    next: Duration,
    /// The last ends of engines, oldest first; at most as many as make a crash loop.
    ends: VecDeque<Instant>,
}

/// What an end means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Before the next attempt.
    pub(super) wait: Duration,
    /// Whether engines end again and again.
    pub(super) crash_loop: bool,
}

impl Default for BackOff {
    fn default() -> Self {
        Self { next: FIRST, ends: VecDeque::new() }
    }
}

impl BackOff {
    /// An engine that was there since `loaded` has ended. How long it took to load does not count as work.
    pub(super) fn ended(&mut self, loaded: Instant, now: Instant) -> Verdict {
        if now.duration_since(loaded) >= WORKED_WELL {
            self.next = FIRST;
        }
        let (count, within) = CRASH_LOOP;
        self.ends.push_back(now);
        if self.ends.len() > count {
            self.ends.pop_front();
        }
        let oldest = self.ends.front().copied().unwrap_or(now);
        let crash_loop = self.ends.len() == count && now.duration_since(oldest) <= within;
        Verdict { wait: self.wait(), crash_loop }
    }

    /// The model could not be loaded.
    pub(super) fn failed(&mut self) -> Verdict {
        Verdict { wait: self.wait(), crash_loop: false }
    }

    fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(LONGEST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ends of engines, each `worked` seconds after it was loaded, and loaded when the wait was over.
    fn verdicts(worked: &[u64]) -> Vec<(u64, bool)> {
        let (mut back_off, mut now) = (BackOff::default(), Instant::now());
        let mut end = |&seconds: &u64| {
            let loaded = now;
            now += Duration::from_secs(seconds);
            let Verdict { wait, crash_loop } = back_off.ended(loaded, now);
            now += wait;
            (wait.as_millis() as u64, crash_loop)
        };
        worked.iter().map(&mut end).collect()
    }

    #[test]
    fn the_first_attempt_comes_within_a_second_and_later_ones_ever_later() {
        let waits: Vec<u64> = verdicts(&[0; 9]).into_iter().map(|(wait, _)| wait).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]);
    }

    #[test]
    fn only_good_work_is_forgiven() {
        let waits: Vec<u64> = verdicts(&[5, 5, 59, 60, 5]).into_iter().map(|(wait, _)| wait).collect();
        assert_eq!(waits, [500, 1000, 2000, 500, 1000]);
    }

    #[test]
    fn three_ends_within_a_minute_and_a_half_are_a_crash_loop() {
        let loops = |worked: &[u64]| verdicts(worked).into_iter().map(|(_, crash_loop)| crash_loop).collect::<Vec<_>>();
        assert_eq!(loops(&[100, 1, 1, 1]), [false, false, true, true]);
        assert_eq!(loops(&[1, 40, 55, 200]), [false, false, false, false]);
    }

    #[test]
    fn a_model_that_cannot_be_loaded_waits_as_long_and_is_no_crash() {
        let mut back_off = BackOff::default();
        let waits: Vec<_> = (0..3).map(|_| back_off.failed()).collect();
        assert!(waits.iter().all(|verdict| !verdict.crash_loop));
        assert_eq!(waits[2].wait, 4 * FIRST);
    }
}
