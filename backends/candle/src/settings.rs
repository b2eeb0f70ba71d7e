use std::path::PathBuf;

use tandem_core::LoadError;
use tandem_kernels::{KvFormat, PANEL};

use crate::weights::Kept;

/// What to load and within which limits.
#[derive(Clone, Debug, PartialEq)]
pub struct CandleSettings {
    /// A Hugging Face model directory (`config.json`, `tokenizer.json` and safetensors files) or a GGUF file.
    pub model: PathBuf,
    /// The SHA-256 hash that the model's one file, a GGUF, must have; any will do when there is none.
    pub sha256: Option<[u8; 32]>,
    /// Tokens of one sequence, at most; `None` is as many as the model was made for.
    pub context: Option<u32>,
    /// Sequences that run at the same time.
    pub parallel: u32,
    /// What weights that are not quantised, and K and V, are kept in.
    pub dtype: Dtype,
    /// What weights are quantised to on their way into memory.
    pub quantization: Quantization,
    /// Tokens in one page of the KV cache: a multiple of 16.
    pub block_size: u32,
    /// Tokens in one step over all sequences.
    pub max_step_tokens: u32,
    /// Tokens that the KV cache holds over all sequences, rounded up to whole pages; `None` is `parallel` full contexts.
    pub kv_tokens: Option<u32>,
    /// What K and V are kept in.
    pub kv_type: KvType,
    /// What computes.
    pub device: ComputeDevice,
    /// Threads that compute. `None` is one per physical core, less one for the server when there are more than two: of two cores the
    /// server needs too little to be given half of the machine.
    pub threads: Option<usize>,
}

/// What K and V are kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// As `dtype` says; on a card what weights are in, or BF16 where they are quantised.
    #[default]
    Auto,
    /// Eight bits (E4M3), half of what is read and kept otherwise; on cards only.
    Fp8,
}

/// What a model is computed on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum ComputeDevice {
    #[default]
    Cpu,
    /// NVIDIA cards.
    Cuda {
        /// The number of the first, in the order of `CUDA_VISIBLE_DEVICES`.
        ordinal: usize,
        /// How many the model is divided among, each following the other.
        ranks: usize,
        /// How much of the memory of each may be used, with what others use already: more than 0 and not more than 1. What weights and work space leave of
        /// it is KV cache, unless `kv_tokens` says how much.
        memory_fraction: f64,
    },
}

/// What numbers that are not quantised are kept in. Computed is in F32, but for products on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dtype {
    /// Weights as their file has them, K and V in F16.
    #[default]
    Auto,
    F32,
    Bf16,
    F16,
}

/// What weights are quantised to when they are loaded, unless their file has them quantised already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quantization {
    #[default]
    None,
    Q4_0,
    Q4K,
    Q5K,
    Q6K,
    Q8_0,
}

impl CandleSettings {
    /// Refuses what no model could be loaded with.
    pub(crate) fn check(&self) -> Result<(), LoadError> {
        let Self {
            model: _,
            sha256: _,
            context,
            parallel,
            dtype: _,
            quantization: _,
            block_size,
            max_step_tokens,
            kv_tokens,
            kv_type,
            device,
            threads,
        } = self;
        if let ComputeDevice::Cuda { ranks: 0, .. } = device {
            return Err(LoadError::Unsupported("ranks must be at least 1".to_owned()));
        }
        if let ComputeDevice::Cuda { memory_fraction, .. } = device
            && !(*memory_fraction > 0.0 && *memory_fraction <= 1.0)
        {
            return Err(LoadError::Unsupported(format!("memory_fraction {memory_fraction} is not between 0 and 1")));
        }
        if (*kv_type, device) == (KvType::Fp8, &ComputeDevice::Cpu) {
            return Err(LoadError::Unsupported("K and V of eight bits (fp8) are for GPUs".to_owned()));
        }
        let zero = [
            ("context", *context == Some(0)),
            ("parallel", *parallel == 0),
            ("block_size", *block_size == 0),
            ("max_step_tokens", *max_step_tokens == 0),
            ("kv_tokens", *kv_tokens == Some(0)),
            ("threads", *threads == Some(0)),
        ];
        if !block_size.is_multiple_of(PANEL as u32) {
            let reason = format!("block_size {block_size} is no multiple of {PANEL}");
            return Err(LoadError::Unsupported(reason));
        }
        match zero.iter().find(|(_, is_zero)| *is_zero) {
            Some((name, _)) => Err(LoadError::Unsupported(format!("{name} must be at least 1"))),
            None => Ok(()),
        }
    }

    /// How weights are kept.
    pub(crate) fn kept(&self) -> Kept {
        Kept { dtype: self.dtype, quantization: self.quantization }
    }

    /// How K and V are kept.
    pub(crate) fn kv_format(&self) -> KvFormat {
        match self.dtype {
            Dtype::F32 => KvFormat::F32,
            Dtype::Bf16 => KvFormat::Bf16,
            Dtype::Auto | Dtype::F16 => KvFormat::F16,
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
