use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

use super::request::Expect;

/// What came of a request, apart from when.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Answer {
    pub(super) text: String,
    /// Whether something came that is no text of the answer: a call of a tool, thoughts.
    pub(super) more: bool,
    pub(super) finish: Option<String>,
    pub(super) usage: Option<Usage>,
    pub(super) vectors: usize,
    /// Each token's text and log-probability, where they were asked for.
    pub(super) logprobs: Vec<(String, f64)>,
}

/// Tokens as the server counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) input: u64,
    pub(super) output: u64,
    pub(super) cached: u64,
}

/// What the check of an answer says. Only figures of good ones are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Ok,
    /// There was no answer, or a refusal; the reason.
    Failed(String),
    /// An answer without anything in it.
    Empty,
    /// An answer that is not what was asked for; how.
    Cut(String),
}

/// A piece of a streamed answer, or a whole one: as far as they are looked at they are written alike.
#[derive(Debug, Deserialize)]
pub(super) struct Piece {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    data: Vec<IgnoredAny>,
    usage: Option<WireUsage>,
    error: Option<Box<RawValue>>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(alias = "message")]
    delta: Option<Message>,
    text: Option<String>,
    finish_reason: Option<String>,
    logprobs: Option<Logprobs>,
}

#[derive(Debug, Deserialize)]
struct Message {
    content: Option<String>,
    #[serde(alias = "reasoning")]
    reasoning_content: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<IgnoredAny>>,
}

#[derive(Debug, Deserialize)]
struct Logprobs {
    #[serde(default)]
    content: Option<Vec<TokenLogprob>>,
}

#[derive(Debug, Deserialize)]
struct TokenLogprob {
    token: String,
    logprob: f64,
}

#[derive(Debug, Deserialize)]
struct WireUsage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
    #[serde(default)]
    prompt_tokens_details: Option<WireDetails>,
}

#[derive(Debug, Deserialize)]
struct WireDetails {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

impl Answer {
    /// Adds a piece; whether it has something of the answer in it.
    ///
    /// # Errors
    /// When it is none, or tells of an error; with what it says.
    pub(super) fn add(&mut self, json: &[u8]) -> Result<bool, String> {
        let piece: Piece = serde_json::from_slice(json).map_err(|error| format!("what is no answer: {error}"))?;
        if let Some(error) = piece.error {
            return Err(error_message(error.get()));
        }
        if let Some(usage) = piece.usage {
            let cached = usage.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0);
            self.usage = Some(Usage { input: usage.prompt_tokens, output: usage.completion_tokens, cached });
        }
        self.vectors += piece.data.len();
        let mut something = false;
        for choice in piece.choices {
            something |= self.add_choice(choice);
        }
        Ok(something)
    }

    fn add_choice(&mut self, choice: Choice) -> bool {
        let Choice { delta, text, finish_reason, logprobs } = choice;
        let mut something = false;
        let mut say = |text: Option<String>| {
            if let Some(text) = text.filter(|text| !text.is_empty()) {
                something = true;
                self.text.push_str(&text);
            }
        };
        say(text);
        if let Some(Message { content, reasoning_content, tool_calls }) = delta {
            say(content);
            let thought = reasoning_content.is_some_and(|text| !text.is_empty());
            if thought || tool_calls.is_some_and(|calls| !calls.is_empty()) {
                something = true;
                self.more = true;
            }
        }
        if finish_reason.is_some() {
            self.finish = finish_reason;
        }
        let tokens = logprobs.and_then(|logprobs| logprobs.content).unwrap_or_default();
        self.logprobs.extend(tokens.into_iter().map(|token| (token.token, token.logprob)));
        something
    }

