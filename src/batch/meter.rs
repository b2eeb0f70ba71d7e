use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::store::Tokens;

/// How far back a batch's rate looks.
const WINDOW: Duration = Duration::from_secs(60);
/// Answers of one such time are counted together.
const BUCKET: Duration = Duration::from_secs(1);
/// A model's measure forgets half of what it knows when it has worked for so long.
const MEMORY: Duration = Duration::from_secs(600);
/// A rate over less is an accident.
const MEASURED_MIN: Duration = Duration::from_millis(50);

/// Measures how fast the lines of batches are answered that take computing, from what this process has seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Meter(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    batches: HashMap<String, Recent>,
    models: BTreeMap<String, Work>,
}

/// A batch over the last minute.
#[derive(Debug)]
struct Recent {
    since: Instant,
    model: String,
    buckets: VecDeque<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    begun: Instant,
    lines: u64,
    tokens: u64,
}

/// A model while it had lines to work on.
#[derive(Debug, Default)]
struct Work {
    in_flight: usize,
    busy_since: Option<Instant>,
    busy: Duration,
    lines: f64,
    tokens: f64,
    output_tokens: f64,
}

/// What a batch does at the moment.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchRate {
    /// The model of the line that started last.
    pub model: String,
    /// Of prompts and answers.
    pub tokens_per_second: f64,
    pub lines_per_second: f64,
}

/// What a model has been measured to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ModelRate {
    /// Of prompts and answers, over all lines that ran beside each other.
    pub(super) tokens_per_second: f64,
    pub(super) output_tokens_per_line: f64,
}

/// A line that runs. Dropped without an answer, it counts for nothing but the time that it took.
#[derive(Debug)]
pub(super) struct Running {
    meter: Meter,
    batch_id: String,
    model: String,
}

impl Meter {
    pub(super) fn begin(&self, batch_id: &str, model: &str) -> Running {
        self.begin_at(batch_id, model, Instant::now())
    }

    /// The rate of a batch over the last minute; `None` if it has not run in this process.
    pub(super) fn batch(&self, batch_id: &str) -> Option<BatchRate> {
        self.batch_at(batch_id, Instant::now())
    }

    /// `None` until a line of the model has been answered.
    pub(super) fn model(&self, model: &str) -> Option<ModelRate> {
        self.model_at(model, Instant::now())
    }

    /// Lines and tokens of the last minute's rate.
    #[cfg(test)]
    pub(super) fn counted(&self, batch_id: &str) -> (u64, u64) {
        let state = self.state();
        let buckets = state.batches[batch_id].buckets.iter();
        buckets.fold((0, 0), |(lines, tokens), bucket| (lines + bucket.lines, tokens + bucket.tokens))
    }

    pub(super) fn forget_batch(&self, batch_id: &str) {
        self.state().batches.remove(batch_id);
    }

    fn begin_at(&self, batch_id: &str, model: &str, now: Instant) -> Running {
        let mut state = self.state();
        match state.batches.get_mut(batch_id) {
            Some(recent) => model.clone_into(&mut recent.model),
            None => {
                let recent = Recent { since: now, model: model.to_owned(), buckets: VecDeque::new() };
                state.batches.insert(batch_id.to_owned(), recent);
            }
        }
        let work = state.models.entry(model.to_owned()).or_default();
        work.in_flight += 1;
        work.busy_since.get_or_insert(now);
        Running { meter: self.clone(), batch_id: batch_id.to_owned(), model: model.to_owned() }
    }

    fn batch_at(&self, batch_id: &str, now: Instant) -> Option<BatchRate> {
        let state = self.state();
        let recent = state.batches.get(batch_id)?;
        let age = now.saturating_duration_since(recent.since);
        let seconds = age.clamp(MEASURED_MIN, WINDOW).as_secs_f64();
        let counted = recent.buckets.iter().filter(|bucket| now.saturating_duration_since(bucket.begun) < WINDOW);
        let (lines, tokens) = counted.fold((0, 0), |(lines, tokens), b| (lines + b.lines, tokens + b.tokens));
        let (lines, tokens) = (lines as f64 / seconds, tokens as f64 / seconds);
        Some(BatchRate { model: recent.model.clone(), tokens_per_second: tokens, lines_per_second: lines })
    }

