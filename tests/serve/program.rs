use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use reqwest::{
    Method, RequestBuilder, Response, StatusCode,
    multipart::{Form, Part},
};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

const DEADLINE: Duration = Duration::from_secs(60);

/// `tandem` with nothing of this machine's own settings.
pub(crate) fn tandem(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tandem"));
    command.args(args).env("RUST_LOG", "error");
    for name in [
        "MODEL_NAME",
        "MODEL_REVISION",
        "STORAGE_PATH",
        "MAX_BATCH_SIZE",
        "GPU_MEMORY_UTILIZATION",
        "TENSOR_PARALLEL_SIZE",
        "TANDEM_PROFILE",
    ] {
        command.env_remove(name);
    }
    command
}

/// Runs it to its end.
pub(crate) fn run(args: &[&str]) -> (i32, String) {
    let Output { status, stderr, .. } = tandem(args).output().unwrap();
    (status.code().unwrap(), String::from_utf8(stderr).unwrap())
}

/// `tandem keys …` on a data directory; the lines that it prints.
pub(crate) fn keys(storage: &Path, args: &[&str]) -> Vec<String> {
    let output = tandem(&["keys", args[0], "--profile", "sim"]).args(&args[1..]).env("STORAGE_PATH", storage).output();
    let Output { status, stdout, stderr } = output.unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Makes a key.
pub(crate) fn new_key(storage: &Path, args: &[&str]) -> String {
    let all = [&["create"], args].concat();
    let [key] = <[String; 1]>::try_from(keys(storage, &all)).unwrap();
    key
}

/// Status and error of what was refused: its type, code and message.
pub(crate) async fn refusal(request: RequestBuilder) -> (u16, String, String, String) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    let text = |name: &str| body["error"][name].as_str().unwrap_or("-").to_owned();
    (status, text("type"), text("code"), text("message"))
}

/// A running server on a port of its own. Killed when dropped.
pub(crate) struct Program {
    child: Child,
    url: String,
    client: reqwest::Client,
}

impl Program {
    /// Starts profile `sim` on a data directory, each step taking `step_delay_ms`.
    pub(crate) async fn start(storage: &Path, step_delay_ms: u32) -> Self {
        Self::start_with(storage, &[("TANDEM__BACKEND__STEP_DELAY_MS", &step_delay_ms.to_string())]).await
    }

    /// Starts profile `sim` on a data directory, with settings from the environment.
    pub(crate) async fn start_with(storage: &Path, settings: &[(&str, &str)]) -> Self {
        Self::start_profile("sim", storage, settings).await
    }

    /// Starts a profile on a data directory, with settings from the environment.
    pub(crate) async fn start_profile(profile: &str, storage: &Path, settings: &[(&str, &str)]) -> Self {
        let program = Self::spawn(profile, storage, settings);
        program.until("/health", |_| true).await;
        program
    }

