use schemars::JsonSchema;
use serde::Serialize;

/// The answer of `POST /v1/embeddings`.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct EmbeddingList<'a> {
    #[schemars(extend("const" = "list"))]
    pub object: &'static str,
    pub data: Vec<EmbeddingObject>,
    pub model: &'a str,
    pub usage: EmbeddingUsage,
}

/// The vector of one input.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct EmbeddingObject {
    #[schemars(extend("const" = "embedding"))]
    pub object: &'static str,
    pub index: usize,
    pub embedding: Vector,
}

/// A vector in the form that was asked for.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize)]
#[serde(untagged)]
pub enum Vector {
    Numbers(Vec<f32>),
    Base64(String),
}

/// Tokens of all inputs. There is no output that could have any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize)]
pub struct EmbeddingUsage {
    pub prompt_tokens: u64,
    pub total_tokens: u64,
}

impl Vector {
    /// Single-precision numbers, the least significant byte first, in Base64: a third of the size of their digits.
    #[must_use]
    pub fn base64(numbers: &[f32]) -> Self {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        Self::Base64(base64(&bytes))
    }
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| group.get(at).copied().map_or(0, u32::from);
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        let texts = ["", "f", "fo", "foo", "foob", "fooba", "foobar"].map(|text| base64(text.as_bytes()));
        assert_eq!(texts, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"]);
        assert_eq!(base64(&[0xfb, 0xff, 0xbf]), "+/+/");
    }

    #[test]
    fn numbers_have_their_least_significant_byte_first() {
        // 1.0 is 0x3f800000.
        assert_eq!(Vector::base64(&[1.0, -2.0]), Vector::Base64("AACAPwAAAMA=".to_owned()));
    }
}
