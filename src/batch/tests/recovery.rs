use tokio::runtime::Runtime;

use super::*;

/// Lets `work` go as far as it wants in a process of its own, as it were, which then dies: nothing of it is told to stop.
fn until_killed<T>(work: impl Future<Output = T>) -> T {
    let runtime = Runtime::new().unwrap();
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(Duration::from_secs(10));
    result
}

#[test]
fn a_killed_batch_is_finished_by_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let text = lines(100, "hello")
        + &lines(12, "gate").replace("line-", "gate-")
        + &lines(100, "bye").replace("line-", "bye-");
    let id = until_killed(async {
        let world = World::start(dir.path()).await;
        let id = world.create(&text).await;
        eventually(async || {
            let batch = world.batches.get(&Tenant::default(), &id).await.unwrap();
            (batch.done == 100 && world.fake.running() == 8).then_some(())
        })
        .await;
        id
    });
    until_killed(async {
        let world = World::start(dir.path()).await;
        world.fake.open_gate();
        let batch = world.ended(&id).await;
        assert_eq!((batch.status.as_str(), batch.total, batch.done, batch.failed), ("completed", 212, 212, 0));
        let output = world.output(&batch).await;
        let expected: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(custom_ids(&output), custom_ids(&expected), "each line once, in its place");
        assert_eq!(world.fake.executions("hello 3"), 0, "what was written is not run again");
        assert_eq!(world.fake.executions("gate 3"), 1);
    });
}

#[test]
fn a_half_checked_file_is_checked_on() {
    let dir = tempfile::tempdir().unwrap();
    let text = lines(2500, "hello") + &line("line-7", "again");
    let id = until_killed(async {
        let clock = Arc::new(AtomicI64::new(NOW * 1000));
        let store = Store::open(dir.path()).await.unwrap();
        let world = World { fake: Fake::default(), batches: idle(&store, &clock).await, store, clock };
        let id = world.create(&text).await;
        let batch = world.batches.get(&Tenant::default(), &id).await.unwrap();
        // The first chunk only, as if the process had died after it.
        ingest_first_chunk(&world, &batch).await;
        id
    });
    until_killed(async {
        let world = World::start(dir.path()).await;
        let batch = world.ended(&id).await;
        assert_eq!(batch.status, "failed");
        let errors: Value = serde_json::from_str(&batch.errors.unwrap()).unwrap();
        assert_eq!(errors[0]["code"], "duplicate_custom_id", "the lines of the first process are remembered");
        assert_eq!(errors[0]["line"], 2501);
        assert_eq!(errors.as_array().unwrap().len(), 1);
    });
}

/// Batches whose runner has stopped: rows change only by the test's hand.
async fn idle(store: &Store, clock: &Arc<AtomicI64>) -> Batches {
    let batches = Batches::start(store.clone(), Fake::default(), settings(clock)).await.unwrap();
    batches.stop().await;
    batches
}

async fn ingest_first_chunk(world: &World, batch: &Batch) {
    use crate::batch::line::{custom_hash, digest};
    use crate::store::{IngestPoint, NewLine};
    let text = world.store.blobs().read(batch.input_key.as_ref().unwrap()).await.unwrap();
    let (mut off, mut chunk) = (0, Vec::new());
    for (index, line) in text.split_inclusive(|byte| *byte == b'\n').take(1000).enumerate() {
        let value: Value = serde_json::from_slice(line).unwrap();
        chunk.push(NewLine {
            line_no: i64::try_from(index).unwrap() + 1,
            custom_hash: custom_hash(value["custom_id"].as_str().unwrap()),
            digest: digest(line.trim_ascii()),
            off,
            len: i64::try_from(line.trim_ascii().len()).unwrap(),
            model: "m1".to_owned(),
            prefix: Vec::new(),
            twin: None,
            repeats: false,
            expected: 0,
        });
        off += i64::try_from(line.len()).unwrap();
    }
    let point = IngestPoint { next_line: 1001, next_offset: off, errors: None };
    assert!(world.store.ingest(&batch.id, &chunk, &point).await.unwrap());
}

