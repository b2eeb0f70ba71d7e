//! Grammars that end in nothing, and very many of them.

use std::{path::Path, sync::Arc};

use serde_json::json;

use super::place::Place;

/// A grammar alone leads nowhere that was not found when it was compiled; together with what else a request forbids it can.
pub(super) async fn a_dead_end(place: Arc<Place>) {
    let blocked = |stream: bool| {
        // It begins with what is allowed, and cannot go on.
        json!({"model": "sim", "prompt": "x", "structured_outputs": {"choice": ["yes"]}, "allowed_token_ids": [121], "stream": stream})
    };
    let free = json!({"model": "sim", "prompt": "x", "structured_outputs": {"choice": ["yes"]}, "max_tokens": 8});
    let (whole, streamed) = (blocked(false), blocked(true));
    let (blocked_answer, stream, free) = tokio::join!(
        place.post("/v1/completions", &whole),
        place.post("/v1/completions", &streamed),
        place.post("/v1/completions", &free)
    );
    let error = blocked_answer.refusal().unwrap();
    assert_eq!((blocked_answer.status, &error["code"], &error["param"]), (400, &json!("invalid_value"), &json!(null)));
    assert!(error["message"].as_str().unwrap().contains("leave no token to sample"));
    let last = stream.body.trim_end().rsplit("\n\n").next().unwrap();
    assert!(last.starts_with("data: {\"error\":{") && last.contains("leave no token to sample"), "{last}");
    assert!(!stream.body.contains("[DONE]"), "a stream that fails does not end well");
    assert_eq!((free.status, &free.json()["choices"][0]["text"]), (200, &json!("yes")), "others go on");
}

/// None of them is kept for ever, and none is kept on disk.
pub(super) async fn many_schemas(place: Arc<Place>, count: usize) {
    const CACHE_BYTES: usize = 64 << 20;
    /// What else a thousand requests leave in an allocator.
    const SLACK_BYTES: usize = 64 << 20;
    let ask = async |at: usize| {
        let schema = json!({"type": "object", "properties": {format!("field_{at}"): {"type": "integer"}}});
        let format = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": schema}});
        let body = json!({"model": "sim", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "response_format": format});
        assert_eq!(place.post("/v1/chat/completions", &body).await.status, 200);
    };
    for at in 0..50 {
        ask(at).await;
    }
    let (memory, files) = (place.program.memory(), files_in(&place.data()));
    for at in 50..count {
        ask(at).await;
    }
    let grown = place.program.memory().saturating_sub(memory);
    assert!(grown < CACHE_BYTES + SLACK_BYTES, "{grown} bytes for {count} schemas");
    assert_eq!(files_in(&place.data()), files);
}

fn files_in(dir: &Path) -> usize {
    let entries = fs_err::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { files_in(&path) } else { 1 }).sum()
}
