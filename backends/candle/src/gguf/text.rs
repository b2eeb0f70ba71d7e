use std::panic::catch_unwind;

use tandem_core::{LoadError, TokenKind, VocabParts};
use tandem_gguf::{GgufFile, chat_template, fill_in_the_middle, sampling};

use super::{
    bpe,
    pre_tokenizer::PreTokenizer,
    sentence_piece,
    tokens::{Kind, Tokens, piece_bytes},
};
use crate::{directory::invalid, spelling::Spelling, tokenizer::Text, vocab::rejected};

/// The tokenizer, the vocabulary and the chat template that a file describes.
pub(super) fn text(file: &GgufFile) -> Result<Text, LoadError> {
    let refused = |reason: String| invalid(file.path(), reason);
    let model = Model::of(file).map_err(refused)?;
    let tokens = Tokens::read(file)?;
    let merges = match model {
        Model::Bpe(_) => file
            .strings("tokenizer.ggml.merges")?
            .ok_or_else(|| refused("holds no merges (`tokenizer.ggml.merges`)".to_owned()))?,
        Model::SentencePiece { .. } => Vec::new(),
    };
    // What the file says was checked before; this is for what was not thought of.
    let built = catch_unwind(|| match model {
        Model::Bpe(pre) => bpe::build(&tokens.all, &merges, pre),
        Model::SentencePiece { adds_space } => sentence_piece::build(&tokens.all, adds_space),
    });
    let inner = built.unwrap_or_else(|_| Err("the tokenizer cannot be built of it".to_owned())).map_err(refused)?;
    let parts = parts(file, model, tokens);
    let template = chat_template(file.header()).map_err(refused)?;
    let text = Text::new(inner, parts, template).map_err(|reason| refused(rejected(&reason)))?;
    Ok(Text { defaults: sampling(file.header()), ..text })
}

/// How a vocabulary becomes a tokenizer.
#[derive(Clone, Copy, Debug)]
enum Model {
    /// Byte-level words, which are put together by merges.
    Bpe(PreTokenizer),
    /// Pieces of text, which are put together by their scores.
    SentencePiece { adds_space: bool },
}

impl Model {
    fn of(file: &GgufFile) -> Result<Self, String> {
        let key = "tokenizer.ggml.model";
        match file.header().text(key) {
            // Files from before there were names have none.
            Some("gpt2") => PreTokenizer::find(match file.header().text("tokenizer.ggml.pre") {
                None | Some("") => "default",
                Some(name) => name,
            })
            .map(Self::Bpe),
            Some("llama") => {
                let adds_space = file.header().flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
                Ok(Self::SentencePiece { adds_space })
            }
            Some(other) => Err(format!("`{key}`: {other} is not supported by the candle backend; known: gpt2, llama")),
            None => Err(format!("holds no tokenizer (`{key}`)")),
        }
    }

    /// Whether a plain text begins with the token for it, where the file does not say.
    fn adds_bos(self) -> bool {
        match self {
            Self::Bpe(pre) => pre.adds_bos,
            Self::SentencePiece { .. } => true,
        }
    }
}

fn parts(file: &GgufFile, model: Model, tokens: Tokens) -> VocabParts {
    let (bos, eos) = (tokens.special(file, "bos"), tokens.special(file, "eos"));
    let flag = |name: &str| file.header().flag(&format!("tokenizer.ggml.{name}"));
    let adds_bos = flag("add_bos_token").unwrap_or(model.adds_bos()) && bos.is_some();
    let closing = eos.filter(|_| flag("add_eos_token") == Some(true));
    let Tokens { all, eog } = tokens;
    let token = |token: super::tokens::Token| -> (Box<[u8]>, Option<TokenKind>) {
        let bytes = match (token.kind, model) {
            (Kind::Unused | Kind::Undefined, _) => Box::default(),
            (Kind::Normal, Model::Bpe(_)) => Spelling::ByteLevel.bytes(&token.text),
            (Kind::Normal | Kind::Byte, Model::SentencePiece { .. }) => piece_bytes(&token),
            _ => token.text.as_bytes().into(),
        };
        (bytes, Some(token.kind.token_kind()))
    };
    VocabParts {
        tokens: all.into_iter().map(token).collect(),
        eog,
        bos,
        eos,
        adds_bos,
        closing,
        separator: None,
        fill_in_the_middle: fill_in_the_middle(file.header()),
    }
}
