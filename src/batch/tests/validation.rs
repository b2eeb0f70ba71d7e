use super::*;
use crate::openai::batches::BatchError;

async fn failed(text: &str, change: impl FnOnce(&mut Settings)) -> Vec<BatchError> {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start_with(dir.path(), change).await;
    let batch = world.run(text).await;
    assert_eq!(batch.status, "failed", "{text}");
    assert_eq!((batch.failed_at, batch.total, batch.in_progress_at), (Some(NOW), 0, None));
    assert_eq!(world.fake.state.started.load(Ordering::SeqCst), 0, "no line of a bad file runs");
    serde_json::from_str(&batch.errors.unwrap()).unwrap()
}

fn with(custom_id: &str, change: impl FnOnce(&mut Value)) -> String {
    let mut value: Value = serde_json::from_str(&line(custom_id, "hello")).unwrap();
    change(&mut value);
    value.to_string()
}

fn without(path: &str) -> String {
    with("x", |line| {
        let (parent, name) = path.rsplit_once('/').unwrap();
        line.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(name);
    })
}

#[tokio::test]
async fn every_bad_line_is_named() {
    let long_id = "x".repeat(513);
    let cases: Vec<(String, &str, Option<&str>)> = vec![
        ("{".to_owned(), "invalid_json_line", None),
        ("[1]".to_owned(), "invalid_json_line", None),
        (r#"["a","POST","/v1/chat/completions",{}]"#.to_owned(), "invalid_json_line", None),
        ("null".to_owned(), "invalid_json_line", None),
        (r#"{"custom_id":"a","custom_id":"b"}"#.to_owned(), "invalid_json_line", None),
        ("{}".to_owned(), "missing_required_parameter", Some("custom_id")),
        (without("/custom_id"), "missing_required_parameter", Some("custom_id")),
        (without("/method"), "missing_required_parameter", Some("method")),
        (without("/url"), "missing_required_parameter", Some("url")),
        (without("/body"), "missing_required_parameter", Some("body")),
        (with("", |_| {}), "invalid_custom_id", Some("custom_id")),
        (with(&long_id, |_| {}), "invalid_custom_id", Some("custom_id")),
        (with("a\nb", |_| {}), "invalid_custom_id", Some("custom_id")),
        (with("x", |line| line["custom_id"] = json!(5)), "invalid_custom_id", Some("custom_id")),
        (with("x", |line| line["method"] = json!("GET")), "invalid_method", Some("method")),
        (with("x", |line| line["url"] = json!("/v1/completions")), "invalid_url", Some("url")),
        (with("x", |line| line["url"] = json!("http://169.254.169.254/")), "invalid_url", Some("url")),
        (with("x", |line| line["body"] = json!("text")), "invalid_type", Some("body")),
        (with("x", |line| line["body"]["stream"] = json!(true)), "streaming_unsupported", Some("body.stream")),
        (with("x", |line| line["body"]["model"] = json!("unknown")), "model_not_found", Some("body.model")),
        (with("x", |line| line["body"]["model"] = json!(5)), "invalid_type", Some("body.model")),
        (without("/body/model"), "invalid_request", Some("body.model")),
        (without("/body/messages"), "invalid_request", Some("body.messages")),
        (line("good", "hello").trim_end().to_owned(), "duplicate_custom_id", Some("custom_id")),
    ];
    let bad: Vec<_> = cases.iter().map(|(text, ..)| text.as_str()).collect();
    let text = format!("{}\n{}\n", line("good", "hello"), bad.join("\r\n"));
    let errors = failed(&text, |_| {}).await;
    assert_eq!(errors.len(), cases.len());
    for (index, (error, (text, code, param))) in errors.iter().zip(&cases).enumerate() {
        assert_eq!((error.code.as_str(), error.param.as_deref()), (*code, *param), "{text}");
        assert_eq!(error.line, Some(i64::try_from(index).unwrap() + 3), "{text}");
    }
    assert_eq!(errors[0].message, "This line is not parseable as valid JSON.");
    assert_eq!(errors[4].message, "Duplicate field 'custom_id'.");
    assert_eq!(errors[6].message, "Missing required parameter: 'custom_id'.");
    assert_eq!(errors[15].message, "The URL provided for this request does not match the batch endpoint.");
    assert_eq!(errors[18].message, "Chat Completions: Streaming is not supported in the Batch API.");
    assert_eq!(errors[19].message, "The provided model 'unknown' is not supported by the Batch API.");
    assert!(errors[23].message.contains("line 1"));
}

#[tokio::test]
async fn lines_of_embeddings_are_checked_for_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let line = |id: &str, url: &str, body: Value| {
        json!({"custom_id": id, "method": "POST", "url": url, "body": body}).to_string() + "\n"
    };
    let text = [
        line("a", "/v1/embeddings", json!({"model": "m1", "input": "hello"})),
        line("b", "/v1/embeddings", json!({"model": "m1", "messages": []})),
        line("c", "/v1/embeddings", json!({"model": "m1", "input": null})),
        line("d", "/v1/embeddings", json!({"model": "m1", "input": "x", "stream": true})),
        line("e", "/v1/completions", json!({"model": "m1", "prompt": "hello"})),
    ];
    let file = world.upload(&text.concat()).await;
    let id = world.create_for(Endpoint::Embeddings, &file).await;
    let errors: Vec<BatchError> = serde_json::from_str(&world.ended(&id).await.errors.unwrap()).unwrap();
    let errors: Vec<_> = errors.iter().map(|error| (error.line, error.code.as_str(), error.message.as_str())).collect();
    let missing = "Input parameter is required.";
    assert_eq!(
        errors,
        [
            (Some(2), "invalid_request", missing),
            (Some(3), "invalid_request", missing),
            (Some(4), "streaming_unsupported", "Embeddings: Streaming is not supported in the Batch API."),
            (Some(5), "invalid_url", "The URL provided for this request does not match the batch endpoint."),
        ]
    );
}

#[tokio::test]
async fn lines_of_reranking_are_checked_for_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let bodies = [json!({"model": "m1", "query": "x", "documents": ["y"]}), json!({"model": "m1", "query": "x"})];
    let lines = bodies.iter().enumerate().map(|(at, body)| {
        json!({"custom_id": at.to_string(), "method": "POST", "url": "/v1/rerank", "body": body}).to_string() + "\n"
    });
    let file = world.upload(&lines.collect::<String>()).await;
    let id = world.create_for(Endpoint::Rerank, &file).await;
    let errors: Vec<BatchError> = serde_json::from_str(&world.ended(&id).await.errors.unwrap()).unwrap();
    let errors: Vec<_> = errors.iter().map(|error| (error.line, error.message.as_str())).collect();
    assert_eq!(errors, [(Some(2), "Documents parameter is required.")]);
}

