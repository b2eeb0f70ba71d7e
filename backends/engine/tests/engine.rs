//! The engine as its users see it: a thread, submissions and streams.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use futures_util::StreamExt;
use tandem_core::{AdapterId, SamplingParams};
use tandem_engine::{
    Engine, EngineError, EngineLimits, Event, FinishReason, GenerateRequest, Generation, GrammarSpec, Grammars, Part,
    Priority, StopRules, SubmitError,
};
use tandem_sim::{Faults, Oracle, SimLayout, SimLoader, SimSettings};

async fn engine(settings: SimSettings, limits: EngineLimits) -> Engine {
    Engine::load(Box::new(SimLoader::new(settings)), limits).await.unwrap()
}

fn request(prompt: &str, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        prompt: prompt.bytes().map(u32::from).collect(),
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
        shown: Default::default(),
    }
}

async fn collect(generation: Generation) -> (Vec<u32>, String, Event) {
    let events: Vec<_> = generation.collect().await;
    let (last, tokens) = events.split_last().unwrap();
    let mut ids = Vec::new();
    let mut text = String::new();
    for event in tokens {
        let Event::Token { id, text: more, .. } = event else { panic!("{event:?} before the end") };
        ids.push(*id);
        text.push_str(more);
    }
    if let Event::Finished { text: more, .. } = last {
        text.push_str(more);
    }
    (ids, text, last.clone())
}

#[tokio::test]
async fn a_generation_is_the_models_own_text() {
    let engine = engine(SimSettings::default(), EngineLimits::default()).await;
    let asked = request("hello", 20);
    let expected = Oracle::generate(&asked.prompt, &asked.sampling, 0, 20);
    let (ids, text, last) = collect(engine.submit(asked).unwrap()).await;
    assert_eq!(ids, expected);
    let bytes: Vec<u8> = ids.iter().filter_map(|&id| u8::try_from(id).ok()).collect();
    assert_eq!(text, String::from_utf8_lossy(&bytes));
    assert!(matches!(last, Event::Finished { .. }), "{last:?}");
}

#[tokio::test]
async fn a_stop_string_ends_a_generation_and_is_not_part_of_it() {
    let engine = engine(SimSettings::default(), EngineLimits::default()).await;
    let (_, whole, _) = collect(engine.submit(request("hello", 20)).unwrap()).await;
    let stop = whole[5..8].to_owned();
    let mut asked = request("hello", 20);
    asked.stop.strings = vec![stop.clone()];
    let (_, text, last) = collect(engine.submit(asked).unwrap()).await;
    assert_eq!(text, whole[..whole.find(&stop).unwrap()]);
    assert!(matches!(last, Event::Finished { reason: FinishReason::Stop, .. }), "{last:?}");
}

#[tokio::test]
async fn a_control_token_is_text_where_it_is_to_be_shown() {
    let engine = engine(SimSettings::default(), EngineLimits::default()).await;
    let vocab = std::sync::Arc::new(tandem_sim::vocab());
    let control = vocab.specials().iter().find(|special| special.text == "<|im_start|>").unwrap().id;
    let parts = vec![Part::Text("a".to_owned()), Part::Control(control), Part::Text("b".to_owned())];
    let grammar = Grammars::new(vocab, tandem_sim::VOCAB_SIZE).compile(&GrammarSpec::Parts(Part::Sequence(parts)));
    for (shown, expected) in [(vec![control], "a<|im_start|>b"), (vec![], "ab")] {
        let asked = GenerateRequest { grammar: grammar.clone().ok(), shown: shown.into(), ..request("hello", 20) };
        let (ids, text, last) = collect(engine.submit(asked).unwrap()).await;
        assert_eq!((&ids[..3], text.as_str()), (&[97, control, 98][..], expected));
        assert!(matches!(last, Event::Finished { reason: FinishReason::Stop, .. }), "{last:?}");
    }
}

