use llama_cpp_2::{
    model::LlamaModel,
    token::LlamaToken,
    token_type::{LlamaTokenAttr, LlamaTokenAttrs},
    vocab::LlamaVocab,
};
use tandem_core::{FillInTheMiddle, TokenId, TokenKind, Vocab, VocabParts};

/// The model's vocabulary as plain data. Whether it is one of word pieces its file says: the wrapper panics when it is asked.
pub(crate) fn build(model: &LlamaModel, has_word_pieces: bool, fill_in_the_middle: Option<FillInTheMiddle>) -> Vocab {
    let vocab = model.vocab();
    Vocab::new(VocabParts {
        tokens: vocab.tokens().map(|token| (bytes(&vocab, token), Some(kind(vocab.attr(token))))).collect(),
        eog: vocab.tokens().filter(|&token| vocab.is_eog(token)).filter_map(id).collect(),
        bos: id(vocab.bos()),
        eos: id(vocab.eos()),
        // llama.cpp puts WordPiece texts between CLS, which it calls BOS, and SEP whatever the file says.
        adds_bos: has_word_pieces || vocab.should_add_bos(),
        closing: if has_word_pieces { id(vocab.sep()) } else { id(vocab.eos()).filter(|_| vocab.should_add_eos()) },
        // Of word pieces llama.cpp says so too, and means the one that ends a text.
        separator: id(vocab.sep()).filter(|_| vocab.should_add_sep() && !has_word_pieces),
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
