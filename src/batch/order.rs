use std::collections::BTreeMap;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::line::first_bytes;
use crate::openai::Endpoint;

/// The order in which the lines of a batch are run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LineOrder {
    /// Lines whose prompts begin alike follow one another, so that what they share is computed once and still there.
    #[default]
    Prefix,
    /// As they stand in the file.
    File,
}

/// What is known of a request before it is run, for the order of the lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outline {
    /// Lines are run in the order of these bytes.
    pub(super) prefix: Vec<u8>,
    /// The same for requests that must have the same answer; `None` where chance has a part in it.
    pub(super) twin: Option<[u8; 16]>,
    /// Tokens that the answer may have.
    pub(super) expected: i64,
}

/// The fields of a request's body, as they are written.
pub(super) type Body<'a> = BTreeMap<String, &'a RawValue>;

/// Finds out which lines of a file begin alike.
///
/// The text of a prompt is cut after each power of two bytes and after each message, and what lies before each cut is told by a hash. A
/// line's place is, for each of its cuts, the number of the first line that has the same text before it. So lines stand together as in a
/// tree of their prefixes, each branch where its first line stood; and a file without anything in common keeps its order.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    firsts: HashMap<u64, u32>,
}

/// A block of KV cache is worth sharing from about this many bytes on.
const FIRST_CUT: usize = 64;
/// Four bytes of a line's place each.
const CUTS_MAX: usize = 16;
/// Some 30 MiB. Lines that come when it is full are grouped with earlier ones, no longer with one another.
const FIRSTS_MAX: usize = 900_000;
/// Of a request that names no limit: it may take as long as the model can.
const UNLIMITED: i64 = i64::MAX / 2;
/// What stands before the messages in a prompt, or decides whose cache it may use.
const BEFORE_MESSAGES: [&str; 6] = ["model", "lora", "cache_salt", "tools", "functions", "chat_template_kwargs"];

impl Outline {
    pub(super) fn of(endpoint: Endpoint, line_no: i64, body: &Body<'_>, text: &str, prefixes: &mut Prefixes) -> Self {
        let (prompt, drawn, expected) = match endpoint {
            Endpoint::ChatCompletions => ("messages", is_drawn(body), longest(body)),
            Endpoint::Completions => ("prompt", is_drawn(body), longest(body)),
            Endpoint::Embeddings => ("input", false, 0),
            Endpoint::Rerank => ("documents", false, 0),
        };
        let hash = || Sha256::new().chain_update(endpoint.path()).chain_update(text).finalize();
        let twin = (!drawn).then(|| first_bytes(&hash()));
        let prefix = match endpoint {
            // Nothing of an input to an embedder is kept for another.
            Endpoint::Embeddings | Endpoint::Rerank => Vec::new(),
            Endpoint::ChatCompletions | Endpoint::Completions => prefixes.place(line_no, body, prompt),
        };
        Self { prefix, twin, expected }
    }
}

impl Prefixes {
    fn place(&mut self, line_no: i64, body: &Body<'_>, prompt: &str) -> Vec<u8> {
        let own = u32::try_from(line_no).unwrap_or(u32::MAX);
        let mut place = Vec::new();
        let mut shares = true;
        for cut in cuts(body, prompt) {
            let first = match self.firsts.get(&cut) {
                Some(first) => *first,
                None => {
                    if self.firsts.len() < FIRSTS_MAX {
                        self.firsts.insert(cut, own);
                    }
                    own
                }
            };
            if shares {
                place.extend(first.to_be_bytes());
            }
            shares &= first != own;
        }
        place
    }
}

/// Hashes of what lies before each cut of a prompt.
fn cuts(body: &Body<'_>, prompt: &str) -> Vec<u64> {
    let Some(prompt) = body.get(prompt) else { return Vec::new() };
    let messages = serde_json::from_str::<Vec<&RawValue>>(prompt.get()).unwrap_or_default();
    // Token ids and texts, one or several, are looked at as one piece.
    let is_chat = messages.iter().all(|message| message.get().starts_with('{')) && !messages.is_empty();
    let pieces = if is_chat { messages } else { vec![*prompt] };
    let mut hasher = DefaultHasher::new();
    for name in BEFORE_MESSAGES {
        body.get(name).map(|value| value.get()).hash(&mut hasher);
    }
    let mut cuts = Vec::new();
    let (mut at, mut next) = (0, FIRST_CUT);
    for piece in pieces {
        let mut rest = piece.get().as_bytes();
        while let Some((before, after)) = rest.split_at_checked(next - at) {
            hasher.write(before);
            cuts.push(hasher.finish());
            rest = after;
            (at, next) = (next, next * 2);
        }
        hasher.write(rest);
        at += rest.len();
        cuts.push(hasher.finish());
    }
    // The last one is kept whatever comes between: it says that two prompts are the same.
    if cuts.len() > CUTS_MAX {
        cuts.drain(CUTS_MAX - 1..cuts.len() - 1);
    }
    cuts
}

/// Whether two answers to the request may differ.
fn is_drawn(body: &Body<'_>) -> bool {
    let number = |name| body.get(name).and_then(|value| serde_json::from_str::<f64>(value.get()).ok());
    number("temperature") != Some(0.0) && number("seed").is_none()
}

