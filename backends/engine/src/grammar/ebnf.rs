//! Grammars as llama.cpp writes them (GBNF), translated to llguidance's Lark.
//!
//! A lexer takes the longest text that a terminal matches, so that after `[a-z]+` nothing that begins with a letter could follow. In EBNF it
//! could. Every terminal here is a single character, which leaves the lexer no choice and the whole grammar to the parser.

use std::{collections::HashMap, fmt::Write as _, iter::Peekable, str::CharIndices};

use super::GrammarError;

/// Whether a grammar is in EBNF rather than in Lark: some line defines a rule with `::=`.
#[must_use]
pub fn is_ebnf(source: &str) -> bool {
    let defines = |line: &str| {
        line.split_once("::=").is_some_and(|(name, _)| !name.trim().is_empty() && name.trim().chars().all(is_of_name))
    };
    source.lines().any(defines)
}

/// The same grammar in Lark.
///
/// # Errors
/// With what is wrong and on which line.
pub(super) fn to_lark(source: &str) -> Result<String, GrammarError> {
    let tokens = tokens(source)?;
    let mut rules = HashMap::new();
    for (at, pair) in tokens.windows(2).enumerate() {
        if let [Placed { token: Token::Name(name), line }, Placed { token: Token::Define, .. }] = pair
            && rules.insert(*name, at).is_some()
        {
            return Err(wrong(*line, &format!("the rule '{name}' is defined twice")));
        }
    }
    if !rules.contains_key("root") {
        return Err(GrammarError::invalid("", "The grammar has no rule 'root'."));
    }
    let mut lark = String::new();
    for (at, Placed { token, line }) in tokens.iter().enumerate() {
        let is_defined_here = matches!(tokens.get(at + 1), Some(Placed { token: Token::Define, .. }));
        match token {
            Token::Name(name) => {
                let Some(&rule) = rules.get(name) else {
                    return Err(wrong(*line, &format!("the rule '{name}' is not defined")));
                };
                lark += if is_defined_here { "\n" } else { " " };
                lark += &rule_name(name, rule);
            }
            Token::Define => match at.checked_sub(1).map(|before| &tokens[before].token) {
                Some(Token::Name(_)) => lark.push(':'),
                Some(_) | None => return Err(wrong(*line, "'::=' stands behind no name")),
            },
            Token::Text(text) if text.is_empty() => lark += " \"\"",
            Token::Text(text) => {
                let characters = text.chars().map(|c| format!("/[{}]/", regex(c)));
                let _ = write!(lark, " ({})", characters.collect::<Vec<_>>().join(" "));
            }
            Token::Class(class) => {
                let _ = write!(lark, " /{class}/");
            }
            Token::Other(text) => {
                lark.push(' ');
                lark += text;
            }
            Token::Repeat(text) => lark += text,
        }
    }
    lark.push('\n');
    Ok(lark)
}

/// Names of any form become names that Lark takes for a rule's.
fn rule_name(name: &str, at: usize) -> String {
    if name == "root" { "start".to_owned() } else { format!("r{at}") }
}

struct Placed<'a> {
    token: Token<'a>,
    /// From 1.
    line: usize,
}

