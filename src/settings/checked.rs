use std::{path::PathBuf, time::Duration};

use super::{
    LlamaCppSettings, ModelSource, SettingsError, llama_cpp,
    raw::{
        Kind, RawAdapter, RawBackend, RawBatch, RawEngine, RawFaults, RawLimits, RawLog, RawMatryoshka, RawModel,
        RawServer, RawSettings, RawTls,
    },
    sha256,
    webhooks::{self, WebhookSettings},
};

/// Adapters of one model: all of them are loaded with it.
const MAX_ADAPTERS: u64 = 256;

/// Settings that were checked together: nothing downstream checks them again.
#[derive(Clone, Debug)]
pub struct Settings {
    pub profile: String,
    pub server: ServerSettings,
    /// The directory of the database and of uploaded files.
    pub storage: PathBuf,
    /// Bytes that the files of one tenant may come to; `None` is as the disk has room.
    pub max_tenant_bytes: Option<u64>,
    /// Bytes that uploads leave free on the disk.
    pub min_free_bytes: u64,
    pub backend: BackendSettings,
    pub prefix_cache: bool,
    /// A step that takes longer than this hangs; `None` lets steps take as long as they like.
    pub step_timeout: Option<Duration>,
    /// At least one.
    pub models: Vec<ModelSettings>,
    pub limits: LimitSettings,
    pub batch: BatchSettings,
    /// `None` if nobody is told of the ends of batches.
    pub webhooks: Option<WebhookSettings>,
    pub log: LogSettings,
    /// What was said and has no effect, for the log.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct ServerSettings {
    pub host: String,
    pub port: u16,
    /// Whether there is a window into the engine's state.
    pub debug: bool,
    /// Nobody needs a key, and nobody's is looked at.
    pub insecure_no_auth: bool,
    /// In lower case.
    pub allowed_hosts: Vec<String>,
    pub cors_origins: Vec<String>,
    pub max_connections: usize,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub tls: Option<TlsSettings>,
}

/// Files in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    /// The server's certificate, and behind it those that it stands on.
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl ServerSettings {
    /// Whether others than this machine can reach it.
    #[must_use]
    pub fn is_exposed(&self) -> bool {
        let ip = self.host.parse::<std::net::IpAddr>();
        self.host != "localhost" && !ip.is_ok_and(|address| address.is_loopback())
    }
}

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

/// A model under the name that requests use.
#[derive(Clone, Debug)]
pub struct ModelSettings {
    pub name: String,
    /// `None` for the simulated model.
    pub source: Option<ModelSource>,
    /// The SHA-256 hash that the source, one file, must have; any will do when there is none.
    pub sha256: Option<[u8; 32]>,
    pub task: Task,
    /// Whether requests that leave open how tokens are chosen have it chosen as the model's files say.
    pub generation_config: GenerationConfig,
    /// How an embedding model's vectors may be cut, in the place of what its files say.
    pub matryoshka: Option<Matryoshka>,
    /// What requests may have the model adapted by.
    pub adapters: Vec<AdapterSettings>,
}

/// A `LoRA` adapter under the name that requests use.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSettings {
    pub name: String,
    /// `None` for the simulated model.
    pub source: Option<ModelSource>,
    /// How strongly it is applied; finite.
    pub scale: f32,
}

/// Where defaults of sampling come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GenerationConfig {
    /// The model's files, and OpenAI's where they say nothing.
    #[default]
    Auto,
    /// OpenAI's alone.
    Off,
}

/// How vectors may be cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Matryoshka {
    No,
    /// To any length.
    Any,
    /// To these lengths, of which there is one at least.
    Sizes(Vec<u32>),
}

/// What the simulated model does. Others have files that say it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Task {
    #[default]
    Generate,
    Embed,
    /// Documents, by how well they answer a query.
    Rank,
}

const TASKS: [(&str, Task); 3] = [("generate", Task::Generate), ("embed", Task::Embed), ("rank", Task::Rank)];

