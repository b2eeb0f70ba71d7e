use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::helpers::{MODEL, Setup, TestApp, chat_body, events, spawn, spawn_app};

async fn stream(app: &TestApp, path: &str, body: &Value) -> Vec<String> {
    let response = app.post(path, body).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["cache-control"], "no-cache");
    events(&response.text().await.unwrap())
}

fn json_of(event: &str) -> Value {
    serde_json::from_str(event).unwrap()
}

/// The chunks before `[DONE]`.
fn chunks(events: &[String]) -> Vec<Value> {
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    chunks.iter().map(|event| json_of(event)).collect()
}

fn joined(chunks: &[Value], index: u64) -> String {
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
    choices.filter(|choice| choice["index"] == index).filter_map(|choice| choice["delta"]["content"].as_str()).collect()
}

#[tokio::test]
async fn a_stream_is_role_content_finish_usage_done() {
    let app = spawn_app().await;
    let request = chat_body(
        json!({"stream": true, "stream_options": {"include_usage": true}, "max_tokens": 1, "temperature": 0}),
    );
    let chunks = chunks(&stream(&app, "/v1/chat/completions", &request).await);
    assert_eq!(chunks.len(), 4);
    for chunk in &chunks {
        assert_eq!((&chunk["object"], &chunk["id"]), (&json!("chat.completion.chunk"), &chunks[0]["id"]));
    }
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert!(chunks[..3].iter().all(|chunk| chunk["usage"].is_null() && chunk.get("usage").is_some()));
    assert_eq!(chunks[2]["choices"][0], json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": "length"}));
    assert_eq!(chunks[3]["choices"], json!([]));
    assert_eq!(chunks[3]["usage"]["completion_tokens"], 1);
}

#[tokio::test]
async fn deltas_put_together_are_the_unstreamed_text() {
    let app = spawn_app().await;
    for extra in [
        json!({"max_tokens": 50, "ignore_eos": true}),
        json!({"n": 3, "max_tokens": 40, "temperature": 2}),
        json!({"max_tokens": 60, "ignore_eos": true, "stop": ["th", " a"]}),
        json!({"max_tokens": 60, "temperature": 2, "logprobs": true, "ignore_eos": true}),
    ] {
        let whole = app.chat(extra.clone()).await;
        let mut request = chat_body(extra);
        request["stream"] = true.into();
        let chunks = chunks(&stream(&app, "/v1/chat/completions", &request).await);
        assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()), "usage was not asked for");
        for choice in whole["choices"].as_array().unwrap() {
            let index = choice["index"].as_u64().unwrap();
            assert_eq!(joined(&chunks, index), choice["message"]["content"].as_str().unwrap());
            let all = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
            let mine: Vec<&Value> = all.filter(|streamed| streamed["index"] == index).collect();
            assert_eq!(mine.last().unwrap()["finish_reason"], choice["finish_reason"]);
            let told = mine.iter().filter_map(|streamed| streamed["logprobs"]["content"].as_array()).flatten();
            let whole = choice["logprobs"]["content"].as_array().into_iter().flatten();
            assert!(told.eq(whole));
        }
    }
}

#[tokio::test]
async fn completions_stream_their_text() {
    let app = spawn_app().await;
    let mut request = json!({"model": MODEL, "prompt": ["Once", "Twice"], "seed": 1, "echo": true, "ignore_eos": true});
    let whole = app.ok("/v1/completions", &request).await;
    request["stream"] = true.into();
    let chunks = chunks(&stream(&app, "/v1/completions", &request).await);
    for index in 0..2 {
        let all = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
        let mine = all.filter(|choice| choice["index"] == index);
        let text: String = mine.filter_map(|choice| choice["text"].as_str()).collect();
        assert_eq!(text, whole["choices"][index]["text"].as_str().unwrap());
    }
}

#[tokio::test]
async fn a_failure_after_the_first_byte_is_the_last_event() {
    let mut setup = Setup::default();
    setup.sim.faults.device_fails_at = 5;
    let app = spawn(setup).await;
    let request = chat_body(json!({"stream": true, "max_tokens": 100, "ignore_eos": true}));
    let events = stream(&app, "/v1/chat/completions", &request).await;
    insta::assert_json_snapshot!(json_of(events.last().unwrap()), @r#"
    {
      "error": {
        "message": "The inference engine has stopped, please retry later.",
        "type": "server_error",
        "param": null,
        "code": "engine_unavailable"
      }
    }
    "#);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let health = app.get("/health").await;
        if health.status() == 503 {
            assert!(health.headers().contains_key("retry-after"));
            break;
        }
        assert!(Instant::now() < deadline, "an engine that ended is not healthy");
    }
    assert_eq!(app.get("/health/live").await.status(), 200);
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_is_reaped() {
    let mut setup = Setup::default();
    setup.sim.step_delay = Duration::from_millis(5);
    let app = spawn(setup).await;
    let request = chat_body(json!({"stream": true, "max_tokens": 4000, "ignore_eos": true}));
    let mut response = app.post("/v1/chat/completions", &request).await;
    assert!(response.chunk().await.unwrap().is_some());
    drop(response);
    app.until(|stats| stats.cancelled == 1 && stats.running == 0).await;
}
