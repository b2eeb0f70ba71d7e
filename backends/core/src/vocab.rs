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
    separator: Option<TokenId>,
    fill_in_the_middle: Option<FillInTheMiddle>,
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

/// The tokens between which a model was trained to find what stands around the text that it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FillInTheMiddle {
    /// In front of what comes before.
    pub prefix: TokenId,
    /// In front of what comes after.
    pub suffix: TokenId,
    /// Behind both: the text between them follows.
    pub middle: TokenId,
}

impl FillInTheMiddle {
    /// Spellings by family: Qwen and others, `StarCoder`, `SantaCoder`, Code Llama, `DeepSeek`.
    const SPELLINGS: [[&'static str; 3]; 5] = [
        ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
        ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
        ["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],
        ["<PRE>", "<SUF>", "<MID>"],
        ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
    ];

    /// The first family that has all three among the tokens. Whether they are control tokens is not asked: not every tokenizer says so.
    fn find(tokens: &[Box<[u8]>]) -> Option<Self> {
        // Spellings are longer than most tokens, and begin alike. A piece of a sentence may begin with a space.
        let spelled = |bytes: &[u8]| -> Option<(usize, usize)> {
            let text = std::str::from_utf8(bytes).ok()?;
            let text = text.trim_start_matches([' ', '▁']);
            let in_family = |family: &[&str; 3]| family.iter().position(|spelling| *spelling == text);
            let family = |(at, family)| in_family(family).map(|place| (at, place));
            Self::SPELLINGS.iter().enumerate().find_map(family)
        };
        let mut found = [[None; 3]; Self::SPELLINGS.len()];
        for (id, bytes) in std::iter::zip(0.., tokens).filter(|(_, bytes)| bytes.len() >= 5 && bytes.contains(&b'<')) {
            if let Some((family, place)) = spelled(bytes) {
                found[family][place].get_or_insert(id);
            }
        }
        found
            .iter()
            .find_map(|&[prefix, suffix, middle]| Some(Self { prefix: prefix?, suffix: suffix?, middle: middle? }))
    }
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
    /// What a pair of texts has between them beside the closing of the first.
    pub separator: Option<TokenId>,
    /// What the model fills in the middle with, where its files name it; otherwise it is looked for by its spelling.
    pub fill_in_the_middle: Option<FillInTheMiddle>,
}

impl Vocab {
    /// Builds the table.
    #[must_use]
    pub fn new(parts: VocabParts) -> Self {
        let VocabParts { tokens, mut eog, bos, eos, adds_bos, closing, separator, fill_in_the_middle } = parts;
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
        let fill_in_the_middle = fill_in_the_middle.or_else(|| FillInTheMiddle::find(&bytes));
        Self { bytes, kinds, eog, bos, eos, adds_bos, closing, separator, fill_in_the_middle, specials }
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

    /// What the model was trained to find between two texts that it sees together, behind the closing of the first.
    #[must_use]
    pub fn separator(&self) -> Option<TokenId> {
        self.separator
    }

    /// What the model fills in the middle with, if it was trained to.
    #[must_use]
    pub fn fill_in_the_middle(&self) -> Option<FillInTheMiddle> {
        self.fill_in_the_middle
    }

    /// Control tokens and their spellings, longest spelling first.
    #[must_use]
    pub fn specials(&self) -> &[Special] {
        &self.specials
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocab(tokens: &[&str]) -> Vocab {
        let tokens = tokens.iter().map(|text| (Box::from(text.as_bytes()), None)).collect();
        Vocab::new(VocabParts { tokens, ..VocabParts::default() })
    }

    #[test]
    fn marks_for_filling_in_are_found_by_their_spelling_and_only_together() {
        let found = |tokens: &[&str]| {
            vocab(tokens).fill_in_the_middle().map(|marks| [marks.prefix, marks.suffix, marks.middle])
        };
        let qwen = ["a", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<PRE>"];
        assert_eq!(found(&qwen), Some([1, 3, 2]));
        assert_eq!(found(&["▁<MID>", "▁<PRE>", "▁<SUF>"]), Some([1, 2, 0]));
        assert_eq!(found(&["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"]), Some([0, 1, 2]));
        assert_eq!(found(&["<|fim_prefix|>", "<fim_suffix>", "<|fim_middle|>"]), None);
        assert_eq!(found(&["x<fim_prefix>", "<fim_suffix>", "<fim_middle>"]), None);
    }
}
