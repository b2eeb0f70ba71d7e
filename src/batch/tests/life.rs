use super::*;
use crate::batch::publish::render;
use crate::store::{CancelOutcome, Tenant};

#[tokio::test]
async fn every_line_is_answered_in_its_order() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let batch = world.run(&lines(150, "hello")).await;
    assert_eq!(batch.status, "completed");
    assert_eq!((batch.total, batch.done, batch.failed, batch.open_lines), (150, 150, 0, 0));
    assert_eq!((batch.input_tokens, batch.cached_tokens, batch.output_tokens), (450, 150, 300));
    assert_eq!(batch.model.as_deref(), Some("m1"));
    assert_eq!(batch.error_file_id, None);
    for stamp in [batch.in_progress_at, batch.finalizing_at, batch.completed_at] {
        assert_eq!(stamp, Some(NOW));
    }
    let output = world.output(&batch).await;
    let expected: Vec<_> = (0..150).map(|index| format!("line-{index}")).collect();
    assert_eq!(custom_ids(&output), expected);
    assert_eq!(output[7]["response"]["body"], json!({"echo": "hello 7"}));
    assert_eq!(output[7]["response"]["status_code"], 200);
    assert_eq!(output[7]["error"], Value::Null);
    assert!(output[7]["id"].as_str().unwrap().starts_with("batch_req_"));
    assert!(world.fake.running_max() <= 8);
    assert_eq!(world.store.records(&batch.id, 0, 10).await.unwrap().len(), 0, "the rows are purged");
}

#[tokio::test]
async fn lines_wait_for_a_model_that_is_being_loaded_at_no_cost() {
    let dir = tempfile::tempdir().unwrap();
    // With no attempt but one and no time at all, a line that was tried too early would be lost.
    let change = |settings: &mut Settings| (settings.attempts_max, settings.line_timeout) = (1, Duration::ZERO);
    let world = World::start_with(dir.path(), change).await;
    world.fake.state.ready.send_replace(false);
    let id = world.create(&lines(3, "refuse")).await;
    eventually(async || (world.fake.state.waiting.load(Ordering::SeqCst) == 3).then_some(())).await;
    assert_eq!(world.fake.executions("refuse 0"), 0);
    world.fake.state.ready.send_replace(true);
    let batch = world.ended(&id).await;
    assert_eq!((batch.failed, world.fake.executions("refuse 0")), (3, 1));
    // Refused at the first poll, which comes before the timeout is looked at.
    assert_eq!(world.errors(&batch).await[0]["response"]["status_code"], 400);
}

#[tokio::test]
async fn a_failed_line_keeps_its_response_and_spoils_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let text = [line("a", "hello"), line("b", "refuse"), line("c", "panic"), line("d", "bye")].concat();
    let batch = world.run(&text).await;
    assert_eq!((batch.status.as_str(), batch.done, batch.failed), ("completed", 2, 2));
    assert_eq!(custom_ids(&world.output(&batch).await), ["a", "d"]);
    let errors = world.errors(&batch).await;
    assert_eq!(custom_ids(&errors), ["b", "c"]);
    assert_eq!(errors[0]["error"], Value::Null);
    assert_eq!(errors[0]["response"]["status_code"], 400);
    assert_eq!(errors[0]["response"]["body"]["error"]["code"], "context_length_exceeded");
    assert_eq!(errors[1]["response"]["status_code"], 500);
}

#[tokio::test]
async fn a_batch_of_failures_completes_without_an_output() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let batch = world.run(&lines(5, "refuse")).await;
    assert_eq!((batch.status.as_str(), batch.failed), ("completed", 5));
    assert_eq!(batch.output_file_id, None);
    assert_eq!(world.errors(&batch).await.len(), 5);
}

#[tokio::test]
async fn a_busy_engine_is_asked_again_but_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start_with(dir.path(), |settings| settings.attempts_max = 3).await;
    let id = world.create(&[line("a", "busy-once"), line("b", "busy")].concat()).await;
    // The clock stands still, so what is put off becomes due only as it is moved.
    let clock = Arc::clone(&world.clock);
    let batch = eventually(async || {
        clock.fetch_add(1000, Ordering::SeqCst);
        world.batches.wake();
        world.batches.get(&Tenant::default(), &id).await.ok().filter(|batch| batch.purged == 1)
    })
    .await;
    assert_eq!((batch.done, batch.failed), (1, 1));
    assert_eq!((world.fake.executions("busy-once"), world.fake.executions("busy")), (2, 3));
    let errors = world.errors(&batch).await;
    assert_eq!(errors[0]["response"]["status_code"], 503);
}

#[tokio::test]
async fn cancelling_aborts_what_runs_and_keeps_what_ended() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let id = world.create(&(lines(4, "hello") + &line("wait-1", "gate 1") + &line("wait-2", "gate 2"))).await;
    eventually(async || {
        let batch = world.batches.get(&Tenant::default(), &id).await.unwrap();
        (batch.done == 4 && world.fake.running() == 2).then_some(())
    })
    .await;
    assert!(matches!(world.batches.cancel(&Tenant::default(), &id).await.unwrap(), CancelOutcome::Cancelling(_)));
    let batch = world.ended(&id).await;
    assert_eq!(batch.status, "cancelled");
    assert_eq!((batch.cancelling_at, batch.cancelled_at), (Some(NOW), Some(NOW)));
    assert_eq!((batch.total, batch.done, batch.failed), (6, 4, 0), "lines that were not run are not failed");
    assert_eq!(world.output(&batch).await.len(), 4);
    let errors = world.errors(&batch).await;
    assert_eq!(custom_ids(&errors), ["wait-1", "wait-2"]);
    assert_eq!(errors[0]["response"], Value::Null);
    assert_eq!(errors[0]["error"]["code"], "batch_cancelled");
    eventually(async || (world.fake.running() == 0).then_some(())).await;
    assert!(matches!(world.batches.cancel(&Tenant::default(), &id).await.unwrap(), CancelOutcome::Unchanged(_)));
}

