//! Bookkeeping of KV memory: which slot or block holds the KV of which tokens. Pure data structures; the memory itself is the backend's.

mod blocks;
mod keys;
mod slots;

use tandem_core::{AdapterId, BackendSpec, BlockId, KvLayout, KvOp, SlotId, TokenId};

pub(crate) use keys::Keys;

/// One strategy for each [`KvLayout`].
///
/// Operations that the backend must carry out are appended to `ops`, to be sent with the next step.
pub(crate) trait KvCache: Send {
    /// Gives a sequence a slot and room for `reserve` tokens, reusing what is cached of those that it has; `None` when there is no room.
    fn admit(&mut self, candidate: Candidate<'_>, ops: &mut Vec<KvOp>) -> Option<Admitted>;
    /// How many of the candidate's tokens are in the cache now, without taking them; as [`Self::admit`] counts.
    fn cached(&self, candidate: Candidate<'_>) -> u32;
    /// How many of `common` equal leading tokens one sequence can have from another that has computed them.
    fn shareable(&self, common: u32) -> u32;
    /// Makes room for `len` tokens in the slot, evicting what nobody uses; false when there is none.
    fn grow(&mut self, slot: SlotId, len: u32, ops: &mut Vec<KvOp>) -> bool;
    /// Says that the KV of exactly these tokens, from the first on, is now in the slot, and may be shared.
    fn commit(&mut self, slot: SlotId, tokens: &[TokenId], keys: &mut Keys);
    /// Takes the slot back. What was committed stays in the cache until its room is needed.
    fn release(&mut self, slot: SlotId, ops: &mut Vec<KvOp>);
    /// Forgets everything that no running sequence uses. Whether there was any.
    fn evict_all(&mut self, ops: &mut Vec<KvOp>) -> bool;
    /// The slot's blocks in order; empty where KV is kept by slot.
    fn block_table(&self, slot: SlotId) -> &[BlockId];
    /// Tokens of room held by running sequences.
    fn used(&self) -> u64;
    /// Panics when the books are wrong.
    fn check(&self);
}

/// A sequence that asks for room.
#[derive(Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) tokens: &'a [TokenId],
    /// Tokens to make room for, more than it has.
    pub(crate) reserve: u32,
    /// Sequences share KV only with those of the same salt.
    pub(crate) salt: Salt,
    /// What was hashed of the tokens before.
    pub(crate) keys: &'a mut Keys,
}

/// Sequences share KV only with those of the same salt: what the request says of it, and what its KV is computed with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Salt {
    pub(crate) cache: u64,
    pub(crate) adapter: Option<AdapterId>,
    /// Of a sequence that shares with nobody: which one it is.
    pub(crate) alone: Option<u64>,
}

/// A slot for a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Admitted {
    pub(crate) slot: SlotId,
    /// Tokens whose KV is there already; fewer than the sequence has, so that something is left to compute.
    pub(crate) cached: u32,
}

/// The strategy for a backend's layout. Without `prefix_cache` nothing outlives its sequence. The hashes of blocks begin with `seed`.
pub(crate) fn for_backend(spec: &BackendSpec, prefix_cache: bool, seed: u64) -> Box<dyn KvCache> {
    match spec.kv {
        KvLayout::Slots { cells, partial_reuse } => {
            Box::new(slots::SlotKv::new(spec.max_sequences, cells, partial_reuse, prefix_cache))
        }
        KvLayout::Blocks { count, block_size } => {
            Box::new(blocks::BlockKv::new(spec.max_sequences, count, block_size, prefix_cache, seed))
        }
    }
}

/// Leading tokens that both have.
pub(crate) fn common_prefix(a: &[TokenId], b: &[TokenId]) -> usize {
    // Whole runs first: prompts that share a beginning share much of it.
    const RUN: usize = 32;
    let equal = std::iter::zip(a.chunks_exact(RUN), b.chunks_exact(RUN)).take_while(|(a, b)| a == b).count() * RUN;
    equal + std::iter::zip(&a[equal..], &b[equal..]).take_while(|(a, b)| a == b).count()
}
