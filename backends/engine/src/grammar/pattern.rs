use regex_syntax::ast::{self, Ast, ErrorKind, RepetitionKind, RepetitionRange};

use super::{MAX_NESTING, ecma};

/// Atoms of a pattern when its repetitions are written out. Each may become a state of the lexer.
const MAX_ATOMS: u64 = 10_000;

/// The pattern of a JSON Schema in the syntax of Rust's `regex`.
///
/// # Errors
/// What is wrong with it, as a sentence.
pub(super) fn from_ecma(pattern: &str) -> Result<String, &'static str> {
    ecma::translated(pattern, &parse(pattern)?)
}

/// The pattern without the anchors around the whole of it, for a match that has to be whole anyway.
///
/// # Errors
/// What is wrong with it, as a sentence.
pub(super) fn unanchored(pattern: &str) -> Result<&str, &'static str> {
    let ast = parse(pattern)?;
    let (mut start, mut end) = (0, pattern.len());
    let parts = match &ast {
        Ast::Concat(concat) => concat.asts.as_slice(),
        one => std::slice::from_ref(one),
    };
    if let Some(Ast::Assertion(first)) = parts.first()
        && matches!(first.kind, ast::AssertionKind::StartLine | ast::AssertionKind::StartText)
    {
        start = first.span.end.offset;
    }
    if let Some(Ast::Assertion(last)) = parts.last()
        && matches!(last.kind, ast::AssertionKind::EndLine | ast::AssertionKind::EndText)
    {
        end = last.span.start.offset;
    }
    Ok(&pattern[start..end.max(start)])
}

fn parse(pattern: &str) -> Result<Ast, &'static str> {
    let mut parser = ast::parse::ParserBuilder::new().nest_limit(MAX_NESTING as u32).build();
    let ast = parser.parse(pattern).map_err(|error| match error.kind() {
        ErrorKind::UnsupportedLookAround => "Look-around is not supported in a regular expression.",
        ErrorKind::UnsupportedBackreference => "Back-references are not supported in a regular expression.",
        ErrorKind::NestLimitExceeded(_) => "The regular expression is nested too deeply.",
        _ => "This is not a valid regular expression.",
    })?;
    if atoms(&ast) > MAX_ATOMS {
        return Err("The regular expression is too large.");
    }
    Ok(ast)
}

/// Recurses as deep as the parser let the pattern be nested.
fn atoms(ast: &Ast) -> u64 {
    match ast {
        Ast::Repetition(repetition) => atoms(&repetition.ast).saturating_mul(match &repetition.op.kind {
            RepetitionKind::Range(RepetitionRange::Exactly(times) | RepetitionRange::AtLeast(times)) => {
                u64::from(*times).max(1)
            }
            RepetitionKind::Range(RepetitionRange::Bounded(_, most)) => u64::from(*most).max(1),
            RepetitionKind::ZeroOrOne | RepetitionKind::ZeroOrMore | RepetitionKind::OneOrMore => 1,
        }),
        Ast::Group(group) => atoms(&group.ast),
        Ast::Alternation(alternation) => sum(&alternation.asts),
        Ast::Concat(concat) => sum(&concat.asts),
        Ast::Empty(_)
        | Ast::Flags(_)
        | Ast::Literal(_)
        | Ast::Dot(_)
        | Ast::Assertion(_)
        | Ast::ClassUnicode(_)
        | Ast::ClassPerl(_)
        | Ast::ClassBracketed(_) => 1,
    }
}

fn sum(parts: &[Ast]) -> u64 {
    parts.iter().map(atoms).fold(0, u64::saturating_add)
}
