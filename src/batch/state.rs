use std::str::FromStr;

/// Where a batch stands.
///
/// ```text
/// validating ──► in_progress ──► finalizing ──► completed
///     │    └──────────┬──┴─► cancelling ──► finalizing ──► cancelled | expired
///     └──► failed     └──► failed (its input is damaged)
/// ```
/// A batch whose window is over takes the way of a cancelled one; the stop reason tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchStatus {
    Validating,
    Failed,
    InProgress,
    Finalizing,
    Completed,
    Expired,
    Cancelling,
    Cancelled,
}

/// Why a batch stops before its last line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    Cancel,
    Expire,
}

impl BatchStatus {
    const ALL: [Self; 8] = [
        Self::Validating,
        Self::Failed,
        Self::InProgress,
        Self::Finalizing,
        Self::Completed,
        Self::Expired,
        Self::Cancelling,
        Self::Cancelled,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Validating => "validating",
            Self::Failed => "failed",
            Self::InProgress => "in_progress",
            Self::Finalizing => "finalizing",
            Self::Completed => "completed",
            Self::Expired => "expired",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }

    /// Nothing leads out of these.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Failed | Self::Completed | Self::Expired | Self::Cancelled)
    }

    /// What a client sees: OpenAI knows no expiring batch, and a cancelled one cancels until it has ended.
    pub fn shown(self, stop_reason: Option<StopReason>) -> Self {
        match (self, stop_reason) {
            (Self::Cancelling | Self::Finalizing, Some(StopReason::Expire)) => Self::InProgress,
            (Self::Finalizing, Some(StopReason::Cancel)) => Self::Cancelling,
            _ => self,
        }
    }
}

impl FromStr for BatchStatus {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or(())
    }
}

impl StopReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Expire => "expire",
        }
    }

    /// The code and the message of a line that was never run.
    pub fn line_error(self) -> (&'static str, &'static str) {
        match self {
            Self::Cancel => ("batch_cancelled", "This request was not executed because the batch was cancelled."),
            Self::Expire => {
                ("batch_expired", "This request could not be executed before the completion window expired.")
            }
        }
    }
}

impl FromStr for StopReason {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Cancel, Self::Expire].into_iter().find(|reason| reason.as_str() == text).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_reads_back() {
        for status in BatchStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
        }
    }

    #[test]
    fn a_client_never_sees_an_expiring_batch() {
        assert_eq!(BatchStatus::Cancelling.shown(Some(StopReason::Expire)), BatchStatus::InProgress);
        assert_eq!(BatchStatus::Finalizing.shown(Some(StopReason::Expire)), BatchStatus::InProgress);
        assert_eq!(BatchStatus::Finalizing.shown(Some(StopReason::Cancel)), BatchStatus::Cancelling);
        assert_eq!(BatchStatus::Finalizing.shown(None), BatchStatus::Finalizing);
    }
}
