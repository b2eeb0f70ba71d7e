//! A shared beginning is computed once, and nothing of it shows in the answers.

use tandem_core::TokenId;
use tandem_engine::{Engine, GenerateRequest};

use crate::helpers::{BACKENDS, chat, engine, generate, request, tokens};

const SYSTEM_TOKENS: usize = 512;

/// So many tokens of text that does not repeat itself.
fn system_prompt(engine: &Engine) -> Vec<TokenId> {
    let cities = ["Paris", "Rome", "Tokyo", "Madrid", "Oslo", "Berlin", "Cairo", "Lima"];
    let rules = (1..).map(|rule| format!("Rule {rule}: speak of {} in {} words. ", cities[rule % 8], rule * 7 % 30));
    let mut ids = Vec::new();
    for rule in rules {
        ids.extend(engine.kind().tokenizer().encode(&rule).unwrap());
        if ids.len() >= SYSTEM_TOKENS {
            ids.truncate(SYSTEM_TOKENS);
            return ids;
        }
    }
    ids
}

fn requests(engine: &Engine, count: usize) -> Vec<GenerateRequest> {
    let system = system_prompt(engine);
    (0..count).map(|at| request(chat(engine, Some(&system), &format!("{at}+2?")), 12)).collect()
}

/// Prompt tokens that the engine has computed, whatever it found in its cache.
fn computed_prompt_tokens(engine: &Engine, requests: u64) -> u64 {
    let stats = engine.stats();
    // The last token of a generation is never computed.
    stats.computed_tokens - (stats.generated_tokens - requests)
}

#[tokio::test]
async fn sixty_four_requests_compute_their_system_prompt_once() {
    for backend in BACKENDS {
        let engine = engine(backend, true).await;
        let requests = requests(&engine, 64);
        let without: usize = requests.iter().map(|request| request.prompt.len()).sum();
        let answers = generate(&engine, requests).await;
        assert!(answers.iter().all(|events| !tokens(events).is_empty()));
        let with = computed_prompt_tokens(&engine, 64);
        let share = with as f64 / without as f64;
        assert!(share <= 0.05, "{backend}: {with} of {without} prompt tokens were computed, {:.1} %", share * 100.0);
    }
}

#[tokio::test]
async fn answers_are_the_same_with_the_cache_and_without() {
    for backend in BACKENDS {
        let mut answers = Vec::new();
        for prefix_cache in [true, false] {
            let engine = engine(backend, prefix_cache).await;
            let requests = requests(&engine, 12);
            let without: usize = requests.iter().map(|request| request.prompt.len()).sum();
            let events = generate(&engine, requests).await;
            answers.push(events.iter().map(|events| tokens(events)).collect::<Vec<_>>());
            let computed = computed_prompt_tokens(&engine, 12);
            assert_eq!(computed < without as u64, prefix_cache, "{backend}: {computed} of {without} tokens");
        }
        assert_eq!(answers[0], answers[1], "{backend}");
    }
}
