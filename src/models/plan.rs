/// How much memory a model would take, and what would fit. All sizes are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub weights: u64,
    /// Of them those of which a step reads but the rows of its tokens: a table of embeddings that no head shares.
    pub looked_up: u64,
    /// The same by the type that they are kept in; empty where that is not known.
    pub formats: Vec<(String, u64)>,
    pub kv: u64,
    /// Room to compute in.
    pub compute: u64,
    /// What there is for it, or was said to be.
    pub room: u64,
    /// Where that is, for people.
    pub place: &'static str,
    pub parallel: u32,
    pub context: u32,
    pub trained: u32,
    /// With which as many sequences would fit; `None` for not even a short one.
    pub longest_context: Option<u32>,
    /// Which would fit with this context.
    pub most_sequences: Option<u32>,
}

impl Plan {
    /// Bytes in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        let Self { weights, kv, compute, .. } = self;
        weights + kv + compute
    }
}
