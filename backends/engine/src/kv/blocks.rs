use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use tandem_core::{BlockId, KvOp, SlotId, TokenId};

use super::{
    Admitted, Candidate, Keys, KvCache, Salt,
    keys::{self, Key},
};

/// KV in reference-counted blocks. A full block is known by a hash of its tokens and of all before it, so that equal prefixes are found
/// block by block.
pub(crate) struct BlockKv {
    block_size: usize,
    prefix_cache: bool,
    seed: u64,
    blocks: Vec<Block>,
    /// Blocks that nobody uses, the next to be reused first. Those whose content is still known come last.
    unused: UnusedList,
    /// Full blocks by key, in use or not.
    known: HashMap<Key, BlockId, BuildHasherDefault<KeyHasher>>,
    slots: Vec<Option<Table>>,
    free_slots: Vec<SlotId>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    references: u32,
    key: Option<Key>,
}

/// A running sequence's blocks.
#[derive(Debug, Default)]
struct Table {
    blocks: Vec<BlockId>,
    /// Blocks that are full and computed.
    full: usize,
    salt: Salt,
}

impl BlockKv {
    pub(crate) fn new(slots: u32, count: u32, block_size: u32, prefix_cache: bool, seed: u64) -> Self {
        let mut unused = UnusedList::new(count as usize);
        for block in 0..count {
            unused.push_back(BlockId(block));
        }
        Self {
            block_size: block_size as usize,
            prefix_cache,
            seed,
            blocks: vec![Block::default(); count as usize],
            unused,
            known: HashMap::default(),
            slots: (0..slots).map(|_| None).collect(),
            free_slots: (0..slots).rev().map(SlotId).collect(),
        }
    }

    /// Known blocks that hold the beginning of the tokens, leaving at least one token to compute.
    fn lookup<'a>(&'a self, candidate: Candidate<'a>) -> impl Iterator<Item = BlockId> + 'a {
        let Candidate { tokens, salt, keys, .. } = candidate;
        let most = if self.prefix_cache { tokens.len().saturating_sub(1) / self.block_size } else { 0 };
        let keys = keys.of(tokens, self.block_size, keys::root(self.seed, salt));
        keys.iter().take(most).map_while(|key| self.known.get(key).copied())
    }

    /// Takes an unused block, forgetting what it held.
    fn take(&mut self) -> Option<BlockId> {
        let id = self.unused.pop_front()?;
        let block = &mut self.blocks[id.index()];
        if let Some(key) = block.key.take() {
            self.known.remove(&key);
        }
        block.references = 1;
        Some(id)
    }

    fn table(&self, slot: SlotId) -> &Table {
        self.slots[slot.index()].as_ref().expect("the scheduler names only slots that it holds")
    }
}

impl KvCache for BlockKv {
    fn admit(&mut self, candidate: Candidate<'_>, _: &mut Vec<KvOp>) -> Option<Admitted> {
        // Hashing is for those who can have a slot.
        self.free_slots.last()?;
        let Candidate { tokens, reserve, salt, .. } = candidate;
        let mut table = Table { blocks: self.lookup(candidate).collect(), full: 0, salt };
        let cached = table.blocks.len();
        table.full = cached;
        let revived = table.blocks.iter().filter(|id| self.blocks[id.index()].references == 0).count();
        let total = (reserve as usize).div_ceil(self.block_size);
        if total - cached + revived > self.unused.len() {
            return None;
        }
        let slot = self.free_slots.pop()?;
        for id in &table.blocks {
            let block = &mut self.blocks[id.index()];
            if block.references == 0 {
                self.unused.remove(*id);
            }
            block.references += 1;
        }
        // A block for one token after the last is not taken yet: most sequences need it only after a while.
        let now = if reserve as usize > tokens.len() + 1 { total } else { tokens.len().div_ceil(self.block_size) };
        for _ in cached..now {
            let block = self.take().expect("enough unused blocks were counted");
            table.blocks.push(block);
        }
        self.slots[slot.index()] = Some(table);
        Some(Admitted { slot, cached: (cached * self.block_size) as u32 })
    }

    fn cached(&self, candidate: Candidate<'_>) -> u32 {
        (self.lookup(candidate).count() * self.block_size) as u32
    }

    fn shareable(&self, common: u32) -> u32 {
        if self.prefix_cache { common - common % self.block_size as u32 } else { 0 }
    }

    fn grow(&mut self, slot: SlotId, len: u32, _: &mut Vec<KvOp>) -> bool {
        let wanted = (len as usize).div_ceil(self.block_size);
        while self.table(slot).blocks.len() < wanted {
            let Some(block) = self.take() else { return false };
            self.slots[slot.index()].as_mut().expect("the slot was there a moment ago").blocks.push(block);
        }
        true
    }

