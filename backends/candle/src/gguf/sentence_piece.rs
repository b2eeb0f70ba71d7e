use std::cmp::Ordering;

use tokenizers::{
    NormalizerWrapper, Tokenizer,
    models::bpe::{BPE, Merges, Vocab},
    normalizers::{Prepend, Replace, Sequence},
};

use super::{
    bpe::{add_user_defined, spoken},
    tokens::{Kind, Token, spelled_byte},
};
use crate::spelling::SPACE_MARK;

/// A vocabulary of pieces of text with scores. The best piece that two neighbours make is put together first, which is what merges in order
/// of score do; a character that is no piece becomes bytes.
pub(super) fn build(tokens: &[Token], adds_space: bool) -> Result<Tokenizer, String> {
    let vocab = spoken(tokens);
    if let Some(byte) = (0..=255u8).find(|byte| !vocab.contains_key(&spelled_byte(*byte))) {
        return Err(format!("`tokenizer.ggml.tokens`: {} is missing, which spells a byte", spelled_byte(byte)));
    }
    let merges = merges(tokens, &vocab);
    let model = BPE::builder().vocab_and_merges(vocab, merges).byte_fallback(true).build();
    let mut tokenizer = Tokenizer::new(model.map_err(|error| error.to_string())?);
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if adds_space {
        steps.push(Prepend::new(SPACE_MARK.to_owned()).into());
    }
    steps.push(Replace::new(" ", SPACE_MARK).map_err(|error| error.to_string())?.into());
    tokenizer.with_normalizer(Some(Sequence::new(steps))).map_err(|error| error.to_string())?;
    add_user_defined(&mut tokenizer, tokens)?;
    Ok(tokenizer)
}

/// Every way to make a piece of two others, best pieces first.
fn merges(tokens: &[Token], vocab: &Vocab) -> Merges {
    // Bytes are spelled, not written; added tokens are found before anything is merged.
    let made = |token: &&Token| matches!(token.kind, Kind::Normal | Kind::Unused | Kind::Undefined);
    let mut ways: Vec<(&Token, &str, &str)> = Vec::new();
    for token in tokens.iter().filter(made) {
        for (middle, _) in token.text.char_indices().skip(1) {
            let (left, right) = token.text.split_at(middle);
            if vocab.contains_key(left) && vocab.contains_key(right) {
                ways.push((token, left, right));
            }
        }
    }
    // The shorter left side first where scores are equal, so that the order is one at all.
    let by_score = |(a, left_a, _): &(&Token, &str, &str), (b, left_b, _): &(&Token, &str, &str)| -> Ordering {
        b.score.total_cmp(&a.score).then_with(|| left_a.len().cmp(&left_b.len()))
    };
    ways.sort_by(by_score);
    ways.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str, kind: Kind, score: f64) -> Token {
        Token { text: text.to_owned(), kind, score }
    }

    /// The bytes, then pieces that compete.
    fn tokens() -> Vec<Token> {
        let mut tokens: Vec<_> = (0..=255).map(|byte| token(&spelled_byte(byte), Kind::Byte, 0.0)).collect();
        tokens.extend([
            token("</s>", Kind::Control, 0.0),
            token("<tag>", Kind::UserDefined, 0.0),
            token("▁", Kind::Normal, -9.0),
            token("a", Kind::Normal, -9.0),
            token("b", Kind::Normal, -9.0),
            token("c", Kind::Normal, -9.0),
            token("ab", Kind::Normal, -3.0),
            token("bc", Kind::Normal, -2.0),
            token("▁a", Kind::Normal, -4.0),
            token("abc", Kind::Normal, -5.0),
            token("<", Kind::Normal, -9.0),
            token("/", Kind::Normal, -9.0),
            token("s", Kind::Normal, -9.0),
            token(">", Kind::Normal, -9.0),
            token("</", Kind::Normal, -6.0),
            token("s>", Kind::Normal, -7.0),
        ]);
        tokens
    }

    fn pieces(text: &str, adds_space: bool) -> Vec<String> {
        let mut tokenizer = build(&tokens(), adds_space).unwrap();
        tokenizer.set_encode_special_tokens(true);
        tokenizer
            .encode_fast(text, false)
            .unwrap()
            .get_ids()
            .iter()
            .map(|&id| tokens()[id as usize].text.clone())
            .collect()
    }

    #[test]
    fn the_best_piece_is_made_first() {
        assert_eq!(pieces("abc", false), ["abc"]);
        // `bc` is worth more than `ab`, and leaves the space and `a` to each other.
        assert_eq!(pieces(" abc", false), ["▁a", "bc"]);
        assert_eq!(pieces("abab", false), ["ab", "ab"]);
    }

    #[test]
    fn a_space_is_put_in_front_where_the_file_says_so() {
        assert_eq!(pieces("a", true), ["▁a"]);
        assert_eq!(pieces("", true), [""; 0]);
        // As behind a token that somebody added.
        assert_eq!(pieces("b<tag>a", true), ["▁", "b", "<tag>", "▁a"]);
        assert_eq!(pieces("b<tag>a", false), ["b", "<tag>", "a"]);
    }

    #[test]
    fn what_is_no_piece_becomes_bytes() {
        assert_eq!(pieces("aé\n", false), ["a", "<0xC3>", "<0xA9>", "<0x0A>"]);
    }

    #[test]
    fn what_steers_stays_text() {
        assert_eq!(pieces("</s>", false), ["</", "s>"]);
    }

    #[test]
    fn each_byte_must_be_spelled() {
        let mut tokens = tokens();
        tokens.remove(0x41);
        assert_eq!(
            build(&tokens, false).unwrap_err(),
            "`tokenizer.ggml.tokens`: <0x41> is missing, which spells a byte"
        );
    }
}
