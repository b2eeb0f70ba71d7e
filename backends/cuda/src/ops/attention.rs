use super::{F32, I32, KvPages, grid, size};
use crate::{
    Buffer, CudaError, Device, Number, Place,
    executor::{Arg, Extent},
};

/// Rows of a prompt that are computed together on tensor cores.
pub const PROMPT_ROWS: usize = 64;

/// Rows that one launch computes one by one, at most.
const ROWS_AT_A_TIME: usize = 256;
/// Bytes that are read at once.
const VECTOR: usize = 16;
const THREADS: u32 = 128;
const WARPS: usize = 4;
/// Parts that a row's tokens are looked at in, at most.
const MOST_SPLITS: usize = 32;
/// Sizes of heads that there are fast kernels for.
const SIZES: [usize; 4] = [64, 96, 128, 256];
/// The largest that there is any for.
const LARGEST: usize = 512;

/// How the queries of a model look at keys and values, and room to do it in.
#[derive(Debug)]
pub struct Attention {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    scale: f32,
    cap: Option<f32>,
    processors: usize,
    flash: bool,
    parts: Buffer,
    totals: Buffer,
}

/// What attention reads and writes in a step of so many rows.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// Queries, keys and values of each row, in F32; queries are read.
    pub qkv: Place<'a>,
    pub rows: usize,
    pub pages: &'a KvPages,
    /// Tokens that a token sees, itself among them; `None` is all before it.
    pub window: Option<usize>,
    /// The numbers of the pages of each sequence, in I32, `table_stride` apart.
    pub tables: Place<'a>,
    pub table_stride: usize,
    pub sequences: usize,
    /// One row for each, of all heads, in `number`.
    pub out: Place<'a>,
    pub number: Number,
}

impl Attention {
    /// For heads of any size up to 512. Products of queries and keys are multiplied with `scale`, and kept softly within `cap`.
    ///
    /// # Errors
    /// Those of the device; larger heads as [`CudaError::Unavailable`].
    pub fn new(
        device: &Device,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        scale: f32,
        cap: Option<f32>,
    ) -> Result<Self, CudaError> {
        if head_dim > LARGEST {
            return Err(CudaError::Unavailable(format!(
                "heads of {head_dim} numbers are more than a GPU kernel has registers for"
            )));
        }
        let processors = device.processors() as usize;
        let most = most_parts(processors, heads, kv_heads, head_dim);
        let parts = device.allocate(most * head_dim * F32)?;
        let totals = device.allocate(most * 2 * F32)?;
        let flash = device.has_flash_attention();
        Ok(Self { heads, kv_heads, head_dim, scale, cap, processors, flash, parts, totals })
    }

    /// Bytes that one takes of a device with so many processors.
    #[must_use]
    pub fn bytes(processors: u32, heads: usize, kv_heads: usize, head_dim: usize) -> usize {
        most_parts(processors as usize, heads, kv_heads, head_dim) * (head_dim + 2) * F32
    }

    /// Whether prompts are computed on tensor cores, with activations and a cache of these numbers.
    #[must_use]
    pub fn has_prompts(&self, number: Number, kv: Number) -> bool {
        let numbers = match number {
            Number::Bf16 => [Number::Bf16, Number::F16, Number::F8].contains(&kv),
            Number::F16 => [Number::F16, Number::F8].contains(&kv),
            Number::F32 | Number::F8 => false,
        };
        SIZES.contains(&self.head_dim) && numbers
    }

    /// Tokens that FlashAttention-2's kernels look at at a time, where a device has them and they can be used for such activations and such a
    /// cache: both have the same numbers, and no tile is in two pages.
    #[must_use]
    pub fn flash_keys(&self, number: Number, kv: Number, page_len: usize) -> Option<usize> {
        let fits = self.flash && number == kv && self.has_prompts(number, kv);
        let keys = if self.head_dim <= 128 { [64, 32] } else { [32, 32] };
        keys.into_iter().find(|keys| fits && page_len.is_multiple_of(*keys))
    }

