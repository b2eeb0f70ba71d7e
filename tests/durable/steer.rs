use std::time::Duration;

use serde_json::{Value, json};
use tandem::batch::Settings;

use crate::helpers::{Server, answer, line};

fn create(file_id: &str) -> Value {
    json!({"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h", "metadata": {"k": "v"}})
}

async fn submit(server: &Server, text: &str) -> Value {
    let (status, batch) = answer(server.post("/v1/batches").json(&create(&server.upload(text).await))).await;
    assert_eq!(status, 200, "{batch}");
    batch["id"].clone()
}

fn under(id: &Value, rest: &str) -> String {
    format!("/v1/batches/{}/{rest}", id.as_str().unwrap())
}

fn ended_lines(batch: &Value) -> i64 {
    batch["request_counts"]["completed"].as_i64().unwrap() + batch["request_counts"]["failed"].as_i64().unwrap()
}

fn ids(page: &Value) -> Vec<&str> {
    page["data"].as_array().unwrap().iter().map(|record| record["custom_id"].as_str().unwrap()).collect()
}

/// Done when `look` says so.
async fn until(mut look: impl FnMut() -> bool) {
    let seen = async {
        while !look() {
            // sleep: between two polls, within the deadline
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), seen).await.expect("it did not happen within a minute");
}

#[tokio::test]
async fn results_come_in_pages_while_the_batch_runs() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let id = submit(&server, &(line("a", "hello") + &line("b", "refuse") + &line("c", "wait"))).await;
    let batch = server.batch_when(&id, |batch| ended_lines(batch) == 2).await;
    let progress = &batch["progress"];
    assert_eq!((&progress["completed_tokens"], &progress["cached_tokens"]), (&json!(7), &json!(0)));
    assert_eq!((&progress["current_model"], &progress["paused_at"]), (&json!("m"), &json!(null)));
    assert!(progress["tokens_per_second"].as_f64().unwrap() > 0.0, "{progress}");
    assert!(progress["eta_seconds"].as_i64().unwrap() >= 1, "{progress}");
    let (status, page) = answer(server.get(&under(&id, "results"))).await;
    assert_eq!((status, &page["object"], &page["batch_status"]), (200, &json!("list"), &json!("in_progress")));
    assert_eq!((&page["has_more"], page["data"].as_array().unwrap().len()), (&json!(false), 2));
    let told = async |query: &str| {
        let response = server.get(&under(&id, query)).send().await.unwrap();
        ["x-incomplete", "x-last-line"].map(|name| response.headers()[name].to_str().unwrap().to_owned())
    };
    assert_eq!(told("results").await, ["true", "2"], "a line runs");
    assert_eq!(told("results?after=2").await, ["true", "2"]);
    let (_, first) = answer(server.get(&under(&id, "results?limit=1"))).await;
    assert_eq!((&first["has_more"], &first["first_id"]), (&json!(true), &first["last_id"]));
    let after = first["last_id"].as_str().unwrap();
    let (_, second) = answer(server.get(&under(&id, &format!("results?limit=1&after={after}")))).await;
    assert_eq!([ids(&first), ids(&second)].concat(), ids(&page));
    let (_, failed) = answer(server.get(&under(&id, "results?status=failed"))).await;
    assert_eq!((ids(&failed), &failed["data"][0]["response"]["status_code"]), (vec!["b"], &json!(400)));
    let (_, done) = answer(server.get(&under(&id, "results?status=completed"))).await;
    assert_eq!(done["data"][0]["response"]["body"], json!({"echo": "hello"}));
    for (query, code, param) in [
        ("limit=0", "invalid_value", "limit"),
        ("limit=1001", "invalid_value", "limit"),
        ("after=x", "invalid_cursor", "after"),
        ("after=-1", "invalid_cursor", "after"),
        ("status=open", "invalid_value", "status"),
        ("follow=1", "invalid_value", "follow"),
        ("follow=true&limit=5", "invalid_value", "limit"),
    ] {
        let (status, body) = answer(server.get(&under(&id, &format!("results?{query}")))).await;
        let error = &body["error"];
        assert_eq!((status, &error["code"], &error["param"]), (400, &json!(code), &json!(param)), "{query}");
    }
    assert_eq!(answer(server.get("/v1/batches/batch_x/results")).await.0, 404);
    assert_eq!(answer(server.get("/v1/batches/batch_x/results?follow=true")).await.0, 404);
    answer(server.post(&under(&id, "cancel"))).await;
    let ended = server.batch_when(&id, |batch| batch["status"] == "cancelled").await;
    assert_eq!(ended.get("progress"), None, "only while it runs");
    let (_, all) = answer(server.get(&under(&id, "results"))).await;
    assert_eq!(ids(&all), [ids(&page), vec!["c"]].concat());
    assert_eq!(all["batch_status"], "cancelled");
    assert_eq!(told("results?limit=2").await, ["true", "2"], "another page");
    assert_eq!(told("results?after=2").await, ["false", "3"]);
    answer(server.delete(&format!("/v1/files/{}", ended["error_file_id"].as_str().unwrap()))).await;
    let (status, body) = answer(server.get(&under(&id, "results"))).await;
    assert_eq!((status, &body["error"]["code"]), (404, &json!("results_gone")));
}

