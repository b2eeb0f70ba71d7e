use std::cmp::Reverse;

use tandem_core::{BlockId, KvOp, SlotId, TokenId};

use super::{Admitted, KvCache};

/// KV by slot, all slots drawing on one pool of cells. A slot that nobody uses keeps its content until the room is needed.
///
/// Room is counted as if no two slots shared cells: llama.cpp may do with less after a copied prefix, never with more.
pub(crate) struct SlotKv {
    cells: u32,
    partial_reuse: bool,
    prefix_cache: bool,
    slots: Vec<Slot>,
    /// Counts admissions and releases: the least recently used slot has the smallest stamp.
    now: u64,
}

#[derive(Debug, Default)]
struct Slot {
    /// Tokens whose KV is in the slot.
    content: Vec<TokenId>,
    /// Tokens that the running sequence may come to have; `None` when none runs.
    reserved: Option<u32>,
    used_at: u64,
}

impl Slot {
    fn cells(&self) -> u32 {
        self.reserved.unwrap_or(0).max(self.content.len() as u32)
    }

    fn is_idle(&self) -> bool {
        self.reserved.is_none()
    }
}

/// Where a sequence goes, and what is there of it.
struct Place {
    slot: usize,
    cached: usize,
    /// The slot to copy the prefix from, when it is another.
    copy_from: Option<usize>,
}

impl SlotKv {
    pub(crate) fn new(slots: u32, cells: u32, partial_reuse: bool, prefix_cache: bool) -> Self {
        let slots = (0..slots).map(|_| Slot::default()).collect();
        Self { cells, partial_reuse, prefix_cache, slots, now: 0 }
    }

    /// The best slot for `tokens`: the idle one that is already a prefix of them, or else the least valuable idle one, with a copied
    /// prefix where some slot has one.
    fn place(&self, tokens: &[TokenId]) -> Option<Place> {
        let most = tokens.len() - 1;
        let common = |slot: &Slot| match common_prefix(&slot.content, tokens).min(most) {
            // A state that cannot be cut is good only whole.
            len if !self.partial_reuse && len < slot.content.len() => 0,
            len => len,
        };
        let idle = || self.slots.iter().enumerate().filter(|(_, slot)| slot.is_idle());
        let (victim, _) = idle().min_by_key(|(_, slot)| (!slot.content.is_empty(), slot.used_at))?;
        let (own, own_cached) =
            idle().map(|(at, slot)| (at, common(slot))).max_by_key(|&(at, cached)| (cached, Reverse(at)))?;
        let (other, other_cached) =
            self.slots.iter().map(common).enumerate().max_by_key(|&(at, cached)| (cached, Reverse(at)))?;
        // In place when nothing is lost by it: all of the slot's content is wanted, or the slot would go next anyway.
        let in_place = own_cached == other_cached && (own_cached == self.slots[own].content.len() || own == victim);
        if own_cached > 0 && in_place {
            return Some(Place { slot: own, cached: own_cached, copy_from: None });
        }
        if other_cached > 0 && self.partial_reuse && other != victim {
            return Some(Place { slot: victim, cached: other_cached, copy_from: Some(other) });
        }
        let cached = common(&self.slots[victim]);
        Some(Place { slot: victim, cached, copy_from: None })
    }

    fn in_use(&self) -> u32 {
        self.slots.iter().map(Slot::cells).sum()
    }

    /// Evicts idle slots, least recently used first and those in `keep` last of all never, until `wanted` cells are free.
    fn make_room(&mut self, wanted: u32, keep: [Option<usize>; 2], ops: &mut Vec<KvOp>) -> bool {
        while self.in_use() + wanted > self.cells {
            let idle = self
                .slots
                .iter()
                .enumerate()
                .filter(|(at, slot)| slot.is_idle() && !slot.content.is_empty() && !keep.contains(&Some(*at)));
            let Some((at, _)) = idle.min_by_key(|(_, slot)| slot.used_at) else { return false };
            self.truncate(at, 0, ops);
        }
        true
    }

