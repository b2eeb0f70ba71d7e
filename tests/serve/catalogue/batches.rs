//! Batches that are made twice, and that are cancelled at every time.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::future::join_all;
use reqwest::{Method, RequestBuilder};
use sea_orm::ConnectionTrait as _;
use serde_json::{Value, json};

use super::{
    answer::Answer,
    files::database,
    place::{ENDS, Place, line},
};

async fn answer(request: RequestBuilder) -> Answer {
    Answer::of(request.send().await.unwrap()).await
}

/// A file that is not there, that was deleted, and that is for something else: nothing is said at once, and the batch fails.
pub(super) async fn input_that_is_none(place: Arc<Place>) {
    for file in ["file-AAAAAAAAAAAAAAAAAAAAAAAA".to_owned(), place.name("file.deleted"), place.name("file.vision")] {
        let batch = place.ok(place.create(&json!(file))).await;
        assert_eq!(batch["status"], "validating");
        let batch = place.ended(&batch).await;
        let message = format!("Cannot find file {file}, or organization default does not have access to it.");
        let expected = json!([{"code": "invalid_request", "message": message, "param": "file_id", "line": null}]);
        assert_eq!((&batch["status"], &batch["errors"]["data"]), (&json!("failed"), &expected));
    }
}

pub(super) async fn idempotency(place: Arc<Place>) {
    let file = json!(place.name("file.ok"));
    let create = |key: &'static str, file: &Value| place.create(file).header("idempotency-key", key);
    let first = place.ok(create("G7", &file)).await;
    assert_eq!(place.ok(create("G7", &file)).await["id"], first["id"], "the same batch");
    assert_ne!(place.ok(create("G7 too", &file)).await["id"], first["id"]);
    let refused = answer(create("G7", &json!("file-x"))).await;
    let error = refused.refusal().unwrap();
    assert_eq!((refused.status, &error["code"]), (409, &json!("idempotency_mismatch")));
}

/// Without a key, by what OpenAI's libraries say when they send a request again.
pub(super) async fn a_library_that_tries_again(place: Arc<Place>) {
    let file = place.ok(place.upload("batch", &line("G8", 1))).await["id"].clone();
    let create = |count: &'static str| place.create(&file).header("x-stainless-retry-count", count);
    let first = place.ok(create("0")).await;
    for count in ["1", "2"] {
        assert_eq!(place.ok(create(count)).await["id"], first["id"], "no second run");
    }
    let second = place.ok(create("0")).await;
    assert_ne!(second["id"], first["id"], "asked for twice, it is two");
    let sql = "UPDATE batches SET created_at = created_at - 121 WHERE idem_hash IS NOT NULL";
    database(&place).await.execute_unprepared(sql).await.unwrap();
    let later = place.ok(create("1")).await["id"].clone();
    assert!(later != first["id"] && later != second["id"], "what is older than two minutes is not what was tried");
}

/// The settings allow one.
pub(super) async fn too_many_batches(place: Arc<Place>) {
    let file = place.ok(place.upload("batch", &line("a", 1))).await["id"].clone();
    let first = place.ok(place.create(&file)).await;
    assert_eq!(place.steer(&first, "pause").await.status, 200);
    let refused = answer(place.create(&file)).await;
    let error = refused.refusal().unwrap();
    assert_eq!((refused.status, &error["code"]), (429, &json!("batch_limit_exceeded")));
    assert_eq!(place.steer(&first, "resume").await.status, 200);
    place.ended(&first).await;
}

pub(super) async fn cancel_what_has_ended(place: Arc<Place>) {
    let expiring = place.ok(place.create(&json!(place.name("file.ok"))).header("idempotency-key", "G10")).await;
    assert_eq!(place.steer(&expiring, "pause").await.status, 200);
    let sql = format!("UPDATE batches SET expires_at = 1 WHERE id = '{}'", expiring["id"].as_str().unwrap());
    database(&place).await.execute_unprepared(&sql).await.unwrap();
    place.submit(&line("a", 1)).await;
    let expired = place.ended(&expiring).await;
    let named = |name: &str| json!({"id": place.name(name)});
    for (batch, status) in
        [(named("batch.completed"), "completed"), (named("batch.failed"), "failed"), (expired, "expired")]
    {
        let refused = place.steer(&batch, "cancel").await;
        let error = refused.refusal().unwrap();
        let message = format!("Cannot cancel a batch with status '{status}'.");
        let expected = json!({"message": message, "type": "invalid_request_error", "param": null, "code": null});
        assert_eq!((refused.status, error), (409, expected));
    }
}

