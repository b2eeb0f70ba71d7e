use super::*;
use crate::batch::BatchStatus;
use crate::openai::AllowedModels;

const NOW: i64 = 1_800_000_000;

async fn batch_of(store: &Store, lines: i64) -> String {
    let blob = store.blobs().put(b"text").await.unwrap();
    let file = NewFile {
        tenant: Tenant::default(),
        purpose: "batch".to_owned(),
        filename: "x".to_owned(),
        blob,
        created_at: NOW,
        expires_at: None,
    };
    let file = store.add_file(file, None).await.unwrap();
    let new = NewBatch {
        tenant: Tenant::default(),
        input_file_id: file.id,
        endpoint: "/v1/completions".to_owned(),
        window: "24h".to_owned(),
        window_s: 86400,
        metadata: None,
        output_expires_s: None,
        priority: 0,
        not_before: None,
        models: AllowedModels::default(),
        identity: None,
    };
    let Created::New(batch) = store.create_batch(new, 10, NOW).await.unwrap() else { panic!("not new") };
    let lines: Vec<_> = (1..=lines)
        .map(|line_no| NewLine {
            line_no,
            custom_hash: u128::try_from(line_no).unwrap().to_be_bytes(),
            digest: [0; 8],
            off: 0,
            len: 4,
            model: "m".to_owned(),
            prefix: Vec::new(),
            twin: None,
            repeats: false,
            expected: 0,
        })
        .collect();
    let point = IngestPoint { next_line: 1, next_offset: 0, errors: None };
    assert!(store.ingest(&batch.id, &lines, &point).await.unwrap());
    assert!(store.start_lines(&batch.id, NOW).await.unwrap());
    batch.id
}

fn done(batch_id: &str, line: &Claimed) -> Done {
    let end = LineEnd::Record { ok: true, body: Some(b"{}\n".to_vec()), spill_key: None, tokens: Tokens::default() };
    Done { batch_id: batch_id.to_owned(), line_no: line.line_no, epoch: line.epoch, end }
}

#[tokio::test]
async fn a_result_of_an_old_claim_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let id = batch_of(&store, 2).await;
    let old = store.claim(&id, ClaimOrder::Prefix, 1, 0).await.unwrap().remove(0);
    assert_eq!(store.release_leases(Some(&id)).await.unwrap(), 1);
    let zombie = [done(&id, &old)];
    assert_eq!(store.complete(&zombie, NOW).await.unwrap(), GroupOutcome { stale: 1, ..GroupOutcome::default() });
    let new = store.claim(&id, ClaimOrder::Prefix, 1, 0).await.unwrap().remove(0);
    assert_eq!((new.line_no, new.attempt, new.epoch), (1, 2, 2));
    assert_eq!(store.complete(&zombie, NOW).await.unwrap().stale, 1);
    assert_eq!(store.batch(&Tenant::default(), &id).await.unwrap().done, 0);
    let group = [done(&id, &new)];
    assert_eq!(store.complete(&group, NOW).await.unwrap().written, 1);
    assert_eq!(store.complete(&group, NOW).await.unwrap().stale, 1, "a group may be written again");
    let batch = store.batch(&Tenant::default(), &id).await.unwrap();
    assert_eq!((batch.done, batch.open_lines, batch.status), (1, 1, "in_progress".to_owned()));
    assert!(!store.recount(&id).await.unwrap(), "the counters are right");
}

#[tokio::test]
async fn the_last_line_sends_the_batch_to_publication() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let id = batch_of(&store, 3).await;
    let claimed = store.claim(&id, ClaimOrder::Prefix, 5, 0).await.unwrap();
    assert_eq!(claimed.iter().map(|line| line.line_no).collect::<Vec<_>>(), [1, 2, 3]);
    let group: Vec<_> = claimed.iter().map(|line| done(&id, line)).collect();
    store.complete(&group, NOW).await.unwrap();
    assert_eq!(store.batch(&Tenant::default(), &id).await.unwrap().status().unwrap(), BatchStatus::Finalizing);
    assert!(!store.stop_batch(&id, crate::batch::StopReason::Cancel, NOW).await.unwrap(), "too late to cancel");
    let old = store.begin_publish(&id).await.unwrap().unwrap();
    let new = store.begin_publish(&id).await.unwrap().unwrap();
    let nothing = || PublishedFiles { output: None, error: None, index: None };
    assert!(!store.publish(&id, old, nothing(), NOW, false).await.unwrap(), "an overtaken publication ends nothing");
    assert!(store.publish(&id, new, nothing(), NOW, false).await.unwrap());
    assert_eq!(store.batch(&Tenant::default(), &id).await.unwrap().status, "completed");
}

#[tokio::test]
async fn an_ended_batch_stays_ended() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let id = batch_of(&store, 1).await;
    assert!(store.fail_batch(&id, "[]", NOW, false).await.unwrap());
    assert!(!store.fail_batch(&id, "[]", NOW, false).await.unwrap());
    let tx = store.begin().await.unwrap();
    let back =
        tx.execute_raw(statement("UPDATE batches SET status = 'in_progress' WHERE id = ?", [id.as_str().into()])).await;
    assert!(back.unwrap_err().to_string().contains("keeps its status"));
}