    fn commit(&mut self, slot: SlotId, tokens: &[TokenId], keys: &mut Keys) {
        let table = self.slots[slot.index()].as_mut().expect("the scheduler commits only slots that it holds");
        let full = tokens.len() / self.block_size;
        if full == table.full {
            return;
        }
        if self.prefix_cache {
            let keys = keys.of(tokens, self.block_size, keys::root(self.seed, table.salt));
            for (key, id) in std::iter::zip(keys, &table.blocks).skip(table.full) {
                // Of equal blocks one is known.
                if !self.known.contains_key(key) {
                    self.blocks[id.index()].key = Some(*key);
                    self.known.insert(*key, *id);
                }
            }
        }
        table.full = full;
    }

    fn release(&mut self, slot: SlotId, _: &mut Vec<KvOp>) {
        let table = self.slots[slot.index()].take().expect("the scheduler releases only slots that it holds");
        self.free_slots.push(slot);
        // Backwards, so that the end of a sequence is forgotten before its beginning, which more prompts share.
        for id in table.blocks.into_iter().rev() {
            let block = &mut self.blocks[id.index()];
            block.references -= 1;
            match (block.references, block.key) {
                (0, Some(_)) => self.unused.push_back(id),
                (0, None) => self.unused.push_front(id),
                _ => {}
            }
        }
    }

    fn evict_all(&mut self, _: &mut Vec<KvOp>) -> bool {
        let before = self.known.len();
        let Self { known, blocks, .. } = self;
        known.retain(|_, id| blocks[id.index()].references > 0);
        for block in blocks.iter_mut().filter(|block| block.references == 0) {
            block.key = None;
        }
        self.known.len() < before
    }

    fn block_table(&self, slot: SlotId) -> &[BlockId] {
        &self.table(slot).blocks
    }

    fn used(&self) -> u64 {
        ((self.blocks.len() - self.unused.len()) * self.block_size) as u64
    }

    fn check(&self) {
        let mut references = vec![0u32; self.blocks.len()];
        for table in self.slots.iter().flatten() {
            assert!(table.full <= table.blocks.len(), "no more blocks are full than there are");
            for id in &table.blocks {
                references[id.index()] += 1;
            }
        }
        for (at, block) in self.blocks.iter().enumerate() {
            assert_eq!(block.references, references[at], "block {at}: references");
            assert_eq!(block.references == 0, self.unused.contains(BlockId(at as u32)), "block {at}: unused or used");
            if let Some(key) = block.key {
                assert_eq!(self.known.get(&key), Some(&BlockId(at as u32)), "block {at}: known by its key");
            }
        }
        for (key, id) in &self.known {
            assert_eq!(self.blocks[id.index()].key, Some(*key), "a known block has its key");
        }
        assert_eq!(self.slots.iter().filter(|slot| slot.is_none()).count(), self.free_slots.len(), "free slots");
    }
}

/// Keys are hashes already.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for run in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..run.len()].copy_from_slice(run);
            self.0 ^= u64::from_le_bytes(word);
        }
    }

    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }
}

/// A queue of block ids from whose middle any can be taken in constant time.
struct UnusedList {
    links: Vec<Option<Link>>,
    first: Option<BlockId>,
    last: Option<BlockId>,
    len: usize,
}

#[derive(Clone, Copy, Default)]
struct Link {
    before: Option<BlockId>,
    after: Option<BlockId>,
}

impl UnusedList {
    fn new(blocks: usize) -> Self {
        Self { links: vec![None; blocks], first: None, last: None, len: 0 }
    }

    fn len(&self) -> usize {
        self.len
    }

    fn contains(&self, id: BlockId) -> bool {
        self.links[id.index()].is_some()
    }

    fn push_back(&mut self, id: BlockId) {
        self.insert(id, Link { before: self.last, after: None });
    }

    fn push_front(&mut self, id: BlockId) {
        self.insert(id, Link { before: None, after: self.first });
    }

    fn pop_front(&mut self) -> Option<BlockId> {
        let id = self.first?;
        self.remove(id);
        Some(id)
    }

    fn insert(&mut self, id: BlockId, link: Link) {
        debug_assert!(!self.contains(id), "a block is unused once");
        self.links[id.index()] = Some(link);
        self.join(link.before, Some(id));
        self.join(Some(id), link.after);
        self.len += 1;
    }

    fn remove(&mut self, id: BlockId) {
        let link = self.links[id.index()].take().expect("only unused blocks are taken");
        self.join(link.before, link.after);
        self.len -= 1;
    }

    /// Makes two neighbours know each other; `None` is the end of the list.
    fn join(&mut self, before: Option<BlockId>, after: Option<BlockId>) {
        match before {
            Some(id) => self.link_mut(id).after = after,
            None => self.first = after,
        }
        match after {
            Some(id) => self.link_mut(id).before = before,
            None => self.last = before,
        }
    }

    fn link_mut(&mut self, id: BlockId) -> &mut Link {
        self.links[id.index()].as_mut().expect("a neighbour is in the list")
    }
}