#[derive(Clone, Copy, Debug)]
pub struct LimitSettings {
    pub queue: usize,
    pub max_n: u32,
    pub max_output_tokens: Option<u32>,
    pub strict_params: bool,
    pub request_timeout: Duration,
}

#[derive(Clone, Copy, Debug)]
pub struct BatchSettings {
    pub max_file_bytes: u64,
    pub max_lines: u64,
    pub max_concurrent: u32,
    /// Unfinished ones of one tenant.
    pub max_active: u64,
    /// Lines handed to the engine at a time.
    pub window: u32,
    pub order: BatchOrder,
    pub single_model: bool,
}

/// The order in which the lines of a batch are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchOrder {
    /// Lines whose prompts begin alike follow one another.
    Prefix,
    File,
}

#[derive(Clone, Debug)]
pub struct LogSettings {
    pub filter: String,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
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

impl Settings {
    pub(super) fn check(profile: String, raw: RawSettings, notes: Vec<String>) -> Result<Self, SettingsError> {
        let RawSettings { server, storage, backend, engine, models, limits, batch, webhooks, log } = raw;
        let parallel = backend.parallel;
        let (kind, prefix_cache) = (backend.kind, backend.prefix_cache);
        let models: Vec<_> =
            models.into_iter().map(|(name, model)| check_model(name, model, kind)).collect::<Result<_, _>>()?;
        if models.is_empty() {
            return Err(SettingsError::new("models", "no model is named: pass --model, or a [models.NAME] section"));
        }
        Ok(Self {
            profile,
            server: check_server(server)?,
            storage: storage.path,
            max_tenant_bytes: storage.max_tenant_bytes,
            min_free_bytes: storage.min_free_bytes,
            backend: check_backend(backend)?,
            prefix_cache,
            step_timeout: check_engine(&engine)?,
            models,
            limits: check_limits(&limits)?,
            batch: check_batch(&batch, parallel)?,
            webhooks: webhooks::check(webhooks)?,
            log: check_log(log)?,
            notes,
        })
    }
}

fn check_server(raw: RawServer) -> Result<ServerSettings, SettingsError> {
    let RawServer {
        host,
        port,
        insecure_no_auth,
        debug,
        allowed_hosts,
        cors_origins,
        max_connections,
        header_timeout_ms,
        body_timeout_ms,
        tls,
    } = raw;
    in_range("server.max_connections", max_connections as u64, 1, 1 << 20)?;
    // The clock that it is measured by moves twice a second.
    in_range("server.header_timeout_ms", header_timeout_ms, 1000, 3_600_000)?;
    in_range("server.body_timeout_ms", body_timeout_ms, 100, 3_600_000)?;
    let mut allowed_hosts: Vec<_> = allowed_hosts.words().iter().map(|name| name.to_ascii_lowercase()).collect();
    if let Some(wrong) = allowed_hosts.iter().find(|name| !is_host(name)) {
        return Err(SettingsError::new("server.allowed_hosts", format!("'{wrong}' is no name of a host")));
    }
    // Whoever listens on a name goes by it.
    allowed_hosts.push(host.to_ascii_lowercase());
    let cors_origins = cors_origins.words();
    if let Some(wrong) = cors_origins.iter().find(|origin| !is_origin(origin)) {
        let reason = format!("'{wrong}' is no origin such as https://chat.example or http://localhost:3000");
        return Err(SettingsError::new("server.cors_origins", reason));
    }
    let tls = match tls {
        None | Some(RawTls { cert: None, key: None }) => None,
        Some(RawTls { cert: Some(cert), key: Some(key) }) => Some(TlsSettings { cert, key }),
        Some(RawTls { cert: None, .. }) => return Err(SettingsError::new("server.tls.cert", "is missing")),
        Some(RawTls { key: None, .. }) => return Err(SettingsError::new("server.tls.key", "is missing")),
    };
    Ok(ServerSettings {
        host,
        port,
        debug,
        insecure_no_auth,
        allowed_hosts,
        cors_origins,
        max_connections,
        header_timeout: Duration::from_millis(header_timeout_ms),
        body_timeout: Duration::from_millis(body_timeout_ms),
        tls,
    })
}

fn is_host(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

/// A scheme, a host and perhaps a port: as a browser writes it, with nothing behind.
fn is_origin(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, rest)| {
        let (host, port) = rest.split_once(':').unwrap_or((rest, "0"));
        matches!(scheme, "http" | "https") && is_host(host) && port.parse::<u16>().is_ok()
    })
}

