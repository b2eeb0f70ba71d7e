use std::collections::BTreeMap;

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, FromQueryResult, Value};

use super::{Store, StoreError, statement};
use crate::failpoint::failpoint;

/// A valid line, before it has a row.
#[derive(Clone, Debug)]
pub struct NewLine {
    /// Counted as a text editor counts: blank lines too, from 1.
    pub line_no: i64,
    pub custom_hash: [u8; 16],
    /// Of the line's bytes: what is executed is what was validated.
    pub digest: [u8; 8],
    pub off: i64,
    pub len: i64,
    pub model: String,
    /// Lines of one model are claimed in the order of these bytes.
    pub prefix: Vec<u8>,
    /// The same for lines that must have the same answer.
    pub twin: Option<[u8; 16]>,
    /// Whether an earlier line of the batch has the same `twin`.
    pub repeats: bool,
    /// Tokens that the answer may have.
    pub expected: i64,
}

/// How far validation has come.
#[derive(Clone, Debug)]
pub struct IngestPoint {
    pub next_line: i64,
    pub next_offset: i64,
    pub errors: Option<String>,
}

/// A line that this process may execute now.
#[derive(Clone, Debug, FromQueryResult)]
pub struct Claimed {
    pub line_no: i64,
    pub off: i64,
    pub len: i64,
    pub digest: Vec<u8>,
    pub attempt: i64,
    pub epoch: i64,
    /// How many owners have died with this line in their hands.
    pub suspect: i64,
    pub model: String,
    pub prefix: Vec<u8>,
    pub twin: Option<Vec<u8>>,
    pub expected: i64,
}

/// Which of the open lines are claimed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimOrder {
    /// By model, then by what their prompts begin with.
    Prefix,
    /// Those that may take longest: for the last lines of a batch, so that none of them runs alone in the end.
    LongestFirst,
}

/// The end of one execution, to be written under the claim's epoch.
#[derive(Clone, Debug)]
pub struct Done {
    pub batch_id: String,
    pub line_no: i64,
    pub epoch: i64,
    pub end: LineEnd,
}

#[derive(Clone, Debug)]
pub enum LineEnd {
    /// A finished record, in memory or as a blob.
    Record { ok: bool, body: Option<Vec<u8>>, spill_key: Option<String>, tokens: Tokens },
    /// To be tried again, not before this time in Unix milliseconds.
    Reopen { not_before: i64 },
}

/// What a line cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    pub input: u64,
    pub cached: u64,
    pub output: u64,
    pub reasoning: u64,
}

/// What a group of ends changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct GroupOutcome {
    pub written: usize,
    /// Ends whose claim was no longer theirs.
    pub stale: usize,
    pub reopened: usize,
}

#[derive(Default)]
struct Totals {
    done: i64,
    failed: i64,
    /// Of these, the ones that were no repeats of earlier lines.
    work: i64,
    tokens: [i64; 4],
}

const INSERT_ROWS_MAX: usize = 500;

/// No line waits for more than an hour: a time that lies further ahead was told by a clock that has been set back since.
pub(super) const CLAIM_OPEN: &str = "
UPDATE lines SET state = 1, owner = ?1, attempt = attempt + 1, epoch = epoch + 1
WHERE batch_id = ?2 AND line_no IN (
    SELECT line_no FROM lines INDEXED BY lines_open
    WHERE batch_id = ?2 AND state = 0 AND suspect = 0 AND not_before NOT BETWEEN ?3 + 1 AND ?3 + 3600000 ORDER BY model, prefix, line_no LIMIT ?4)
RETURNING line_no, off, len, digest, attempt, epoch, suspect, model, prefix, twin, expected";

/// Sorts all open lines: for when there are few.
const CLAIM_LONGEST: &str = "
UPDATE lines SET state = 1, owner = ?1, attempt = attempt + 1, epoch = epoch + 1
WHERE batch_id = ?2 AND line_no IN (
    SELECT line_no FROM lines INDEXED BY lines_open
    WHERE batch_id = ?2 AND state = 0 AND suspect = 0 AND not_before NOT BETWEEN ?3 + 1 AND ?3 + 3600000
    ORDER BY expected DESC, model, prefix, line_no LIMIT ?4)