#[tokio::test]
async fn dropping_a_generation_cancels_it() {
    let engine = engine(SimSettings { parallel: 1, ..SimSettings::default() }, EngineLimits::default()).await;
    let mut endless = request("for ever", 4_000);
    endless.stop.ignore_eos = true;
    let mut running = engine.submit(endless).unwrap();
    running.next().await.unwrap();
    drop(running);
    // The only slot is free again, or this would never end.
    let (_, _, last) = collect(engine.submit(request("next", 3)).unwrap()).await;
    assert!(matches!(last, Event::Finished { .. }), "{last:?}");
    assert_eq!(engine.stats().cancelled, 1);
}

#[tokio::test]
async fn the_queue_is_bounded() {
    let settings =
        SimSettings { parallel: 1, step_delay: std::time::Duration::from_millis(5), ..SimSettings::default() };
    let engine = engine(settings, EngineLimits { queue: 2, ..EngineLimits::default() }).await;
    let taken: Vec<_> = (0..3).map(|_| engine.submit(request("one of three", 100)).unwrap()).collect();
    assert_eq!(engine.submit(request("a fourth", 1)).unwrap_err(), SubmitError::Overloaded);
    drop(taken);
}

#[tokio::test]
async fn what_can_never_fit_is_refused_at_once() {
    let layout = SimLayout::Blocks { count: 4, block_size: 4 };
    let engine = engine(SimSettings { layout, ..SimSettings::default() }, EngineLimits::default()).await;
    let error = engine.submit(request("0123456789", 7)).unwrap_err();
    assert_eq!(error, SubmitError::TooLarge { needed: 17, available: 16 });
    let (ids, ..) = collect(engine.submit(request("0123456789", 6)).unwrap()).await;
    assert!(!ids.is_empty());
}

#[tokio::test]
async fn an_adapter_that_the_model_does_not_have_is_refused() {
    let settings = SimSettings { adapters: vec!["one".to_owned()], ..SimSettings::default() };
    let engine = engine(settings, EngineLimits::default()).await;
    let ask = |adapter| GenerateRequest { adapter: Some(AdapterId(adapter)), ..request("hello", 20) };
    let error = engine.submit(ask(1)).unwrap_err();
    assert_eq!(error, SubmitError::NoSuchAdapter { adapter: AdapterId(1), adapters: 1 });
    let (adapted, ..) = collect(engine.submit(ask(0)).unwrap()).await;
    let (plain, ..) = collect(engine.submit(request("hello", 20)).unwrap()).await;
    assert_ne!(adapted, plain);
}

#[tokio::test]
async fn a_device_failure_ends_every_generation_and_the_engine() {
    let [fails, panics] =
        [Faults { device_fails_at: 3, ..Faults::default() }, Faults { panics_at: 3, ..Faults::default() }];
    for (faults, looks_ahead) in [(fails, false), (panics, false), (fails, true), (panics, true)] {
        let settings = SimSettings { faults, looks_ahead, overlaps: looks_ahead, ..SimSettings::default() };
        let engine = engine(settings, EngineLimits::default()).await;
        let mut asked = request("hello", 50);
        asked.stop.ignore_eos = true;
        let first = engine.submit(asked.clone()).unwrap();
        // The second may come when it is over already.
        let second = engine.submit(asked.clone());
        assert!(second.as_ref().err().is_none_or(|error| *error == SubmitError::Gone));
        for generation in [Ok(first), second].into_iter().flatten() {
            let (_, _, last) = collect(generation).await;
            assert_eq!(last, Event::Failed(EngineError::Gone), "{faults:?}");
            assert!(!engine.is_alive(), "whoever is told that the engine is gone finds it gone");
        }
        engine.ended().await;
        assert_eq!(engine.submit(asked).unwrap_err(), SubmitError::Gone);
    }
}

#[tokio::test]
async fn dropping_the_engine_ends_its_generations() {
    let engine = engine(SimSettings::default(), EngineLimits::default()).await;
    let mut asked = request("hello", 4_000);
    asked.stop.ignore_eos = true;
    let generation = engine.submit(asked).unwrap();
    drop(engine);
    let (_, _, last) = collect(generation).await;
    assert_eq!(last, Event::Failed(EngineError::Gone));
}

