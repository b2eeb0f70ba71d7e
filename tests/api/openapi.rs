//! What the document says of the server is so; see contract.rs for what every other test adds to this.

use std::time::Duration;

use reqwest::multipart::{Form, Part};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::contract::{checked, document};
use crate::helpers::{MODEL, Setup, TestApp, chat_body, spawn, spawn_app};

const METHODS: [Method; 6] = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

#[tokio::test]
async fn urls_have_the_methods_that_are_documented() {
    let app = spawn_app().await;
    for (path, operations) in document()["paths"].as_object().unwrap() {
        for method in METHODS {
            let path = path.replace("{id}", "nope");
            let response = app.request(method.clone(), &path).send().await.unwrap();
            let status = response.status();
            let documented = operations.get(method.as_str().to_lowercase()).is_some();
            assert_eq!(status != StatusCode::METHOD_NOT_ALLOWED, documented, "{method} {path}: {status}");
            checked(&method, &path, response).await;
        }
    }
}

#[tokio::test]
async fn the_page_loads_nothing_from_elsewhere() {
    let app = spawn_app().await;
    let response = app.get("/docs").await;
    assert_eq!(response.headers()["content-type"], "text/html; charset=utf-8");
    let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
    let page = response.text().await.unwrap();
    assert!(page.contains("fetch(\"openapi.json\""));
    assert!(!page.contains("http://") && !page.contains("https://"), "the page names another host");
}

#[tokio::test]
async fn a_batch_from_upload_to_deletion() {
    let app = spawn_app().await;
    let line = json!({"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": chat_body(json!({}))});
    let file = upload(&app, "batch", "in.jsonl", &format!("{line}\n")).await;
    let id = file["id"].as_str().unwrap();
    let order = json!({"input_file_id": id, "endpoint": "/v1/chat/completions", "completion_window": "24h", "metadata": {"a": "b"}, "x": 1});
    let created = app.post("/v1/batches", &order).await;
    assert_eq!(created.headers()["x-tandem-ignored-params"], "x");
    let batch = created.json().await.unwrap();
    let batch = batch_when(&app, &batch, |batch| batch["status"] == "completed").await;
    app.get("/v1/batches?limit=1").await;
    let results = app.get(&format!("/v1/batches/{}/results", batch["id"].as_str().unwrap())).await;
    let results: Value = results.json().await.unwrap();
    assert_eq!(
        (&results["data"][0]["custom_id"], &results["data"][0]["response"]["status_code"]),
        (&json!("a"), &json!(200))
    );
    let estimate: Value = app.get(&format!("/v1/files/{id}/estimate")).await.json().await.unwrap();
    assert_eq!(estimate["total_requests"], 1);
    let output = batch["output_file_id"].as_str().unwrap();
    let content = app.get(&format!("/v1/files/{output}/content")).await.text().await.unwrap();
    let record: Value = serde_json::from_str(content.trim_end()).unwrap();
    crate::contract::check("/components/schemas/OutputRecord", &record);
    let ended = app.post(&format!("/v1/batches/{}/cancel", batch["id"].as_str().unwrap()), &json!({})).await;
    assert_eq!(ended.status(), StatusCode::CONFLICT);
    for (range, status) in [("bytes=0-9", 206), ("bytes=1000000-", 416)] {
        let path = format!("/v1/files/{output}/content");
        let response = app.request(Method::GET, &path).header("range", range).send().await.unwrap();
        assert_eq!(response.status(), status, "{range}");
        checked(&Method::GET, &path, response).await;
    }
    for path in ["/v1/files", "/v1/files?purpose=batch&order=asc", &format!("/v1/files/{id}")] {
        assert_eq!(app.get(path).await.status(), StatusCode::OK);
    }
    let path = format!("/v1/files/{id}");
    for status in [200, 404] {
        let response = app.request(Method::DELETE, &path).send().await.unwrap();
        assert_eq!(response.status(), status);
        checked(&Method::DELETE, &path, response).await;
    }
}

