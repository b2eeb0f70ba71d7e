//! A query and a document as one input of a model that ranks documents.

use std::num::NonZero;

use tandem_core::TokenId;
use tandem_engine::EmbedderInfo;

use super::guard::{Guard, Piece};
use super::prepare::check_length;
use super::prompt;
use super::read::{Document, PairLimits, Side, TRUNCATE};
use crate::openai::error::ApiError;

const QUERY: &str = "{query}";
const DOCUMENT: &str = "{document}";

/// The tokens of each document with the query, as the model was trained to see them: between what stands around texts, or in the model's
/// own prompt. Of what is written in either, nothing becomes a control token.
///
/// # Errors
/// When one of them is longer than the model takes, or what was asked for leaves nothing of it.
pub(super) fn inputs(
    query: &str,
    documents: &[Document],
    limits: PairLimits,
    info: &EmbedderInfo,
) -> Result<Vec<Vec<TokenId>>, ApiError> {
    let max = info.spec.max_input_tokens;
    let fits = limits.input.map(|limit| limit.within(max)).transpose()?.map(|asked| asked.unwrap_or(max) as usize);
    // What is going to be cut may be long.
    if limits.query.is_none() {
        check_length("query", query.chars().count(), max)?;
    }
    if limits.document.is_none() && fits.is_none() {
        documents.iter().try_for_each(|Document { path, text }| check_length(path, text.chars().count(), max))?;
    }
    let pairs = Pairs { info, limits, fits };
    match &info.pair_template {
        None => pairs.framed(query, documents),
        Some(template) => pairs.in_template(template, query, documents),
    }
}

#[derive(Clone, Copy)]
struct Pairs<'a> {
    info: &'a EmbedderInfo,
    limits: PairLimits,
    /// Tokens that are left of an input that has more.
    fits: Option<usize>,
}

