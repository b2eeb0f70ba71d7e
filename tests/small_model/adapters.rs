//! Adapters through the engine, on the backend that has them.

use std::path::Path;

use tandem::{
    models::{Lease, Models},
    settings::{AdapterSettings, ModelSource, Overrides, Settings},
};
use tandem_core::{AdapterId, TokenId};
use tandem_engine::{EngineLimits, Event, GenerateRequest, Logprobs};
use tempfile::TempDir;

use crate::{
    adapter_writer::AdapterFile,
    helpers::{chat, generate, request, tokens},
};

const ADAPTERS: [Option<AdapterId>; 3] = [None, Some(AdapterId(0)), Some(AdapterId(1))];

/// The small model with two adapters. The folder holds their files.
async fn engine() -> (Lease, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let adapter = |seed: u64| {
        let path = folder.path().join(format!("{seed}.gguf"));
        AdapterFile::for_tiny(seed).write(&path);
        AdapterSettings { name: format!("adapter-{seed}"), source: Some(ModelSource::Path(path)), scale: 1.0 }
    };
    assert!(Path::new("models/tiny/config.json").exists(), "the tests run in the root of the repository");
    let overrides = Overrides { profile: Some("demo".to_owned()), ..Overrides::default() };
    let mut settings = Settings::load(&overrides).unwrap();
    settings.models[0].adapters = [1, 2].map(adapter).into();
    let models = Models::start(&settings.backend, &settings.models, EngineLimits::default());
    models.ready().await.unwrap();
    (models.lease("tiny").await.unwrap(), folder)
}

fn with(request: &GenerateRequest, adapter: Option<AdapterId>) -> GenerateRequest {
    GenerateRequest { adapter, logprobs: Some(5), ..request.clone() }
}

fn logprobs(events: &[Event]) -> Vec<&Logprobs> {
    let found = events.iter().filter_map(|event| match event {
        Event::Token { logprobs, .. } => logprobs.as_ref(),
        Event::Prompt(_) | Event::Finished { .. } | Event::Failed(_) => None,
    });
    found.collect()
}

/// Kernels round differently for one row and for several, so where two tokens are nearly as likely the other one may win, and what comes
/// after it is another story. True when there was no such place.
fn assert_same_but_for_rounding(alone: &[TokenId], events: &[Event], who: &str) -> bool {
    let together = tokens(events);
    let Some(at) = std::iter::zip(alone, &together).position(|(a, b)| a != b) else {
        assert_eq!(alone.len(), together.len(), "{who}");
        return true;
    };
    let top = &logprobs(events)[at].top;
    let found = top.iter().find(|token| token.id == alone[at]);
    let behind = found.map_or(f32::INFINITY, |token| top[0].logprob - token.logprob);
    assert!(behind < 0.05, "{who}, token {at}: {} is {behind} behind in {top:?}", alone[at]);
    false
}

#[tokio::test]
async fn sequences_with_different_adapters_do_not_disturb_each_other() {
    let (engine, _folder) = engine().await;
    let questions = ["What is the capital of France?", "3+4?", "Say hello.", "What is the capital of Japan?"];
    let mut asked = Vec::new();
    for question in questions {
        let mut request = request(chat(&engine, None, question), 24);
        // Short answers could be alike.
        request.stop.ignore_eos = true;
        asked.extend(ADAPTERS.map(|adapter| with(&request, adapter)));
    }
    let mut alone = Vec::new();
    for request in &asked {
        alone.push(tokens(&generate(&engine, vec![request.clone()]).await[0]));
    }
    for (adapters, question) in std::iter::zip(alone.chunks(ADAPTERS.len()), questions) {
        assert!(adapters[0] != adapters[1] && adapters[0] != adapters[2] && adapters[1] != adapters[2], "{question}");
    }
    let together = generate(&engine, asked).await;
    let same = std::iter::zip(&alone, &together).enumerate();
    let same =
        same.filter(|(at, (alone, events))| assert_same_but_for_rounding(alone, events, &format!("request {at}")));
    assert!(same.count() >= 9, "near ties are rare");
}

#[tokio::test]
async fn a_prefix_is_found_again_by_the_adapter_that_computed_it_alone() {
    let (engine, _folder) = engine().await;
    let request = request(chat(&engine, None, "Which of these cities is the capital of Portugal: Porto or Lisbon?"), 4);
    for round in 0..2 {
        for adapter in ADAPTERS {
            let events = generate(&engine, vec![with(&request, adapter)]).await.swap_remove(0);
            let Some(Event::Finished { usage, .. }) = events.last() else { panic!("{events:?}") };
            let cached = if round == 0 { 0 } else { usage.prompt_tokens - 1 };
            assert_eq!(usage.cached_tokens, cached, "round {round}, {adapter:?}");
        }
    }
}

#[tokio::test]
async fn running_sequences_are_told_with_their_adapter() {
    let (engine, _folder) = engine().await;
    let mut endless = with(&request(chat(&engine, None, "Count."), 900), Some(AdapterId(1)));
    endless.stop.ignore_eos = true;
    let running = engine.submit(endless).unwrap();
    let text = engine.describe().await.unwrap();
    assert!(text.contains("#0 (interactive, adapter adapter-2)"), "{text}");
    drop(running);
}
