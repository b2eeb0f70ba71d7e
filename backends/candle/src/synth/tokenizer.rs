//! A byte-level tokenizer that has as many tokens as the model has logits.
//!
//! Its merges make common words whole, and then syllables until there are enough tokens, so that texts come to about as many tokens as
//! with a trained tokenizer.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::{config::Specials, words};
use crate::{gguf::PreTokenizer, spelling};

/// How text is cut into words: the name that GGUF has for it.
pub(super) const PRE_TOKENIZER: &str = "qwen2";
/// Few among the ids, so that random logits seldom choose one.
pub(super) const SPECIALS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
pub(super) const CHAT_TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n\
    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Letters of English, the commonest first.
const LETTERS: &str = "etaoinshrdlucmfwypvbgkjqxz";
const BYTES: usize = 256;

/// The tokens in the order of their ids, in the alphabet of byte-level vocabularies; the special ones come behind.
#[derive(Debug)]
pub(super) struct Vocabulary {
    pub(super) tokens: Vec<String>,
    pub(super) merges: Vec<(String, String)>,
}

impl Vocabulary {
    /// With the special ones `size` tokens.
    pub(super) fn new(size: usize) -> Result<Self, String> {
        let room = size.checked_sub(SPECIALS.len()).filter(|room| *room >= BYTES);
        let room = room.ok_or_else(|| format!("a vocabulary of {size} tokens has no room for all bytes"))?;
        let mut growth = Growth::new(room);
        for word in words::common() {
            growth.whole(&spelled(&word));
        }
        growth.syllables();
        let Growth { tokens, merges, .. } = growth;
        if tokens.len() == room {
            Ok(Self { tokens, merges })
        } else {
            Err(format!("a vocabulary of {size} tokens is larger than the {} there can be", tokens.len()))
        }
    }

    pub(super) fn specials(&self) -> Specials {
        let first = self.tokens.len() as u32;
        Specials { end_of_text: first, turn_ends: first + 2 }
    }

    /// All tokens, the special ones with them.
    pub(super) fn all(&self) -> impl Iterator<Item = &str> {
        self.tokens.iter().map(String::as_str).chain(SPECIALS)
    }

    /// `tokenizer.json`.
    pub(super) fn tokenizer(&self) -> Result<Value, String> {
        let cut = PreTokenizer::find(PRE_TOKENIZER)?.build().map_err(|error| error.to_string())?;
        let cut = serde_json::to_value(cut).map_err(|error| error.to_string())?;
        let vocab: Map<String, Value> = self.tokens.iter().cloned().zip((0u32..).map(Value::from)).collect();
        let specials = SPECIALS.iter().zip(self.tokens.len()..).map(|(content, id)| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                "special": true,
            })
        });
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": specials.collect::<Vec<_>>(),
            "normalizer": null,
            "pre_tokenizer": cut,
            "post_processor": null,
            "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false },
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocab, "merges": self.merges,
            },
        }))
    }

    /// `tokenizer_config.json`.
    pub(super) fn tokenizer_config(context: usize) -> Value {
        let [end_of_text, _, turn_ends] = SPECIALS;
        json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": context,
            "add_bos_token": false,
            "add_prefix_space": false,
            "clean_up_tokenization_spaces": false,
            "bos_token": end_of_text,
            "eos_token": turn_ends,
            "pad_token": end_of_text,
            "chat_template": CHAT_TEMPLATE,
        })
    }
}

/// A text in the alphabet of bytes.
fn spelled(text: &str) -> String {
    text.bytes().map(letter).collect()
}

fn letter(byte: u8) -> char {
    let mut alphabet = (0..0x180).filter_map(char::from_u32);
    alphabet
        .find(|character| spelling::byte_of(*character) == Some(byte))
        .expect("the alphabet has a letter for each byte")
}

/// A vocabulary on its way to `room` tokens.
struct Growth {
    room: usize,
    tokens: Vec<String>,
    known: HashSet<String>,
    merges: Vec<(String, String)>,
    ranks: HashMap<(String, String), usize>,
}

impl Growth {
    fn new(room: usize) -> Self {
        let tokens: Vec<_> = (0..=u8::MAX).map(|byte| letter(byte).to_string()).collect();
        let known = tokens.iter().cloned().collect();
        Self { room, tokens, known, merges: Vec::new(), ranks: HashMap::new() }
    }

    /// Makes one token of a word. What it falls into so far is merged from the left; as new merges come after all others, no word that was
    /// whole falls apart again.
    fn whole(&mut self, word: &str) {
        let mut parts = self.parts(word).into_iter();
        let Some(mut left) = parts.next() else { return };
        for right in parts {
            let both = [left.as_str(), &right].concat();
            self.merge(left, right);
            left = both;
        }
    }

    /// Every syllable there can be, short ones first, until there is no more room.
    fn syllables(&mut self) {
        let space = letter(b' ').to_string();
        let starts: Vec<String> = std::iter::once(String::new()).chain([space]).collect();
        let mut layer = starts;
        // The first pass makes letters behind a space, the last one words of four.
        while self.tokens.len() < self.room && layer.first().is_some_and(|shortest| shortest.len() < 4) {
            let mut next = Vec::with_capacity(layer.len() * LETTERS.len());
            for left in &layer {
                for right in LETTERS.chars() {
                    if self.tokens.len() == self.room {
                        return;
                    }
                    let both = format!("{left}{right}");
                    if !left.is_empty() {
                        self.merge(left.clone(), right.to_string());
                    }
                    next.push(both);
                }
            }
            layer = next;
        }
    }

    fn merge(&mut self, left: String, right: String) {
        let both = [left.as_str(), &right].concat();
        if self.tokens.len() == self.room || self.known.contains(&both) {
            return;
        }
        self.ranks.insert((left.clone(), right.clone()), self.merges.len());
        self.merges.push((left, right));
        self.known.insert(both.clone());
        self.tokens.push(both);
    }

    /// What the merges so far make of a word.
    fn parts(&self, word: &str) -> Vec<String> {
        let mut parts: Vec<String> = word.chars().map(String::from).collect();
        loop {
            let ranked = parts.windows(2).enumerate().filter_map(|(at, pair)| {
                let rank = self.ranks.get(&(pair[0].clone(), pair[1].clone()))?;
                Some((*rank, at))
            });
            let Some((_, at)) = ranked.min() else { return parts };
            let right = parts.remove(at + 1);
            parts[at].push_str(&right);
        }
    }
}
