use std::{hint::black_box, sync::Barrier, thread, time::Instant};

use super::{figures::rounded, gpu_roofline::GpuRates, sample::Sample};
use crate::{
    models::{self, Place, Plan, Room, Work},
    settings::{BackendSettings, Settings},
};

/// What a step has to read from memory, as far as it is known.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Reads {
    /// But for what a step only looks up in.
    pub(super) weights: u64,
    pub(super) kv_per_token: u64,
    /// Sequences of one step.
    pub(super) parallel: u32,
    /// What it computes, where a GPU of these rates does.
    pub(super) gpu: Option<(Work, GpuRates)>,
}

/// What all cores together read at a time, at least: far beyond usual caches.
const READ_BYTES_MIN: u64 = 512 << 20;
const PASSES: usize = 3;

impl Reads {
    /// Of the only model of these settings.
    ///
    /// # Errors
    /// When it cannot be told, with the reason.
    pub(super) fn of(settings: &Settings, plan: Option<&Plan>, rates: Option<GpuRates>) -> Result<Self, String> {
        if matches!(settings.backend, BackendSettings::Sim { .. }) {
            return Err("the simulated model reads no weights".to_owned());
        }
        let plan = plan.ok_or("the size of the weights is not known")?;
        if plan.shares.iter().any(|share| matches!(share.place, Place::Gpu(_) | Place::AbsentGpu)) {
            let rates = rates.ok_or("what a GPU reads in a second is not measured here (--gpu-rates)")?;
            let work = plan.work.clone().ok_or("what the backend computes is not known")?;
            let weights = plan.weights.saturating_sub(plan.looked_up);
            let kv_per_token = work.kv_layer * work.windows.len() as u64;
            return Ok(Self { weights, kv_per_token, parallel: plan.parallel, gpu: Some((work, rates)) });
        }
        let (weights, cache) = (plan.weights.saturating_sub(plan.looked_up), last_level_cache());
        if weights <= cache {
            let size = |bytes: u64| format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20));
            let (weights, cache) = (size(weights), size(cache));
            return Err(format!("weights of {weights} fit the caches of {cache}, so that memory is no bound"));
        }
        let tokens = u64::from(plan.parallel) * u64::from(plan.context);
        Ok(Self { weights, kv_per_token: plan.kv / tokens.max(1), parallel: plan.parallel, gpu: None })
    }

    /// The least time that reading takes for these answers with so many at once, over the time that was taken.
    ///
    /// A step reads all weights once and brings one token for each sequence, and a token reads what K and V its sequence has. Prompts are
    /// left out on a processor, whose speed of computing is not measured. The fewest steps are assumed that could bring so many tokens, and
    /// the longest answer.
    pub(super) fn fraction(&self, samples: &[Sample], concurrency: u32, wall_s: f64, bytes_per_s: f64) -> Option<f64> {
        let good: Vec<&Sample> = samples.iter().filter(|sample| sample.is_ok()).collect();
        let (mut tokens, mut kv, mut longest) = (0.0, 0.0, 0.0_f64);
        for sample in &good {
            let (input, output) = (sample.input_tokens as f64, sample.output_tokens as f64);
            tokens += output;
            kv += input * output + output * output / 2.0;
            longest = longest.max(output);
        }
        let steps = (tokens / f64::from(concurrency.min(self.parallel).max(1))).max(longest);
        let least = match &self.gpu {
            Some((work, rates)) => rates.least_seconds(work, self.weights, steps, &good),
            None => (steps * self.weights as f64 + kv * self.kv_per_token as f64) / bytes_per_s,
        };
        (wall_s > 0.0 && least.is_finite() && tokens > 0.0).then(|| rounded(least / wall_s))
    }
}

/// How much memory a model takes, where its backend knows.
pub(super) fn plan(settings: &Settings) -> Option<Plan> {
    models::plan(&settings.backend, settings.models.first()?, Room::Free).ok()
}

/// Bytes that all cores together read from memory in a second: the best of a few passes over what fits no cache.
pub(super) fn bytes_per_s() -> f64 {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let bytes = READ_BYTES_MIN.max(4 * last_level_cache());
    let words = usize::try_from(bytes).unwrap_or(usize::MAX) / cores / size_of::<u64>();
    let start = Barrier::new(cores);
    let read = |core: usize| {
        // Written by the core that reads it, so that it lies in that core's memory.
        let block = vec![core as u64 + 1; words];
        let pass = |_| {
            start.wait();
            let started = Instant::now();
            black_box(sum(black_box(&block)));
            started.elapsed().as_secs_f64()
        };
        (0..PASSES).map(pass).collect::<Vec<_>>()
    };
    let times: Vec<Vec<f64>> = thread::scope(|scope| {
        let readers: Vec<_> = (0..cores)
            .map(|core| {
                scope.spawn({
                    let read = &read;
                    move || read(core)
                })
            })
            .collect();
        readers.into_iter().filter_map(|reader| reader.join().ok()).collect()
    });
    let slowest = |pass: usize| times.iter().filter_map(|times| times.get(pass)).copied().fold(0.0, f64::max);
    let rate = |pass| (cores * words * size_of::<u64>()) as f64 / slowest(pass);
    (0..PASSES).map(rate).filter(|rate| rate.is_finite()).fold(0.0, f64::max)
}

