use super::{
    LlamaCppSettings, SettingsError,
    checked::{in_range, one_of},
    llama_cpp,
    raw::{Kind, RawBackend, RawFaults},
};

/// One struct for each backend, with what it honours.
#[derive(Clone, Debug)]
pub enum BackendSettings {
    LlamaCpp(LlamaCppSettings),
    Candle {
        parallel: u32,
        context: u32,
        max_step_tokens: u32,
        threads: Option<u32>,
        dtype: CandleDtype,
        quantization: CandleQuantization,
        block_size: u32,
        /// Tokens that the KV cache holds. When absent, as many as all sequences may have; on a GPU as many as there is room for.
        kv_tokens: Option<u32>,
        kv_type: CandleKvType,
        device: CandleDevice,
    },
    Sim {
        parallel: u32,
        context: u32,
        max_step_tokens: u32,
        block_size: u32,
        kv_tokens: Option<u32>,
        step_delay_ms: u64,
        faults: SimFaults,
    },
}

/// What candle keeps K and V in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CandleKvType {
    /// As `dtype` says.
    Auto,
    /// On cards only.
    Fp8,
}

/// What candle computes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CandleDevice {
    Cpu,
    /// NVIDIA cards: the number of the first among those that are visible, how many the model is divided among, and how much of the memory of
    /// each may be in use.
    Cuda {
        ordinal: u32,
        tensor_parallel_size: u32,
        memory_fraction: f64,
    },
}

/// What goes wrong in the simulated backend: at a pass counted from loading, or every so many; 0 for never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimFaults {
    pub hangs_at: u64,
    pub panics_at: u64,
    pub device_fails_at: u64,
    pub device_lost_at: u64,
    pub kv_full_every: u64,
    /// In rows of logits, not passes.
    pub nan_every: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CandleDtype {
    Auto,
    F32,
    Bf16,
    F16,
}

/// What candle quantises weights to when it loads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CandleQuantization {
    None,
    Q4_0,
    Q4K,
    Q5K,
    Q6K,
    Q8_0,
}

impl BackendSettings {
    /// The backend's name, as in the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            Self::LlamaCpp(_) => Kind::LlamaCpp.name(),
            Self::Candle { .. } => Kind::Candle.name(),
            Self::Sim { .. } => Kind::Sim.name(),
        }
    }
}

pub(super) fn check(raw: RawBackend) -> Result<BackendSettings, SettingsError> {
    let RawBackend { kind, parallel, context, prefix_cache: _, max_step_tokens, threads, .. } = raw;
    in_range("backend.parallel", parallel.into(), 1, 4096)?;
    in_range("backend.context", context.into(), 64, 16 << 20)?;
    in_range("backend.max_step_tokens", max_step_tokens.into(), 32, 1 << 20)?;
    if let Some(threads) = threads {
        in_range("backend.threads", threads.into(), 1, 1024)?;
    }
    if max_step_tokens < parallel {
        let reason =
            format!("{max_step_tokens} is less than backend.parallel ({parallel}): each sequence wants a token a step");
        return Err(SettingsError::new("backend.max_step_tokens", reason));
    }
    match kind {
        Kind::LlamaCpp => Ok(BackendSettings::LlamaCpp(llama_cpp::check(raw)?)),
        Kind::Candle => {
            let device = check_device(raw.device.as_deref(), raw.gpu_memory_fraction, raw.tensor_parallel_size)?;
            let quantization = one_of(
                "backend.quantization",
                raw.quantization.as_deref().unwrap_or("none"),
                &[
                    ("none", CandleQuantization::None),
                    ("q4_0", CandleQuantization::Q4_0),
                    ("q4k", CandleQuantization::Q4K),
                    ("q5k", CandleQuantization::Q5K),
                    ("q6k", CandleQuantization::Q6K),
                    ("q8_0", CandleQuantization::Q8_0),
                ],
            )?;
            let (block_size, kv_tokens) = check_blocks(raw.block_size, raw.kv_tokens, context)?;
            if !block_size.is_multiple_of(16) {
                let reason = format!("{block_size} is no multiple of 16, as the pages of candle have to be");
                return Err(SettingsError::new("backend.block_size", reason));
            }
            let dtype = one_of(
                "backend.dtype",
                raw.dtype.as_deref().unwrap_or("auto"),
                &[
                    ("auto", CandleDtype::Auto),
                    ("f32", CandleDtype::F32),
                    ("bf16", CandleDtype::Bf16),
                    ("f16", CandleDtype::F16),
                ],
            )?;
            let kv_type = one_of(
                "backend.kv_type",
                raw.kv_type.as_deref().unwrap_or("auto"),
                &[("auto", CandleKvType::Auto), ("fp8", CandleKvType::Fp8)],
            )?;
            if (kv_type, device) == (CandleKvType::Fp8, CandleDevice::Cpu) {
                return Err(SettingsError::new("backend.kv_type", "fp8 needs backend.device = \"cuda\""));
            }
            Ok(BackendSettings::Candle {
                parallel,
                context,
                max_step_tokens,
                threads,
                dtype,
                quantization,
                block_size,
                kv_tokens,
                kv_type,
                device,
            })
        }
        Kind::Sim => {
            let (block_size, kv_tokens) = check_blocks(raw.block_size, raw.kv_tokens, context)?;
            let step_delay_ms = raw.step_delay_ms.unwrap_or(0);
            in_range("backend.step_delay_ms", step_delay_ms, 0, 60_000)?;
            let faults = check_faults(raw.faults.unwrap_or_default());
            Ok(BackendSettings::Sim {
                parallel,
                context,
                max_step_tokens,
                block_size,
                kv_tokens,
                step_delay_ms,
                faults,
            })
        }
    }
}

