use super::*;

/// How many lines of each tenant have started: theirs begin with "gate" and its name.
fn started(world: &World, tenant: &str) -> usize {
    let order = world.fake.state.order.lock().unwrap();
    order.iter().filter(|content| content.starts_with(&format!("gate {tenant}"))).count()
}

/// Ten batches of one against one of another, which comes last: it has half of the places as soon as they are free.
#[tokio::test]
async fn tenants_have_equal_shares_however_many_batches_they_have() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let [many, one]: [Tenant; 2] = ["many", "one"].map(|name| name.parse().unwrap());
    for batch in 0..10 {
        world.create_of(&many, &lines(20, &format!("gate many {batch}"))).await;
    }
    eventually(async || (world.fake.running() == 8).then_some(())).await;
    let id = world.create_of(&one, &lines(20, "gate one")).await;
    eventually(async || (world.batches.get(&one, &id).await.unwrap().status == "in_progress").then_some(())).await;
    world.fake.state.gate.add_permits(4);
    eventually(async || (started(&world, "one") == 4).then_some(())).await;
    assert_eq!(started(&world, "many"), 8, "the four places that were left went to the other");
    world.fake.open_gate();
    eventually(async || (started(&world, "one") + started(&world, "many") == 220).then_some(())).await;
    let order = world.fake.state.order.lock().unwrap().clone();
    let last = order.iter().rposition(|content| content.starts_with("gate one")).unwrap();
    assert!(last < 20 + 20 + 2 * 8, "{last} lines had started before the last of the other tenant");
}

#[tokio::test]
async fn the_lower_priority_of_a_tenants_batches_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    // One at a time runs: it is not the oldest.
    let world = World::start_with(dir.path(), |settings| settings.concurrent_max = 1).await;
    let id = world.create(&lines(8, "gate first")).await;
    eventually(async || (world.fake.running() == 8).then_some(())).await;
    let mut waiting = Vec::new();
    for (priority, content) in [(0, "gate usual"), (5, "gate late"), (-5, "gate urgent")] {
        let file_id = world.upload(&lines(8, content)).await;
        let new = NewBatch { priority, ..new_batch(&Tenant::default(), &file_id) };
        let Created::New(batch) = world.batches.create(new).await.unwrap() else { panic!("not new") };
        waiting.push(batch.id);
    }
    for id in &waiting {
        let get = async || world.batches.get(&Tenant::default(), id).await.unwrap();
        eventually(async || (get().await.status == "in_progress").then_some(())).await;
    }
    world.fake.open_gate();
    for id in waiting.iter().chain([&id]) {
        assert_eq!(world.ended(id).await.done, 8);
    }
    let order = world.fake.state.order.lock().unwrap().clone();
    let of = |place: usize| order[place * 8].split(' ').nth(1).unwrap().to_owned();
    assert_eq!([of(0), of(1), of(2), of(3)], ["first", "urgent", "usual", "late"]);
}

#[tokio::test]
async fn no_line_starts_before_the_batchs_time() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let file_id = world.upload(&lines(8, "later")).await;
    let new = NewBatch { not_before: Some(NOW + 60), ..new_batch(&Tenant::default(), &file_id) };
    let Created::New(later) = world.batches.create(new).await.unwrap() else { panic!("not new") };
    let get = async || world.batches.get(&Tenant::default(), &later.id).await.unwrap();
    eventually(async || (get().await.status == "in_progress").then_some(())).await;
    // All that came after it is through by now.
    assert_eq!(world.run(&lines(20, "hello")).await.done, 20);
    assert_eq!((get().await.done, world.fake.state.started.load(Ordering::SeqCst)), (0, 20));
    world.clock.fetch_add(60_000, Ordering::SeqCst);
    world.batches.wake();
    assert_eq!(world.ended(&later.id).await.done, 8);
}
