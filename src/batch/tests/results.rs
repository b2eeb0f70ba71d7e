use super::*;
use crate::batch::{Followed, Follower, ResultsError, ResultsPage, ResultsQuery};

/// Numbers and ids of the lines of a page.
fn listed(page: &ResultsPage) -> Vec<(i64, String)> {
    let id = |record: &[u8]| serde_json::from_slice::<Value>(record).unwrap()["custom_id"].as_str().unwrap().to_owned();
    page.lines.iter().map(|line| (line.seq, id(&line.record))).collect()
}

/// All finished lines, in pages of `limit`.
async fn all(world: &World, id: &str, failed: Option<bool>, limit: usize) -> Vec<(i64, String)> {
    let (mut query, mut found) = (ResultsQuery { after: 0, failed }, Vec::new());
    loop {
        let page = world.batches.results(&Tenant::default(), id, query, limit).await.unwrap();
        assert!(page.lines.len() <= limit);
        found.extend(listed(&page));
        let Some(last) = page.lines.last().filter(|_| page.has_more) else { return found };
        query.after = last.seq;
    }
}

#[tokio::test]
async fn a_place_among_the_results_holds_beyond_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start_with(dir.path(), |settings| settings.spill_bytes = 300).await;
    let text = line("gate-1", "gate a")
        + &lines(60, "hello")
        + &line("big", &"x".repeat(400))
        + &line("bad", "refuse")
        + &line("gate-2", "gate b");
    let id = world.create(&text).await;
    eventually(async || {
        let batch = world.batches.get(&Tenant::default(), &id).await.unwrap();
        (batch.done + batch.failed == 62).then_some(())
    })
    .await;
    let before = all(&world, &id, None, 7).await;
    assert_eq!(before.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), (1..=62).collect::<Vec<_>>());
    assert_eq!(all(&world, &id, Some(true), 7).await.iter().map(|(_, id)| id.as_str()).collect::<Vec<_>>(), ["bad"]);
    let records = world.batches.results(&Tenant::default(), &id, ResultsQuery::default(), 1000).await.unwrap();
    assert!(!records.has_more);
    world.batches.cancel(&Tenant::default(), &id).await.unwrap();
    let batch = world.ended(&id).await;
    let after = all(&world, &id, None, 5).await;
    assert_eq!(after[..62], before, "lines keep their places");
    let rest =
        world.batches.results(&Tenant::default(), &id, ResultsQuery { after: 62, failed: None }, 10).await.unwrap();
    let gates: Vec<_> = listed(&rest).into_iter().map(|(seq, id)| (seq, id.starts_with("gate-"))).collect();
    assert_eq!((gates, rest.has_more), (vec![(63, true), (64, true)], false));
    let again = world.batches.results(&Tenant::default(), &id, ResultsQuery::default(), 1000).await.unwrap();
    assert_eq!(again.lines[..62], records.lines, "the same bytes from rows and from files");
    assert_eq!(all(&world, &id, Some(true), 1).await.len(), 3);
    assert_eq!(all(&world, &id, Some(false), 100).await.len(), 61);
    // What is deleted is not read, and takes its index along.
    world.store.delete_file(&Tenant::default(), batch.error_file_id.as_ref().unwrap(), NOW).await.unwrap();
    let gone = world.batches.results(&Tenant::default(), &id, ResultsQuery::default(), 100).await;
    assert!(matches!(gone, Err(ResultsError::Gone)), "{gone:?}");
    assert_eq!(all(&world, &id, Some(false), 100).await.len(), 61);
    world.store.delete_file(&Tenant::default(), batch.output_file_id.as_ref().unwrap(), NOW).await.unwrap();
    let index = world.store.blobs().open_blob(batch.index_key.as_ref().unwrap()).await;
    assert!(index.is_err(), "no file needs it");
    let gone = world.batches.results(&Tenant::default(), &id, ResultsQuery::default(), 100).await;
    assert!(matches!(gone, Err(ResultsError::Gone)), "{gone:?}");
}

#[tokio::test]
async fn a_batch_that_failed_its_check_has_no_results() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let batch = world.run("{\n").await;
    let page = world.batches.results(&Tenant::default(), &batch.id, ResultsQuery::default(), 10).await.unwrap();
    assert_eq!((page.lines.len(), page.has_more, page.batch.status.as_str()), (0, false, "failed"));
}

async fn next_id(follower: &mut Follower) -> Option<String> {
    match follower.next().await.unwrap()? {
        Followed::Line(line) => {
            let record: Value = serde_json::from_slice(&line.record).unwrap();
            Some(record["custom_id"].as_str().unwrap().to_owned())
        }
        Followed::Ended(batch) => Some(batch.status),
    }
}

#[tokio::test]
async fn a_follower_is_told_of_each_line_and_of_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let id = world.create(&lines(3, "gate")).await;
    let mut follower = world.batches.follow(&Tenant::default(), &id, ResultsQuery::default()).await.unwrap();
    let mut told = Vec::new();
    for _ in 0..3 {
        world.fake.state.gate.add_permits(1);
        told.push(next_id(&mut follower).await.unwrap());
    }
    assert_eq!(next_id(&mut follower).await.as_deref(), Some("completed"));
    told.sort();
    assert_eq!(told, ["line-0", "line-1", "line-2"]);
    // One that comes after the end reads the files.
    let mut late =
        world.batches.follow(&Tenant::default(), &id, ResultsQuery { after: 2, failed: None }).await.unwrap();
    assert!(next_id(&mut late).await.unwrap().starts_with("line-"));
    assert_eq!(next_id(&mut late).await.as_deref(), Some("completed"));
    assert!(matches!(
        world.batches.follow(&Tenant::default(), "batch_x", ResultsQuery::default()).await,
        Err(ResultsError::Store(crate::store::StoreError::NotFound))
    ));
}

#[tokio::test]
async fn a_follower_ends_when_the_server_stops() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start_with(dir.path(), |settings| settings.stop_grace = Duration::ZERO).await;
    let id = world.create(&lines(3, "gate")).await;
    let mut follower = world.batches.follow(&Tenant::default(), &id, ResultsQuery::default()).await.unwrap();
    let (next, ()) = tokio::join!(next_id(&mut follower), world.batches.stop());
    assert_eq!(next, None);
}
