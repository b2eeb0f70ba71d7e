use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::case::Case;

/// `table.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    pub(super) servers: BTreeMap<String, ServerSpec>,
    /// Refusals, as `503 engine_unavailable`, that take a broken server and are tested elsewhere.
    elsewhere: Vec<String>,
    #[serde(rename = "entry")]
    pub(super) entries: Vec<Entry>,
}

/// A server of profile `sim` with settings of its own.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ServerSpec {
    /// Why there is this one.
    pub(super) about: String,
    pub(super) settings: toml::Table,
    pub(super) environment: BTreeMap<String, String>,
    /// Options of `tandem keys create` for each key.
    pub(super) keys: BTreeMap<String, Vec<String>>,
    /// Whether a stream runs beside everything, and must arrive whole.
    pub(super) canary: bool,
    /// Whether there are files and batches that requests may name.
    pub(super) furnished: bool,
}

/// A line of the catalogue.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) id: String,
    pub(super) input: String,
    /// In what the answer is not the catalogue's, and why.
    #[serde(default)]
    pub(super) deviates: Option<String>,
    pub(super) procedure: Option<String>,
    /// Where the procedure runs.
    server: Option<String>,
    /// What the procedure is refused with, as `408 request_timeout`.
    #[serde(default)]
    refused: Vec<String>,
    #[serde(default)]
    pub(super) cases: Vec<Case>,
}

impl Table {
    pub(super) fn read() -> Self {
        toml::from_str(include_str!("table.toml")).unwrap()
    }

    /// Every server that something runs on.
    pub(super) fn places(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().flat_map(|entry| {
            let own = entry.procedure.as_ref().map(|_| entry.server());
            entry.cases.iter().map(Case::server).chain(own)
        })
    }

    /// Every refusal with a code, as `400 invalid_json`.
    pub(super) fn refusals(&self) -> BTreeSet<String> {
        let of_entries = self.entries.iter().flat_map(|entry| {
            let of_cases = entry.cases.iter().filter_map(Case::refusal);
            of_cases.chain(entry.refused.iter().cloned())
        });
        of_entries.chain(self.elsewhere.iter().cloned()).collect()
    }
}

impl Entry {
    pub(super) fn server(&self) -> &str {
        self.server.as_deref().unwrap_or("open")
    }
}
