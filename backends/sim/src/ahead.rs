use std::collections::{BTreeMap, VecDeque};

use tandem_core::{AheadChunk, BlockId, Chosen, Input, KvLayout, SampleError, SlotId, TokenId};

/// Choices that may be open at a time.
const MOST_OPEN: usize = 2;

/// What stands for the part of a device that goes on from its own tokens: these, and a watch over the memory that they are computed in.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    /// What was chosen for each slot last; `Err` where that was no token.
    last: BTreeMap<SlotId, Result<TokenId, SampleError>>,
    /// The blocks that the last pass writes to, and whose they are.
    writes: Vec<(SlotId, BlockId)>,
    open: VecDeque<Open>,
    next: u64,
}

/// Tokens that nobody has collected yet.
#[derive(Debug)]
struct Open {
    number: u64,
    tokens: Vec<Result<TokenId, SampleError>>,
    writes: Vec<(SlotId, BlockId)>,
}

impl Ahead {
    /// The token that a chunk goes on with, if it does.
    pub(crate) fn last(&self, chunk: &AheadChunk<'_>) -> TokenId {
        match chunk.tokens {
            Input::Known(_) => 0,
            Input::Chosen => {
                let chosen = self.last.get(&chunk.slot).expect("a token was chosen for the slot by the last choice");
                // Where there is none the device goes on with any.
                chosen.unwrap_or(0)
            }
        }
    }

    /// Blocks that a pass writes to whose tokens are still to be collected are nobody else's until they are.
    pub(crate) fn check_blocks(&self, chunks: &[AheadChunk<'_>], kv: &KvLayout) {
        for (slot, block) in writes(chunks, kv) {
            for (other, taken) in self.open.iter().flat_map(|open| &open.writes) {
                assert!(block != *taken || slot == *other, "{block:?} is still written to for another sequence");
            }
        }
    }

    /// A pass was asked for.
    pub(crate) fn begin(&mut self, chunks: &[AheadChunk<'_>], kv: &KvLayout) {
        self.writes = writes(chunks, kv).collect();
    }

    /// These tokens were chosen after the last pass.
    pub(crate) fn choose(&mut self, tokens: Vec<(SlotId, Result<TokenId, SampleError>)>) -> Chosen {
        assert!(self.open.len() < MOST_OPEN, "no more than {MOST_OPEN} choices are open at a time");
        self.last = tokens.iter().copied().collect();
        let tokens = tokens.into_iter().map(|(_, token)| token).collect();
        self.next += 1;
        self.open.push_back(Open { number: self.next, tokens, writes: std::mem::take(&mut self.writes) });
        Chosen::new(self.next)
    }

    pub(crate) fn collect(&mut self, chosen: &Chosen) -> Vec<Result<TokenId, SampleError>> {
        let open = self.open.pop_front().expect("what is collected was chosen");
        assert_eq!(open.number, chosen.number(), "in the order in which they were chosen");
        open.tokens
    }
}

/// The blocks that chunks write to.
fn writes<'a>(chunks: &'a [AheadChunk<'_>], kv: &KvLayout) -> impl Iterator<Item = (SlotId, BlockId)> + 'a {
    let KvLayout::Blocks { block_size, .. } = *kv else { panic!("only by block can anybody look ahead") };
    chunks.iter().flat_map(move |chunk| {
        let (first, last) = (chunk.start, chunk.start + chunk.tokens.len() as u32 - 1);
        let blocks = &chunk.block_table[(first / block_size) as usize..=(last / block_size) as usize];
        blocks.iter().map(|block| (chunk.slot, *block))
    })
}