#[tokio::test]
async fn miscounting_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let id = batch_of(&store, 1).await;
    let tx = store.begin().await.unwrap();
    let drift =
        tx.execute_raw(statement("UPDATE batches SET done = done + 1 WHERE id = ?", [id.as_str().into()])).await;
    assert!(drift.unwrap_err().to_string().contains("CHECK"));
}

#[tokio::test]
async fn a_claim_reads_only_open_lines() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let explain = format!("EXPLAIN QUERY PLAN {}", lines::CLAIM_OPEN);
    let values: [Value; 4] = ["i".into(), "b".into(), 0_i64.into(), 1_i64.into()];
    let rows = store.readers().query_all_raw(statement(&explain, values)).await.unwrap();
    let plan: Vec<String> = rows.iter().map(|row| row.try_get("", "detail").unwrap()).collect();
    assert!(plan.iter().any(|step| step.contains("INDEX lines_open (batch_id=?)")), "{plan:#?}");
    assert!(!plan.iter().any(|step| step.contains("TEMP B-TREE")), "{plan:#?}");
}

#[tokio::test]
async fn a_directory_has_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let error = Store::open(dir.path()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("the data directory is locked by pid {}", std::process::id()));
    drop(store);
    Store::open(dir.path()).await.unwrap();
}

#[tokio::test]
async fn garbage_is_what_nothing_names() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let orphan = store.blobs().put(b"orphan").await.unwrap();
    let kept = store.blobs().put(b"kept").await.unwrap();
    assert_eq!(kept.sha256.len(), 64);
    let file = NewFile {
        tenant: Tenant::default(),
        purpose: "batch".to_owned(),
        filename: "x".to_owned(),
        blob: kept.clone(),
        created_at: NOW,
        expires_at: Some(NOW + 10),
    };
    let file = store.add_file(file, None).await.unwrap();
    let mut unfinished = store.blobs().create().await.unwrap();
    unfinished.write(b"half").await.unwrap();
    std::mem::forget(unfinished);
    assert_eq!(store.collect_garbage().await.unwrap(), 2);
    assert!(store.blobs().read(&orphan.key).await.is_err());
    assert_eq!(store.blobs().read(&kept.key).await.unwrap(), b"kept");
    assert!(store.file(&Tenant::default(), &file.id, NOW + 10).await.is_err(), "expired");
    assert_eq!(store.delete_expired_files(NOW + 10).await.unwrap(), 1);
    assert!(store.blobs().read(&kept.key).await.is_err());
}

#[tokio::test]
async fn a_repeated_key_is_the_same_request() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let new = |hash: &str| NewBatch {
        tenant: Tenant::default(),
        input_file_id: "file-x".to_owned(),
        endpoint: "/v1/completions".to_owned(),
        window: "24h".to_owned(),
        window_s: 86400,
        metadata: None,
        output_expires_s: None,
        priority: 0,
        not_before: None,
        models: AllowedModels::default(),
        identity: Some(Identity { key: Some("key".to_owned()), hash: hash.to_owned(), repeated: false }),
    };
    let Created::New(first) = store.create_batch(new("a"), 1, NOW).await.unwrap() else { panic!("not new") };
    let Created::Known(again) = store.create_batch(new("a"), 1, NOW + 5).await.unwrap() else { panic!("not known") };
    assert_eq!(first.id, again.id);
    assert!(matches!(store.create_batch(new("b"), 1, NOW).await.unwrap(), Created::Mismatch));
    assert!(matches!(store.create_batch(new("b"), 1, NOW + 86400).await.unwrap(), Created::TooMany));
    assert!(
        matches!(store.create_batch(new("b"), 2, NOW + 86400).await.unwrap(), Created::New(_)),
        "a day later it is new"
    );
}

#[tokio::test]
async fn what_there_was_before_tenants_is_the_default_tenant_s() {
    let dir = tempfile::tempdir().unwrap();
    let old = connect(&dir.path().join("tandem.db"), 1, false).await.unwrap();
    Migrator::up(&old, Some(3)).await.unwrap();
    let sql =
        "INSERT INTO batches (id, endpoint, input_file_id, window, status, idem_key, idem_hash, created_at, expires_at)
               VALUES ('batch_a', '/v1/completions', 'file-x', '24h', 'validating', 'key', 'a', ?, ?)";
    old.execute_raw(statement(sql, [NOW.into(), (NOW + 86400).into()])).await.unwrap();
    old.close().await.unwrap();

    let store = Store::open(dir.path()).await.unwrap();
    let batch = store.batch(&Tenant::default(), "batch_a").await.unwrap();
    let other: Tenant = "other".parse().unwrap();
    assert!(store.batch(&other, "batch_a").await.is_err());
    let again = |tenant: &Tenant| NewBatch {
        tenant: tenant.clone(),
        input_file_id: "file-x".to_owned(),
        endpoint: "/v1/completions".to_owned(),
        window: "24h".to_owned(),
        window_s: 86400,
        metadata: None,
        output_expires_s: None,
        priority: 0,
        not_before: None,
        models: AllowedModels::default(),
        identity: Some(Identity { key: Some("key".to_owned()), hash: "a".to_owned(), repeated: false }),
    };
    let Created::Known(known) = store.create_batch(again(&batch.tenant()), 10, NOW).await.unwrap() else {
        panic!("not known")
    };
    assert_eq!(known.id, "batch_a");
    assert!(matches!(store.create_batch(again(&other), 10, NOW).await.unwrap(), Created::New(_)));
}
