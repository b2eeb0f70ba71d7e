//! Checks that every backend must pass. A backend's tests call [`check`] on a small model; each failure panics with what was expected.
//!
//! The suite knows nothing of the model but its vocabulary size: it compares the backend with itself, run in other ways that must make no
//! difference. Greedy tokens are compared, and log-probabilities within `tolerance`, since kernels may round differently for other shapes.

mod ahead;
mod embedding;

pub use embedding::check_embedder;

use crate::{
    AdapterId, BackendLoader, BlockId, Chunk, InferenceBackend, KvLayout, KvOp, LoadError, SampleRow, Sampled,
    SamplingParams, ScoreRow, SlotId, Step, StepError, TokenId, TokenLogprobs, TokenMask,
};

/// Runs the whole suite on one loaded model that generates. The model must hold two sequences of 64 tokens at least.
///
/// # Errors
/// When the model cannot be loaded.
///
/// # Panics
/// When the backend breaks the contract.
pub fn check(loader: Box<dyn BackendLoader>, tolerance: f32) -> Result<(), LoadError> {
    loader.with_backend(&mut |loaded| {
        let vocab = loaded.vocab.len();
        let mut rig = Rig::new(loaded.backend.generator().expect("the model is a generator"), tolerance);
        assert!(vocab <= rig.backend.spec().vocab_size as usize, "every token of the vocabulary has a logit");
        rig.chunking_makes_no_difference();
        rig.batch_mates_make_no_difference();
        rig.a_released_slot_is_as_new();
        rig.a_truncated_slot_goes_on_from_there();
        rig.a_shared_prefix_is_as_good_as_a_computed_one();
        rig.rows_come_in_order_with_their_logprobs();
        rig.a_row_with_bans_avoids_them();
        rig.a_row_with_a_mask_keeps_to_it();
        rig.scores_are_those_of_rows_computed_one_by_one();
        rig.an_adapter_is_of_its_own_steps();
        rig.tokens_are_gone_on_from_before_they_are_read();
    })
}

struct Rig<'a> {
    backend: &'a mut dyn InferenceBackend,
    tolerance: f32,
    tables: Vec<Vec<BlockId>>,
    /// What the next steps are computed with.
    adapter: Option<AdapterId>,
}

/// One chunk of the next step: slot, position, tokens, whether to sample.
type Piece<'a> = (u32, u32, &'a [TokenId], bool);

impl<'a> Rig<'a> {
    fn new(backend: &'a mut dyn InferenceBackend, tolerance: f32) -> Self {
        let spec = backend.spec();
        assert!(spec.max_context >= 64, "the suite needs 64 tokens of context");
        assert!(spec.max_sequences >= 2, "the suite needs two slots");
        assert!(spec.max_step_tokens >= 32, "the suite needs steps of 32 tokens");
        let tables = match spec.kv {
            KvLayout::Slots { .. } => vec![Vec::new(); 2],
            KvLayout::Blocks { count, block_size } => {
                let each = 64u32.div_ceil(block_size);
                assert!(count >= 2 * each, "the suite needs {} blocks", 2 * each);
                // Interleaved and backwards, so that nothing depends on blocks being neighbours.
                (0..2).map(|slot| (0..each).map(|at| BlockId((each - 1 - at) * 2 + slot)).collect()).collect()
            }
        };
        Self { backend, tolerance, tables, adapter: None }
    }

    fn prompt(&self, salt: u32, len: u32) -> Vec<TokenId> {
        let vocab = self.backend.spec().vocab_size.min(256);
        (0..len).map(|at| (salt.wrapping_mul(31).wrapping_add(at.wrapping_mul(7)) + at * at) % vocab).collect()
    }

