use std::collections::HashSet;

use tokenizers::{
    AddedToken, Tokenizer,
    models::bpe::{BPE, Merges, Vocab},
};

use super::{
    pre_tokenizer::PreTokenizer,
    tokens::{Kind, Token},
};
use crate::spelling;

const MERGES: &str = "`tokenizer.ggml.merges`";

/// A vocabulary of byte-level words and the merges that they are put together by.
pub(super) fn build(tokens: &[Token], merges: &[Box<[u8]>], pre: PreTokenizer) -> Result<Tokenizer, String> {
    let vocab = spoken(tokens);
    let bytes: HashSet<u8> = tokens.iter().filter_map(|token| single(&token.text)).collect();
    if let Some(byte) = (0..=255).find(|byte| !bytes.contains(byte)) {
        return Err(format!("`tokenizer.ggml.tokens`: none stands for the byte 0x{byte:02X}"));
    }
    let merges = parse(merges, &vocab, tokens)?;
    let model = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(pre.ignores_merges).build();
    let mut tokenizer = Tokenizer::new(model.map_err(|error| error.to_string())?);
    tokenizer.with_pre_tokenizer(Some(pre.build().map_err(|error| error.to_string())?));
    add_user_defined(&mut tokenizer, tokens)?;
    Ok(tokenizer)
}

/// Tokens that a text may become. Those that steer are left out, so that no text does, whatever the merges.
pub(super) fn spoken(tokens: &[Token]) -> Vocab {
    let spoken = (0..).zip(tokens).filter(|(_, token)| !token.kind.steers());
    spoken.map(|(id, token)| (token.text.clone(), id)).collect()
}

/// Has texts of users become the tokens that somebody added, wherever they stand.
pub(super) fn add_user_defined(tokenizer: &mut Tokenizer, tokens: &[Token]) -> Result<(), String> {
    let defined = tokens.iter().filter(|token| token.kind == Kind::UserDefined);
    let added = defined.map(|token| AddedToken::from(token.text.clone(), false).normalized(false));
    tokenizer.add_tokens(added).map(|_| ()).map_err(|error| error.to_string())
}

/// The byte that a token of one character stands for.
fn single(token: &str) -> Option<u8> {
    let mut characters = token.chars();
    let byte = spelling::byte_of(characters.next()?)?;
    characters.next().is_none().then_some(byte)
}

/// Two tokens each, with a space between. Of one that is there twice the first counts, as in llama.cpp.
fn parse(merges: &[Box<[u8]>], vocab: &Vocab, tokens: &[Token]) -> Result<Merges, String> {
    let steering: HashSet<&str> =
        tokens.iter().filter(|token| token.kind.steers()).map(|token| token.text.as_str()).collect();
    let mut parsed = Merges::with_capacity(merges.len());
    let mut seen = HashSet::with_capacity(merges.len());
    for (at, merge) in merges.iter().enumerate() {
        let merge = std::str::from_utf8(merge).map_err(|_| format!("{MERGES}: number {at} is not UTF-8"))?;
        let space = merge.char_indices().skip(1).find(|(_, character)| *character == ' ');
        let (left, right) = space
            .map(|(space, _)| (&merge[..space], &merge[space + 1..]))
            .ok_or_else(|| format!("{MERGES}: number {at} is {merge:?}, two tokens expected"))?;
        let whole = [left, right].concat();
        match [left, right, &whole].iter().find(|token| !vocab.contains_key(**token)) {
            None if seen.insert(merge) => parsed.push((left.to_owned(), right.to_owned())),
            None => {}
            // Not a way that a text can go.
            Some(token) if steering.contains(token) => {}
            Some(token) => return Err(format!("{MERGES}: number {at}, {merge:?}: {token:?} is no token")),
        }
    }
    Ok(parsed)
}
