use thiserror::Error;

use crate::TokenId;

/// Text to token ids, as the model was trained. Belongs to the model but outlives its weights cheaply: it must not hold them.
pub trait Tokenizer: Send + Sync {
    /// Encodes `text` as plain text: control tokens that are spelled out in it are *not* recognised, and nothing is added in front or
    /// behind. Whoever builds a prompt places control tokens by their ids ([`Vocab::specials`](crate::Vocab::specials)), and so does whoever
    /// needs what a model wants around a text ([`Vocab::opening`](crate::Vocab::opening), [`Vocab::closing`](crate::Vocab::closing)).
    ///
    /// # Errors
    /// When the model's tokenizer cannot represent the text.
    fn encode(&self, text: &str) -> Result<Vec<TokenId>, TokenizeError>;
}

/// The tokenizer refused the text.
#[derive(Debug, Error)]
#[error("the model's tokenizer cannot encode this text: {0}")]
pub struct TokenizeError(pub String);