impl Pairs<'_> {
    /// As BERT has it, `[CLS] query [SEP] document [SEP]`, and as `RoBERTa` has it, `<s> query </s></s> document </s>`.
    fn framed(self, query: &str, documents: &[Document]) -> Result<Vec<Vec<TokenId>>, ApiError> {
        let Self { info, limits, fits } = self;
        let mut query = self.encode("query", query)?;
        if let Some(limit) = limits.query {
            limits.side.cut(&mut query, tokens(limit));
        }
        let vocab = &info.vocab;
        let mut begin = prompt::framed(query, vocab);
        begin.extend(vocab.separator());
        let around = begin.len() + vocab.closing().iter().count();
        let input = |document: &Document| {
            let Document { path, text } = document;
            let mut ids = self.encode(path, text)?;
            if let Some(limit) = limits.document {
                limits.side.cut(&mut ids, tokens(limit));
            }
            if let Some(fits) = fits.filter(|fits| around + ids.len() > *fits) {
                let room = fits.checked_sub(around).filter(|room| *room > 0);
                limits.side.cut(&mut ids, room.ok_or_else(|| ApiError::nothing_left(TRUNCATE))?);
            }
            self.check(path, around + ids.len(), || Ok(around))?;
            Ok(begin.iter().copied().chain(ids).chain(vocab.closing()).collect())
        };
        documents.iter().map(input).collect()
    }

    /// Texts are cut before they stand in the prompt, since what is beside a text decides how its ends become tokens.
    fn in_template(self, template: &str, query: &str, documents: &[Document]) -> Result<Vec<Vec<TokenId>>, ApiError> {
        let Self { info, limits, fits } = self;
        let texts = documents.iter().map(|document| document.text.as_str());
        let guard = Guard::new(&info.vocab, texts.chain([query, template])).ok_or_else(|| {
            ApiError::invalid_value("documents", "Invalid 'documents': too many characters for private use.")
        })?;
        let query = guard.protect(self.shortened("query", query, limits.query)?);
        let input = |document: &Document| {
            let Document { path, text } = document;
            let prompt =
                |text: &str| self.encode_rendered(path, &filled(template, &query, &guard.protect(text)), &guard);
            let text = self.shortened(path, text, limits.document)?;
            let ids = match fits {
                None => prompt(text)?,
                Some(fits) => {
                    let kept = self.longest(path, text, fits, prompt)?;
                    kept.ok_or_else(|| ApiError::nothing_left(TRUNCATE))?.1
                }
            };
            self.check(path, ids.len(), || Ok(prompt("")?.len()))?;
            Ok(ids)
        };
        documents.iter().map(input).collect()
    }

    /// Whether the model takes an input of so many tokens. If not, it is the query that is too long where no document would fit beside it.
    fn check(
        self,
        path: &str,
        len: usize,
        without_document: impl FnOnce() -> Result<usize, ApiError>,
    ) -> Result<(), ApiError> {
        let max = self.info.spec.max_input_tokens;
        if len <= max as usize {
            return Ok(());
        }
        let param = if without_document()? >= max as usize { "query" } else { path };
        Err(ApiError::context_length_exceeded(param, max.into(), len as u64))
    }

    /// As much of a text as has no more tokens than that by itself.
    fn shortened<'t>(self, path: &str, text: &'t str, limit: Option<NonZero<u32>>) -> Result<&'t str, ApiError> {
        let Some(limit) = limit else { return Ok(text) };
        let kept = self.longest(path, text, tokens(limit), |text| self.encode(path, text))?;
        Ok(kept.map_or("", |(text, _)| text))
    }

    /// As much of a text as comes to `max` tokens, and these; `None` when nothing of it does.
    fn longest<'t>(
        self,
        path: &str,
        text: &'t str,
        max: usize,
        tokens_with: impl Fn(&str) -> Result<Vec<TokenId>, ApiError>,
    ) -> Result<Option<(&'t str, Vec<TokenId>)>, ApiError> {
        let mut ids = tokens_with(text)?;
        if ids.len() <= max {
            return Ok(Some((text, ids)));
        }
        let own = self.encode(path, text)?;
        let mut left = own.len();
        loop {
            // At least one less each time. The first time is nearly always enough.
            left = left.saturating_sub(ids.len() - max);
            let kept = self.part(text, &own, left);
            if kept.is_empty() {
                return Ok(None);
            }
            ids = tokens_with(kept)?;
            if ids.len() <= max {
                return Ok(Some((kept, ids)));
            }
        }
    }

    /// The part of a text that `left` of its tokens stand for. Tokens need not have the bytes of the text, which may be brought to lower case
    /// and is unknown in part: then it is that share of it.
    fn part<'t>(self, text: &'t str, ids: &[TokenId], left: usize) -> &'t str {
        let bytes = |ids: &[TokenId]| ids.iter().map(|id| self.info.vocab.bytes(*id).len() as u64).sum::<u64>();
        let side = self.limits.side;
        let kept = match side {
            Side::Right => &ids[..left],
            Side::Left => &ids[ids.len() - left..],
        };
        let share = bytes(kept) * text.len() as u64 / bytes(ids).max(1);
        let len = (share as usize).min(text.len());
        match side {
            Side::Right => &text[..text.floor_char_boundary(len)],
            Side::Left => &text[text.ceil_char_boundary(text.len() - len)..],
        }
    }

    fn encode(self, path: &str, text: &str) -> Result<Vec<TokenId>, ApiError> {
        prompt::of_text(path, text, &*self.info.tokenizer)
    }

    fn encode_rendered(self, path: &str, rendered: &str, guard: &Guard<'_>) -> Result<Vec<TokenId>, ApiError> {
        let mut ids = Vec::new();
        for piece in guard.split(rendered) {
            match piece {
                Piece::Special(id) => ids.push(id),
                Piece::Text(text) => ids.append(&mut self.encode(path, &text)?),
            }
        }
        Ok(ids)
    }
}

fn tokens(limit: NonZero<u32>) -> usize {
    limit.get() as usize
}

/// The template with both texts in their places. What stands in them is not looked at for further places.
fn filled(template: &str, query: &str, document: &str) -> String {
    let mut filled = String::with_capacity(template.len() + query.len() + document.len());
    let mut rest = template;
    let next = |rest: &str| {
        let places = [(QUERY, query), (DOCUMENT, document)].into_iter();
        places.filter_map(|(mark, text)| Some((rest.find(mark)?, mark.len(), text))).min_by_key(|(at, ..)| *at)
    };
    while let Some((at, len, text)) = next(rest) {
        filled.push_str(&rest[..at]);
        filled.push_str(text);
        rest = &rest[at + len..];
    }
    filled.push_str(rest);
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_filled_once() {
        assert_eq!(filled("<{query}|{document}>", "{document}", "{query}"), "<{document}|{query}>");
        assert_eq!(filled("{document}{query}{document}", "a", "b"), "bab");
        assert_eq!(filled("nothing", "a", "b"), "nothing");
    }
}