RETURNING line_no, off, len, digest, attempt, epoch, suspect, model, prefix, twin, expected";

const CLAIM_SUSPECT: &str = "
UPDATE lines SET state = 1, owner = ?1, attempt = attempt + 1, epoch = epoch + 1
WHERE batch_id = ?2 AND line_no IN (
    SELECT line_no FROM lines INDEXED BY lines_suspect
    WHERE batch_id = ?2 AND state = 0 AND suspect > 0 AND not_before NOT BETWEEN ?3 + 1 AND ?3 + 3600000 ORDER BY line_no LIMIT 1)
RETURNING line_no, off, len, digest, attempt, epoch, suspect, model, prefix, twin, expected";

impl Store {
    /// T2. Adds lines and moves the point of ingestion; false if the batch no longer validates.
    pub async fn ingest(&self, batch_id: &str, lines: &[NewLine], point: &IngestPoint) -> Result<bool, StoreError> {
        let tx = self.begin().await?;
        let sql = "UPDATE batches SET total = total + ?1, open_lines = open_lines + ?1, open_work = open_work + ?6,
                       ingest_line = ?2, ingest_offset = ?3, errors = ?4
                   WHERE id = ?5 AND status = 'validating'";
        let added = i64::try_from(lines.len()).unwrap_or(i64::MAX);
        let work = i64::try_from(lines.iter().filter(|line| !line.repeats).count()).unwrap_or(i64::MAX);
        let values: [Value; 6] = [
            added.into(),
            point.next_line.into(),
            point.next_offset.into(),
            point.errors.clone().into(),
            batch_id.into(),
            work.into(),
        ];
        if tx.execute_raw(statement(sql, values)).await?.rows_affected() == 0 {
            tx.rollback().await?;
            return Ok(false);
        }
        for rows in lines.chunks(INSERT_ROWS_MAX) {
            insert(&tx, batch_id, rows).await?;
        }
        self.commit(tx).await?;
        failpoint("ingest.committed");
        Ok(true)
    }

    /// The `custom_id`s that a half-ingested batch has seen: their hashes, with the lines.
    pub async fn custom_hashes(&self, batch_id: &str) -> Result<Vec<(Vec<u8>, i64)>, StoreError> {
        let sql = "SELECT custom_hash, line_no FROM lines WHERE batch_id = ?";
        let rows = self.readers().query_all_raw(statement(sql, [batch_id.into()])).await?;
        Ok(rows
            .iter()
            .map(|row| Ok((row.try_get_by_index(0)?, row.try_get_by_index(1)?)))
            .collect::<Result<_, DbErr>>()?)
    }

    /// What a half-ingested batch has asked that must have the same answer whenever it is asked.
    pub async fn twins(&self, batch_id: &str) -> Result<Vec<Vec<u8>>, StoreError> {
        let sql = "SELECT twin FROM lines WHERE batch_id = ? AND twin IS NOT NULL AND repeats = 0";
        let rows = self.readers().query_all_raw(statement(sql, [batch_id.into()])).await?;
        Ok(rows.iter().map(|row| row.try_get_by_index(0)).collect::<Result<_, DbErr>>()?)
    }

    /// The model of the first line that a half-ingested batch has stored.
    pub async fn first_model(&self, batch_id: &str) -> Result<Option<String>, StoreError> {
        let sql = "SELECT model FROM lines WHERE batch_id = ? ORDER BY line_no LIMIT 1";
        let row = self.readers().query_one_raw(statement(sql, [batch_id.into()])).await?;
        Ok(row.map(|row| row.try_get_by_index(0)).transpose()?)
    }

    /// T4. Leases the next lines of a batch to this process, and answers them in their order.
    pub async fn claim(
        &self,
        batch_id: &str,
        order: ClaimOrder,
        limit: usize,
        now_ms: i64,
    ) -> Result<Vec<Claimed>, StoreError> {
        let sql = match order {
            ClaimOrder::Prefix => CLAIM_OPEN,
            ClaimOrder::LongestFirst => CLAIM_LONGEST,
        };
        let mut lines = self.lease(sql, batch_id, i64::try_from(limit).unwrap_or(i64::MAX), now_ms).await?;
        lines.sort_unstable_by(|a, b| (&a.model, &a.prefix, a.line_no).cmp(&(&b.model, &b.prefix, b.line_no)));
        if order == ClaimOrder::LongestFirst {
            lines.sort_by_key(|line| std::cmp::Reverse(line.expected));
        }
        Ok(lines)
    }