#[tokio::test]
async fn equal_prompts_are_computed_once() {
    let engine = engine(SimSettings::default(), EngineLimits::default()).await;
    let prompt = "a long beginning that many prompts share ".repeat(8);
    collect(engine.submit(request(&prompt, 2)).unwrap()).await;
    let (_, _, last) = collect(engine.submit(request(&(prompt.clone() + "and an end"), 2)).unwrap()).await;
    let Event::Finished { usage, .. } = last else { panic!("{last:?}") };
    assert_eq!(usage.cached_tokens, prompt.len() as u32 / 16 * 16);
}

#[tokio::test]
async fn a_seeded_request_gives_the_same_text_alone_and_among_63_others() {
    for (overlaps, looks_ahead) in [(false, false), (true, false), (true, true)] {
        let settings = SimSettings { overlaps, looks_ahead, ..SimSettings::default() };
        let engine = engine(settings, EngineLimits::default()).await;
        let ask = |prompt: &str, seed| GenerateRequest {
            sampling: SamplingParams { temperature: 0.8, top_p: 0.95, ..SamplingParams::default() },
            seed,
            ..request(prompt, 60)
        };
        let (alone, text, _) = collect(engine.submit(ask("tell me more", 4711)).unwrap()).await;
        let submit = |at: u64| match at {
            31 => engine.submit(ask("tell me more", 4711)).unwrap(),
            at => engine.submit(ask(&format!("tell me {}", at % 5), at)).unwrap(),
        };
        let all: Vec<_> = (0..64).map(submit).collect();
        let mut all = futures_util::future::join_all(all.into_iter().map(collect)).await;
        let (among, text_among, _) = all.swap_remove(31);
        assert_eq!((alone, text), (among, text_among), "overlaps: {overlaps}, ahead: {looks_ahead}");
        let others: std::collections::HashSet<_> = all.into_iter().map(|(ids, ..)| ids).collect();
        assert!(others.len() > 32, "other seeds say other things");
    }
}

#[tokio::test]
async fn choices_of_one_prompt_compute_it_once() {
    let engine = engine(SimSettings::default(), EngineLimits::default()).await;
    let prompt = "one prompt for all of the choices ".repeat(10);
    let ask = |seed| GenerateRequest { sampling: SamplingParams::default(), seed, ..request(&prompt, 4) };
    let all: Vec<_> = (0..8).map(|seed| engine.submit(ask(seed)).unwrap()).collect();
    futures_util::future::join_all(all.into_iter().map(collect)).await;
    let stats = engine.stats();
    // Each of the others computes less than a block again, and its own tokens.
    let most = prompt.len() as u64 + 7 * 16 + 8 * 4;
    assert!(stats.computed_tokens <= most, "{} tokens for a prompt of {}", stats.computed_tokens, prompt.len());
}

#[tokio::test]
async fn the_engine_can_be_looked_into() {
    let settings = SimSettings { step_delay: std::time::Duration::from_millis(2), ..SimSettings::default() };
    let engine = engine(settings, EngineLimits::default()).await;
    assert_eq!(engine.busy_for(), None);
    let mut running = engine.submit(request("for a while", 200)).unwrap();
    running.next().await.unwrap();
    let text = engine.describe().await.unwrap();
    assert!(text.contains("1 running, 0 waiting") && text.contains("#0 (interactive) in slot 0"), "{text}");
    assert!(!text.contains("for a while"));
}

#[tokio::test]
async fn a_step_that_hangs_is_seen_from_outside() {
    let faults = Faults { hangs_at: 2, ..Faults::default() };
    let engine = engine(SimSettings { faults, ..SimSettings::default() }, EngineLimits::default()).await;
    let mut generation = engine.submit(request("hello", 5)).unwrap();
    generation.next().await.unwrap();
    let long = std::time::Duration::from_millis(20);
    while engine.busy_for().is_none_or(|busy| busy < long) {
        tokio::task::yield_now().await;
    }
    // Its thread never ends, so it cannot be waited for.
    std::mem::forget(engine);
}
