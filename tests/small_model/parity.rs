//! Both backends on the same weights: the small model's greedy answers are the same tokens, and its log-probabilities agree. Where both
//! read the same file, so do the ways from texts to tokens and back.

use tandem_core::TokenId;
use tandem_engine::{Engine, Event, GenerateRequest};

use crate::{
    helpers::{chat, engine, engine_of, generate, request},
    tokenizers::assert_same_vocab,
};

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

const TEXTS: [&str; 12] = [
    "",
    " ",
    "Hello, world!",
    "  leading and   many    spaces   ",
    "\n\n\t \r\n tabs\tand\nlines\n\n",
    "What is 12+345? It's 357, isn't it; we'll, they're, I'd, YOU'LL",
    "naïve café, Ångström — “quotes” …",
    "東京は日本の首都です。 한국어 ไทย עברית العربية १२३",
    "🦀🔥👩‍👩‍👧‍👦 e\u{301} \u{200d}\u{feff}\u{a0}\u{3000}x",
    "<|im_start|>user\nhi<|im_end|><|endoftext|>",
    "<0x0A> <s> </s> ▁ ▁▁a Ġb Ċ",
    "fn main() { println!(\"{}\", 1 << 20); } // done!!!???...---***",
];

struct Answer {
    tokens: Vec<TokenId>,
    logprobs: Vec<f32>,
}

async fn answers(backend: &str, engine: &Engine) -> Vec<Answer> {
    let ask = |question: &&str| GenerateRequest { logprobs: Some(0), ..request(chat(engine, None, question), 48) };
    // All at once, so that both backends also compute them together.
    let generated = generate(engine, QUESTIONS.iter().map(ask).collect()).await;
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
            Event::Prompt(_) | Event::Finished { .. } => {}
            Event::Failed(error) => panic!("{backend}: {error}"),
        }
    }
    answer
}

/// `error` is what log-probabilities may differ by.
fn assert_same(what: &str, llama_cpp: &[Answer], candle: &[Answer], error: f32) {
    for ((question, a), b) in QUESTIONS.iter().zip(llama_cpp).zip(candle) {
        assert_eq!(a.tokens, b.tokens, "{what}: {question}");
        for (a, b) in a.logprobs.iter().zip(&b.logprobs) {
            assert!((a - b).abs() <= error, "{what}: {question}: log-probability {a} and {b}");
        }
    }
}

#[tokio::test]
async fn both_backends_give_the_same_greedy_answers() {
    let llama_cpp = answers("llama-cpp", &*engine("llama-cpp", true).await).await;
    let candle = answers("candle", &*engine("candle", true).await).await;
    // F16 weights and an F16 cache against F32.
    assert_same("each its own files", &llama_cpp, &candle, 0.05);
}

/// An answer behind its question, as a prompt: its tokens are as likely as they were when they were generated.
#[tokio::test]
async fn prompts_are_scored_as_they_would_be_generated() {
    for backend in ["llama-cpp", "candle"] {
        let engine = engine(backend, true).await;
        let answers = answers(backend, &engine).await;
        let ask = |(question, answer): (&&str, &Answer)| {
            let prompt = [chat(&engine, None, question), answer.tokens.clone()].concat();
            GenerateRequest { logprobs: Some(0), score_prompt: true, ..request(prompt, 0) }
        };
        let asked: Vec<_> = QUESTIONS.iter().zip(&answers).map(ask).collect();
        let lengths: Vec<_> = asked.iter().map(|request| request.prompt.len()).collect();
        for ((events, answer), length) in generate(&engine, asked).await.iter().zip(&answers).zip(lengths) {
            let [Event::Prompt(scores), Event::Finished { .. }] = &events[..] else { panic!("{backend}: {events:?}") };
            assert_eq!(scores.len(), length - 1, "{backend}");
            let scores = &scores[scores.len() - answer.tokens.len()..];
            for (score, generated) in scores.iter().zip(&answer.logprobs) {
                let error = (score.chosen.logprob - generated).abs();
                assert!(error <= 0.05, "{backend}: {} scored, {generated} generated", score.chosen.logprob);
            }
        }
    }
}

#[tokio::test]
async fn one_file_gives_the_same_greedy_answers_on_both_backends() {
    // llama.cpp rounds activations to eight bits where weights are quantized, and candle does not.
    for (file, error) in [("models/tiny/tiny-f16.gguf", 0.05), ("models/tiny/tiny-q8_0.gguf", 0.05)] {
        let (llama_cpp, candle) = (engine_of("llama-cpp", file).await, engine_of("candle", file).await);
        assert_same_text(file, &llama_cpp, &candle);
        assert_same(file, &answers("llama-cpp", &llama_cpp).await, &answers("candle", &candle).await, error);
    }
}

fn assert_same_text(file: &str, llama_cpp: &Engine, candle: &Engine) {
    let (theirs, ours) = (llama_cpp.kind(), candle.kind());
    for text in TEXTS {
        let tokens = theirs.tokenizer().encode(text).unwrap();
        assert_eq!(ours.tokenizer().encode(text).unwrap(), tokens, "{file}: {text:?}");
    }
    assert_same_vocab(file, llama_cpp, candle);
}
