use super::sample::Sample;
use crate::models::Work;

/// What a GPU does at most, as it was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GpuRates {
    /// Of a copy, read and written.
    pub bytes_per_s: f64,
    /// Of a product of BF16.
    pub flop_per_s: f64,
}

impl GpuRates {
    /// Reads `TB/s,TFLOP/s`, as in `4.3,790`.
    ///
    /// # Errors
    /// When it is not of that form; with the reason.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || "has to be TB/s of a copy and TFLOP/s of a product, as in 4.3,790".to_owned();
        let (copy, product) = text.split_once(',').ok_or_else(wrong)?;
        let rate = |text: &str| {
            let rate = text.parse::<f64>().ok().filter(|rate| rate.is_finite() && *rate > 0.0).ok_or_else(wrong)?;
            Ok::<_, String>(rate * 1e12)
        };
        Ok(Self { bytes_per_s: rate(copy)?, flop_per_s: rate(product)? })
    }

    /// The time that these answers take at least: prompts compute, and every token after them reads the K and V before it, beside `weights`
    /// bytes in each of so many steps.
    pub(super) fn least_seconds(self, work: &Work, weights: u64, steps: f64, samples: &[&Sample]) -> f64 {
        let (mut pairs, mut read, mut tokens) = (0.0, 0.0, 0.0);
        for sample in samples {
            let (input, output) = (sample.input_tokens, sample.output_tokens);
            tokens += input as f64;
            for window in &work.windows {
                let window = window.map_or(u64::MAX, |window| window as u64);
                pairs += attended(input, window);
                read += attended(input + output, window) - attended(input, window);
            }
        }
        let flop = work.layers_flop as f64 * tokens
            + work.head_flop as f64 * samples.len() as f64
            + work.pair_flop as f64 * pairs;
        let bytes = steps * weights as f64 + read * work.kv_layer as f64;
        flop / self.flop_per_s + bytes / self.bytes_per_s
    }
}

/// To how many tokens the first so many of a sequence attend in all.
fn attended(tokens: u64, window: u64) -> f64 {
    let (tokens, window) = (tokens as f64, tokens.min(window) as f64);
    window * (window + 1.0) / 2.0 + (tokens - window) * window
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::answer::Verdict;

    #[test]
    fn rates_are_two_numbers() {
        let rates = GpuRates::parse("4.3,790").unwrap();
        assert_eq!(rates, GpuRates { bytes_per_s: 4.3e12, flop_per_s: 7.9e14 });
        for text in ["", "4.3", "4.3,", "0,790", "4.3,-1", "a,b", "4.3,790,1"] {
            assert!(GpuRates::parse(text).is_err(), "{text}");
        }
    }

    /// 256 requests of 100 to 1,024 tokens in and out on Qwen3 0.6B, on a GPU of 4.3 TB/s: 3.6 s, of which reading K and V takes most.
    #[test]
    fn a_job_is_bound_by_what_it_reads_and_what_its_prompts_compute() {
        let layer = 1024 * (2048 + 2 * 1024) + 2048 * 1024 + 3 * 1024 * 3072;
        let work = Work {
            kv_layer: 2 * 8 * 128 * 2,
            layers_flop: 2 * 28 * layer,
            head_flop: 2 * 151_936 * 1024,
            pair_flop: 4 * 16 * 128,
            windows: vec![None; 28],
        };
        let sample = |at: u64| Sample {
            e2e_ms: 0.0,
            ttft_ms: None,
            gaps_ms: Vec::new(),
            input_tokens: 100 + at * 924 / 255,
            // All pairs of lengths are about as many.
            output_tokens: 100 + (at * 97 % 256) * 924 / 255,
            cached_tokens: 0,
            verdict: Verdict::Ok,
            refused: false,
        };
        let samples: Vec<Sample> = (0..256).map(sample).collect();
        let samples: Vec<&Sample> = samples.iter().collect();
        let rates = GpuRates { bytes_per_s: 4.3e12, flop_per_s: 7.9e14 };
        let seconds = rates.least_seconds(&work, 1_192_099_840, 1024.0, &samples);
        assert!((3.4..4.0).contains(&seconds), "{seconds}");
        let without_weights = rates.least_seconds(&work, 0, 1024.0, &samples);
        assert!(without_weights > 0.85 * seconds, "{without_weights} of {seconds}");
        let near = Work { windows: vec![Some(64); 28], ..work };
        assert!(rates.least_seconds(&near, 0, 1024.0, &samples) < 0.2 * without_weights);
    }
}
