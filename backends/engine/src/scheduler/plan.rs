//! Who takes part in the next step, with how many tokens.

use std::{
    cmp::Ordering,
    ops::Bound::{Excluded, Included},
    time::{Duration, Instant},
};

use super::{Scheduler, end, release};
use crate::{
    EngineError, Priority,
    kv::common_prefix,
    scores::MAX_SCORED,
    sequence::{Sequence, Urgency},
};

/// Refusals in a row after which somebody is given up when nobody can give way.
const MAX_REFUSALS: u32 = 16;
/// Waiting for somebody else's prefix takes steps; below this many tokens computing them again costs less.
const WORTH_WAITING_FOR: u32 = 32;
/// Sequences that are found to wait for a prefix in one step, at most: comparing prompts costs time too.
const MAX_FOLLOWING: u32 = 64;
/// Steps in a row that batch work is left out of while interactive prompts are computed.
const MAX_HELD_BACK: u32 = 16;
/// So long after somebody asked, somebody may ask again: a step that has begun is not broken off, so those of batch work are kept short.
const MAY_ASK_AGAIN: Duration = Duration::from_secs(10);
/// Of a full step's tokens, what prompts of batch work get of such a short one.
const SHORT_STEP: u32 = 8;
/// Fewer tokens than these leave a processor's products inefficient, and take a GPU no shorter.
const MIN_SHORT_STEP: u32 = 64;

impl Scheduler {
    /// Sets each running sequence's `planned`, admitting and preempting as room allows.
    ///
    /// While a step is on its way nobody has to give way: a token is chosen that they do not have yet, and they may turn out to have ended.
    /// Whoever lacks room is left out then, and the next step is planned with all known.
    pub(super) fn plan(&mut self, now: Instant) {
        self.needs_all = false;
        self.reap();
        self.mark_stalled(now);
        self.turns.choose(&self.running, self.spec.max_context);
        let mut budget = self.step_limit;
        self.score_limit = MAX_SCORED;
        let preemptions = self.stats.preemptions;
        self.stats.following = 0;
        let keeps_short = self.may_be_asked(now);
        let mut admits = true;
        if self.held_back == MAX_HELD_BACK {
            self.plan_single_tokens(Priority::Batch, &mut budget, now);
        }
        for class in [Priority::Interactive, Priority::Batch] {
            if class == Priority::Batch && self.holds_batch_back() {
                break;
            }
            self.plan_single_tokens(class, &mut budget, now);
            if class == Priority::Batch && keeps_short {
                budget = budget.min((self.spec.max_step_tokens / SHORT_STEP).max(MIN_SHORT_STEP));
            }
            let Self { running, turns, score_limit, spec, .. } = self;
            // Whoever lacks one token was asked before.
            let takes_part = |one: &Sequence| {
                one.urgency.priority == class
                    && is_idle(one, spec.max_context)
                    && one.missing() > 1
                    && turns.includes(one)
            };
            for sequence in running.iter_mut().filter(|one| takes_part(one)) {
                allot(sequence, &mut budget, score_limit);
            }
            // Whoever had to give way waits for the next step, or it would come back at once and be thrown out again; and while somebody
            // waits for room, nobody less urgent takes it. Whoever has a slot goes on all the same: only so is there room again.
            admits = admits && (self.stats.preemptions != preemptions || self.admit(class, &mut budget, now));
        }
        if !self.spec.mixes_phases {
            self.separate_phases();
        }
    }

    /// Whether batch work is left out of a step, because an interactive prompt is computed in it: somebody waits for its first token, and
    /// has waited for the step before. Not for ever, where one prompt follows the other.
    fn holds_batch_back(&mut self) -> bool {
        let is_awaited = |one: &Sequence| one.urgency.priority == Priority::Interactive && one.planned > 1;
        let holds = self.held_back < MAX_HELD_BACK && self.running.iter().any(|one| is_awaited(one));
        self.held_back = if holds { self.held_back + 1 } else { 0 };
        holds
    }

    /// Whether somebody waits for an answer, or did a moment ago.
    fn may_be_asked(&mut self, now: Instant) -> bool {
        let is_interactive = |urgency: &Urgency| urgency.priority == Priority::Interactive;
        // Both are in order of urgency.
        let running = self.running.first().map(|sequence| &sequence.urgency);
        if running.is_some_and(is_interactive) || self.waiting.keys().next().is_some_and(is_interactive) {
            self.asked_at = Some(now);
        }
        self.asked_at.is_some_and(|asked| now.saturating_duration_since(asked) < MAY_ASK_AGAIN)
    }