#[tokio::test]
async fn bad_files_are_named_whole() {
    let two_models = line("a", "hello") + &with("b", |line| line["body"]["model"] = json!("m2"));
    for (text, code, line) in [
        (lines(4, "hello"), "too_many_tasks", None),
        ("\n  \r\n".to_owned(), "empty_file", None),
        (two_models, "mismatched_model", Some(2)),
        ("x".repeat(400), "line_too_long", Some(1)),
    ] {
        let change = |settings: &mut Settings| {
            (settings.lines_max, settings.line_bytes_max, settings.single_model) = (3, 300, true);
        };
        let errors = failed(&text, change).await;
        assert_eq!((errors.len(), errors[0].code.as_str(), errors[0].line), (1, code, line));
    }
}

#[tokio::test]
async fn errors_are_listed_up_to_a_hundred() {
    assert_eq!(failed(&"[]\n".repeat(101), |_| {}).await.len(), 100);
}

#[tokio::test]
async fn bytes_that_are_no_text_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let blob = world.store.blobs().put(b"{\"custom_id\":\"\xff\"}\n").await.unwrap();
    let file = NewFile {
        tenant: Tenant::default(),
        purpose: "batch".to_owned(),
        filename: "x".to_owned(),
        blob,
        created_at: NOW,
        expires_at: None,
    };
    let file = world.store.add_file(file, None).await.unwrap();
    let id = world.create_from(&file.id).await;
    assert!(world.ended(&id).await.errors.unwrap().contains("invalid_utf8"));
}

#[tokio::test]
async fn a_file_that_a_batch_may_not_read_fails_it() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let blob = world.store.blobs().put(b"{}").await.unwrap();
    let file = NewFile {
        tenant: Tenant::default(),
        purpose: "vision".to_owned(),
        filename: "x".to_owned(),
        blob,
        created_at: NOW,
        expires_at: None,
    };
    let vision = world.store.add_file(file, None).await.unwrap().id;
    for file_id in ["file-unknown", &vision] {
        let id = world.create_from(file_id).await;
        let errors: Vec<BatchError> = serde_json::from_str(&world.ended(&id).await.errors.unwrap()).unwrap();
        assert_eq!((errors[0].code.as_str(), errors[0].param.as_deref()), ("invalid_request", Some("file_id")));
        assert!(errors[0].message.starts_with(&format!("Cannot find file {file_id}, or organization")));
    }
}

#[tokio::test]
async fn marks_and_blank_lines_are_no_errors() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let text = format!("\u{feff}{}\r\n\r\n\n{}", line("a", "hello").trim_end(), line("b", "bye").trim_end());
    let batch = world.run(&text).await;
    assert_eq!((batch.status.as_str(), batch.done), ("completed", 2));
}
