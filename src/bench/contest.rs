use std::{
    future::pending,
    path::PathBuf,
    pin::pin,
    process,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::time;

use super::{
    agreement,
    answer::Answer,
    client::Client,
    counter::Counter,
    file,
    gpus::{self, Gpus, Watch},
    load::{self, Load},
    measure::{self, Measured},
    offline,
    order::{BenchError, Order, Watcher},
    program::{Program, Taken, seconds_since, taken},
    report::{BadLine, Figures, Host, Mode, Run},
    request::{Conversation, Expect, Request},
    roofline,
    standing::Standing,
    target::{Own, Place, Remote, Target},
    text::Writer,
    workload::{Set, Workload},
};
use crate::openai::Endpoint;

/// Targets that are measured by turns, and what is known of them so far.
///
/// Only one program of ours runs at a time, started anew for each repeat: none takes memory or caches from another, each begins with an
/// empty prefix cache, and its peak of memory is its own.
pub(super) struct Contest<'a> {
    pub(super) order: &'a Order,
    watcher: &'a dyn Watcher,
    pub(super) host: Host,
    gpus: Option<Gpus>,
    pub(super) standings: Vec<Standing>,
    /// For each repeat those for each load; of a file one for all.
    pub(super) sets: Vec<Vec<Conversation>>,
    pub(super) sized_by: Option<String>,
    pub(super) bad_lines: Vec<BadLine>,
}

/// A server that can be asked.
struct Opened {
    /// If it is ours.
    program: Option<Program>,
    client: Client,
    load_s: Option<f64>,
    /// Whether it is on this machine.
    here: bool,
}

/// How often a bar moves.
const LOOK: Duration = Duration::from_millis(100);
/// Between the end of connections and that of the process that had them.
const LAST_GASP: Duration = Duration::from_millis(300);
/// Requests before the time runs, at most.
const WARM_UP_MAX: u32 = 32;
const WARM_UP_TOKENS: u32 = 8;

impl<'a> Contest<'a> {
    /// # Errors
    /// When the workload is a file without requests, or the place for reports cannot be made.
    pub(super) fn new(order: &'a Order, watcher: &'a dyn Watcher) -> Result<Self, BenchError> {
        fs_err::create_dir_all(&order.out).map_err(BenchError::Out)?;
        let (mut sets, mut bad_lines) = (Vec::new(), Vec::new());
        if let Workload::File(path) = &order.workload {
            let shown = path.display().to_string();
            let lines = file::read(path, order.requests)
                .map_err(|source| BenchError::Workload { path: shown.clone(), source })?;
            if lines.conversations.is_empty() {
                return Err(BenchError::NoRequests { path: shown, first: lines.bad.into_iter().next() });
            }
            for BadLine { line, reason } in &lines.bad {
                watcher.note(&format!("{shown}: line {line}: {reason}"));
            }
            sets.push(lines.conversations);
            bad_lines = lines.bad;
        }
        let standings = order.targets.iter().cloned().map(Standing::of).collect();
        let gpus = Gpus::open();
        let host = Host::here(gpus.as_ref());
        Ok(Self { order, watcher, host, gpus, standings, sets, sized_by: None, bad_lines })
    }

    /// Measures everything. What is finished stays known if this is dropped before its end.
    pub(super) async fn work(&mut self) {
        self.probe().await;
        self.prepare().await;
        let needs_rate =
            |standing: &Standing| standing.is_up() && standing.reads.as_ref().is_ok_and(|reads| reads.gpu.is_none());
        if self.standings.iter().any(needs_rate) {
            self.watcher.begin("memory", 0);
            // Nothing else runs, and the thread has nothing else to do.
            self.host.memory_bytes_per_s = Some(roofline::bytes_per_s().round());
        }
        for repeat in 1..=self.order.repeats {
            for index in 0..self.standings.len() {
                if !self.standings[index].is_up() {
                    continue;
                }
                let outcome = match self.standings[index].target.mode {
                    Mode::Server => self.visit(index, repeat).await,
                    Mode::Offline => self.visit_offline(index, repeat).await,
                };
                if let Err(reason) = outcome {
                    self.give_up(index, reason);
                }
            }
        }
    }

