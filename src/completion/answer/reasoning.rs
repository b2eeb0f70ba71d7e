//! What a model says to itself before it answers, told apart from the answer.

use tandem_core::Vocab;
use tandem_engine::Part;

use super::{Pieces, written};

/// The texts around a model's reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::completion) struct ReasoningFormat {
    pub(super) open: &'static str,
    pub(super) close: &'static str,
}

/// Where an answer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::completion) enum Beginning {
    /// The prompt ends within reasoning.
    Inside,
    /// The model may reason, and begins it itself.
    Open,
}

impl ReasoningFormat {
    const ALL: [Self; 4] = [
        Self { open: "<think>", close: "</think>" },
        Self { open: "<|START_THINKING|>", close: "<|END_THINKING|>" },
        Self { open: "[THINK]", close: "[/THINK]" },
        // Granite 3.
        Self { open: "Here is my thought process:", close: "Here is my response:" },
    ];

    /// The format of the models that a chat template is for, if they reason at all.
    pub(in crate::completion) fn of(template: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| template.contains(format.close))
    }

    pub(in crate::completion) fn markers(self) -> [&'static str; 2] {
        [self.open, self.close]
    }

    /// Where the answer to a rendered prompt begins. None where the prompt has the reasoning in it, whole or empty.
    pub(in crate::completion) fn beginning(self, prompt: &str) -> Option<Beginning> {
        let end = prompt.trim_end();
        match () {
            () if end.ends_with(self.open) => Some(Beginning::Inside),
            () if end.ends_with(self.close) => None,
            () => Some(Beginning::Open),
        }
    }

    /// An answer that is constrained once the reasoning is over.
    pub(in crate::completion) fn before(self, beginning: Beginning, answer: Part, vocab: &Vocab) -> Part {
        let control =
            |text: &str| vocab.specials().iter().find(|special| special.text == text).map(|special| special.id);
        let mut reasoning = match control(self.close) {
            Some(close) => vec![Part::Free { without: Vec::new() }, Part::Control(close)],
            None => vec![Part::Until(self.close.to_owned())],
        };
        let blank = ["\n\n", "\n"].map(|text| Part::Text(text.to_owned()));
        reasoning.push(Part::Optional(Box::new(Part::Choice(blank.into()))));
        match beginning {
            Beginning::Inside => {
                reasoning.push(answer);
                Part::Sequence(reasoning)
            }
            Beginning::Open => {
                let opened = written(self.open, vocab).into_iter().chain(reasoning).collect();
                Part::Sequence(vec![Part::Optional(Box::new(Part::Sequence(opened))), answer])
            }
        }
    }
}

/// Splits an answer.
#[derive(Debug)]
pub(super) struct ReasoningReader {
    format: ReasoningFormat,
    mode: Mode,
    /// May become a marker.
    held: String,
    /// White space that is told if text follows.
    blank: String,
    /// Of the reasoning, text was told.
    begun: bool,
    /// Tokens until the answer itself began.
    tokens: u64,
    reasoned: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Nothing but white space came.
    Before,
    Inside,
    /// Behind the reasoning, of which white space follows.
    Behind,
    Over,
}

impl ReasoningReader {
    pub(super) fn new(format: ReasoningFormat, beginning: Beginning) -> Self {
        let (mode, reasoned) = match beginning {
            Beginning::Inside => (Mode::Inside, true),
            Beginning::Open => (Mode::Before, false),
        };
        let (held, blank) = (String::new(), String::new());
        Self { format, mode, held, blank, begun: false, tokens: 0, reasoned }
    }

    /// Another token comes.
    pub(super) fn count(&mut self) {
        self.tokens += u64::from(matches!(self.mode, Mode::Before | Mode::Inside));
    }

    /// Takes text; returns what is not reasoning.
    pub(super) fn push(&mut self, text: &str, out: &mut Pieces) -> String {
        if self.mode == Mode::Over {
            return text.to_owned();
        }
        let mut rest = String::new();
        text.chars().for_each(|c| self.push_char(c, out, &mut rest));
        rest
    }

    /// The answer is over; returns what is not reasoning.
    pub(super) fn finish(&mut self, out: &mut Pieces) -> String {
        let rest = std::mem::take(&mut self.blank) + &std::mem::take(&mut self.held);
        match self.mode {
            Mode::Before | Mode::Over => rest,
            Mode::Inside => {
                out.reasoning(rest.trim_end());
                String::new()
            }
            Mode::Behind => String::new(),
        }
    }

    /// Tokens of the reasoning, with what marks its ends.
    pub(super) fn tokens(&self) -> u64 {
        if self.reasoned { self.tokens } else { 0 }
    }

    fn push_char(&mut self, c: char, out: &mut Pieces, rest: &mut String) {
        match self.mode {
            Mode::Over => rest.push(c),
            Mode::Behind if c.is_whitespace() => {}
            Mode::Behind => {
                self.mode = Mode::Over;
                rest.push(c);
            }
            Mode::Before | Mode::Inside if self.held.is_empty() && c.is_whitespace() => self.blank.push(c),
            Mode::Before => {
                self.held.push(c);
                if self.held == self.format.open {
                    self.held.clear();
                    self.blank.clear();
                    self.mode = Mode::Inside;
                    self.reasoned = true;
                } else if !self.format.open.starts_with(&self.held) {
                    self.mode = Mode::Over;
                    rest.push_str(&std::mem::take(&mut self.blank));
                    rest.push_str(&std::mem::take(&mut self.held));
                }
            }
            Mode::Inside => {
                self.held.push(c);
                if self.held == self.format.close {
                    self.held.clear();
                    self.blank.clear();
                    self.mode = Mode::Behind;
                } else if !self.format.close.starts_with(&self.held) {
                    let held = std::mem::take(&mut self.held);
                    let mut characters = held.chars();
                    if let Some(first) = characters.next() {
                        let blank = std::mem::take(&mut self.blank);
                        // What begins the reasoning is not white space.
                        out.reasoning(if self.begun { &blank } else { "" });
                        out.reasoning(first.encode_utf8(&mut [0; 4]));
                        self.begun = true;
                    }
                    characters.for_each(|c| self.push_char(c, out, rest));
                }
            }
        }
    }
}