    fn forward(&mut self, ops: &[KvOp], pieces: &[Piece<'_>]) {
        let chunks: Vec<Chunk<'_>> = pieces
            .iter()
            .map(|&(slot, start, tokens, sample)| Chunk {
                slot: SlotId(slot),
                start,
                tokens,
                block_table: &self.tables[slot as usize],
                sample,
                score: false,
            })
            .collect();
        match self.backend.forward(&Step { kv_ops: ops, chunks: &chunks, adapter: self.adapter }) {
            Ok(()) => {}
            Err(StepError::KvFull) => panic!("a step that fits was refused as KvFull"),
            Err(StepError::Device(error) | StepError::Lost(error)) => panic!("the device failed: {error}"),
        }
    }

    /// Samples greedily one token for each slot in `slots`, with the five likeliest.
    fn sample(&mut self, slots: &[u32], banned: &[TokenId]) -> Vec<Sampled> {
        self.sample_within(slots, banned, None)
    }

    fn sample_within(&mut self, slots: &[u32], banned: &[TokenId], allowed: Option<&TokenMask>) -> Vec<Sampled> {
        let params = SamplingParams::greedy();
        let rows: Vec<_> = slots
            .iter()
            .map(|&slot| SampleRow {
                slot: SlotId(slot),
                params: &params,
                u: 0.0,
                prompt: &[],
                output: &[],
                banned,
                allowed,
                logprobs: Some(5),
            })
            .collect();
        let mut out = Vec::new();
        self.backend.sample(&rows, &mut out).expect("sampling after a good pass succeeds");
        assert_eq!(out.len(), rows.len(), "one result for each row");
        out.into_iter().map(|row| row.expect("the model's logits are finite")).collect()
    }

    fn clear(&mut self) {
        let slots = matches!(self.backend.spec().kv, KvLayout::Slots { .. });
        let ops: Vec<_> = (0..2).map(|slot| KvOp::Truncate { slot: SlotId(slot), from: 0 }).collect();
        self.forward(if slots { &ops } else { &[] }, &[]);
    }

    /// Prefills `prompt` in one chunk and decodes eight tokens, alone.
    fn reference(&mut self, prompt: &[TokenId]) -> Vec<Sampled> {
        self.clear();
        self.forward(&[], &[(0, 0, prompt, true)]);
        self.decode(prompt.len() as u32, 8)
    }

    /// Takes the token of the last pass on slot 0 and decodes on until there are `count`.
    fn decode(&mut self, mut position: u32, count: usize) -> Vec<Sampled> {
        let mut all = self.sample(&[0], &[]);
        while all.len() < count {
            let token = all[all.len() - 1].token;
            self.forward(&[], &[(0, position, &[token], true)]);
            all.extend(self.sample(&[0], &[]));
            position += 1;
        }
        all
    }

    fn assert_same(&self, what: &str, expected: &[Sampled], got: &[Sampled]) {
        let tokens = |all: &[Sampled]| all.iter().map(|sampled| sampled.token).collect::<Vec<_>>();
        assert_eq!(tokens(expected), tokens(got), "{what}: greedy tokens");
        for (a, b) in expected.iter().zip(got) {
            let (a, b) = (logprob(a), logprob(b));
            assert!((a - b).abs() <= self.tolerance, "{what}: log-probability {a} became {b}");
        }
    }

    fn chunking_makes_no_difference(&mut self) {
        let prompt = self.prompt(1, 29);
        let expected = self.reference(&prompt);
        for cuts in [vec![28], vec![1], vec![7, 8, 24], (1..29).collect()] {
            self.clear();
            let mut start = 0;
            for end in cuts.into_iter().chain([29]) {
                self.forward(&[], &[(0, start as u32, &prompt[start..end], end == 29)]);
                start = end;
            }
            let got = self.decode(29, 8);
            self.assert_same("a prompt in chunks", &expected, &got);
        }
    }

    fn batch_mates_make_no_difference(&mut self) {
        let (ours, theirs) = (self.prompt(2, 13), self.prompt(3, 19));
        let expected = self.reference(&ours);
        self.clear();
        let mixes = self.backend.spec().mixes_phases;
        self.forward(&[], &[(1, 0, &theirs[..10], false)]);
        if mixes {
            self.forward(&[], &[(1, 10, &theirs[10..], true), (0, 0, &ours, true)]);
        } else {
            self.forward(&[], &[(0, 0, &ours, true)]);
        }
        let slots: &[u32] = if mixes { &[1, 0] } else { &[0] };
        let mut got = self.sample(slots, &[]).split_off(slots.len() - 1);
        let mut mate = theirs[10];
        for at in 0..7 {
            let (token, place) = (got[got.len() - 1].token, if mixes { 19 } else { 10 } + at);
            self.forward(&[], &[(0, 13 + at, &[token], true), (1, place, &[mate], true)]);
            let both = self.sample(&[0, 1], &[]);
            mate = both[1].token;
            got.push(both[0].clone());
        }
        self.assert_same("a batch-mate", &expected, &got);
    }

    fn a_released_slot_is_as_new(&mut self) {
        let (first, second) = (self.prompt(4, 31), self.prompt(5, 9));
        let expected = self.reference(&second);
        self.reference(&first);
        let got = self.reference(&second);
        self.assert_same("a slot used before", &expected, &got);
    }

    fn a_truncated_slot_goes_on_from_there(&mut self) {
        let prompt = self.prompt(6, 24);
        let expected = self.reference(&prompt);
        let ops: &[KvOp] = match self.backend.spec().kv {
            KvLayout::Slots { partial_reuse: false, .. } => return,
            KvLayout::Slots { .. } => &[KvOp::Truncate { slot: SlotId(0), from: 11 }],
            KvLayout::Blocks { .. } => &[],
        };
        self.forward(ops, &[(0, 11, &prompt[11..], true)]);
        let got = self.decode(24, 8);
        self.assert_same("a slot cut and continued", &expected, &got);
    }

    fn a_shared_prefix_is_as_good_as_a_computed_one(&mut self) {
        let prompt = self.prompt(7, 40);
        let expected = self.reference(&prompt);
        self.clear();
        let mut ops = Vec::new();
        let (shared, kept) = match self.backend.spec().kv {
            KvLayout::Slots { partial_reuse: false, .. } => return,
            KvLayout::Slots { .. } => {
                ops.push(KvOp::CopyPrefix { src: SlotId(1), dst: SlotId(0), len: 17 });
                (17, self.tables[0].clone())
            }
            KvLayout::Blocks { block_size, .. } => {
                let kept = self.tables[0].clone();
                let whole = (39 / block_size).min(1);
                let shared = self.tables[1][..whole as usize].to_vec();
                self.tables[0][..whole as usize].copy_from_slice(&shared);
                (whole * block_size, kept)
            }
        };
        self.forward(&[], &[(1, 0, &prompt[..shared.max(1) as usize], false)]);
        self.forward(&ops, &[(0, shared, &prompt[shared as usize..], true)]);
        let got = self.decode(40, 8);
        self.tables[0] = kept;
        self.assert_same("a shared prefix", &expected, &got);
    }

    fn rows_come_in_order_with_their_logprobs(&mut self) {
        let (a, b) = (self.prompt(8, 12), self.prompt(9, 12));
        let (first_a, first_b) = (self.reference(&a)[0].clone(), self.reference(&b)[0].clone());
        self.clear();
        if self.backend.spec().mixes_phases {
            self.forward(&[], &[(1, 0, &b, true), (0, 0, &a, true)]);
            let both = self.sample(&[1, 0], &[]);
            self.assert_same("two rows, the first", &[first_b], &both[..1]);
            self.assert_same("two rows, the second", std::slice::from_ref(&first_a), &both[1..]);
        }
        let top = &first_a.logprobs.as_ref().expect("log-probabilities were asked for").top;
        assert_eq!(top.len(), 5, "five likeliest tokens");
        assert_eq!(top[0].0, first_a.token, "greedy takes the likeliest");
        assert!(top.windows(2).all(|pair| pair[0].1 >= pair[1].1), "best first");
        assert!((logprob(&first_a) - top[0].1).abs() <= 1e-5, "one distribution for both figures");
        assert!(top.iter().map(|(_, logprob)| logprob.exp()).sum::<f32>() <= 1.0 + 1e-4, "probabilities");
    }

    fn scores_are_those_of_rows_computed_one_by_one(&mut self) {
        let (a, b) = (self.prompt(14, 12), self.prompt(15, 7));
        self.clear();
        let vocab_size = self.backend.spec().vocab_size;
        let mut expected = Vec::new();
        for at in 0..a.len() - 1 {
            self.forward(&[], &[(0, at as u32, &a[at..=at], true)]);
            let next = TokenMask::of(vocab_size, [a[at + 1]]);
            expected.extend(self.sample_within(&[0], &[], Some(&next)));
        }
        self.clear();
        let mut scored = Vec::new();
        for range in [0..5, 5..6, 6..12] {
            let [table, other] = [0, 1].map(|slot: usize| self.tables[slot].clone());
            let own = Chunk {
                slot: SlotId(0),
                start: range.start as u32,
                tokens: &a[range.clone()],
                block_table: &table,
                sample: range.end == a.len(),
                score: true,
            };
            let beside =
                Chunk { slot: SlotId(1), start: 0, tokens: &b, block_table: &other, sample: false, score: false };
            let with = self.backend.spec().mixes_phases && range.start == 0;
            let chunks = if with { vec![beside, own] } else { vec![own] };
            let step = Step { kv_ops: &[], chunks: &chunks, adapter: None };
            self.backend.forward(&step).expect("a step that fits");
            let targets = &a[range.start + 1..(range.end + 1).min(a.len())];
            let row = ScoreRow { slot: SlotId(0), targets, top: 5, reported: &[] };
            let before = scored.len();
            self.backend.score(&[row], &mut scored).expect("scoring after a good pass succeeds");
            assert_eq!(scored.len() - before, targets.len(), "one result for each target");
            if range.end == a.len() {
                let last = self.sample(&[0], &[]);
                let plain = self.reference(&a)[0].clone();
                self.assert_same("the row behind the scored ones", &[plain], &last);
            }
        }
        let scored: Vec<_> = scored.into_iter().map(|row: Result<TokenLogprobs, _>| row.expect("finite")).collect();
        assert_eq!(scored.len(), expected.len());
        for (at, (scored, expected)) in std::iter::zip(&scored, &expected).enumerate() {
            assert!(
                (scored.logprob - logprob(expected)).abs() <= self.tolerance,
                "token {}: {} scored, {} computed alone",
                at + 1,
                scored.logprob,
                logprob(expected)
            );
            assert_eq!(scored.top.len(), 5, "five likeliest tokens");
        }
    }

    fn a_row_with_a_mask_keeps_to_it(&mut self) {
        let prompt = self.prompt(11, 12);
        let first = self.reference(&prompt)[0].clone();
        let top = &first.logprobs.as_ref().expect("log-probabilities were asked for").top;
        let mask = TokenMask::of(self.backend.spec().vocab_size, [top[4].0, top[2].0]);
        self.clear();
        self.forward(&[], &[(0, 0, &prompt, true)]);
        let masked = self.sample_within(&[0], &[], Some(&mask))[0].clone();
        assert_eq!(masked.token, top[2].0, "of the tokens that are allowed, the likeliest is taken");
        let expected = top[2].1;
        assert!((logprob(&masked) - expected).abs() <= self.tolerance, "log-probabilities know of no mask");
    }

    /// Of the adapters that there are, each has to change the model, and nobody else's steps.
    fn an_adapter_is_of_its_own_steps(&mut self) {
        let prompt = self.prompt(12, 20);
        let plain = self.reference(&prompt);
        let mut all = vec![plain.clone()];
        for adapter in (0..self.backend.spec().adapters.len() as u32).map(AdapterId) {
            self.adapter = Some(adapter);
            let adapted = self.reference(&prompt);
            for other in &all {
                // In log-probabilities rather than tokens: a small change is one too.
                let differs = other.iter().zip(&adapted).any(|(a, b)| a.logprobs != b.logprobs);
                assert!(differs, "{adapter:?} is neither the model as it is nor another adapter");
            }
            let again = self.reference(&prompt);
            self.assert_same("a step with the same adapter", &adapted, &again);
            self.adapter = None;
            let got = self.reference(&prompt);
            self.assert_same("a step after one with an adapter", &plain, &got);
            all.push(adapted);
        }
    }

    fn a_row_with_bans_avoids_them(&mut self) {
        let prompt = self.prompt(10, 12);
        let first = self.reference(&prompt)[0].clone();
        self.clear();
        self.forward(&[], &[(0, 0, &prompt, true)]);
        let second = self.sample(&[0], &[first.token])[0].token;
        let top = &first.logprobs.as_ref().expect("log-probabilities were asked for").top;
        assert_eq!(second, top[1].0, "with the likeliest token banned, the next one is taken");
    }
}

fn logprob(sampled: &Sampled) -> f32 {
    sampled.logprobs.as_ref().expect("log-probabilities were asked for").logprob
}
