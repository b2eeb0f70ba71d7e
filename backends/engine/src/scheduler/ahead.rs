//! Steps that were asked for and whose tokens are still to be read: the device computes one while what came of the one before is found out.

use std::time::Instant;

use tandem_core::{Chosen, InferenceBackend, Sampled, SlotId, StepError};

use super::Scheduler;
use crate::{FinishReason, sequence::Progress};

/// A step on its way.
#[derive(Debug)]
pub(super) struct Flight {
    chosen: Chosen,
    /// Who takes part, most urgent first, and whether a token is chosen for it. Each keeps its slot until the step has landed.
    seats: Vec<Seat>,
}

#[derive(Debug)]
pub(super) struct Seat {
    slot: SlotId,
    samples: bool,
}

impl Scheduler {
    /// Lets the step that was just asked for go on its way, its tokens chosen by the device, if that is possible; `None` where the host has to
    /// look at it first, and where the next step has to be planned with all that comes of this one.
    pub(super) fn take_off(&mut self, backend: &mut dyn InferenceBackend) -> Result<Option<Flight>, StepError> {
        if self.needs_all {
            return Ok(None);
        }
        let Some(ahead) = backend.look_ahead() else { return Ok(None) };
        let (mut seats, mut is_all) = (std::mem::take(&mut self.seats), true);
        self.choices.clear();
        for sequence in self.running.iter().filter(|sequence| sequence.planned > 0) {
            let slot = sequence.slot.expect("a running sequence has a slot");
            let samples = sequence.samples();
            let choice = samples.then(|| sequence.choice(slot)).flatten();
            is_all = sequence.score_row().is_none() && samples == choice.is_some();
            if !is_all {
                break;
            }
            self.choices.extend(choice);
            seats.push(Seat { slot, samples });
        }
        if !is_all || seats.is_empty() {
            seats.clear();
            self.seats = seats;
            return Ok(None);
        }
        let chosen = ahead.choose(&self.choices)?;
        let Self { running, kv, .. } = self;
        for sequence in running.iter_mut().filter(|sequence| sequence.planned > 0) {
            let samples = sequence.samples();
            // What comes after it on the device finds it computed.
            sequence.computed += sequence.planned;
            sequence.planned = 0;
            sequence.flights.steps += 1;
            sequence.flights.tokens += u32::from(samples);
            let slot = sequence.slot.expect("a running sequence has a slot");
            let (tokens, keys) = sequence.committed();
            kv.commit(slot, tokens, keys);
        }
        Ok(Some(Flight { chosen, seats }))
    }

    /// Waits for the tokens of the step that is on its way, if there is one, appends and tells them. What was chosen for a sequence that has
    /// ended is dropped. Whether there was one.
    pub(super) fn land(
        &mut self,
        backend: &mut dyn InferenceBackend,
        clock: &dyn Fn() -> Instant,
    ) -> Result<bool, StepError> {
        let Some(Flight { chosen, mut seats }) = self.flight.take() else { return Ok(false) };
        let ahead = backend.look_ahead().expect("the backend that chose them looks ahead for its whole life");
        self.collected.clear();
        ahead.collect(chosen, &mut self.collected)?;
        let asked = seats.iter().filter(|seat| seat.samples).count();
        assert_eq!(self.collected.len(), asked, "the backend answers every choice");
        let now = clock();
        let Self { running, kv, collected, stats, vocab, spec, .. } = self;
        let (mut seated, mut collected) = (seats.iter().peekable(), collected.drain(..));
        for sequence in running {
            let Some(seat) = seated.next_if(|seat| sequence.slot == Some(seat.slot)) else { continue };
            sequence.flights.steps -= 1;
            let token = if seat.samples { collected.next() } else { None };
            if sequence.has_ended {
                continue;
            }
            let progress = match token {
                None if sequence.is_spent() => {
                    sequence.finish(FinishReason::Length, None, String::new(), now);
                    Progress::Ended
                }
                None => Progress::Running,
                Some(token) => {
                    // One that could not be chosen stays unknown.
                    sequence.flights.tokens -= u32::from(token.is_ok());
                    stats.generated_tokens += u64::from(token.is_ok());
                    let token = token.map(|token| Sampled { token, logprobs: None });
                    match sequence.append(token, vocab, spec.max_context, now) {
                        Progress::Failed => Progress::Failed,
                        // What the token decides, or its text.
                        Progress::Running | Progress::Ended if !sequence.tell(vocab, now) => Progress::Running,
                        Progress::Running | Progress::Ended => Progress::Ended,
                    }
                }
            };
            match progress {
                Progress::Running => {
                    let slot = sequence.slot.expect("a running sequence has a slot");
                    let (tokens, keys) = sequence.committed();
                    kv.commit(slot, tokens, keys);
                    continue;
                }
                Progress::Ended => stats.finished += 1,
                Progress::Failed => stats.failed += 1,
            }
            sequence.has_ended = true;
        }
        assert!(seated.next().is_none(), "whoever takes part in a step stays until it has landed");
        seats.clear();
        self.seats = seats;
        Ok(true)
    }
}