    /// T4 for a line that may have killed an earlier process.
    pub async fn claim_suspect(&self, batch_id: &str, now_ms: i64) -> Result<Option<Claimed>, StoreError> {
        Ok(self.lease(CLAIM_SUSPECT, batch_id, 1, now_ms).await?.pop())
    }

    async fn lease(&self, sql: &str, batch_id: &str, limit: i64, now_ms: i64) -> Result<Vec<Claimed>, StoreError> {
        let mut values: Vec<Value> = vec![self.instance().into(), batch_id.into(), now_ms.into()];
        if sql.contains("?4") {
            values.push(limit.into());
        }
        let tx = self.begin().await?;
        let lines = Claimed::find_by_statement(statement(sql, values)).all(&tx).await?;
        failpoint("claim.uncommitted");
        self.commit(tx).await?;
        failpoint("claim.committed");
        Ok(lines)
    }

    /// T5. Writes what ended, counts it, and sends a batch whose last line this was to publication: one transaction. An end whose claim
    /// is no longer the line's latest changes nothing, so a group can be written again after an unclear failure.
    pub async fn complete(&self, group: &[Done], now: i64) -> Result<GroupOutcome, StoreError> {
        let tx = self.begin().await?;
        let mut outcome = GroupOutcome::default();
        let mut totals: BTreeMap<&str, Totals> = BTreeMap::new();
        for done in group {
            let Some(repeats) = end_line(&tx, self.instance(), done).await? else {
                outcome.stale += 1;
                continue;
            };
            let LineEnd::Record { ok, body, spill_key, tokens } = &done.end else {
                outcome.reopened += 1;
                continue;
            };
            let sql = "INSERT INTO results (batch_id, line_no, is_error, spill_key, body, seq)
                       VALUES (?1, ?2, ?3, ?4, ?5, (SELECT COALESCE(MAX(seq), 0) + 1 FROM results WHERE batch_id = ?1))";
            let values: [Value; 5] = [
                done.batch_id.as_str().into(),
                done.line_no.into(),
                i64::from(!ok).into(),
                spill_key.clone().into(),
                body.clone().into(),
            ];
            tx.execute_raw(statement(sql, values)).await?;
            outcome.written += 1;
            totals.entry(&done.batch_id).or_default().add(*ok, repeats, tokens);
        }
        for (batch_id, totals) in totals {
            count(&tx, batch_id, &totals, now).await?;
        }
        failpoint("result.uncommitted");
        self.commit(tx).await?;
        failpoint("result.committed");
        Ok(outcome)
    }

    /// Gives up the leases of this process, of one batch or of all; the lines are open again. Answers how many they were.
    pub async fn release_leases(&self, batch_id: Option<&str>) -> Result<u64, StoreError> {
        let sql =
            "UPDATE lines SET state = 0, owner = NULL WHERE state = 1 AND owner = ?1 AND (?2 IS NULL OR batch_id = ?2)";
        let tx = self.begin().await?;
        let released =
            tx.execute_raw(statement(sql, [self.instance().into(), batch_id.map(str::to_owned).into()])).await?;
        self.commit(tx).await?;
        Ok(released.rows_affected())
    }

    /// Voids the leases of processes that died: each such line is open again and suspect. Answers how many they were.
    pub async fn void_dead_leases(&self) -> Result<u64, StoreError> {
        let sql = "UPDATE lines SET state = 0, owner = NULL, suspect = suspect + 1, not_before = 0 WHERE state = 1 AND owner <> ?";
        let tx = self.begin().await?;
        let voided = tx.execute_raw(statement(sql, [self.instance().into()])).await?;
        self.commit(tx).await?;
        Ok(voided.rows_affected())
    }

    /// When the next open line of a batch may be claimed, in Unix milliseconds.
    pub async fn next_due(&self, batch_id: &str) -> Result<Option<i64>, StoreError> {
        let sql = "SELECT MIN(not_before) FROM lines WHERE batch_id = ? AND state = 0";
        let row = self.readers().query_one_raw(statement(sql, [batch_id.into()])).await?;
        Ok(row.map(|row| row.try_get_by_index(0)).transpose()?.flatten())
    }

