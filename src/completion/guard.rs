//! Keeps a client's words from becoming control tokens.
//!
//! A chat template mixes its own text, in which `<|im_start|>` is a control token, with the client's, in which it is eleven characters. Once
//! rendered the two cannot be told apart. So before rendering, a mark that occurs in none of the texts is put into the client's text wherever
//! a control token's spelling lies in it, runs off its end into what the template may write next, or could have begun in what the template
//! wrote before. The mark sits inside such a spelling, which is therefore not found in the rendering; afterwards all marks are taken out.
//!
//! White space at the edges is left bare, since templates trim it, and marks are put where the text would begin or end without it. A text
//! with none of these places, which is nearly every text, is not changed at all, so templates can test, search and split it as they like.

use std::borrow::Cow;
use std::collections::HashSet;

use tandem_core::{Special, TokenId, Vocab};

/// Spellings of control tokens that are looked for, and the mark that breaks them.
#[derive(Debug)]
pub(super) struct Guard<'a> {
    specials: &'a [Special],
    /// Bytes that a spelling begins with: nearly all places of a text are ruled out by their first byte.
    first_bytes: [bool; 256],
    mark: char,
}

impl<'a> Guard<'a> {
    /// A guard for texts that are known beforehand, so that the mark is none of their characters. `None` when they leave no mark to choose,
    /// which takes a text of all the 131,068 characters for private use.
    pub(super) fn new<'t>(vocab: &'a Vocab, texts: impl IntoIterator<Item = &'t str>) -> Option<Self> {
        let specials = vocab.specials();
        let spellings = specials.iter().map(|special| special.text.as_str()).filter(|text| is_breakable(text));
        let mut first_bytes = [false; 256];
        for spelling in spellings.clone() {
            first_bytes[usize::from(spelling.as_bytes()[0])] = true;
        }
        let private = |c: &char| ('\u{f0000}'..='\u{10fffd}').contains(c);
        let mut used: HashSet<char> = texts.into_iter().flat_map(str::chars).filter(private).collect();
        used.extend(spellings.flat_map(str::chars).filter(private));
        let mark = ('\u{f0000}'..='\u{10fffd}').find(|mark| !used.contains(mark))?;
        Some(Self { specials, first_bytes, mark })
    }

    /// The client's text, with marks where a template's surroundings could make control tokens of it.
    pub(super) fn protect<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let places = self.places(text);
        if places.is_empty() {
            return Cow::Borrowed(text);
        }
        let mut marked = String::with_capacity(text.len() + places.len() * self.mark.len_utf8());
        let mut from = 0;
        for place in places {
            marked.push_str(&text[from..place]);
            marked.push(self.mark);
            from = place;
        }
        marked.push_str(&text[from..]);
        Cow::Owned(marked)
    }

    /// The text without marks.
    pub(super) fn strip<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if text.contains(self.mark) { Cow::Owned(text.replace(self.mark, "")) } else { Cow::Borrowed(text) }
    }

    /// Splits rendered text into control tokens and the plain text between them, from which marks are taken.
    pub(super) fn split<'t>(&self, rendered: &'t str) -> Vec<Piece<'t>> {
        let mut pieces = Vec::new();
        let (mut from, mut at) = (0, 0);
        while at < rendered.len() {
            match self.special_at(&rendered[at..]) {
                Some(special) => {
                    self.push_text(&mut pieces, &rendered[from..at]);
                    pieces.push(Piece::Special(special.id));
                    at += special.text.len();
                    from = at;
                }
                None => at += first_char(&rendered[at..]),
            }
        }
        self.push_text(&mut pieces, &rendered[from..]);
        pieces
    }

    fn push_text<'t>(&self, pieces: &mut Vec<Piece<'t>>, text: &'t str) {
        let text = self.strip(text);
        if !text.is_empty() {
            pieces.push(Piece::Text(text));
        }
    }

    /// Where marks go, in order.
    fn places(&self, text: &str) -> Vec<usize> {
        let lead = text.len() - text.trim_start().len();
        let trail = text.trim_end().len().max(lead);
        let mut places = Vec::new();
        for (at, c) in text.char_indices() {
            if at <= lead && self.continues_a_special(&text[at..]) {
                places.push(at);
            }
            if self.begins_a_special(&text[at..], trail.saturating_sub(at)) {
                places.push(at + c.len_utf8());
            }
        }
        places.dedup();
        places
    }

    /// Whether a special stands at the start of `text`, or one would if something followed: behind the text, or behind a part of it that is
    /// at least `bare` bytes long, the rest being white space.
    fn begins_a_special(&self, text: &str, bare: usize) -> bool {
        self.may_begin(text)
            && self.spellings().any(|special| {
                let common = common_prefix(special, text);
                common == special.len() || (common > 0 && common >= bare)
            })
    }

    /// Whether a special that began before `text` could go on in it, through all of it or to an end within it.
    fn continues_a_special(&self, text: &str) -> bool {
        self.spellings().any(|special| {
            special.char_indices().skip(1).any(|(split, _)| {
                let rest = &special[split..];
                let common = common_prefix(rest, text);
                common == rest.len() || (common > 0 && common >= text.trim_end().len())
            })
        })
    }

    fn special_at(&self, text: &str) -> Option<&'a Special> {
        if !self.may_begin(text) {
            return None;
        }
        self.specials.iter().find(|special| is_breakable(&special.text) && text.starts_with(&special.text))
    }

    fn may_begin(&self, text: &str) -> bool {
        text.as_bytes().first().is_some_and(|first| self.first_bytes[usize::from(*first)])
    }

    fn spellings(&self) -> impl Iterator<Item = &'a str> {
        self.specials.iter().map(|special| special.text.as_str()).filter(|text| is_breakable(text))
    }
}

/// A part of a rendered prompt.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'t> {
    Special(TokenId),
    Text(Cow<'t, str>),
}

/// A spelling of one character has no inside for a mark, so none such is ever recognised.
fn is_breakable(spelling: &str) -> bool {
    spelling.chars().nth(1).is_some()
}

fn first_char(text: &str) -> usize {
    text.chars().next().map_or(1, char::len_utf8)
}

/// Bytes that both begin with, to the end of a character.
fn common_prefix(a: &str, b: &str) -> usize {
    std::iter::zip(a.chars(), b.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum()
}
