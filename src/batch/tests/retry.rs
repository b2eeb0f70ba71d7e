use super::*;
use crate::batch::{BatchStatus, EstimateError, EstimateOrder, ModelEstimate, RetryError};
use crate::store::{Identity, StoreError};

async fn retry(world: &World, id: &str) -> String {
    let Created::New(batch) =
        world.batches.retry(&Tenant::default(), AllowedModels::default(), id, None).await.unwrap()
    else {
        panic!("not new")
    };
    batch.id
}

#[tokio::test]
async fn lines_that_failed_or_were_not_run_are_run_again_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let spaced = line("bad", "refuse it").replace("\"method\"", "   \"method\"");
    let text = lines(4, "hello") + &spaced + &line("later", "gate") + "\n" + &line("never", "gate");
    let file_id = world.upload(&text).await;
    let id = world.create_from(&file_id).await;
    eventually(async || {
        (world.batches.get(&Tenant::default(), &id).await.unwrap().failed == 1 && world.fake.running() == 2)
            .then_some(())
    })
    .await;
    let running = world.batches.retry(&Tenant::default(), AllowedModels::default(), &id, None).await;
    assert!(matches!(running, Err(RetryError::Running(BatchStatus::InProgress))), "{running:?}");
    world.batches.cancel(&Tenant::default(), &id).await.unwrap();
    let ended = world.ended(&id).await;
    // Its input is deleted, and kept for this.
    world.store.delete_file(&Tenant::default(), &file_id, NOW).await.unwrap();
    world.fake.open_gate();
    let again = retry(&world, &id).await;
    let again = world.ended(&again).await;
    assert_eq!((again.status.as_str(), again.done, again.failed), ("completed", 2, 1));
    let metadata: Value = serde_json::from_str(again.metadata.as_ref().unwrap()).unwrap();
    assert_eq!(metadata, json!({"retry_of": id}));
    assert_eq!((again.endpoint, again.window), (ended.endpoint.clone(), ended.window.clone()));
    let input = world.store.file(&Tenant::default(), &again.input_file_id, NOW).await.unwrap();
    let input = world.store.blobs().read(&input.storage_key).await.unwrap();
    let expected = spaced + &line("later", "gate") + &line("never", "gate");
    assert_eq!(String::from_utf8(input).unwrap(), expected, "byte for byte");
    // With the file that names them, the lines go.
    let key = ended.input_key.as_ref().unwrap();
    assert!(world.store.blobs().open_blob(key).await.is_ok());
    world.store.delete_file(&Tenant::default(), ended.error_file_id.as_ref().unwrap(), NOW).await.unwrap();
    assert!(world.store.blobs().open_blob(key).await.is_err());
    assert!(matches!(
        world.batches.retry(&Tenant::default(), AllowedModels::default(), &id, None).await,
        Err(RetryError::Gone)
    ));
}

#[tokio::test]
async fn where_nothing_failed_nothing_is_run_again() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let batch = world.run(&lines(2, "hello")).await;
    assert!(matches!(
        world.batches.retry(&Tenant::default(), AllowedModels::default(), &batch.id, None).await,
        Err(RetryError::Nothing)
    ));
    let batch = world.run("{\n").await;
    assert!(matches!(
        world.batches.retry(&Tenant::default(), AllowedModels::default(), &batch.id, None).await,
        Err(RetryError::Nothing)
    ));
    let unknown = world.batches.retry(&Tenant::default(), AllowedModels::default(), "batch_x", None).await;
    assert!(matches!(unknown, Err(RetryError::Store(StoreError::NotFound))));
}