#[tokio::test]
async fn a_stream_of_results_tells_each_line_once_and_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let id = submit(&server, &(line("a", "hello") + &line("b", "wait"))).await;
    let mut stream = server.get(&under(&id, "results?follow=true")).send().await.unwrap();
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let first = String::from_utf8(stream.chunk().await.unwrap().unwrap().to_vec()).unwrap();
    assert!(first.starts_with("id: 1\ndata: {\"id\":\"batch_req_") && first.ends_with("\n\n"), "{first}");
    answer(server.post(&under(&id, "cancel"))).await;
    let rest = stream.text().await.unwrap();
    assert!(rest.contains("id: 2\ndata: ") && rest.contains("\"custom_id\":\"b\""), "{rest}");
    let (_, end) = rest.split_once("event: batch\ndata: ").unwrap();
    let (batch, done) = end.split_once("\n\n").unwrap();
    let batch: Value = serde_json::from_str(batch).unwrap();
    assert_eq!((&batch["id"], &batch["status"], done), (&id, &json!("cancelled"), "data: [DONE]\n\n"));
    let resumed = server.get(&under(&id, "results?follow=true&after=0")).header("last-event-id", "1");
    let resumed = resumed.send().await.unwrap().text().await.unwrap();
    assert!(resumed.starts_with("id: 2\n") && resumed.ends_with("data: [DONE]\n\n"), "{resumed}");
}

#[tokio::test]
async fn a_reader_that_is_slow_or_goes_away_holds_nothing_up() {
    let dir = tempfile::tempdir().unwrap();
    // Records of a megabyte are kept as files: what the sockets cannot take stays on disk.
    let settings = Settings { spill_bytes: 1000, ..Settings::default() };
    let server = Server::start_with(dir.path(), settings, &[]).await;
    const LINES: usize = 40;
    let long: String = (0..LINES).map(|index| line(&format!("long-{index}"), "long 1000000")).collect();
    let id = submit(&server, &(long + &line("w", "wait"))).await;
    let leaving = server.get(&under(&id, "results?follow=true")).send().await.unwrap();
    let slow = server.get(&under(&id, "results?follow=true")).send().await.unwrap();
    let name = id.as_str().unwrap();
    until(|| server.batches.followers(name) == 2).await;
    drop(leaving);
    until(|| server.batches.followers(name) == 1).await;
    server.batch_when(&id, |batch| ended_lines(batch) == LINES as i64).await;
    answer(server.post(&under(&id, "cancel"))).await;
    server.batch_when(&id, |batch| batch["status"] == "cancelled").await;
    let text = slow.text().await.unwrap();
    let told: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("id: ")).collect();
    let expected: Vec<_> = (1..=LINES + 1).map(|seq| seq.to_string()).collect();
    assert_eq!(told, expected);
    assert!(text.ends_with("data: [DONE]\n\n"));
    until(|| server.batches.followers(name) == 0).await;
}

