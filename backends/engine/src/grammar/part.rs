//! Outputs of several parts: what a model says before it answers, the text by which it calls a tool, and the JSON between.

use std::fmt::Write as _;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use tandem_core::TokenId;

use super::{GrammarError, GrammarSpec, MAX_NESTING, WhiteSpace, compiler, ebnf, schema};

/// A part of an output.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// This text.
    Text(String),
    /// This control token.
    Control(TokenId),
    /// Compact JSON that is valid under a schema.
    Json {
        /// Where the client finds the schema: what [`GrammarError::Invalid`] begins its place with.
        path: String,
        /// The JSON Schema, as JSON text.
        schema: String,
    },
    /// What another grammar allows.
    Grammar {
        /// Where the client finds it, as above.
        path: String,
        /// The grammar.
        spec: Box<GrammarSpec>,
    },
    /// Any text up to the first occurrence of this one, and that too.
    Until(String),
    /// Any text, the empty one included, in which none of these occurs.
    Free {
        /// Texts that do not occur; none is empty.
        without: Vec<String>,
    },
    /// One after the other.
    Sequence(Vec<Self>),
    /// Exactly one of these.
    Choice(Vec<Self>),
    /// Once or not at all.
    Optional(Box<Self>),
    /// As often as the model likes, also not at all.
    Repeated(Box<Self>),
    /// Once or more, with a separator between two.
    Separated {
        /// What is repeated.
        part: Box<Self>,
        /// What stands between.
        by: Box<Self>,
    },
}

impl Part {
    pub(super) fn source_bytes(&self) -> usize {
        match self {
            Self::Text(text) | Self::Until(text) => text.len(),
            Self::Control(_) => 1,
            Self::Json { path: _, schema } => schema.len(),
            Self::Grammar { path: _, spec } => spec.source_bytes(),
            Self::Free { without } => without.iter().map(String::len).sum(),
            Self::Sequence(parts) | Self::Choice(parts) => parts.iter().map(Self::source_bytes).sum(),
            Self::Optional(part) | Self::Repeated(part) => part.source_bytes(),
            Self::Separated { part, by } => part.source_bytes() + by.source_bytes(),
        }
    }
}

/// The grammar in Lark, which refers to a further grammar for each schema in it.
pub(super) fn to_grammars(part: &Part) -> Result<TopLevelGrammar, GrammarError> {
    let mut writer = Writer { lark: String::new(), rules: 0, named: Vec::new() };
    let start = writer.rule(part, 0)?;
    let _ = writeln!(writer.lark, "start: {start}");
    let mut grammars = vec![GrammarWithLexer::from_lark(writer.lark)];
    grammars.append(&mut writer.named);
    Ok(TopLevelGrammar { grammars, max_tokens: None })
}

struct Writer {
    lark: String,
    rules: usize,
    named: Vec<GrammarWithLexer>,
}

impl Writer {
    /// Writes the part's rule and returns its name.
    fn rule(&mut self, part: &Part, depth: usize) -> Result<String, GrammarError> {
        if depth > MAX_NESTING {
            return Err(GrammarError::TooComplex);
        }
        // Options of the rule, and what it expands to.
        let (options, body) = match part {
            Part::Text(text) => (String::new(), serde_json::Value::from(text.as_str()).to_string()),
            Part::Control(token) => (String::new(), format!("<[{token}]>")),
            Part::Json { path, schema } => {
                let checked = schema::checked(schema, false).map_err(|error| below(path, error))?;
                (String::new(), self.named(compiler::json(checked, &WhiteSpace::Compact)))
            }
            Part::Grammar { path, spec } => {
                let compiled = spec.for_llguidance().map_err(|error| below(path, error));
                let TopLevelGrammar { grammars, max_tokens: _ } = compiled?;
                // Those of more than one name the others by numbers that would be taken here.
                let [grammar]: [_; 1] = grammars.try_into().map_err(|_| GrammarError::TooComplex)?;
                (String::new(), self.named(grammar))
            }
            Part::Until(end) => (format!("[suffix=/{}/]", literal(end)), ANY.to_owned()),
            Part::Free { without } => {
                let texts: Vec<_> = without.iter().map(|text| literal(text)).collect();
                let name = self.next_name().to_uppercase();
                let exception = match texts.is_empty() {
                    true => String::new(),
                    false => format!(" & ~/(?s:.*)({})(?s:.*)/", texts.join("|")),
                };
                let _ = writeln!(self.lark, "{name}: {ANY}{exception}");
                return Ok(name);
            }
            Part::Sequence(parts) => (String::new(), self.rules(parts, depth)?.join(" ")),
            Part::Choice(parts) => (String::new(), self.rules(parts, depth)?.join(" | ")),
            Part::Optional(part) => (String::new(), format!("{}?", self.rule(part, depth + 1)?)),
            Part::Repeated(part) => (String::new(), format!("{}*", self.rule(part, depth + 1)?)),
            Part::Separated { part, by } => {
                let (part, by) = (self.rule(part, depth + 1)?, self.rule(by, depth + 1)?);
                (String::new(), format!("{part} ({by} {part})*"))
            }
        };
        let name = self.next_name();
        let _ = writeln!(self.lark, "{name}{options}: {body}");
        Ok(name)
    }

    fn rules(&mut self, parts: &[Part], depth: usize) -> Result<Vec<String>, GrammarError> {
        parts.iter().map(|part| self.rule(part, depth + 1)).collect()
    }

    fn named(&mut self, grammar: GrammarWithLexer) -> String {
        let name = format!("g{}", self.named.len());
        self.named.push(GrammarWithLexer { name: Some(name.clone()), ..grammar });
        format!("@{name}")
    }

    fn next_name(&mut self) -> String {
        self.rules += 1;
        format!("r{}", self.rules)
    }
}

const ANY: &str = "/(?s:.*)/";

/// A regular expression for the text.
fn literal(text: &str) -> String {
    text.chars().map(|c| format!("[{}]", ebnf::regex(c))).collect()
}

fn below(path: &str, error: GrammarError) -> GrammarError {
    let GrammarError::Invalid { place, reason } = error else { return error };
    let dot = if place.is_empty() || place.starts_with('[') { "" } else { "." };
    GrammarError::Invalid { place: format!("{path}{dot}{place}"), reason }
}
