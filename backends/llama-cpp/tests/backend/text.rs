//! The vocabulary, the tokenizer and the chat template.

use std::sync::Arc;

use tandem_core::{Tokenizer, Vocab};

use crate::helpers::{loader, with_backend};

/// What outlives the model.
fn parts() -> (Arc<Vocab>, Arc<dyn Tokenizer>, Option<String>) {
    let mut parts = None;
    with_backend(loader(2, 64), |loaded| parts = Some((loaded.vocab, loaded.tokenizer, loaded.chat_template)));
    parts.expect("the model was served")
}

const TEXTS: &[&str] = &[
    "",
    " ",
    "Hello, world!",
    "  two spaces, a tab\tand\n\nnew lines\r\n",
    "naïve café, Größe, Ελληνικά, русский, 日本語, عربى",
    "👩‍👩‍👧‍👦 🦀 🇪🇺 a\u{301}",
    "fn main() { println!(\"{}\", 1_000 + 0x2f); }",
    "\u{1}\u{7f}\u{85}\u{feff}\u{fffd}",
];

#[test]
fn text_comes_back_byte_for_byte() {
    let (vocab, tokenizer, _) = parts();
    for text in TEXTS {
        let tokens = tokenizer.encode(text).expect("text");
        let bytes: Vec<u8> = tokens.iter().flat_map(|&token| vocab.bytes(token)).copied().collect();
        assert_eq!(String::from_utf8_lossy(&bytes), *text, "{tokens:?}");
        assert!(tokens.iter().all(|&token| vocab.is_text(token)), "{text:?} has control tokens: {tokens:?}");
    }
}

#[test]
fn a_long_text_is_encoded_whole() {
    let (vocab, tokenizer, _) = parts();
    let text = "The quick brown fox jumps over the lazy dog, 17 times. 🦊\n".repeat(2000);
    let tokens = tokenizer.encode(&text).expect("text");
    let len: usize = tokens.iter().map(|&token| vocab.bytes(token).len()).sum();
    assert_eq!(len, text.len());
}

#[test]
fn control_tokens_spelled_in_text_are_text() {
    let (vocab, tokenizer, _) = parts();
    assert!(!vocab.specials().is_empty(), "the model has control tokens");
    for special in vocab.specials() {
        assert_eq!(vocab.bytes(special.id), special.text.as_bytes());
        for text in [special.text.clone(), format!("a{0}b {0}\n{0}", special.text)] {
            let tokens = tokenizer.encode(&text).expect("text");
            assert!(tokens.iter().all(|&token| vocab.is_text(token)), "{text:?} became {tokens:?}");
            let bytes: Vec<u8> = tokens.iter().flat_map(|&token| vocab.bytes(token)).copied().collect();
            assert_eq!(bytes, text.as_bytes());
        }
    }
}

#[test]
fn nothing_is_added_to_a_text() {
    let (vocab, tokenizer, _) = parts();
    assert!(tokenizer.encode("").expect("no text").is_empty());
    let tokens = tokenizer.encode("a b").expect("text");
    let (first, last) = (tokens[0], tokens[tokens.len() - 1]);
    assert!(vocab.bos() != Some(first) && !vocab.is_eog(last), "{tokens:?}");
}

#[test]
fn a_nul_character_is_refused() {
    let (_, tokenizer, _) = parts();
    let error = tokenizer.encode("a\0b").expect_err("a NUL");
    assert_eq!(error.to_string(), "the model's tokenizer cannot encode this text: it contains a NUL character");
}

#[test]
fn the_vocabulary_knows_its_special_tokens() {
    let (vocab, _, _) = parts();
    assert_eq!((vocab.bos(), vocab.eos()), (Some(0), Some(2)));
    assert!(vocab.is_eog(2) && !vocab.is_text(2));
    assert!(!vocab.is_eog(300) && vocab.is_text(300));
    assert_eq!(vocab.len(), 3072);
    // Every byte can be said.
    for byte in 0..=u8::MAX {
        let said = (0..vocab.len() as u32).any(|token| vocab.is_text(token) && vocab.bytes(token) == [byte]);
        assert!(said, "no token for the byte {byte:#04x}");
    }
}

#[test]
fn the_chat_template_is_whole() {
    let (_, _, template) = parts();
    let template = template.expect("the model ships a template");
    assert!(template.contains("messages"), "{template}");
    assert_eq!(template.matches("{%").count(), template.matches("%}").count(), "{template}");
}

#[test]
fn the_tokenizer_works_on_many_threads() {
    let (_, tokenizer, _) = parts();
    let text = TEXTS.concat();
    let expected = tokenizer.encode(&text).expect("text");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    assert_eq!(tokenizer.encode(&text).expect("text"), expected);
                }
            });
        }
    });
}
