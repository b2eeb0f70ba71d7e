//! Tells the calls in an answer from its text, character by character, so that a stream says what the whole answer would.

use serde_json::{Map, Value};

use super::Pieces;
use super::format::{Syntax, ToolFormat};
use super::function::{self, FoundTag, FunctionReader};
use super::object::{Extent, Found, ObjectReader, Progress};
use crate::completion::read::Tools;

/// Of what stands between an opener and the arguments.
const MAX_HEADER_BYTES: usize = 512;

/// Reads an answer with calls in it.
#[derive(Debug)]
pub(super) struct CallReader {
    syntax: &'static Syntax,
    tools: Vec<(String, Map<String, Value>)>,
    parallel: bool,
    mode: Mode,
    /// May become a marker.
    held: String,
    /// White space that belongs to the text if more text comes.
    blank: String,
    /// Since the opener: text after all, if no call comes of it.
    retained: String,
    /// Calls that were begun.
    calls: usize,
    call: Option<Call>,
    /// In a list of calls.
    in_list: bool,
    /// Text was told.
    begun: bool,
    /// Nothing but white space since a call.
    fresh: bool,
}

#[derive(Debug)]
enum Mode {
    Text,
    /// Behind an opener.
    Opened,
    /// Between an opener and the arguments, where the name is.
    Header(String),
    /// Arguments that stand alone.
    Arguments(Extent),
    Object(ObjectReader),
    /// In a list, in front of a call or its end.
    Between,
    Function(FunctionReader),
    /// There was the one call that there may be.
    Over,
}

/// A call that is being read.
#[derive(Debug, Default)]
struct Call {
    name: Option<String>,
    /// Arguments that came before the name.
    early: String,
    has_arguments: bool,
}

impl CallReader {
    pub(super) fn new(format: ToolFormat, tools: &Tools) -> Self {
        Self {
            syntax: format.syntax(),
            tools: tools.list.iter().map(|tool| (tool.name.clone(), tool.parameters.clone())).collect(),
            parallel: tools.parallel,
            mode: Mode::Text,
            held: String::new(),
            blank: String::new(),
            retained: String::new(),
            calls: 0,
            call: None,
            in_list: false,
            begun: false,
            fresh: false,
        }
    }

    pub(super) fn push(&mut self, text: &str, out: &mut Pieces) {
        text.chars().for_each(|c| self.push_char(c, out));
    }

    /// The answer is over.
    pub(super) fn finish(&mut self, out: &mut Pieces) {
        self.call = None;
        let mut rest = std::mem::take(&mut self.retained);
        if !self.fresh {
            rest.push_str(&std::mem::take(&mut self.blank));
            rest.push_str(&std::mem::take(&mut self.held));
        }
        out.content(&rest);
    }

    fn push_char(&mut self, c: char, out: &mut Pieces) {
        match &mut self.mode {
            Mode::Over => {}
            Mode::Text => self.text(c, out),
            Mode::Opened => {
                self.retained.push(c);
                self.opened(c, out);
            }
            Mode::Header(header) => {
                self.retained.push(c);
                if c != '{' {
                    header.push(c);
                    if header.len() > MAX_HEADER_BYTES {
                        self.broken(out);
                    }
                    return;
                }
                let name = self.syntax.header.and_then(|name| name(header)).map(str::to_owned);
                let Some(name) = name else { return self.broken(out) };
                let mut extent = Extent::default();
                extent.push(c);
                self.mode = Mode::Arguments(extent);
                self.call = Some(Call::default());
                self.name(name, out);
                self.arguments("{", out);
            }
            Mode::Arguments(extent) => {
                let is_whole = extent.push(c);
                self.arguments(c.encode_utf8(&mut [0; 4]), out);
                if is_whole {
                    self.end_call(out);
                }
            }
            Mode::Object(reader) => {
                let (found, progress) = reader.push(c);
                if self.is_undecided() {
                    self.retained.push(c);
                }
                match found {
                    Found::Nothing => {}
                    Found::Name(name) => {
                        if self.syntax.bare && !self.tools.iter().any(|(known, _)| *known == name) {
                            return self.broken(out);
                        }
                        self.name(name, out);
                    }
                    Found::Arguments(text) => self.arguments(&text, out),
                }
                self.go_on(progress, c, out);
            }
            Mode::Between => {
                if !self.retained.is_empty() {
                    self.retained.push(c);
                }
                match c {
                    '{' => {
                        if self.retained.is_empty() {
                            self.retained.push(c);
                        }
                        self.begin_object();
                    }
                    ']' if self.retained.is_empty() => self.mode = Mode::Text,
                    c if c == ',' || c.is_whitespace() => {}
                    // A list without calls.
                    _ if !self.retained.is_empty() => self.broken(out),
                    _ => {
                        self.mode = Mode::Text;
                        self.push_char(c, out);
                    }
                }
            }
            Mode::Function(reader) => {
                let (found, progress) = reader.push(c);
                if self.is_undecided() {
                    self.retained.push(c);
                }
                match found {
                    FoundTag::Nothing => {}
                    FoundTag::Name(name) => {
                        self.name(name, out);
                        self.arguments("{", out);
                    }
                    FoundTag::Parameter { name, text, is_first } => {
                        let function = self.call.as_ref().and_then(|call| call.name.as_ref());
                        let schema = self.tools.iter().find(|(known, _)| Some(known) == function);
                        let value = function::value(schema.map(|(_, schema)| schema), &name, &text);
                        let comma = if is_first { "" } else { ", " };
                        self.arguments(&format!("{comma}{}: {value}", Value::from(name)), out);
                    }
                }
                if progress != Progress::More && !self.is_undecided() {
                    self.arguments("}", out);
                }
                self.go_on(progress, c, out);
            }
        }
    }

