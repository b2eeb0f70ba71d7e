use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::{CudaError, executor::Done};

/// Where the emulated ranks of a model meet: all of them have to come, each on a thread of its own, or one has to say that nobody will.
#[derive(Debug)]
pub(crate) struct Meeting {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// What each rank shows the others.
    shown: Vec<Arc<Vec<u32>>>,
    arrived: usize,
    /// Times that all have come.
    round: u64,
    broken: bool,
}

impl Meeting {
    pub(crate) fn new(ranks: usize) -> Self {
        let shown = vec![Arc::default(); ranks];
        Self { state: Mutex::new(State { shown, arrived: 0, round: 0, broken: false }), changed: Condvar::new() }
    }

    /// What all ranks show, in their order. Every rank shows as many words.
    pub(crate) fn exchange(&self, rank: usize, words: Vec<u32>) -> Result<Vec<Arc<Vec<u32>>>, CudaError> {
        self.lock().shown[rank] = Arc::new(words);
        self.meet()?;
        let shown = self.lock().shown.clone();
        assert!(shown.iter().all(|words| words.len() == shown[rank].len()), "ranks do not the same");
        // Nobody shows the next before all have seen this.
        self.meet()?;
        Ok(shown)
    }

    /// Whoever waits goes on with an error, and so does whoever comes later.
    pub(crate) fn break_up(&self) {
        self.lock().broken = true;
        self.changed.notify_all();
    }

    /// Returns when all have come.
    fn meet(&self) -> Done {
        let mut state = self.lock();
        if state.broken {
            // Not counted: others may still come to a meeting before this one.
            return Err(broken());
        }
        let round = state.round;
        state.arrived += 1;
        if state.arrived == state.shown.len() {
            (state.arrived, state.round) = (0, round + 1);
            self.changed.notify_all();
        }
        while state.round == round && !state.broken {
            state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        if state.round == round { Err(broken()) } else { Ok(()) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn broken() -> CudaError {
    CudaError::Failed { call: "a collective", reason: "another rank has failed".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_meets_where_a_meeting_was_broken_up() {
        let meeting = Meeting::new(2);
        meeting.break_up();
        // The second one, or there would be two that have come.
        assert!(meeting.exchange(0, vec![1]).is_err());
        assert!(meeting.exchange(1, vec![1, 2]).is_err());
    }
}
