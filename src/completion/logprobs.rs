//! Log-probabilities as OpenAI's two APIs tell them.

use tandem_core::{TokenId, Vocab};
use tandem_engine::{Logprobs, TokenText};

use super::read::Telling;
use crate::openai::chat::{TokenLogprob, TopLogprob};
use crate::openai::completions::{CompletionLogprobs, TopLogprobs};

/// What stands for an impossible token: JSON has no infinity.
const IMPOSSIBLE: f32 = -9999.0;

pub(super) fn chat(logprobs: &Logprobs, telling: &Telling) -> TokenLogprob {
    let chosen = &logprobs.chosen;
    let top = |token: &TokenText| TopLogprob {
        token: name(token.id, &token.bytes, telling),
        logprob: finite(token.logprob),
        bytes: token.bytes.clone(),
    };
    TokenLogprob {
        token: name(chosen.id, &chosen.bytes, telling),
        logprob: finite(chosen.logprob),
        bytes: chosen.bytes.clone(),
        top_logprobs: logprobs.top.iter().map(top).collect(),
    }
}

/// The log-probabilities of a completion's choice, as they come to be.
pub(super) struct Lists<'a> {
    pub(super) vocab: &'a Vocab,
    pub(super) telling: &'a Telling,
    pub(super) lists: CompletionLogprobs,
    /// Where the next token begins in the choice's text.
    pub(super) offset: usize,
}

impl<'a> Lists<'a> {
    pub(super) fn new(vocab: &'a Vocab, telling: &'a Telling, offset: usize) -> Self {
        Self { vocab, telling, lists: CompletionLogprobs::default(), offset }
    }

    pub(super) fn push(&mut self, logprobs: &Logprobs) {
        let Logprobs { chosen, top } = logprobs;
        let mut likeliest: Vec<(String, f32)> = Vec::with_capacity(top.len() + 1);
        for token in top.iter().chain([chosen]) {
            let name = name(token.id, &token.bytes, self.telling);
            // Tokens that are parts of characters may read the same; the likeliest of them stands.
            if !likeliest.iter().any(|(known, _)| *known == name) {
                likeliest.push((name, finite(token.logprob)));
            }
        }
        let is_text = self.vocab.is_text(chosen.id) || self.telling.special_tokens;
        self.put(chosen.id, &chosen.bytes, is_text, Some((finite(chosen.logprob), likeliest)));
    }

    /// A prompt in front of its answer: the first token has nothing before it to be likely or unlikely after. All tokens are text there,
    /// since they are what the client wrote.
    pub(super) fn push_prompt(&mut self, first: TokenId, rest: &[Logprobs]) {
        self.put(first, self.vocab.bytes(first), true, None);
        rest.iter().for_each(|one| self.push(one));
    }

    fn put(&mut self, id: TokenId, bytes: &[u8], is_text: bool, found: Option<(f32, Vec<(String, f32)>)>) {
        let Self { lists, offset, telling, .. } = self;
        let (logprob, top) = found.unzip();
        lists.tokens.push(name(id, bytes, telling));
        lists.token_logprobs.push(logprob);
        lists.top_logprobs.push(top.map(TopLogprobs));
        lists.text_offset.push(*offset);
        // Control tokens are no text. Characters are counted at their first byte, of which a token may hold none.
        if is_text {
            *offset += bytes.iter().filter(|byte| **byte & 0b1100_0000 != 0b1000_0000).count();
        }
    }
}

/// How a token is named: by its text, or by its id as vLLM writes it.
fn name(id: TokenId, bytes: &[u8], telling: &Telling) -> String {
    if telling.tokens_as_ids { format!("token_id:{id}") } else { String::from_utf8_lossy(bytes).into_owned() }
}

fn finite(logprob: f32) -> f32 {
    logprob.max(IMPOSSIBLE)
}
