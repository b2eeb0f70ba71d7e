//! What the document says of the server is so; see contract.rs for what every other test adds to this.

use reqwest::multipart::{Form, Part};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::contract::{checked, document};
use crate::helpers::{MODEL, TestApp, chat_body, spawn_app};

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
    let mut batch: Value = created.json().await.unwrap();
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while batch["status"] != "completed" {
        assert!(tokio::time::Instant::now() < deadline, "{batch}");
        // sleep: between two polls, within the deadline
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        batch = app.get(&format!("/v1/batches/{}", batch["id"].as_str().unwrap())).await.json().await.unwrap();
    }
    app.get("/v1/batches?limit=1").await;
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

async fn upload(app: &TestApp, purpose: &str, name: &str, text: &str) -> Value {
    let file = Part::text(text.to_owned()).file_name(name.to_owned());
    let form = Form::new().text("purpose", purpose.to_owned()).part("file", file);
    let response = app.request(Method::POST, "/v1/files").multipart(form).send().await.unwrap();
    checked(&Method::POST, "/v1/files", response).await.json().await.unwrap()
}
