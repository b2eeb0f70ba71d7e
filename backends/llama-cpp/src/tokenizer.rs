use llama_cpp_2::model::{LlamaModel, params::LlamaModelParams};
use tandem_core::{LoadError, TokenId, TokenizeError, Tokenizer};

use crate::model_file::ModelFile;

/// llama.cpp measures texts and token lists in signed 32-bit numbers, and some vocabularies write three bytes for a space. Far above any
/// request, far below where that could overflow.
const MAX_TEXT_BYTES: usize = 256 << 20;

/// llama.cpp's own tokenizer, over a second load of the file that reads the vocabulary alone: whoever keeps a tokenizer keeps no weights.
#[derive(Debug)]
pub(crate) struct GgufTokenizer {
    model: LlamaModel,
}

impl GgufTokenizer {
    pub(crate) fn load(file: &ModelFile) -> Result<Self, LoadError> {
        let params = LlamaModelParams::default().with_vocab_only(true);
        Ok(Self { model: file.load(&params)? })
    }
}

impl Tokenizer for GgufTokenizer {
    fn encode(&self, text: &str) -> Result<Vec<TokenId>, TokenizeError> {
        if text.contains('\0') {
            return Err(TokenizeError("it contains a NUL character".into()));
        }
        if text.len() > MAX_TEXT_BYTES {
            return Err(TokenizeError(format!("it has {} bytes, {MAX_TEXT_BYTES} at most", text.len())));
        }
        // Neither flag: no BOS is added, and control tokens that the text spells out are read as the text they are.
        let tokens = self.model.vocab().tokenize(text.as_bytes(), false, false);
        tokens
            .into_iter()
            .map(|token| TokenId::try_from(token.0).map_err(|_| TokenizeError(format!("llama.cpp gave token {token}"))))
            .collect()
    }
}
