use super::*;

const HOUR_MS: i64 = 3600 * 1000;

/// A world whose wall clock and time gone by are two things.
async fn world(dir: &Path) -> (World, Arc<AtomicI64>) {
    let elapsed = Arc::new(AtomicI64::new(0));
    let wall = Arc::new(AtomicI64::new(NOW * 1000));
    let (hand, other) = (Arc::clone(&wall), Arc::clone(&elapsed));
    let clock = Clock::from_fns(move || hand.load(Ordering::SeqCst), move || other.load(Ordering::SeqCst));
    let world = World::start_with(dir, |settings| settings.clock = clock).await;
    (World { clock: wall, ..world }, elapsed)
}

#[tokio::test]
async fn a_clock_that_is_set_forward_ends_no_window_and_deletes_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let (world, elapsed) = world(dir.path()).await;
    let id = world.create(&lines(3, "gate")).await;
    eventually(async || (world.fake.running() == 3).then_some(())).await;
    let blob = world.store.blobs().put(b"kept").await.unwrap();
    let key = blob.key.clone();
    let (tenant, purpose, filename) = (Tenant::default(), "user_data".to_owned(), "x".to_owned());
    let file = NewFile { tenant, purpose, filename, blob, created_at: NOW, expires_at: Some(NOW + DAY_S) };
    world.store.add_file(file, None).await.unwrap();
    world.clock.fetch_add(25 * HOUR_MS, Ordering::SeqCst);
    // By its end everything has been looked at by the new time.
    assert_eq!(world.run(&line("a", "hello")).await.done, 1);
    let batch = world.batches.get(&Tenant::default(), &id).await.unwrap();
    assert_eq!((batch.status.as_str(), world.fake.running()), ("in_progress", 3));
    assert_eq!(world.store.blobs().read(&key).await.unwrap(), b"kept");
    elapsed.fetch_add(25 * HOUR_MS, Ordering::SeqCst);
    world.batches.wake();
    assert_eq!(world.ended(&id).await.status, "expired");
    eventually(async || world.store.blobs().read(&key).await.is_err().then_some(())).await;
}

#[tokio::test]
async fn a_clock_that_is_set_back_keeps_no_line_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let (world, _) = world(dir.path()).await;
    // The line is to be tried again in a moment that is then a day and an hour away.
    let id = world.create(&(line("a", "busy-once") + &line("b", "gate"))).await;
    let open = async || world.store.next_due(&id).await.unwrap().filter(|due| *due > NOW * 1000);
    eventually(async || open().await).await;
    world.clock.fetch_sub(25 * HOUR_MS, Ordering::SeqCst);
    world.fake.open_gate();
    assert_eq!(world.ended(&id).await.done, 2);
}
