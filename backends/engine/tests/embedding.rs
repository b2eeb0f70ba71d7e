//! The engine over a model that turns texts into vectors, as its users see it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::time::Duration;

use futures_util::FutureExt as _;
use tandem_core::SamplingParams;
use tandem_engine::{
    EmbedError, EmbedRequest, Engine, EngineLimits, GenerateRequest, ModelKind, Priority, Stats, StopRules, SubmitError,
};
use tandem_sim::{Faults, SimEmbedderLoader, SimEmbedderSettings, SimLoader, SimSettings, vector};

/// Long enough for a test to get several requests into the queue while the first one is computed.
const PASS: Duration = Duration::from_millis(50);

async fn engine(settings: SimEmbedderSettings) -> Engine {
    engine_with(settings, EngineLimits::default()).await
}

async fn engine_with(settings: SimEmbedderSettings, limits: EngineLimits) -> Engine {
    Engine::load(Box::new(SimEmbedderLoader::new(settings)), limits).await.unwrap()
}

fn request(texts: &[&str], priority: Priority) -> EmbedRequest {
    let inputs = texts.iter().map(|text| text.bytes().map(u32::from).collect()).collect();
    EmbedRequest { inputs, priority, rank: 0, dimensions: None, normalize: true }
}

fn interactive(texts: &[&str]) -> EmbedRequest {
    request(texts, Priority::Interactive)
}

/// The model's own vector of a text, with length 1.
fn expected(text: &str) -> Vec<f32> {
    let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
    let vector: Vec<f32> = vector(&tokens, 16).collect();
    let length = vector.iter().map(|number| number * number).sum::<f32>().sqrt();
    vector.iter().map(|number| number / length).collect()
}

fn assert_near(got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    let near = std::iter::zip(got, expected).all(|(a, b)| (a - b).abs() < 1e-6);
    assert!(near, "{got:?} is not {expected:?}");
}

