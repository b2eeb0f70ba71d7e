use std::path::PathBuf;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rand_distr::{Distribution as _, LogNormal};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    counter::Counter,
    length::Length,
    request::{Conversation, Expect, Request},
    text::Writer,
};
use crate::openai::Endpoint;

/// What targets are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Prompts of so many tokens, answers of so many.
    Fixed,
    /// Lengths as people's chats have them: log-normal, with the medians and spreads of `SHAREGPT_*`.
    ShareGpt,
    /// A long system prompt that all requests of a round begin with, and a short question of their own.
    Shared,
    /// Conversations, in which each question comes with what was said before.
    MultiTurn,
    /// Answers that are JSON by a schema.
    Structured,
    /// Texts to be made vectors of.
    Embeddings,
    /// The lines of a batch file.
    File(PathBuf),
}

/// The sizes of generated requests, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Of a prompt, with what the chat template adds.
    pub input: Length,
    /// Of an answer.
    pub output: Length,
    /// Of the system prompt that is shared.
    pub shared: u32,
    /// Questions of a conversation.
    pub turns: u32,
    /// No request has more, prompt and answer together.
    pub longest: u32,
    pub seed: u64,
}

/// One set of requests: targets get the same, and no two sets begin alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) repeat: u32,
    pub(super) level: usize,
    pub(super) requests: usize,
}

/// Medians of prompts and answers, in tokens, and the standard deviations of their logarithms. They are ours, near to what is published of
/// the `ShareGPT` conversations as benchmarks filter them (means of about 200 and 200, few beyond 1,000); nothing of the data set is used.
const SHAREGPT_INPUT: (f64, f64) = (110.0, 1.1);
const SHAREGPT_OUTPUT: (f64, f64) = (140.0, 0.9);
/// Fewer are no question.
const SHORTEST: u32 = 12;
const STRUCTURED_OUTPUT_MAX: u32 = 256;

impl Workload {
    /// Those that are made here, by name.
    pub const GENERATED: [Self; 6] =
        [Self::Fixed, Self::ShareGpt, Self::Shared, Self::MultiTurn, Self::Structured, Self::Embeddings];

    /// By its name, or as a file where it looks like the name of one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let generated = Self::GENERATED.into_iter().find(|workload| workload.name() == text);
        let is_file = text.contains(['.', '/']);
        generated.or_else(|| is_file.then(|| Self::File(text.into())))
    }

    /// What it is called; the name of a file without its folder.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Fixed => "fixed".to_owned(),
            Self::ShareGpt => "sharegpt-like".to_owned(),
            Self::Shared => "shared-prefix".to_owned(),
            Self::MultiTurn => "multi-turn".to_owned(),
            Self::Structured => "structured".to_owned(),
            Self::Embeddings => "embeddings".to_owned(),
            Self::File(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        }
    }

    /// The requests of a set, by conversations. A file's are read elsewhere.
    pub(super) async fn generate(&self, sizes: Sizes, set: Set, writer: &mut Writer) -> Vec<Conversation> {
        let seed = format!("{} {} {} {}", self.name(), sizes.seed, set.repeat, set.level);
        let mut random = StdRng::from_seed(Sha256::digest(seed).into());
        let mut maker = Maker { sizes, random: &mut random, writer };
        let mut conversations = Vec::new();
        let system = if *self == Self::Shared { maker.text(sizes.shared).await } else { String::new() };
        let mut made = 0;
        while made < set.requests {
            let mut conversation = match self {
                Self::Fixed => {
                    let (input, output) = maker.drawn();
                    vec![maker.chat(Vec::new(), input, output).await]
                }
                Self::ShareGpt => maker.sharegpt().await,
                Self::Shared => {
                    let before = vec![json!({"role": "system", "content": system})];
                    let (input, output) = maker.drawn();
                    vec![maker.chat(before, sizes.shared + input, output).await]
                }
                Self::MultiTurn => maker.turns().await,
                Self::Structured => vec![maker.structured().await],
                Self::Embeddings => vec![maker.embedding().await],
                Self::File(_) => return conversations,
            };
            conversation.truncate(set.requests - made);
            made += conversation.len();
            conversations.push(conversation);
        }
        conversations
    }
}