    /// Finds out whose reader has fallen behind; those pause, and are given up in the end.
    fn mark_stalled(&mut self, now: Instant) {
        let mut stalled = 0;
        let mut given_up = false;
        let timeout = self.options.stall_timeout;
        for sequence in &mut self.running {
            sequence.planned = 0;
            if !sequence.has_ended && sequence.is_stalled(now) {
                stalled += 1;
                given_up |= is_given_up(sequence, now, timeout);
            }
        }
        if self.some_pause_without_a_slot {
            let before = stalled;
            for sequence in self.waiting.values_mut().filter(|sequence| sequence.stalled_since.is_some()) {
                stalled += u32::from(sequence.is_stalled(now));
                given_up |= is_given_up(sequence, now, timeout);
            }
            self.some_pause_without_a_slot = stalled > before;
        }
        self.stats.stalled = stalled;
        if given_up {
            self.give_up_stalled(now);
        }
    }

    fn give_up_stalled(&mut self, now: Instant) {
        let Self { running, waiting, kv, kv_ops, stats, options, .. } = self;
        let timeout = options.stall_timeout;
        let mut stays = |sequence: &mut Sequence| {
            if !is_given_up(sequence, now, timeout) {
                return true;
            }
            sequence.fail(EngineError::Stalled);
            stats.failed += 1;
            stats.stalled -= 1;
            end(kv.as_mut(), sequence, kv_ops)
        };
        running.retain_mut(|one| stays(one));
        waiting.retain(|_, one| stays(one));
    }

    /// Sequences of a class that lack one token come first: each costs little, and somebody may be reading along.
    fn plan_single_tokens(&mut self, class: Priority, budget: &mut u32, now: Instant) {
        let mut at = 0;
        while at < self.running.len() && *budget > 0 {
            let sequence = &self.running[at];
            let takes_part = sequence.urgency.priority == class
                && is_idle(sequence, self.spec.max_context)
                && self.turns.includes(sequence);
            if !takes_part || sequence.missing() > 1 {
                at += 1;
            } else if self.make_room(&mut at, now) {
                self.running[at].planned = 1;
                *budget -= 1;
                at += 1;
            } else if self.flight.is_some() {
                at += 1;
            }
        }
    }

    /// Room for the last token of the sequence at `at`, taken from others if it must be. False when the sequence itself had to give way, or
    /// has to wait for a step in which somebody can.
    fn make_room(&mut self, at: &mut usize, now: Instant) -> bool {
        loop {
            let sequence = &self.running[*at];
            let slot = sequence.slot.expect("a running sequence has a slot");
            if self.kv.grow(slot, sequence.len(), &mut self.kv_ops) {
                return true;
            }
            if self.flight.is_some() {
                self.needs_all = true;
                return false;
            }
            let victim = self.victim(*at).expect("a sequence that lacks room may itself give way");
            self.preempt(victim, now);
            match victim.cmp(at) {
                Ordering::Less => *at -= 1,
                Ordering::Equal => return false,
                Ordering::Greater => {}
            }
        }
    }

    /// Who gives way: somebody who pauses, or else the least urgent, `from` being the most urgent that may be chosen. Nobody who gave way
    /// often already: those have all the room that they will need.
    fn victim(&self, from: usize) -> Option<usize> {
        let may = |sequence: &Sequence| !sequence.is_protected();
        let paused = self.running.iter().rposition(|sequence| sequence.stalled_since.is_some() && may(sequence));
        paused.or_else(|| self.running[from..].iter().rposition(|sequence| may(sequence)).map(|at| from + at))
    }

    /// Gives slots to those of a class who wait, most urgent first. Nobody is passed over for want of room, so that nobody starves: false
    /// when somebody has to wait for it.
    fn admit(&mut self, class: Priority, budget: &mut u32, now: Instant) -> bool {
        let (first, last) = Urgency::bounds(class);
        let mut from = Included(first);
        while *budget > 0 {
            let Some((&urgency, sequence)) = self.waiting.range_mut((from, Included(last))).next() else { return true };
            if sequence.stalled_since.is_some() {
                from = Excluded(urgency);
                continue;
            }
            if self.follows(urgency) {
                self.stats.following += 1;
                if self.stats.following == MAX_FOLLOWING {
                    return true;
                }
                from = Excluded(urgency);
                continue;
            }
            let Some(sequence) = self.waiting.get_mut(&urgency) else { return true };
            let Some(admitted) = self.kv.admit(sequence.candidate(self.spec.max_context), &mut self.kv_ops) else {
                // Whoever pauses gives way to somebody who is waiting, and batch work to whoever is more than that.
                let gives_way = |running: &Sequence| {
                    let outranked = running.urgency.priority > urgency.priority;
                    (outranked || running.stalled_since.is_some()) && !running.is_protected()
                };
                let Some(victim) = self.running.iter().rposition(|running| gives_way(running)) else { return false };
                if self.flight.is_some() {
                    self.needs_all = true;
                    return false;
                }
                *budget += self.running[victim].planned;
                self.preempt(victim, now);
                continue;
            };
            let Some(mut sequence) = self.waiting.remove(&urgency) else { return true };
            if sequence.preemptions == 0 {
                self.stats.prompt_tokens += sequence.tokens.len() as u64;
                self.stats.cached_tokens += u64::from(admitted.cached);
            }
            sequence.admit(admitted.slot, admitted.cached, now);
            if !self.turns.includes(&sequence)
                && !self.running.iter().any(|one| one.planned > 0 || is_idle(one, self.spec.max_context))
            {
                // Nobody else could take part in the step.
                self.turns.begin(sequence.adapter());
            }
            if self.turns.includes(&sequence) {
                allot(&mut sequence, budget, &mut self.score_limit);
            }
            let place = self.running.partition_point(|other| other.urgency < sequence.urgency);
            self.running.insert(place, sequence);
        }
        true
    }