#[test]
fn a_line_that_kills_is_found_and_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let text = lines(4, "gate killer") + &lines(30, "hello").replace("line-", "hello-");
    let id = until_killed(async {
        let world = World::start_with(dir.path(), |settings| settings.window = 4).await;
        let id = world.create(&text).await;
        eventually(async || (world.fake.running() == 4).then_some(())).await;
        id
    });
    for _ in 0..2 {
        until_killed(async {
            let world = World::start(dir.path()).await;
            eventually(async || (world.fake.running() == 1).then_some(())).await;
            assert_eq!(world.fake.executions("gate killer 0"), 1, "suspects run in their order");
            assert_eq!(world.fake.running_max(), 1, "and alone");
        });
    }
    until_killed(async {
        let world = World::start(dir.path()).await;
        world.fake.open_gate();
        let batch = world.ended(&id).await;
        assert_eq!((batch.status.as_str(), batch.done, batch.failed), ("completed", 33, 1));
        assert_eq!(world.fake.executions("gate killer 0"), 0);
        let errors = world.errors(&batch).await;
        assert_eq!(errors[0]["custom_id"], "line-0");
        assert_eq!(errors[0]["error"]["code"], "engine_crash");
        assert_eq!(errors[0]["response"], Value::Null);
    });
}

#[test]
fn a_stop_lets_go_of_the_lines_without_suspicion() {
    let dir = tempfile::tempdir().unwrap();
    let id = until_killed(async {
        let world = World::start_with(dir.path(), |settings| settings.stop_grace = Duration::ZERO).await;
        let id = world.create(&lines(20, "gate")).await;
        eventually(async || (world.fake.running() == 8).then_some(())).await;
        world.batches.stop().await;
        assert_eq!(world.fake.running(), 0);
        world.store.close().await.unwrap();
        assert!(!world.store.has_suspects(&id).await.unwrap());
        id
    });
    until_killed(async {
        let world = World::start(dir.path()).await;
        eventually(async || (world.fake.running() == 8).then_some(())).await;
        world.fake.open_gate();
        assert_eq!(world.ended(&id).await.done, 20);
    });
}

#[test]
fn a_cancel_survives_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let id = until_killed(async {
        let clock = Arc::new(AtomicI64::new(NOW * 1000));
        let world = World::start(dir.path()).await;
        let id = world.create(&lines(10, "gate")).await;
        eventually(async || (world.fake.running() == 8).then_some(())).await;
        world.store.cancel_batch(&Tenant::default(), &id, clock.load(Ordering::SeqCst) / 1000).await.unwrap();
        id
    });
    until_killed(async {
        let world = World::start(dir.path()).await;
        let batch = world.ended(&id).await;
        assert_eq!(batch.status, "cancelled");
        assert_eq!(world.errors(&batch).await.len(), 10);
        assert_eq!(batch.output_file_id, None);
    });
}

#[test]
fn suspects_of_a_paused_batch_are_run_when_it_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let id = until_killed(async {
        let world = World::start(dir.path()).await;
        let id = world.create(&lines(20, "gate")).await;
        eventually(async || (world.fake.running() == 8).then_some(())).await;
        world.batches.pause(&Tenant::default(), &id, true).await.unwrap();
        id
    });
    until_killed(async {
        let world = World::start(dir.path()).await;
        world.fake.open_gate();
        // Others run meanwhile, and are not held up.
        assert_eq!(world.run(&lines(3, "hello")).await.done, 3);
        assert!(world.store.has_suspects(&id).await.unwrap());
        world.batches.pause(&Tenant::default(), &id, false).await.unwrap();
        assert_eq!(world.ended(&id).await.done, 20);
    });
}
