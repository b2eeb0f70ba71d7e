use serde_json::{Value, json};

use crate::helpers::{MODEL, spawn_app};

#[tokio::test]
async fn models_are_listed_and_found_by_names_with_slashes() {
    let app = spawn_app().await;
    let list: Value = app.get("/v1/models").await.json().await.unwrap();
    insta::assert_json_snapshot!(list, {".data[].created" => "[created]"}, @r#"
    {
      "object": "list",
      "data": [
        {
          "id": "org/sim",
          "object": "model",
          "created": "[created]",
          "owned_by": "tandem",
          "max_model_len": 4096,
          "capabilities": [
            "completion",
            "chat"
          ]
        }
      ]
    }
    "#);
    let one: Value = app.get(&format!("/v1/models/{MODEL}")).await.json().await.unwrap();
    assert_eq!(one, list["data"][0]);
    let missing = app.get("/v1/models/org/none").await;
    assert_eq!(missing.status(), 404);
    assert_eq!(missing.json::<Value>().await.unwrap()["error"]["code"], "model_not_found");
}

#[tokio::test]
async fn the_server_tells_of_itself() {
    let app = spawn_app().await;
    for path in ["/health", "/health/live", "/health/ready"] {
        assert_eq!(app.get(path).await.json::<Value>().await.unwrap(), json!({"status": "ok"}), "{path}");
    }
    let version: Value = app.get("/version").await.json().await.unwrap();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn text_and_tokens_turn_into_each_other() {
    let app = spawn_app().await;
    let tokens = app.ok("/tokenize", &json!({"model": MODEL, "prompt": "<s>é"})).await;
    assert_eq!(
        tokens,
        json!({"count": 5, "max_model_len": 4096, "tokens": [60, 115, 62, 195, 169], "token_strs": null})
    );
    let text = app.ok("/detokenize", &json!({"model": MODEL, "tokens": tokens["tokens"]})).await;
    assert_eq!(text, json!({"prompt": "<s>é"}));
}
