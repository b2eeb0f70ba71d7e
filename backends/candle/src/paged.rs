use std::ops::Range;

use tandem_core::{LoadError, Step, TokenId};
use tandem_kernels::{KvFormat, KvShape, Pages, Span};

/// K and V of all layers, in pages.
///
/// Which page belongs to whom is the engine's affair; a page is overwritten as its next owner fills it.
#[derive(Debug)]
pub(crate) struct KvCache {
    page_len: usize,
    layers: Vec<Pages>,
}

impl KvCache {
    /// One for `layers` layers.
    pub(crate) fn new(shape: KvShape, format: KvFormat, layers: usize) -> Result<Self, LoadError> {
        let pages = (0..layers).map(|_| Pages::new(format, shape));
        let layers = pages.collect::<Option<_>>().ok_or_else(|| {
            let KvShape { pages, page_len, .. } = shape;
            let bytes = pages as f64 * (shape.page_bytes(format) * layers) as f64;
            let gib = bytes / f64::from(1 << 30);
            LoadError::Unsupported(format!(
                "a KV cache of {pages} blocks of {page_len} tokens needs {gib:.1} GiB, which are not to be had"
            ))
        })?;
        Ok(Self { page_len: shape.page_len, layers })
    }

    /// Tokens of a page.
    pub(crate) fn page_len(&self) -> usize {
        self.page_len
    }

    /// The pages of a layer. One that has fewer lends them again: what is computed whole needs nothing of the layers before.
    pub(crate) fn layer_mut(&mut self, at: usize) -> &mut Pages {
        let layers = self.layers.len();
        &mut self.layers[at % layers]
    }
}

/// A step laid out as one matrix: the tokens of all chunks, one row each.
#[derive(Debug)]
pub(crate) struct Ragged {
    pub(crate) tokens: Vec<TokenId>,
    /// Of each token in its sequence.
    pub(crate) positions: Vec<u32>,
    /// Of each token in the KV cache, over all pages.
    pub(crate) slots: Vec<usize>,
    chunks: Vec<Rows>,
    /// The pages of all chunks, behind each other.
    pages: Vec<u32>,
    /// Rows that a token will be sampled after, or one be scored.
    pub(crate) sampled: Vec<usize>,
}

impl Ragged {
    pub(crate) fn new(step: &Step<'_>, block_size: usize) -> Self {
        let rows = step.tokens();
        let mut ragged = Self {
            tokens: Vec::with_capacity(rows),
            positions: Vec::with_capacity(rows),
            slots: Vec::with_capacity(rows),
            chunks: Vec::with_capacity(step.chunks.len()),
            pages: Vec::new(),
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
            let end = chunk.start as usize + chunk.tokens.len();
            let first_page = ragged.pages.len();
            ragged.pages.extend(chunk.block_table[..end.div_ceil(block_size)].iter().map(|block| block.0));
            let pages = first_page..ragged.pages.len();
            ragged.chunks.push(Rows { start: chunk.start as usize, len: chunk.tokens.len(), pages });
            let end = ragged.tokens.len();
            let first = if chunk.score { end - chunk.tokens.len() } else { end - usize::from(chunk.sample) };
            ragged.sampled.extend(first..end);
        }
        ragged
    }

    /// The rows of each chunk.
    pub(crate) fn spans(&self) -> Vec<Span<'_>> {
        let span = |rows: &Rows| Span { start: rows.start, len: rows.len, pages: &self.pages[rows.pages.clone()] };
        self.chunks.iter().map(span).collect()
    }
}

/// The rows of one chunk.
#[derive(Debug)]
struct Rows {
    /// Position of the first.
    start: usize,
    len: usize,
    /// Of `Ragged::pages`.
    pages: Range<usize>,
}
