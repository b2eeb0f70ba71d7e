//! `tandem batch`: a client of any server that speaks the Batch API.

mod client;
mod results;
mod retry;
mod view;
mod watch;

use std::{
    env,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Subcommand, ValueEnum};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::io::AsyncBufReadExt as _;

use self::{
    client::{Client, ClientError, Result},
    results::{Sink, Wanted},
    view::{BatchView, LineError},
};
use super::{exit::Failure, print};

const DEFAULT_BASE_URL: &str = "http://127.0.0.1:8000/v1";
const CHATS: &str = "/v1/chat/completions";

/// Submit, watch and fetch batches on any server that speaks the Batch API
///
/// The key for the server is taken from `OPENAI_API_KEY`. Exit codes: 0 when all is well; 1 when lines failed, the batch did not complete or
/// what is asked for is not there; 64 to 78 as in sysexits.h when the command itself fails.
#[derive(Debug, Args)]
pub(super) struct BatchCommand {
    #[arg(
        long,
        value_name = "URL",
        env = "OPENAI_BASE_URL",
        global = true,
        help = "Where the server's API is [default: http://127.0.0.1:8000/v1]"
    )]
    base_url: Option<String>,
    /// Print JSON as the server sends it
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Upload a file of requests and make a batch of it; prints the batch's id
    Submit(Submit),
    /// List batches, the newest first
    List {
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 20)]
        limit: usize,
    },
    /// Show a batch
    Show { id: String },
    /// Watch a batch until it has ended
    Watch { id: String },
    /// Print a batch's finished lines, one record a line
    Results(Results),
    /// Cancel a batch; what has ended of it is kept
    Cancel { id: String },
    /// Run the failed, expired and cancelled lines of a batch again, as a new batch
    Retry {
        id: String,
        /// Watch the new batch until it has ended
        #[arg(long)]
        watch: bool,
    },
    /// Tell what a file of requests would come to: a path, or the id of an uploaded file
    Estimate { file: String },
}

#[derive(Debug, Args)]
struct Submit {
    /// Requests, one JSON object a line; - is standard input
    file: PathBuf,
    /// Watch the batch until it has ended
    #[arg(long)]
    watch: bool,
    /// What the requests are for [default: what the first line says]
    #[arg(long, value_name = "PATH")]
    endpoint: Option<String>,
    #[arg(long, value_name = "WINDOW", default_value = "24h")]
    completion_window: String,
    /// A note that is kept with the batch; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,
}

#[derive(Debug, Args)]
struct Results {
    id: String,
    /// Go on until the batch has ended
    #[arg(long)]
    follow: bool,
    /// Only lines that were answered, or only others
    #[arg(long)]
    status: Option<LineStatus>,
    /// Where to write the records [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LineStatus {
    Completed,
    Failed,
}

fn pair(text: &str) -> std::result::Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("has no '='")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl BatchCommand {
    pub(super) fn run(self) -> std::result::Result<ExitCode, Failure> {
        let Self { base_url, json, action } = self;
        let key = match env::var("OPENAI_API_KEY") {
            Ok(key) => Some(key),
            Err(env::VarError::NotPresent) => None,
            Err(env::VarError::NotUnicode(_)) => return Err(Failure::config("OPENAI_API_KEY: is not UTF-8")),
        };
        let base_url = base_url.filter(|url| !url.is_empty()).unwrap_or_else(|| DEFAULT_BASE_URL.to_owned());
        let client = Client::new(&base_url, key.as_deref())?;
        super::runtime()?.block_on(act(&client, action, json))
    }
}

