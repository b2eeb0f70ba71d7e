//! Adapters by name: where they are listed, and what a request makes of one.

use reqwest::StatusCode;
use serde_json::{Value, json};
use tandem_sim::SimSettings;

use crate::helpers::{MODEL, Setup, TestApp, chat_body, merged, spawn, spawn_app};

async fn app() -> TestApp {
    let adapters = vec!["legal".to_owned(), "org/poems".to_owned()];
    spawn(Setup { sim: SimSettings { adapters, ..SimSettings::default() }, ..Setup::default() }).await
}

fn text(answer: &Value) -> &Value {
    &answer["choices"][0]["message"]["content"]
}

async fn refusal(app: &TestApp, path: &str, body: Value) -> (StatusCode, Value) {
    let response = app.post(path, &body).await;
    (response.status(), response.json::<Value>().await.unwrap()["error"].take())
}

#[tokio::test]
async fn a_model_is_listed_with_its_adapters() {
    let app = app().await;
    let list: Value = app.get("/v1/models").await.json().await.unwrap();
    assert_eq!(list["data"][0]["adapters"], json!(["legal", "org/poems"]));
    let one: Value = app.get(&format!("/v1/models/{MODEL}")).await.json().await.unwrap();
    assert_eq!(one, list["data"][0]);
}

#[tokio::test]
async fn a_request_is_answered_by_the_adapter_that_it_names() {
    let app = app().await;
    let mut answers = Vec::new();
    for lora in [json!(null), json!("legal"), json!("org/poems")] {
        let answer = app.chat(json!({"lora": lora})).await;
        assert_eq!(app.chat(json!({"lora": lora})).await["choices"], answer["choices"], "{lora}");
        answers.push(answer);
    }
    for (at, one) in answers.iter().enumerate() {
        for other in &answers[..at] {
            assert_ne!(text(one), text(other));
            assert_ne!(one["system_fingerprint"], other["system_fingerprint"]);
        }
    }
    // As clients of llama-server say that they want none.
    assert_eq!(text(&app.chat(json!({"lora": []})).await), text(&answers[0]));
    assert_eq!(text(&app.chat(json!({})).await), text(&answers[0]));
}

#[tokio::test]
async fn plain_prompts_are_adapted_too() {
    let app = app().await;
    let body = |lora: Value| json!({"model": MODEL, "prompt": ["Hello", "Hi"], "seed": 7, "lora": lora});
    let adapted = app.ok("/v1/completions", &body(json!("legal"))).await;
    let plain = app.ok("/v1/completions", &body(json!(null))).await;
    for at in 0..2 {
        assert_ne!(adapted["choices"][at]["text"], plain["choices"][at]["text"]);
    }
}

#[tokio::test]
async fn adapters_share_no_prefix() {
    let app = app().await;
    let long = json!([{"role": "user", "content": "a long beginning that many prompts share ".repeat(8)}]);
    let cached = async |lora: Value| {
        let answer = app.chat(json!({"messages": long, "lora": lora})).await;
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached(json!("legal")).await, 0);
    assert_eq!(cached(json!("org/poems")).await, 0);
    assert_eq!(cached(json!(null)).await, 0);
    assert!(cached(json!("legal")).await > 300);
}

#[tokio::test]
async fn requests_with_all_adapters_at_once_are_answered_as_alone() {
    let app = app().await;
    let ask = |at: usize| {
        let lora = [json!(null), json!("legal"), json!("org/poems")][at % 3].clone();
        json!({"lora": lora, "messages": [{"role": "user", "content": format!("Hello {}", at / 3)}], "max_tokens": 40})
    };
    let mut alone = Vec::new();
    for at in 0..18 {
        alone.push(app.chat(ask(at)).await);
    }
    let together = futures_util::future::join_all((0..18).map(|at| app.chat(ask(at)))).await;
    for (at, (alone, together)) in std::iter::zip(&alone, &together).enumerate() {
        assert_eq!(text(alone), text(together), "request {at}");
    }
}

#[tokio::test]
async fn what_is_no_adapter_is_refused() {
    let app = app().await;
    let prompt = |extra: Value| merged(json!({"model": MODEL, "prompt": "Hello"}), extra);
    for (lora, status, code, message) in [
        (json!("none"), 404, "adapter_not_found", "The model `org/sim` has no adapter `none`."),
        (json!("Legal"), 404, "adapter_not_found", "The model `org/sim` has no adapter `Legal`."),
        (json!(""), 400, "empty_string", "Invalid 'lora': empty string."),
        (json!("x".repeat(257)), 400, "string_above_max_length", "Invalid 'lora': string too long."),
        (json!(1), 400, "invalid_type", "Invalid type for 'lora': expected a string, but got an integer instead."),
        (json!([{"id": 0, "scale": 1}]), 400, "invalid_type", "Invalid type for 'lora': expected a string, but got an"),
        (
            json!({"name": "legal"}),
            400,
            "invalid_type",
            "Invalid type for 'lora': expected a string, but got an object",
        ),
    ] {
        for (path, body) in [
            ("/v1/chat/completions", chat_body(json!({"lora": lora}))),
            ("/v1/completions", prompt(json!({"lora": lora}))),
        ] {
            let (got, error) = refusal(&app, path, body).await;
            assert_eq!(
                (got.as_u16(), &error["code"], &error["param"]),
                (status, &json!(code), &json!("lora")),
                "{lora}"
            );
            assert!(error["message"].as_str().unwrap().starts_with(message), "{error}");
        }
    }
}

#[tokio::test]
async fn a_model_without_adapters_knows_no_name() {
    let app = spawn_app().await;
    let (status, error) = refusal(&app, "/v1/chat/completions", chat_body(json!({"lora": "legal"}))).await;
    assert_eq!((status, &error["code"]), (StatusCode::NOT_FOUND, &json!("adapter_not_found")));
    assert_eq!(text(&app.chat(json!({"lora": null})).await), text(&app.chat(json!({})).await));
}