    /// Whether a waiting sequence does better to wait until a running one has computed the prefix that both have. Nobody waits for work
    /// of a lower class, which may itself have to wait long.
    fn follows(&mut self, urgency: Urgency) -> bool {
        let Some(sequence) = self.waiting.get_mut(&urgency) else { return false };
        let most = sequence.tokens.len() - 1;
        let leads = |leader: &Sequence| {
            if leader.has_ended
                || leader.missing() <= 1
                || leader.urgency.priority > urgency.priority
                || leader.salt() != sequence.salt()
            {
                return None;
            }
            let common = common_prefix(&leader.tokens, &sequence.tokens).min(most);
            let shareable = self.kv.shareable(common as u32);
            (shareable > leader.computed).then_some(shareable)
        };
        let Some(coming) = self.running.iter().filter_map(|leader| leads(leader)).max() else { return false };
        let cached = self.kv.cached(sequence.candidate(self.spec.max_context));
        coming >= cached + WORTH_WAITING_FOR
    }

    fn preempt(&mut self, at: usize, now: Instant) {
        let mut sequence = self.running.remove(at);
        if let Some(slot) = sequence.preempt() {
            self.kv.release(slot, &mut self.kv_ops);
        }
        self.stats.preemptions += 1;
        if sequence.tell(&self.vocab, now) {
            self.stats.finished += 1;
        } else {
            self.some_pause_without_a_slot |= sequence.stalled_since.is_some();
            self.waiting.insert(sequence.urgency, sequence);
        }
    }

    /// For backends whose steps hold either chunks or single tokens: the two take turns.
    fn separate_phases(&mut self) {
        let is_chunk = |sequence: &Sequence| sequence.planned > 1;
        let chunks = self.running.iter().any(|sequence| is_chunk(sequence));
        let singles = self.running.iter().any(|sequence| sequence.planned == 1);
        let was_prefill = self.turns.was_prefill();
        let prefill = chunks && !(singles && *was_prefill);
        *was_prefill = prefill;
        for sequence in self.running.iter_mut().filter(|sequence| is_chunk(sequence) != prefill) {
            sequence.planned = 0;
        }
    }

    /// The backend could not hold a step of `tokens` that was thought to fit: forget what is only cached, and come back with half of them;
    /// when that does not help, somebody gives way.
    pub(super) fn make_smaller(&mut self, tokens: u32, now: Instant) {
        self.refusals += 1;
        self.stats.refusals += 1;
        let evicted = self.kv.evict_all(&mut self.kv_ops);
        self.step_limit = (tokens / 2).max(1);
        if tokens > 1 || evicted || self.running.is_empty() {
            return;
        }
        if self.running.len() > 1
            && let Some(victim) = self.victim(0)
        {
            self.preempt(victim, now);
        } else if self.refusals > MAX_REFUSALS
            && let Some(mut sequence) = self.running.pop()
        {
            release(self.kv.as_mut(), &mut sequence, &mut self.kv_ops);
            sequence.fail(EngineError::KvExhausted);
            self.stats.failed += 1;
            self.refusals = 0;
        }
    }
}

/// As many tokens as the step has room for; fewer of those that are scored, whose rows take more of it.
fn allot(sequence: &mut Sequence, budget: &mut u32, score_limit: &mut u32) {
    sequence.planned = sequence.missing().min(*budget);
    if sequence.is_scoring() {
        sequence.planned = sequence.planned.min(*score_limit);
        *score_limit -= sequence.planned;
    }
    *budget -= sequence.planned;
}

/// Whether the sequence could take part in the step and does not yet.
fn is_idle(sequence: &Sequence, max_context: u32) -> bool {
    sequence.planned == 0 && sequence.stalled_since.is_none() && sequence.goes_on(max_context)
}

fn is_given_up(sequence: &Sequence, now: Instant, timeout: Duration) -> bool {
    !sequence.has_ended && sequence.stalled_since.is_some_and(|since| now.saturating_duration_since(since) >= timeout)
}