#[tokio::test]
async fn a_batch_is_steered() {
    let mut setup = Setup::default();
    // Long enough that the line is still being computed when the batch is cancelled.
    setup.sim.step_delay = Duration::from_millis(200);
    let app = spawn(setup).await;
    let body = chat_body(json!({"max_tokens": 400, "ignore_eos": true}));
    let line = json!({"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body});
    let file = upload(&app, "batch", "in.jsonl", &format!("{line}\n")).await;
    let order = json!({"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"});
    let batch = app.ok("/v1/batches", &order).await;
    let under = |what: &str| format!("/v1/batches/{}/{what}", batch["id"].as_str().unwrap());
    // A batch that is stopped before it is checked has no lines.
    batch_when(&app, &batch, |batch| batch["request_counts"]["total"] == 1).await;
    assert!(app.ok(&under("pause"), &json!({})).await["progress"]["paused_at"].is_i64());
    assert_eq!(
        app.ok(&under("resume"), &json!({})).await["progress"].get("paused_at").cloned().unwrap_or_default(),
        Value::Null
    );
    app.ok(&under("cancel"), &json!({})).await;
    batch_when(&app, &batch, |batch| batch["status"] == "cancelled").await;
    let results: Value = app.get(&under("results")).await.json().await.unwrap();
    assert_eq!(results["data"][0]["error"]["code"], "batch_cancelled");
    let again = app.ok(&under("retry"), &json!({})).await;
    assert_eq!(again["metadata"]["retry_of"], batch["id"]);
    app.ok(&format!("/v1/batches/{}/cancel", again["id"].as_str().unwrap()), &json!({})).await;
}

#[tokio::test]
async fn what_is_wrong_with_a_url_is_told_as_an_error() {
    let app = spawn_app().await;
    for (path, status) in [
        ("/v1/files?limit=1&limit=2", 400),
        ("/v1/files?limit=0", 400),
        ("/v1/files?order=%ff", 400),
        ("/v1/batches?after=nope", 400),
        ("/v1/batches/nope", 404),
        ("/v1/batches/%ff", 404),
        ("/v1/files/nope/content", 404),
        ("/v1/models/org/nope", 404),
    ] {
        assert_eq!(app.get(path).await.status(), status, "{path}");
    }
    let response = app.request(Method::POST, "/v1/files").body("x").send().await.unwrap();
    assert_eq!(response.status(), 400);
    checked(&Method::POST, "/v1/files", response).await;
}

#[tokio::test]
async fn what_else_is_served_is_as_documented() {
    let app = spawn_app().await;
    for path in ["/v1/models", &format!("/v1/models/{MODEL}"), "/health", "/health/live", "/version", "/openapi.json"] {
        assert_eq!(app.get(path).await.status(), StatusCode::OK, "{path}");
    }
    let tokens = app.ok("/tokenize", &json!({"model": MODEL, "prompt": "Hello"})).await;
    app.ok("/detokenize", &json!({"model": MODEL, "tokens": tokens["tokens"]})).await;
}

/// The batch as soon as `is_it` likes it.
async fn batch_when(app: &TestApp, batch: &Value, is_it: impl Fn(&Value) -> bool) -> Value {
    let path = format!("/v1/batches/{}", batch["id"].as_str().unwrap());
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let batch: Value = app.get(&path).await.json().await.unwrap();
        if is_it(&batch) {
            return batch;
        }
        assert!(tokio::time::Instant::now() < deadline, "{batch}");
        // sleep: between two polls, within the deadline
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn upload(app: &TestApp, purpose: &str, name: &str, text: &str) -> Value {
    let file = Part::text(text.to_owned()).file_name(name.to_owned());
    let form = Form::new().text("purpose", purpose.to_owned()).part("file", file);
    let response = app.request(Method::POST, "/v1/files").multipart(form).send().await.unwrap();
    checked(&Method::POST, "/v1/files", response).await.json().await.unwrap()
}
