//! Uploads that end before their time, and files whose time is over.

use std::{io::Write as _, net::TcpStream, sync::Arc};

use futures_util::stream;
use reqwest::{
    Body, Method,
    multipart::{Form, Part},
};
use sea_orm::{ConnectionTrait as _, Database, DatabaseConnection};
use serde_json::json;

use super::{
    answer::Answer,
    place::{Place, line},
};

/// The database of a running server, for what no request can bring about.
pub(super) async fn database(place: &Place) -> DatabaseConnection {
    Database::connect(format!("sqlite://{}", place.data().join("tandem.db").display())).await.unwrap()
}

pub(super) async fn an_upload_that_breaks_off(place: Arc<Place>) {
    let before = place.get("/v1/files").await.json();
    let part = "--b\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--b\r\n\
                content-disposition: form-data; name=\"file\"; filename=\"x.jsonl\"\r\n\r\n";
    let text = "{}\n".repeat(100_000);
    let body = format!("{part}{text}\r\n--b--\r\n");
    let head = format!(
        "POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=b\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let sent = format!("{head}{}", &body[..body.len() / 100 * 99]);
    let port = place.program.port().to_owned();
    let send = move || TcpStream::connect(format!("127.0.0.1:{port}")).unwrap().write_all(sent.as_bytes()).unwrap();
    tokio::task::spawn_blocking(send).await.unwrap();
    place.is_well().await.unwrap();
    assert_eq!(place.get("/v1/files").await.json(), before, "no file came of it");
}

pub(super) async fn a_file_that_has_expired(place: Arc<Place>) {
    let file = place.ok(place.upload("batch", &line("a", 1))).await;
    let id = file["id"].as_str().unwrap();
    let sql = format!("UPDATE files SET expires_at = 1 WHERE id = '{id}'");
    database(&place).await.execute_unprepared(&sql).await.unwrap();
    let expired = async || {
        let answer = place.get(&format!("/v1/files/{id}/content")).await;
        let error = answer.refusal().unwrap();
        assert_eq!((answer.status, &error["code"], &error["param"]), (404, &json!("file_expired"), &json!("id")));
    };
    expired().await;
    assert_eq!(place.get(&format!("/v1/files/{id}")).await.status, 404);
    // Whatever wakes the runner has it put away.
    place.submit(&line("a", 1)).await;
    expired().await;
    let deleted = place.ok(place.upload("batch", &line("a", 1))).await;
    let path = format!("/v1/files/{}", deleted["id"].as_str().unwrap());
    place.ok(place.call(Method::DELETE, &path)).await;
    let answer = place.get(&format!("{path}/content")).await;
    assert_eq!(
        (answer.status, &answer.json()["error"]["code"]),
        (404, &json!(null)),
        "a deleted one is no expired one"
    );
}

/// What is for no batch may be larger.
pub(super) async fn half_a_gigabyte_and_a_byte(place: Arc<Place>) {
    const PIECE: usize = 1 << 20;
    let pieces = (0..512).map(|_| Ok::<_, std::io::Error>(vec![b'x'; PIECE])).chain([Ok(vec![b'x'])]);
    let part = Part::stream(Body::wrap_stream(stream::iter(pieces))).file_name("x.bin");
    let form = Form::new().text("purpose", "user_data").part("file", part);
    let answer = Answer::of(place.call(Method::POST, "/v1/files").multipart(form).send().await.unwrap()).await;
    let error = answer.refusal().unwrap();
    assert_eq!((answer.status, &error["code"]), (413, &json!("file_too_large")));
    assert_eq!(error["message"], "File exceeds 536870912 bytes.");
}