/// Any number makes sense here.
fn check_faults(raw: RawFaults) -> SimFaults {
    let RawFaults { hangs_at, panics_at, device_fails_at, device_lost_at, kv_full_every, nan_every } = raw;
    SimFaults { hangs_at, panics_at, device_fails_at, device_lost_at, kv_full_every, nan_every }
}

fn check_blocks(
    block_size: Option<u32>,
    kv_tokens: Option<u32>,
    context: u32,
) -> Result<(u32, Option<u32>), SettingsError> {
    let block_size = block_size.unwrap_or(16);
    in_range("backend.block_size", block_size.into(), 1, 1024)?;
    match kv_tokens {
        Some(tokens) if tokens < context.min(4 * block_size) => {
            Err(SettingsError::new("backend.kv_tokens", format!("{tokens} tokens are too few to run one sequence")))
        }
        kv_tokens => Ok((block_size, kv_tokens)),
    }
}

/// How much of a card's memory may be in use where nothing is said, as vLLM has it.
const GPU_MEMORY_FRACTION: f64 = 0.9;

/// More than any machine has.
const MOST_GPUS: u64 = 64;

/// `cpu`, `cuda` or `cuda:1`. Whether this program can use a GPU is seen when a model is loaded.
fn check_device(
    device: Option<&str>,
    gpu_memory_fraction: Option<f64>,
    tensor_parallel_size: Option<u32>,
) -> Result<CandleDevice, SettingsError> {
    let tensor_parallel_size = tensor_parallel_size.unwrap_or(1);
    in_range("backend.tensor_parallel_size", tensor_parallel_size.into(), 1, MOST_GPUS)?;
    if let Some(fraction) = gpu_memory_fraction.filter(|fraction| !(*fraction > 0.0 && *fraction <= 1.0)) {
        return Err(SettingsError::new("backend.gpu_memory_fraction", format!("{fraction} is not between 0 and 1")));
    }
    let name = device.unwrap_or("cpu");
    let ordinal = match name {
        "cpu" if gpu_memory_fraction.is_some() => {
            let reason = "has no meaning with backend.device = \"cpu\"";
            return Err(SettingsError::new("backend.gpu_memory_fraction", reason));
        }
        "cpu" if tensor_parallel_size > 1 => {
            let reason =
                format!("{tensor_parallel_size} needs backend.device = \"cuda\": a model is divided among GPUs");
            return Err(SettingsError::new("backend.tensor_parallel_size", reason));
        }
        "cpu" => return Ok(CandleDevice::Cpu),
        "cuda" => Some(0),
        other => other.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok()),
    };
    let Some(ordinal) = ordinal else {
        let reason = format!("unknown device '{name}': one of cpu, cuda, or cuda: and the number of a card");
        return Err(SettingsError::new("backend.device", reason));
    };
    let memory_fraction = gpu_memory_fraction.unwrap_or(GPU_MEMORY_FRACTION);
    Ok(CandleDevice::Cuda { ordinal, tensor_parallel_size, memory_fraction })
}