fn check_model(name: String, raw: RawModel, kind: Kind) -> Result<ModelSettings, SettingsError> {
    let key = |part: &str| format!("models.{name}{part}");
    if name.is_empty() || name.len() > 256 || name.contains("..") || name.chars().any(char::is_control) {
        return Err(SettingsError::new(key(""), "is no name for a model"));
    }
    let RawModel { source, gguf, sha256, task, generation_config, matryoshka, adapters } = raw;
    let task = match task {
        Some(_) if kind != Kind::Sim => {
            let reason = format!("does not apply to the backend {}: a model's file says what it is for", kind.name());
            return Err(SettingsError::new(key(".task"), reason));
        }
        Some(task) => one_of(&key(".task"), &task, &TASKS)?,
        None => Task::default(),
    };
    let origins = [("auto", GenerationConfig::Auto), ("off", GenerationConfig::Off)];
    let generation_config = match generation_config {
        Some(origin) => one_of(&key(".generation_config"), &origin, &origins)?,
        None => GenerationConfig::default(),
    };
    let matryoshka = match matryoshka {
        None => None,
        Some(RawMatryoshka::Whether(cut)) => Some(if cut { Matryoshka::Any } else { Matryoshka::No }),
        Some(RawMatryoshka::Sizes(sizes)) if sizes.is_empty() || sizes.contains(&0) => {
            return Err(SettingsError::new(key(".matryoshka"), "names no lengths that a vector can have"));
        }
        Some(RawMatryoshka::Sizes(sizes)) => Some(Matryoshka::Sizes(sizes)),
    };
    let spec = match kind {
        Kind::Sim => None,
        Kind::LlamaCpp => Some(gguf.or(source)),
        Kind::Candle => Some(source.or(gguf)),
    };
    let source = match spec {
        None => None,
        Some(None) => {
            return Err(SettingsError::new(key(".source"), format!("is missing: {} needs a file", kind.name())));
        }
        Some(Some(spec)) => {
            Some(ModelSource::parse(&spec).map_err(|reason| SettingsError::new(key(".source"), reason))?)
        }
    };
    let sha256 = match (kind, sha256) {
        (_, None) => None,
        (Kind::Sim, Some(_)) => {
            let reason = "does not apply to the backend sim: the simulated model has no file";
            return Err(SettingsError::new(key(".sha256"), reason));
        }
        (Kind::LlamaCpp | Kind::Candle, Some(hash)) => {
            Some(sha256::parse(&hash).map_err(|reason| SettingsError::new(key(".sha256"), reason))?)
        }
    };
    if kind == Kind::Candle && !adapters.is_empty() {
        return Err(SettingsError::new(key(".adapters"), "the backend candle has no adapters"));
    }
    in_range(&key(".adapters"), adapters.len() as u64, 0, MAX_ADAPTERS)?;
    let adapters = adapters
        .into_iter()
        .map(|(adapter, raw)| check_adapter(&key(&format!(".adapters.{adapter}")), adapter, raw, kind))
        .collect::<Result<_, _>>()?;
    Ok(ModelSettings { name, source, sha256, task, generation_config, matryoshka, adapters })
}

