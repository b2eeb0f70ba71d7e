use super::answer::Verdict;

/// One request and what came of it. Times are in milliseconds from when it was due: from sending in a closed loop, from its place in the
/// schedule in an open one, so that a server that falls behind does not look fast.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) e2e_ms: f64,
    /// To the first text; `None` where the answer came as a whole.
    pub(super) ttft_ms: Option<f64>,
    /// Between one piece of text and the next.
    pub(super) gaps_ms: Vec<f32>,
    pub(super) input_tokens: u64,
    pub(super) output_tokens: u64,
    /// Of the input, served from a cache.
    pub(super) cached_tokens: u64,
    pub(super) verdict: Verdict,
    /// There was not even a connection.
    pub(super) refused: bool,
}

impl Sample {
    pub(super) fn is_ok(&self) -> bool {
        self.verdict == Verdict::Ok
    }

    /// Time of each output token after the first, as `vllm bench serve` has it.
    pub(super) fn tpot_ms(&self) -> Option<f64> {
        let after_first = self.output_tokens.checked_sub(1).filter(|tokens| *tokens > 0)?;
        Some((self.e2e_ms - self.ttft_ms?) / after_first as f64)
    }
}
