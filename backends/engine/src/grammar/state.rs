use std::fmt;
use std::sync::Arc;

use llguidance::Matcher;
use tandem_core::{TokenId, TokenMask, Vocab};
use thiserror::Error;

use super::Grammar;

/// One sequence's place in its grammar. Independent of all others, even of one grammar: what one runs into does not reach the next.
pub struct GrammarState {
    vocab: Arc<Vocab>,
    matcher: Matcher,
    /// Whether the end was accepted.
    ended: bool,
}

/// The output cannot go on and may not end, or following it further would cost too much. The sequence fails: its text was never free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the grammar allows no further token")]
pub struct DeadEnd;

impl GrammarState {
    /// The beginning of an output.
    pub fn new(grammar: &Grammar) -> Self {
        Self { vocab: Arc::clone(grammar.vocab()), matcher: grammar.matcher(), ended: false }
    }

    /// Makes `out` the set of tokens allowed next, which is never empty. Where the output may end, all tokens that end generation are in it.
    ///
    /// # Errors
    /// When no token is allowed.
    pub fn mask(&mut self, out: &mut TokenMask) -> Result<(), DeadEnd> {
        let set = self.matcher.compute_mask_or_eos().map_err(|error| dead_end(&error))?;
        out.assign(set.as_slice());
        if out.is_empty() { Err(DeadEnd) } else { Ok(()) }
    }

    /// Goes on by the token that was chosen.
    ///
    /// # Errors
    /// When the grammar does not allow the token here. The state is of no further use then.
    pub fn accept(&mut self, token: TokenId) -> Result<(), DeadEnd> {
        if self.ended {
            return Err(DeadEnd);
        }
        if self.vocab.is_eog(token) {
            self.ended = self.is_complete() || self.matcher.is_accepting().map_err(|error| dead_end(&error))?;
            return if self.ended { Ok(()) } else { Err(DeadEnd) };
        }
        if self.vocab.bytes(token).is_empty() {
            return Err(DeadEnd);
        }
        self.matcher.consume_token(token).map_err(|error| dead_end(&error))
    }

    /// Whether the output is complete and can only end.
    pub fn is_complete(&self) -> bool {
        self.ended || (self.matcher.is_stopped() && self.matcher.stop_reason().is_ok())
    }
}

impl fmt::Debug for GrammarState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarState").field("complete", &self.is_complete()).finish_non_exhaustive()
    }
}

/// Panics of the library arrive here too: it catches them itself and answers with an error from then on.
fn dead_end(error: &dyn fmt::Display) -> DeadEnd {
    tracing::warn!(%error, "an output ran into a dead end of its grammar");
    DeadEnd
}
