//! Structured output: what an answer must look like, compiled to a set of allowed tokens for each step.
//!
//! [`Grammars`] compiles a [`GrammarSpec`] for one model, from the bytes of its tokens alone, so that every backend constrains alike. The
//! engine follows each sequence with a `GrammarState`. The work is done by llguidance (derivatives of regular expressions and an Earley
//! parser over the trie of tokens); what it would drop, guess or fetch is refused here before it sees it.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enums that are matched are those of other crates, with kinds that do not matter here"
)]

mod compiler;
mod ebnf;
mod ecma;
mod format;
mod part;
mod pattern;
mod schema;
mod state;
#[cfg(test)]
mod tests;

use thiserror::Error;

pub use compiler::{Grammar, Grammars};
pub use ebnf::is_ebnf;
pub use part::Part;
pub use state::{DeadEnd, GrammarState};

/// What an output must look like.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GrammarSpec {
    /// JSON that is valid under this JSON Schema, which is itself JSON text. Its formats are enforced too.
    ///
    /// Output is compact: one blank at most after a comma or a colon and none elsewhere, since a weak model that may always emit white
    /// space can do so for ever. Properties come in the order of the schema.
    JsonSchema(String),
    /// The same in another form.
    JsonSchemaIn(String, JsonForm),
    /// Any JSON object, as compact as above.
    JsonObject,
    /// Text that this regular expression matches as a whole, in the syntax of Rust's `regex` without look-around. `^` and `$` around the
    /// whole change nothing.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A context-free grammar in llguidance's variant of Lark.
    Lark(String),
    /// A context-free grammar in the EBNF of llama.cpp (GBNF), beginning at its rule `root`.
    Ebnf(String),
    /// Text in which JSON, free text and control tokens have their places.
    Parts(Part),
}

/// The form of JSON that a schema alone does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct JsonForm {
    /// Between its parts.
    pub white_space: WhiteSpace,
    /// Objects whose schema names properties, and does not say whether there may be more, have no more.
    pub closed: bool,
}

/// What may stand between the parts of JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum WhiteSpace {
    /// One blank at most after a comma or a colon.
    #[default]
    Compact,
    /// None.
    Nothing,
    /// What this regular expression matches, if anything.
    Pattern(String),
}

/// Checks a pattern of [`WhiteSpace`], or another that stands alone.
///
/// # Errors
/// What is wrong with it, as a sentence fit for the client.
pub fn check_pattern(pattern: &str) -> Result<(), &'static str> {
    match pattern::unanchored(pattern)? {
        "" => Err("The regular expression is empty."),
        whole if whole.len() < pattern.len() => Err("Anchors are not supported here."),
        _ => Ok(()),
    }
}

/// Why a grammar was not compiled. Either is the client's to mend.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GrammarError {
    /// The source is wrong, or asks for what cannot be enforced.
    #[error("{reason} (at '{place}')")]
    Invalid {
        /// Where, as a path in the source such as `properties.name.pattern`; empty for the whole of it.
        place: String,
        /// What, as a sentence fit for the client.
        reason: String,
    },
    /// It would cost too much to compile or to follow.
    #[error("the grammar is too complex")]
    TooComplex,
}

impl GrammarError {
    fn invalid(place: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { place: place.into(), reason: reason.into() }
    }
}

/// Nested groups, schemas or values. The parsers below recurse.
const MAX_NESTING: usize = 64;
/// Length of a source. The largest schemas in use are about half of it.
const MAX_SOURCE_BYTES: usize = 64 << 10;
