//! A server that is killed at every place where something could be lost.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};
use tandem::failpoint::FAILPOINTS;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use crate::{check::History, program::Program};

const DEADLINE: Duration = Duration::from_secs(60);
const LINES: u64 = 40;
/// One of them asks for what no model does.
const REFUSED: u64 = 7;
/// Twice `parallel` of profile `sim`, and the answers that may wait to be written: this simulated model is faster than the disk.
const IN_FLIGHT: usize = 16 + 256;

/// What a client does with a server that may be killed while it does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    Finish,
    /// Cancels when some lines are answered.
    Cancel,
    /// Deletes the input when the batch has ended.
    Delete,
}

/// A client that goes on where it was, whatever became of the server.
pub(crate) struct Client {
    plan: Plan,
    storage: PathBuf,
    pub(crate) file: Option<String>,
    pub(crate) batch: Option<String>,
    cancelled: bool,
    deleted: bool,
    pub(crate) history: History,
}

/// The server has gone away.
#[derive(Debug)]
pub(crate) struct Gone;

impl From<reqwest::Error> for Gone {
    fn from(_: reqwest::Error) -> Self {
        Self
    }
}

fn body(number: u64) -> Value {
    let messages = json!([{"role": "user", "content": format!("Question {number} of many")}]);
    let temperature = if number == REFUSED { 9 } else { 0 };
    json!({"model": "sim", "messages": messages, "temperature": temperature, "max_tokens": 8})
}

fn input() -> String {
    let line = |number: u64| {
        let id = format!("line-{number}");
        json!({"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body(number)}).to_string()
    };
    (1..=LINES).map(|number| line(number) + "\n").collect()
}

impl Client {
    pub(crate) fn new(plan: Plan, storage: &Path) -> Self {
        let lines = (1..=LINES).map(|number| (number, format!("line-{number}"))).collect();
        let history = History { lines, in_flight: IN_FLIGHT, ..History::default() };
        Self { plan, storage: storage.to_owned(), file: None, batch: None, cancelled: false, deleted: false, history }
    }

    /// Goes on until everything is done.
    pub(crate) async fn work(&mut self, server: &Program) -> Result<(), Gone> {
        let file = match &self.file {
            Some(file) => file.clone(),
            None => {
                let part = Part::text(input()).file_name("batch.jsonl");
                let form = Form::new().text("purpose", "batch").part("file", part);
                let file = answer(server.request(reqwest::Method::POST, "/v1/files").multipart(form)).await?;
                self.file.insert(file["id"].as_str().unwrap().to_owned()).clone()
            }
        };
        let batch = match &self.batch {
            Some(batch) => batch.clone(),
            None => {
                let new =
                    json!({"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"});
                // The same key each time: the answer may be lost where the batch is not.
                let request = server.request(reqwest::Method::POST, "/v1/batches").header("idempotency-key", &file);
                let batch = answer(request.json(&new)).await?;
                self.batch.insert(batch["id"].as_str().unwrap().to_owned()).clone()
            }
        };
        loop {
            let seen = answer(server.request(reqwest::Method::GET, &format!("/v1/batches/{batch}"))).await?;
            let some_done = seen["request_counts"]["completed"].as_u64().unwrap() >= 8;
            let has_ended = ["completed", "failed", "cancelled"].iter().any(|status| seen["status"] == *status);
            self.history.seen.push(seen);
            if has_ended {
                break;
            }
            if self.plan == Plan::Cancel && some_done && !self.cancelled {
                let path = format!("/v1/batches/{batch}/cancel");
                let outcome = server.request(reqwest::Method::POST, &path).send().await?;
                self.cancelled = outcome.status().is_success();
            }
            // sleep: between two polls; the deadline is the caller's
            sleep(Duration::from_millis(2)).await;
        }
        if self.plan == Plan::Delete && !self.deleted {
            let deleted = server.request(reqwest::Method::DELETE, &format!("/v1/files/{file}")).send().await?;
            self.deleted = deleted.status().is_success() || deleted.status().as_u16() == 404;
        }
        self.is_purged(server).await
    }

    /// Waits until the rows of the batch are gone too, which no route shows: the database of a running server is only read.
    async fn is_purged(&self, server: &Program) -> Result<(), Gone> {
        // What follows the end of a batch is quick, and a batch after it is run when it is over.
        let id = server.try_submit(&input().replace("line-", "after-")).await.map_err(|_| Gone)?;
        ended(server, &id).await.map(drop)
    }

    /// Everything that is left to see, from a server that is not killed any more.
    pub(crate) async fn conclude(&mut self, server: &Program) {
        timeout(DEADLINE, self.work(server)).await.expect("the batch never ends").unwrap();
        for number in 1..=LINES {
            let expected = if number == REFUSED { None } else { Some(online(server, &body(number)).await) };
            self.history.expected.insert(format!("line-{number}"), expected);
        }
        let end = self.history.seen.last().unwrap().clone();
        let [output, errors] = ["output_file_id", "error_file_id"].map(|name| end[name].as_str().map(str::to_owned));
        (self.history.output, self.history.errors) = (text(server, &output).await, text(server, &errors).await);
        self.history.again = [text(server, &output).await, text(server, &errors).await];
    }

    /// Waits until all that is on disk has a name. Batches that were begun to see the end of another may still be running.
    pub(crate) async fn is_clean(&self, server: &Program, place: &str) {
        let mut litter = Vec::new();
        let clean = async {
            loop {
                litter = self.litter(server).await;
                if litter.is_empty() {
                    return;
                }
                // sleep: between two looks, within the deadline
                sleep(Duration::from_millis(5)).await;
            }
        };
        let is_clean = timeout(DEADLINE, clean).await.is_ok();
        assert!(is_clean, "{place}: {litter:#?}");
    }

    /// Files on disk that nothing names.
    async fn litter(&self, server: &Program) -> Vec<String> {
        let files = answer(server.request(reqwest::Method::GET, "/v1/files")).await.unwrap();
        let listed = files["data"].as_array().unwrap().len();
        // Each batch has an index beside its files, and keeps its input for as long as failed lines may be run again.
        let batches = answer(server.request(reqwest::Method::GET, "/v1/batches?limit=100")).await.unwrap();
        let indexes = batches["data"].as_array().unwrap().len();
        let named = listed + indexes + usize::from(self.deleted);
        let blobs = files_under(&self.storage.join("blobs"));
        let mut litter = files_under(&self.storage.join("tmp"));
        if blobs.len() != named {
            litter.push(format!("{} blobs, {named} of them named", blobs.len()));
        }
        litter
    }
}

fn files_under(dir: &Path) -> Vec<String> {
    let entries = fs_err::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_under(&path) } else { vec![path.display().to_string()] }).collect()
}

