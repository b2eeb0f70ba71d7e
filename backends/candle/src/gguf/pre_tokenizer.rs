//! How a text is cut into words before any are merged. GGUF gives it a name; what the name stands for is written down nowhere but in the
//! `tokenizer.json` of the models that have it, and in llama.cpp. A name that is not known here is refused: words that are cut in another
//! way make a model that answers, and answers a little worse.

use tokenizers::{
    PreTokenizerWrapper, SplitDelimiterBehavior,
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PreTokenizer {
    /// Expressions that are applied one after the other, each to what those before it left whole. What one matches is a word, and so is
    /// what lies between two matches.
    words: &'static [&'static str],
    /// Whether a word that is a token is not put together from merges.
    pub(super) ignores_merges: bool,
    /// Whether a plain text begins with the token for it, where the file does not say.
    pub(super) adds_bos: bool,
}

const GPT_2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const DIGIT: &str = r"\p{N}";
const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT_4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// What llama.cpp does for files from before there were names.
const DEFAULT: [&str; 4] = [r"[\p{P}$+<=>^~|]+", GPT_2, r"\p{N}+", "[0-9][0-9][0-9]"];

/// Names by what they stand for.
const KNOWN: [(&[&str], PreTokenizer); 9] = [
    (&["default"], PreTokenizer { words: &DEFAULT, ignores_merges: false, adds_bos: false }),
    (
        &["gpt-2", "phi-2", "mpt", "olmo", "exaone4"],
        PreTokenizer { words: &[GPT_2], ignores_merges: false, adds_bos: false },
    ),
    (
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        PreTokenizer { words: &[DIGIT, GPT_2], ignores_merges: false, adds_bos: false },
    ),
    (
        &["llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral"],
        PreTokenizer { words: &[LLAMA_3], ignores_merges: true, adds_bos: true },
    ),
    (&["dbrx", "smaug-bpe"], PreTokenizer { words: &[LLAMA_3], ignores_merges: false, adds_bos: false }),
    (
        &["qwen2", "deepseek-r1-qwen", "megrez"],
        PreTokenizer { words: &[QWEN_2], ignores_merges: false, adds_bos: false },
    ),
    (&["stablelm2", "hunyuan"], PreTokenizer { words: &[QWEN_2], ignores_merges: false, adds_bos: false }),
    (&["tekken"], PreTokenizer { words: &[TEKKEN], ignores_merges: true, adds_bos: true }),
    (&["gpt-4o", "llama4"], PreTokenizer { words: &[GPT_4O], ignores_merges: false, adds_bos: false }),
];

impl PreTokenizer {
    /// By the name in the file.
    pub(crate) fn find(name: &str) -> Result<Self, String> {
        let found = KNOWN.iter().find(|(names, _)| names.contains(&name));
        found.map(|(_, one)| *one).ok_or_else(|| {
            let known: Vec<_> = KNOWN.iter().flat_map(|(names, _)| *names).copied().collect();
            format!("`tokenizer.ggml.pre`: {name} is not supported by the candle backend; known: {}", known.join(", "))
        })
    }

    /// As the library runs it. Words are then written in the alphabet of bytes.
    pub(crate) fn build(self) -> tokenizers::Result<Sequence> {
        let split = |expression: &&str| -> tokenizers::Result<PreTokenizerWrapper> {
            let pattern = SplitPattern::Regex((*expression).to_owned());
            Ok(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?.into())
        };
        let mut steps = self.words.iter().map(split).collect::<Result<Vec<_>, _>>()?;
        steps.push(ByteLevel::new(false, true, false).into());
        Ok(Sequence::new(steps))
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

    use super::*;

    /// The words of a text, with `Ġ` for a space as in byte-level vocabularies.
    fn words(name: &str, text: &str) -> Vec<String> {
        let mut text = PreTokenizedString::from(text);
        PreTokenizer::find(name).unwrap().build().unwrap().pre_tokenize(&mut text).unwrap();
        let splits = text.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
        splits.into_iter().map(|(word, ..)| word.to_owned()).collect()
    }

    #[test]
    fn words_are_cut_as_the_name_says() {
        let text = "He'LL say: 1234 don't!!\n\n  x";
        for (name, expected) in [
            ("gpt-2", "He ' LL Ġsay : Ġ1234 Ġdon 't !! ĊĊĠ Ġx"),
            ("smollm", "He ' LL Ġsay : Ġ 1 2 3 4 Ġdon 't !! ĊĊĠ Ġx"),
            ("llama-bpe", "He 'LL Ġsay : Ġ 123 4 Ġdon 't !!ĊĊ Ġ Ġx"),
            ("qwen2", "He 'LL Ġsay : Ġ 1 2 3 4 Ġdon 't !!ĊĊ Ġ Ġx"),
            ("tekken", "He 'LL Ġsay : Ġ 1 2 3 4 Ġdon 't !!ĊĊ Ġ Ġx"),
            ("gpt-4o", "He'LL Ġsay : Ġ 123 4 Ġdon't !!ĊĊ Ġ Ġx"),
            ("default", "He ' LL Ġsay : Ġ 123 4 Ġdon ' t !! ĊĊĠ Ġx"),
        ] {
            assert_eq!(words(name, text).join(" "), expected, "{name}");
        }
    }

    #[test]
    fn capitals_begin_words_where_the_name_says_so() {
        assert_eq!(words("tekken", "fooBarBAZ"), ["foo", "Bar", "BAZ"]);
        assert_eq!(words("llama-bpe", "fooBarBAZ"), ["fooBarBAZ"]);
    }

    #[test]
    fn a_name_is_known_or_refused() {
        for (names, one) in KNOWN {
            one.build().unwrap();
            assert!(names.iter().all(|name| PreTokenizer::find(name) == Ok(one)));
        }
        let error = PreTokenizer::find("kimi-k2").unwrap_err();
        assert!(
            error.starts_with("`tokenizer.ggml.pre`: kimi-k2 is not supported by the candle backend; known: default,"),
            "{error}"
        );
    }
}
