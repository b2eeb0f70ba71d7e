//! Embeddings of the program itself: in a batch of the server, and without one.

use serde_json::{Value, json};

use crate::program::{Program, tandem};

const EMBEDS: (&str, &str) = ("TANDEM__MODELS__SIM__TASK", "embed");

fn line(custom_id: &str, input: &Value) -> String {
    let body = json!({"model": "sim", "input": input});
    json!({"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body}).to_string() + "\n"
}

#[tokio::test]
async fn a_line_has_the_vector_of_an_online_request() {
    let storage = tempfile::tempdir().unwrap();
    let server = Program::start_with(storage.path(), &[EMBEDS]).await;
    let online = server.post("/v1/embeddings", &json!({"model": "sim", "input": ["a", "b"]})).await.unwrap();
    let online: Value = online.error_for_status().unwrap().json().await.unwrap();

    let lines = line("good", &json!(["a", "b"])) + &line("bad", &json!("x".repeat(9_000))) + &line("same", &json!("a"));
    let id = server.submit_to("/v1/embeddings", &lines).await;
    let batch = server.batch_when(&id, |batch| batch["status"] == "completed").await;
    assert_eq!(batch["request_counts"], json!({"total": 3, "completed": 2, "failed": 1}));
    assert_eq!((&batch["usage"]["input_tokens"], &batch["usage"]["output_tokens"]), (&json!(9), &json!(0)));
    let output = server.content(&batch["output_file_id"]).await;
    assert_eq!(output[0]["response"]["body"], online);
    assert_eq!(output[1]["response"]["body"]["data"][0], online["data"][0]);
    let errors = server.content(&batch["error_file_id"]).await;
    assert_eq!(errors[0]["response"]["body"]["error"]["code"], "context_length_exceeded");
}

#[test]
fn a_file_is_answered_without_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    let lines = (0..20).map(|at| line(&format!("{at}"), &json!(format!("text {at}"))));
    fs_err::write(&input, lines.collect::<String>()).unwrap();
    let args = ["run-batch", "--profile", "sim", "-i", input.to_str().unwrap(), "-o", output.to_str().unwrap()];
    let ended = tandem(&args).env(EMBEDS.0, EMBEDS.1).output().unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", String::from_utf8_lossy(&ended.stderr));
    let text = fs_err::read_to_string(&output).unwrap();
    let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), 20);
    assert!(records.iter().all(|record| record["response"]["body"]["data"][0]["embedding"].is_array()));
}