    /// Whether it may be counted.
    pub(super) fn check(&self, expect: Expect) -> Verdict {
        if let Expect::Vectors(wanted) = expect {
            return match self.vectors {
                0 => Verdict::Empty,
                vectors if vectors < wanted => Verdict::Cut(format!("{vectors} vectors of {wanted}")),
                _ => Verdict::Ok,
            };
        }
        let tokens = self.usage.map(|usage| usage.output);
        if self.text.is_empty() && !self.more && tokens.unwrap_or(0) == 0 {
            return Verdict::Empty;
        }
        if self.finish.is_none() {
            return Verdict::Cut("it broke off without saying why it ended".to_owned());
        }
        match (expect, tokens) {
            (Expect::Tokens(wanted), Some(tokens)) if tokens < wanted => {
                Verdict::Cut(format!("{tokens} tokens of {wanted}"))
            }
            (Expect::Json, _) if serde_json::from_str::<IgnoredAny>(&self.text).is_err() => {
                Verdict::Cut("not the JSON that was asked for".to_owned())
            }
            _ => Verdict::Ok,
        }
    }
}

/// What a server says of an error, as OpenAI's servers say it or in another way.
pub(super) fn error_message(json: &str) -> String {
    #[derive(Deserialize)]
    struct Fields {
        message: String,
    }
    #[derive(Deserialize)]
    struct Envelope {
        error: Fields,
    }
    let fields = serde_json::from_str(json).map(|envelope: Envelope| envelope.error);
    let fields = fields.or_else(|_| serde_json::from_str::<Fields>(json));
    fields.map_or_else(|_| json.chars().take(200).collect(), |fields| fields.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(pieces: &[&str]) -> Answer {
        let mut answer = Answer::default();
        for piece in pieces {
            answer.add(piece.as_bytes()).unwrap();
        }
        answer
    }

    const HELLO: &str = r#"{"choices":[{"delta":{"content":"Hello"}}]}"#;
    const END: &str = r#"{"choices":[{"delta":{},"finish_reason":"length"}]}"#;
    const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12,
        "prompt_tokens_details":{"cached_tokens":4}}}"#;

    #[test]
    fn a_stream_and_a_whole_answer_come_to_the_same() {
        let streamed = answer(&[r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#, HELLO, END, USAGE]);
        let whole = answer(&[
            r#"{"choices":[{"message":{"role":"assistant","content":"Hello"},"finish_reason":"length",
            "logprobs":null}],"usage":{"prompt_tokens":9,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":4}}}"#,
        ]);
        assert_eq!(streamed, whole);
        assert_eq!(whole.usage, Some(Usage { input: 9, output: 3, cached: 4 }));
        assert_eq!(whole.check(Expect::Tokens(3)), Verdict::Ok);
    }

    #[test]
    fn what_is_no_full_answer_is_told_apart() {
        assert_eq!(answer(&[END]).check(Expect::Whole), Verdict::Empty);
        assert!(matches!(answer(&[HELLO, USAGE]).check(Expect::Whole), Verdict::Cut(_)));
        assert_eq!(answer(&[HELLO, END, USAGE]).check(Expect::Tokens(8)), Verdict::Cut("3 tokens of 8".to_owned()));
        assert!(matches!(answer(&[HELLO, END]).check(Expect::Json), Verdict::Cut(_)));
        // Control tokens have no text, and are an answer.
        assert_eq!(answer(&[END, USAGE]).check(Expect::Tokens(3)), Verdict::Ok);
        let call = r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]},"finish_reason":"tool_calls"}]}"#;
        assert_eq!(answer(&[call]).check(Expect::Whole), Verdict::Ok);
        assert_eq!(answer(&[r#"{"data":[]}"#]).check(Expect::Vectors(1)), Verdict::Empty);
        assert_eq!(answer(&[r#"{"data":[{"embedding":[1,2]}]}"#]).check(Expect::Vectors(1)), Verdict::Ok);
    }

    #[test]
    fn an_error_in_a_stream_is_one() {
        let error = Answer::default().add(br#"{"error":{"message":"the device failed","code":500}}"#).unwrap_err();
        assert_eq!(error, "the device failed");
        assert_eq!(error_message(r#"{"error":{"message":"no such model"}}"#), "no such model");
        assert_eq!(error_message("<html>"), "<html>");
    }
}