    /// Attention of `count` single rows, whose numbers `list` has; `sequences` and `positions` have the number of its sequence and the position
    /// of each row of the step. All are in I32. Writes the rows of `out` that these are.
    ///
    /// # Errors
    /// Those of the device.
    pub fn rows(
        &self,
        device: &Device,
        scene: &Scene<'_>,
        list: Place<'_>,
        count: usize,
        sequences: Place<'_>,
        positions: Place<'_>,
    ) -> Result<(), CudaError> {
        let &Self { heads, kv_heads, head_dim, .. } = self;
        let kv = scene.pages.number;
        let blocks = blocks_of_row(heads, kv_heads, head_dim, kv);
        for first in (0..count).step_by(ROWS_AT_A_TIME) {
            let now = (count - first).min(ROWS_AT_A_TIME);
            let splits = splits(self.processors, now, blocks);
            let list = list.skip(first * I32).for_bytes(now * I32);
            let parts = self.parts.all().for_bytes(now * heads * splits * head_dim * F32);
            let totals = self.totals.all().for_bytes(now * heads * splits * 2 * F32);
            let mut arguments = self.scene(scene, true);
            arguments.extend([
                list,
                sequences.for_bytes(scene.rows * I32),
                positions.for_bytes(scene.rows * I32),
                size(splits),
                parts,
                totals,
                self.out(scene),
                Arg::I32(match scene.number {
                    Number::F32 => 0,
                    Number::Bf16 => 1,
                    Number::F16 => 2,
                    Number::F8 => return Err(CudaError::Unavailable("attention in eight bits".to_owned())),
                }),
            ]);
            let (kernel, together) = match heads_together(heads, kv_heads, head_dim, kv) {
                Some(together) => (format!("attend_{}_{head_dim}_{together}", kv.kernel()), together),
                None => (format!("attend_{}_any", kv.kernel()), 1),
            };
            let shared_bytes = grid(WARPS * together * (head_dim + 2) * F32);
            let extent = Extent { grid: [grid(splits), grid(blocks), grid(now)], threads: THREADS, shared_bytes };
            device.launch(&kernel, extent, &arguments)?;
            // What is one part is already where it belongs.
            if splits == 1 {
                continue;
            }
            let window = size(scene.window.unwrap_or(0));
            let arguments = [
                parts,
                totals,
                list,
                positions.for_bytes(scene.rows * I32),
                window,
                self.out(scene),
                size(head_dim),
                size(splits),
            ];
            let extent = Extent { grid: [grid(heads), grid(now), 1], threads: THREADS, shared_bytes: 0 };
            device.launch(&format!("attend_join_{}", scene.number.kernel()), extent, &arguments)?;
        }
        Ok(())
    }

    /// Attention of `count` runs of up to [`PROMPT_ROWS`] rows of one sequence each. `runs` has four lists in I32, behind each other: of each
    /// run the first row, the number of rows, the number of its sequence, and the position of its first row.
    ///
    /// # Errors
    /// Those of the device.
    pub fn prompts(&self, device: &Device, scene: &Scene<'_>, runs: Place<'_>, count: usize) -> Result<(), CudaError> {
        let &Self { heads, kv_heads, head_dim, cap, .. } = self;
        let (number, pages) = (scene.number, scene.pages);
        let mut arguments = self.scene(scene, false);
        arguments.extend((0..4).map(|list| runs.skip(list * count * I32).for_bytes(count * I32)));
        arguments.push(self.out(scene));
        // Queries of so many heads, and so many keys and values at a time.
        let extent = |blocks: usize, together: usize, keys: usize| {
            let shared_bytes = (together * PROMPT_ROWS + 2 * keys) * head_dim * number.bytes();
            Extent { grid: [grid(blocks), grid(count), 1], threads: THREADS, shared_bytes: grid(shared_bytes) }
        };
        if let Some(keys) = self.flash_keys(number, pages.number, pages.page_len) {
            let kind = match (scene.window, cap) {
                (None, None) => "all",
                (Some(_), None) => "window",
                (None, Some(_)) => "cap",
                (Some(_), Some(_)) => "window_cap",
            };
            let kernel = format!("flash_{}_{head_dim}_{keys}_{kind}", number.kernel());
            return device.launch(&kernel, extent(heads, 1, keys), &arguments);
        }
        let vectors = pages.bytes() / VECTOR;
        assert!(u32::try_from(vectors).is_ok(), "a kernel numbers what 16 bytes of a cache there are with 32 bits");
        let group = heads / kv_heads;
        // Two heads that share their keys make twice as much of each that is read. The largest have no registers for it.
        let together = if group > 1 && head_dim <= 128 { 2 } else { 1 };
        let keys = if head_dim < 128 { 64 } else { 32 };
        let extent = extent(kv_heads * group.div_ceil(together), together, keys);
        let kernel = format!("prefill_{}_{}_{head_dim}_{together}", number.kernel(), pages.number.kernel());
        device.launch(&kernel, extent, &arguments)
    }

