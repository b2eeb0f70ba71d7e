use std::cmp::Reverse;

use tandem_core::{BlockId, KvOp, SlotId, TokenId};

use super::{Admitted, Candidate, Keys, KvCache, Salt, common_prefix};

/// KV by slot, all slots drawing on one pool of cells. A slot that nobody uses keeps its content until the room is needed.
///
/// Room is counted as if no two slots shared cells: llama.cpp may do with less after a copied prefix, never with more.
pub(crate) struct SlotKv {
    cells: u32,
    partial_reuse: bool,
    prefix_cache: bool,
    slots: Vec<Slot>,
    /// Cells over all slots.
    in_use: u32,
    /// Counts admissions and releases: the least recently used slot has the smallest stamp.
    now: u64,
}

#[derive(Debug, Default)]
struct Slot {
    /// Tokens whose KV is in the slot.
    content: Vec<TokenId>,
    /// Whose content it is.
    salt: Salt,
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
        Self { cells, partial_reuse, prefix_cache, slots, in_use: 0, now: 0 }
    }

    /// The best slot for `tokens`: the idle one that is already a prefix of them, or else the least valuable idle one, with a copied
    /// prefix where some slot has one.
    fn place(&self, tokens: &[TokenId], salt: Salt) -> Option<Place> {
        let common = |slot: &Slot| self.common(slot, tokens, salt);
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

    /// How many of the tokens a slot can give.
    fn common(&self, slot: &Slot, tokens: &[TokenId], salt: Salt) -> usize {
        if slot.salt != salt || !self.prefix_cache {
            return 0;
        }
        match common_prefix(&slot.content, tokens).min(tokens.len() - 1) {
            // A state that cannot be cut is good only whole.
            len if !self.partial_reuse && len < slot.content.len() => 0,
            len => len,
        }
    }

    /// Changes a slot and keeps the count of cells right.
    fn change(&mut self, at: usize, change: impl FnOnce(&mut Slot)) {
        let slot = &mut self.slots[at];
        self.in_use -= slot.cells();
        change(slot);
        self.in_use += slot.cells();
    }

    /// Evicts idle slots, least recently used first and those in `keep` last of all never, until `wanted` cells are free.
    fn make_room(&mut self, wanted: u32, keep: [Option<usize>; 2], ops: &mut Vec<KvOp>) -> bool {
        while self.in_use + wanted > self.cells {
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
            self.change(slot, |slot| slot.content.truncate(len));
            ops.push(KvOp::Truncate { slot: SlotId(slot as u32), from: len as u32 });
        }
    }

    fn stamp(&mut self, slot: usize) {
        self.now += 1;
        self.slots[slot].used_at = self.now;
    }
}

impl KvCache for SlotKv {
    fn admit(&mut self, candidate: Candidate<'_>, ops: &mut Vec<KvOp>) -> Option<Admitted> {
        let Candidate { tokens, reserve: wanted, salt, .. } = candidate;
        let place = self.place(tokens, salt)?;
        let own = self.slots[place.slot].cells();
        if !self.make_room(wanted.saturating_sub(own), [Some(place.slot), place.copy_from], ops) {
            // Without the slots that would save work there may be room.
            let evictable: u32 = self.slots.iter().filter(|slot| slot.is_idle()).map(Slot::cells).sum();
            if self.in_use - evictable + wanted > self.cells {
                return None;
            }
            self.evict_all(ops);
            let place = self.place(tokens, salt)?;
            return Some(self.occupy(&place, &candidate, ops));
        }
        Some(self.occupy(&place, &candidate, ops))
    }

    fn cached(&self, candidate: Candidate<'_>) -> u32 {
        let Candidate { tokens, salt, .. } = candidate;
        let all = self.slots.iter().filter(|slot| self.partial_reuse || slot.is_idle());
        all.map(|slot| self.common(slot, tokens, salt)).max().unwrap_or(0) as u32
    }

    fn shareable(&self, common: u32) -> u32 {
        // A state that cannot be cut is passed on when its sequence has ended, or not at all.
        if self.partial_reuse && self.prefix_cache { common } else { 0 }
    }

    fn grow(&mut self, slot: SlotId, len: u32, ops: &mut Vec<KvOp>) -> bool {
        let at = slot.index();
        let wanted = len.saturating_sub(self.slots[at].cells());
        if wanted == 0 {
            return true;
        }
        if !self.make_room(wanted, [Some(at), None], ops) {
            return false;
        }
        self.change(at, |slot| slot.reserved = Some(len));
        true
    }

    fn commit(&mut self, slot: SlotId, tokens: &[TokenId], _: &mut Keys) {
        debug_assert!(tokens.len() <= self.slots[slot.index()].cells() as usize, "room was made before");
        let content = &mut self.slots[slot.index()].content;
        debug_assert!(tokens.starts_with(content), "a running sequence only grows");
        content.extend_from_slice(&tokens[content.len()..]);
    }

    fn release(&mut self, slot: SlotId, ops: &mut Vec<KvOp>) {
        let at = slot.index();
        self.change(at, |slot| slot.reserved = None);
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
        assert_eq!(self.in_use, self.slots.iter().map(Slot::cells).sum::<u32>(), "cells are counted");
        assert!(self.in_use <= self.cells, "{} of {} cells", self.in_use, self.cells);
        for (at, slot) in self.slots.iter().enumerate() {
            if let Some(reserved) = slot.reserved {
                assert!(slot.content.len() <= reserved as usize, "slot {at} holds no more than its sequence has");
            }
        }
    }
}

impl SlotKv {
    fn occupy(&mut self, place: &Place, candidate: &Candidate<'_>, ops: &mut Vec<KvOp>) -> Admitted {
        let &Candidate { tokens, reserve, salt, .. } = candidate;
        let Place { slot, cached, copy_from } = *place;
        let id = SlotId(slot as u32);
        if let Some(src) = copy_from {
            self.truncate(slot, 0, ops);
            ops.push(KvOp::CopyPrefix { src: SlotId(src as u32), dst: id, len: cached as u32 });
            self.change(slot, |slot| slot.content.extend_from_slice(&tokens[..cached]));
        } else {
            self.truncate(slot, cached, ops);
        }
        self.change(slot, |slot| {
            slot.reserved = Some(reserve);
            slot.salt = salt;
        });
        self.stamp(slot);
        Admitted { slot: id, cached: cached as u32 }
    }
}