    fn truncate(&mut self, slot: usize, len: usize, ops: &mut Vec<KvOp>) {
        if len < self.slots[slot].content.len() {
            self.slots[slot].content.truncate(len);
            ops.push(KvOp::Truncate { slot: SlotId(slot as u32), from: len as u32 });
        }
    }

    fn stamp(&mut self, slot: usize) {
        self.now += 1;
        self.slots[slot].used_at = self.now;
    }
}

impl KvCache for SlotKv {
    fn admit(&mut self, tokens: &[TokenId], ops: &mut Vec<KvOp>) -> Option<Admitted> {
        let place = self.place(tokens)?;
        let wanted = tokens.len() as u32 + 1;
        let own = self.slots[place.slot].cells();
        if !self.make_room(wanted.saturating_sub(own), [Some(place.slot), place.copy_from], ops) {
            // Without the slots that would save work there may be room.
            let evictable: u32 = self.slots.iter().filter(|slot| slot.is_idle()).map(Slot::cells).sum();
            if self.in_use() - evictable + wanted > self.cells {
                return None;
            }
            self.evict_all(ops);
            let place = self.place(tokens)?;
            return Some(self.occupy(&place, tokens, ops));
        }
        Some(self.occupy(&place, tokens, ops))
    }

    fn grow(&mut self, slot: SlotId, len: u32, ops: &mut Vec<KvOp>) -> bool {
        let at = slot.index();
        let wanted = len.saturating_sub(self.slots[at].cells());
        if !self.make_room(wanted, [Some(at), None], ops) {
            return false;
        }
        let reserved = &mut self.slots[at].reserved;
        *reserved = (*reserved).max(Some(len));
        true
    }

    fn commit(&mut self, slot: SlotId, tokens: &[TokenId]) {
        let content = &mut self.slots[slot.index()].content;
        debug_assert!(tokens.starts_with(content), "a running sequence only grows");
        content.extend_from_slice(&tokens[content.len()..]);
    }

    fn release(&mut self, slot: SlotId, ops: &mut Vec<KvOp>) {
        let at = slot.index();
        self.slots[at].reserved = None;
        self.stamp(at);
        if !self.prefix_cache {
            self.truncate(at, 0, ops);
        }
    }

    fn evict_all(&mut self, ops: &mut Vec<KvOp>) -> bool {
        let idle: Vec<_> = (0..self.slots.len()).filter(|&at| self.slots[at].is_idle()).collect();
        let before = ops.len();
        for at in idle {
            self.truncate(at, 0, ops);
        }
        ops.len() > before
    }

    fn block_table(&self, _: SlotId) -> &[BlockId] {
        &[]
    }

    fn used(&self) -> u64 {
        self.slots.iter().filter(|slot| !slot.is_idle()).map(|slot| u64::from(slot.cells())).sum()
    }

    fn check(&self) {
        assert!(self.in_use() <= self.cells, "{} of {} cells", self.in_use(), self.cells);
        for (at, slot) in self.slots.iter().enumerate() {
            if let Some(reserved) = slot.reserved {
                assert!(slot.content.len() <= reserved as usize, "slot {at} holds no more than its sequence has");
            }
        }
    }
}

impl SlotKv {
    fn occupy(&mut self, place: &Place, tokens: &[TokenId], ops: &mut Vec<KvOp>) -> Admitted {
        let Place { slot, cached, copy_from } = *place;
        let id = SlotId(slot as u32);
        if let Some(src) = copy_from {
            self.truncate(slot, 0, ops);
            ops.push(KvOp::CopyPrefix { src: SlotId(src as u32), dst: id, len: cached as u32 });
            self.slots[slot].content.extend_from_slice(&tokens[..cached]);
        } else {
            self.truncate(slot, cached, ops);
        }
        self.slots[slot].reserved = Some(tokens.len() as u32 + 1);
        self.stamp(slot);
        Admitted { slot: id, cached: cached as u32 }
    }
}

fn common_prefix(a: &[TokenId], b: &[TokenId]) -> usize {
    std::iter::zip(a, b).take_while(|(a, b)| a == b).count()
}