/// Several sums side by side, so that adding is never what is waited for.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0_u64; 16];
    for chunk in words.chunks_exact(sums.len()) {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.into_iter().fold(0, u64::wrapping_add)
}

/// Bytes of the largest cache of the first core; 0 where the system does not tell.
fn last_level_cache() -> u64 {
    let sizes = (0..8).filter_map(|index| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        let text = fs_err::read_to_string(path).ok()?;
        let text = text.trim();
        let (number, unit) = text.split_at(text.len().checked_sub(1)?);
        let shift = match unit {
            "K" => 10,
            "M" => 20,
            _ => return None,
        };
        number.parse::<u64>().ok().map(|number| number << shift)
    });
    sizes.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{bench::answer::Verdict, settings::Overrides};

    #[test]
    fn eight_at_once_share_the_reading_of_weights() {
        let sample = Sample {
            e2e_ms: 1.0,
            ttft_ms: None,
            gaps_ms: Vec::new(),
            input_tokens: 100,
            output_tokens: 10,
            cached_tokens: 0,
            verdict: Verdict::Ok,
            refused: false,
        };
        let reads = Reads { weights: 1_000_000, kv_per_token: 10, parallel: 8, gpu: None };
        let samples = vec![sample; 16];
        // 160 tokens in 20 steps, and K and V of 16 times 1,050 tokens.
        let bytes = 20.0 * 1e6 + 16.0 * 1050.0 * 10.0;
        let fraction = reads.fraction(&samples, 32, 1.0, 1e8).unwrap();
        assert!((fraction - bytes / 1e8).abs() < 1e-3, "{fraction}");
        assert!(reads.fraction(&samples, 1, 1.0, 1e8).unwrap() > 7.0 * fraction);
        assert_eq!(reads.fraction(&[], 1, 1.0, 1e8), None);
    }

    fn settings(backend: &str, model: Option<&Path>) -> Settings {
        let overrides = Overrides {
            profile: Some("demo".to_owned()),
            backend: Some(backend.to_owned()),
            model: model.map(|path| path.display().to_string()),
            ..Overrides::default()
        };
        Settings::load(&overrides).unwrap()
    }

    #[test]
    fn a_step_reads_weights_but_not_what_it_looks_up_in() {
        const GIB: u64 = 1 << 30;
        let plan = Plan {
            weights: 5 * GIB,
            looked_up: GIB,
            formats: Vec::new(),
            kv: 800,
            compute: 0,
            shares: Vec::new(),
            gpu_layers: None,
            parallel: 8,
            context: 10,
            trained: 10,
            longest_context: None,
            most_sequences: None,
            work: None,
        };
        let settings = settings("llama-cpp", None);
        let expected = Reads { weights: 4 * GIB, kv_per_token: 10, parallel: 8, gpu: None };
        assert_eq!(Reads::of(&settings, Some(&plan), None), Ok(expected));
        let share = models::Share { place: Place::AbsentGpu, weights: 0, kv: 0, compute: 0, room: 0, margin: 0 };
        let on_gpu = Plan { shares: vec![share], ..plan };
        let rates = GpuRates { bytes_per_s: 1e12, flop_per_s: 1e14 };
        assert!(Reads::of(&settings, Some(&on_gpu), None).unwrap_err().contains("--gpu-rates"));
        assert!(Reads::of(&settings, Some(&on_gpu), Some(rates)).unwrap_err().contains("is not known"));
        let work = Work { kv_layer: 5, layers_flop: 1, head_flop: 1, pair_flop: 1, windows: vec![None; 2] };
        let on_gpu = Plan { work: Some(work.clone()), ..on_gpu };
        let expected = Reads { weights: 4 * GIB, kv_per_token: 10, parallel: 8, gpu: Some((work, rates)) };
        assert_eq!(Reads::of(&settings, Some(&on_gpu), Some(rates)), Ok(expected));
    }

    /// Where the head has weights of its own, the table of embeddings gives a step the rows of its tokens; where it shares them, it is read.
    #[test]
    fn a_table_is_looked_up_in_where_no_head_shares_it() {
        // A program without one of the backends has nothing to compare.
        if models::backend_versions().len() < 3 {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let order = models::SynthOrder {
            arch: "llama".to_owned(),
            size: "tiny".to_owned(),
            seed: 1,
            directory: directory.path().to_owned(),
            gguf: vec!["F16".to_owned()],
            force: true,
        };
        let files = models::synthesize(order, &mut |_, _| ()).unwrap();
        let config = fs_err::read(directory.path().join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["tie_word_embeddings"], false);
        let size = |field: &str| config[field].as_u64().unwrap();
        let table = 2 * size("vocab_size") * size("hidden_size");
        let gguf = files.iter().find(|path| path.extension().is_some_and(|end| end == "gguf")).unwrap();
        for (backend, model) in [("llama-cpp", gguf.as_path()), ("candle", gguf), ("candle", directory.path())] {
            let plan = plan(&settings(backend, Some(model))).unwrap();
            // Rows may be filled up.
            assert!((table..table * 11 / 10).contains(&plan.looked_up), "{backend}: {plan:?}, {table}");
            assert!(plan.weights > 2 * plan.looked_up, "{backend}: {plan:?}");
        }
        for backend in ["llama-cpp", "candle"] {
            assert_eq!(plan(&settings(backend, None)).unwrap().looked_up, 0, "{backend}: tied");
        }
    }
}