/// Waits until the counters are as wanted.
async fn until(engine: &Engine, wanted: impl Fn(&Stats) -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !wanted(&engine.stats()) {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", engine.stats());
        // sleep: between two polls, within the deadline
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn each_input_has_its_own_vector_in_its_place() {
    let settings = SimEmbedderSettings { max_pass_tokens: 30, max_input_tokens: 40, ..SimEmbedderSettings::default() };
    let engine = engine(settings).await;
    let texts: Vec<String> = (0..30).map(|at| "x".repeat(1 + at * 7 % 40)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let vectors = engine.embed(interactive(&texts)).unwrap().await.unwrap();
    assert_eq!(vectors.len(), texts.len());
    for (text, vector) in std::iter::zip(&texts, &vectors) {
        assert_near(vector, &expected(text));
        let length = vector.iter().map(|number| number * number).sum::<f32>();
        assert!((length - 1.0).abs() < 1e-5, "{length}");
    }
    until(&engine, |stats| stats.finished == 1).await;
    let stats = engine.stats();
    assert_eq!(stats.computed_tokens, texts.iter().map(|text| text.len() as u64).sum::<u64>());
    assert_eq!(stats.waiting, 0);
}

#[tokio::test]
async fn vectors_are_left_as_they_are_where_that_is_asked_for() {
    let engine = engine(SimEmbedderSettings::default()).await;
    let asked = EmbedRequest { normalize: false, ..interactive(&["as it is"]) };
    let vectors = engine.embed(asked).unwrap().await.unwrap();
    let tokens: Vec<u32> = "as it is".bytes().map(u32::from).collect();
    assert_eq!(vectors, [vector(&tokens, 16).collect::<Vec<_>>()]);
}

#[tokio::test]
async fn requests_share_passes() {
    let engine = engine(SimEmbedderSettings { pass_delay: PASS, ..SimEmbedderSettings::default() }).await;
    let first = engine.embed(interactive(&["occupies the model"])).unwrap();
    let others: Vec<_> = (0..4).map(|_| engine.embed(interactive(&["one", "two"])).unwrap()).collect();
    first.await.unwrap();
    for other in others {
        let vectors = other.await.unwrap();
        assert_near(&vectors[1], &expected("two"));
    }
    // Two passes, unless the test itself is held up for longer than one takes.
    until(&engine, |stats| stats.finished == 5).await;
    assert!(engine.stats().steps < 5, "{:?}", engine.stats());
}

#[tokio::test]
async fn interactive_requests_go_before_lines_of_batches() {
    let engine = engine(SimEmbedderSettings { pass_delay: PASS, ..SimEmbedderSettings::default() }).await;
    let occupied = engine.embed(interactive(&["occupies the model"])).unwrap();
    let mut line = engine.embed(request(&["a"; 20], Priority::Batch)).unwrap();
    let urgent = engine.embed(interactive(&["b"; 8])).unwrap();
    occupied.await.unwrap();
    urgent.await.unwrap();
    assert!((&mut line).now_or_never().is_none(), "the batch has waited");
    assert_eq!(line.await.unwrap().len(), 20);
}

#[tokio::test]
async fn a_request_that_nobody_waits_for_is_not_computed() {
    let engine = engine(SimEmbedderSettings { pass_delay: PASS, ..SimEmbedderSettings::default() }).await;
    let first = engine.embed(interactive(&["first"])).unwrap();
    while engine.busy_for().is_none() {
        tokio::task::yield_now().await;
    }
    drop(engine.embed(interactive(&["never computed"])).unwrap());
    let last = engine.embed(interactive(&["last"])).unwrap();
    first.await.unwrap();
    last.await.unwrap();
    until(&engine, |stats| stats.finished == 2).await;
    let stats = engine.stats();
    assert_eq!((stats.cancelled, stats.computed_tokens), (1, 9));
}

#[tokio::test]
async fn the_queue_is_bounded() {
    let settings = SimEmbedderSettings { pass_delay: PASS, max_inputs: 3, ..SimEmbedderSettings::default() };
    let engine = engine_with(settings, EngineLimits { queue: 2, ..EngineLimits::default() }).await;
    let taken: Vec<_> = (0..5).map(|_| engine.embed(interactive(&["x"])).unwrap()).collect();
    assert_eq!(engine.embed(interactive(&["x"])).unwrap_err(), SubmitError::Overloaded);
    for one in taken {
        one.await.unwrap();
    }
    engine.embed(interactive(&["x"])).unwrap().await.unwrap();
}

#[tokio::test]
async fn what_the_model_cannot_do_is_refused_at_once() {
    let settings = SimEmbedderSettings { max_input_tokens: 10, ..SimEmbedderSettings::default() };
    let embedder = engine(settings).await;
    let error = embedder.embed(interactive(&["short", "eleven long"])).unwrap_err();
    assert_eq!(error, SubmitError::TooLarge { needed: 11, available: 10 });
    assert!(matches!(embedder.kind(), ModelKind::Embedder(info) if info.spec.dimensions == 16));

    let asked = GenerateRequest {
        prompt: vec![1],
        sampling: SamplingParams::greedy(),
        stop: StopRules::max_tokens(1),
        seed: 0,
        priority: Priority::Interactive,
        logprobs: None,
        cache_salt: 0,
        grammar: None,
        score_prompt: false,
        special_tokens: false,
        adapter: None,
        rank: 0,
    };
    assert_eq!(embedder.submit(asked).unwrap_err(), SubmitError::WrongKind);
    let generator = Engine::load(Box::new(SimLoader::new(SimSettings::default())), EngineLimits::default());
    let generator = generator.await.unwrap();
    assert_eq!(generator.embed(interactive(&["x"])).unwrap_err(), SubmitError::WrongKind);
    assert!(matches!(generator.kind(), ModelKind::Generator(_)));
}

#[tokio::test]
async fn a_device_failure_ends_every_request_and_the_engine() {
    for faults in [Faults { device_fails_at: 2, ..Faults::default() }, Faults { panics_at: 2, ..Faults::default() }] {
        let engine = engine(SimEmbedderSettings { faults, ..SimEmbedderSettings::default() }).await;
        // Three passes.
        let first = engine.embed(interactive(&["x"; 20])).unwrap();
        // It may come when it is over already.
        let second = engine.embed(interactive(&["x"]));
        assert!(second.as_ref().err().is_none_or(|error| *error == SubmitError::Gone));
        for embedding in [Ok(first), second].into_iter().flatten() {
            assert_eq!(embedding.await, Err(EmbedError::Gone), "{faults:?}");
            assert!(!engine.is_alive(), "whoever is told that the engine is gone finds it gone");
        }
        engine.ended().await;
        assert_eq!(engine.embed(interactive(&["x"])).unwrap_err(), SubmitError::Gone);
    }
}

#[tokio::test]
async fn a_vector_that_is_not_finite_fails_its_own_request_alone() {
    let faults = Faults { nan_every: 4, ..Faults::default() };
    let settings = SimEmbedderSettings { faults, pass_delay: PASS, ..SimEmbedderSettings::default() };
    let engine = engine(settings).await;
    let embeddings: Vec<_> =
        [&["a"; 3], &["b"; 3], &["c"; 3]].map(|texts| engine.embed(interactive(texts)).unwrap()).into();
    let mut failed = Vec::new();
    for embedding in embeddings {
        failed.push(embedding.await.is_err());
    }
    // The fourth and the eighth vector.
    assert_eq!(failed, [false, true, true]);
    until(&engine, |stats| stats.finished == 1 && stats.failed == 2).await;
    assert!(engine.is_alive());
}

#[tokio::test]
async fn the_engine_can_be_looked_into() {
    let engine = engine(SimEmbedderSettings { pass_delay: PASS, ..SimEmbedderSettings::default() }).await;
    let running = engine.embed(interactive(&["a secret"; 20])).unwrap();
    let text = engine.describe().await.unwrap();
    assert!(text.contains("1 requests waiting") && text.contains("#0 (interactive)"), "{text}");
    assert!(!text.contains("secret"));
    drop(running);
}
