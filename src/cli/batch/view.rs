use serde::Deserialize;
use serde_json::Value;

use super::client::{ClientError, Result};

/// What is looked at of a batch, whichever server tells of it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct BatchView {
    pub(super) id: String,
    pub(super) status: String,
    pub(super) endpoint: String,
    pub(super) input_file_id: String,
    pub(super) completion_window: String,
    pub(super) output_file_id: Option<String>,
    pub(super) error_file_id: Option<String>,
    pub(super) created_at: i64,
    pub(super) request_counts: Option<Counts>,
    pub(super) errors: Option<Errors>,
    pub(super) metadata: Option<Value>,
    pub(super) progress: Option<Progress>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct Counts {
    pub(super) total: u64,
    pub(super) completed: u64,
    pub(super) failed: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Errors {
    #[serde(default)]
    pub(super) data: Vec<LineError>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct LineError {
    pub(super) message: Option<String>,
    pub(super) line: Option<u64>,
}

/// What our own server tells beside.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Progress {
    pub(super) tokens_per_second: Option<f64>,
    pub(super) eta_seconds: Option<u64>,
    pub(super) paused_at: Option<i64>,
}

impl BatchView {
    pub(super) fn of(batch: &Value) -> Result<Self> {
        Self::deserialize(batch).map_err(|error| ClientError::Unreadable(format!("what is no batch: {error}")))
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.status.as_str(), "completed" | "failed" | "expired" | "cancelled")
    }

    /// Whether every line was answered.
    pub(super) fn is_all_well(&self) -> bool {
        self.status == "completed" && self.counts().failed == 0
    }

    pub(super) fn counts(&self) -> Counts {
        self.request_counts.unwrap_or_default()
    }

    /// One line for people.
    pub(super) fn line(&self) -> String {
        let Counts { total, completed, failed } = self.counts();
        let mut text = format!("{}: {}, {} of {total} lines", self.id, self.status, completed + failed);
        if failed > 0 {
            text += &format!(", {failed} failed");
        }
        let Some(progress) = &self.progress else { return text };
        if progress.paused_at.is_some() {
            text += ", paused";
        }
        if let Some(rate) = progress.tokens_per_second {
            text += &format!(", {rate:.0} tokens/s");
        }
        if let Some(seconds) = progress.eta_seconds {
            text += &format!(", {seconds} s left");
        }
        text
    }
}
