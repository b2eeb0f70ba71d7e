//! `kill -9` in the middle of a batch. The test runs itself as the process that is killed.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tandem::batch::{LineAnswer, LineExecutor, LineSize, OfflineJob, Settings, run_offline};
use tandem::openai::Endpoint;
use tandem::openai::error::ApiError;
use tandem::store::{Tenant, Tokens};

use crate::helpers::line;

const LINES: usize = 200;
const DIR: &str = "TANDEM_CRASH_TEST_DIR";

/// Notes each execution before it works on it for a while.
struct Noting {
    log: fs_err::File,
}

impl LineExecutor for Noting {
    fn knows(&self, _: &str) -> bool {
        true
    }

    async fn ready(&self) {}

    async fn execute(&self, _: &Tenant, _: Endpoint, body: &[u8]) -> Result<LineAnswer, ApiError> {
        let body: Value = serde_json::from_slice(body).unwrap();
        let content = &body["messages"][0]["content"];
        (&self.log).write_all(format!("{}\n", content.as_str().unwrap()).as_bytes()).unwrap();
        // sleep: a line takes a while, so that the kill comes in its middle
        tokio::time::sleep(Duration::from_millis(10)).await;
        let body = serde_json::value::to_raw_value(&json!({"echo": content})).unwrap();
        Ok(LineAnswer { body, tokens: Tokens::default() })
    }

    async fn measure(&self, _: Endpoint, _: &[u8]) -> Result<LineSize, ApiError> {
        Ok(LineSize::default())
    }
}

fn job(dir: &Path) -> OfflineJob {
    OfflineJob { input: dir.join("in.jsonl"), output: dir.join("out.jsonl"), errors: None }
}

/// Not a test by itself: what the other test starts and kills.
#[tokio::test]
async fn process_to_kill() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let log = fs_err::OpenOptions::new().append(true).create(true).open(dir.join("log")).unwrap();
    run_offline(&job(&dir), Noting { log }, Settings::default(), |_| {}, std::future::pending()).await.unwrap();
}

fn spawn(dir: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "crash::process_to_kill", "--nocapture"]).env(DIR, dir);
    command.spawn().unwrap()
}

fn executions(dir: &Path) -> Vec<String> {
    let log = fs_err::read_to_string(dir.join("log")).unwrap_or_default();
    log.lines().map(str::to_owned).collect()
}

#[test]
fn a_killed_process_costs_no_line_and_doubles_none() {
    let dir = tempfile::tempdir().unwrap();
    let text: String = (0..LINES).map(|index| line(&format!("line-{index}"), &format!("hello {index}"))).collect();
    fs_err::write(dir.path().join("in.jsonl"), text).unwrap();
    for kill_at in [60, 120] {
        let mut child = spawn(dir.path());
        let deadline = Instant::now() + Duration::from_secs(60);
        while executions(dir.path()).len() < kill_at {
            assert!(
                Instant::now() < deadline && child.try_wait().unwrap().is_none(),
                "it was to be killed at {kill_at}"
            );
            // sleep: between two polls, within the deadline
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!dir.path().join("out.jsonl").exists(), "killed in the middle");
    }
    assert!(spawn(dir.path()).wait().unwrap().success());
    let output = fs_err::read_to_string(dir.path().join("out.jsonl")).unwrap();
    let records: Vec<Value> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), LINES);
    for (index, record) in records.iter().enumerate() {
        assert_eq!(record["custom_id"], format!("line-{index}"));
        assert_eq!(record["response"]["body"]["echo"], format!("hello {index}"));
        assert_eq!(record["error"], Value::Null);
    }
    let executions = executions(dir.path());
    assert!(executions.len() > LINES - 1);
    assert!(executions.len() < 2 * LINES, "finished work is kept: {} executions", executions.len());
}
