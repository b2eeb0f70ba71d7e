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