    fn give_up(&mut self, index: usize, reason: String) {
        let standing = &mut self.standings[index];
        self.watcher.note(&format!("{}: {reason}", standing.target.name));
        standing.error = Some(reason);
    }

    /// Looks at what can be known of the targets before any is started.
    async fn probe(&mut self) {
        for index in 0..self.standings.len() {
            let outcome = match &self.standings[index].target.place {
                Place::Own(_) => self.standings[index].describe(self.order.gpu_rates),
                Place::Url(_) => {
                    let target = self.standings[index].target.clone();
                    self.open(&target).await.map(|opened| {
                        self.standings[index].model = Some(opened.client.model);
                    })
                }
            };
            if let Err(reason) = outcome {
                self.give_up(index, reason);
            }
        }
    }

    /// Makes the requests, by the tokenizer of a target where one has it: a server that is there, or else the first of ours.
    async fn prepare(&mut self) {
        if matches!(self.order.workload, Workload::File(_)) {
            return;
        }
        let mut candidates: Vec<usize> = (0..self.standings.len()).collect();
        candidates.sort_by_key(|index| matches!(self.standings[*index].target.place, Place::Own(_)));
        let mut counter = None;
        for index in candidates {
            if !self.standings[index].is_up() {
                continue;
            }
            let target = self.standings[index].target.clone();
            match self.open(&target).await {
                Ok(opened) => {
                    if let Some(found) = Counter::of(opened.client.clone()).await {
                        self.sized_by = Some(target.name);
                        // With the program that it asks.
                        counter = Some((found, opened));
                        break;
                    }
                }
                Err(reason) => self.give_up(index, reason),
            }
        }
        if !self.standings.iter().any(Standing::is_up) {
            return;
        }
        let mut writer = Writer::new(counter.as_ref().map(|(counter, _)| counter.clone()));
        let sets = u64::from(self.order.repeats) * self.order.loads.len() as u64;
        self.watcher.begin("prompts", sets);
        for repeat in 1..=self.order.repeats {
            for (level, load) in self.order.loads.iter().enumerate() {
                let set = Set { repeat, level, requests: self.order.requests_at(*load) };
                self.sets.push(self.order.workload.generate(self.order.sizes, set, &mut writer).await);
                self.watcher.at(self.sets.len() as u64);
            }
        }
    }

    fn requests(&self, repeat: u32, level: usize) -> &[Conversation] {
        let index = (repeat as usize - 1) * self.order.loads.len() + level;
        self.sets.get(index).or_else(|| self.sets.first()).map_or(&[], Vec::as_slice)
    }

    /// A server to be asked: ours is started, for others it is seen that they have the model.
    async fn open(&self, target: &Target) -> Result<Opened, String> {
        let Order { key, stream, request_timeout, start_timeout, .. } = self.order;
        match &target.place {
            Place::Own(own) => {
                self.watcher.begin(&format!("{}, loading", target.name), 0);
                let started = Instant::now();
                let model = target.model.as_deref();
                let (program, url) = Program::serve(own, model, &self.log(target), *start_timeout).await?;
                let load_s = Some(seconds_since(started));
                let mut client = Client::new(&url, None, *stream, *request_timeout)?;
                let models = client.served().await?;
                client.model = models.into_iter().next().ok_or("it has no model")?;
                Ok(Opened { program: Some(program), client, load_s, here: true })
            }
            Place::Url(remote) => {
                let Remote { name, base, .. } = remote;
                let mut client = Client::new(base, key(name).as_deref(), *stream, *request_timeout)?;
                client.model = chosen(client.served().await?, target.model.as_deref())?;
                Ok(Opened { program: None, client, load_s: None, here: remote.is_here() })
            }
        }
    }

