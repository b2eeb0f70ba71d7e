use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressStyle};

use crate::telemetry;

/// A bar on a terminal, above which the log goes on; none elsewhere.
pub(super) fn bar(template: &str) -> Option<ProgressBar> {
    std::io::stderr().is_terminal().then(|| {
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        telemetry::bars().add(ProgressBar::new(0).with_style(style))
    })
}
