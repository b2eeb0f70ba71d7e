use std::{
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

use super::resident::Resident;

/// How often the engines are looked at in the time that a step may take.
const LOOKS: u32 = 20;
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What no engine of this process recovers from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fatal {
    /// A step that does not return.
    Hang {
        /// The model whose engine hangs.
        model: String,
        /// How long the step has taken so far.
        busy: Duration,
    },
    /// The device of a model is lost to this process.
    DeviceLost {
        /// The model.
        model: String,
    },
}

/// Looks at the engines from a thread of its own, since the runtime may be what hangs, until none is left, a device is lost, or a step has taken
/// longer than `limit`. Then nobody is given that engine any more, and `on_end` decides what becomes of the process.
///
/// # Errors
/// When there can be no thread.
pub(super) fn start(
    residents: &[Arc<Resident>],
    limit: Option<Duration>,
    on_end: impl FnOnce(Fatal) + Send + 'static,
) -> std::io::Result<()> {
    let limit = limit.unwrap_or(Duration::MAX);
    let mut watched: Vec<_> = residents.iter().map(|resident| (Arc::downgrade(resident), Watch::new(limit))).collect();
    let body = move || {
        if let Some(fatal) = watch(&mut watched, (limit / LOOKS).min(LONGEST_PAUSE)) {
            on_end(fatal);
        }
    };
    thread::Builder::new().name("watchdog".to_owned()).spawn(body).map(drop)
}

fn watch(watched: &mut [(Weak<Resident>, Watch)], pause: Duration) -> Option<Fatal> {
    let mut last = Instant::now();
    loop {
        thread::sleep(pause);
        let now = Instant::now();
        let since = now.duration_since(last);
        last = now;
        let mut any = false;
        for (resident, watch) in &mut *watched {
            let Some(resident) = resident.upgrade() else { continue };
            any = true;
            if resident.device_lost() {
                return Some(Fatal::DeviceLost { model: resident.name().to_owned() });
            }
            let busy = resident.busy_for();
            if watch.look(since, busy, pause) {
                resident.give_up();
                return Some(Fatal::Hang { model: resident.name().to_owned(), busy: busy.unwrap_or_default() });
            }
        }
        if !any {
            return None;
        }
    }
}

/// How much of a step was seen to pass.
///
/// Time in which the watchdog itself did not run is not held against the engine: the process was stopped, or the machine slept or had other
/// work.
#[derive(Debug)]
struct Watch {
    limit: Duration,
    seen: Duration,
}

impl Watch {
    fn new(limit: Duration) -> Self {
        Self { limit, seen: Duration::ZERO }
    }

    /// Whether the step takes too long, `since` after the last look, where a `pause` was meant to be. `busy` is how long the step has taken.
    fn look(&mut self, since: Duration, busy: Option<Duration>, pause: Duration) -> bool {
        let counted = since.min(2 * pause);
        self.seen = match busy {
            None => Duration::ZERO,
            // It began after the last look.
            Some(busy) if busy < since => busy.min(counted),
            Some(_) => self.seen + counted,
        };
        self.seen >= self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);
    const PAUSE: Duration = Duration::from_secs(1);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// At which second of one step, looked at every second, it is found to hang.
    #[test]
    fn a_step_that_does_not_return_is_found_at_the_limit() {
        let mut watch = Watch::new(LIMIT);
        let found = (0..100).find(|&second| watch.look(PAUSE, Some(seconds(second)), PAUSE));
        assert_eq!(found, Some(20));
    }

    #[test]
    fn many_short_steps_are_no_long_one() {
        let mut watch = Watch::new(LIMIT);
        assert!((0..1000).all(|_| !watch.look(PAUSE, Some(Duration::from_millis(999)), PAUSE)));
        assert!((0..19).all(|second| !watch.look(PAUSE, Some(seconds(second)), PAUSE)));
        assert!(!watch.look(PAUSE, None, PAUSE));
        assert!((0..19).all(|second| !watch.look(PAUSE, Some(seconds(second)), PAUSE)), "an idle moment starts over");
    }

    #[test]
    fn time_in_which_the_process_stood_still_does_not_count() {
        let mut watch = Watch::new(LIMIT);
        assert!(!watch.look(PAUSE, Some(seconds(1)), PAUSE));
        assert!(!watch.look(seconds(3600), Some(seconds(3601)), PAUSE));
        let later = (1..100).find(|&second| watch.look(PAUSE, Some(seconds(3601 + second)), PAUSE));
        assert_eq!(later, Some(17), "a second before and two for the hour are counted already");
    }
}
