//! Logs. Prompts and completions are never among them.

use std::{
    io::{self, IsTerminal as _, Write},
    sync::LazyLock,
};

use indicatif::MultiProgress;
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::settings::{LogFormat, LogSettings, Settings};

/// Begins to log to standard error. `RUST_LOG`, if it is set and can be read, goes before the settings.
pub fn start(settings: &Settings) {
    let LogSettings { filter, format } = &settings.log;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(filter));
    let layer = fmt::layer().with_writer(|| AboveBars).with_ansi(colours());
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

/// Begins to log what `RUST_LOG` asks for; nothing where it is not set, or cannot be read.
pub fn start_if_asked() {
    if let Ok(filter) = EnvFilter::try_from_default_env() {
        let layer = fmt::layer().with_writer(|| AboveBars).with_ansi(colours());
        let _ = tracing_subscriber::registry().with(filter).with(layer).try_init();
    }
}

/// Colours are for people who want them.
fn colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// The progress bars that are on the terminal. The log is written above them.
pub fn bars() -> &'static MultiProgress {
    static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);
    &BARS
}

/// Standard error, without the bars that stand there while something is written.
struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        bars().suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
