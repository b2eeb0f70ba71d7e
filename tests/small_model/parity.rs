//! Both backends on the same weights: the small model's greedy answers are the same tokens, and its log-probabilities agree.

use tandem_core::TokenId;
use tandem_engine::{Event, GenerateRequest};

use crate::helpers::{chat, engine, generate, request};

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

async fn answers(backend: &str) -> Vec<Answer> {
    let engine = engine(backend, true).await;
    let ask = |question: &&str| GenerateRequest { logprobs: Some(0), ..request(chat(&engine, None, question), 48) };
    // All at once, so that both backends also compute them together.
    let generated = generate(&engine, QUESTIONS.iter().map(ask).collect()).await;
    generated.into_iter().map(|events| answer(backend, events)).collect()
}

fn answer(backend: &str, events: Vec<Event>) -> Answer {
    let mut answer = Answer { tokens: Vec::new(), logprobs: Vec::new() };
    for event in events {
        match event {
            Event::Token { id, logprobs, .. } => {
                answer.tokens.push(id);
                answer.logprobs.push(logprobs.unwrap().chosen.logprob);
            }
            Event::Finished { .. } => {}
            Event::Failed(error) => panic!("{backend}: {error}"),
        }
    }
    answer
}

#[tokio::test]
async fn both_backends_give_the_same_greedy_answers() {
    let (llama_cpp, candle) = (answers("llama-cpp").await, answers("candle").await);
    for ((question, a), b) in QUESTIONS.iter().zip(&llama_cpp).zip(&candle) {
        assert_eq!(a.tokens, b.tokens, "{question}");
        for (a, b) in a.logprobs.iter().zip(&b.logprobs) {
            // F16 weights and an F16 cache against F32.
            assert!((a - b).abs() <= 0.05, "{question}: log-probability {a} and {b}");
        }
    }
}
