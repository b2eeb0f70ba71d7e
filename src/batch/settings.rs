use std::time::Duration;

use super::order::LineOrder;
use crate::clock::Clock;

/// How batches are checked, run and kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Requests in flight at once, over all batches: about twice what the engine decodes together.
    pub window: usize,
    pub order: LineOrder,
    /// Batches whose lines run at the same time; the rest wait their turn.
    pub concurrent_max: usize,
    /// Batches that are not finished.
    pub active_max: u64,
    pub lines_max: i64,
    pub line_bytes_max: usize,
    /// Whether all lines of a file must name one model.
    pub single_model: bool,
    /// Whether each line may be for an endpoint of its own, as `vllm run-batch` has it.
    pub any_endpoint: bool,
    pub completion_windows: Vec<CompletionWindow>,
    /// Executions of a line that ends in "try again later" before that becomes its answer.
    pub attempts_max: i64,
    /// Owners that may die with a line in their hands before the line is given up.
    pub crashes_max: i64,
    pub retry_delay: Duration,
    pub retry_delay_max: Duration,
    pub line_timeout: Duration,
    /// Records larger than this wait for publication as blobs, not as rows.
    pub spill_bytes: usize,
    /// One transaction writes at most this many results, and none waits longer than `group_delay` for company.
    pub group_rows: usize,
    pub group_delay: Duration,
    /// How long a stop waits for lines in flight.
    pub stop_grace: Duration,
    /// Failed lines go to the output file too, in their place.
    pub single_output: bool,
    /// Whether the end of a batch is noted as an event that is to be told of.
    pub tell_ends: bool,
    /// Lifetime of published files, where the client names none.
    pub output_expires_s: i64,
    pub clock: Clock,
}

/// A value of `completion_window` and its meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompletionWindow {
    pub name: String,
    pub seconds: i64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            window: 16,
            order: LineOrder::default(),
            concurrent_max: 4,
            active_max: 100,
            lines_max: 50_000,
            line_bytes_max: 10 * 1024 * 1024,
            single_model: false,
            any_endpoint: false,
            completion_windows: vec![CompletionWindow { name: "24h".to_owned(), seconds: 24 * 3600 }],
            attempts_max: 8,
            crashes_max: 3,
            retry_delay: Duration::from_secs(1),
            retry_delay_max: Duration::from_secs(60),
            line_timeout: Duration::from_secs(600),
            spill_bytes: 1024 * 1024,
            group_rows: 64,
            group_delay: Duration::from_millis(20),
            stop_grace: Duration::from_secs(30),
            single_output: false,
            tell_ends: false,
            output_expires_s: 30 * 24 * 3600,
            clock: Clock::system(),
        }
    }
}
