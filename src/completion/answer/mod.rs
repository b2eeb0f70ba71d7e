//! From the text that a model generates to the parts of a message: its reasoning, its text, and its calls of tools.
//!
//! Everything is read character by character, so that a stream tells what the whole answer would, wherever the text was cut.

mod calls;
mod format;
mod function;
mod object;
mod reasoning;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use tandem_core::{TokenId, Vocab};
use tandem_engine::Part;

pub(super) use format::ToolFormat;
pub(super) use reasoning::{Beginning, ReasoningFormat};

use super::random_id;
use super::read::Tools;
use calls::CallReader;
use reasoning::ReasoningReader;

/// What has to be known to read an answer; one for all choices of a request.
#[derive(Clone, Debug, Default)]
pub(super) struct AnswerForm {
    pub(super) reasoning: Option<(ReasoningFormat, Beginning)>,
    pub(super) tools: Option<(ToolFormat, Arc<Tools>)>,
    /// Whether the client wants to see the reasoning.
    pub(super) shows_reasoning: bool,
}

/// A piece of a message, as it comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Reasoning(String),
    Content(String),
    /// A call begins, the so many-th of the message.
    Call {
        index: usize,
        name: String,
    },
    /// More of a call's arguments.
    Arguments {
        index: usize,
        text: String,
    },
}

/// Pieces in order; what belongs together is one piece.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    list: Vec<Piece>,
}

impl Pieces {
    fn reasoning(&mut self, text: &str) {
        match self.list.last_mut() {
            _ if text.is_empty() => {}
            Some(Piece::Reasoning(last)) => last.push_str(text),
            _ => self.list.push(Piece::Reasoning(text.to_owned())),
        }
    }

    fn content(&mut self, text: &str) {
        match self.list.last_mut() {
            _ if text.is_empty() => {}
            Some(Piece::Content(last)) => last.push_str(text),
            _ => self.list.push(Piece::Content(text.to_owned())),
        }
    }

    fn call(&mut self, index: usize, name: &str) {
        self.list.push(Piece::Call { index, name: name.to_owned() });
    }

    fn arguments(&mut self, index: usize, more: &str) {
        match self.list.last_mut() {
            _ if more.is_empty() => {}
            Some(Piece::Arguments { index: last, text }) if *last == index => text.push_str(more),
            _ => self.list.push(Piece::Arguments { index, text: more.to_owned() }),
        }
    }
}

/// Reads one choice.
#[derive(Debug)]
pub(super) struct AnswerReader {
    reasoning: Option<ReasoningReader>,
    calls: Option<CallReader>,
    shows_reasoning: bool,
}

impl AnswerForm {
    /// The control tokens that have to be seen as text.
    pub(super) fn shown(&self, vocab: &Vocab) -> Arc<[TokenId]> {
        let of_reasoning = self.reasoning.iter().flat_map(|(format, _)| format.markers());
        let of_tools = self.tools.iter().flat_map(|(format, _)| format.markers());
        let markers: Vec<_> = of_reasoning.chain(of_tools).collect();
        let specials = vocab.specials().iter();
        specials.filter(|special| markers.contains(&special.text.as_str())).map(|special| special.id).collect()
    }

    /// An id for a call, of the form that the model's template takes when the call comes back.
    pub(super) fn call_id(&self) -> String {
        const SHORT: usize = 9;
        match &self.tools {
            Some((format, _)) if format.has_short_ids() => random_id("").chars().take(SHORT).collect(),
            _ => random_id("call_"),
        }
    }

    /// Whether calls are told in the deprecated form.
    pub(super) fn is_deprecated(&self) -> bool {
        self.tools.as_ref().is_some_and(|(_, tools)| tools.deprecated)
    }

    /// None where an answer is nothing but text.
    pub(super) fn reader(&self) -> Option<AnswerReader> {
        let reasoning = self.reasoning.map(|(format, beginning)| ReasoningReader::new(format, beginning));
        let calls = self.tools.as_ref().map(|(format, tools)| CallReader::new(*format, tools));
        let reads = reasoning.is_some() || calls.is_some();
        reads.then_some(AnswerReader { reasoning, calls, shows_reasoning: self.shows_reasoning })
    }
}

impl AnswerReader {
    /// Takes the text of one token.
    pub(super) fn push(&mut self, text: &str) -> Vec<Piece> {
        if let Some(reasoning) = &mut self.reasoning {
            reasoning.count();
        }
        let mut out = Pieces::default();
        self.take(text, &mut out);
        self.shown(out)
    }

    /// The answer is over, with text that was held back.
    pub(super) fn finish(&mut self, rest: &str) -> Vec<Piece> {
        let mut out = Pieces::default();
        self.take(rest, &mut out);
        if let Some(reasoning) = &mut self.reasoning {
            let rest = reasoning.finish(&mut out);
            self.answer(&rest, &mut out);
        }
        if let Some(calls) = &mut self.calls {
            calls.finish(&mut out);
        }
        self.shown(out)
    }

    fn take(&mut self, text: &str, out: &mut Pieces) {
        match &mut self.reasoning {
            Some(reasoning) => {
                let rest = reasoning.push(text, out);
                self.answer(&rest, out);
            }
            None => self.answer(text, out),
        }
    }

    /// Tokens that were reasoning.
    pub(super) fn reasoning_tokens(&self) -> u64 {
        self.reasoning.as_ref().map_or(0, ReasoningReader::tokens)
    }

    fn answer(&mut self, text: &str, out: &mut Pieces) {
        match &mut self.calls {
            Some(calls) => calls.push(text, out),
            None => out.content(text),
        }
    }

    fn shown(&self, out: Pieces) -> Vec<Piece> {
        let Pieces { mut list } = out;
        if !self.shows_reasoning {
            list.retain(|piece| !matches!(piece, Piece::Reasoning(_)));
        }
        list
    }
}

/// A text as a model writes it: with the control tokens that it has for parts of it.
fn written(text: &str, vocab: &Vocab) -> Vec<Part> {
    let mut parts = Vec::new();
    let (mut from, mut at) = (0, 0);
    while at < text.len() {
        // Longest first, and all begin and end with whole characters.
        let special =
            vocab.specials().iter().find(|special| special.text.len() > 1 && text[at..].starts_with(&special.text));
        match special {
            Some(special) => {
                parts.extend((from < at).then(|| Part::Text(text[from..at].to_owned())));
                parts.push(Part::Control(special.id));
                at += special.text.len();
                from = at;
            }
            None => at += text[at..].chars().next().map_or(1, char::len_utf8),
        }
    }
    parts.extend((from < at).then(|| Part::Text(text[from..].to_owned())));
    parts
}
