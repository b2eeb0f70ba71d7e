use tandem_core::{SampleError, TokenId, TokenLogprobs};

/// Prompt tokens that may be scored in one step, over all sequences: each needs a whole row of logits.
pub(crate) const MAX_SCORED: u32 = 64;

/// What the model thinks of a prompt, as far as it is known.
#[derive(Debug, Default)]
pub(crate) struct Scores {
    /// Of the prompt's second token, and those after it.
    known: Vec<TokenLogprobs>,
    /// They were sent.
    told: bool,
}

impl Scores {
    /// Tokens of a chunk that begins at `start` whose targets are still to be scored, if it has any: those of the whole chunk, since a
    /// preempted sequence computes some a second time.
    pub(crate) fn targets<'a>(&self, start: usize, planned: usize, prompt: &'a [TokenId]) -> Option<&'a [TokenId]> {
        let end = (start + planned + 1).min(prompt.len());
        (start <= self.known.len() && self.known.len() + 1 < end).then(|| &prompt[start + 1..end])
    }

    /// Takes what a row gave whose first target was at `start` + 1.
    ///
    /// # Errors
    /// When the model's logits were no numbers.
    pub(crate) fn take(
        &mut self,
        start: usize,
        results: impl Iterator<Item = Result<TokenLogprobs, SampleError>>,
    ) -> Result<(), SampleError> {
        let again = self.known.len() - start;
        // All are read, so that the next sequence finds its own.
        let mut failed = None;
        for (at, result) in results.enumerate() {
            match result {
                Ok(found) if at >= again => self.known.push(found),
                Ok(_) => {}
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// All of them, the first time after they have become known.
    pub(crate) fn complete(&mut self, prompt_len: usize) -> Option<Vec<TokenLogprobs>> {
        if self.told || self.known.len() + 1 < prompt_len {
            return None;
        }
        self.told = true;
        Some(std::mem::take(&mut self.known))
    }

    /// Whether there is more to score.
    pub(crate) fn is_open(&self, prompt_len: usize) -> bool {
        !self.told && self.known.len() + 1 < prompt_len
    }
}
