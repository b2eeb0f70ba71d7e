use tandem_core::{AdapterId, BlockId, Chunk, KvOp, SlotId, StepError};

use crate::model::cell;

/// KV memory as a real backend keeps it. A cell is `None` until it is written.
#[derive(Debug)]
pub(crate) enum Memory {
    /// By slot; `cells` is what all slots together may hold.
    Slots { slots: Vec<Vec<u64>>, cells: usize, partial_reuse: bool },
    /// By block.
    Blocks { blocks: Vec<Vec<Option<u64>>> },
}

impl Memory {
    /// Carries out what comes before the chunks.
    pub(crate) fn prepare(&mut self, ops: &[KvOp]) {
        let Self::Slots { slots, partial_reuse, .. } = self else {
            assert!(ops.is_empty(), "blocks know no operations");
            return;
        };
        for op in ops {
            match *op {
                KvOp::Truncate { slot, from } => {
                    assert!(*partial_reuse || from == 0, "a state that cannot be cut is forgotten whole");
                    slots[slot.index()].truncate(from as usize);
                }
                KvOp::CopyPrefix { src, dst, len } => {
                    assert!(*partial_reuse, "a state that cannot be cut has no prefix");
                    assert!(slots[dst.index()].is_empty(), "a prefix is copied to an empty slot");
                    let prefix = slots[src.index()][..len as usize].to_vec();
                    slots[dst.index()] = prefix;
                }
            }
        }
    }

    /// Whether all chunks fit.
    pub(crate) fn fits(&self, chunks: &[Chunk<'_>]) -> Result<(), StepError> {
        let Self::Slots { slots, cells, .. } = self else { return Ok(()) };
        let held: usize = slots.iter().map(Vec::len).sum();
        let wanted: usize = chunks.iter().map(|chunk| chunk.tokens.len()).sum();
        if held + wanted <= *cells { Ok(()) } else { Err(StepError::KvFull) }
    }

    /// Writes the cells of a chunk, each of which depends on the one before and on the adapter that computes it.
    pub(crate) fn write(&mut self, chunk: &Chunk<'_>, adapter: Option<AdapterId>) {
        assert!(!chunk.tokens.is_empty(), "a chunk is never empty");
        let mut before = match chunk.start {
            0 => 0,
            start => self.read(chunk.slot, chunk.block_table, start - 1),
        };
        for (position, &token) in std::iter::zip(chunk.start.., chunk.tokens) {
            before = cell(before, token, position, adapter);
            match self {
                Self::Slots { slots, .. } => {
                    let slot = &mut slots[chunk.slot.index()];
                    assert_eq!(slot.len(), position as usize, "a slot grows at its end");
                    slot.push(before);
                }
                Self::Blocks { blocks } => {
                    let size = blocks[0].len();
                    let block = chunk.block_table[position as usize / size];
                    blocks[block.index()][position as usize % size] = Some(before);
                }
            }
        }
    }

    /// The cells of a sequence, from the first to the last of the chunk.
    pub(crate) fn visible<'a>(&'a self, chunk: &Chunk<'a>) -> impl Iterator<Item = u64> + 'a {
        let (slot, table) = (chunk.slot, chunk.block_table);
        (0..chunk.start + chunk.tokens.len() as u32).map(move |position| self.read(slot, table, position))
    }

    fn read(&self, slot: SlotId, table: &[BlockId], position: u32) -> u64 {
        match self {
            Self::Slots { slots, .. } => slots[slot.index()][position as usize],
            Self::Blocks { blocks } => {
                let size = blocks[0].len() as u32;
                let block = table[(position / size) as usize];
                blocks[block.index()][(position % size) as usize].expect("a cell is read after it was written")
            }
        }
    }
}
