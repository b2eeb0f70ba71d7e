//! Keys for some models alone, files of others, and keys that are guessed.

use std::sync::Arc;

use reqwest::{Client, Method};
use serde_json::{Value, json};

use super::{
    answer::Answer,
    place::{Place, line},
};
use crate::program::keys;

/// A batch of a key that may not use its model fails as one whose model does not exist; an estimate says the same.
pub(super) async fn lines_for_models_of_others(place: Arc<Place>) {
    let limited = place.name("key.limited");
    let call = |method, path: &str| place.program.call(method, path, &limited);
    let refused = |model: &str| {
        let message = format!("The provided model '{model}' is not supported by the Batch API.");
        json!({"code": "model_not_found", "message": message, "param": "body.model", "line": 1})
    };
    for model in ["sim", "nope"] {
        let input = line("a", 2).replace("\"sim\"", &format!("\"{model}\""));
        let file = place.ok(place.upload("batch", &input)).await;
        let estimate = format!("/v1/files/{}/estimate", file["id"].as_str().unwrap());
        assert_eq!(place.ok(call(Method::GET, &estimate)).await["errors"]["data"], json!([refused(model)]));
        let body = json!({"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"});
        let batch = place.ok(call(Method::POST, "/v1/batches").json(&body)).await;
        let batch = place.ended(&batch).await;
        assert_eq!((&batch["status"], &batch["errors"]["data"]), (&json!("failed"), &json!([refused(model)])));
    }
    let file = place.ok(place.upload("batch", &line("a", 2).replace("\"sim\"", "\"other\""))).await;
    let body = json!({"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"});
    let batch = place.ok(call(Method::POST, "/v1/batches").json(&body)).await;
    assert_eq!(place.ended(&batch).await["status"], "completed", "its own model is there");
    let id = limited.split('_').nth(2).unwrap();
    let listed = keys(&place.data(), &["list"]);
    assert!(
        listed.iter().any(|key| key.starts_with(id) && key.contains(", models other,another  active")),
        "{listed:?}"
    );
}

/// Nothing is said of them at once, and afterwards what is said of a file that does not exist.
pub(super) async fn files_of_others_as_input(place: Arc<Place>) {
    let ended = async |file: &str| -> Value {
        let batch = place.ok(place.create(&json!(file))).await;
        assert_eq!(batch["status"], "validating");
        let batch = place.ended(&batch).await;
        assert_eq!(batch["status"], "failed");
        batch["errors"]["data"].clone()
    };
    let foreign = place.name("other.file");
    let missing = "file-AAAAAAAAAAAAAAAAAAAAAAAA";
    let (of_foreign, of_missing) = (ended(&foreign).await, ended(missing).await);
    assert_eq!(of_foreign.to_string().replace(&foreign, missing), of_missing.to_string());
    assert_eq!((&of_missing[0]["code"], &of_missing[0]["param"]), (&json!("invalid_request"), &json!("file_id")));
}

/// From an address of their own, so that others here are not held to account.
pub(super) async fn many_wrong_keys(place: Arc<Place>) {
    let client: Client = tandem::http::client().local_address(Some([127, 0, 0, 2].into())).build().unwrap();
    let ask = async |key: &str| {
        let request = client.get(format!("{}/v1/models", place.program.url())).bearer_auth(key);
        Answer::of(request.send().await.unwrap()).await
    };
    for at in 0..20 {
        assert_eq!(ask("guess").await.status, 401, "{at}");
    }
    let answer = ask("guess").await;
    let error = answer.refusal().unwrap();
    assert_eq!((answer.status, &error["code"]), (429, &json!("too_many_failed_auth")));
    assert_eq!(ask(&place.name("key.ok")).await.status, 200, "a good key is still good");
}
