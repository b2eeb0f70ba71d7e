use serde_json::{Value, json};

use crate::helpers::{Server, answer, line};

fn create(file_id: &str) -> Value {
    json!({"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h", "metadata": {"k": "v"}})
}

#[tokio::test]
async fn a_batch_goes_through() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let file_id = server.upload(&(line("a", "hello") + &line("b", "bye"))).await;
    let (status, batch) = answer(server.post("/v1/batches").json(&create(&file_id))).await;
    assert_eq!(status, 200);
    let created_at = batch["created_at"].as_i64().unwrap();
    assert!(batch["id"].as_str().unwrap().starts_with("batch_"));
    let expected = json!({
        "id": batch["id"], "object": "batch", "endpoint": "/v1/chat/completions", "model": null, "errors": null,
        "input_file_id": file_id, "completion_window": "24h", "status": "validating", "output_file_id": null,
        "error_file_id": null, "created_at": created_at, "in_progress_at": null, "expires_at": created_at + 86400,
        "finalizing_at": null, "completed_at": null, "failed_at": null, "expired_at": null, "cancelling_at": null,
        "cancelled_at": null, "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "usage": {"input_tokens": 0, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 0},
        "metadata": {"k": "v"},
    });
    assert_eq!(batch, expected);
    let batch = server.batch_when(&batch["id"], |batch| batch["status"] == "completed").await;
    assert_eq!(batch["request_counts"], json!({"total": 2, "completed": 2, "failed": 0}));
    assert_eq!((&batch["model"], &batch["usage"]["total_tokens"]), (&json!("m"), &json!(14)));
    assert_eq!(batch["error_file_id"], Value::Null);
    let output = server.content(&batch["output_file_id"]).await;
    let records: Vec<Value> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), 2);
    assert_eq!((&records[0]["custom_id"], &records[0]["response"]["body"]), (&json!("a"), &json!({"echo": "hello"})));
    let (_, file) = answer(server.get(&format!("/v1/files/{}", batch["output_file_id"].as_str().unwrap()))).await;
    assert_eq!(file["purpose"], "batch_output");
    assert_eq!(file["filename"], format!("{}_output.jsonl", batch["id"].as_str().unwrap()));
    let (status, error) = answer(server.post(&format!("/v1/batches/{}/cancel", batch["id"].as_str().unwrap()))).await;
    assert_eq!((status, &error["error"]["message"]), (409, &json!("Cannot cancel a batch with status 'completed'.")));
}

#[tokio::test]
async fn a_cancelled_batch_answers_for_every_line() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let file_id = server.upload(&(line("a", "hello") + &line("b", "wait"))).await;
    let (_, batch) = answer(server.post("/v1/batches").json(&create(&file_id))).await;
    server.batch_when(&batch["id"], |batch| batch["request_counts"]["completed"] == 1).await;
    let cancel = format!("/v1/batches/{}/cancel", batch["id"].as_str().unwrap());
    let (status, cancelling) = answer(server.post(&cancel)).await;
    assert_eq!((status, &cancelling["status"]), (200, &json!("cancelling")));
    let batch = server.batch_when(&batch["id"], |batch| batch["status"] == "cancelled").await;
    assert_eq!(batch["request_counts"], json!({"total": 2, "completed": 1, "failed": 0}));
    assert_eq!(batch["cancelling_at"], cancelling["cancelling_at"]);
    assert!(server.content(&batch["error_file_id"]).await.contains("batch_cancelled"));
    let (status, again) = answer(server.post(&cancel)).await;
    assert_eq!((status, again), (200, batch), "a second cancel changes nothing");
}

#[tokio::test]
async fn bad_creates_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let pairs: serde_json::Map<_, _> = (0..17).map(|index| (index.to_string(), json!("v"))).collect();
    let cases = [
        ("input_file_id", json!(null), "missing_required_parameter", "input_file_id"),
        ("input_file_id", json!(5), "invalid_type", "input_file_id"),
        ("endpoint", json!("/v1/admin"), "invalid_value", "endpoint"),
        ("endpoint", json!(null), "missing_required_parameter", "endpoint"),
        ("completion_window", json!("1h"), "invalid_value", "completion_window"),
        ("completion_window", json!(""), "invalid_value", "completion_window"),
        ("metadata", json!({"tags": []}), "invalid_type", "metadata.tags"),
        ("metadata", json!("x"), "invalid_type", "metadata"),
        ("metadata", Value::Object(pairs), "invalid_value", "metadata"),
        ("metadata", json!({"k": "x".repeat(513)}), "invalid_value", "metadata.k"),
        ("output_expires_after", json!({"anchor": "x"}), "invalid_value", "output_expires_after.anchor"),
        (
            "output_expires_after",
            json!({"anchor": "created_at", "seconds": 3599}),
            "invalid_value",
            "output_expires_after.seconds",
        ),
    ];
    for (field, value, code, param) in cases {
        let mut body = create("file-x");
        body[field] = value;
        let (status, answer) = answer(server.post("/v1/batches").json(&body)).await;
        let error = &answer["error"];
        assert_eq!((status, &error["code"], &error["param"]), (400, &json!(code), &json!(param)), "{answer}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    let broken = server.post("/v1/batches").header("content-type", "application/json").body("{");
    assert_eq!(answer(broken).await.1["error"]["code"], "invalid_json");
    let twice = r#"{"input_file_id":"file-x","input_file_id":"file-y"}"#;
    let twice = server.post("/v1/batches").header("content-type", "application/json").body(twice);
    assert_eq!(answer(twice).await.1["error"]["code"], "duplicate_field");
}

#[tokio::test]
async fn an_unknown_input_fails_the_batch_not_the_request() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let (status, batch) = answer(server.post("/v1/batches").json(&create("file-x"))).await;
    assert_eq!((status, &batch["status"]), (200, &json!("validating")));
    let batch = server.batch_when(&batch["id"], |batch| batch["status"] == "failed").await;
    let error = &batch["errors"]["data"][0];
    assert_eq!(batch["errors"]["object"], "list");
    assert_eq!(
        (&error["code"], &error["param"], &error["line"]),
        (&json!("invalid_request"), &json!("file_id"), &json!(null))
    );
}

#[tokio::test]
async fn batches_are_listed_and_found() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let create = |key: &'static str| server.post("/v1/batches").header("idempotency-key", key).json(&create("file-x"));
    let (_, first) = answer(create("one")).await;
    let (_, second) = answer(create("two")).await;
    assert_eq!(answer(create("one")).await.1["id"], first["id"], "a repeated key is the same batch");
    let other = json!({"input_file_id": "file-y", "endpoint": "/v1/chat/completions", "completion_window": "24h"});
    let (status, error) = answer(server.post("/v1/batches").header("idempotency-key", "one").json(&other)).await;
    assert_eq!((status, &error["error"]["code"]), (409, &json!("idempotency_mismatch")));
    let (_, page) = answer(server.get("/v1/batches?limit=1")).await;
    assert_eq!((&page["data"][0]["id"], &page["has_more"]), (&second["id"], &json!(true)));
    let after = format!("/v1/batches?after={}", second["id"].as_str().unwrap());
    assert_eq!(answer(server.get(&after)).await.1["last_id"], first["id"]);
    assert_eq!(answer(server.get("/v1/batches?limit=101")).await.0, 400);
    for path in ["/v1/batches/batch_x", "/v1/batches/x'"] {
        let (status, body) = answer(server.get(path)).await;
        assert_eq!(status, 404);
        assert!(body["error"]["message"].as_str().unwrap().starts_with("No batch found with id '"));
    }
}