async fn answer(request: reqwest::RequestBuilder) -> Result<Value, Gone> {
    let response = request.send().await?;
    let status = response.status();
    let body: Value = response.json().await?;
    assert!(status.is_success(), "{status}: {body}");
    Ok(body)
}

async fn online(server: &Program, body: &Value) -> String {
    let answer: Value = server.post("/v1/chat/completions", body).await.unwrap().json().await.unwrap();
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

async fn text(server: &Program, file: &Option<String>) -> Option<String> {
    let path = format!("/v1/files/{}/content", file.as_ref()?);
    Some(server.request(reqwest::Method::GET, &path).send().await.unwrap().text().await.unwrap())
}

/// Starts a server that is killed at a place, the `skip`th time that it comes by, and has the client work until then. Whether it was
/// killed: it may never come by again.
async fn until_killed(client: &mut Client, place: &str, skip: usize) -> bool {
    let failpoints = format!("{place}={skip}*off->return");
    let settings = [("FAILPOINTS", failpoints.as_str())];
    let Some(server) = Program::try_start(&client.storage, &settings).await else {
        client.history.kills += 1;
        return true;
    };
    let done = timeout(DEADLINE, client.work(&server)).await.unwrap_or_else(|_| panic!("{place} hangs"));
    if done.is_ok() {
        return false;
    }
    assert_eq!(server.exit_code(), None, "{place}: it ended, and was not killed");
    client.history.kills += 1;
    true
}

/// Kills a server at a place, twice, and looks at what is left. How often it was killed.
async fn kill_at(place: &str, skips: [usize; 2]) -> usize {
    let storage = TempDir::new().unwrap();
    let plan = match place {
        "cancel.marked" => Plan::Cancel,
        "file.deleted" => Plan::Delete,
        _ => Plan::Finish,
    };
    let mut client = Client::new(plan, storage.path());
    // A client cancels and deletes once.
    let skips = if plan == Plan::Finish { skips } else { [0; 2] };
    for skip in skips {
        until_killed(&mut client, place, skip).await;
    }
    let server = Program::start(storage.path(), 0).await;
    client.conclude(&server).await;
    assert_eq!(client.history.violations(), Vec::<String>::new(), "{place} {skips:?}");
    client.is_clean(&server, place).await;
    client.history.kills
}

/// Every place in turn, beginning with the first of each `step`; the kills at each.
async fn kill_at_every(first: usize, step: usize, skips: [usize; 2]) -> BTreeMap<&'static str, usize> {
    let mut kills = BTreeMap::new();
    for place in FAILPOINTS.iter().skip(first).step_by(step) {
        let here = kill_at(place, skips).await;
        assert!(here > 0 || skips[0] > 0, "{place} is never reached");
        kills.insert(*place, here);
    }
    kills
}

