//! What belongs to one tenant is nothing to another.

use std::path::Path;

use reqwest::{
    Method, RequestBuilder,
    multipart::{Form, Part},
};
use serde_json::{Value, json};

use crate::program::{Program, new_key};

const LINE: &str =
    r#"{"custom_id":"a","method":"POST","url":"/v1/completions","body":{"model":"sim","prompt":"x","max_tokens":2}}"#;

struct Tenants {
    server: Program,
    /// Of one tenant, twice, and of another.
    one: String,
    colleague: String,
    other: String,
}

impl Tenants {
    async fn start(storage: &Path, settings: &[(&str, &str)]) -> Self {
        let key = |tenant| new_key(storage, &["--tenant", tenant]);
        let (one, colleague, other) = (key("one"), key("one"), key("other"));
        Self { server: Program::start_with(storage, settings).await, one, colleague, other }
    }

    fn upload(&self, key: &str, text: &str) -> RequestBuilder {
        let part = Part::text(text.to_owned()).file_name("in.jsonl");
        let form = Form::new().text("purpose", "batch").part("file", part);
        self.server.call(Method::POST, "/v1/files", key).multipart(form)
    }

    fn batch(&self, key: &str, file: &Value) -> RequestBuilder {
        let body = json!({"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"});
        self.server.call(Method::POST, "/v1/batches", key).json(&body)
    }

    async fn get(&self, key: &str, path: &str) -> (u16, Value) {
        answer(self.server.call(Method::GET, path, key)).await
    }

