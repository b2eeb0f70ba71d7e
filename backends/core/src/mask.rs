use std::fmt;

use crate::TokenId;

/// A set of tokens: one bit for each token of a vocabulary. Tokens beyond its length are not in it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TokenMask {
    /// Bit `t % 32` of word `t / 32` is token `t`, as grammar engines have it.
    words: Vec<u32>,
}

impl TokenMask {
    /// No token of a vocabulary of `vocab_size`.
    #[must_use]
    pub fn empty(vocab_size: u32) -> Self {
        Self { words: vec![0; vocab_size.div_ceil(32) as usize] }
    }

    /// Exactly these tokens of a vocabulary of `vocab_size`; others are passed over.
    #[must_use]
    pub fn of(vocab_size: u32, tokens: impl IntoIterator<Item = TokenId>) -> Self {
        let mut mask = Self::empty(vocab_size);
        tokens.into_iter().for_each(|token| mask.insert(token));
        mask
    }

    /// Adds a token; one beyond the vocabulary is passed over.
    pub fn insert(&mut self, token: TokenId) {
        if let Some(word) = self.words.get_mut(token as usize / 32) {
            *word |= 1 << (token % 32);
        }
    }

    /// Whether the token is in the set.
    #[must_use]
    pub fn contains(&self, token: TokenId) -> bool {
        self.words.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    /// Whether no token is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Tokens in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The bits, 32 tokens to a word, the first token lowest.
    #[must_use]
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Makes this the set that `words` tell, keeping the memory. Words beyond the vocabulary are passed over, missing ones are empty.
    pub fn assign(&mut self, words: &[u32]) {
        let shared = words.len().min(self.words.len());
        self.words[..shared].copy_from_slice(&words[..shared]);
        self.words[shared..].fill(0);
    }
}

impl fmt::Debug for TokenMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenMask({} of {} tokens)", self.len(), self.words.len() * 32)
    }
}
