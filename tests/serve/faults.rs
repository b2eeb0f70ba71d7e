//! Engines that hang, die or produce nonsense, in the program as it is shipped.

use std::time::{Duration, Instant};

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

use crate::program::{Program, tandem};

fn chat(content: &str, max_tokens: u32) -> Value {
    let messages = json!([{"role": "user", "content": content}]);
    json!({"model": "sim", "messages": messages, "temperature": 0, "max_tokens": max_tokens, "ignore_eos": true})
}

fn line(number: usize, max_tokens: u32) -> String {
    let body = chat(&format!("Question {number} of many"), max_tokens);
    let line = json!({"custom_id": number.to_string(), "method": "POST", "url": "/v1/chat/completions", "body": body});
    line.to_string() + "\n"
}

async fn ask(server: &Program, content: &str, max_tokens: u32) -> (StatusCode, Value) {
    let response: Response = server.post("/v1/chat/completions", &chat(content, max_tokens)).await.unwrap();
    (response.status(), response.json().await.unwrap())
}

#[tokio::test]
async fn a_step_that_hangs_ends_the_process_after_readiness_said_no() {
    let storage = tempfile::tempdir().unwrap();
    let settings = [("TANDEM__BACKEND__FAULTS__HANGS_AT", "5"), ("TANDEM__ENGINE__STEP_TIMEOUT_MS", "1000")];
    let server = Program::start_with(storage.path(), &settings).await;
    let begun = Instant::now();
    let body = chat("Hello", 50);
    let answer = server.post("/v1/chat/completions", &body);
    let unready = server.until_status("/health", StatusCode::SERVICE_UNAVAILABLE);
    let (answer, ()) = tokio::join!(answer, unready);
    assert!(answer.is_err(), "the process ended: {answer:?}");
    assert_eq!(server.exit_code(), Some(70));
    assert!(begun.elapsed() >= Duration::from_secs(1), "not before its time");
}

#[test]
fn a_step_that_hangs_ends_a_run_without_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    fs_err::write(&input, line(1, 50)).unwrap();
    let args = ["run-batch", "--profile", "sim", "-i", input.to_str().unwrap(), "-o", output.to_str().unwrap()];
    let mut command = tandem(&args);
    command.env("TANDEM__BACKEND__FAULTS__HANGS_AT", "5").env("TANDEM__ENGINE__STEP_TIMEOUT_MS", "1000");
    let ended = command.output().unwrap();
    let log = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(70), "{log}");
    assert!(log.contains("the engine hangs") && log.contains("sim"), "{log}");
}

#[tokio::test]
async fn a_device_that_is_lost_ends_the_process_after_requests_were_told() {
    let storage = tempfile::tempdir().unwrap();
    let settings = [
        ("TANDEM__BACKEND__FAULTS__DEVICE_LOST_AT", "50"),
        ("TANDEM__BACKEND__STEP_DELAY_MS", "20"),
        ("TANDEM__ENGINE__STEP_TIMEOUT_MS", "0"),
    ];
    let server = Program::start_with(storage.path(), &settings).await;
    let batch = server.submit(&(0..4).map(|number| line(number, 200)).collect::<String>()).await;
    let (status, body) = ask(&server, "One", 200).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (StatusCode::SERVICE_UNAVAILABLE, &json!("engine_unavailable")),
        "{body}"
    );
    let begun = Instant::now();
    assert_eq!(server.exit_code(), Some(70));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());

    // The batch goes on in the next process.
    let server = Program::start(storage.path(), 0).await;
    let batch = server.batch_when(&batch, |batch| batch["status"] == "completed").await;
    assert_eq!(batch["request_counts"], json!({"total": 4, "completed": 4, "failed": 0}));
}

