/// What a loaded model can do. Constant for the backend's life; the engine plans within it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendSpec {
    /// The backend's name, as in the configuration: `llama-cpp`, `candle`, `sim`.
    pub name: &'static str,
    /// Logits in one row.
    pub vocab_size: u32,
    /// Tokens that one sequence may hold, prompt and output together.
    pub max_context: u32,
    /// Slots: sequences that may hold KV at the same time.
    pub max_sequences: u32,
    /// Tokens in one step, over all chunks.
    pub max_step_tokens: u32,
    /// How KV memory is divided among sequences.
    pub kv: KvLayout,
    /// Whether one step may hold chunks of several tokens beside single tokens of other sequences.
    pub mixes_phases: bool,
    /// Whether [`forward`](crate::InferenceBackend::forward) returns while the device still computes, so that the engine has work to do in
    /// the meantime. Where it does not, nobody should wait for a token until the next step is computed.
    pub overlaps: bool,
    /// The names of the adapters that were loaded with the model, in the order of their [`AdapterId`](crate::AdapterId)s.
    pub adapters: Vec<String>,
}

/// How KV memory is divided among sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvLayout {
    /// One region per slot, all drawing on `cells` token cells (llama.cpp with a unified KV cache).
    Slots {
        /// Tokens that fit over all slots.
        cells: u32,
        /// False for recurrent and sliding-window models, whose state cannot be cut in the middle: a slot is then either continued
        /// at its end or emptied.
        partial_reuse: bool,
    },
    /// Reference-counted pages of `block_size` tokens, addressed through a block table (paged attention).
    Blocks {
        /// Pages in all.
        count: u32,
        /// Tokens in one page.
        block_size: u32,
    },
}

impl KvLayout {
    /// Tokens that fit over all sequences.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        match *self {
            Self::Slots { cells, .. } => u64::from(cells),
            Self::Blocks { count, block_size } => u64::from(count) * u64::from(block_size),
        }
    }
}
