//! The scheduler's state as text: for people who look into a running server, and for tests that review plans.

use std::fmt::{self, Write};

#[cfg(test)]
use std::collections::BTreeMap;

#[cfg(test)]
use tandem_core::AdapterId;

use super::Scheduler;
use crate::{Priority, sequence::Sequence};

/// Waiting sequences that are told one by one.
const MAX_LISTED: usize = 16;

#[cfg(test)]
impl Scheduler {
    /// How often one of the sequences that are here lost its slot, at most.
    pub(crate) fn most_preemptions(&self) -> u32 {
        let all = self.running.iter().chain(self.waiting.values());
        all.map(|sequence| sequence.preemptions).max().unwrap_or(0)
    }

    /// The sequences that could take part in a step if it were their turn: when they arrived, and with which adapter.
    pub(crate) fn ready(&self) -> BTreeMap<u64, Option<AdapterId>> {
        let may = |one: &Sequence| one.stalled_since.is_none() && one.goes_on(self.spec.max_context);
        let ready = self.running.iter().filter(|sequence| may(sequence));
        ready.map(|sequence| (sequence.urgency.arrival, sequence.adapter())).collect()
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = self.stats();
        writeln!(
            f,
            "step {}: {} running, {} waiting, {} of {} tokens of KV in use, at most {} tokens in a step",
            stats.steps, stats.running, stats.waiting, stats.kv_used, stats.kv_capacity, self.step_limit
        )?;
        for op in &self.kv_ops {
            writeln!(f, "  {op:?}")?;
        }
        for sequence in &self.running {
            writeln!(f, "  {}", running(sequence, &self.spec.adapters)?)?;
        }
        for sequence in self.waiting.values().take(MAX_LISTED) {
            writeln!(f, "  {}", waiting(sequence, &self.spec.adapters)?)?;
        }
        if self.waiting.len() > MAX_LISTED {
            writeln!(f, "  and {} more", self.waiting.len() - MAX_LISTED)?;
        }
        Ok(())
    }
}

fn running(sequence: &Sequence, adapters: &[String]) -> Result<String, fmt::Error> {
    let mut line = name(sequence, adapters);
    let slot = sequence.slot.map_or(u32::MAX, |slot| slot.0);
    write!(line, " in slot {slot}: {} of {} tokens computed", sequence.computed, sequence.tokens.len())?;
    match sequence.planned {
        0 => {}
        planned if sequence.samples() => write!(line, ", {planned} planned, then one sampled")?,
        planned => write!(line, ", {planned} planned")?,
    }
    if sequence.flights.steps > 0 {
        line.push_str(", on its way");
    }
    history(&mut line, sequence)?;
    Ok(line)
}

fn waiting(sequence: &Sequence, adapters: &[String]) -> Result<String, fmt::Error> {
    let mut line = name(sequence, adapters);
    write!(line, " waits with {} tokens", sequence.tokens.len())?;
    history(&mut line, sequence)?;
    Ok(line)
}

fn name(sequence: &Sequence, adapters: &[String]) -> String {
    let class = match sequence.urgency.priority {
        Priority::Interactive => "interactive",
        Priority::Batch => "batch",
    };
    let adapter = sequence.adapter().and_then(|adapter| adapters.get(adapter.index()));
    let with = adapter.map_or_else(String::new, |name| format!(", adapter {name}"));
    format!("#{} ({class}{with})", sequence.urgency.arrival)
}

fn history(line: &mut String, sequence: &Sequence) -> fmt::Result {
    if sequence.preemptions > 0 {
        write!(line, ", preemptions: {}", sequence.preemptions)?;
    }
    if sequence.stalled_since.is_some() {
        line.push_str(", paused until its reader catches up");
    }
    Ok(())
}
