//! Log-probabilities as OpenAI's two APIs tell them.

use tandem_core::Vocab;
use tandem_engine::{Logprobs, TokenText};

use crate::openai::chat::{TokenLogprob, TopLogprob};
use crate::openai::completions::{CompletionLogprobs, TopLogprobs};

/// What stands for an impossible token: JSON has no infinity.
const IMPOSSIBLE: f32 = -9999.0;

pub(super) fn chat(logprobs: &Logprobs) -> TokenLogprob {
    let chosen = &logprobs.chosen;
    TokenLogprob {
        token: text(chosen),
        logprob: finite(chosen.logprob),
        bytes: chosen.bytes.clone(),
        top_logprobs: logprobs.top.iter().map(top).collect(),
    }
}

fn top(token: &TokenText) -> TopLogprob {
    TopLogprob { token: text(token), logprob: finite(token.logprob), bytes: token.bytes.clone() }
}

/// Appends a token; `offset` is where it begins in the choice's text, and is moved to where the next one does.
pub(super) fn append(list: &mut CompletionLogprobs, logprobs: &Logprobs, vocab: &Vocab, offset: &mut usize) {
    let Logprobs { chosen, top } = logprobs;
    list.tokens.push(text(chosen));
    list.token_logprobs.push(finite(chosen.logprob));
    list.text_offset.push(*offset);
    let mut likeliest: Vec<(String, f32)> = Vec::with_capacity(top.len() + 1);
    for token in top.iter().chain([chosen]) {
        let text = text(token);
        // Tokens that are parts of characters may read the same; the likeliest of them stands.
        if !likeliest.iter().any(|(known, _)| *known == text) {
            likeliest.push((text, finite(token.logprob)));
        }
    }
    list.top_logprobs.push(TopLogprobs(likeliest));
    // Control tokens are no text. Characters are counted at their first byte, of which a token may hold none.
    if vocab.is_text(chosen.id) {
        *offset += chosen.bytes.iter().filter(|byte| **byte & 0b1100_0000 != 0b1000_0000).count();
    }
}

fn text(token: &TokenText) -> String {
    String::from_utf8_lossy(&token.bytes).into_owned()
}

fn finite(logprob: f32) -> f32 {
    logprob.max(IMPOSSIBLE)
}