    fn model_at(&self, model: &str, now: Instant) -> Option<ModelRate> {
        let state = self.state();
        let work = state.models.get(model).filter(|work| work.lines > 0.0)?;
        let busy = work.busy + work.busy_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        Some(ModelRate {
            tokens_per_second: work.tokens / busy.max(MEASURED_MIN).as_secs_f64(),
            output_tokens_per_line: work.output_tokens / work.lines,
        })
    }

    fn answered_at(&self, batch_id: &str, model: &str, tokens: Tokens, now: Instant) {
        let mut state = self.state();
        let all = tokens.input + tokens.output;
        if let Some(recent) = state.batches.get_mut(batch_id) {
            while recent.buckets.front().is_some_and(|first| now.saturating_duration_since(first.begun) >= WINDOW) {
                recent.buckets.pop_front();
            }
            match recent.buckets.back_mut().filter(|last| now.saturating_duration_since(last.begun) < BUCKET) {
                Some(last) => (last.lines, last.tokens) = (last.lines + 1, last.tokens + all),
                None => recent.buckets.push_back(Bucket { begun: now, lines: 1, tokens: all }),
            }
        }
        if let Some(work) = state.models.get_mut(model) {
            work.lines += 1.0;
            work.tokens += all as f64;
            work.output_tokens += tokens.output as f64;
        }
    }

    fn ended_at(&self, model: &str, now: Instant) {
        let mut state = self.state();
        let Some(work) = state.models.get_mut(model) else { return };
        work.in_flight = work.in_flight.saturating_sub(1);
        let Some(since) = work.busy_since else { return };
        work.busy += now.saturating_duration_since(since);
        work.busy_since = (work.in_flight > 0).then_some(now);
        if work.busy > MEMORY {
            work.busy /= 2;
            for total in [&mut work.lines, &mut work.tokens, &mut work.output_tokens] {
                *total /= 2.0;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Counts that a panic has left behind are still counts.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    pub(super) fn answered(&self, tokens: Tokens) {
        self.meter.answered_at(&self.batch_id, &self.model, tokens, Instant::now());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.meter.ended_at(&self.model, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENS: Tokens = Tokens { input: 30, cached: 10, output: 20, reasoning: 0 };

    #[test]
    fn a_batchs_rate_is_that_of_the_last_minute() {
        let (meter, start) = (Meter::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(meter.batch("b"), None);
        let _running = meter.begin_at("b", "m", start);
        for second in 0..10 {
            meter.answered_at("b", "m", TOKENS, at(second));
        }
        let rate = |now| meter.batch_at("b", now).unwrap();
        assert_eq!((rate(at(10)).tokens_per_second, rate(at(10)).lines_per_second), (50.0, 1.0));
        // An hour of quiet later, a single line in a minute.
        meter.answered_at("b", "m", TOKENS, at(3600));
        assert_eq!(rate(at(3601)).lines_per_second, 1.0 / 60.0);
        assert_eq!(rate(at(3700)).lines_per_second, 0.0);
        assert!(meter.state().batches["b"].buckets.len() < 61);
        meter.forget_batch("b");
        assert_eq!(meter.batch("b"), None);
    }

    #[test]
    fn a_models_rate_is_that_of_its_work_and_not_of_its_rest() {
        let (meter, start) = (Meter::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(meter.model("m"), None);
        // Two lines beside each other for ten seconds, an hour of rest, then one for ten.
        for (begun, lines) in [(0, 2), (3600, 1)] {
            let running: Vec<_> = (0..lines).map(|_| meter.begin_at("b", "m", at(begun))).collect();
            for line in running {
                meter.answered_at("b", "m", TOKENS, at(begun + 10));
                meter.ended_at("m", at(begun + 10));
                std::mem::forget(line);
            }
        }
        let rate = meter.model_at("m", at(9999)).unwrap();
        assert_eq!((rate.tokens_per_second, rate.output_tokens_per_line), (7.5, 20.0));
    }
}
