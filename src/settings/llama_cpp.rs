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
    pub mmap: bool,
    pub mlock: bool,
    pub numa: Numa,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuLayers {
    All,
    Count(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuSplit {
    None,
    Layer,
    Row,
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
        &[("none", GpuSplit::None), ("layer", GpuSplit::Layer), ("row", GpuSplit::Row)],
    )?;
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
        gpu_layers: check_gpu_layers(raw.gpu_layers)?,
        gpu_split,
        main_gpu: raw.main_gpu.unwrap_or(0),
        gpus: raw.gpus.unwrap_or_default(),
        mmap: raw.mmap.unwrap_or(true),
        mlock: raw.mlock.unwrap_or(false),
        numa,
    })
}

fn check_gpu_layers(raw: Option<RawGpuLayers>) -> Result<GpuLayers, SettingsError> {
    match raw {
        None => Ok(GpuLayers::Count(0)),
        Some(RawGpuLayers::Count(count)) => Ok(GpuLayers::Count(count)),
        Some(RawGpuLayers::Word(word)) => one_of("backend.gpu_layers", &word, &[("all", GpuLayers::All)]),
    }
}

fn choice<T: Copy>(key: &str, word: Option<&str>, default: &str, choices: &[(&str, T)]) -> Result<T, SettingsError> {
    one_of(&format!("backend.{key}"), word.unwrap_or(default), choices)
}
