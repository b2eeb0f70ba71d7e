//! Logs. Prompts and completions are never among them.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::settings::{LogFormat, LogSettings, Settings};

/// Begins to log to standard error. `RUST_LOG`, if it is set and can be read, goes before the settings.
pub fn start(settings: &Settings) {
    let LogSettings { filter, format } = &settings.log;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(filter));
    // Colours are for people who want them.
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let layer = fmt::layer().with_writer(io::stderr).with_ansi(colours);
    let registry = tracing_subscriber::registry().with(filter);
    // A second start in one process, as in tests, keeps the first.
    let _ = match format {
        LogFormat::Text => registry.with(layer).try_init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    };
    for note in &settings.notes {
        tracing::warn!("{note}");
    }
}
