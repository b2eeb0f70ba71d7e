use crate::TokenId;

/// The vocabulary as plain data, built once when a model is loaded: token ids to bytes, and which of them are special.
///
/// One table serves detokenizing, stop strings, log-probabilities and prompt building, for every backend alike.
#[derive(Debug)]
pub struct Vocab {
    bytes: Vec<Box<[u8]>>,
    kinds: Vec<TokenKind>,
    eog: Vec<TokenId>,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    adds_bos: bool,
    closing: Option<TokenId>,
    specials: Vec<Special>,
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Text, or a byte of it.
    Text,
    /// A control token: it steers the model and is no text of the answer.
    Control,
    /// In the table only to fill a gap in the ids.
    Unused,
}

/// A control token and how a chat template spells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Special {
    /// Its spelling, such as `<|im_end|>`.
    pub text: String,
    /// Its id.
    pub id: TokenId,
}

/// What a [`Vocab`] is built from.
#[derive(Debug, Default)]
pub struct VocabParts {
    /// For each id, the bytes that it stands for and its kind. A control token's bytes are its spelling.
    pub tokens: Vec<(Box<[u8]>, Option<TokenKind>)>,
    /// Tokens that end generation.
    pub eog: Vec<TokenId>,
    /// Beginning of sequence.
    pub bos: Option<TokenId>,
    /// End of sequence.
    pub eos: Option<TokenId>,
    /// Whether plain prompts begin with `bos`.
    pub adds_bos: bool,
    /// What a text ends with that is complete, as one that is embedded is and a prompt is not.
    pub closing: Option<TokenId>,
}

impl Vocab {
    /// Builds the table.
    #[must_use]
    pub fn new(parts: VocabParts) -> Self {
        let VocabParts { tokens, mut eog, bos, eos, adds_bos, closing } = parts;
        let (bytes, kinds): (Vec<_>, Vec<_>) =
            tokens.into_iter().map(|(bytes, kind)| (bytes, kind.unwrap_or(TokenKind::Text))).unzip();
        eog.sort_unstable();
        eog.dedup();
        let mut specials: Vec<Special> = std::iter::zip(0.., std::iter::zip(&bytes, &kinds))
            .filter(|(_, (bytes, kind))| **kind == TokenKind::Control && !bytes.is_empty())
            .filter_map(|(id, (bytes, _))| Some(Special { text: std::str::from_utf8(bytes).ok()?.to_owned(), id }))
            .collect();
        // Longest first, so that the first match at a place is the longest one.
        specials.sort_by(|a, b| b.text.len().cmp(&a.text.len()).then_with(|| a.text.cmp(&b.text)));
        Self { bytes, kinds, eog, bos, eos, adds_bos, closing, specials }
    }

    /// Tokens in the table. The model may have more logits than this: the rest are padding.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the table has no token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes of a token; not always whole characters. Empty for an id outside the table.
    #[must_use]
    pub fn bytes(&self, token: TokenId) -> &[u8] {
        self.bytes.get(token as usize).map_or(&[], AsRef::as_ref)
    }

    /// Whether the token is text of an answer.
    #[must_use]
    pub fn is_text(&self, token: TokenId) -> bool {
        self.kinds.get(token as usize) == Some(&TokenKind::Text)
    }

    /// Whether the token steers the model and is no text.
    #[must_use]
    pub fn is_control(&self, token: TokenId) -> bool {
        self.kinds.get(token as usize) == Some(&TokenKind::Control)
    }

    /// Whether the token ends generation.
    #[must_use]
    pub fn is_eog(&self, token: TokenId) -> bool {
        self.eog.binary_search(&token).is_ok()
    }

    /// The tokens that end generation, in order of id.
    #[must_use]
    pub fn eog(&self) -> &[TokenId] {
        &self.eog
    }

    /// Beginning of sequence.
    #[must_use]
    pub fn bos(&self) -> Option<TokenId> {
        self.bos
    }

    /// End of sequence.
    #[must_use]
    pub fn eos(&self) -> Option<TokenId> {
        self.eos
    }

    /// What the model was trained to find in front of a plain text: the beginning of sequence, if it was.
    #[must_use]
    pub fn opening(&self) -> Option<TokenId> {
        self.bos.filter(|_| self.adds_bos)
    }

    /// What the model was trained to find behind a text that is complete: a separator, the end of sequence, or nothing.
    #[must_use]
    pub fn closing(&self) -> Option<TokenId> {
        self.closing
    }

    /// Control tokens and their spellings, longest spelling first.
    #[must_use]
    pub fn specials(&self) -> &[Special] {
        &self.specials
    }
}
