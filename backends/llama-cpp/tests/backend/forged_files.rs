//! Files that somebody changed: they load, or they do not, and the process lives.
//!
//! Whatever the check of headers lets through, llama.cpp gets to see, and an assertion of its own would end the process: this test with it.

use std::time::{Duration, Instant};

use tandem_core::BackendLoader;
use tandem_llama_cpp::{LlamaCppLoader, LlamaCppSettings};

use crate::{architectures, embedder, forger::Forger, gguf, helpers::settings, reranker};

/// Loads forged files of each architecture for as long as `more` says, beginning with forgery `seed`.
fn forge(mut seed: u64, more: impl Fn(u64) -> bool) {
    let files = architectures::all().into_iter().chain(embedder::all()).chain(reranker::all());
    let originals: Vec<_> = files.map(|file| (file.bytes(), file.header_len())).collect();
    let (mut loaded, mut refused) = (0, 0);
    while more(seed) {
        let (original, header) = &originals[seed as usize % originals.len()];
        let mut bytes = original.clone();
        Forger::new(seed).forge(&mut bytes, *header);
        // Left behind by an abort, to be looked at.
        let path = gguf::write(&format!("forgery-{seed}-"), &bytes);
        let settings = LlamaCppSettings { model: path.to_path_buf(), ..settings(2, 64) };
        match Box::new(LlamaCppLoader::new(settings)).with_backend(&mut |_| ()) {
            Ok(()) => loaded += 1,
            Err(_) => refused += 1,
        }
        seed += 1;
    }
    assert!(loaded > 0 && refused > 0, "forgeries are bold enough, and not too bold: {loaded} and {refused}");
}

#[test]
fn a_hundred_forgeries_harm_nobody() {
    forge(0, |seed| seed < 100);
}

mod slow {
    use super::*;

    #[test]
    fn a_minute_of_forgeries_harms_nobody() {
        let begun = Instant::now();
        forge(100, |_| begun.elapsed() < Duration::from_secs(60));
    }
}
