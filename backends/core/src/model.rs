use thiserror::Error;

use crate::TokenId;

/// How a model's makers would have its tokens chosen, where a request does not say: what its files say, and nothing else.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// From 0 to 2.
    pub temperature: Option<f32>,
    /// 0 for all.
    pub top_k: Option<u32>,
    /// From 0 to 1.
    pub top_p: Option<f32>,
    /// From 0 to 1.
    pub min_p: Option<f32>,
    /// From 0 to 1.
    pub typical_p: Option<f32>,
    /// Above 0, to 10.
    pub repetition_penalty: Option<f32>,
    /// From -2 to 2.
    pub frequency_penalty: Option<f32>,
    /// From -2 to 2.
    pub presence_penalty: Option<f32>,
    /// Tokens of an answer.
    pub max_tokens: Option<u32>,
}

impl GenerationDefaults {
    /// Without the figures that no request could ask for: a file may say anything.
    #[must_use]
    pub fn within_range(self) -> Self {
        let keep = |value: Option<f32>, low: f32, high: f32| value.filter(|value| (low..=high).contains(value));
        Self {
            temperature: keep(self.temperature, 0.0, 2.0),
            top_k: self.top_k,
            top_p: keep(self.top_p, 0.0, 1.0),
            min_p: keep(self.min_p, 0.0, 1.0),
            typical_p: keep(self.typical_p, 0.0, 1.0),
            repetition_penalty: keep(self.repetition_penalty, f32::MIN_POSITIVE, 10.0),
            frequency_penalty: keep(self.frequency_penalty, -2.0, 2.0),
            presence_penalty: keep(self.presence_penalty, -2.0, 2.0),
            max_tokens: self.max_tokens.filter(|tokens| *tokens > 0),
        }
    }
}

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