fn longest(body: &Body<'_>) -> i64 {
    let count = |name| body.get(name).and_then(|value| serde_json::from_str::<i64>(value.get()).ok());
    let tokens = count("max_completion_tokens").or_else(|| count("max_tokens"));
    tokens.map_or(UNLIMITED, |tokens| tokens.saturating_mul(count("n").unwrap_or(1)).clamp(0, UNLIMITED))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outline(prefixes: &mut Prefixes, line_no: i64, body: &serde_json::Value) -> Outline {
        let text = body.to_string();
        let body: Body<'_> = serde_json::from_str(&text).unwrap();
        Outline::of(Endpoint::ChatCompletions, line_no, &body, &text, prefixes)
    }

    fn chat(system: &str, user: &str) -> serde_json::Value {
        serde_json::json!({"model": "m", "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}]})
    }

    /// Line numbers, counted from 1, in the order of their places.
    fn order(bodies: &[serde_json::Value]) -> Vec<i64> {
        let mut prefixes = Prefixes::default();
        let mut lines: Vec<_> =
            (1..).zip(bodies).map(|(line_no, body)| (outline(&mut prefixes, line_no, body).prefix, line_no)).collect();
        lines.sort();
        lines.into_iter().map(|(_, line_no)| line_no).collect()
    }

    #[test]
    fn lines_that_begin_alike_stand_together_where_the_first_of_them_stood() {
        let system = |name: &str| format!("You are {name}. {}", "Answer in one word, and think twice. ".repeat(30));
        let (anna, ben) = (system("Anna"), system("Ben"));
        let bodies = [chat(&anna, "1"), chat(&ben, "2"), chat(&anna, "3"), chat("short", "4"), chat(&ben, "5")];
        assert_eq!(order(&bodies), [1, 3, 2, 5, 4]);
    }

    #[test]
    fn a_longer_common_beginning_binds_closer_than_a_shorter_one() {
        let common = "The same beginning of everything that follows in here. ".repeat(4);
        let (long, other) = (common.repeat(4), format!("{common}{}", "Then something else. ".repeat(40)));
        let bodies = [chat(&long, "1"), chat(&other, "2"), chat(&long, "3"), chat(&other, "4"), chat(&long, "5")];
        assert_eq!(order(&bodies), [1, 3, 5, 2, 4]);
    }

    #[test]
    fn a_file_without_anything_in_common_keeps_its_order() {
        let bodies: Vec<_> = (0..50).map(|n| chat(&format!("{} of a kind", n * 7919 % 50), &"x".repeat(n))).collect();
        assert_eq!(order(&bodies), (1..=50).collect::<Vec<_>>());
    }

    #[test]
    fn what_stands_before_the_messages_counts() {
        let system = "The same words for everybody, but not the same model behind them. ".repeat(10);
        let adapted = |lora: &str, user: &str| {
            let mut body = chat(&system, user);
            body["lora"] = lora.into();
            body
        };
        assert_eq!(order(&[adapted("a", "1"), adapted("b", "2"), adapted("a", "3")]), [1, 3, 2]);
    }

    #[test]
    fn lines_beyond_the_limit_keep_their_own_place() {
        let mut prefixes = Prefixes { firsts: (0..FIRSTS_MAX as u64).map(|hash| (hash, 0)).collect() };
        let body = chat("A prompt that nobody has asked before, and is long enough to be cut twice.", "1");
        assert_eq!(outline(&mut prefixes, 7, &body).prefix, 7_u32.to_be_bytes());
        assert_eq!(outline(&mut prefixes, 8, &body).prefix, 8_u32.to_be_bytes());
        assert_eq!(prefixes.firsts.len(), FIRSTS_MAX);
    }

    #[test]
    fn only_requests_without_chance_have_twins() {
        let with = |name: &str, value: serde_json::Value| {
            let mut body = chat("a", "b");
            body[name] = value;
            outline(&mut Prefixes::default(), 1, &body).twin
        };
        assert_eq!(outline(&mut Prefixes::default(), 1, &chat("a", "b")).twin, None);
        assert_eq!(with("temperature", 0.5.into()), None);
        assert_eq!(with("seed", serde_json::Value::Null), None);
        assert!(with("temperature", 0.into()).is_some());
        assert_eq!(with("seed", 7.into()), with("seed", 7.into()));
        assert_ne!(with("seed", 7.into()), with("seed", 8.into()));
    }

    #[test]
    fn an_answer_is_expected_to_be_as_long_as_it_may() {
        let with = |fields: &[(&str, i64)]| {
            let mut body = chat("a", "b");
            fields.iter().for_each(|(name, value)| body[*name] = (*value).into());
            outline(&mut Prefixes::default(), 1, &body).expected
        };
        assert_eq!(with(&[("max_tokens", 5)]), 5);
        assert_eq!(with(&[("max_tokens", 5), ("max_completion_tokens", 6), ("n", 2)]), 12);
        assert_eq!(with(&[]), UNLIMITED);
        assert_eq!(with(&[("max_tokens", i64::MAX), ("n", 9)]), UNLIMITED);
    }
}
