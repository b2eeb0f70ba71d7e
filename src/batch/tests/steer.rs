use super::*;

#[tokio::test]
async fn a_paused_batch_starts_no_line_and_keeps_none_from_running() {
    let dir = tempfile::tempdir().unwrap();
    // One batch at a time: a paused one must not be it.
    let world = World::start_with(dir.path(), |settings| (settings.window, settings.concurrent_max) = (2, 1)).await;
    let id = world.create(&(lines(2, "gate") + &lines(20, "hello").replace("line-", "hello-"))).await;
    eventually(async || (world.fake.running() == 2).then_some(())).await;
    let paused = world.batches.pause(&Tenant::default(), &id, true).await.unwrap();
    assert_eq!((paused.status.as_str(), paused.paused_at), ("in_progress", Some(NOW)));
    world.clock.fetch_add(1000, Ordering::SeqCst);
    assert_eq!(world.batches.pause(&Tenant::default(), &id, true).await.unwrap(), paused, "again changes nothing");
    world.fake.open_gate();
    eventually(async || (world.batches.get(&Tenant::default(), &id).await.unwrap().done == 2).then_some(())).await;
    assert_eq!(world.run(&lines(20, "another")).await.done, 20);
    let batch = world.batches.get(&Tenant::default(), &id).await.unwrap();
    assert_eq!((batch.done, batch.open_lines), (2, 20), "lines in flight end, and no other starts");
    assert_eq!(world.batches.pause(&Tenant::default(), &id, false).await.unwrap().paused_at, None);
    assert_eq!(world.batches.pause(&Tenant::default(), &id, false).await.unwrap().paused_at, None);
    assert_eq!(world.ended(&id).await.done, 22);
    let ended = world.batches.pause(&Tenant::default(), &id, true).await.unwrap();
    assert_eq!((ended.status.as_str(), ended.paused_at), ("completed", None), "too late");
}

#[tokio::test]
async fn a_pause_outlives_the_process_and_not_the_window() {
    let dir = tempfile::tempdir().unwrap();
    let id = {
        let world = World::start(dir.path()).await;
        let id = world.create(&lines(20, "gate")).await;
        eventually(async || (world.fake.running() == 8).then_some(())).await;
        world.batches.pause(&Tenant::default(), &id, true).await.unwrap();
        world.fake.open_gate();
        eventually(async || (world.batches.get(&Tenant::default(), &id).await.unwrap().done == 8).then_some(())).await;
        world.batches.stop().await;
        world.store.close().await.unwrap();
        id
    };
    let world = World::start(dir.path()).await;
    assert_eq!(world.run(&lines(3, "hello")).await.done, 3);
    assert_eq!(world.fake.executions("gate 9"), 0);
    world.clock.fetch_add(DAY_S * 1000, Ordering::SeqCst);
    world.batches.wake();
    let batch = world.ended(&id).await;
    assert_eq!((batch.status.as_str(), batch.done), ("expired", 8));
}

#[tokio::test]
async fn a_batch_that_runs_has_a_rate() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let id = world.create(&(lines(6, "hello") + &line("wait", "gate"))).await;
    let batch =
        eventually(async || world.batches.get(&Tenant::default(), &id).await.ok().filter(|batch| batch.done == 6))
            .await;
    let rate = world.batches.rate(&id).unwrap();
    assert_eq!((rate.model.as_str(), batch.output_tokens), ("m1", 12));
    assert!(rate.lines_per_second > 0.0);
    assert!((rate.tokens_per_second - 5.0 * rate.lines_per_second).abs() < 1e-6, "{rate:?}");
    world.fake.open_gate();
    world.ended(&id).await;
    assert_eq!(world.batches.rate(&id), None, "what has ended is forgotten");
}

#[tokio::test]
async fn an_end_is_noted_where_it_is_to_be_told() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start_with(dir.path(), |settings| settings.tell_ends = true).await;
    let expired = world.create(&line("a", "gate")).await;
    eventually(async || (world.fake.running() == 1).then_some(())).await;
    let completed = world.run(&line("a", "hello")).await.id;
    world.clock.fetch_add(DAY_S * 1000, Ordering::SeqCst);
    world.batches.wake();
    world.ended(&expired).await;
    let failed = world.run("{\n").await.id;
    let events = world.store.due_events(i64::MAX, 10).await.unwrap();
    let noted: Vec<_> = events.iter().map(|event| (event.kind.as_str(), event.batch_id.as_str())).collect();
    let expected = [("batch.completed", &completed), ("batch.expired", &expired), ("batch.failed", &failed)];
    assert_eq!(noted, expected.map(|(kind, id)| (kind, id.as_str())));
    let quiet = tempfile::tempdir().unwrap();
    let world = World::start(quiet.path()).await;
    world.run(&line("a", "hello")).await;
    assert_eq!(world.store.next_event_at().await.unwrap(), None, "nobody is to be told");
}
