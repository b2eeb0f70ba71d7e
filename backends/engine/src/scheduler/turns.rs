//! Whose turn it is. A step computes with one adapter, so sequences with different ones cannot share it: they take turns.

use tandem_core::AdapterId;

use crate::sequence::Sequence;

/// Steps of one turn while others wait. Changing the adapter costs a backend about as much as a small step, so not each step is a turn.
pub(crate) const TURN_STEPS: u32 = 4;

/// The adapter of the step being planned, and who had which turn before.
#[derive(Debug)]
pub(super) struct Turns {
    adapter: Option<AdapterId>,
    /// Steps and tokens of this turn that were carried out.
    steps: u32,
    tokens: u32,
    /// Tokens after which a turn is over, however few steps they were: prompts make long steps.
    max_tokens: u32,
    carried_out: u64,
    /// Sequences without an adapter first, then those of each adapter.
    groups: Vec<Group>,
}

#[derive(Clone, Debug, Default)]
struct Group {
    /// The last step that it had.
    served_at: u64,
    /// Whether that was one of chunks, where those and single tokens cannot share a step.
    was_prefill: bool,
}

impl Turns {
    pub(super) fn new(adapters: usize, max_tokens: u32) -> Self {
        let groups = vec![Group::default(); adapters + 1];
        Self { adapter: None, steps: 0, tokens: 0, max_tokens, carried_out: 0, groups }
    }

    /// What the step is computed with.
    pub(super) fn adapter(&self) -> Option<AdapterId> {
        self.adapter
    }

    /// Whether it is the sequence's turn.
    pub(super) fn includes(&self, sequence: &Sequence) -> bool {
        // Where there are no adapters the sequences need not be looked at.
        self.groups.len() == 1 || sequence.adapter() == self.adapter
    }

    /// Decides whose turn the next step is. When a turn is over, it is that of whoever waits longest, so nobody waits for more than one turn
    /// of each of the others. `running` are most urgent first.
    pub(super) fn choose(&mut self, running: &[Box<Sequence>], max_context: u32) {
        if self.groups.len() == 1 {
            return;
        }
        let adapter = self.adapter;
        let ready = |own: bool| {
            let may = running.iter().filter(|one| one.stalled_since.is_none() && one.goes_on(max_context));
            may.filter(move |sequence| (sequence.adapter() == adapter) == own)
        };
        let Some(most_urgent_other) = ready(false).next() else { return };
        let goes_on = ready(true).next().is_some_and(|own| {
            // Batch work leaves the turn to whoever is more urgent at once.
            let outranked = own.urgency.priority > most_urgent_other.urgency.priority;
            let steps = if outranked { 1 } else { TURN_STEPS };
            self.steps < steps && self.tokens < self.max_tokens
        });
        if goes_on {
            return;
        }
        let longest = ready(false).min_by_key(|sequence| self.groups[group(sequence.adapter())].served_at);
        if let Some(next) = longest {
            self.begin(next.adapter());
        }
    }

    /// Makes it this adapter's turn.
    pub(super) fn begin(&mut self, adapter: Option<AdapterId>) {
        self.adapter = adapter;
        (self.steps, self.tokens) = (0, 0);
    }

    /// Counts a step that was carried out.
    pub(super) fn count(&mut self, tokens: u64) {
        self.steps = self.steps.saturating_add(1);
        self.tokens = self.tokens.saturating_add(u32::try_from(tokens).unwrap_or(u32::MAX));
        self.carried_out += 1;
        let served_at = self.carried_out;
        self.own().served_at = served_at;
    }

    /// Whether the last step of whoever has the turn was one of chunks. Each has to remember its own, or one would have only chunks and the
    /// other only single tokens.
    pub(super) fn was_prefill(&mut self) -> &mut bool {
        &mut self.own().was_prefill
    }

    fn own(&mut self) -> &mut Group {
        &mut self.groups[group(self.adapter)]
    }
}

fn group(adapter: Option<AdapterId>) -> usize {
    adapter.map_or(0, |adapter| adapter.index() + 1)
}
