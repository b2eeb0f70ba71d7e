//! What benches reach into; no promise to anybody else.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tandem_core::{BackendSpec, InferenceBackend, Vocab};

use crate::{
    GenerateRequest, Generation,
    places::{Places, Ticket},
    scheduler::{Options, Scheduler},
    sequence::Submission,
};

pub use crate::{
    grammar::{DeadEnd, GrammarState},
    output::{Output, Pushed},
};

/// A scheduler without a thread around it.
#[expect(missing_debug_implementations, reason = "for benches alone")]
pub struct Loop {
    scheduler: Scheduler,
    places: Arc<Places>,
}

impl Loop {
    #[must_use]
    pub fn new(spec: BackendSpec, vocab: Arc<Vocab>) -> Self {
        let places = Arc::<Places>::default();
        let options = Options {
            prefix_cache: true,
            hash_seed: 0,
            stall_timeout: Duration::from_secs(60),
            places: Arc::clone(&places),
        };
        Self { scheduler: Scheduler::new(spec, vocab, options), places }
    }

    /// Up to `unread` events may wait for the reader.
    pub fn submit(&mut self, request: GenerateRequest, unread: usize) -> Generation {
        let (events, generation) = Generation::channel(&self.places, unread);
        let ticket = Ticket::take(&self.places, usize::MAX).expect("there is no limit");
        self.scheduler.add(Submission { request, grammar: None, events, submitted: Instant::now(), ticket });
        generation
    }

    pub fn step(&mut self, backend: &mut dyn InferenceBackend) {
        self.scheduler.step(backend, &Instant::now).expect("the backend of a bench does not fail");
    }
}
