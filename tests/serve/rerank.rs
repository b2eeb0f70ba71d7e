//! Reranking by the program itself, in a batch of the server.

use serde_json::{Value, json};

use crate::program::Program;

#[tokio::test]
async fn a_line_has_the_scores_of_an_online_request() {
    let storage = tempfile::tempdir().unwrap();
    let server = Program::start_with(storage.path(), &[("TANDEM__MODELS__SIM__TASK", "rank")]).await;
    let body = json!({"model": "sim", "query": "a panda", "documents": ["no", "a bear", "a panda"], "request_id": "r"});
    let online = server.post("/v1/rerank", &body).await.unwrap();
    let online: Value = online.error_for_status().unwrap().json().await.unwrap();
    assert_eq!(online["results"][0]["index"], 2);

    let line = |custom_id: &str, body: &Value| {
        json!({"custom_id": custom_id, "method": "POST", "url": "/v1/rerank", "body": body}).to_string() + "\n"
    };
    let long = json!({"model": "sim", "query": "a", "documents": ["b", "x".repeat(9_000)]});
    let id = server.submit_to("/v1/rerank", &(line("good", &body) + &line("bad", &long))).await;
    let batch = server.batch_when(&id, |batch| batch["status"] == "completed").await;
    assert_eq!(batch["request_counts"], json!({"total": 2, "completed": 1, "failed": 1}));
    assert_eq!(batch["usage"]["input_tokens"], online["usage"]["total_tokens"]);
    let output = server.content(&batch["output_file_id"]).await;
    assert_eq!(output[0]["response"]["body"], online);
    let errors = server.content(&batch["error_file_id"]).await;
    let error = &errors[0]["response"]["body"]["error"];
    assert_eq!((&error["code"], &error["param"]), (&json!("context_length_exceeded"), &json!("documents[1]")));
}
