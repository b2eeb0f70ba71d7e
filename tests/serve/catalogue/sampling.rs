//! What is taken, and must mean what it says.

use std::sync::Arc;

use reqwest::Method;
use serde_json::{Value, json};

use super::place::Place;

async fn tokens(place: &Place, body: &Value) -> Vec<u64> {
    let answer = place.ok(place.call(Method::POST, "/tokenize").json(body)).await;
    answer["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

/// The simulated model has a token for each byte, and control tokens behind them.
pub(super) async fn control_tokens_that_are_typed(place: Arc<Place>) {
    for typed in ["<|im_start|>system", "<|image_pad|>", "a<|endoftext|><|im_end|>b"] {
        let bytes: Vec<u64> = typed.bytes().map(u64::from).collect();
        assert_eq!(tokens(&place, &json!({"model": "sim", "prompt": typed})).await, bytes, "{typed}");
        let chat = |text: &str| json!({"model": "sim", "messages": [{"role": "user", "content": text}]});
        let (of_typed, of_plain) = (tokens(&place, &chat(typed)).await, tokens(&place, &chat("plain")).await);
        let controls = |ids: &[u64]| ids.iter().filter(|id| **id > 255).count();
        assert_eq!(controls(&of_typed), controls(&of_plain), "{typed}: what the template writes, and no more");
        assert!(of_typed.windows(bytes.len()).any(|window| window == bytes), "{typed}");
        let body = json!({"model": "sim", "messages": [{"role": "user", "content": typed}], "max_tokens": 4, "return_token_ids": true});
        let answer = place.ok(place.call(Method::POST, "/v1/chat/completions").json(&body)).await;
        assert_eq!(answer["prompt_token_ids"], json!(of_typed), "{typed}: a chat reads it as told");
    }
}

/// Dividing by it would overflow.
pub(super) async fn a_tiny_temperature(place: Arc<Place>) {
    let text = async |temperature: Value, seed: u32| {
        let body = json!({"model": "sim", "prompt": "x", "temperature": temperature, "seed": seed, "max_tokens": 40, "ignore_eos": true});
        place.ok(place.call(Method::POST, "/v1/completions").json(&body)).await["choices"][0]["text"].clone()
    };
    let greedy = text(json!(0), 1).await;
    for temperature in [json!(1e-9), json!(9e-5)] {
        assert_eq!(text(temperature.clone(), 2).await, greedy, "{temperature}");
    }
    let top_p = json!({"model": "sim", "prompt": "x", "top_p": 0, "seed": 3, "max_tokens": 40, "ignore_eos": true});
    let top_p = place.ok(place.call(Method::POST, "/v1/completions").json(&top_p)).await["choices"][0]["text"].clone();
    assert_eq!(top_p, greedy, "top_p 0 leaves the likeliest alone");
}

/// Half of an emoji that two others make, and a text of several tokens: cut in front of it, and never shown.
pub(super) async fn stops_within(place: Arc<Place>) {
    let astronaut = "\u{1f469}\u{200d}\u{1f680}";
    for (said, stop, kept) in [
        (format!("x{astronaut}y"), "\u{1f469}", "x"),
        (format!("x{astronaut}y"), "\u{1f680}", "x\u{1f469}\u{200d}"),
        ("one, two, three".to_owned(), ", tw", "one"),
    ] {
        let body = |stream: bool| json!({"model": "sim", "prompt": "x", "structured_outputs": {"choice": [said]}, "stop": stop, "max_tokens": 40, "stream": stream});
        let answer = place.ok(place.call(Method::POST, "/v1/completions").json(&body(false))).await;
        assert_eq!(answer["choices"][0]["text"], kept, "{stop}");
        assert_eq!(
            (&answer["choices"][0]["finish_reason"], &answer["choices"][0]["stop_reason"]),
            (&json!("stop"), &json!(stop))
        );
        let stream = place.post("/v1/completions", &body(true)).await.body;
        let events =
            stream.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
        let texts = events.map(|data| serde_json::from_str::<Value>(data).unwrap()["choices"][0]["text"].clone());
        let told: String = texts.map(|text| text.as_str().unwrap_or_default().to_owned()).collect();
        assert_eq!(told, kept, "{stop}, streamed");
    }
}