/// A line that ends the process each time costs three of them, and no other line anything.
#[tokio::test]
async fn a_poisonous_line_is_found_among_a_thousand() {
    const LINES: u64 = 1000;
    const POISON: &str = "line-500";
    let storage = TempDir::new().unwrap();
    let settings = [("FAILPOINTS", "line.poison.line-500=return")];
    let line = |number: u64| {
        let id = format!("line-{number}");
        json!({"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body(number)}).to_string()
    };
    let text: String = (1..=LINES).filter(|number| *number != REFUSED).map(|number| line(number) + "\n").collect();
    let server = Program::start_with(storage.path(), &settings).await;
    let id = server.submit(&text).await;
    assert_eq!(server.exit_code(), None);
    let mut deaths = 1;
    let batch = loop {
        let Some(server) = Program::try_start(storage.path(), &settings).await else {
            deaths += 1;
            continue;
        };
        match ended(&server, &id).await {
            Ok(batch) => break (batch, server),
            Err(Gone) => deaths += 1,
        }
    };
    let (batch, server) = batch;
    assert_eq!(deaths, 3);
    let counts = json!({"total": LINES - 1, "completed": LINES - 2, "failed": 1});
    assert_eq!(batch["request_counts"], counts);
    let errors = server.content(&batch["error_file_id"]).await;
    assert_eq!((&errors[0]["custom_id"], &errors[0]["error"]["code"]), (&json!(POISON), &json!("engine_crash")));
    assert_eq!(server.content(&batch["output_file_id"]).await.len() as u64, LINES - 2);
}

/// A batch as soon as it has ended.
async fn ended(server: &Program, id: &str) -> Result<Value, Gone> {
    loop {
        let batch = answer(server.request(reqwest::Method::GET, &format!("/v1/batches/{id}"))).await?;
        if ["completed", "failed", "cancelled"].iter().any(|status| batch["status"] == *status) {
            return Ok(batch);
        }
        // sleep: between two polls, within the time of the test
        sleep(Duration::from_millis(2)).await;
    }
}

// In parts, so that they run beside one another. Together more than fifty kills.
const PARTS: usize = 4;

async fn part(number: usize) {
    let [twice, late] = [kill_at_every(number, PARTS, [0, 0]).await, kill_at_every(number, PARTS, [1, 0]).await];
    let kills: usize = twice.values().chain(late.values()).sum();
    assert!(kills * PARTS > 50, "{kills} kills: {twice:?} {late:?}");
}

#[tokio::test]
async fn nothing_is_lost_wherever_it_is_killed_1() {
    part(0).await;
}

#[tokio::test]
async fn nothing_is_lost_wherever_it_is_killed_2() {
    part(1).await;
}

#[tokio::test]
async fn nothing_is_lost_wherever_it_is_killed_3() {
    part(2).await;
}

#[tokio::test]
async fn nothing_is_lost_wherever_it_is_killed_4() {
    part(3).await;
}

mod slow {
    use super::*;

    /// A thousand kills, each place at ever later times, as far as it is come by so often.
    #[tokio::test]
    async fn nothing_is_lost_in_a_thousand_kills() {
        let mut kills = 0;
        for round in 0.. {
            for place in FAILPOINTS {
                kills += kill_at(place, [round % 7, round % 3]).await;
            }
            if kills >= 1000 {
                break;
            }
        }
    }
}