struct Maker<'a> {
    sizes: Sizes,
    random: &'a mut StdRng,
    writer: &'a mut Writer,
}

impl Maker<'_> {
    /// The lengths of a prompt and of its answer.
    fn drawn(&mut self) -> (u32, u32) {
        let Sizes { input, output, .. } = self.sizes;
        (input.drawn(self.random), output.drawn(self.random))
    }

    /// A text of so many tokens by itself.
    async fn text(&mut self, tokens: u32) -> String {
        let count = async |counter: &Counter, text: &str| counter.text(text).await;
        self.writer.write(self.random, tokens as usize, count).await
    }

    /// A chat whose prompt has so many tokens in all and whose answer has exactly `output`.
    async fn chat(&mut self, before: Vec<Value>, input: u32, output: u32) -> Request {
        let with = |text: &str| -> Value { [&before[..], &[json!({"role": "user", "content": text})]].concat().into() };
        let count = async |counter: &Counter, text: &str| counter.chat(&with(text)).await;
        let known: usize = before.iter().filter_map(|message| message["content"].as_str()).map(words).sum();
        let text = if self.writer.counter.is_some() {
            self.writer.write(self.random, input as usize, count).await
        } else {
            // What stands before is part of the tokens, here by its words.
            let known = (known as f64 / self.writer.words_per_token) as usize;
            self.writer.write(self.random, (input as usize).saturating_sub(known), count).await
        };
        exactly(&with(&text), output)
    }

    async fn sharegpt(&mut self) -> Conversation {
        let longest = self.sizes.longest.max(2 * SHORTEST);
        let input = self.length(SHAREGPT_INPUT, longest * 3 / 4);
        let output = self.length(SHAREGPT_OUTPUT, longest - input);
        vec![self.chat(Vec::new(), input, output).await]
    }

    fn length(&mut self, (median, sigma): (f64, f64), longest: u32) -> u32 {
        let drawn = LogNormal::new(median.ln(), sigma).map_or(median, |lengths| lengths.sample(self.random));
        (drawn as u32).clamp(SHORTEST.min(longest), longest)
    }

    /// Each question is asked with the earlier ones and answers that were written before, so that all targets read the same.
    async fn turns(&mut self) -> Conversation {
        let turns = self.sizes.turns;
        let mut messages = Vec::new();
        let mut conversation = Vec::new();
        let input = self.sizes.input.drawn(self.random);
        for turn in 0..turns.max(1) {
            let output = self.sizes.output.drawn(self.random);
            if turn > 0 {
                messages.push(json!({"role": "assistant", "content": self.text(output).await}));
            }
            messages.push(json!({"role": "user", "content": self.text(input / turns.max(1)).await}));
            conversation.push(exactly(&messages.clone().into(), output));
        }
        conversation
    }

    async fn structured(&mut self) -> Request {
        let input = self.sizes.input.drawn(self.random);
        let request = self.chat(Vec::new(), input, STRUCTURED_OUTPUT_MAX).await;
        let schema = json!({
            "type": "object",
            "properties": {
                "sentiment": {"type": "string", "enum": ["positive", "neutral", "negative"]},
                "score": {"type": "integer", "minimum": 0, "maximum": 100},
                "topics": {
                    "type": "array", "minItems": 1, "maxItems": 3,
                    "items": {"type": "string", "enum": ["history", "science", "music", "travel", "food"]},
                },
                "answered": {"type": "boolean"},
            },
            "required": ["sentiment", "score", "topics", "answered"],
            "additionalProperties": false,
        });
        let format = json!({"name": "review", "strict": true, "schema": schema});
        let body = json!({
            "messages": request.body["messages"], "max_tokens": STRUCTURED_OUTPUT_MAX, "temperature": 0,
            "response_format": {"type": "json_schema", "json_schema": format},
        });
        Request { endpoint: Endpoint::ChatCompletions, body, expect: Expect::Json }
    }

    async fn embedding(&mut self) -> Request {
        let tokens = self.sizes.input.drawn(self.random);
        let input = self.text(tokens).await;
        Request { endpoint: Endpoint::Embeddings, body: json!({"input": input}), expect: Expect::Vectors(1) }
    }
}

