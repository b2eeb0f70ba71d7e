use reqwest::multipart::Form;
use serde_json::json;

use crate::helpers::{Server, answer, line, part};

#[tokio::test]
async fn a_file_goes_round() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let text = line("a", "hello");
    // The file first: its purpose comes too late to stream by.
    let form = Form::new().part("file", part("../in.jsonl", &text)).text("purpose", "batch");
    let (status, file) = answer(server.post("/v1/files").multipart(form)).await;
    assert_eq!(status, 200);
    let created_at = file["created_at"].as_i64().unwrap();
    let id = file["id"].as_str().unwrap();
    assert!(id.starts_with("file-"));
    let expected = json!({
        "id": id, "object": "file", "bytes": text.len(), "created_at": created_at, "expires_at": created_at + 2_592_000,
        "filename": "in.jsonl", "purpose": "batch", "status": "processed", "status_details": null,
    });
    assert_eq!(file, expected);
    assert_eq!(answer(server.get(&format!("/v1/files/{id}"))).await, (200, expected));
    let content = server.get(&format!("/v1/files/{id}/content")).send().await.unwrap();
    assert_eq!(content.headers()["content-length"], text.len().to_string().as_str());
    assert_eq!(content.text().await.unwrap(), text);
    let part = server.get(&format!("/v1/files/{id}/content")).header("range", "bytes=1-3").send().await.unwrap();
    assert_eq!((part.status().as_u16(), part.text().await.unwrap()), (206, text[1..4].to_owned()));
    let outside = server.get(&format!("/v1/files/{id}/content")).header("range", "bytes=9-5").send().await.unwrap();
    assert_eq!(outside.status(), 416);
    let deleted = json!({"id": id, "object": "file", "deleted": true});
    assert_eq!(answer(server.delete(&format!("/v1/files/{id}"))).await, (200, deleted));
    assert_eq!(answer(server.delete(&format!("/v1/files/{id}"))).await.0, 404);
    assert_eq!(answer(server.get(&format!("/v1/files/{id}/content"))).await.0, 404);
}

#[tokio::test]
async fn bad_uploads_are_refused_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let good = line("a", "hello");
    let batch = || Form::new().text("purpose", "batch");
    let big = "x".repeat(100_001);
    let long = |anchor: &str, seconds: &str| {
        batch()
            .text("expires_after[anchor]", anchor.to_owned())
            .text("expires_after[seconds]", seconds.to_owned())
            .part("file", part("in.jsonl", &good))
    };
    let format = "Invalid file format for Batch API. Must be .jsonl";
    let cases = [
        (batch().part("file", part("in.txt", &good)), 400, json!(null), format),
        (batch().part("file", part("in.jsonl", "\n{}")), 400, json!(null), format),
        (batch().part("file", part("in.jsonl", "{\n{}")), 400, json!(null), format),
        (batch().part("file", part("in.jsonl", "")), 400, json!("empty_file"), "The file is empty."),
        (batch().part("file", part("in.jsonl", &big)), 413, json!("file_too_large"), "File exceeds 100000 bytes."),
        (
            Form::new().part("file", part("in.jsonl", &big)).text("purpose", "batch"),
            413,
            json!("file_too_large"),
            "File exceeds 100000",
        ),
        (batch(), 400, json!("missing_required_parameter"), "Missing required parameter: 'file'."),
        (
            Form::new().part("file", part("in.jsonl", &good)),
            400,
            json!("missing_required_parameter"),
            "Missing required parameter: 'purpose'.",
        ),
        (Form::new().text("purpose", "hack"), 400, json!("invalid_value"), "Invalid value: 'hack'."),
        (
            batch().part("file", part("in.jsonl", &good)).part("file", part("in.jsonl", &good)),
            400,
            json!("duplicate_field"),
            "Duplicate field",
        ),
        (long("created_at", "3599"), 400, json!("invalid_value"), "Invalid 'expires_after[seconds]'"),
        (long("created_at", "2592001"), 400, json!("invalid_value"), "Invalid 'expires_after[seconds]'"),
        (long("now", "3600"), 400, json!("invalid_value"), "Invalid value: 'now'."),
    ];
    for (form, status, code, message) in cases {
        let (answered, body) = answer(server.post("/v1/files").multipart(form)).await;
        assert_eq!((answered, &body["error"]["code"]), (status, &code), "{body}");
        assert!(body["error"]["message"].as_str().unwrap().starts_with(message), "{body}");
    }
    let (status, body) = answer(server.post("/v1/files").body("x")).await;
    assert_eq!((status, &body["error"]["code"]), (400, &json!("invalid_multipart")));
    let parts = fs_err::read_dir(dir.path().join("tmp")).unwrap().count();
    assert_eq!(parts, 0);
    assert_eq!(answer(server.get("/v1/files")).await.1["data"], json!([]));
}

#[tokio::test]
async fn a_listing_has_pages() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut ids = Vec::new();
    for index in 0..3 {
        ids.push(server.upload(&line(&index.to_string(), "hello")).await);
    }
    let (_, all) = answer(server.get("/v1/files")).await;
    assert_eq!((&all["first_id"], &all["last_id"]), (&json!(ids[2]), &json!(ids[0])));
    assert_eq!((&all["object"], &all["has_more"]), (&json!("list"), &json!(false)));
    let (_, page) = answer(server.get(&format!("/v1/files?order=asc&limit=1&after={}&purpose=batch", ids[0]))).await;
    assert_eq!((&page["data"][0]["id"], &page["has_more"]), (&json!(ids[1]), &json!(true)));
    assert_eq!(answer(server.get("/v1/files?purpose=vision")).await.1["data"], json!([]));
    for (query, param, code) in [
        ("limit=0", "limit", "invalid_value"),
        ("limit=10001", "limit", "invalid_value"),
        ("limit=x", "limit", "invalid_value"),
        ("order=up", "order", "invalid_value"),
        ("after=x", "after", "invalid_cursor"),
    ] {
        let (status, body) = answer(server.get(&format!("/v1/files?{query}"))).await;
        let error = &body["error"];
        assert_eq!((status, &error["code"], &error["param"]), (400, &json!(code), &json!(param)));
    }
}

#[tokio::test]
async fn an_unknown_file_is_not_found_whatever_it_is_called() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    for id in ["file-x", "file-'%20OR%201=1", "..%2f..%2fetc%2fpasswd"] {
        let (status, body) = answer(server.get(&format!("/v1/files/{id}/content"))).await;
        assert_eq!(status, 404, "{body}");
        assert_eq!(body["error"]["param"], "id");
        assert!(body["error"]["message"].as_str().unwrap().starts_with("No such File object: "));
    }
}

#[tokio::test]
async fn a_librarys_own_repetition_makes_no_second_file() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let upload = async |text: &str, count: &'static str| {
        let form = Form::new().text("purpose", "batch").part("file", part("in.jsonl", text));
        let request = server.post("/v1/files").header("x-stainless-retry-count", count).multipart(form);
        answer(request).await.1["id"].clone()
    };
    let first = upload(&line("a", "hello"), "0").await;
    assert_eq!(upload(&line("a", "hello"), "1").await, first);
    assert_ne!(upload(&line("a", "bye"), "1").await, first, "other bytes");
    assert_ne!(upload(&line("a", "hello"), "0").await, first, "asked for twice, it is two");
    let blobs: usize = (fs_err::read_dir(dir.path().join("blobs")).unwrap())
        .map(|folder| fs_err::read_dir(folder.unwrap().path()).unwrap().count())
        .sum();
    assert_eq!(blobs, 3, "what is not kept is removed");
}