enum Token<'a> {
    Name(&'a str),
    Define,
    Text(String),
    /// A regular expression for one character.
    Class(String),
    /// How often the item before.
    Repeat(&'a str),
    Other(&'static str),
}

fn tokens(source: &str) -> Result<Vec<Placed<'_>>, GrammarError> {
    let mut reader = Reader { source, chars: source.char_indices().peekable(), line: 1 };
    let mut tokens = Vec::new();
    while let Some((at, c)) = reader.next() {
        let line = reader.line;
        let token = match c {
            c if c.is_whitespace() => continue,
            '#' => {
                reader.run(at, |c| c != '\n');
                continue;
            }
            ':' if source[at..].starts_with("::=") => {
                reader.run(at, |c| c == ':' || c == '=');
                Token::Define
            }
            '"' => Token::Text(reader.text()?),
            '[' => Token::Class(reader.class()?),
            '.' => Token::Class(r"[\x{0}-\x{10FFFF}]".to_owned()),
            '(' => Token::Other("("),
            ')' => Token::Other(")"),
            '|' => Token::Other("|"),
            '*' | '+' | '?' => Token::Repeat(&source[at..=at]),
            '{' => {
                reader.run(at, |c| c.is_ascii_digit() || c == ',' || c == ' ');
                match reader.next() {
                    Some((end, '}')) => Token::Repeat(&source[at..=end]),
                    _ => return Err(wrong(line, "a repetition is not of the form {1}, {1,} or {1,2}")),
                }
            }
            c if is_of_name(c) => Token::Name(reader.run(at, is_of_name)),
            c => return Err(wrong(line, &format!("'{c}' is not expected"))),
        };
        tokens.push(Placed { token, line });
    }
    Ok(tokens)
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

struct Reader<'a> {
    source: &'a str,
    chars: Peekable<CharIndices<'a>>,
    line: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<(usize, char)> {
        let next = self.chars.next();
        self.line += usize::from(matches!(next, Some((_, '\n'))));
        next
    }

    /// What was read since `from` and as many of these characters as follow.
    fn run(&mut self, from: usize, is_wanted: impl Fn(char) -> bool) -> &'a str {
        while self.chars.next_if(|(_, c)| is_wanted(*c)).is_some() {}
        let end = self.chars.peek().map_or(self.source.len(), |(at, _)| *at);
        &self.source[from..end]
    }

    /// Behind the opening quote.
    fn text(&mut self) -> Result<String, GrammarError> {
        let mut text = String::new();
        loop {
            match self.next() {
                Some((_, '"')) => return Ok(text),
                Some((_, '\\')) => text.push(self.escaped()?),
                Some((_, c)) => text.push(c),
                None => return Err(wrong(self.line, "a text has no end")),
            }
        }
    }

    /// Behind the opening bracket.
    fn class(&mut self) -> Result<String, GrammarError> {
        let mut class = "[".to_owned();
        if self.chars.next_if(|(_, c)| *c == '^').is_some() {
            class.push('^');
        }
        let mut is_empty = true;
        loop {
            let first = match self.next() {
                Some((_, ']')) if !is_empty => break,
                Some((_, ']')) | None => return Err(wrong(self.line, "a class of characters is empty, or has no end")),
                Some((_, '\\')) => self.escaped()?,
                Some((_, c)) => c,
            };
            is_empty = false;
            class += &regex(first);
            let mut ahead = self.chars.clone();
            if ahead.next().is_some_and(|(_, c)| c == '-') && ahead.next().is_some_and(|(_, c)| c != ']') {
                self.next();
                let last = match self.next() {
                    Some((_, '\\')) => self.escaped()?,
                    Some((_, c)) => c,
                    None => return Err(wrong(self.line, "a class of characters has no end")),
                };
                if last < first {
                    return Err(wrong(self.line, &format!("the range {first}-{last} is empty")));
                }
                class.push('-');
                class += &regex(last);
            }
        }
        class.push(']');
        Ok(class)
    }

    /// Behind a backslash.
    fn escaped(&mut self) -> Result<char, GrammarError> {
        let line = self.line;
        let unknown =
            || wrong(line, "an escape is not one of \\n \\r \\t \\\\ \\\" \\[ \\] \\- \\^ \\xNN \\uNNNN \\UNNNNNNNN");
        let digits = match self.next().ok_or_else(unknown)?.1 {
            'n' => return Ok('\n'),
            'r' => return Ok('\r'),
            't' => return Ok('\t'),
            c @ ('\\' | '"' | '[' | ']' | '-' | '^') => return Ok(c),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => return Err(unknown()),
        };
        let mut code = 0;
        for _ in 0..digits {
            let digit = self.next().and_then(|(_, c)| c.to_digit(16)).ok_or_else(unknown)?;
            code = code << 4 | digit;
        }
        char::from_u32(code).ok_or_else(|| wrong(line, "an escape stands for no character"))
    }
}

/// A character in a class of a regular expression, whatever it means there otherwise.
pub(super) fn regex(c: char) -> String {
    format!(r"\x{{{:X}}}", u32::from(c))
}

fn wrong(line: usize, what: &str) -> GrammarError {
    GrammarError::invalid("", format!("This is not a valid grammar: line {line}: {what}."))
}
