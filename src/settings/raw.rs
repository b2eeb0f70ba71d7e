use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;

/// The settings as they are written. Every key that exists is named here; any other is refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSettings {
    pub(super) server: RawServer,
    pub(super) storage: RawStorage,
    pub(super) backend: RawBackend,
    pub(super) engine: RawEngine,
    #[serde(default)]
    pub(super) models: BTreeMap<String, RawModel>,
    pub(super) limits: RawLimits,
    pub(super) batch: RawBatch,
    #[serde(default)]
    pub(super) webhooks: RawWebhooks,
    pub(super) log: RawLog,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawServer {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) insecure_no_auth: bool,
    #[serde(default)]
    pub(super) allowed_hosts: RawList,
    #[serde(default)]
    pub(super) cors_origins: RawList,
    pub(super) max_connections: usize,
    pub(super) header_timeout_ms: u64,
    pub(super) body_timeout_ms: u64,
    pub(super) tls: Option<RawTls>,
    pub(super) debug: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTls {
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

/// Words; the environment has them in one text, with commas between.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum RawList {
    Words(Vec<String>),
    Text(String),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStorage {
    pub(super) path: PathBuf,
    pub(super) max_tenant_bytes: Option<u64>,
    pub(super) min_free_bytes: u64,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    LlamaCpp,
    Candle,
    Sim,
}

/// The keys of all backends side by side, so that `TANDEM__BACKEND__DTYPE=f32` works; which ones a backend knows is in
/// [`Kind::knows`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBackend {
    pub(super) kind: Kind,
    pub(super) parallel: u32,
    pub(super) context: u32,
    pub(super) prefix_cache: bool,
    pub(super) max_step_tokens: u32,
    pub(super) threads: Option<u32>,
    pub(super) threads_batch: Option<u32>,
    pub(super) micro_batch_tokens: Option<u32>,
    pub(super) flash_attention: Option<String>,
    pub(super) kv_type: Option<String>,
    pub(super) kv_unified: Option<bool>,
    pub(super) swa_full: Option<bool>,
    pub(super) gpu_layers: Option<RawGpuLayers>,
    pub(super) gpu_split: Option<String>,
    pub(super) main_gpu: Option<u32>,
    pub(super) gpus: Option<Vec<u32>>,
    pub(super) gpu_memory_gib: Option<f64>,
    pub(super) fit_context: Option<bool>,
    pub(super) mmap: Option<bool>,
    pub(super) mlock: Option<bool>,
    pub(super) numa: Option<String>,
    pub(super) device: Option<String>,
    pub(super) dtype: Option<String>,
    pub(super) quantization: Option<String>,
    pub(super) block_size: Option<u32>,
    pub(super) kv_tokens: Option<u32>,
    pub(super) gpu_memory_fraction: Option<f64>,
    pub(super) tensor_parallel_size: Option<u32>,
    pub(super) step_delay_ms: Option<u64>,
    pub(super) faults: Option<RawFaults>,
}

/// What goes wrong in the simulated backend; 0 for never.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawFaults {
    pub(super) hangs_at: u64,
    pub(super) panics_at: u64,
    pub(super) device_fails_at: u64,
    pub(super) device_lost_at: u64,
    pub(super) kv_full_every: u64,
    pub(super) nan_every: u64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEngine {
    pub(super) step_timeout_ms: u64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum RawGpuLayers {
    Count(u32),
    Word(String),
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawModel {
    pub(super) source: Option<String>,
    pub(super) gguf: Option<String>,
    pub(super) sha256: Option<String>,
    pub(super) task: Option<String>,
    pub(super) generation_config: Option<String>,
    pub(super) matryoshka: Option<RawMatryoshka>,
    #[serde(default)]
    pub(super) adapters: BTreeMap<String, RawAdapter>,
}

/// Whether vectors may be cut, or to which lengths.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum RawMatryoshka {
    Whether(bool),
    Sizes(Vec<u32>),
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAdapter {
    pub(super) path: Option<String>,
    pub(super) scale: Option<f64>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLimits {
    pub(super) queue: usize,
    pub(super) max_n: u32,
    pub(super) max_output_tokens: Option<u32>,
    pub(super) request_timeout_ms: u64,
    pub(super) strict_params: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBatch {
    pub(super) max_file_bytes: u64,
    pub(super) max_lines: u64,
    pub(super) max_concurrent: u32,
    pub(super) max_active: u64,
    pub(super) window: Option<u32>,
    pub(super) order: String,
    pub(super) single_model: bool,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawWebhooks {
    pub(super) url: Option<String>,
    pub(super) secret: Option<String>,
}

impl std::fmt::Debug for RawWebhooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawWebhooks").field("url", &self.url).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLog {
    pub(super) filter: String,
    pub(super) format: String,
}

impl Default for RawList {
    fn default() -> Self {
        Self::Words(Vec::new())
    }
}

impl RawList {
    pub(super) fn words(self) -> Vec<String> {
        match self {
            Self::Words(words) => words,
            Self::Text(text) => {
                text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
            }
        }
    }
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::LlamaCpp, Self::Candle, Self::Sim];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::LlamaCpp => "llama-cpp",
            Self::Candle => "candle",
            Self::Sim => "sim",
        }
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether a key of `[backend]` means anything to this backend.
    pub(super) fn knows(self, key: &str) -> bool {
        match key {
            "threads" => self != Self::Sim,
            "threads_batch" | "micro_batch_tokens" | "flash_attention" | "kv_unified" | "swa_full" | "gpu_layers"
            | "gpu_split" | "main_gpu" | "gpus" | "gpu_memory_gib" | "fit_context" | "mmap" | "mlock" | "numa" => {
                self == Self::LlamaCpp
            }
            "device" | "dtype" | "quantization" | "gpu_memory_fraction" | "tensor_parallel_size" => {
                self == Self::Candle
            }
            "kv_type" => self != Self::Sim,
            "block_size" | "kv_tokens" => self != Self::LlamaCpp,
            "step_delay_ms" | "faults" => self == Self::Sim,
            _ => true,
        }
    }
}
