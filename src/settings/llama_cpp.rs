use super::{
    SettingsError,
    checked::{in_range, one_of},
    raw::{RawBackend, RawGpuLayers},
};

/// What the backend llama-cpp honours.
#[derive(Clone, Debug)]
pub struct LlamaCppSettings {
    pub parallel: u32,
    pub context: u32,
    pub max_step_tokens: u32,
    pub micro_batch_tokens: Option<u32>,
    pub threads: Option<u32>,
    pub threads_batch: Option<u32>,
    pub flash_attention: FlashAttention,
    pub kv_type: KvType,
    pub kv_unified: bool,
    pub swa_full: bool,
    pub gpu_layers: GpuLayers,
    pub gpu_split: GpuSplit,
    pub main_gpu: u32,
    /// All of them when empty.
    pub gpus: Vec<u32>,
    /// Bytes of the GPU that the settings are made for, to plan with where there is none.
    pub gpu_memory: Option<u64>,
    /// Whether a context that does not fit is shortened.
    pub fit_context: bool,
    pub mmap: bool,
    pub mlock: bool,
    pub numa: Numa,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuLayers {
    All,
    Auto,
    Count(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuSplit {
    None,
    Layer,
    Row,
    Tensor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlashAttention {
    Auto,
    On,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    F16,
    Q8_0,
    Q4_0,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numa {
    Off,
    Distribute,
    Isolate,
    Numactl,
}

/// `raw` without what all backends have, which was checked before.
pub(super) fn check(raw: RawBackend) -> Result<LlamaCppSettings, SettingsError> {
    let RawBackend { parallel, context, max_step_tokens, micro_batch_tokens, threads, threads_batch, .. } = raw;
    if let Some(tokens) = micro_batch_tokens {
        in_range("backend.micro_batch_tokens", tokens.into(), 1, max_step_tokens.into())?;
    }
    if let Some(threads) = threads_batch {
        in_range("backend.threads_batch", threads.into(), 1, 512)?;
    }
    let kv_type = choice(
        "kv_type",
        raw.kv_type.as_deref(),
        "f16",
        &[("f16", KvType::F16), ("q8_0", KvType::Q8_0), ("q4_0", KvType::Q4_0)],
    )?;
    let flash_attention = choice(
        "flash_attention",
        raw.flash_attention.as_deref(),
        "auto",
        &[("auto", FlashAttention::Auto), ("on", FlashAttention::On), ("off", FlashAttention::Off)],
    )?;
    if kv_type != KvType::F16 && flash_attention == FlashAttention::Off {
        return Err(SettingsError::new("backend.kv_type", "quantized KV needs flash attention, which is off"));
    }
    let gpu_split = choice(
        "gpu_split",
        raw.gpu_split.as_deref(),
        "layer",
        &[("none", GpuSplit::None), ("layer", GpuSplit::Layer), ("row", GpuSplit::Row), ("tensor", GpuSplit::Tensor)],
    )?;
    if gpu_split == GpuSplit::Tensor && flash_attention == FlashAttention::Off {
        return Err(SettingsError::new("backend.gpu_split", "a split by tensors needs flash attention, which is off"));
    }
    let gpu_layers = check_gpu_layers(raw.gpu_layers)?;
    let fit_context = raw.fit_context.unwrap_or(false);
    if fit_context && gpu_layers == GpuLayers::Auto {
        let reason = "has no meaning with backend.gpu_layers = \"auto\": the layers give way to the context then";
        return Err(SettingsError::new("backend.fit_context", reason));
    }
    let numa = choice(
        "numa",
        raw.numa.as_deref(),
        "off",
        &[("off", Numa::Off), ("distribute", Numa::Distribute), ("isolate", Numa::Isolate), ("numactl", Numa::Numactl)],
    )?;
    Ok(LlamaCppSettings {
        parallel,
        context,
        max_step_tokens,
        micro_batch_tokens,
        threads,
        threads_batch,
        flash_attention,
        kv_type,
        kv_unified: raw.kv_unified.unwrap_or(false),
        swa_full: raw.swa_full.unwrap_or(true),
        gpu_layers,
        gpu_split,
        main_gpu: raw.main_gpu.unwrap_or(0),
        gpus: check_gpus(raw.gpus.unwrap_or_default())?,
        gpu_memory: raw.gpu_memory_gib.map(check_gpu_memory).transpose()?,
        fit_context,
        mmap: raw.mmap.unwrap_or(true),
        mlock: raw.mlock.unwrap_or(false),
        numa,
    })
}

fn check_gpu_layers(raw: Option<RawGpuLayers>) -> Result<GpuLayers, SettingsError> {
    match raw {
        None => Ok(GpuLayers::Count(0)),
        Some(RawGpuLayers::Count(count)) => Ok(GpuLayers::Count(count)),
        Some(RawGpuLayers::Word(word)) => {
            one_of("backend.gpu_layers", &word, &[("all", GpuLayers::All), ("auto", GpuLayers::Auto)])
        }
    }
}

fn check_gpus(gpus: Vec<u32>) -> Result<Vec<u32>, SettingsError> {
    let twice = gpus.iter().enumerate().find(|(at, gpu)| gpus[..*at].contains(gpu));
    match twice {
        Some((_, gpu)) => Err(SettingsError::new("backend.gpus", format!("names GPU {gpu} twice"))),
        None => Ok(gpus),
    }
}

fn check_gpu_memory(gibibytes: f64) -> Result<u64, SettingsError> {
    if !(gibibytes > 0.0 && gibibytes <= 4096.0) {
        return Err(SettingsError::new("backend.gpu_memory_gib", format!("{gibibytes} is not between 0 and 4096")));
    }
    Ok((gibibytes * f64::from(1 << 30)) as u64)
}

fn choice<T: Copy>(key: &str, word: Option<&str>, default: &str, choices: &[(&str, T)]) -> Result<T, SettingsError> {
    one_of(&format!("backend.{key}"), word.unwrap_or(default), choices)
}
