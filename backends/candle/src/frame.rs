use tandem_core::{TokenId, VocabParts};
use tokenizers::Tokenizer;

/// What a tokenizer puts around a text that is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    opening: Option<TokenId>,
    closing: Option<TokenId>,
}

impl Frame {
    /// Found by a text: which tokens the post-processor has put before and behind those that it has anyway.
    pub(crate) fn find(tokenizer: &Tokenizer) -> Result<Self, String> {
        const TEXT: &str = "a";
        let ids = |special| {
            let encoding = tokenizer.encode_fast(TEXT, special).map_err(|error| error.to_string())?;
            Ok::<_, String>(encoding.get_ids().to_vec())
        };
        let (plain, framed) = (ids(false)?, ids(true)?);
        let places = framed.windows(plain.len().max(1)).position(|window| window == plain);
        let at = places.ok_or_else(|| format!("its post_processor changes more of a text than the ends: {TEXT:?}"))?;
        let (opening, closing) = (&framed[..at], &framed[at + plain.len()..]);
        match (opening, closing) {
            (_, []) | (_, [_]) if opening.len() < 2 => {
                Ok(Self { opening: opening.first().copied(), closing: closing.first().copied() })
            }
            _ => Err(format!(
                "its post_processor puts {opening:?} and {closing:?} around a text, where one token is supported at each end"
            )),
        }
    }

    /// What the tokenizer puts between the texts of a pair, beside the end of the first one. The model tells the second from the first where
    /// it has `types` of tokens.
    pub(crate) fn separator(self, tokenizer: &Tokenizer, types: usize) -> Result<Option<TokenId>, String> {
        const FIRST: &str = "a";
        const SECOND: &str = "b";
        let plain = |text| {
            let encoding = tokenizer.encode_fast(text, false).map_err(|error| error.to_string())?;
            Ok::<_, String>(encoding.get_ids().to_vec())
        };
        let pair = tokenizer.encode_fast((FIRST, SECOND), true).map_err(|error| error.to_string())?;
        let closing = self.closing.ok_or("its post_processor puts nothing between a query and a document")?;
        let (second, begin) = (plain(SECOND)?, self.opening.into_iter().chain(plain(FIRST)?).chain([closing]));
        let end: Vec<_> = second.iter().copied().chain([closing]).collect();
        let begin: Vec<_> = begin.collect();
        let (ids, kinds) = (pair.get_ids(), pair.get_type_ids());
        let between = ids.strip_prefix(&*begin).and_then(|rest| rest.strip_suffix(&*end));
        let separator = match between {
            Some([]) => None,
            Some(&[separator]) => Some(separator),
            Some(_) | None => {
                return Err(format!("its post_processor makes {ids:?} of a pair of texts, {FIRST:?} and {SECOND:?}"));
            }
        };
        let split = ids.len() - end.len();
        // As the model computes it. One that has a single type is told of none.
        let expected = (0..ids.len()).map(|at| u32::from(at >= split));
        if types > 1 && !expected.eq(kinds.iter().copied()) {
            return Err(format!("its post_processor gives the tokens of a pair the types {kinds:?}"));
        }
        Ok(separator)
    }

    /// Refuses a frame that is another one than `tokenizer_config.json` asks for by a flag: either could be what the model was trained with.
    pub(crate) fn check(self, adds_bos: Option<bool>, adds_eos: Option<bool>) -> Result<(), String> {
        let ends = [("add_bos_token", adds_bos, self.opening), ("add_eos_token", adds_eos, self.closing)];
        match ends.into_iter().find(|(_, flag, token)| flag.is_some_and(|flag| flag != token.is_some())) {
            Some((flag, _, Some(token))) => {
                Err(format!("{flag} is false, and the post_processor of tokenizer.json adds token {token}"))
            }
            Some((flag, _, None)) => {
                Err(format!("{flag} is true, and the post_processor of tokenizer.json adds nothing"))
            }
            None => Ok(()),
        }
    }

    /// Makes it that of a vocabulary, where what a text opens with is called the beginning of sequence.
    pub(crate) fn put_into(self, parts: &mut VocabParts) {
        parts.bos = self.opening.or(parts.bos);
        parts.adds_bos = self.opening.is_some();
        parts.closing = self.closing;
    }
}
