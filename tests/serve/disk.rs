//! A disk that is full, or that fails.

use std::{io::Write as _, net::TcpStream, path::Path, process::Command};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::program::{Program, tandem};

const LINES: u64 = 300;

fn lines() -> String {
    let line = |number| {
        let messages = json!([{"role": "user", "content": format!("Question {number} of many")}]);
        let body =
            json!({"model": "sim", "messages": messages, "temperature": 0, "max_tokens": 64, "ignore_eos": true});
        json!({"custom_id": format!("line-{number}"), "method": "POST", "url": "/v1/chat/completions", "body": body})
    };
    (1..=LINES).map(|number| line(number).to_string() + "\n").collect()
}

fn completed(batch: &Value) -> u64 {
    batch["request_counts"]["completed"].as_u64().unwrap()
}

/// Every line once.
async fn is_whole(server: &Program, batch: &Value) {
    assert_eq!((batch["status"].as_str(), completed(batch)), (Some("completed"), LINES));
    let records = server.content(&batch["output_file_id"]).await;
    let mut ids: Vec<_> = records.iter().map(|record| record["custom_id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len() as u64, LINES);
}

/// The server on a disk of its own, which nobody else sees.
fn on_a_disk(dir: &Path, options: &str) -> Program {
    let mount = format!("mount -t tmpfs -o {options} none '{}' && exec \"$0\" \"$@\"", dir.display());
    let server = tandem(&["serve", "--profile", "sim", "--port", "0"]);
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", &mount]).arg(server.get_program()).args(server.get_args());
    // The log says again and again that the disk is full.
    command.env("RUST_LOG", "off").env("STORAGE_PATH", dir).env("TANDEM__BACKEND__STEP_DELAY_MS", "2");
    // This disk is smaller than what is left free of others.
    command.env("TANDEM__STORAGE__MIN_FREE_BYTES", "0");
    Program::launch_as(command).unwrap()
}

#[tokio::test]
async fn a_full_disk_costs_nothing_but_time() {
    let dir = TempDir::new().unwrap();
    let server = on_a_disk(dir.path(), "size=8m");
    let id = server.submit(&lines()).await;
    let before = server.batch_when(&id, |batch| completed(batch) >= 20).await;
    let filler = server.own(&dir.path().join("filler"));
    let full = fill(&filler);
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    // What cannot be kept is refused. There may still be room in pages that the database had before.
    let refused = server.until_refused(&lines().repeat(20)).await;
    assert_eq!((refused.0, refused.1["error"]["code"].as_str()), (507, Some("insufficient_storage")));
    let during = server.batch_when(&id, |_| true).await;
    assert_eq!(
        (during["status"].as_str(), during["request_counts"]["failed"].as_u64()),
        (Some("in_progress"), Some(0))
    );
    assert!(completed(&during) >= completed(&before) && completed(&during) < LINES, "{during}");
    fs_err::remove_file(&filler).unwrap();
    let after = server.batch_when(&id, |batch| batch["status"] == "completed").await;
    is_whole(&server, &after).await;
}

/// A disk with room for bytes and none for names: what is taken is kept, and as soon as there is a name there is room.
#[tokio::test]
async fn a_disk_without_a_name_left_is_a_full_disk() {
    let dir = TempDir::new().unwrap();
    let server = on_a_disk(dir.path(), "size=64m,nr_inodes=40");
    let id = server.submit(&lines()).await;
    let refused = server.until_refused("{}\n").await;
    assert_eq!((refused.0, refused.1["error"]["code"].as_str()), (507, Some("insufficient_storage")));
    let list: Value = server.request(Method::GET, "/v1/files").send().await.unwrap().json().await.unwrap();
    let files = list["data"].as_array().unwrap();
    assert!(files.len() > 4, "{list}");
    for file in files {
        let path = format!("/v1/files/{}", file["id"].as_str().unwrap());
        assert_eq!(server.request(Method::DELETE, &path).send().await.unwrap().status(), 200);
    }
    // Its output waited for a name.
    let after = server.batch_when(&id, |batch| batch["status"] == "completed").await;
    is_whole(&server, &after).await;
}

/// Connections that take all files that the process may open: who has one is told to try again, and nothing is lost.
#[tokio::test]
async fn a_process_that_can_open_no_file_goes_on_when_it_can() {
    const FILES: usize = 64;
    let dir = TempDir::new().unwrap();
    let server = tandem(&["serve", "--profile", "sim", "--port", "0"]);
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {FILES} && exec \"$0\" \"$@\"")]).arg(server.get_program());
    command.args(server.get_args()).env("RUST_LOG", "off").env("STORAGE_PATH", dir.path());
    let server = Program::launch_as(command).unwrap();
    server.until_status("/health", StatusCode::OK).await;
    let address = server.url().strip_prefix("http://").unwrap();
    let mut idle: Vec<TcpStream> = Vec::new();
    while server.open_files() < FILES {
        idle.push(TcpStream::connect(address).unwrap());
        // sleep: the server has to take it, which its open files tell
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        assert!(idle.len() < 2 * FILES, "{} files are open", server.open_files());
    }
    // The client has kept its connection.
    let (status, error) = server.until_refused("{}\n").await;
    assert_eq!((status, error["error"]["code"].as_str()), (503, Some("overloaded")));
    drop(idle);
    let id = server.submit(&lines()).await;
    let after = server.batch_when(&id, |batch| batch["status"] == "completed").await;
    is_whole(&server, &after).await;
}

/// A sync that fails is not tried again: what it was to keep may be gone, and the next one would not say so.
#[tokio::test]
async fn a_sync_that_fails_ends_the_process_and_loses_nothing() {
    let dir = TempDir::new().unwrap();
    let server = tandem(&["serve", "--profile", "sim", "--port", "0"]);
    let mut command = Command::new("strace");
    // The start takes about twenty, and every few lines two.
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync"]);
    command.args(["-e", "inject=fsync,fdatasync:error=EIO:when=60+"]).arg(server.get_program()).args(server.get_args());
    command.env("RUST_LOG", "off").env("STORAGE_PATH", dir.path()).env("TANDEM__BACKEND__STEP_DELAY_MS", "2");
    let failing = Program::launch_as(command).unwrap();
    let id = failing.submit(&lines()).await;
    let mut acknowledged = 0;
    while let Ok(answer) = failing.request(Method::GET, &format!("/v1/batches/{id}")).send().await {
        let Ok(batch) = answer.json::<Value>().await else { break };
        acknowledged = completed(&batch);
    }
    assert_eq!(failing.exit_code(), Some(74));
    assert!((1..LINES).contains(&acknowledged), "{acknowledged} lines before the disk failed");
    let server = Program::start(dir.path(), 0).await;
    let first = server.batch_when(&id, |_| true).await;
    assert!(completed(&first) >= acknowledged, "{acknowledged} lines were acknowledged: {first}");
    let end = server.batch_when(&id, |batch| batch["status"] == "completed").await;
    is_whole(&server, &end).await;
}

/// Writes a file until no byte more can be written; the error that says so.
fn fill(path: &Path) -> std::io::Error {
    let mut file = fs_err::File::create(path).unwrap();
    let mut size = 1 << 16;
    loop {
        match file.write_all(&vec![0; size]) {
            Ok(()) => {}
            Err(_) if size > 1 => size /= 2,
            Err(error) => return error,
        }
    }
}
