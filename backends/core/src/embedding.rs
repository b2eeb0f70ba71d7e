use std::fmt;

use crate::{DeviceError, TokenId};

/// Owns a loaded model that turns texts into vectors, on one thread.
///
/// One call is one forward pass over whole inputs; between two of them a backend remembers nothing. What the vectors are made to be
/// afterwards, such as of length 1, is decided above, once for all backends. No method has a default body.
pub trait EmbeddingBackend {
    /// What the model can do; the same for the backend's whole life.
    fn spec(&self) -> &EmbeddingSpec;

    /// Appends the vectors of `inputs` to `out`, in their order: [`dimensions`](EmbeddingSpec::dimensions) numbers for each, pooled and
    /// otherwise as the model gives them.
    ///
    /// `inputs` keep to the spec: at most [`max_inputs`](EmbeddingSpec::max_inputs) of them, none of them empty or longer than
    /// [`max_input_tokens`](EmbeddingSpec::max_input_tokens), and [`max_pass_tokens`](EmbeddingSpec::max_pass_tokens) tokens in all unless
    /// there is only one. The vector of an input does not depend on the others, but for rounding.
    ///
    /// # Errors
    /// When the backend is finished.
    fn embed(&mut self, inputs: &[&[TokenId]], out: &mut Vec<f32>) -> Result<(), DeviceError>;
}

/// What a loaded embedding model can do. Constant for the backend's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddingSpec {
    /// The backend's name, as in the configuration.
    pub name: &'static str,
    /// Token ids are below this.
    pub vocab_size: u32,
    /// Numbers in one vector.
    pub dimensions: u32,
    /// Tokens of one input.
    pub max_input_tokens: u32,
    /// Inputs of one pass.
    pub max_inputs: u32,
    /// Tokens of one pass over several inputs. A longer input has a pass to itself: what is best packed together, and what has to be possible
    /// at all, are different numbers.
    pub max_pass_tokens: u32,
    /// How the vector of an input comes from those of its tokens: for people to read, the backend does it. But a model that
    /// [ranks](Pooling::Rank) has no vectors.
    pub pooling: Pooling,
}

impl EmbeddingSpec {
    /// Whether the model tells how well documents answer a query, rather than what a text is like.
    #[must_use]
    pub fn ranks(&self) -> bool {
        self.pooling == Pooling::Rank
    }
}

/// Which beginnings of its vectors a model was trained to have good for vectors themselves (Matryoshka representation learning, Kusupati et
/// al. 2022).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Matryoshka {
    /// None: it is not known to have been trained so.
    #[default]
    No,
    /// Of any length.
    Any,
    /// Of these lengths.
    Sizes(Vec<u32>),
}

impl Matryoshka {
    /// Whether vectors of `dimensions` numbers may be cut to `asked`.
    #[must_use]
    pub fn allows(&self, asked: u32, dimensions: u32) -> bool {
        asked == dimensions
            || asked < dimensions
                && match self {
                    Self::No => false,
                    Self::Any => true,
                    Self::Sizes(sizes) => sizes.contains(&asked),
                }
    }
}

/// How the vector of an input comes from those of its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first one, which stands for the whole.
    Cls,
    /// The last one, which alone has seen all in a model that looks back only.
    Last,
    /// None of them: an input is a query and a document, and its vector one number from 0 to 1, which tells how well the document answers the
    /// query. 1 is best.
    Rank,
}

impl fmt::Display for Pooling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Last => "last",
            Self::Rank => "rank",
        })
    }
}