    /// The same, without waiting for more than that it listens.
    pub(crate) fn spawn(profile: &str, storage: &Path, settings: &[(&str, &str)]) -> Self {
        Self::launch(profile, storage, settings).unwrap_or_else(|line| panic!("{line:?}"))
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// A request with a key, or without one if that is empty.
    pub(crate) fn call(&self, method: Method, path: &str, key: &str) -> RequestBuilder {
        let request = self.client.request(method, self.at(path));
        if key.is_empty() { request } else { request.bearer_auth(key) }
    }

    /// Starts profile `sim`, which may be killed before it listens.
    pub(crate) async fn try_start(storage: &Path, settings: &[(&str, &str)]) -> Option<Self> {
        let program = Self::launch("sim", storage, settings).ok()?;
        let listens = async {
            while program.client.get(program.at("/health")).send().await.ok()?.status() != StatusCode::OK {
                // sleep: between two polls, within the deadline
                sleep(Duration::from_millis(5)).await;
            }
            Some(())
        };
        let listens = timeout(DEADLINE, listens).await.expect("it is never ready");
        listens.map(|()| program)
    }

    /// Waits for the line by which it says where it listens; any other is the error.
    fn launch(profile: &str, storage: &Path, settings: &[(&str, &str)]) -> Result<Self, String> {
        let mut command = tandem(&["serve", "--profile", profile, "--port", "0"]);
        command.env("STORAGE_PATH", storage).envs(settings.iter().copied());
        Self::launch_as(command)
    }

    /// The same, by a command of the caller's that becomes the server.
    pub(crate) fn launch_as(mut command: Command) -> Result<Self, String> {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let Some(url) = line.trim().strip_prefix("Tandem is listening on ") else {
            child.wait().unwrap();
            return Err(line);
        };
        Ok(Self { child, url: url.to_owned(), client: tandem::http::client().build().unwrap() })
    }

    /// What it sees under a path, where that is not what others see.
    pub(crate) fn own(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.child.id()));
        root.join(path.strip_prefix("/").unwrap())
    }

    pub(crate) fn port(&self) -> &str {
        self.url.rsplit(':').next().unwrap()
    }

    /// Bytes of memory that it has.
    pub(crate) fn memory(&self) -> usize {
        let status = fs_err::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().trim().parse::<usize>().unwrap() << 10
    }

    pub(crate) fn open_files(&self) -> usize {
        fs_err::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// As a power cut would: no handler runs.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// As a service manager would; the exit code.
    pub(crate) fn terminate(mut self) -> Option<i32> {
        // The shell's own `kill`: a program of that name is not everywhere.
        let command = format!("kill -TERM {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success());
        self.child.wait().unwrap().code()
    }

    /// How it ended by itself.
    pub(crate) fn exit_code(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> reqwest::Result<Response> {
        self.client.post(self.at(path)).json(body).send().await
    }

    /// Waits for a status. Without an answer there will be none later: the program has ended.
    pub(crate) async fn until_status(&self, path: &str, wanted: StatusCode) {
        let found = async {
            while self.client.get(self.at(path)).send().await.unwrap().status() != wanted {
                // sleep: between two polls, within the deadline
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(DEADLINE, found).await.unwrap_or_else(|_| panic!("{path} is never {wanted}"));
    }

    /// A text as soon as `look` likes it.
    pub(crate) async fn text_when(&self, path: &str, look: impl Fn(&str) -> bool) -> String {
        let found = async {
            loop {
                let response = self.client.get(self.at(path)).send().await.unwrap();
                let text = response.error_for_status().unwrap().text().await.unwrap();
                if look(&text) {
                    return text;
                }
                // sleep: between two polls, within the deadline
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(DEADLINE, found).await.unwrap_or_else(|_| panic!("{path} did not come to what is awaited"))
    }

    /// Uploads lines and makes a batch of chats of them; the batch's id.
    pub(crate) async fn submit(&self, lines: &str) -> String {
        self.submit_to("/v1/chat/completions", lines).await
    }

    /// The same for another endpoint.
    pub(crate) async fn submit_to(&self, endpoint: &str, lines: &str) -> String {
        self.try_submit_to(endpoint, lines).await.unwrap()
    }

    /// The same as [`submit`](Self::submit), with a server that may go away.
    pub(crate) async fn try_submit(&self, lines: &str) -> reqwest::Result<String> {
        self.try_submit_to("/v1/chat/completions", lines).await
    }

    async fn try_submit_to(&self, endpoint: &str, lines: &str) -> reqwest::Result<String> {
        let part = Part::text(lines.to_owned()).file_name("batch.jsonl");
        let form = Form::new().text("purpose", "batch").part("file", part);
        let file = self.client.post(self.at("/v1/files")).multipart(form).send().await?;
        let file: Value = file.error_for_status()?.json().await?;
        let batch = json!({"input_file_id": file["id"], "endpoint": endpoint, "completion_window": "24h"});
        let batch = self.client.post(self.at("/v1/batches")).json(&batch).send().await?;
        let batch: Value = batch.error_for_status()?.json().await?;
        Ok(batch["id"].as_str().unwrap().to_owned())
    }

    /// Uploads a file until that is refused; the status and the body.
    pub(crate) async fn until_refused(&self, text: &str) -> (u16, Value) {
        let refused = async {
            loop {
                let part = Part::text(text.to_owned()).file_name("batch.jsonl");
                let form = Form::new().text("purpose", "batch").part("file", part);
                let response = self.client.post(self.at("/v1/files")).multipart(form).send().await.unwrap();
                if !response.status().is_success() {
                    return (response.status().as_u16(), response.json().await.unwrap());
                }
            }
        };
        timeout(DEADLINE, refused).await.expect("no upload is refused")
    }

    /// A request to a path, not yet sent.
    pub(crate) fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, self.at(path))
    }

    /// The batch as soon as `look` likes it.
    pub(crate) async fn batch_when(&self, id: &str, look: impl Fn(&Value) -> bool) -> Value {
        self.until(&format!("/v1/batches/{id}"), look).await
    }

    /// A file's content, one JSON value a line.
    pub(crate) async fn content(&self, file: &Value) -> Vec<Value> {
        let path = format!("/v1/files/{}/content", file.as_str().unwrap());
        let text = self.client.get(self.at(&path)).send().await.unwrap().text().await.unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    async fn until(&self, path: &str, look: impl Fn(&Value) -> bool) -> Value {
        let found = async {
            loop {
                if let Ok(response) = self.client.get(self.at(path)).send().await
                    && response.status().is_success()
                {
                    let body = response.json().await.unwrap();
                    if look(&body) {
                        return body;
                    }
                }
                // sleep: between two polls, within the deadline
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(DEADLINE, found).await.unwrap_or_else(|_| panic!("{path} did not come to what is awaited"))
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Gone already, in the tests that end it themselves.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
