use std::{path::PathBuf, time::Duration};

use super::{
    BackendSettings, ModelSettings, ServerSettings, SettingsError, backend, model,
    raw::{RawBatch, RawEngine, RawLimits, RawLog, RawSettings},
    server,
    webhooks::{self, WebhookSettings},
};

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

impl Settings {
    pub(super) fn check(profile: String, raw: RawSettings, notes: Vec<String>) -> Result<Self, SettingsError> {
        let RawSettings { server, storage, backend, engine, models, limits, batch, webhooks, log } = raw;
        let parallel = backend.parallel;
        let (kind, prefix_cache) = (backend.kind, backend.prefix_cache);
        let models: Vec<_> =
            models.into_iter().map(|(name, model)| model::check(name, model, kind)).collect::<Result<_, _>>()?;
        if models.is_empty() {
            return Err(SettingsError::new("models", "no model is named: pass --model, or a [models.NAME] section"));
        }
        Ok(Self {
            profile,
            server: server::check(server)?,
            storage: storage.path,
            max_tenant_bytes: storage.max_tenant_bytes,
            min_free_bytes: storage.min_free_bytes,
            backend: backend::check(backend)?,
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

fn check_engine(raw: &RawEngine) -> Result<Option<Duration>, SettingsError> {
    let &RawEngine { step_timeout_ms } = raw;
    if step_timeout_ms == 0 {
        return Ok(None);
    }
    in_range("engine.step_timeout_ms", step_timeout_ms, 100, 24 * 3_600_000)?;
    Ok(Some(Duration::from_millis(step_timeout_ms)))
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