    async fn ids(&self, key: &str, path: &str) -> Vec<String> {
        let (status, list) = self.get(key, path).await;
        assert_eq!(status, 200, "{list}");
        list["data"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
    }

    async fn ended(&self, key: &str, batch: &Value) -> Value {
        loop {
            let (_, batch) = self.get(key, &format!("/v1/batches/{}", batch["id"].as_str().unwrap())).await;
            if ["completed", "failed"].contains(&batch["status"].as_str().unwrap()) {
                return batch;
            }
            tokio::task::yield_now().await;
        }
    }
}

async fn answer(request: RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

async fn ok(request: RequestBuilder) -> Value {
    let (status, body) = answer(request).await;
    assert_eq!(status, 200, "{body}");
    body
}

#[tokio::test]
async fn files_and_batches_of_others_do_not_exist() {
    let storage = tempfile::tempdir().unwrap();
    let tenants = Tenants::start(storage.path(), &[]).await;
    let Tenants { server, one, colleague, other } = &tenants;
    let file = ok(tenants.upload(one, LINE)).await;
    let batch = ok(tenants.batch(one, &file["id"])).await;
    let ended = tenants.ended(colleague, &batch).await;
    assert_eq!(ended["status"], "completed", "a tenant's keys share what it has");
    let output = ended["output_file_id"].as_str().unwrap().to_owned();
    assert_eq!(tenants.get(colleague, &format!("/v1/files/{output}")).await.0, 200);

    let (file_id, batch_id) = (file["id"].as_str().unwrap(), batch["id"].as_str().unwrap());
    for (method, path, id, unknown) in [
        (Method::GET, "/v1/files/ID", file_id, "file-AAAAAAAAAAAAAAAAAAAAAAAA"),
        (Method::GET, "/v1/files/ID/content", file_id, "file-AAAAAAAAAAAAAAAAAAAAAAAA"),
        (Method::DELETE, "/v1/files/ID", file_id, "file-AAAAAAAAAAAAAAAAAAAAAAAA"),
        (Method::GET, "/v1/files/ID/content", &output, "file-AAAAAAAAAAAAAAAAAAAAAAAA"),
        (Method::GET, "/v1/batches/ID", batch_id, "batch_00000000000000000000000000000000"),
        (Method::POST, "/v1/batches/ID/cancel", batch_id, "batch_00000000000000000000000000000000"),
    ] {
        let ask = |id: &str| answer(server.call(method.clone(), &path.replace("ID", id), other));
        let (foreign, missing) = (ask(id).await, ask(unknown).await);
        assert_eq!(foreign.0, 404, "{path}");
        assert_eq!(foreign.1.to_string().replace(id, unknown), missing.1.to_string(), "told apart from none at all");
    }
    assert!(tenants.ids(other, "/v1/files").await.is_empty());
    assert!(tenants.ids(other, "/v1/batches").await.is_empty());
    assert_eq!(tenants.ids(colleague, "/v1/files").await, [output.as_str(), file_id]);
    assert_eq!(tenants.ids(colleague, "/v1/batches").await, [batch_id]);
    for (list, cursor) in [("files", file_id), ("batches", batch_id)] {
        let (status, body) = tenants.get(other, &format!("/v1/{list}?after={cursor}")).await;
        assert_eq!(
            (status, &body["error"]["code"], &body["error"]["param"]),
            (400, &json!("invalid_cursor"), &json!("after"))
        );
    }
    // A batch reads its own tenant's files alone.
    let stolen = ok(tenants.batch(other, &file["id"])).await;
    let stolen = tenants.ended(other, &stolen).await;
    assert_eq!(stolen["status"], "failed");
    assert_eq!(stolen["errors"]["data"][0]["code"], "invalid_request");
}

#[tokio::test]
async fn idempotency_keys_are_each_tenant_s_own() {
    let storage = tempfile::tempdir().unwrap();
    let tenants = Tenants::start(storage.path(), &[]).await;
    let create = async |key: &str, file: &Value| answer(tenants.batch(key, file).header("idempotency-key", "k")).await;
    let mine = ok(tenants.upload(&tenants.one, LINE)).await["id"].clone();
    let theirs = ok(tenants.upload(&tenants.other, LINE)).await["id"].clone();
    let (_, first) = create(&tenants.one, &mine).await;
    let (status, second) = create(&tenants.other, &theirs).await;
    assert_eq!(status, 200, "{second}");
    assert_ne!(first["id"], second["id"]);
    assert_eq!(create(&tenants.colleague, &mine).await.1["id"], first["id"]);
    assert_eq!(create(&tenants.one, &theirs).await.1["error"]["code"], "idempotency_mismatch");
}

#[tokio::test]
async fn a_tenant_s_storage_and_batches_are_limited() {
    let storage = tempfile::tempdir().unwrap();
    let quota = 2 * LINE.len() as u64 + 40;
    let settings = [
        ("TANDEM__STORAGE__MAX_TENANT_BYTES", quota.to_string()),
        ("TANDEM__BATCH__MAX_ACTIVE", "1".to_owned()),
        ("TANDEM__BACKEND__STEP_DELAY_MS", "50".to_owned()),
    ];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let tenants = Tenants::start(storage.path(), &settings).await;
    let first = ok(tenants.upload(&tenants.one, LINE)).await;
    ok(tenants.upload(&tenants.colleague, LINE)).await;
    let refused = tenants.upload(&tenants.one, LINE).send().await.unwrap();
    assert_eq!((refused.status().as_u16(), refused.headers()["x-should-retry"].to_str().unwrap()), (429, "false"));
    let error = refused.json::<Value>().await.unwrap()["error"].clone();
    assert_eq!((&error["type"], &error["code"]), (&json!("insufficient_quota"), &json!("quota_exceeded")));
    assert_eq!(fs_err::read_dir(storage.path().join("tmp")).unwrap().count(), 0, "nothing is left of it");
    let theirs = ok(tenants.upload(&tenants.other, LINE)).await;

    // Many slow tokens: it is not done when the next comes.
    let body = json!({"model": "sim", "prompt": "x", "max_tokens": 4000, "ignore_eos": true});
    let long = json!({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}).to_string();
    ok(tenants.server.call(Method::DELETE, &format!("/v1/files/{}", first["id"].as_str().unwrap()), &tenants.one))
        .await;
    let long = ok(tenants.upload(&tenants.one, &long[..])).await;
    ok(tenants.batch(&tenants.one, &long["id"])).await;
    let (status, refused) = answer(tenants.batch(&tenants.colleague, &long["id"])).await;
    assert_eq!((status, &refused["error"]["code"]), (429, &json!("batch_limit_exceeded")));
    ok(tenants.batch(&tenants.other, &theirs["id"])).await;
}

/// The second of two equal prompts is cached for the same tenant, and computed anew for another.
#[tokio::test]
async fn prefixes_are_not_shared_between_tenants() {
    let storage = tempfile::tempdir().unwrap();
    let tenants = Tenants::start(storage.path(), &[]).await;
    let body = json!({"model": "sim", "prompt": "a long prompt ".repeat(20), "max_tokens": 1});
    let cached = async |key: &str| {
        let answer = ok(tenants.server.call(Method::POST, "/v1/completions", key).json(&body)).await;
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached(&tenants.one).await, 0);
    assert!(cached(&tenants.colleague).await > 0);
    assert_eq!(cached(&tenants.other).await, 0);
    assert!(cached(&tenants.other).await > 0);
}
