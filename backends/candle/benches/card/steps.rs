//! Steps of a backend, and how long they take.

use std::time::Instant;

use tandem_core::{BlockId, Chunk, InferenceBackend, SampleRow, SamplingParams, SlotId, Step, TokenId};

use crate::orders::Orders;

pub(crate) struct Steps<'a> {
    pub(crate) backend: &'a mut dyn InferenceBackend,
    pub(crate) orders: &'a Orders,
    /// Tokens of a page.
    pub(crate) block: usize,
}

impl Steps<'_> {
    /// Pages of a sequence that is decoded.
    pub(crate) fn blocks(&self) -> usize {
        (self.orders.before + self.orders.decoded).div_ceil(self.block)
    }

    fn table(&self, slot: u32) -> Vec<BlockId> {
        let blocks = self.blocks() as u32;
        (slot * blocks..(slot + 1) * blocks).map(BlockId).collect()
    }

    /// Seconds for a prompt in each slot, one step each. The first one may be longer than its table, if it is alone.
    pub(crate) fn prompts(&mut self, len: usize, slots: &[u32]) -> f64 {
        let vocab = self.backend.spec().vocab_size;
        let begun = Instant::now();
        for &slot in slots {
            let tokens: Vec<TokenId> = (0..len as u32).map(|at| ((slot + 1) * 7919 + at * 10_473) % vocab).collect();
            let table = if slots.len() == 1 {
                (0..len.max(self.orders.before + self.orders.decoded).div_ceil(self.block) as u32)
                    .map(BlockId)
                    .collect()
            } else {
                self.table(slot)
            };
            let chunk = Chunk {
                slot: SlotId(slot),
                start: 0,
                tokens: &tokens,
                block_table: &table,
                sample: true,
                score: false,
            };
            self.run(&[chunk]);
        }
        begun.elapsed().as_secs_f64()
    }

    /// Seconds in all, and those until the device had been asked.
    pub(crate) fn decode(&mut self, slots: &[u32]) -> (f64, f64) {
        let tables: Vec<_> = slots.iter().map(|&slot| self.table(slot)).collect();
        let mut last: Vec<TokenId> = slots.to_vec();
        let (begun, mut asked) = (Instant::now(), 0.0);
        for at in 0..self.orders.decoded {
            let chunks: Vec<_> = slots
                .iter()
                .zip(&tables)
                .zip(&last)
                .map(|((&slot, table), token)| Chunk {
                    slot: SlotId(slot),
                    start: (self.orders.before + at) as u32,
                    tokens: std::slice::from_ref(token),
                    block_table: table,
                    sample: true,
                    score: false,
                })
                .collect();
            let (tokens, seconds) = self.run(&chunks);
            last = tokens;
            asked += seconds;
        }
        (begun.elapsed().as_secs_f64(), asked)
    }

    /// The likeliest token of each chunk, and the seconds until `forward` returned.
    fn run(&mut self, chunks: &[Chunk<'_>]) -> (Vec<TokenId>, f64) {
        let begun = Instant::now();
        self.backend.forward(&Step { kv_ops: &[], chunks, adapter: None }).expect("a step");
        let asked = begun.elapsed().as_secs_f64();
        let params = SamplingParams::greedy();
        let row = |chunk: &Chunk<'_>| SampleRow {
            slot: chunk.slot,
            params: &params,
            u: 0.0,
            prompt: &[],
            output: &[],
            banned: &[],
            allowed: None,
            logprobs: None,
        };
        let rows: Vec<_> = chunks.iter().map(row).collect();
        let mut out = Vec::new();
        self.backend.sample(&rows, &mut out).expect("samples");
        (out.into_iter().map(|result| result.expect("finite logits").token).collect(), asked)
    }
}
