//! Both backends on the same weights: the small model's greedy answers are the same tokens, and its log-probabilities agree.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::path::Path;

use futures_util::StreamExt as _;
use tandem::{
    models::Models,
    settings::{Overrides, Settings},
};
use tandem_core::{SamplingParams, TokenId};
use tandem_engine::{Engine, EngineLimits, Event, GenerateRequest, Priority, StopRules};

const QUESTIONS: [&str; 12] = [
    "What is the capital of France?",
    "What is the capital of Japan?",
    "What is 2+2?",
    "What is 7+5?",
    "What color is the sky?",
    "What is the opposite of hot?",
    "Count from 3 to 8.",
    "Repeat after me: the quick brown fox",
    "Name the capital of Italy.",
    "What is 9-4?",
    "Is the sky blue?",
    "What is the opposite of big?",
];

struct Answer {
    tokens: Vec<TokenId>,
    logprobs: Vec<f32>,
}

fn settings(backend: &str) -> Settings {
    let overrides =
        Overrides { backend: Some(backend.to_owned()), profile: Some("demo".to_owned()), ..Overrides::default() };
    Settings::load(&overrides).unwrap()
}

/// The prompt of one question as the model's chat template has it, control tokens placed by id.
fn prompt(engine: &Engine, question: &str) -> Vec<TokenId> {
    let info = engine.info();
    let special = |text: &str| info.vocab.specials().iter().find(|special| special.text == text).unwrap().id;
    let plain = |text: &str| info.tokenizer.encode(text).unwrap();
    let mut prompt = vec![special("<|im_start|>")];
    prompt.extend(plain(&format!("user\n{question}")));
    prompt.push(special("<|im_end|>"));
    prompt.extend(plain("\n"));
    prompt.push(special("<|im_start|>"));
    prompt.extend(plain("assistant\n"));
    prompt
}

async fn answers(backend: &str) -> Vec<Answer> {
    let settings = settings(backend);
    let models = Models::start(&settings.backend, &settings.models, EngineLimits::default());
    models.ready().await.unwrap();
    let engine = models.lease("tiny").await.unwrap();
    let submit = |question| {
        let request = GenerateRequest {
            prompt: prompt(&engine, question),
            sampling: SamplingParams::greedy(),
            stop: StopRules::max_tokens(48),
            seed: 0,
            priority: Priority::Interactive,
            logprobs: Some(0),
            grammar: None,
        };
        engine.submit(request).unwrap()
    };
    // All at once, so that both backends also compute them together.
    let generations: Vec<_> = QUESTIONS.into_iter().map(submit).collect();
    let mut answers = Vec::new();
    for generation in generations {
        let mut answer = Answer { tokens: Vec::new(), logprobs: Vec::new() };
        for event in generation.collect::<Vec<_>>().await {
            match event {
                Event::Token { id, logprobs, .. } => {
                    answer.tokens.push(id);
                    answer.logprobs.push(logprobs.unwrap().chosen.logprob);
                }
                Event::Finished { .. } => {}
                Event::Failed(error) => panic!("{backend}: {error}"),
            }
        }
        answers.push(answer);
    }
    answers
}

#[tokio::test]
async fn both_backends_give_the_same_greedy_answers() {
    assert!(Path::new("models/tiny/config.json").exists(), "the tests run in the root of the repository");
    let (llama_cpp, candle) = (answers("llama-cpp").await, answers("candle").await);
    for ((question, a), b) in QUESTIONS.iter().zip(&llama_cpp).zip(&candle) {
        assert_eq!(a.tokens, b.tokens, "{question}");
        for (a, b) in a.logprobs.iter().zip(&b.logprobs) {
            // F16 weights and an F16 cache against F32.
            assert!((a - b).abs() <= 0.05, "{question}: log-probability {a} and {b}");
        }
    }
}