    pub async fn has_suspects(&self, batch_id: &str) -> Result<bool, StoreError> {
        let sql =
            "SELECT 1 FROM lines INDEXED BY lines_suspect WHERE batch_id = ? AND state = 0 AND suspect > 0 LIMIT 1";
        Ok(self.readers().query_one_raw(statement(sql, [batch_id.into()])).await?.is_some())
    }
}

impl Totals {
    fn add(&mut self, ok: bool, repeats: bool, tokens: &Tokens) {
        self.work += i64::from(!repeats);
        if ok {
            self.done += 1;
        } else {
            self.failed += 1;
        }
        let Tokens { input, cached, output, reasoning } = *tokens;
        for (total, value) in self.tokens.iter_mut().zip([input, cached, output, reasoning]) {
            *total += i64::try_from(value).unwrap_or(i64::MAX);
        }
    }
}

async fn insert(tx: &DatabaseTransaction, batch_id: &str, rows: &[NewLine]) -> Result<(), StoreError> {
    let places = vec!["(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"; rows.len()].join(", ");
    let sql = format!(
        "INSERT INTO lines (batch_id, line_no, custom_hash, digest, off, len, model, prefix, twin, repeats, expected) VALUES {places}"
    );
    let values = rows.iter().flat_map(|line| -> [Value; 11] {
        [
            batch_id.into(),
            line.line_no.into(),
            line.custom_hash.to_vec().into(),
            line.digest.to_vec().into(),
            line.off.into(),
            line.len.into(),
            line.model.as_str().into(),
            line.prefix.clone().into(),
            line.twin.map(|twin| twin.to_vec()).into(),
            i64::from(line.repeats).into(),
            line.expected.into(),
        ]
    });
    tx.execute_raw(statement(&sql, values)).await?;
    Ok(())
}

/// The fence: `Some` if the claim was the line's latest and the line is now out of it, with whether it repeats an earlier one.
async fn end_line(tx: &DatabaseTransaction, owner: &str, done: &Done) -> Result<Option<bool>, StoreError> {
    let (state, not_before): (i64, i64) = match done.end {
        LineEnd::Record { ok: true, .. } => (2, 0),
        LineEnd::Record { ok: false, .. } => (3, 0),
        LineEnd::Reopen { not_before } => (0, not_before),
    };
    let sql = "UPDATE lines SET state = ?, owner = NULL, not_before = ?
               WHERE batch_id = ? AND line_no = ? AND state = 1 AND epoch = ? AND owner = ? RETURNING repeats";
    let values: [Value; 6] = [
        state.into(),
        not_before.into(),
        done.batch_id.as_str().into(),
        done.line_no.into(),
        done.epoch.into(),
        owner.into(),
    ];
    let row = tx.query_one_raw(statement(sql, values)).await?;
    Ok(row.map(|row| row.try_get_by_index::<i64>(0)).transpose()?.map(|repeats| repeats != 0))
}

async fn count(tx: &DatabaseTransaction, batch_id: &str, totals: &Totals, now: i64) -> Result<(), StoreError> {
    let sql = "UPDATE batches SET done = done + ?1, failed = failed + ?2, open_lines = open_lines - ?1 - ?2, open_work = open_work - ?9,
                   input_tokens = input_tokens + ?3, cached_tokens = cached_tokens + ?4,
                   output_tokens = output_tokens + ?5, reasoning_tokens = reasoning_tokens + ?6,
                   finalizing_at = CASE WHEN status = 'in_progress' AND open_lines = ?1 + ?2 THEN ?7 ELSE finalizing_at END,
                   status = CASE WHEN status = 'in_progress' AND open_lines = ?1 + ?2 THEN 'finalizing' ELSE status END
               WHERE id = ?8";
    let [input, cached, output, reasoning] = totals.tokens;
    let values: [Value; 9] = [
        totals.done.into(),
        totals.failed.into(),
        input.into(),
        cached.into(),
        output.into(),
        reasoning.into(),
        now.into(),
        batch_id.into(),
        totals.work.into(),
    ];
    tx.execute_raw(statement(sql, values)).await?;
    Ok(())
}
