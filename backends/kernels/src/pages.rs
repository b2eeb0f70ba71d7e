use half::{bf16, f16};

use crate::{
    PANEL,
    dense::{Brain, Dense, Half, Single},
    line::Line,
    lines::Lines,
};

/// How K and V are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvFormat {
    F32,
    F16,
    Bf16,
}

/// The shape of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    pub pages: usize,
    /// Tokens of a page: a multiple of [`PANEL`].
    pub page_len: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

/// K and V of one layer, in pages.
///
/// What a head has in a page lies together. Keys are in panels of 16 tokens, by dimension, since scores are products with tokens for outputs;
/// values are in panels of 16 dimensions, by token, since results are products with dimensions for outputs.
#[derive(Debug)]
pub struct Pages {
    format: KvFormat,
    shape: KvShape,
    keys: Lines,
    values: Lines,
}

impl KvShape {
    /// Lines of one head's keys and of its values in a page.
    fn lines(&self, format: KvFormat) -> (usize, usize) {
        let per_line = format.per_line();
        let keys = (self.page_len / PANEL) * self.head_dim.div_ceil(per_line);
        let values = self.head_dim.div_ceil(PANEL) * self.page_len.div_ceil(per_line);
        (keys, values)
    }

    /// Bytes that a page takes, of both.
    #[must_use]
    pub fn page_bytes(&self, format: KvFormat) -> usize {
        let (keys, values) = self.lines(format);
        (keys + values) * self.kv_heads * Line::BYTES
    }
}

impl KvFormat {
    /// Values of one output in a line.
    fn per_line(self) -> usize {
        match self {
            Self::F32 => Single::PER_LINE,
            Self::F16 => Half::PER_LINE,
            Self::Bf16 => Brain::PER_LINE,
        }
    }

    #[inline(always)]
    fn put(self, lines: &mut [Line], input: usize, output: usize, value: f32) {
        let Some(line) = lines.get_mut(input / self.per_line()) else { return };
        match self {
            Self::F32 => line.0[4 * output..][..4].copy_from_slice(&value.to_le_bytes()),
            Self::F16 => {
                line.0[2 * (PANEL * (input % 2) + output)..][..2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
            }
            Self::Bf16 => {
                line.0[2 * (PANEL * (input % 2) + output)..][..2].copy_from_slice(&bf16::from_f32(value).to_le_bytes());
            }
        }
    }
}

impl Pages {
    /// A cache of zeros, which the system maps when they are first written. `None` when it cannot promise as many.
    ///
    /// # Panics
    /// When pages are not whole panels.
    #[must_use]
    pub fn new(format: KvFormat, shape: KvShape) -> Option<Self> {
        assert!(shape.page_len.is_multiple_of(PANEL), "pages of {} tokens are no whole panels", shape.page_len);
        let (keys, values) = shape.lines(format);
        let heads = shape.pages.checked_mul(shape.kv_heads)?;
        Some(Self {
            format,
            shape,
            keys: Lines::zeros(heads.checked_mul(keys)?)?,
            values: Lines::zeros(heads.checked_mul(values)?)?,
        })
    }

    /// Its shape.
    #[must_use]
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    pub(crate) fn format(&self) -> KvFormat {
        self.format
    }

    /// Stores one token's K and V, head behind head, in a slot counted over all pages.
    ///
    /// # Panics
    /// When there is no such slot, or the values are not those of all heads.
    pub fn store(&mut self, slot: usize, key: &[f32], value: &[f32]) {
        let KvShape { page_len, kv_heads, head_dim, .. } = self.shape;
        assert!(key.len() == kv_heads * head_dim && value.len() == key.len(), "K and V of all heads");
        let (page, token) = (slot / page_len, slot % page_len);
        let (key_lines, value_lines) = self.shape.lines(self.format);
        let key_panel = key_lines / (page_len / PANEL);
        let value_panel = value_lines / head_dim.div_ceil(PANEL);
        let heads = key.chunks_exact(head_dim).zip(value.chunks_exact(head_dim));
        for (head, (key, value)) in heads.enumerate() {
            let head = page * kv_heads + head;
            let lines = &mut self.keys[head * key_lines + token / PANEL * key_panel..][..key_panel];
            for (dimension, key) in key.iter().enumerate() {
                self.format.put(lines, dimension, token % PANEL, *key);
            }
            let lines = &mut self.values[head * value_lines..][..value_lines];
            for (panel, values) in value.chunks(PANEL).enumerate() {
                let lines = &mut lines[panel * value_panel..][..value_panel];
                for (output, value) in values.iter().enumerate() {
                    self.format.put(lines, token, output, *value);
                }
            }
        }
    }

    /// The keys of one head for the 16 tokens from `16 * panel` on.
    #[inline(always)]
    pub(crate) fn keys(&self, page: usize, head: usize, panel: usize) -> &[Line] {
        let (lines, _) = self.shape.lines(self.format);
        let per_panel = self.shape.head_dim.div_ceil(self.format.per_line());
        &self.keys[(page * self.shape.kv_heads + head) * lines + panel * per_panel..][..per_panel]
    }

    /// The values of one head for the 16 dimensions from `16 * panel` on.
    #[inline(always)]
    pub(crate) fn values(&self, page: usize, head: usize, panel: usize) -> &[Line] {
        let (_, lines) = self.shape.lines(self.format);
        let per_panel = self.shape.page_len.div_ceil(self.format.per_line());
        &self.values[(page * self.shape.kv_heads + head) * lines + panel * per_panel..][..per_panel]
    }
}