    /// What the kernels have in common; those for prompts know the size of heads.
    fn scene(&self, scene: &Scene<'_>, with_size: bool) -> Vec<Arg> {
        let &Self { heads, kv_heads, head_dim, scale, cap, .. } = self;
        let &Scene { qkv, rows, pages, window, tables, table_stride, sequences, .. } = scene;
        assert!((kv_heads, head_dim) == (pages.kv_heads, pages.head_dim), "pages of another model");
        let width = (heads + 2 * kv_heads) * head_dim;
        let mut arguments = vec![
            qkv.for_bytes(rows * width * F32),
            size(width),
            tables.for_bytes(sequences * table_stride * I32),
            size(table_stride),
            size(pages.page_len),
            size(heads),
            size(kv_heads),
        ];
        arguments.extend(with_size.then(|| size(head_dim)));
        arguments.extend([
            Arg::F32(scale),
            Arg::F32(cap.unwrap_or(0.0)),
            size(window.unwrap_or(0)),
            pages.keys.all().for_bytes(pages.bytes()),
            pages.values.all().for_bytes(pages.bytes()),
        ]);
        arguments
    }

    fn out(&self, scene: &Scene<'_>) -> Arg {
        scene.out.for_bytes(scene.rows * self.heads * self.head_dim * scene.number.bytes())
    }
}

/// Query heads that a block computes, of those that share a KV head; `None` where one kernel is for all sizes.
fn heads_together(heads: usize, kv_heads: usize, head_dim: usize, kv: Number) -> Option<usize> {
    // A vector of eight-bit numbers fits a head of 96 no way.
    let fits = SIZES.contains(&head_dim) && (kv, head_dim) != (Number::F8, 96);
    fits.then(|| match heads / kv_heads {
        1 => 1,
        2 => 2,
        // Few lanes hold a vector of 96, and have no registers for more.
        _ if head_dim == 96 => 2,
        _ => 4,
    })
}

/// Blocks that a row needs for each part of its tokens.
fn blocks_of_row(heads: usize, kv_heads: usize, head_dim: usize, kv: Number) -> usize {
    match heads_together(heads, kv_heads, head_dim, kv) {
        Some(together) => kv_heads * (heads / kv_heads).div_ceil(together),
        None => heads,
    }
}

/// Parts of rows and heads that one launch makes, at most.
fn most_parts(processors: usize, heads: usize, kv_heads: usize, head_dim: usize) -> usize {
    let parts = |kv| {
        let blocks = blocks_of_row(heads, kv_heads, head_dim, kv);
        (1..=ROWS_AT_A_TIME).map(|rows| rows * splits(processors, rows, blocks)).max().unwrap_or(1) * heads
    };
    parts(Number::F16).max(parts(Number::F8))
}

/// Parts that the tokens of a row are looked at in, so that no processor is idle.
fn splits(processors: usize, rows: usize, blocks: usize) -> usize {
    (2 * processors).div_ceil(rows * blocks).clamp(1, MOST_SPLITS)
}
