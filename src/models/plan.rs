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
    /// What of it lies where; one share where it is all in one place.
    pub shares: Vec<Share>,
    /// Layers on GPUs, and all there are, where GPUs are used.
    pub gpu_layers: Option<(u32, u32)>,
    pub parallel: u32,
    pub context: u32,
    pub trained: u32,
    /// With which as many sequences would fit; `None` for not even a short one.
    pub longest_context: Option<u32>,
    /// Which would fit with this context.
    pub most_sequences: Option<u32>,
    /// What steps compute, where that is known.
    pub work: Option<Work>,
}

/// What the steps of a model compute, and what attention reads for it. A multiplication and an addition are two operations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// Bytes of K and V of one token in one layer.
    pub kv_layer: u64,
    /// Operations of the products with the layers' weights, for a token.
    pub layers_flop: u64,
    /// Of the product that makes logits, for a token that has them.
    pub head_flop: u64,
    /// Of attention in one layer, for a token and one that it attends to.
    pub pair_flop: u64,
    /// What a token attends to in each layer, itself among it; `None` is all before it.
    pub windows: Vec<Option<usize>>,
}

/// What a plan reckons with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// What is free on this machine.
    Free,
    /// The same; where the settings are made for a GPU and there is none, what they say it has.
    Meant,
    /// So many bytes: of each GPU where the settings want GPUs, and of the machine otherwise.
    Given(u64),
}

/// What a model takes in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    pub place: Place,
    pub weights: u64,
    pub kv: u64,
    pub compute: u64,
    /// What there is for it, or was said to be.
    pub room: u64,
    /// What of that is to stay free.
    pub margin: u64,
}

/// Which memory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Ram,
    /// A size that was given, in place of the machine's.
    Given,
    /// As its driver names it.
    Gpu(String),
    /// The GPU that the settings are made for, and which is not in this machine.
    AbsentGpu,
}

impl Plan {
    /// Bytes in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        let Self { weights, kv, compute, .. } = self;
        weights + kv + compute
    }
}

impl Share {
    /// Bytes in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        let Self { weights, kv, compute, .. } = self;
        weights + kv + compute
    }
}
