use tandem_core::{BlockId, LoadError, Step, TokenId};

use crate::config::DecoderConfig;

/// The shape of the KV cache: `blocks` pages of `block_size` tokens, each token with `kv_heads` heads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KvShape {
    pub(crate) blocks: usize,
    pub(crate) block_size: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

/// K and V of all layers, each layer as `[blocks, block_size, kv_heads, head_dim]`.
///
/// Which page belongs to whom is the engine's affair; a page is overwritten as its next owner fills it.
#[derive(Debug)]
pub(crate) struct KvCache {
    shape: KvShape,
    layers: Vec<LayerKv>,
}

/// K and V of one layer.
#[derive(Debug)]
pub(crate) struct LayerKv {
    shape: KvShape,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl KvCache {
    pub(crate) fn new(config: &DecoderConfig, blocks: u32, block_size: u32) -> Result<Self, LoadError> {
        let shape = KvShape {
            blocks: blocks as usize,
            block_size: block_size as usize,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
        };
        let layers = config.layers.iter().map(|_| LayerKv::new(shape));
        let layers = layers.collect::<Option<_>>().ok_or_else(|| {
            let bytes = u128::from(blocks)
                * u128::from(block_size)
                * (config.kv_width() * config.layers.len() * 2 * size_of::<f32>()) as u128;
            let gib = bytes as f64 / f64::from(1 << 30);
            LoadError::Unsupported(format!(
                "a KV cache of {blocks} blocks of {block_size} tokens needs {gib:.1} GiB, which are not to be had"
            ))
        })?;
        Ok(Self { shape, layers })
    }

    pub(crate) fn shape(&self) -> KvShape {
        self.shape
    }

    pub(crate) fn layers_mut(&mut self) -> impl Iterator<Item = &mut LayerKv> {
        self.layers.iter_mut()
    }
}

impl LayerKv {
    /// `None` when there is not enough memory.
    fn new(shape: KvShape) -> Option<Self> {
        let KvShape { blocks, block_size, kv_heads, head_dim } = shape;
        let len = blocks.checked_mul(block_size)?.checked_mul(kv_heads)?.checked_mul(head_dim)?;
        Some(Self { shape, keys: zeroed(len)?, values: zeroed(len)? })
    }

    /// Stores the K and V of each token in its slot. Each row holds `q_width` values that are skipped, then K, then V.
    pub(crate) fn store(&mut self, slots: &[usize], rows: &[f32], q_width: usize) {
        let width = self.shape.kv_heads * self.shape.head_dim;
        for (&slot, row) in slots.iter().zip(rows.chunks_exact(q_width + 2 * width)) {
            let (key, value) = row[q_width..].split_at(width);
            self.keys[slot * width..][..width].copy_from_slice(key);
            self.values[slot * width..][..width].copy_from_slice(value);
        }
    }

    /// The keys and values of one head in one page; those of a token begin [`stride`](Self::stride) after those of the one before.
    pub(crate) fn page(&self, block: BlockId, kv_head: usize) -> (&[f32], &[f32]) {
        let KvShape { block_size, head_dim, .. } = self.shape;
        let start = block.index() * block_size * self.stride() + kv_head * head_dim;
        let end = (block.index() + 1) * block_size * self.stride();
        (&self.keys[start..end], &self.values[start..end])
    }

    pub(crate) fn stride(&self) -> usize {
        self.shape.kv_heads * self.shape.head_dim
    }

    pub(crate) fn shape(&self) -> KvShape {
        self.shape
    }
}

/// A step laid out as one matrix: the tokens of all chunks, one row each.
#[derive(Debug)]
pub(crate) struct Ragged<'a> {
    pub(crate) tokens: Vec<TokenId>,
    /// Of each token in its sequence.
    pub(crate) positions: Vec<u32>,
    /// Of each token in the KV cache, over all pages.
    pub(crate) slots: Vec<usize>,
    pub(crate) spans: Vec<Span<'a>>,
    /// Rows that a token will be sampled after.
    pub(crate) sampled: Vec<usize>,
}

/// The rows of one chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span<'a> {
    /// Position of the first row.
    pub(crate) start: usize,
    pub(crate) len: usize,
    pub(crate) block_table: &'a [BlockId],
}

impl<'a> Ragged<'a> {
    pub(crate) fn new(step: &Step<'a>, block_size: usize) -> Self {
        let rows = step.tokens();
        let mut ragged = Self {
            tokens: Vec::with_capacity(rows),
            positions: Vec::with_capacity(rows),
            slots: Vec::with_capacity(rows),
            spans: Vec::with_capacity(step.chunks.len()),
            sampled: Vec::with_capacity(step.chunks.len()),
        };
        for chunk in step.chunks {
            debug_assert!(!chunk.tokens.is_empty(), "an empty chunk");
            ragged.tokens.extend_from_slice(chunk.tokens);
            for position in (chunk.start..).take(chunk.tokens.len()) {
                let block = chunk.block_table[position as usize / block_size];
                ragged.positions.push(position);
                ragged.slots.push(block.index() * block_size + position as usize % block_size);
            }
            ragged.spans.push(Span {
                start: chunk.start as usize,
                len: chunk.tokens.len(),
                block_table: chunk.block_table,
            });
            if chunk.sample {
                ragged.sampled.push(ragged.tokens.len() - 1);
            }
        }
        ragged
    }
}

/// Zeros that the system maps when they are first written, if it can promise that many.
fn zeroed(len: usize) -> Option<Vec<f32>> {
    // `vec!` ends the process when there is no memory, so ask first.
    Vec::<f32>::new().try_reserve_exact(len).ok()?;
    Some(vec![0.0; len])
}