async fn act(client: &Client, action: Action, json: bool) -> std::result::Result<ExitCode, Failure> {
    match action {
        Action::Submit(submit) => {
            let watch = submit.watch;
            let batch = submit.run(client).await?;
            after_create(client, batch, watch, json).await
        }
        Action::List { limit } => {
            list(client, limit, json).await?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Show { id } => {
            let batch = client.get(&format!("/batches/{}", checked(&id)?), &[]).await?;
            show(&batch, json)?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Watch { id } => ended(&watch::watch(client, checked(&id)?).await?, json),
        Action::Results(results) => results.run(client).await,
        Action::Cancel { id } => {
            let batch = client.post(&format!("/batches/{}/cancel", checked(&id)?), None).await?;
            show(&batch, json)?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Retry { id, watch } => {
            let batch = retry::retry(client, checked(&id)?).await?;
            after_create(client, batch, watch, json).await
        }
        Action::Estimate { file } => estimate(client, &file, json).await,
    }
}

/// An id becomes a part of a path, so it must not lead elsewhere.
fn checked(id: &str) -> std::result::Result<&str, Failure> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !id.is_empty() && id.chars().all(plain) && !id.starts_with('.') {
        return Ok(id);
    }
    Err(Failure::new(Failure::USAGE, format!("{id:?} is no id of a batch")))
}

impl Submit {
    async fn run(self, client: &Client) -> std::result::Result<Value, Failure> {
        let Self { file, watch: _, endpoint, completion_window, metadata } = self;
        let endpoint = match endpoint {
            Some(endpoint) => endpoint,
            None if file == Path::new("-") => {
                let reason = "say with --endpoint what the requests on standard input are for";
                return Err(Failure::new(Failure::USAGE, reason));
            }
            None => first_endpoint(&file).await.map_err(ClientError::File)?,
        };
        let metadata = metadata.into_iter().map(|(key, value)| (key, value.into())).collect::<Map<_, _>>();
        let file_id = client.upload(&file).await?;
        Ok(client.create(&file_id, &endpoint, &completion_window, metadata.into()).await?)
    }
}

/// What the first line is for. The server judges the file; a guess that is wrong is answered by it.
async fn first_endpoint(path: &Path) -> std::io::Result<String> {
    #[derive(Deserialize)]
    struct Request {
        url: String,
    }
    let mut lines = tokio::io::BufReader::new(fs_err::tokio::File::open(path).await?).lines();
    while let Some(line) = lines.next_line().await? {
        let line = line.trim_start_matches('\u{feff}').trim();
        if !line.is_empty() {
            let request: Option<Request> = serde_json::from_str(line).ok();
            return Ok(request.map_or_else(|| CHATS.to_owned(), |request| request.url));
        }
    }
    Ok(CHATS.to_owned())
}

/// The id of a new batch, for scripts; and how it ends, if that is to be seen.
async fn after_create(
    client: &Client,
    batch: Value,
    watch: bool,
    json: bool,
) -> std::result::Result<ExitCode, Failure> {
    let view = BatchView::of(&batch)?;
    if !watch {
        print(&if json { batch.to_string() } else { view.id });
        return Ok(ExitCode::SUCCESS);
    }
    if !json {
        print(&view.id);
    }
    ended(&watch::watch(client, &view.id).await?, json)
}

/// Tells how a batch ended; the exit code says whether all is well.
fn ended(batch: &Value, json: bool) -> std::result::Result<ExitCode, Failure> {
    let view = BatchView::of(batch)?;
    show(batch, json)?;
    Ok(if view.is_all_well() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn show(batch: &Value, json: bool) -> std::result::Result<(), Failure> {
    if json {
        print(&batch.to_string());
        return Ok(());
    }
    let view = BatchView::of(batch)?;
    print(&view.line());
    for (what, id) in [("output file", &view.output_file_id), ("error file", &view.error_file_id)] {
        if let Some(id) = id.as_deref().filter(|id| !id.is_empty()) {
            print(&format!("  {what} {id}"));
        }
    }
    for LineError { message, line } in view.errors.iter().flat_map(|errors| &errors.data) {
        let place = line.map_or_else(String::new, |line| format!("line {line}: "));
        print(&format!("  {place}{}", message.as_deref().unwrap_or("no reason given")));
    }
    Ok(())
}

async fn list(client: &Client, limit: usize, json: bool) -> Result<()> {
    let mut batches: Vec<Value> = Vec::new();
    while batches.len() < limit {
        let page = (limit - batches.len()).min(100);
        let mut query = vec![("limit", page.to_string())];
        query.extend(batches.last().and_then(|last| last["id"].as_str()).map(|id| ("after", id.to_owned())));
        let listed = client.get("/batches", &query).await?;
        let data = listed["data"].as_array().cloned().unwrap_or_default();
        let more = listed["has_more"] == json!(true) && !data.is_empty();
        batches.extend(data);
        if !more {
            break;
        }
    }
    if json {
        print(&Value::from(batches).to_string());
        return Ok(());
    }
    // The newest is what is looked for, and the oldest line scrolls away first.
    let mut views = batches.iter().map(BatchView::of).collect::<Result<Vec<_>>>()?;
    views.sort_by_key(|view| std::cmp::Reverse(view.created_at));
    views.iter().for_each(|view| print(&view.line()));
    Ok(())
}

impl Results {
    async fn run(self, client: &Client) -> std::result::Result<ExitCode, Failure> {
        let Self { id, follow, status, output } = self;
        let status = status.map(|status| match status {
            LineStatus::Completed => "completed".to_owned(),
            LineStatus::Failed => "failed".to_owned(),
        });
        let wanted = Wanted { id: checked(&id)?.to_owned(), status };
        let mut sink =
            Sink::open(output.as_ref()).map_err(|error| Failure::new(Failure::CANNOT_CREATE, error.to_string()))?;
        if follow {
            let batch = results::follow(client, &wanted, &mut sink).await?;
            let view = BatchView::of(&batch)?;
            say(&view.line());
            return Ok(if view.is_all_well() { ExitCode::SUCCESS } else { ExitCode::from(1) });
        }
        match results::finished(client, &wanted, &mut sink).await? {
            Some(()) => Ok(ExitCode::SUCCESS),
            None => {
                let reason = "this server gives results when the batch has ended; wait for it with --follow";
                Err(Failure::new(Failure::TEMPORARY, reason))
            }
        }
    }
}

async fn estimate(client: &Client, file: &str, json: bool) -> std::result::Result<ExitCode, Failure> {
    let uploaded = if file.starts_with("file-") && !Path::new(file).exists() {
        None
    } else {
        Some(client.upload(Path::new(file)).await?)
    };
    let id = match &uploaded {
        Some(id) => id,
        None => checked(file)?,
    };
    let estimate = client.get(&format!("/files/{id}/estimate"), &[]).await;
    if let Some(id) = &uploaded {
        // It was there to be counted only.
        client.delete(&format!("/files/{id}")).await?;
    }
    let estimate = match estimate {
        Err(error) if error.is_unknown_route() => {
            return Err(Failure::new(Failure::UNAVAILABLE, "this server makes no estimates"));
        }
        estimate => estimate?,
    };
    if json {
        print(&estimate.to_string());
    } else {
        tell_estimate(&estimate);
    }
    let sound = estimate["invalid_requests"] == json!(0);
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn tell_estimate(estimate: &Value) {
    let number = |of: &Value, name: &str| of[name].as_u64().map_or_else(|| "?".to_owned(), |number| number.to_string());
    let tokens = |of: &Value| {
        let [input, max, expected, eta] =
            ["input_tokens", "max_output_tokens", "expected_output_tokens", "eta_seconds"].map(|name| number(of, name));
        format!("{input} input tokens, at most {max} output tokens, {expected} expected, {eta} s")
    };
    let (total, invalid) = (number(estimate, "total_requests"), number(estimate, "invalid_requests"));
    print(&format!("{total} requests, {invalid} invalid: {}", tokens(estimate)));
    for model in estimate["by_model"].as_array().into_iter().flatten() {
        let name = model["model"].as_str().unwrap_or_default();
        print(&format!("  {name}: {} requests, {}", number(model, "requests"), tokens(model)));
    }
    for error in estimate["errors"]["data"].as_array().into_iter().flatten() {
        print(&format!("  line {}: {}", number(error, "line"), error["message"].as_str().unwrap_or_default()));
    }
}

/// A word for people, out of the way of what is printed for scripts.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
