use super::{F32, I64, Norm, blocks, grid, optional, size};
use crate::{
    Buffer, CudaError, Device, Number, Place,
    executor::{Arg, Extent},
};

/// Keys and values of one layer. A page has, for each KV head, the vectors of `page_len` tokens.
#[derive(Debug)]
pub struct KvPages {
    pub(super) keys: Buffer,
    pub(super) values: Buffer,
    pub(super) number: Number,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) page_len: usize,
    pages: usize,
}

impl KvPages {
    /// Room for so many pages, all zeros.
    ///
    /// # Errors
    /// Those of the device, among them that it has too little memory.
    pub fn new(
        device: &Device,
        number: Number,
        pages: usize,
        page_len: usize,
        kv_heads: usize,
        head_dim: usize,
    ) -> Result<Self, CudaError> {
        let bytes = pages * page_len * kv_heads * head_dim * number.bytes();
        let (keys, values) = (device.allocate(bytes)?, device.allocate(bytes)?);
        // What nobody has written is read where a step is made larger than it is.
        keys.clear()?;
        values.clear()?;
        Ok(Self { keys, values, number, kv_heads, head_dim, page_len, pages })
    }

    /// Tokens that there is room for.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.pages * self.page_len
    }

    /// Waits for the device, and reads the keys and the values of a token, head after head.
    ///
    /// # Errors
    /// Those of the device.
    pub fn token(&self, slot: usize) -> Result<(Vec<f32>, Vec<f32>), CudaError> {
        let read = |buffer: &Buffer| {
            let mut numbers = Vec::new();
            let mut bytes = vec![0; self.head_dim * self.number.bytes()];
            for head in 0..self.kv_heads {
                let (page, place) = (slot / self.page_len, slot % self.page_len);
                let vector = (page * self.kv_heads + head) * self.page_len + place;
                buffer.read(vector * bytes.len(), &mut bytes)?;
                numbers.extend(self.number.read(&bytes));
            }
            Ok(numbers)
        };
        Ok((read(&self.keys)?, read(&self.values)?))
    }

    /// Puts keys and values of a token there, head after head.
    ///
    /// # Errors
    /// Those of the device.
    pub fn put_token(&self, slot: usize, keys: &[f32], values: &[f32]) -> Result<(), CudaError> {
        for (buffer, vectors) in [(&self.keys, keys), (&self.values, values)] {
            for (head, vector) in vectors.chunks_exact(self.head_dim).enumerate() {
                let (page, place) = (slot / self.page_len, slot % self.page_len);
                let at = (page * self.kv_heads + head) * self.page_len + place;
                let mut bytes = Vec::new();
                self.number.write(vector, &mut bytes);
                buffer.write(at * bytes.len(), &bytes)?;
            }
        }
        Ok(())
    }

    pub(super) fn bytes(&self) -> usize {
        self.slots() * self.kv_heads * self.head_dim * self.number.bytes()
    }
}

/// Norms of queries and keys: over each head by itself, or over all of them together.
#[derive(Clone, Copy, Debug)]
pub struct HeadNorms<'a> {
    pub queries: Norm<'a>,
    pub keys: &'a Buffer,
    pub per_head: bool,
}

impl Device {
    /// Finishes the queries and keys of each row of `qkv` (F32: queries, then keys, then values), and puts keys and values where `slots` (I64)
    /// says, or nowhere for a negative one: adds the bias, normalises, and turns by `turns`, which are what [`angles`](Self::angles) wrote,
    /// `pairs` of them for each row.
    ///
    /// # Errors
    /// Those of the device.
    #[expect(clippy::too_many_arguments, reason = "operands and their shape")]
    pub fn rope_store(
        &self,
        qkv: Place<'_>,
        rows: usize,
        heads: usize,
        bias: Option<&Buffer>,
        norms: Option<HeadNorms<'_>>,
        turns: Option<(Place<'_>, usize)>,
        pages: &KvPages,
        slots: Place<'_>,
    ) -> Result<(), CudaError> {
        let &KvPages { number, kv_heads, head_dim, page_len, .. } = pages;
        let (q_width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        let width = q_width + 2 * kv_width;
        let (q_norm, k_norm) =
            norms.map_or(
                (head_dim, head_dim),
                |norms| {
                    if norms.per_head { (head_dim, head_dim) } else { (q_width, kv_width) }
                },
            );
        // The kernel tells heads from rows of them by the length of a run.
        assert!(norms.is_none_or(|norms| norms.per_head || q_width != head_dim), "one head is normalised by itself");
        let (turns, pairs) = turns.map_or((Arg::Address(0), 0), |(turns, pairs)| {
            assert!(2 * pairs <= head_dim, "{pairs} pairs in a head of {head_dim}");
            (turns.for_bytes(rows * pairs * 2 * F32), pairs)
        });
        let arguments = [
            qkv.for_bytes(rows * width * F32),
            optional(bias, width),
            optional(norms.map(|norms| norms.queries.weight), q_norm),
            optional(norms.map(|norms| norms.keys), k_norm),
            size(if norms.is_some() { q_norm } else { 0 }),
            Arg::F32(norms.map_or(0.0, |norms| norms.queries.eps)),
            turns,
            size(pairs),
            pages.keys.all().for_bytes(pages.bytes()),
            pages.values.all().for_bytes(pages.bytes()),
            slots.for_bytes(rows * I64),
            size(heads),
            size(kv_heads),
            size(head_dim),
            size(page_len),
        ];
        // A warp for each vector of a head, in blocks of four; but where all heads of a row are normalised together they are one block's.
        let together = norms.is_some_and(|norms| !norms.per_head);
        let (blocks, threads) = if together { (1, 512) } else { (blocks(heads + 2 * kv_heads, 4), 128) };
        let extent = Extent { grid: [grid(rows), blocks, 1], threads, shared_bytes: 0 };
        self.launch(&format!("rope_store_{}", number.kernel()), extent, &arguments)
    }
}