/// Requests in flight are told to come again, and the next is served by the engine that follows.
#[tokio::test]
async fn an_engine_that_dies_is_followed_by_another() {
    for fault in ["TANDEM__BACKEND__FAULTS__PANICS_AT", "TANDEM__BACKEND__FAULTS__DEVICE_FAILS_AT"] {
        let storage = tempfile::tempdir().unwrap();
        let server = Program::start_with(storage.path(), &[(fault, "20")]).await;
        let in_flight = tokio::join!(ask(&server, "One", 100), ask(&server, "Two", 100));
        let both = [in_flight.0, in_flight.1];
        assert!(both.iter().all(|(status, _)| *status == StatusCode::SERVICE_UNAVAILABLE), "{fault}: {both:?}");
        let codes = both.map(|(_, body)| body["error"]["code"].as_str().unwrap().to_owned());
        assert!(codes.iter().any(|code| code == "engine_unavailable"), "{fault}: {codes:?}");
        // One of them may have come when it was over already.
        let known = |code: &String| code == "engine_unavailable" || code == "model_unavailable";
        assert!(codes.iter().all(known), "{fault}: {codes:?}");
        server.until_status("/health", StatusCode::OK).await;
        let (status, body) = ask(&server, "Three", 4).await;
        assert_eq!((status, &body["usage"]["completion_tokens"]), (StatusCode::OK, &json!(4)), "{fault}: {body}");
    }
}

#[tokio::test]
async fn a_batch_goes_on_behind_an_engine_that_dies() {
    const LINES: usize = 32;
    let storage = tempfile::tempdir().unwrap();
    // Four groups of eight lines are more passes than one engine lives, and what is left is fewer.
    let server = Program::start_with(storage.path(), &[("TANDEM__BACKEND__FAULTS__PANICS_AT", "40")]).await;
    let id = server.submit(&(0..LINES).map(|number| line(number, 12)).collect::<String>()).await;
    let batch = server.batch_when(&id, |batch| batch["status"] == "completed").await;
    assert_eq!(batch["request_counts"], json!({"total": LINES, "completed": LINES, "failed": 0}));
    let records = server.content(&batch["output_file_id"]).await;
    let mut numbers: Vec<usize> =
        records.iter().map(|record| record["custom_id"].as_str().unwrap().parse().unwrap()).collect();
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(0..LINES), "each line once");
    for record in &records {
        assert_eq!(record["response"]["body"]["usage"]["completion_tokens"], 12, "{record}");
    }
}

#[tokio::test]
async fn a_row_that_is_not_numbers_fails_its_own_request_alone() {
    let storage = tempfile::tempdir().unwrap();
    // Of the 120 rows that four requests want, the hundredth is bad, whoever's it is.
    let server = Program::start_with(storage.path(), &[("TANDEM__BACKEND__FAULTS__NAN_EVERY", "100")]).await;
    let asked = ["One", "Two", "Three", "Four"].map(|content| ask(&server, content, 30));
    let answers = futures_util::future::join_all(asked).await;
    let (good, bad): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(status, _)| status.is_success());
    assert_eq!(good.len(), 3, "{bad:?}");
    assert!(good.iter().all(|(_, body)| body["usage"]["completion_tokens"] == 30));
    let (status, body) = &bad[0];
    assert_eq!((status.as_u16(), &body["error"]["code"]), (500, &json!("non_finite_logits")), "{body}");
    server.until_status("/health", StatusCode::OK).await;
}

#[tokio::test]
async fn developers_see_what_runs_and_others_do_not() {
    let storage = tempfile::tempdir().unwrap();
    let server = Program::start(storage.path(), 20).await;
    let mut body = chat("A secret of mine", 2000);
    body["stream"] = true.into();
    let stream = server.post("/v1/chat/completions", &body).await.unwrap();
    let text = server.text_when("/debug/engine", |text| text.contains("(interactive) in slot")).await;
    assert!(text.starts_with("model sim\n") && text.contains("1 running"), "{text}");
    assert!(!text.contains("secret"), "{text}");
    drop(stream);
    server.text_when("/debug/engine", |text| text.contains("0 running")).await;
    drop(server);

    let server = Program::start_with(storage.path(), &[("TANDEM__SERVER__DEBUG", "false")]).await;
    server.until_status("/debug/engine", StatusCode::NOT_FOUND).await;
}
