/// A token of the model's vocabulary: an index into its logits.
pub type TokenId = u32;

/// A row that may hold one running sequence's KV; stable while the sequence runs, free for reuse after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u32);

/// One of the model's adapters: an index into [`BackendSpec::adapters`](crate::BackendSpec::adapters).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdapterId(pub u32);

/// A page of the KV cache under [`KvLayout::Blocks`](crate::KvLayout::Blocks).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u32);

impl SlotId {
    /// The slot as an index into a per-slot table.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl AdapterId {
    /// The adapter as an index into a per-adapter table.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl BlockId {
    /// The block as an index into a per-block table.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}
