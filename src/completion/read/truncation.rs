use tandem_core::TokenId;

use super::fields::Fields;
use crate::openai::error::ApiError;

/// The field that asks for long inputs to be cut.
pub(in crate::completion) const TRUNCATE: &str = "truncate_prompt_tokens";

/// Inputs and prompts that are longer lose tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::completion) struct Truncation {
    /// What is left; `None` is as much as the model takes.
    pub(in crate::completion) tokens: Option<u32>,
    pub(in crate::completion) side: Side,
}

/// Where tokens are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::completion) enum Side {
    Left,
    Right,
}

impl Truncation {
    /// As vLLM has it: a number of tokens, or -1 for what the model takes; `side` when the request does not say.
    pub(super) fn read(fields: &mut Fields<'_>, side: Side) -> Result<Option<Self>, ApiError> {
        Ok(Self::read_with_side(fields, side)?.0)
    }

    /// The same, and the side for limits beside it.
    pub(super) fn read_with_side(fields: &mut Fields<'_>, side: Side) -> Result<(Option<Self>, Side), ApiError> {
        let side = match fields.one_of("truncation_side", &["left", "right"])? {
            Some("left") => Side::Left,
            Some(_) => Side::Right,
            None => side,
        };
        let Some(tokens) = fields.integer(TRUNCATE, -1..=i64::from(u32::MAX))? else { return Ok((None, side)) };
        match u32::try_from(tokens) {
            Ok(0) => Err(ApiError::nothing_left(TRUNCATE)),
            Ok(tokens) => Ok((Some(Self { tokens: Some(tokens), side }), side)),
            Err(_) => Ok((Some(Self { tokens: None, side }), side)),
        }
    }

    /// Cuts `ids` so that `more` tokens fit beside them: to what was asked for, at most the `max` that the model takes, or to what `fits`.
    ///
    /// # Errors
    /// When nothing would be left, or more is asked for than the model takes.
    pub(in crate::completion) fn cut(
        self,
        ids: &mut Vec<TokenId>,
        max: u32,
        fits: u32,
        more: usize,
    ) -> Result<(), ApiError> {
        let room = (self.within(max)?.unwrap_or(fits) as usize).saturating_sub(more);
        if room == 0 {
            return Err(ApiError::nothing_left(TRUNCATE));
        }
        self.side.cut(ids, room);
        Ok(())
    }

    /// The number of tokens that was asked for.
    ///
    /// # Errors
    /// When it is more than the `max` that the model takes.
    pub(in crate::completion) fn within(self, max: u32) -> Result<Option<u32>, ApiError> {
        match self.tokens {
            Some(asked) if asked > max => Err(ApiError::integer_above(TRUNCATE, max.into(), &asked.to_string())),
            asked => Ok(asked),
        }
    }
}

impl Side {
    /// Leaves `room` at most.
    pub(in crate::completion) fn cut(self, ids: &mut Vec<TokenId>, room: usize) {
        match self {
            Self::Left => drop(ids.drain(..ids.len().saturating_sub(room))),
            Self::Right => ids.truncate(room),
        }
    }
}
