//! What must be true of a batch whatever happened to it, checked over all that a client saw of it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// A batch that has ended, as its client knows it.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// The lines of the input, by their numbers in the file.
    pub(crate) lines: BTreeMap<u64, String>,
    /// What each `custom_id` must be answered: the text of its message, or `None` for an error.
    pub(crate) expected: BTreeMap<String, Option<String>>,
    /// The batch, each time it was asked for; the last time it had ended.
    pub(crate) seen: Vec<Value>,
    pub(crate) output: Option<String>,
    pub(crate) errors: Option<String>,
    /// The same files, downloaded once more.
    pub(crate) again: [Option<String>; 2],
    pub(crate) kills: usize,
    /// Lines that may be claimed and not yet written as answered.
    pub(crate) in_flight: usize,
}

const STAMPS: [&str; 7] =
    ["in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at"];

impl History {
    /// What is not as it must be; empty if nothing.
    pub(crate) fn violations(&self) -> Vec<String> {
        let mut found = Vec::new();
        self.conservation(&mut found);
        self.bijection_and_fidelity(&mut found);
        self.well_formed(&mut found);
        self.acknowledged_counts(&mut found);
        self.states(&mut found);
        self.visibility(&mut found);
        self.bounded_work(&mut found);
        found
    }

    fn end(&self) -> &Value {
        self.seen.last().expect("the batch was asked for")
    }

    fn records(text: Option<&String>) -> Vec<Value> {
        let lines = text.map(String::as_str).unwrap_or_default().lines();
        lines.map(|line| serde_json::from_str(line).unwrap_or(Value::Null)).collect()
    }

    fn conservation(&self, found: &mut Vec<String>) {
        let [total, completed, failed] = counts(self.end());
        let [output, errors] = [&self.output, &self.errors].map(|text| Self::records(text.as_ref()));
        let unexecuted = errors.iter().filter(|record| !record["error"].is_null()).count() as u64;
        if total != self.lines.len() as u64 {
            found.push(format!("conservation: {total} lines of {}", self.lines.len()));
        }
        if completed != output.len() as u64 {
            found.push(format!("conservation: {completed} completed, {} in the output", output.len()));
        }
        let cancelled = matches!(self.end()["status"].as_str(), Some("cancelled" | "expired"));
        let executed = errors.len() as u64 - if cancelled { unexecuted } else { 0 };
        if failed != executed {
            found.push(format!("conservation: {failed} failed, {executed} in the errors"));
        }
    }

    fn bijection_and_fidelity(&self, found: &mut Vec<String>) {
        let mut answered = BTreeSet::new();
        for (is_output, text) in [(true, &self.output), (false, &self.errors)] {
            for record in Self::records(text.as_ref()) {
                let id = record["custom_id"].as_str().unwrap_or_default().to_owned();
                let Some(expected) = self.expected.get(&id) else {
                    found.push(format!("bijection: {id:?} was not asked"));
                    continue;
                };
                if !answered.insert(id.clone()) {
                    found.push(format!("bijection: {id:?} is answered twice"));
                }
                let content = record["response"]["body"]["choices"][0]["message"]["content"].as_str();
                if is_output && content != expected.as_deref() {
                    found.push(format!("fidelity: {id:?} has the answer of something else"));
                }
            }
        }
        for id in self.expected.keys().filter(|id| !answered.contains(*id)) {
            found.push(format!("bijection: {id:?} is not answered"));
        }
    }

    fn well_formed(&self, found: &mut Vec<String>) {
        let [again_output, again_errors] = &self.again;
        for (text, again) in [(&self.output, again_output), (&self.errors, again_errors)] {
            if text != again {
                found.push("well-formed: two downloads differ".to_owned());
            }
            let Some(text) = text else { continue };
            if !text.ends_with('\n') || Self::records(Some(text)).iter().any(|record| !is_record(record)) {
                found.push("well-formed: a line is not a record".to_owned());
            }
        }
    }

    fn acknowledged_counts(&self, found: &mut Vec<String>) {
        for pair in self.seen.windows(2) {
            let [before, after] = [counts(&pair[0]), counts(&pair[1])];
            if before.iter().zip(after).any(|(before, after)| *before > after) {
                found.push(format!("acknowledged: {before:?} went back to {after:?}"));
            }
        }
    }

    fn states(&self, found: &mut Vec<String>) {
        for pair in self.seen.windows(2) {
            let [before, after] = [0, 1].map(|at| pair[at]["status"].as_str().unwrap_or_default());
            if !leads_to(before, after) {
                found.push(format!("states: {before:?} became {after:?}"));
            }
            for stamp in STAMPS {
                if !pair[0][stamp].is_null() && pair[0][stamp] != pair[1][stamp] {
                    found.push(format!("states: {stamp} changed"));
                }
            }
        }
    }

    fn visibility(&self, found: &mut Vec<String>) {
        let ended = ["completed", "failed", "expired", "cancelled"];
        for batch in &self.seen {
            let has_ended = ended.iter().any(|status| batch["status"] == *status);
            let has_file = !batch["output_file_id"].is_null() || !batch["error_file_id"].is_null();
            if has_file && !has_ended {
                found.push("visibility: a file before the end".to_owned());
            }
        }
        for (name, text) in [("output_file_id", &self.output), ("error_file_id", &self.errors)] {
            if self.end()[name].is_null() == text.is_some() {
                found.push(format!("visibility: {name} and its file"));
            }
        }
    }