    /// A character outside of calls.
    fn text(&mut self, c: char, out: &mut Pieces) {
        if self.held.is_empty() {
            if c.is_whitespace() {
                self.blank.push(c);
                return;
            }
            if self.syntax.bare && (!self.begun || self.fresh) {
                match c {
                    '{' | '[' if !self.begun => {
                        self.open_bare(c);
                        return;
                    }
                    '{' if self.may_call_again() => {
                        self.open_bare(c);
                        return;
                    }
                    ',' | ';' if self.fresh => return,
                    _ => {}
                }
            }
        }
        self.held.push(c);
        let held = self.held.as_str();
        let Syntax { openers, closers, noise, .. } = self.syntax;
        let closers = if self.fresh { closers } else { &[][..] };
        if openers.contains(&held) {
            return self.open();
        }
        if noise.contains(&held) || closers.contains(&held) {
            self.held.clear();
            return;
        }
        if [openers, noise, closers].into_iter().flatten().any(|marker| marker.starts_with(held)) {
            return;
        }
        let held = std::mem::take(&mut self.held);
        let mut characters = held.chars();
        if let Some(first) = characters.next() {
            if self.fresh {
                self.blank.clear();
            }
            out.content(&std::mem::take(&mut self.blank));
            out.content(first.encode_utf8(&mut [0; 4]));
            self.begun = true;
            self.fresh = false;
        }
        characters.for_each(|c| self.push_char(c, out));
    }

    fn may_call_again(&self) -> bool {
        self.parallel || self.calls == 0
    }

    /// An opener was read.
    fn open(&mut self) {
        let marker = std::mem::take(&mut self.held);
        if !self.may_call_again() {
            self.mode = Mode::Over;
            return;
        }
        self.retained = std::mem::take(&mut self.blank);
        self.retained += &marker;
        self.in_list = false;
        self.mode = Mode::Opened;
        if marker == "<function=" {
            let mut reader = FunctionReader::new();
            marker.chars().for_each(|c| drop(reader.push(c)));
            self.call = Some(Call::default());
            self.mode = Mode::Function(reader);
        }
    }

    fn open_bare(&mut self, c: char) {
        self.retained = std::mem::take(&mut self.blank);
        self.retained.push(c);
        self.in_list = c == '[';
        match c {
            '[' => self.mode = Mode::Between,
            _ => self.begin_object(),
        }
    }

    fn opened(&mut self, c: char, out: &mut Pieces) {
        match c {
            c if c.is_whitespace() => {}
            '[' if !self.in_list => {
                self.in_list = true;
                self.mode = Mode::Between;
            }
            '{' => self.begin_object(),
            '<' if self.syntax.openers.contains(&"<function=") => {
                let mut reader = FunctionReader::new();
                reader.push(c);
                self.call = Some(Call::default());
                self.mode = Mode::Function(reader);
            }
            c if self.syntax.header.is_some() => self.mode = Mode::Header(c.to_string()),
            _ => self.broken(out),
        }
    }

    fn begin_object(&mut self) {
        self.call = Some(Call::default());
        self.mode = Mode::Object(ObjectReader::new());
    }

    /// Whether it may still turn out that there is no call.
    fn is_undecided(&self) -> bool {
        self.call.as_ref().is_some_and(|call| call.name.is_none())
    }

    fn go_on(&mut self, progress: Progress, c: char, out: &mut Pieces) {
        match progress {
            Progress::More => {}
            _ if self.is_undecided() => self.broken(out),
            Progress::Done => self.end_call(out),
            Progress::DoneBefore | Progress::Broken => {
                self.end_call(out);
                self.push_char(c, out);
            }
        }
    }

    fn name(&mut self, name: String, out: &mut Pieces) {
        let Some(call) = self.call.as_mut().filter(|call| call.name.is_none()) else { return };
        self.retained.clear();
        if self.calls > 0 && !self.parallel {
            self.call = None;
            self.mode = Mode::Over;
            return;
        }
        out.call(self.calls, &name);
        self.calls += 1;
        let early = std::mem::take(&mut call.early);
        call.name = Some(name);
        if !early.is_empty() {
            out.arguments(self.calls - 1, &early);
        }
    }

    fn arguments(&mut self, text: &str, out: &mut Pieces) {
        let Some(call) = &mut self.call else { return };
        call.has_arguments = true;
        if call.name.is_none() {
            call.early.push_str(text);
            return;
        }
        out.arguments(self.calls - 1, text);
    }

    fn end_call(&mut self, out: &mut Pieces) {
        let Some(call) = self.call.take() else { return };
        if !call.has_arguments {
            out.arguments(self.calls - 1, "{}");
        }
        self.fresh = true;
        self.mode = if self.in_list { Mode::Between } else { Mode::Text };
    }

    /// No call came of what looked like one: it is text.
    fn broken(&mut self, out: &mut Pieces) {
        self.call = None;
        self.mode = Mode::Text;
        self.begun = true;
        self.fresh = false;
        out.content(&std::mem::take(&mut self.retained));
    }
}
