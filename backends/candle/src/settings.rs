use std::path::PathBuf;

use tandem_core::LoadError;

/// What to load and within which limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CandleSettings {
    /// A Hugging Face model directory (`config.json`, `tokenizer.json` and safetensors files) or a GGUF file.
    pub model: PathBuf,
    /// Tokens of one sequence, at most; `None` is as many as the model was made for.
    pub context: Option<u32>,
    /// Sequences that run at the same time.
    pub parallel: u32,
    /// The type to compute in.
    pub dtype: Dtype,
    /// Tokens in one page of the KV cache.
    pub block_size: u32,
    /// Tokens in one step over all sequences.
    pub max_step_tokens: u32,
    /// Tokens that the KV cache holds over all sequences, rounded up to whole pages; `None` is `parallel` full contexts.
    pub kv_tokens: Option<u32>,
    /// Threads that compute. `None` is one per physical core, less one for the server when there are more than two: of two cores the
    /// server needs too little to be given half of the machine.
    pub threads: Option<usize>,
}

/// The type to compute in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dtype {
    /// The best one for the device: F32 on the CPU.
    #[default]
    Auto,
    F32,
    Bf16,
    F16,
}

impl CandleSettings {
    /// Refuses what no model could be loaded with.
    pub(crate) fn check(&self) -> Result<(), LoadError> {
        let Self { model: _, context, parallel, dtype, block_size, max_step_tokens, kv_tokens, threads } = self;
        match dtype {
            Dtype::Auto | Dtype::F32 => {}
            Dtype::Bf16 | Dtype::F16 => {
                let reason = format!(
                    "the candle backend computes in f32 on the CPU: dtype {dtype:?} is not possible, use auto or f32"
                );
                return Err(LoadError::Unsupported(reason));
            }
        }
        let zero = [
            ("context", *context == Some(0)),
            ("parallel", *parallel == 0),
            ("block_size", *block_size == 0),
            ("max_step_tokens", *max_step_tokens == 0),
            ("kv_tokens", *kv_tokens == Some(0)),
            ("threads", *threads == Some(0)),
        ];
        match zero.iter().find(|(_, is_zero)| *is_zero) {
            Some((name, _)) => Err(LoadError::Unsupported(format!("{name} must be at least 1"))),
            None => Ok(()),
        }
    }

    /// Threads to compute with.
    pub(crate) fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| {
            let allowed = std::thread::available_parallelism().map_or(1, usize::from);
            let cores = candle_core::utils::get_num_threads().min(allowed);
            if cores > 2 { cores - 1 } else { cores }
        })
    }
}