    /// A request's id tells which attempt it was.
    fn bounded_work(&self, found: &mut Vec<String>) {
        let numbers: BTreeMap<&str, u64> = self.lines.iter().map(|(number, id)| (id.as_str(), *number)).collect();
        let batch = self.end()["id"].as_str().unwrap_or_default();
        let mut repeated = 0;
        for record in [&self.output, &self.errors].into_iter().flat_map(|text| Self::records(text.as_ref())) {
            let (Some(id), Some(number)) = (
                record["response"]["request_id"].as_str(),
                record["custom_id"].as_str().and_then(|id| numbers.get(id)),
            ) else {
                continue;
            };
            let attempt = (1..=self.kills + 1).find(|attempt| request_id(batch, *number, *attempt) == id);
            if attempt.is_none() {
                found.push(format!("bounded work: line {number} was run more often than the server was killed"));
            }
            repeated += attempt.unwrap_or(1) - 1;
        }
        if repeated > self.kills * self.in_flight {
            found.push(format!("bounded work: {repeated} executions were repeated after {} kills", self.kills));
        }
    }
}

fn counts(batch: &Value) -> [u64; 3] {
    ["total", "completed", "failed"].map(|name| batch["request_counts"][name].as_u64().unwrap_or(u64::MAX))
}

fn is_record(record: &Value) -> bool {
    let keys: BTreeSet<&str> = record.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
    keys == BTreeSet::from(["id", "custom_id", "response", "error"])
        && record["id"].as_str().is_some_and(|id| id.starts_with("batch_req_"))
        && record["response"].is_null() != record["error"].is_null()
}

/// Whether a client may see the one status after the other, however much it missed in between.
fn leads_to(before: &str, after: &str) -> bool {
    let order = |status| match status {
        "validating" => Some(0),
        "in_progress" => Some(1),
        "cancelling" => Some(2),
        "finalizing" => Some(3),
        "completed" | "failed" | "expired" | "cancelled" => Some(4),
        _ => None,
    };
    match (order(before), order(after)) {
        (Some(4), Some(_)) => before == after,
        (Some(2), Some(_)) => matches!(after, "cancelling" | "cancelled"),
        (Some(before), Some(after)) => before <= after,
        _ => false,
    }
}

/// As the server makes it.
fn request_id(batch: &str, line: u64, attempt: usize) -> String {
    let hash = Sha256::digest(format!("{batch}:{line}:{attempt}").as_bytes());
    let hex: String = hash.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    format!("req_{hex}")
}

mod tests {
    use serde_json::json;

    use super::*;

    fn batch(status: &str, completed: u64, failed: u64) -> Value {
        let ended = status == "completed";
        json!({
            "id": "batch_1", "status": status, "completed_at": ended.then_some(5),
            "request_counts": {"total": 3, "completed": completed, "failed": failed},
            "output_file_id": ended.then_some("file-1"), "error_file_id": ended.then_some("file-2"),
        })
    }

    fn record(number: u64, content: &str, attempt: usize) -> String {
        let body = json!({"choices": [{"message": {"content": content}}]});
        let response = json!({"status_code": 200, "request_id": request_id("batch_1", number, attempt), "body": body});
        let id = format!("line-{number}");
        json!({"id": "batch_req_1", "custom_id": id, "response": response, "error": null}).to_string() + "\n"
    }

    /// Two lines answered, the second at its second attempt, and one refused.
    fn sound() -> History {
        let output = Some(record(1, "one", 1) + &record(2, "two", 2));
        let errors = Some(record(3, "refused", 1));
        History {
            lines: (1..=3).map(|number| (number, format!("line-{number}"))).collect(),
            expected: [("line-1", Some("one")), ("line-2", Some("two")), ("line-3", None)]
                .map(|(id, content)| (id.to_owned(), content.map(str::to_owned)))
                .into(),
            seen: vec![batch("in_progress", 1, 0), batch("completed", 2, 1)],
            again: [output.clone(), errors.clone()],
            output,
            errors,
            kills: 1,
            in_flight: 2,
        }
    }

    #[track_caller]
    fn breaks(what: &str, change: impl FnOnce(&mut History)) {
        let mut history = sound();
        change(&mut history);
        let found = history.violations();
        assert!(found.iter().any(|violation| violation.starts_with(what)), "{what}: {found:#?}");
    }

    fn set_output(history: &mut History, output: String) {
        history.again[0] = Some(output.clone());
        history.output = Some(output);
    }

    #[test]
    fn every_invariant_can_be_broken() {
        assert_eq!(sound().violations(), Vec::<String>::new());
        breaks("conservation", |history| history.seen[1]["request_counts"]["completed"] = 3.into());
        breaks("conservation", |history| history.seen[1]["request_counts"]["failed"] = 0.into());
        breaks("conservation", |history| drop(history.lines.remove(&3)));
        breaks("bijection", |history| set_output(history, record(1, "one", 1)));
        breaks("bijection", |history| set_output(history, record(1, "one", 1) + &record(1, "one", 1)));
        breaks("bijection", |history| set_output(history, record(1, "one", 1) + &record(9, "two", 1)));
        breaks("fidelity", |history| set_output(history, record(1, "two", 1) + &record(2, "one", 1)));
        breaks("well-formed", |history| history.again[0] = None);
        breaks("well-formed", |history| set_output(history, record(1, "one", 1) + "{\"id\": \"batch"));
        breaks("acknowledged", |history| history.seen.insert(0, batch("in_progress", 2, 0)));
        breaks("states", |history| history.seen.insert(0, batch("finalizing", 0, 0)));
        breaks("states", |history| history.seen.push(batch("in_progress", 2, 1)));
        breaks("states", |history| {
            history.seen.push(history.seen[1].clone());
            history.seen[2]["completed_at"] = 6.into();
        });
        breaks("visibility", |history| history.seen[0]["output_file_id"] = "file-1".into());
        breaks("visibility", |history| history.seen[1]["error_file_id"] = Value::Null);
        breaks("bounded work", |history| history.kills = 0);
        breaks("bounded work", |history| history.in_flight = 0);
    }
}
