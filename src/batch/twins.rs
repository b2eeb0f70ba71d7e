use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use super::line::LineAnswer;

/// The answer to requests that are one request, as soon as the first of them has it.
pub(super) type SharedAnswer = Arc<OnceCell<Arc<LineAnswer>>>;

/// Requests of a batch that must have the same answer, and the answer: it is computed once and given to each.
///
/// Twins follow one another in the order of the lines, so it is enough to remember the latest.
#[derive(Debug)]
pub(super) struct Twins {
    kept: usize,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    answers: HashMap<Twin, SharedAnswer>,
    /// The oldest first.
    order: VecDeque<Twin>,
}

/// A batch and the hash of a request in it.
type Twin = (String, Vec<u8>);

impl Twins {
    /// Remembers so many.
    pub(super) fn new(kept: usize) -> Self {
        Self { kept, known: Mutex::default() }
    }

    /// Where the answer is or will be, and whether somebody has asked for it before.
    pub(super) fn answer(&self, batch_id: &str, twin: &[u8]) -> (SharedAnswer, bool) {
        let twin = (batch_id.to_owned(), twin.to_owned());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = known.answers.get(&twin) {
            return (Arc::clone(answer), true);
        }
        if known.order.len() >= self.kept
            && let Some(oldest) = known.order.pop_front()
        {
            known.answers.remove(&oldest);
        }
        let answer = SharedAnswer::default();
        known.order.push_back(twin.clone());
        known.answers.insert(twin, Arc::clone(&answer));
        (answer, false)
    }

    /// Forgets one answer, which those who wait for it still get.
    pub(super) fn forget_one(&self, batch_id: &str, twin: &[u8]) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |(of, hash): &Twin| of == batch_id && hash == twin;
        known.order.retain(|twin| !is_it(twin));
        known.answers.retain(|twin, _| !is_it(twin));
    }

    /// Forgets the answers of a batch.
    pub(super) fn forget(&self, batch_id: &str) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.order.retain(|(of, _)| of != batch_id);
        known.answers.retain(|(of, _), _| of != batch_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten_first() {
        let twins = Twins::new(2);
        assert!(!twins.answer("a", b"1").1);
        assert!(twins.answer("a", b"1").1);
        assert!(!twins.answer("b", b"1").1, "another batch");
        assert!(!twins.answer("a", b"2").1);
        assert!(!twins.answer("a", b"1").1, "forgotten");
        twins.forget_one("a", b"1");
        assert!(!twins.answer("a", b"1").1);
        twins.forget("a");
        assert!(!twins.answer("a", b"1").1);
        let known = twins.known.lock().unwrap();
        assert_eq!((known.order.len(), known.answers.len()), (1, 1));
    }
}
