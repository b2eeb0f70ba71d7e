use serde_json::{Value, json};

use super::{
    answer::Answer,
    client::Client,
    figures::rounded,
    report::{Agreement, Difference, LogprobDistance},
    request::{Expect, Request},
    workload::sample_batch,
};
use crate::openai::Endpoint;

/// Of each answer.
const TOKENS: u32 = 32;
const SEED: u64 = 50;
/// Of an answer that differs, from where it does.
const SHOWN: usize = 40;

/// Greedy chats, the same for all; with the log-probabilities of what was chosen.
fn requests(count: usize) -> Vec<Request> {
    let bodies = sample_batch(count, "", TOKENS, SEED).filter_map(|line| {
        let line: Value = serde_json::from_str(&line).ok()?;
        let mut body = line["body"].clone();
        body["temperature"] = json!(0);
        body["logprobs"] = json!(true);
        Some(body)
    });
    bodies.map(|body| Request { endpoint: Endpoint::ChatCompletions, body, expect: Expect::Whole }).collect()
}

/// What a target answers; `None` where it does not. One after the other: what is computed together may be added in another order.
pub(super) async fn ask(client: &Client, count: usize) -> Vec<Option<Answer>> {
    let mut answers = Vec::new();
    for mut request in requests(count) {
        let answer = match client.answer(&request).await {
            Ok(answer) => Some(answer),
            Err(_) => {
                // Some servers tell no log-probabilities, and refuse who asks.
                if let Some(body) = request.body.as_object_mut() {
                    body.shift_remove("logprobs");
                }
                client.answer(&request).await.ok()
            }
        };
        answers.push(answer);
    }
    answers
}

/// How far two targets agree; `None` where either was not asked.
pub(super) fn compare(a: (&str, &[Option<Answer>]), b: (&str, &[Option<Answer>])) -> Option<Agreement> {
    if a.1.is_empty() || b.1.is_empty() {
        return None;
    }
    let both = std::iter::zip(a.1, b.1).enumerate();
    let both = both.filter_map(|(request, (a, b))| Some((request, a.as_ref()?, b.as_ref()?)));
    let both: Vec<(usize, &Answer, &Answer)> = both.collect();
    let exact = both.iter().filter(|(_, a, b)| a.text == b.text).count();
    let first_difference = both.iter().find(|(_, a, b)| a.text != b.text).map(|(request, a, b)| {
        let same = std::iter::zip(a.text.chars(), b.text.chars()).take_while(|(a, b)| a == b).count();
        let rest = |text: &str| text.chars().skip(same).take(SHOWN).collect();
        Difference { request: *request, characters: same, a: rest(&a.text), b: rest(&b.text) }
    });
    let distances: Vec<f64> = both.iter().flat_map(|(_, a, b)| distances(a, b)).collect();
    let tokens = distances.len();
    // Finer than other figures: what is looked for is in the sixth digit.
    let logprob_distance = (tokens > 0).then(|| LogprobDistance {
        tokens,
        mean: distances.iter().sum::<f64>() / tokens as f64,
        max: distances.iter().copied().fold(0.0, f64::max),
    });
    Some(Agreement {
        a: a.0.to_owned(),
        b: b.0.to_owned(),
        answers: both.len(),
        exact,
        exact_fraction: (!both.is_empty()).then(|| rounded(exact as f64 / both.len() as f64)),
        first_difference,
        logprob_distance,
    })
}

/// Of the tokens that are the same, up to the first that is not: what follows is of another text.
fn distances(a: &Answer, b: &Answer) -> Vec<f64> {
    let pairs = std::iter::zip(&a.logprobs, &b.logprobs).take_while(|(a, b)| a.0 == b.0);
    pairs.map(|(a, b)| (a.1 - b.1).abs()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str, logprobs: &[(&str, f64)]) -> Option<Answer> {
        let logprobs = logprobs.iter().map(|(token, logprob)| ((*token).to_owned(), *logprob)).collect();
        Some(Answer { text: text.to_owned(), logprobs, ..Answer::default() })
    }

    #[test]
    fn answers_are_compared_to_the_first_difference() {
        let a = [answer("The sea", &[("The", -0.5), (" sea", -1.0)]), answer("same", &[]), None];
        let b = [answer("The sun", &[("The", -0.25), (" sun", -9.0)]), answer("same", &[]), answer("x", &[])];
        let agreement = compare(("a", &a), ("b", &b)).unwrap();
        assert_eq!((agreement.answers, agreement.exact, agreement.exact_fraction), (2, 1, Some(0.5)));
        let first = Difference { request: 0, characters: 5, a: "ea".to_owned(), b: "un".to_owned() };
        assert_eq!(agreement.first_difference, Some(first));
        assert_eq!(agreement.logprob_distance, Some(LogprobDistance { tokens: 1, mean: 0.25, max: 0.25 }));
        assert_eq!(compare(("a", &a), ("b", &[])), None);
    }

    #[test]
    fn the_requests_are_always_the_same() {
        assert_eq!(requests(8), requests(8));
        assert_eq!(requests(8).len(), 8);
    }
}