#[tokio::test]
async fn a_batch_ends_with_its_window() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let id = world.create(&(line("a", "hello") + &line("b", "gate"))).await;
    eventually(async || (world.batches.get(&Tenant::default(), &id).await.unwrap().done == 1).then_some(())).await;
    world.clock.fetch_add(DAY_S * 1000, Ordering::SeqCst);
    world.batches.wake();
    let batch = world.ended(&id).await;
    assert_eq!((batch.status.as_str(), batch.cancelled_at), ("expired", None));
    assert_eq!(batch.expired_at, Some(NOW + DAY_S));
    assert_eq!(custom_ids(&world.output(&batch).await), ["a"]);
    assert_eq!(world.errors(&batch).await[0]["error"]["code"], "batch_expired");
}

#[tokio::test]
async fn two_batches_share_the_window() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start_with(dir.path(), |settings| settings.window = 4).await;
    let first = world.create(&lines(50, "gate first")).await;
    eventually(async || (world.fake.running() == 4).then_some(())).await;
    let second = world.create(&lines(2, "hello")).await;
    eventually(async || {
        (world.batches.get(&Tenant::default(), &second).await.unwrap().status == "in_progress").then_some(())
    })
    .await;
    // Room for a few: the second batch gets its part although the first could use it all.
    world.fake.state.gate.add_permits(4);
    let batch = eventually(async || {
        world.fake.state.gate.add_permits(1);
        let batch = world.batches.get(&Tenant::default(), &second).await.unwrap();
        batch.status().unwrap().has_ended().then_some(batch)
    })
    .await;
    assert_eq!(batch.done, 2);
    world.fake.open_gate();
    assert_eq!(world.ended(&first).await.done, 50);
}

#[tokio::test]
async fn a_deleted_input_is_kept_for_the_batch_that_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let file_id = world.upload(&(lines(20, "gate"))).await;
    let key = world.store.file(&Tenant::default(), &file_id, NOW).await.unwrap().storage_key;
    let id = world.create_from(&file_id).await;
    eventually(async || (world.fake.running() > 0).then_some(())).await;
    world.store.delete_file(&Tenant::default(), &file_id, NOW).await.unwrap();
    assert!(world.store.file(&Tenant::default(), &file_id, NOW).await.is_err());
    world.fake.open_gate();
    assert_eq!(world.ended(&id).await.done, 20);
    eventually(async || world.store.blobs().open_blob(&key).await.is_err().then_some(())).await;
}

#[tokio::test]
async fn what_is_published_twice_is_the_same_file() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start_with(dir.path(), |settings| settings.spill_bytes = 300).await;
    let text = lines(60, "hello") + &line("big", &"x".repeat(400)) + &line("bad", "refuse") + &line("wait", "gate");
    let id = world.create(&text).await;
    let batch = eventually(async || {
        world.batches.get(&Tenant::default(), &id).await.ok().filter(|batch| batch.done + batch.failed == 62)
    })
    .await;
    let first = render(&world.store, world.batches.settings(), &batch).await.unwrap();
    let second = render(&world.store, world.batches.settings(), &batch).await.unwrap();
    let hashes =
        |rendered: crate::batch::publish::Rendered| [rendered.output, rendered.error].map(|blob| blob.unwrap().sha256);
    assert_eq!(hashes(first), hashes(second));
}

#[tokio::test]
async fn damaged_input_ends_the_batch_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start_with(dir.path(), |settings| settings.window = 1).await;
    let file_id = world.upload(&lines(3, "gate")).await;
    let key = world.store.file(&Tenant::default(), &file_id, NOW).await.unwrap().storage_key;
    let id = world.create_from(&file_id).await;
    eventually(async || (world.fake.running() == 1).then_some(())).await;
    let path = dir.path().join("blobs").join(&key[..2]).join(&key);
    let mut bytes = fs_err::read(&path).unwrap();
    let last = bytes.len() - 20;
    bytes[last] ^= 1;
    fs_err::write(&path, bytes).unwrap();
    world.fake.open_gate();
    let batch = world.ended(&id).await;
    assert_eq!(batch.status, "failed");
    assert!(batch.errors.unwrap().contains("input_file_corrupt"));
    assert_eq!(world.run(&lines(2, "hello")).await.status, "completed");
}

#[tokio::test]
async fn a_line_that_takes_too_long_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start_with(dir.path(), |settings| settings.line_timeout = Duration::from_millis(20)).await;
    let batch = world.run(&(line("a", "gate") + &line("b", "hello"))).await;
    assert_eq!((batch.status.as_str(), batch.done, batch.failed), ("completed", 1, 1));
    assert_eq!(world.errors(&batch).await[0]["error"]["code"], "request_timeout");
}
