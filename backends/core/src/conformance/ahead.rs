//! What is asked of a backend that looks ahead: the same tokens, whenever they are read.

use super::Rig;
use crate::{
    AheadChunk, AheadStep, Chosen, Chunk, Input, KvLayout, LookAhead, SampleRow, SamplingParams, SlotId, Step, TokenId,
    sampling::uniform,
};

/// Steps after the prompts.
const STEPS: u32 = 7;

/// Two sequences, the second of which draws its tokens.
struct Pair {
    prompts: [Vec<TokenId>; 2],
    params: [SamplingParams; 2],
}

impl Pair {
    /// What is asked after step `step`.
    fn rows(&self, step: u32) -> [SampleRow<'_>; 2] {
        [0, 1].map(|slot| SampleRow {
            slot: SlotId(slot as u32),
            params: &self.params[slot],
            u: uniform(3, step),
            prompt: &[],
            output: &[],
            banned: &[],
            allowed: None,
            logprobs: None,
        })
    }

    fn start(&self, slot: usize, step: u32) -> u32 {
        match step {
            0 => 0,
            later => self.prompts[slot].len() as u32 + later - 1,
        }
    }
}

impl Rig<'_> {
    pub(super) fn tokens_are_gone_on_from_before_they_are_read(&mut self) {
        if self.backend.look_ahead().is_none() {
            return;
        }
        assert!(matches!(self.backend.spec().kv, KvLayout::Blocks { .. }), "only by block can anybody look ahead");
        let drawn = SamplingParams { temperature: 0.8, top_k: 40, top_p: 0.9, ..SamplingParams::default() };
        let pair =
            Pair { prompts: [self.prompt(16, 20), self.prompt(17, 9)], params: [SamplingParams::greedy(), drawn] };
        let expected = self.read_at_once(&pair);
        assert_eq!(self.read_later(&pair), expected, "tokens that were gone on from before they were read");
    }

    fn read_at_once(&mut self, pair: &Pair) -> Vec<[TokenId; 2]> {
        let mut all: Vec<[TokenId; 2]> = Vec::new();
        for step in 0..=STEPS {
            let last = all.last().copied().unwrap_or_default();
            let chunks = [0, 1].map(|slot| Chunk {
                slot: SlotId(slot as u32),
                start: pair.start(slot, step),
                tokens: if step == 0 { &pair.prompts[slot] } else { std::slice::from_ref(&last[slot]) },
                block_table: &self.tables[slot],
                sample: true,
                score: false,
            });
            // Also such a step may be asked for ahead.
            let ahead = chunks.map(AheadChunk::from);
            let done = match self.backend.look_ahead().filter(|_| step % 2 == 1) {
                None => self.backend.forward(&Step { kv_ops: &[], chunks: &chunks, adapter: None }),
                Some(backend) => backend.forward_ahead(&AheadStep { kv_ops: &[], chunks: &ahead, adapter: None }),
            };
            done.expect("a step that fits");
            all.push(self.sample_pair(pair, step));
        }
        all
    }

    fn sample_pair(&mut self, pair: &Pair, step: u32) -> [TokenId; 2] {
        let mut sampled = Vec::new();
        self.backend.sample(&pair.rows(step), &mut sampled).expect("sampling after a good pass succeeds");
        let tokens: Vec<_> = sampled.into_iter().map(|one| one.expect("the model's logits are finite").token).collect();
        tokens.try_into().expect("one result for each row")
    }

    /// Each step is asked for before the tokens of the one before it are read; the last one is sampled as any other.
    fn read_later(&mut self, pair: &Pair) -> Vec<[TokenId; 2]> {
        let mut all = Vec::new();
        let mut open: Option<Chosen> = None;
        for step in 0..=STEPS {
            // Once both were read, and one goes on from what is known all the same.
            let read = (step == 4).then(|| collect(self.ahead(), open.take()));
            let known = read.map(|tokens| tokens[1]);
            all.extend(read);
            let chunks = [0, 1].map(|slot| AheadChunk {
                slot: SlotId(slot as u32),
                start: pair.start(slot, step),
                tokens: match &known {
                    _ if step == 0 => Input::Known(&pair.prompts[slot]),
                    Some(token) if slot == 1 => Input::Known(std::slice::from_ref(token)),
                    _ => Input::Chosen,
                },
                block_table: &self.tables[slot],
                sample: true,
                score: false,
            });
            let step_ahead = AheadStep { kv_ops: &[], chunks: &chunks, adapter: None };
            let backend = self.backend.look_ahead().expect("the same answer for the backend's whole life");
            backend.forward_ahead(&step_ahead).expect("a step that fits");
            let before = open.take();
            if step < STEPS {
                let choices = pair.rows(step).map(|row| row.choice().expect("a row that asks for no more"));
                open = Some(backend.choose(&choices).expect("choosing after a good pass succeeds"));
            }
            all.extend(before.map(|before| collect(backend, Some(before))));
        }
        all.push(self.sample_pair(pair, STEPS));
        all
    }

    fn ahead(&mut self) -> &mut dyn LookAhead {
        self.backend.look_ahead().expect("the same answer for the backend's whole life")
    }
}

fn collect(backend: &mut dyn LookAhead, chosen: Option<Chosen>) -> [TokenId; 2] {
    let mut tokens = Vec::new();
    backend.collect(chosen.expect("tokens were chosen"), &mut tokens).expect("collecting what was chosen succeeds");
    let tokens: Vec<_> = tokens.into_iter().map(|token| token.expect("the model's logits are finite")).collect();
    tokens.try_into().expect("one token for each choice")
}
