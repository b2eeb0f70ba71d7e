use std::{path::PathBuf, time::Duration};

use super::{
    gpu_roofline::GpuRates,
    load::Load,
    report::Goal,
    target::Target,
    workload::{Sizes, Workload},
};

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Order {
    pub targets: Vec<Target>,
    pub workload: Workload,
    /// Of one run; for a file all of it when absent.
    pub requests: Option<usize>,
    pub sizes: Sizes,
    /// One, or several numbers of requests at a time.
    pub loads: Vec<Load>,
    pub repeats: u32,
    pub stream: bool,
    pub goal: Goal,
    /// So many greedy requests are compared between targets.
    pub check: usize,
    /// What a GPU of this machine does at most, where that was measured.
    pub gpu_rates: Option<GpuRates>,
    /// Where reports, charts and logs go.
    pub out: PathBuf,
    /// The API key for a server, by the target's name.
    pub key: fn(&str) -> Option<String>,
    /// Of one request.
    pub request_timeout: Duration,
    /// From the start of a program until its model is loaded.
    pub start_timeout: Duration,
    /// For the report.
    pub command: Vec<String>,
}

/// Is told how far a bench has come.
pub trait Watcher {
    /// Something begins that has so many parts; 0 where that is not known.
    fn begin(&self, what: &str, parts: u64);
    /// So many of its parts are done.
    fn at(&self, parts: u64);
    /// A word for people.
    fn note(&self, text: &str);
}

/// Why there is nothing to report.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error("{path}: {source}")]
    Workload { path: String, source: std::io::Error },
    #[error("{path}: has no line that is a request{}", first.as_ref().map_or_else(String::new, |first| format!("; line {}: {}", first.line, first.reason)))]
    NoRequests { path: String, first: Option<super::report::BadLine> },
    #[error("cannot write the report: {0}")]
    Out(std::io::Error),
}

const REQUESTS: usize = 64;
/// With several loads, so many for each that is answered at a time.
const REQUESTS_PER_SLOT: usize = 4;
const REQUESTS_MIN: usize = 8;

impl Order {
    /// Requests of one run at a load: with few at a time a smaller number tells as much, and takes not as long.
    pub(super) fn requests_at(&self, load: Load) -> usize {
        let requests = self.requests.unwrap_or(REQUESTS);
        match load {
            Load::Closed(concurrency) if self.loads.len() > 1 => {
                requests.min((REQUESTS_PER_SLOT * concurrency as usize).max(REQUESTS_MIN))
            }
            Load::Closed(_) | Load::Open(_) => requests,
        }
    }
}

impl Load {
    /// For people.
    #[must_use]
    pub fn label(self) -> String {
        match self {
            Self::Closed(concurrency) => format!("{concurrency} at a time"),
            Self::Open(rate) => format!("{rate}/s"),
        }
    }

    pub(super) fn concurrency(self) -> Option<u32> {
        match self {
            Self::Closed(concurrency) => Some(concurrency),
            Self::Open(_) => None,
        }
    }
}
