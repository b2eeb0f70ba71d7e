use serde_json::Value;

pub(crate) const SPACE_MARK: &str = "▁";

/// How the vocabulary writes bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// Each byte is a character of an alphabet of 256 (GPT-2).
    ByteLevel,
    /// Text, with a mark for spaces; single bytes are spelled `<0x0A>` (`SentencePiece`).
    SentencePiece { byte_fallback: bool },
    /// Nobody asks for bytes: tokens are kept as the vocabulary writes them.
    AsWritten,
}

impl Spelling {
    /// As the decoder in `tokenizer.json` reads it, or where there is none as the pre-tokenizer writes it.
    pub(crate) fn find(part: Option<&Value>) -> Result<Self, String> {
        let decoders = part.map(flatten).unwrap_or_default();
        let has = |kind: &str| decoders.iter().any(|decoder| decoder["type"] == kind);
        if has("ByteLevel") {
            return Ok(Self::ByteLevel);
        }
        let marks_spaces = decoders.iter().any(|decoder| match decoder["type"].as_str() {
            Some("Metaspace") => decoder["replacement"] == SPACE_MARK,
            Some("Replace") => decoder["pattern"]["String"] == SPACE_MARK && decoder["content"] == " ",
            _ => false,
        });
        let known = ["Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"];
        match decoders.iter().find(|decoder| !known.iter().any(|known| decoder["type"] == *known)) {
            None if marks_spaces => Ok(Self::SentencePiece { byte_fallback: has("ByteFallback") }),
            None => Err("tokenizer rejected: neither decoder nor pre_tokenizer says how tokens spell bytes".to_owned()),
            Some(other) => Err(format!(
                "tokenizer rejected: decoder {} is not supported; known: ByteLevel, {}",
                other["type"],
                known.join(", ")
            )),
        }
    }

    pub(crate) fn bytes(self, token: &str) -> Box<[u8]> {
        match self {
            // A token with a character outside the alphabet stands for itself, as in the decoder.
            Self::ByteLevel => {
                token.chars().map(byte_of).collect::<Option<_>>().unwrap_or_else(|| token.as_bytes().into())
            }
            Self::SentencePiece { byte_fallback } => match fallback_byte(token) {
                Some(byte) if byte_fallback => [byte].into(),
                _ => token.replace(SPACE_MARK, " ").into_bytes().into(),
            },
            Self::AsWritten => token.as_bytes().into(),
        }
    }
}

/// The parts of a sequence, or the thing itself.
fn flatten(part: &Value) -> Vec<&Value> {
    let parts = ["decoders", "pretokenizers"].iter().find_map(|name| part.get(name)?.as_array());
    parts.map_or_else(|| vec![part], |parts| parts.iter().flat_map(flatten).collect())
}

/// The byte that a character of the byte-level alphabet stands for: printable ones of Latin-1 for themselves, the 68 others in order from
/// U+0100 on.
pub(crate) fn byte_of(character: char) -> Option<u8> {
    match character {
        '!'..='~' | '¡'..='¬' | '®'..='ÿ' => u8::try_from(character).ok(),
        'Ā'..='Ġ' => Some((u32::from(character) - 0x100) as u8),
        'ġ'..='ł' => Some((u32::from(character) - 0x121) as u8 + 0x7f),
        'Ń' => Some(0xad),
        _ => None,
    }
}

pub(crate) fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let digits = hex.len() == 2 && hex.bytes().all(|digit| digit.is_ascii_hexdigit());
    digits.then(|| u8::from_str_radix(hex, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_has_each_byte_once() {
        let mut bytes: Vec<u8> = ('\0'..'\u{200}').filter_map(byte_of).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(
            ["Ġ", "Ċ", "é", "Ń"].map(|text| text.chars().next().and_then(byte_of)),
            [b' ', b'\n', 0xe9, 0xad].map(Some)
        );
    }

    #[test]
    fn sentence_piece_bytes() {
        let spelling = Spelling::SentencePiece { byte_fallback: true };
        for (token, bytes) in [
            ("<0x0A>", &b"\n"[..]),
            ("<0xE2>", b"\xe2"),
            ("▁the", b" the"),
            ("<0xZZ>", b"<0xZZ>"),
            ("<0x+1>", b"<0x+1>"),
        ] {
            assert_eq!(*spelling.bytes(token), *bytes, "{token}");
        }
        assert_eq!(*Spelling::SentencePiece { byte_fallback: false }.bytes("<0x0A>"), *b"<0x0A>");
    }
}