    async fn visit(&mut self, index: usize, repeat: u32) -> Result<(), String> {
        let target = self.standings[index].target.clone();
        let mut opened = self.open(&target).await?;
        self.standings[index].model = Some(opened.client.model.clone());
        for level in 0..self.order.loads.len() {
            self.warm_up(&opened.client, level).await?;
            let measured = self.round(&target.name, &mut opened, repeat, level).await?;
            let broken = measured.run.broken.clone();
            self.standings[index].runs.push(measured);
            if let Some(reason) = broken {
                return Err(reason);
            }
        }
        if self.order.check > 0 && repeat == 1 {
            self.watcher.begin(&format!("{}, agreement", target.name), 0);
            self.standings[index].answers = agreement::ask(&opened.client, self.order.check).await;
        }
        Ok(())
    }

    /// Touches all weights and starts all threads. It is apart from what is measured, and nothing of it helps there.
    async fn warm_up(&self, client: &Client, level: usize) -> Result<(), String> {
        let at_a_time = self.order.loads[level].concurrency().unwrap_or(1).min(WARM_UP_MAX);
        let endpoint = self.requests(1, level).first().and_then(|conversation| conversation.first());
        let endpoint = endpoint.map_or(Endpoint::ChatCompletions, |request| request.endpoint);
        let request = |number: u32| {
            let text = format!("Request {number} of those before the first.");
            let body = match endpoint {
                Endpoint::ChatCompletions => {
                    json!({"messages": [{"role": "user", "content": text}], "max_tokens": WARM_UP_TOKENS})
                }
                Endpoint::Completions => json!({"prompt": text, "max_tokens": WARM_UP_TOKENS}),
                Endpoint::Embeddings => json!({"input": text}),
                Endpoint::Rerank => json!({"query": text, "documents": [text]}),
            };
            Request { endpoint, body, expect: Expect::Whole }
        };
        let requests: Vec<Request> = (1..=at_a_time).map(request).collect();
        let asked = requests.iter().map(|request| client.answer(request));
        let answers: Vec<Result<Answer, String>> = futures_util::future::join_all(asked).await;
        let mut reasons = Vec::new();
        for answer in answers {
            match answer {
                Ok(_) => return Ok(()),
                Err(reason) => reasons.push(reason),
            }
        }
        Err(reasons.into_iter().next().unwrap_or_default())
    }

    async fn round(&self, name: &str, opened: &mut Opened, repeat: u32, level: usize) -> Result<Measured, String> {
        let load = self.order.loads[level];
        let Opened { program, client, load_s, here } = opened;
        let conversations = self.requests(repeat, level);
        let prepared =
            conversations.iter().map(|conversation| conversation.iter().map(|r| client.prepare(r)).collect());
        let prepared = prepared.collect::<Result<Vec<Vec<_>>, String>>()?;
        let requests = conversations.iter().flatten().count() as u64;
        let what = format!("{name}, repeat {repeat} of {}, {}", self.order.repeats, load.label());
        self.watcher.begin(&what, requests);
        let (before, own_before) = (program.as_ref().map(Program::taken), taken(process::id()));
        let watch = self.gpus.as_ref().filter(|_| *here).map(Gpus::watch);
        let done = Arc::new(AtomicU64::new(0));
        let round = {
            let ended = async {
                match program.as_mut() {
                    Some(program) => program.ended().await,
                    None => pending().await,
                }
            };
            let seed = self.order.sizes.seed.wrapping_add(u64::from(repeat));
            let round = load::round(client, prepared, load, seed, &done, ended);
            self.watched(round, &done).await
        };
        let gpus = watch.map(Watch::finish);
        let mut broken = round.broken;
        if let Some(program) = program
            && broken.is_none()
            && round.samples.iter().any(|sample| !sample.is_ok())
        {
            // Requests fail when a process ends, and a moment before that is seen.
            broken = time::timeout(LAST_GASP, program.ended()).await.ok();
        }
        let (after, own_after) = (program.as_ref().map(Program::taken), taken(process::id()));
        let figures = Figures {
            client_cpu_s: between(own_before, own_after),
            cpu_s: before.zip(after).and_then(|(before, after)| between(before, after)),
            peak_memory_bytes: after.and_then(|after| after.peak_memory_bytes),
            energy_j: gpus.as_deref().and_then(gpus::energy_j),
            gpus,
            ..measure::figures(&round.samples, round.wall, self.order.goal)
        };
        let rate = match load {
            Load::Open(rate) => Some(rate),
            Load::Closed(_) => None,
        };
        let run = Run { repeat, concurrency: load.concurrency(), rate, load_s: *load_s, broken, figures };
        Ok(Measured { run, samples: round.samples, level })
    }