/// A batch that is paused, so that only a cancel ends it.
async fn held(place: &Place, custom_id: &str) -> Value {
    let batch = place.submit(&(line(custom_id, 1) + &line(&format!("{custom_id} too"), 2000))).await;
    assert_eq!(place.steer(&batch, "pause").await.status, 200);
    batch
}

pub(super) async fn cancel_twice(place: Arc<Place>) {
    let batch = held(&place, "G11").await;
    let first = place.steer(&batch, "cancel").await.json();
    let second = place.steer(&batch, "cancel").await.json();
    let ended = place.ended(&batch).await;
    let third = place.steer(&batch, "cancel").await;
    assert_eq!(third.status, 200);
    for batch in [&first, &second] {
        assert!(batch["status"] == "cancelling" || batch["status"] == "cancelled", "{batch}");
        assert_eq!(batch["cancelling_at"], ended["cancelling_at"]);
    }
    assert_eq!((&ended["status"], third.json()), (&json!("cancelled"), ended.clone()), "nothing changes any more");
}

/// The settings have validation pause behind each thousand lines.
pub(super) async fn cancel_while_validating(place: Arc<Place>) {
    let lines: String = (0..2500).map(|at| line(&at.to_string(), 1)).collect();
    let batch = place.submit(&lines).await;
    assert_eq!(batch["status"], "validating");
    let cancelled = place.steer(&batch, "cancel").await;
    assert_eq!((cancelled.status, &cancelled.json()["status"]), (200, &json!("cancelling")));
    let ended = place.ended(&batch).await;
    assert_eq!((&ended["status"], &ended["output_file_id"]), (&json!("cancelled"), &Value::Null));
    let counts = &ended["request_counts"];
    assert!(counts["total"].as_u64().unwrap() < 2500, "{counts}: the lines that were seen");
    assert_eq!((&counts["completed"], &counts["failed"]), (&json!(0), &json!(0)));
}

/// The settings have publication pause at its beginning.
pub(super) async fn cancel_while_finalizing(place: Arc<Place>) {
    let batch = place.submit(&line("a", 1)).await;
    place.batch_when(&batch, |batch| batch["status"] == "finalizing").await;
    let cancelled = place.steer(&batch, "cancel").await;
    let status = cancelled.json()["status"].clone();
    assert_eq!(cancelled.status, 200);
    let ended = place.ended(&batch).await;
    let outcome = (status.as_str().unwrap(), ended["status"].as_str().unwrap());
    assert_eq!(outcome, ("finalizing", "completed"));
    assert_eq!(ended["cancelling_at"], Value::Null, "it came too late to be noted");
}

/// A hundred batches of some lines, each cancelled at a time of its own.
pub(super) async fn cancels_in_a_race(place: Arc<Place>) {
    const BATCHES: u64 = 100;
    const LINES: usize = 3;
    let race = |at: u64| {
        let place = Arc::clone(&place);
        async move {
            let lines: String = (0..LINES).map(|number| line(&format!("{at} {number}"), 1 + (at % 5) as u32)).collect();
            let batch = place.submit(&lines).await;
            // sleep: the time at which the cancel comes is what is varied
            tokio::time::sleep(Duration::from_millis(at * 7 % 100)).await;
            let answered = place.steer(&batch, "cancel").await;
            assert!([200, 409].contains(&answered.status), "{answered:?}");
            let ended = place.ended(&batch).await;
            let status = ended["status"].as_str().unwrap();
            assert!(["cancelled", "completed"].contains(&status) && ENDS.contains(&status), "{ended}");
            if answered.status == 200 && answered.json()["status"] == "cancelling" {
                assert_eq!(status, "cancelled", "a cancel that was taken is kept");
            }
            answers_each_once(&place, &ended, LINES).await;
        }
    };
    join_all((0..BATCHES).map(race)).await;
}

/// Each line that was seen has one record, and the counts are those of the records.
async fn answers_each_once(place: &Place, batch: &Value, lines: usize) {
    let mut ids = BTreeSet::new();
    let mut counts = [0, 0];
    for (at, file) in ["output_file_id", "error_file_id"].into_iter().enumerate() {
        let Some(file) = batch[file].as_str() else { continue };
        let content = answer(place.call(Method::GET, &format!("/v1/files/{file}/content"))).await.body;
        for record in content.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
            assert!(ids.insert(record["custom_id"].as_str().unwrap().to_owned()), "{record} is there twice");
            counts[at] += u64::from(!record["response"].is_null());
        }
    }
    let told = &batch["request_counts"];
    assert_eq!(json!(ids.len()), told["total"], "{batch}");
    assert!(ids.len() == lines || batch["status"] == "cancelled", "{batch}");
    assert_eq!([&json!(counts[0]), &json!(counts[1])], [&told["completed"], &told["failed"]], "{batch}");
}
