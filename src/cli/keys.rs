use std::process::ExitCode;

use clap::{Args, Subcommand};
use time::{OffsetDateTime, macros::format_description};

use super::{SettingsArgs, exit::Failure, print};
use crate::{
    access::{KeyText, Scopes, hash},
    app::AppError,
    clock::Clock,
    openai::AllowedModels,
    settings::Settings,
    store::{ApiKey, ApiKeys, NewApiKey, StoreError, Tenant},
};

#[derive(Debug, Subcommand)]
pub(super) enum KeysCommand {
    /// Make a key and show it, this once
    Create(Create),
    /// List all keys; none can be seen again
    List(SettingsArgs),
    /// Revoke a key by its id; a running server takes it for at most two more seconds
    Revoke(Revoke),
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// What the key is for
    #[arg(long, default_value = "", hide_default_value = true, value_parser = label_for_people)]
    name: String,
    /// Whose files and batches it works with; keys of one tenant share them
    #[arg(long, default_value_t = Tenant::default())]
    tenant: Tenant,
    /// Of inference, files, batches (or :read or :write of either), admin
    #[arg(long, default_value = "inference,files,batches")]
    scopes: Scopes,
    /// Models that it may use, with commas between; all if not given. Others are for it as if they did not exist
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = model_name)]
    models: Vec<String>,
    /// Stands in the key, to tell keys of one place from those of another
    #[arg(long, value_name = "ENV", default_value = "live")]
    env: String,
    /// Days until it expires; never if not given
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    expires_in_days: Option<u32>,
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_requests_per_minute: Option<u32>,
    /// Of prompts and answers, online; batches do not count
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens_per_minute: Option<u32>,
    /// Requests at a time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_concurrent: Option<u32>,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Debug, Args)]
pub(super) struct Revoke {
    /// The eight characters in the middle of the key, as `list` shows them
    id: String,
    #[command(flatten)]
    settings: SettingsArgs,
}

const DAY_S: i64 = 24 * 3600;

impl KeysCommand {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let runtime = super::runtime()?;
        match self {
            Self::Create(command) => runtime.block_on(create(command)),
            Self::List(settings) => runtime.block_on(list(settings)),
            Self::Revoke(command) => runtime.block_on(revoke(command)),
        }
    }
}

async fn create(command: Create) -> Result<ExitCode, Failure> {
    let Create { name, tenant, scopes, models, env, expires_in_days, settings, .. } = command;
    let Some(key) = KeyText::generate(&env) else {
        return Err(Failure::new(Failure::USAGE, "--env: 1 to 16 lower-case letters and digits, such as live"));
    };
    let now = Clock::system().seconds();
    let new = NewApiKey {
        id: key.id().to_owned(),
        name,
        tenant,
        digest: hash(&key),
        scopes: scopes.to_string(),
        max_requests_per_minute: command.max_requests_per_minute,
        max_tokens_per_minute: command.max_tokens_per_minute,
        max_concurrent: command.max_concurrent,
        models: AllowedModels::these(models),
        created_at: now,
        expires_at: expires_in_days.map(|days| now + i64::from(days) * DAY_S),
    };
    let dir = Settings::load(&settings.overrides())?.storage;
    let failed = |source| AppError::Store { path: dir.display().to_string(), source };
    ApiKeys::open(&dir).await.map_err(failed)?.add(new).await.map_err(failed)?;
    print(key.reveal());
    Ok(ExitCode::SUCCESS)
}

async fn list(settings: SettingsArgs) -> Result<ExitCode, Failure> {
    let dir = Settings::load(&settings.overrides())?.storage;
    let failed = |source| AppError::Store { path: dir.display().to_string(), source };
    let keys = match ApiKeys::open_existing(&dir).await.map_err(failed)? {
        Some(keys) => keys.all().await.map_err(failed)?,
        None => Vec::new(),
    };
    let now = Clock::system().seconds();
    for key in &keys {
        print(&describe(key, now));
    }
    Ok(ExitCode::SUCCESS)
}

async fn revoke(command: Revoke) -> Result<ExitCode, Failure> {
    let Revoke { id, settings } = command;
    let dir = Settings::load(&settings.overrides())?.storage;
    let failed = |source| AppError::Store { path: dir.display().to_string(), source };
    let revoked = match ApiKeys::open_existing(&dir).await.map_err(failed)? {
        Some(keys) => keys.revoke(&id, Clock::system().seconds()).await,
        None => Err(StoreError::NotFound),
    };
    match revoked {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(StoreError::NotFound) => Err(Failure::new(1, format!("there is no key '{}'", id.escape_debug()))),
        Err(source) => Err(failed(source).into()),
    }
}

/// One line: the id, what it is and whose, and what has become of it.
fn describe(key: &ApiKey, now: i64) -> String {
    let state = match (key.revoked_at, key.expires_at) {
        (Some(at), _) => format!("revoked {}", date(at)),
        (None, Some(at)) if at <= now => format!("expired {}", date(at)),
        (None, Some(at)) => format!("until {}", date(at)),
        (None, None) => "active".to_owned(),
    };
    let used = key.last_used_at.map_or_else(|| "never used".to_owned(), |at| format!("used {}", date(at)));
    let limits = [
        ("requests/min", key.max_requests_per_minute),
        ("tokens/min", key.max_tokens_per_minute),
        ("at a time", key.max_concurrent),
    ];
    let limits = limits.iter().filter_map(|(what, limit)| limit.map(|limit| format!(", {limit} {what}")));
    let limits: String = limits.collect();
    let name = if key.name.is_empty() { String::new() } else { format!("  {}", key.name) };
    let models = key.models().names().map(|names| format!(", models {}", names.join(","))).unwrap_or_default();
    let (id, tenant, scopes) = (&key.id, &key.tenant, key.scopes.replace(' ', ","));
    format!("{id}  {tenant}  {scopes}{models}{limits}  {state}, {used}{name}")
}

/// To the minute, in UTC.
fn date(at: i64) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]Z");
    OffsetDateTime::from_unix_timestamp(at).ok().and_then(|at| at.format(format).ok()).unwrap_or_default()
}

/// A name that a model may have. Whether there is such a model is another day's question.
fn model_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 256 || text.chars().any(char::is_control) {
        return Err("no name that a model may have".to_owned());
    }
    Ok(text.to_owned())
}

/// It is shown on one line.
fn label_for_people(text: &str) -> Result<String, String> {
    if text.chars().count() > 100 || text.chars().any(char::is_control) {
        return Err("at most 100 characters on one line".to_owned());
    }
    Ok(text.to_owned())
}