    /// Moves the bar while something runs.
    async fn watched<T>(&self, running: impl Future<Output = T>, done: &AtomicU64) -> T {
        let mut running = pin!(running);
        let mut looks = time::interval(LOOK);
        loop {
            tokio::select! {
                result = &mut running => return result,
                _ = looks.tick() => self.watcher.at(done.load(Ordering::Relaxed)),
            }
        }
    }

    async fn visit_offline(&mut self, index: usize, repeat: u32) -> Result<(), String> {
        let Standing { target, model, .. } = &self.standings[index];
        let (target, model) = (target.clone(), model.clone().ok_or("has no model")?);
        let Place::Own(own) = &target.place else { return Err("a server has no offline mode".to_owned()) };
        let measured = self.round_offline(&target, own, &model, repeat).await?;
        self.standings[index].runs.push(measured);
        Ok(())
    }

    async fn round_offline(&self, target: &Target, own: &Own, model: &str, repeat: u32) -> Result<Measured, String> {
        // How many are computed together is its own affair, so there is but one load.
        let conversations = self.requests(repeat, 0);
        self.watcher.begin(&format!("{}, repeat {repeat} of {}", target.name, self.order.repeats), 0);
        let watch = self.gpus.as_ref().map(Gpus::watch);
        let round = offline::round(own, target.model.as_deref(), model, conversations, &self.log(target)).await?;
        let gpus = watch.map(Watch::finish);
        let figures = Figures {
            cpu_s: round.taken.cpu_s,
            peak_memory_bytes: round.taken.peak_memory_bytes,
            energy_j: gpus.as_deref().and_then(gpus::energy_j),
            gpus,
            ..measure::figures(&round.samples, round.wall, self.order.goal)
        };
        let load_s = Some(super::figures::rounded(round.load.as_secs_f64()));
        let run = Run { repeat, concurrency: None, rate: None, load_s, broken: None, figures };
        Ok(Measured { run, samples: round.samples, level: 0 })
    }

    /// Where a program of ours says what goes wrong.
    fn log(&self, target: &Target) -> PathBuf {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
        self.order.out.join(format!("{}.log", target.name.chars().map(plain).collect::<String>()))
    }
}

/// The model to ask a server for.
fn chosen(listed: Vec<String>, wanted: Option<&str>) -> Result<String, String> {
    let Some(wanted) = wanted else { return listed.into_iter().next().ok_or_else(|| "it lists no model".to_owned()) };
    // Ollama lists names with a tag that need not be said.
    let is_wanted = |name: &String| name == wanted || name.strip_suffix(":latest") == Some(wanted);
    match listed.iter().any(is_wanted) {
        true => Ok(wanted.to_owned()),
        false => Err(format!("it has no model {wanted:?}; it lists {}", listed.join(", "))),
    }
}

fn between(before: Taken, after: Taken) -> Option<f64> {
    Some(super::figures::rounded(after.cpu_s? - before.cpu_s?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_has_to_be_there() {
        let listed = || vec!["a".to_owned(), "b:latest".to_owned()];
        assert_eq!(chosen(listed(), None).unwrap(), "a");
        assert_eq!(chosen(listed(), Some("b")).unwrap(), "b");
        assert_eq!(chosen(listed(), Some("c")).unwrap_err(), "it has no model \"c\"; it lists a, b:latest");
        assert_eq!(chosen(Vec::new(), None).unwrap_err(), "it lists no model");
    }
}