#[tokio::test]
async fn a_batch_is_paused_and_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let id = submit(&server, &(line("a", "hello") + &line("b", "wait"))).await;
    server.batch_when(&id, |batch| ended_lines(batch) == 1).await;
    let (status, paused) = answer(server.post(&under(&id, "pause"))).await;
    assert_eq!((status, &paused["status"]), (200, &json!("in_progress")));
    assert!(paused["progress"]["paused_at"].is_i64(), "{paused}");
    assert_eq!(paused["progress"]["eta_seconds"], Value::Null);
    let (_, again) = answer(server.post(&under(&id, "pause"))).await;
    assert_eq!(again["progress"]["paused_at"], paused["progress"]["paused_at"]);
    for _ in 0..2 {
        let (status, resumed) = answer(server.post(&under(&id, "resume"))).await;
        assert_eq!((status, &resumed["progress"]["paused_at"]), (200, &json!(null)));
    }
    answer(server.post(&under(&id, "cancel"))).await;
    server.batch_when(&id, |batch| batch["status"] == "cancelled").await;
    for what in ["pause", "resume"] {
        let response = server.post(&under(&id, what)).send().await.unwrap();
        assert_eq!(
            (response.status().as_u16(), response.headers()["x-should-retry"].to_str().unwrap()),
            (409, "false")
        );
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["error"]["message"], format!("Cannot {what} a batch with status 'cancelled'."));
        assert_eq!(answer(server.post(&format!("/v1/batches/batch_x/{what}"))).await.0, 404);
    }
}

#[tokio::test]
async fn failed_lines_are_run_again() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let id = submit(&server, &(line("a", "hello") + &line("b", "refuse") + &line("c", "wait"))).await;
    server.batch_when(&id, |batch| ended_lines(batch) == 2).await;
    let running = server.post(&under(&id, "retry")).send().await.unwrap();
    assert_eq!((running.status().as_u16(), running.headers()["x-should-retry"].to_str().unwrap()), (409, "false"));
    let running: Value = running.json().await.unwrap();
    assert_eq!(running["error"]["message"], "Cannot retry a batch with status 'in_progress'.");
    answer(server.post(&under(&id, "cancel"))).await;
    server.batch_when(&id, |batch| batch["status"] == "cancelled").await;
    let (status, again) = answer(server.post(&under(&id, "retry")).header("idempotency-key", "k")).await;
    assert_eq!((status, &again["metadata"]), (200, &json!({"k": "v", "retry_of": id})), "{again}");
    let (_, same) = answer(server.post(&under(&id, "retry")).header("idempotency-key", "k")).await;
    assert_eq!(same["id"], again["id"]);
    let text = server.content(&again["input_file_id"]).await;
    assert_eq!(text, line("b", "refuse") + &line("c", "wait"));
    server.batch_when(&again["id"], |batch| batch["request_counts"]["failed"] == 1).await;
    let well = submit(&server, &line("a", "hello")).await;
    server.batch_when(&well, |batch| batch["status"] == "completed").await;
    let (status, body) = answer(server.post(&under(&well, "retry"))).await;
    assert_eq!((status, &body["error"]["code"]), (400, &json!("nothing_to_retry")));
    assert_eq!(answer(server.post("/v1/batches/batch_x/retry")).await.0, 404);
}

#[tokio::test]
async fn a_file_is_estimated() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let file_id = server.upload(&(line("a", "hello") + &line("b", "refuse") + "{\n" + &line("c", "hello"))).await;
    let path = format!("/v1/files/{file_id}/estimate");
    let (status, estimate) = answer(server.get(&path)).await;
    let expected = json!({
        "object": "file.estimate", "file_id": file_id, "endpoint": "/v1/chat/completions",
        "total_requests": 4, "invalid_requests": 2,
        "errors": {"object": "list", "data": [
            {"code": "invalid_value", "message": "Invalid 'messages': refused.", "param": "body.messages", "line": 2},
            {"code": "invalid_json_line", "message": "This line is not parseable as valid JSON.", "param": null, "line": 3},
        ]},
        "input_tokens": 10, "max_output_tokens": 40, "expected_output_tokens": null, "eta_seconds": null,
        "by_model": [{"model": "m", "requests": 2, "input_tokens": 10, "max_output_tokens": 40,
            "expected_output_tokens": null, "eta_seconds": null}],
    });
    assert_eq!((status, estimate), (200, expected));
    let id = submit(&server, &line("a", "hello")).await;
    let batch = server.batch_when(&id, |batch| batch["status"] == "completed").await;
    let (_, estimate) = answer(server.get(&path)).await;
    assert_eq!(estimate["expected_output_tokens"], 4);
    assert!(estimate["eta_seconds"].as_u64().unwrap() >= 1, "{estimate}");
    let (_, other) = answer(server.get(&format!("{path}?endpoint=/v1/completions"))).await;
    assert_eq!(other["invalid_requests"], 4, "no line is for that");
    let (status, body) = answer(server.get(&format!("{path}?endpoint=/v1/admin"))).await;
    assert_eq!((status, &body["error"]["param"]), (400, &json!("endpoint")));
    let output = format!("/v1/files/{}/estimate", batch["output_file_id"].as_str().unwrap());
    assert_eq!(answer(server.get(&output)).await.0, 400, "it is no input");
    assert_eq!(answer(server.get("/v1/files/file-x/estimate")).await.0, 404);
}

