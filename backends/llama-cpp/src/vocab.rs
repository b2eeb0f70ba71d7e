use llama_cpp_2::{
    model::LlamaModel,
    token::LlamaToken,
    token_type::{LlamaTokenAttr, LlamaTokenAttrs},
    vocab::LlamaVocab,
};
use tandem_core::{FillInTheMiddle, TokenId, TokenKind, Vocab, VocabParts};
use tandem_gguf::Header;

/// What decides what stands around texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VocabKind {
    /// As BERT has them.
    WordPieces,
    /// The unigrams of an encoder, whose pairs have two tokens between their texts; and whether the file says of that one way or the other.
    XlmRoberta {
        says_separator: bool,
    },
    Other,
}

impl VocabKind {
    pub(crate) fn of(header: &Header, architecture: &str) -> Self {
        match (header.text("tokenizer.ggml.model"), architecture) {
            (Some("bert"), _) => Self::WordPieces,
            (Some("t5"), "bert") => {
                Self::XlmRoberta { says_separator: header.flag("tokenizer.ggml.add_sep_token").is_some() }
            }
            _ => Self::Other,
        }
    }
}

/// The model's vocabulary as plain data. What kind it is of its file says: the wrapper panics when it is asked.
pub(crate) fn build(model: &LlamaModel, of: VocabKind, fill_in_the_middle: Option<FillInTheMiddle>) -> Vocab {
    let vocab = model.vocab();
    let has_word_pieces = of == VocabKind::WordPieces;
    let closing = if has_word_pieces { id(vocab.sep()) } else { id(vocab.eos()).filter(|_| vocab.should_add_eos()) };
    Vocab::new(VocabParts {
        tokens: vocab.tokens().map(|token| (bytes(&vocab, token), Some(kind(vocab.attr(token))))).collect(),
        eog: vocab.tokens().filter(|&token| vocab.is_eog(token)).filter_map(id).collect(),
        bos: id(vocab.bos()),
        eos: id(vocab.eos()),
        // llama.cpp puts WordPiece texts between CLS, which it calls BOS, and SEP whatever the file says.
        adds_bos: has_word_pieces || vocab.should_add_bos(),
        closing,
        separator: match of {
            // llama.cpp says that there is one, and means the one that ends a text.
            VocabKind::WordPieces => None,
            // Its files have not always said so.
            VocabKind::XlmRoberta { says_separator: false } => id(vocab.sep()).or(closing),
            VocabKind::XlmRoberta { says_separator: true } | VocabKind::Other => {
                id(vocab.sep()).filter(|_| vocab.should_add_sep())
            }
        },
        fill_in_the_middle,
    })
}

/// llama.cpp writes "there is none" as a negative id.
fn id(token: LlamaToken) -> Option<TokenId> {
    TokenId::try_from(token.0).ok()
}

/// What the token stands for, or how a control token is spelled. Bytes and no string: a token may be a part of a character.
fn bytes(vocab: &LlamaVocab<'_>, token: LlamaToken) -> Box<[u8]> {
    vocab.token_to_piece(token, true, None).into_boxed_slice()
}

/// Tokens that users added to a vocabulary are text, and so is a single byte. The token for "unknown" steers rather than speaks: nothing
/// that a user wrote reads like it.
fn kind(attrs: LlamaTokenAttrs) -> TokenKind {
    if attrs.intersects(LlamaTokenAttr::Control | LlamaTokenAttr::Unknown) {
        TokenKind::Control
    } else if attrs.intersects(LlamaTokenAttr::Normal | LlamaTokenAttr::UserDefined | LlamaTokenAttr::Byte) {
        TokenKind::Text
    } else {
        TokenKind::Unused
    }
}
