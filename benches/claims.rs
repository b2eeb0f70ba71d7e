//! What it costs to claim lines while many wait: ten batches of fifty thousand lines, claimed by turns and written as done.
//!
//! `cargo bench --bench claims` fills a database in a temporary directory, then claims and completes sixteen lines at a time until
//! `--claims N` (3,000) are made, and tells how long the claims took: all of them, and the first and the last tenth, between which the
//! backlog shrinks. Each claim is one transaction that is synced, as in the server.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on should panic")]

use std::io::Write as _;
use std::time::Instant;

use tandem::openai::AllowedModels;
use tandem::store::{
    ClaimOrder, Claimed, Created, Done, IngestPoint, LineEnd, NewBatch, NewLine, Store, Tenant, Tokens,
};

const BATCHES: usize = 10;
const LINES: i64 = 50_000;
/// Lines of one claim: what a server that decodes eight at a time asks for.
const LIMIT: usize = 16;
const CHUNK: i64 = 1000;
const CLAIMS: usize = 3000;
/// Of each record.
const BYTES: usize = 1024;
const NOW: i64 = 1_800_000_000;

#[tokio::main]
async fn main() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let mut batches = Vec::new();
    for _ in 0..BATCHES {
        batches.push(queued(&store).await);
    }
    let mut took = Vec::new();
    for batch in batches.iter().cycle().take(claims()) {
        let started = Instant::now();
        let lines = store.claim(batch, ClaimOrder::Prefix, LIMIT, NOW * 1000).await.unwrap();
        took.push(started.elapsed());
        assert_eq!(lines.len(), LIMIT);
        let done: Vec<_> = lines.iter().map(|line| done(batch, line)).collect();
        assert_eq!(store.complete(&done, NOW).await.unwrap().written, LIMIT);
    }
    let mut out = std::io::stdout().lock();
    let tenth = took.len() / 10;
    let (first, last) = (&took[..tenth], &took[took.len() - tenth..]);
    writeln!(out, "{BATCHES} batches of {LINES} lines, {} claims of {LIMIT} lines; ms p50, p99, longest", took.len())
        .unwrap();
    for (name, claims) in [("all", &took[..]), ("the first tenth", first), ("the last tenth", last)] {
        let mut claims = claims.to_vec();
        claims.sort_unstable();
        let ms = |at: usize| claims[at.min(claims.len() - 1)].as_secs_f64() * 1e3;
        let (half, most) = (claims.len() / 2, claims.len() * 99 / 100);
        writeln!(out, "{name:<16} {:.2}, {:.2}, {:.2}", ms(half), ms(most), ms(claims.len())).unwrap();
    }
}

fn claims() -> usize {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--claims");
    arguments.nth(1).map_or(CLAIMS, |claims| claims.parse().expect("--claims is followed by a number"))
}

/// A batch that is about to run, its lines in groups of fifty that begin alike, shuffled.
async fn queued(store: &Store) -> String {
    let new = NewBatch {
        tenant: Tenant::default(),
        input_file_id: "file-none".to_owned(),
        endpoint: "/v1/completions".to_owned(),
        window: "24h".to_owned(),
        window_s: 24 * 3600,
        metadata: None,
        output_expires_s: None,
        priority: 0,
        not_before: None,
        models: AllowedModels::default(),
        identity: None,
    };
    let Created::New(batch) = store.create_batch(new, u64::MAX, NOW).await.unwrap() else { panic!("not new") };
    for first in (1..=LINES).step_by(CHUNK as usize) {
        let lines: Vec<_> = (first..first + CHUNK).map(line).collect();
        let point = IngestPoint { next_line: first + CHUNK, next_offset: 0, errors: None };
        assert!(store.ingest(&batch.id, &lines, &point).await.unwrap());
    }
    assert!(store.start_lines(&batch.id, NOW).await.unwrap());
    batch.id
}

fn line(line_no: i64) -> NewLine {
    let group = (line_no * 7919 % LINES / 50) as u32;
    NewLine {
        line_no,
        custom_hash: i128::from(line_no).to_be_bytes(),
        digest: [0; 8],
        off: line_no * 4096,
        len: 4096,
        model: "sim".to_owned(),
        // As many cuts as a prompt of a kilobyte has.
        prefix: [group.to_be_bytes(), (line_no as u32).to_be_bytes()].concat().repeat(3),
        twin: None,
        repeats: false,
        expected: 16,
    }
}

fn done(batch_id: &str, line: &Claimed) -> Done {
    let body = Some(vec![b'x'; BYTES]);
    let end = LineEnd::Record { ok: true, body, spill_key: None, tokens: Tokens::default() };
    Done { batch_id: batch_id.to_owned(), line_no: line.line_no, epoch: line.epoch, end }
}
