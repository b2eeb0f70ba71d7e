//! The power goes: what was synced is there, and of the rest anything or nothing.
//!
//! A server is run to the end of a batch under `strace`. At moments of the trace the directory is made anew from what was synced by then,
//! and another server goes on with it. Whatever the first has told its client by that moment must hold.

mod disk;
mod trace;

use std::{path::Path, process::Command};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    kills::{Client, Plan},
    program::{Program, tandem},
};
use disk::Disk;
use trace::{Event, events};

/// Calls that change files or sync them, and those that answer clients.
const TRACED: &str = "trace=openat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir,lseek,write,pwrite64,ftruncate,\
                      fsync,fdatasync,sendto,writev,sendmsg";

/// What clients were told, in its order.
#[derive(Clone, Debug, Default)]
struct Told {
    file: Option<String>,
    /// The batch each time that it was shown.
    batch: Vec<Value>,
}

impl Told {
    /// An answer whose sending has begun may have arrived.
    fn hear(&mut self, event: &Event) {
        let Event::Begun(_, call) = event else { return };
        let is_sent = matches!(call.name.as_str(), "sendto" | "writev" | "sendmsg" | "write");
        let text = String::from_utf8_lossy(&call.strings.concat()).into_owned();
        let body =
            text.split_once("\r\n\r\n").filter(|(head, _)| head.starts_with("HTTP/1.1 200")).map(|(_, body)| body);
        let Some(body) = body.filter(|_| is_sent).and_then(|body| serde_json::from_str::<Value>(body).ok()) else {
            return;
        };
        match body["object"].as_str() {
            Some("file") => drop(self.file.get_or_insert_with(|| body["id"].as_str().unwrap().to_owned())),
            // Another follows it, by which the client knows that the first is purged.
            Some("batch") if self.batch.first().is_none_or(|first| first["id"] == body["id"]) => self.batch.push(body),
            _ => {}
        }
    }
}

/// The life of a server that a client has had a batch run by.
struct Life {
    storage: TempDir,
    events: Vec<Event>,
}

impl Life {
    async fn record() -> Self {
        let [storage, log] = [(); 2].map(|()| TempDir::new().unwrap());
        let path = log.path().join("trace");
        let server = tandem(&["serve", "--profile", "sim", "--port", "0"]);
        let mut command = Command::new("strace");
        // The tracer beside the server, not in front of it: what is killed is the server.
        command.args(["-D", "-f", "-q", "-y", "-xx", "-s", "10000000", "-e", TRACED, "-o"]).arg(&path);
        command.arg(server.get_program()).args(server.get_args());
        command.env("RUST_LOG", "off").env("STORAGE_PATH", storage.path()).env("TANDEM__BACKEND__STEP_DELAY_MS", "2");
        let server = Program::launch_as(command).unwrap();
        server.until_status("/health", reqwest::StatusCode::OK).await;
        Client::new(Plan::Finish, storage.path()).work(&server).await.unwrap();
        server.kill();
        let mut text = String::new();
        while !text.trim_end().ends_with("+++ killed by SIGKILL +++") {
            // sleep: the tracer ends when it has noted that the server has
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            text = fs_err::read_to_string(&path).unwrap();
        }
        Self { storage, events: events(&text) }
    }

    /// The disk and what was told when so many events had happened.
    fn until(&self, count: usize) -> (Disk, Told) {
        let (mut disk, mut told) = (Disk::new(self.storage.path()), Told::default());
        for event in &self.events[..count] {
            told.hear(event);
            disk.apply(event);
        }
        (disk, told)
    }

    /// Events after which the disk is another one.
    fn moments(&self) -> Vec<usize> {
        let mut disk = Disk::new(self.storage.path());
        (1..).zip(&self.events).filter(|(_, event)| disk.apply(event)).map(|(count, _)| count).collect()
    }
}

/// Goes on with what a power cut has left.
async fn go_on(dir: &Path, told: Told, what: &str) {
    let mut client = Client::new(Plan::Finish, dir);
    client.file = told.file;
    client.batch = told.batch.first().map(|batch| batch["id"].as_str().unwrap().to_owned());
    client.history.seen = told.batch;
    client.history.kills = 1;
    let server = Program::start(dir, 0).await;
    client.conclude(&server).await;
    assert_eq!(client.history.violations(), Vec::<String>::new(), "{what}");
    client.is_clean(&server, what).await;
}

/// Cuts the power as often, at moments spread over the life of a server; every other time the disk keeps of what was not synced what luck
/// will have.
async fn cut(times: usize, seed: u64) {
    let life = Life::record().await;
    let moments = life.moments();
    let (_, told) = life.until(life.events.len());
    assert_eq!(told.batch.last().map(|batch| &batch["status"]), Some(&"completed".into()));
    let mut luck = StdRng::seed_from_u64(seed);
    for time in 0..times {
        let part = time * moments.len() / times..(time + 1) * moments.len() / times;
        let moment = moments[luck.random_range(part)];
        let (disk, told) = life.until(moment);
        let dir = TempDir::new().unwrap();
        disk.after_a_power_cut(dir.path(), Some(&mut luck).filter(|_| time % 2 == 1));
        let done = told.batch.last().map_or(0, |batch| batch["request_counts"]["completed"].as_u64().unwrap());
        let what = format!(
            "seed {seed}, cut {time} after event {moment}, {done} lines told of: {:?}",
            life.events[moment - 1]
        );
        go_on(dir.path(), told, &what[..what.len().min(500)]).await;
    }
}

#[tokio::test]
async fn what_was_told_outlives_a_power_cut_1() {
    cut(12, 1).await;
}

#[tokio::test]
async fn what_was_told_outlives_a_power_cut_2() {
    cut(12, 2).await;
}

mod slow {
    use super::*;

    #[tokio::test]
    async fn what_was_told_outlives_five_hundred_power_cuts() {
        for seed in 100..105 {
            cut(100, seed).await;
        }
    }
}