#[tokio::test]
async fn a_librarys_own_repetition_makes_no_second_batch() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let body = create(&server.upload(&line("a", "wait")).await);
    let send =
        |count: &'static str| answer(server.post("/v1/batches").header("x-stainless-retry-count", count).json(&body));
    let (_, first) = send("0").await;
    assert_eq!(send("1").await.1["id"], first["id"]);
    let (_, second) = send("0").await;
    assert_ne!(second["id"], first["id"], "asked for twice, it is two");
    let mut other = body.clone();
    other["metadata"] = json!({"k": "other"});
    other["idempotency_key"] = json!("key");
    other["frobnicate"] = json!(1);
    let post = || server.post("/v1/batches").header("x-stainless-retry-count", "1").json(&other);
    let response = post().send().await.unwrap();
    assert_eq!(response.headers()["x-tandem-ignored-params"], "frobnicate");
    let third: Value = response.json().await.unwrap();
    assert!(third["id"] != first["id"] && third["id"] != second["id"], "another request is another batch");
    assert_eq!(answer(post()).await.1["id"], third["id"], "the key may stand in the body");
    let (status, error) =
        answer(server.post("/v1/batches").header("idempotency-key", "x".repeat(256)).json(&body)).await;
    assert_eq!((status, &error["error"]["param"]), (400, &json!("Idempotency-Key")));
}

#[tokio::test]
async fn so_many_batches_may_be_unfinished_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(dir.path(), Settings { active_max: 1, ..Settings::default() }, &[]).await;
    submit(&server, &line("a", "wait")).await;
    let file_id = server.upload(&line("a", "hello")).await;
    let (status, body) = answer(server.post("/v1/batches").json(&create(&file_id))).await;
    assert_eq!((status, &body["error"]["code"]), (429, &json!("batch_limit_exceeded")));
}

#[tokio::test]
async fn a_batch_has_its_turn_and_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let file_id = server.upload(&line("a", "hello")).await;
    let order = |extra: &Value| {
        let mut body = create(&file_id);
        extra.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        body
    };
    let now = i64::try_from(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
    let (status, plain) = answer(server.post("/v1/batches").json(&create(&file_id))).await;
    assert_eq!((status, plain.get("priority"), plain.get("not_before")), (200, None, None), "as at OpenAI");
    let wished = order(&json!({"priority": -1, "not_before": now + 3600}));
    let (status, batch) = answer(server.post("/v1/batches").json(&wished)).await;
    assert_eq!((status, &batch["priority"], &batch["not_before"]), (200, &json!(-1), &json!(now + 3600)), "{batch}");
    for (extra, code, param) in [
        (json!({"priority": 0.5}), "invalid_type", "priority"),
        (json!({"not_before": "tomorrow"}), "invalid_type", "not_before"),
        (json!({"not_before": -1}), "integer_below_min_value", "not_before"),
        // Its window would be over.
        (json!({"not_before": now + 24 * 3600 + 60}), "integer_above_max_value", "not_before"),
    ] {
        let (status, body) = answer(server.post("/v1/batches").json(&order(&extra))).await;
        let error = &body["error"];
        assert_eq!((status, &error["code"], &error["param"]), (400, &json!(code), &json!(param)), "{extra}");
    }
}
