use std::path::Path;

use futures_util::StreamExt as _;
use tandem::{
    models::{Lease, Models},
    settings::{Overrides, Settings},
};
use tandem_core::{SamplingParams, TokenId};
use tandem_engine::{Engine, EngineLimits, Event, GenerateRequest, Generation, Priority, StopRules};

pub(crate) const BACKENDS: [&str; 2] = ["llama-cpp", "candle"];

/// The small model on one of the backends.
pub(crate) async fn engine(backend: &str, prefix_cache: bool) -> Lease {
    assert!(Path::new("models/tiny/config.json").exists(), "the tests run in the root of the repository");
    start(backend, None, prefix_cache).await
}

/// One file on one of the backends.
pub(crate) async fn engine_of(backend: &str, file: &str) -> Lease {
    start(backend, Some(file.to_owned()), true).await
}

async fn start(backend: &str, model: Option<String>, prefix_cache: bool) -> Lease {
    let (backend, profile) = (Some(backend.to_owned()), Some("demo".to_owned()));
    let settings = Settings::load(&Overrides { backend, profile, model, ..Overrides::default() }).unwrap();
    let limits = EngineLimits { prefix_cache, ..EngineLimits::default() };
    let models = Models::start(&settings.backend, &settings.models, limits);
    models.ready().await.unwrap();
    models.lease(&settings.models[0].name).await.unwrap()
}

/// The prompt of one question as the model's chat template has it, control tokens placed by id.
pub(crate) fn chat(engine: &Engine, system: Option<&[TokenId]>, question: &str) -> Vec<TokenId> {
    let kind = engine.kind();
    let special = |text: &str| kind.vocab().specials().iter().find(|special| special.text == text).unwrap().id;
    let plain = |text: &str| kind.tokenizer().encode(text).unwrap();
    let mut prompt = Vec::new();
    let mut say = |role: &str, text: &[TokenId]| {
        prompt.push(special("<|im_start|>"));
        prompt.extend(plain(&format!("{role}\n")));
        prompt.extend(text);
        prompt.push(special("<|im_end|>"));
        prompt.extend(plain("\n"));
    };
    if let Some(system) = system {
        say("system", system);
    }
    say("user", &plain(question));
    prompt.push(special("<|im_start|>"));
    prompt.extend(plain("assistant\n"));
    prompt
}

pub(crate) fn request(prompt: Vec<TokenId>, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        prompt,
        sampling: SamplingParams::greedy(),
        stop: StopRules::max_tokens(max_tokens),
        seed: 0,
        priority: Priority::Interactive,
        logprobs: None,
        cache_salt: 0,
        grammar: None,
        score_prompt: false,
        special_tokens: false,
        adapter: None,
        rank: 0,
    }
}

/// Submits all requests at once; the events of each.
pub(crate) async fn generate(engine: &Engine, requests: Vec<GenerateRequest>) -> Vec<Vec<Event>> {
    let generations: Vec<Generation> = requests.into_iter().map(|request| engine.submit(request).unwrap()).collect();
    futures_util::future::join_all(generations.into_iter().map(|generation| generation.collect())).await
}

/// The tokens of a generation that ended well.
pub(crate) fn tokens(events: &[Event]) -> Vec<TokenId> {
    let (last, events) = events.split_last().unwrap();
    assert!(matches!(last, Event::Finished { .. }), "{last:?}");
    let token = |event: &Event| match event {
        Event::Token { id, .. } => *id,
        Event::Prompt(_) | Event::Finished { .. } | Event::Failed(_) => panic!("{event:?} before the end"),
    };
    events.iter().map(token).collect()
}