fn check_adapter(key: &str, name: String, raw: RawAdapter, kind: Kind) -> Result<AdapterSettings, SettingsError> {
    if name.is_empty() || name.len() > 256 || name.chars().any(char::is_control) {
        return Err(SettingsError::new(key, "is no name for an adapter"));
    }
    let RawAdapter { path, scale } = raw;
    let source = match (kind, path) {
        (Kind::Sim, _) => None,
        (Kind::LlamaCpp | Kind::Candle, None) => {
            return Err(SettingsError::new(format!("{key}.path"), format!("is missing: {} needs a file", kind.name())));
        }
        (Kind::LlamaCpp | Kind::Candle, Some(spec)) => {
            let source = ModelSource::parse(&spec);
            Some(source.map_err(|reason| SettingsError::new(format!("{key}.path"), reason))?)
        }
    };
    let scale = scale.unwrap_or(1.0) as f32;
    if !scale.is_finite() {
        return Err(SettingsError::new(format!("{key}.scale"), "is no number that a model can be adapted by"));
    }
    Ok(AdapterSettings { name, source, scale })
}

fn check_backend(raw: RawBackend) -> Result<BackendSettings, SettingsError> {
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

fn check_engine(raw: &RawEngine) -> Result<Option<Duration>, SettingsError> {
    let &RawEngine { step_timeout_ms } = raw;
    if step_timeout_ms == 0 {
        return Ok(None);
    }
    in_range("engine.step_timeout_ms", step_timeout_ms, 100, 24 * 3_600_000)?;
    Ok(Some(Duration::from_millis(step_timeout_ms)))
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

fn check_limits(raw: &RawLimits) -> Result<LimitSettings, SettingsError> {
    let &RawLimits { queue, max_n, max_output_tokens, strict_params, request_timeout_ms } = raw;
    in_range("limits.request_timeout_ms", request_timeout_ms, 1, 24 * 3_600_000)?;
    in_range("limits.max_n", max_n.into(), 1, 128)?;
    in_range("limits.queue", queue as u64, 1, 1 << 20)?;
    if let Some(tokens) = max_output_tokens {
        in_range("limits.max_output_tokens", tokens.into(), 1, u64::from(u32::MAX))?;
    }
    let request_timeout = Duration::from_millis(request_timeout_ms);
    Ok(LimitSettings { queue, max_n, max_output_tokens, strict_params, request_timeout })
}

fn check_batch(raw: &RawBatch, parallel: u32) -> Result<BatchSettings, SettingsError> {
    let &RawBatch { max_file_bytes, max_lines, max_concurrent, max_active, window, ref order, single_model } = raw;
    in_range("batch.max_active", max_active, 1, 1 << 20)?;
    in_range("batch.max_file_bytes", max_file_bytes, 1, 1 << 40)?;
    in_range("batch.max_lines", max_lines, 1, 1 << 32)?;
    in_range("batch.max_concurrent", max_concurrent.into(), 1, 1024)?;
    let window = window.unwrap_or(2 * parallel);
    in_range("batch.window", window.into(), 1, 1 << 16)?;
    let order = one_of("batch.order", order, &[("prefix", BatchOrder::Prefix), ("file", BatchOrder::File)])?;
    Ok(BatchSettings { max_file_bytes, max_lines, max_concurrent, max_active, window, order, single_model })
}

fn check_log(raw: RawLog) -> Result<LogSettings, SettingsError> {
    let RawLog { filter, format } = raw;
    let format = one_of("log.format", &format, &[("text", LogFormat::Text), ("json", LogFormat::Json)])?;
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&filter) {
        return Err(SettingsError::new("log.filter", error.to_string()));
    }
    Ok(LogSettings { filter, format })
}

pub(super) fn in_range(key: &str, value: u64, min: u64, max: u64) -> Result<(), SettingsError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(SettingsError::new(key, format!("{value} is not between {min} and {max}")))
}

pub(super) fn one_of<T: Copy>(key: &str, word: &str, choices: &[(&str, T)]) -> Result<T, SettingsError> {
    match choices.iter().find(|(name, _)| *name == word) {
        Some((_, value)) => Ok(*value),
        None => {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            Err(SettingsError::new(key, format!("'{word}' is not known here: one of {}", names.join(", "))))
        }
    }
}
