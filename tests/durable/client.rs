use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use tandem::batch::Settings;

use crate::helpers::{Server, answer, line};

/// `tandem batch`, as a client of this server.
async fn batch(url: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tandem"));
    command.arg("batch").args(args).env("OPENAI_BASE_URL", format!("{url}/v1")).env("OPENAI_API_KEY", "sk-secret");
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// What it prints, after it has ended with this code.
async fn prints(code: i32, url: &str, args: &[&str]) -> String {
    let Output { status, stdout, stderr } = batch(url, args).await;
    let stderr = String::from_utf8(stderr).unwrap();
    assert!(!stderr.contains("sk-secret"));
    assert_eq!(status.code(), Some(code), "{args:?}: {stderr}");
    String::from_utf8(stdout).unwrap().trim_end().to_owned()
}

fn write(dir: &Path, text: &str) -> String {
    let path = dir.join("in.jsonl");
    fs_err::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn custom_ids(records: &str) -> Vec<String> {
    let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["custom_id"].as_str().unwrap().to_owned();
    let mut ids: Vec<_> = records.lines().map(id).collect();
    ids.sort();
    ids
}

/// Goes through all commands with a server that has these routes or has not.
async fn goes_through(lacking: &'static [&'static str]) {
    let (dir, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start_with(dir.path(), Settings::default(), lacking).await;
    let url = server.url.as_str();
    let file = write(files.path(), &(line("a", "hello") + &line("b", "refuse") + &line("c", "hello")));
    let id = prints(0, url, &["submit", &file, "--metadata", "run=7"]).await;
    assert!(id.starts_with("batch_"), "{id}");
    // One line fails, and says so in the exit code.
    let followed = prints(1, url, &["results", &id, "--follow"]).await;
    assert_eq!(custom_ids(&followed), ["a", "b", "c"]);
    let watched = prints(1, url, &["watch", &id]).await;
    assert!(watched.starts_with(&format!("{id}: completed, 3 of 3 lines, 1 failed")), "{watched}");
    let shown: Value = serde_json::from_str(&prints(0, url, &["show", &id, "--json"]).await).unwrap();
    assert_eq!((&shown["id"], &shown["metadata"]), (&json!(id), &json!({"run": "7"})));
    assert_eq!(custom_ids(&prints(0, url, &["results", &id]).await), ["a", "b", "c"]);
    assert_eq!(custom_ids(&prints(0, url, &["results", &id, "--status", "failed"]).await), ["b"]);
    let out = files.path().join("out.jsonl");
    prints(0, url, &["results", &id, "--status", "completed", "-o", out.to_str().unwrap()]).await;
    assert_eq!(custom_ids(&fs_err::read_to_string(out).unwrap()), ["a", "c"]);
    prints(1, url, &["cancel", &id]).await;
    let again = prints(0, url, &["retry", &id]).await;
    let again = server.batch_when(&json!(again), |batch| batch["status"] == "completed").await;
    assert_eq!(again["metadata"], json!({"run": "7", "retry_of": id}));
    assert_eq!(server.content(&again["input_file_id"]).await, line("b", "refuse"));
    let well = write(files.path(), &line("a", "hello"));
    let well: Vec<_> = prints(0, url, &["submit", &well, "--watch"]).await.lines().map(str::to_owned).collect();
    assert!(well[1].starts_with(&format!("{}: completed, 1 of 1 lines", well[0])), "{well:?}");
    prints(1, url, &["retry", &well[0]]).await;
    let listed = prints(0, url, &["list", "--limit", "2"]).await;
    let expected = [well[0].as_str(), again["id"].as_str().unwrap()];
    assert_eq!(listed.lines().map(|line| line.split(':').next().unwrap()).collect::<Vec<_>>(), expected);
    let listed: Value = serde_json::from_str(&prints(0, url, &["list", "--json"]).await).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn our_own_server_is_steered_from_the_command_line() {
    goes_through(&[]).await;
}

#[tokio::test]
async fn a_server_with_openais_routes_alone_is_too() {
    goes_through(&["/results", "/retry", "/estimate", "/pause", "/resume"]).await;
}

#[tokio::test]
async fn a_file_is_estimated_from_the_command_line() {
    let (dir, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(dir.path()).await;
    let url = server.url.as_str();
    let file = write(files.path(), &(line("a", "hello") + &line("b", "hello")));
    let told = prints(0, url, &["estimate", &file]).await;
    assert!(
        told.starts_with("2 requests, 0 invalid: 10 input tokens, at most 40 output tokens, ? expected, ? s"),
        "{told}"
    );
    assert_eq!(answer(server.get("/v1/files")).await.1["data"], json!([]), "it is not kept");
    let file_id = server.upload(&(line("a", "hello") + &line("b", "refuse"))).await;
    let told: Value = serde_json::from_str(&prints(1, url, &["estimate", &file_id, "--json"]).await).unwrap();
    assert_eq!(told["invalid_requests"], 1);
    let plain = tempfile::tempdir().unwrap();
    let plain = Server::start_with(plain.path(), Settings::default(), &["/estimate"]).await;
    prints(69, &plain.url, &["estimate", &file]).await;
}

#[tokio::test]
async fn a_command_that_fails_says_how() {
    let (dir, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start_with(dir.path(), Settings::default(), &["/results"]).await;
    let url = server.url.as_str();
    prints(1, url, &["show", "batch_x"]).await;
    prints(2, url, &["show", "../files"]).await;
    prints(2, url, &["submit", "-"]).await;
    prints(2, url, &["steer", "batch_x"]).await;
    prints(66, url, &["submit", "no-such-file.jsonl"]).await;
    let bad = write(files.path(), "not json\n");
    prints(65, url, &["submit", &bad]).await;
    let waits = write(files.path(), &line("a", "wait"));
    let id = prints(0, url, &["submit", &waits]).await;
    prints(75, url, &["results", &id]).await;
    // Nobody listens on the port of a listener that is gone.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    prints(69, &format!("http://127.0.0.1:{port}"), &["show", "batch_x"]).await;
    prints(78, "nonsense", &["list"]).await;
}
