use super::*;
use crate::batch::{OfflineError, OfflineJob, run_offline};

fn job(dir: &Path, text: &str, errors: bool) -> OfflineJob {
    let input = dir.join("in.jsonl");
    fs_err::write(&input, text).unwrap();
    OfflineJob { input, output: dir.join("out.jsonl"), errors: errors.then(|| dir.join("err.jsonl")) }
}

fn read(path: &Path) -> Vec<Value> {
    fs_err::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn one_output_holds_every_line_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let job = job(dir.path(), &[line("a", "hello"), line("b", "refuse"), line("c", "bye")].concat(), false);
    let report = run_offline(&job, Fake::default(), Settings::default(), |_| {}, std::future::pending()).await.unwrap();
    assert_eq!((report.completed, report.failed, report.resumed), (2, 1, false));
    assert_eq!((report.input_tokens, report.output_tokens), (6, 4));
    assert_eq!(custom_ids(&read(&job.output)), ["a", "b", "c"]);
    assert!(!dir.path().join("out.jsonl.tandem").exists(), "no state is left");
}

#[tokio::test]
async fn an_interrupted_run_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let job = job(dir.path(), &(lines(40, "hello") + &line("wait", "gate") + &line("bad", "refuse")), true);
    let first = Fake::default();
    let settings = Settings { stop_grace: Duration::ZERO, ..Settings::default() };
    let waits = first.clone();
    let interrupted = eventually(async move || (waits.executions("gate") == 1).then_some(()));
    let error = run_offline(&job, first, settings.clone(), |_| {}, interrupted).await.unwrap_err();
    assert!(matches!(error, OfflineError::Interrupted));
    assert!(!job.output.exists());
    let second = Fake::default();
    second.open_gate();
    let report = run_offline(&job, second.clone(), settings, |_| {}, std::future::pending()).await.unwrap();
    assert_eq!((report.completed, report.failed, report.resumed), (41, 1, true));
    assert_eq!(second.executions("gate"), 1);
    assert!(second.state.started.load(Ordering::SeqCst) < 42, "finished lines are not run again");
    assert_eq!(read(&job.output).len(), 41);
    assert_eq!(custom_ids(&read(job.errors.as_ref().unwrap())), ["bad"]);
}

#[tokio::test]
async fn a_bad_file_is_refused_with_its_lines() {
    let dir = tempfile::tempdir().unwrap();
    let job = job(dir.path(), &(line("a", "hello") + "{\n"), false);
    let run = run_offline(&job, Fake::default(), Settings::default(), |_| {}, std::future::pending());
    let text = run.await.unwrap_err().to_string();
    assert!(text.contains("line 2: This line is not parseable as valid JSON."), "{text}");
    assert!(!job.output.exists());
}

#[tokio::test]
async fn each_line_names_its_endpoint() {
    let dir = tempfile::tempdir().unwrap();
    // As `vllm run-batch` takes them.
    let vectors = json!({"custom_id": "b", "method": "POST", "url": "/v1/embeddings",
        "body": {"model": "m1", "input": "hello", "messages": [{"content": "hello"}]}});
    let job = job(dir.path(), &(line("a", "hello") + &vectors.to_string() + "\n"), false);
    let fake = Fake::default();
    run_offline(&job, fake.clone(), Settings::default(), |_| {}, std::future::pending()).await.unwrap();
    let mut endpoints = fake.state.endpoints.lock().unwrap().clone();
    endpoints.sort_unstable();
    assert_eq!(endpoints, ["/v1/chat/completions", "/v1/embeddings"]);
    assert_eq!(custom_ids(&read(&job.output)), ["a", "b"]);
}
