//! A batch outlives its server.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::program::Program;

const LINES: usize = 200;
/// Slow enough that a kill comes in the middle even when the machine that tests is busy.
const STEP_MS: u32 = 10;

fn lines() -> String {
    let line = |i| {
        let messages = json!([{"role": "user", "content": format!("Question {i} of many")}]);
        let body = json!({"model": "sim", "messages": messages, "temperature": 0, "max_tokens": 24});
        json!({"custom_id": format!("line-{i}"), "method": "POST", "url": "/v1/chat/completions", "body": body})
    };
    (0..LINES).map(|i| line(i).to_string() + "\n").collect()
}

fn counts(batch: &Value) -> (u64, u64, u64) {
    let count = |name: &str| batch["request_counts"][name].as_u64().unwrap();
    (count("total"), count("completed"), count("failed"))
}

/// What each line was answered, by `custom_id`; each must be there once.
async fn answers(server: &Program, id: &str) -> BTreeMap<String, String> {
    let batch = server.batch_when(id, |batch| batch["status"] == "completed").await;
    assert_eq!(counts(&batch), (LINES as u64, LINES as u64, 0));
    assert_eq!(batch["error_file_id"], Value::Null);
    let records = server.content(&batch["output_file_id"]).await;
    assert_eq!(records.len(), LINES);
    let answer = |record: &Value| {
        let message = &record["response"]["body"]["choices"][0]["message"]["content"];
        (record["custom_id"].as_str().unwrap().to_owned(), message.as_str().unwrap().to_owned())
    };
    let answers: BTreeMap<_, _> = records.iter().map(answer).collect();
    assert_eq!(answers.len(), LINES, "each line once");
    answers
}

#[tokio::test]
async fn a_server_killed_twice_in_a_batch_answers_every_line_once() {
    let undisturbed = tempfile::tempdir().unwrap();
    let server = Program::start(undisturbed.path(), 0).await;
    let id = server.submit(&lines()).await;
    let expected = answers(&server, &id).await;
    drop(server);

    let storage = tempfile::tempdir().unwrap();
    let server = Program::start(storage.path(), STEP_MS).await;
    let id = server.submit(&lines()).await;
    server.batch_when(&id, |batch| counts(batch).1 >= 30).await;
    server.kill();
    let server = Program::start(storage.path(), STEP_MS).await;
    let resumed = server.batch_when(&id, |batch| counts(batch).1 >= 90).await;
    assert_eq!(resumed["status"], "in_progress", "the second kill comes in the middle too");
    server.kill();
    let server = Program::start(storage.path(), 0).await;
    assert_eq!(answers(&server, &id).await, expected);
}

#[tokio::test]
async fn a_server_told_to_stop_ends_well_and_goes_on_later() {
    let storage = tempfile::tempdir().unwrap();
    let server = Program::start(storage.path(), STEP_MS).await;
    let id = server.submit(&lines()).await;
    server.batch_when(&id, |batch| counts(batch).1 >= 20).await;
    assert_eq!(server.terminate(), Some(0));
    let server = Program::start(storage.path(), 0).await;
    answers(&server, &id).await;
}
