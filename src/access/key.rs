use std::fmt;

use rand::Rng;
use rand::distr::Alphanumeric;
use sha2::{Digest, Sha256};

/// Base62 characters of a key's id and of its secret, which has 256 bits in these.
const ID_CHARS: usize = 8;
const SECRET_CHARS: usize = 43;
/// Of the checksum behind them: base62 too, and enough for 32 bits.
const CHECK_CHARS: usize = 6;
const LABEL_CHARS_MAX: usize = 16;
const PREFIX: &str = "bk";
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// An API key as it is written: `bk_LABEL_ID_SECRET` and a checksum.
///
/// By the checksum a typing error or an attempt to guess is found out without the database, and a scanner for leaked secrets is sure of
/// its find.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyText {
    text: String,
    id: String,
}

/// What is stored of a key. It has 256 random bits, so nothing slower than one hash is needed.
#[must_use]
pub fn hash(key: &KeyText) -> [u8; 32] {
    Sha256::digest(key.text.as_bytes()).into()
}

impl KeyText {
    /// A new key with a label for people, such as `live` or `test`; `None` if that is not 1 to 16 lower-case letters and digits.
    #[must_use]
    pub fn generate(label: &str) -> Option<Self> {
        if !is_label(label) {
            return None;
        }
        let random = |chars| rand::rng().sample_iter(Alphanumeric).take(chars).map(char::from).collect::<String>();
        let id = random(ID_CHARS);
        let body = format!("{PREFIX}_{label}_{id}_{}", random(SECRET_CHARS));
        Some(Self { text: format!("{body}{}", checksum(&body)), id })
    }

    /// `None` if the text is no key that was ever made.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (prefix, rest) = text.split_once('_')?;
        let (label, rest) = rest.split_once('_')?;
        let (id, tail) = rest.split_once('_')?;
        let plain = |part: &str, chars| part.len() == chars && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if prefix != PREFIX || !is_label(label) || !plain(id, ID_CHARS) || !plain(tail, SECRET_CHARS + CHECK_CHARS) {
            return None;
        }
        let (body, check) = text.split_at(text.len() - CHECK_CHARS);
        (checksum(body) == check).then(|| Self { text: text.to_owned(), id: id.to_owned() })
    }

    /// The part that is no secret, and names the key.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The key itself, for the one time that it is shown.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyText").field("id", &self.id).finish_non_exhaustive()
    }
}

fn is_label(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=LABEL_CHARS_MAX).contains(&text.len()) && text.bytes().all(plain)
}

fn checksum(body: &str) -> String {
    let mut rest = crc32fast::hash(body.as_bytes()) as usize;
    let mut digits = [0; CHECK_CHARS];
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[rest % BASE62.len()];
        rest /= BASE62.len();
    }
    digits.iter().copied().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back_and_a_wrong_one_is_known_by_its_text() {
        let key = KeyText::generate("live").unwrap();
        assert_eq!(KeyText::parse(key.reveal()), Some(key.clone()));
        assert_eq!(key.reveal().len(), "bk_live_".len() + 8 + 1 + 43 + 6);
        assert!(!format!("{key:?}").contains(&key.reveal()[17..]));
        let mut typo = key.reveal().to_owned().into_bytes();
        typo[20] = if typo[20] == b'a' { b'b' } else { b'a' };
        for wrong in [&String::from_utf8(typo).unwrap(), "", "sk-abc", "bk_live_x_y", "' OR '1'='1", "bk__a_b"] {
            assert_eq!(KeyText::parse(wrong), None, "{wrong}");
        }
        assert!(KeyText::generate("").is_none() && KeyText::generate("Live").is_none());
    }

    #[test]
    fn keys_differ_and_so_do_their_hashes() {
        let (one, other) = (KeyText::generate("a").unwrap(), KeyText::generate("a").unwrap());
        assert_ne!(one, other);
        assert_ne!(hash(&one), hash(&other));
        assert_eq!(hash(&one), hash(&KeyText::parse(one.reveal()).unwrap()));
    }
}