/// A greedy chat that does not end before it has so many tokens. `ignore_eos` is understood by vLLM, llama-server and Tandem; where
/// it is not, shorter answers are counted as cut.
fn exactly(messages: &Value, output: u32) -> Request {
    let body = json!({"messages": messages, "max_tokens": output, "temperature": 0, "ignore_eos": true});
    Request { endpoint: Endpoint::ChatCompletions, body, expect: Expect::Tokens(output.into()) }
}

fn words(text: &str) -> usize {
    text.split(' ').count()
}

/// The same requests have the same hash, whichever model is asked.
pub(super) fn sha256(conversations: &[Conversation]) -> String {
    let mut hash = Sha256::new();
    for request in conversations.iter().flatten() {
        hash.update(request.endpoint.path());
        hash.update(request.body.to_string());
        hash.update(b"\n");
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Lines of a batch file like those that people send first: a few instructions, many short questions under them.
pub fn sample_batch(lines: usize, model: &str, max_tokens: u32, seed: u64) -> impl Iterator<Item = String> {
    let mut random = StdRng::seed_from_u64(seed);
    let model = model.to_owned();
    (1..=lines).map(move |number| {
        let (a, b) = (random.random_range(1..1000), random.random_range(1..1000));
        let pick = |of: &[&'static str], random: &mut StdRng| of[random.random_range(0..of.len())];
        let system = pick(&SYSTEMS, &mut random);
        let place = pick(&PLACES, &mut random);
        let question = match random.random_range(0..4) {
            0 => format!("What is {a}+{b}?"),
            1 => format!("What is the capital of {place}?"),
            2 => format!("Name {} things that {place} is known for.", a % 8 + 2),
            _ => format!("Write a sentence about {place} that has {} words.", b % 20 + 5),
        };
        let body = json!({
            "model": model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": question}],
            "max_tokens": max_tokens,
        });
        json!({
            "custom_id": format!("request-{number}"), "method": "POST", "url": "/v1/chat/completions", "body": body,
        })
        .to_string()
    })
}

const SYSTEMS: [&str; 4] = [
    "You are a helpful assistant.",
    "You are a careful teacher. Answer in one short sentence, and leave out what was not asked for.",
    "You write for a children's encyclopedia: plain words, nothing invented, no lists.",
    "You answer questions of travellers. Be brief and friendly, and say so when you do not know.",
];
const PLACES: [&str; 16] = [
    "France", "Japan", "Kenya", "Peru", "Norway", "Egypt", "Canada", "Italy", "Chile", "Poland", "India", "Ghana",
    "Iceland", "Vietnam", "Portugal", "Mexico",
];

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes = Sizes {
        input: Length::exactly(64),
        output: Length::exactly(16),
        shared: 200,
        turns: 3,
        longest: 1000,
        seed: 7,
    };

    async fn made(workload: &Workload, sizes: Sizes, repeat: u32) -> Vec<Conversation> {
        workload.generate(sizes, Set { repeat, level: 0, requests: 12 }, &mut Writer::new(None)).await
    }

    fn content(request: &Request) -> &str {
        request.body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap()
    }

    #[tokio::test]
    async fn a_workload_follows_from_its_seed() {
        for workload in Workload::GENERATED {
            let first = made(&workload, SIZES, 0).await;
            assert_eq!(first.iter().flatten().count(), 12, "{workload:?}");
            assert_eq!(sha256(&first), sha256(&made(&workload, SIZES, 0).await), "{workload:?}");
            // Another repeat asks something else: what is in a cache from before does not help.
            assert_ne!(sha256(&first), sha256(&made(&workload, SIZES, 1).await), "{workload:?}");
            assert_ne!(sha256(&first), sha256(&made(&workload, Sizes { seed: 8, ..SIZES }, 0).await), "{workload:?}");
        }
    }

    #[tokio::test]
    async fn fixed_prompts_have_nothing_in_common() {
        let made = made(&Workload::Fixed, SIZES, 0).await;
        let mut starts: Vec<&str> = made.iter().flatten().map(|request| &content(request)[..24]).collect();
        starts.sort_unstable();
        starts.dedup();
        assert_eq!(starts.len(), 12);
        assert_eq!(made[0][0].expect, Expect::Tokens(16));
    }

    #[tokio::test]
    async fn a_shared_prompt_is_the_same_in_all_requests() {
        let made = made(&Workload::Shared, SIZES, 0).await;
        let systems: Vec<&Value> = made.iter().flatten().map(|request| &request.body["messages"][0]).collect();
        assert!(systems.windows(2).all(|pair| pair[0] == pair[1]));
        assert_eq!(words(systems[0]["content"].as_str().unwrap()), 150);
    }

    #[tokio::test]
    async fn a_conversation_repeats_what_was_said() {
        let made = made(&Workload::MultiTurn, SIZES, 0).await;
        assert_eq!(made.len(), 4);
        let messages = |turn: usize| made[0][turn].body["messages"].as_array().unwrap().clone();
        assert_eq!((messages(0).len(), messages(1).len(), messages(2).len()), (1, 3, 5));
        assert_eq!(messages(2)[..3], messages(1)[..]);
    }

    #[tokio::test]
    async fn lengths_spread_and_stay_within_what_a_request_may_have() {
        let set = Set { repeat: 0, level: 0, requests: 300 };
        let made = Workload::ShareGpt.generate(SIZES, set, &mut Writer::new(None)).await;
        let mut outputs: Vec<u64> =
            made.iter().flatten().map(|request| request.body["max_tokens"].as_u64().unwrap()).collect();
        outputs.sort_unstable();
        assert!((100..180).contains(&outputs[150]), "{}", outputs[150]);
        assert!(outputs[0] < 40 && outputs[299] > 400 && outputs[299] < 1000, "{outputs:?}");
    }

    #[tokio::test]
    async fn lengths_between_two_are_spread_evenly() {
        let length = Length::parse("100..1024").unwrap();
        let sizes = Sizes { input: length, output: length, ..SIZES };
        let set = Set { repeat: 0, level: 0, requests: 300 };
        let made = Workload::Fixed.generate(sizes, set, &mut Writer::new(None)).await;
        let mean = |of: &dyn Fn(&Request) -> f64| made.iter().flatten().map(of).sum::<f64>() / 300.0;
        let output = mean(&|request| request.body["max_tokens"].as_f64().unwrap());
        // Three words stand for four tokens.
        let input = mean(&|request| words(content(request)) as f64 / 0.75);
        assert!((510.0..615.0).contains(&output) && (510.0..615.0).contains(&input), "{input}, {output}");
    }

    #[test]
    fn workloads_are_known_by_name_and_files_by_their_look() {
        for workload in Workload::GENERATED {
            assert_eq!(Workload::parse(&workload.name()), Some(workload));
        }
        assert_eq!(Workload::parse("lines.jsonl"), Some(Workload::File("lines.jsonl".into())));
        assert_eq!(Workload::parse("fixd"), None);
    }

    #[test]
    fn a_sample_file_is_a_batch_and_follows_from_its_seed() {
        let lines: Vec<String> = sample_batch(5000, "tiny", 100, 1).collect();
        assert_eq!(lines.len(), 5000);
        assert_eq!(lines, sample_batch(5000, "tiny", 100, 1).collect::<Vec<_>>());
        let last: Value = serde_json::from_str(&lines[4999]).unwrap();
        assert_eq!(
            (last["custom_id"].as_str(), last["url"].as_str()),
            (Some("request-5000"), Some("/v1/chat/completions"))
        );
    }
}