#[tokio::test]
async fn a_repeated_retry_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let batch = world.run(&line("bad", "refuse")).await;
    let identity = |repeated| Some(Identity { key: None, hash: "h".to_owned(), repeated });
    let Created::New(first) =
        world.batches.retry(&Tenant::default(), AllowedModels::default(), &batch.id, identity(false)).await.unwrap()
    else {
        panic!()
    };
    let Created::Known(again) =
        world.batches.retry(&Tenant::default(), AllowedModels::default(), &batch.id, identity(true)).await.unwrap()
    else {
        panic!()
    };
    assert_eq!(again.id, first.id);
    let page = crate::store::Page { limit: 10, after: None, newest_first: true };
    let (files, _) = world.store.files(&Tenant::default(), Some("batch"), &page, NOW).await.unwrap();
    assert_eq!(files.len(), 2, "the input, and that of the one retry");
    world.clock.fetch_add(121_000, Ordering::SeqCst);
    assert!(matches!(
        world.batches.retry(&Tenant::default(), AllowedModels::default(), &batch.id, identity(true)).await.unwrap(),
        Created::New(_)
    ));
}

fn order(file_id: &str) -> EstimateOrder {
    EstimateOrder {
        tenant: Tenant::default(),
        file_id: file_id.to_owned(),
        endpoint: None,
        models: AllowedModels::default(),
    }
}

#[tokio::test]
async fn an_estimate_counts_what_validation_and_the_models_say() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let text = lines(20, "hello") + "{\n" + &line("line-3", "again") + &line("bad", "refuse");
    let file_id = world.upload(&(text + &line("other", "hi").replace("m1", "m2"))).await;
    let estimate = world.batches.estimate(order(&file_id)).await.unwrap();
    assert_eq!((estimate.requests, estimate.invalid), (24, 3));
    let errors: Vec<_> = estimate.errors.iter().map(|error| (error.line.unwrap(), error.code.as_str())).collect();
    assert_eq!(errors, [(21, "invalid_json_line"), (22, "duplicate_custom_id"), (23, "context_length_exceeded")]);
    let input_tokens = (0..20).map(|index| format!("hello {index}").len() as u64).sum();
    let m1 = ModelEstimate { requests: 20, input_tokens, max_output_tokens: 200, ..ModelEstimate::default() };
    assert_eq!(estimate.models["m1"], m1, "nothing is expected while nothing was measured");
    assert_eq!(estimate.models["m2"].requests, 1);
    world.run(&lines(5, "hello")).await;
    let measured = world.batches.estimate(order(&file_id)).await.unwrap();
    assert_eq!(measured.models["m1"].expected_output_tokens, Some(40.0), "two for each, as before");
    assert!(measured.models["m1"].seconds.unwrap() > 0.0);
    assert_eq!(measured.models["m2"].seconds, None);
}

#[tokio::test]
async fn an_estimate_needs_a_file_for_a_batch_and_its_models() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start_with(dir.path(), |settings| settings.lines_max = 3).await;
    let file_id = world.upload(&line("a", "busy")).await;
    assert!(matches!(world.batches.estimate(order(&file_id)).await, Err(EstimateError::Unavailable(_))));
    let unknown = world.batches.estimate(order("file-x")).await;
    assert!(matches!(unknown, Err(EstimateError::Store(StoreError::NotFound))));
    let file_id = world.upload(&lines(4, "hello")).await;
    let estimate = world.batches.estimate(order(&file_id)).await.unwrap();
    assert_eq!((estimate.requests, estimate.errors[0].code.as_str()), (3, "too_many_tasks"));
    let file_id = world.upload("\n\n").await;
    assert_eq!(world.batches.estimate(order(&file_id)).await.unwrap().errors[0].code, "empty_file");
}

#[tokio::test]
async fn a_start_removes_nothing_that_is_still_read() {
    let dir = tempfile::tempdir().unwrap();
    let ended = {
        let world = World::start(dir.path()).await;
        let file_id = world.upload(&(lines(3, "hello") + &line("bad", "refuse"))).await;
        let id = world.create_from(&file_id).await;
        let ended = world.ended(&id).await;
        world.store.delete_file(&Tenant::default(), &file_id, NOW).await.unwrap();
        world.batches.stop().await;
        world.store.close().await.unwrap();
        ended
    };
    let world = World::start(dir.path()).await;
    let page =
        world.batches.results(&Tenant::default(), &ended.id, crate::batch::ResultsQuery::default(), 10).await.unwrap();
    assert_eq!(page.lines.len(), 4);
    let again = retry(&world, &ended.id).await;
    assert_eq!(world.ended(&again).await.failed, 1);
}
