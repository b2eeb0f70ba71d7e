//! The server's own document, against which every answer that these tests see is held.

use std::sync::OnceLock;

use boon::{Compiler, Schemas};
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;

const URL: &str = "http://tandem.test/openapi.json";

static DOCUMENT: OnceLock<Value> = OnceLock::new();

/// Reads the document of a server, once for all tests: it is the same for all.
pub(crate) async fn learn(url: &str) {
    if DOCUMENT.get().is_none() {
        let document = tandem::http::client()
            .build()
            .unwrap()
            .get(format!("{url}/openapi.json"))
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        let _ = DOCUMENT.set(document);
    }
}

pub(crate) fn document() -> &'static Value {
    DOCUMENT.get().expect("a server has been asked")
}

/// An answer that is as documented, unread: streams are not waited for, see [`check_event`].
pub(crate) async fn checked(method: &Method, url: &str, response: Response) -> Response {
    let status = response.status();
    let media = response.headers().get("content-type").map(|media| media.to_str().unwrap().to_owned());
    let media = media.unwrap_or_default().split(';').next().unwrap_or_default().to_owned();
    assert!(response.headers().contains_key("x-request-id"), "{method} {url}: {status} without an id");
    let path = url.split('?').next().unwrap();
    let Some(described) = answer(method, path, status, &media) else {
        panic!("{method} {path}: the document knows no {status} of {media}")
    };
    if media != "application/json" {
        return response;
    }
    let mut copy = http::Response::builder().status(status);
    *copy.headers_mut().unwrap() = response.headers().clone();
    let body = response.bytes().await.unwrap();
    let value: Value = serde_json::from_slice(&body).unwrap();
    check(&described, &value);
    copy.body(body).unwrap().into()
}

/// An event of a stream is one of those that streams are documented to have.
pub(crate) fn check_event(data: &str) {
    if data == "[DONE]" {
        return;
    }
    let value: Value = serde_json::from_str(data).unwrap();
    let name = match value["object"].as_str() {
        Some("chat.completion.chunk") => "ChatChunk",
        Some("text_completion") => "Completion",
        _ => "Error",
    };
    check(&format!("/components/schemas/{name}"), &value);
}

/// Holds a value against the schema at that place of the document.
pub(crate) fn check(pointer: &str, value: &Value) {
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    compiler.add_resource(URL, document().clone()).unwrap();
    let schema = compiler.compile(&format!("{URL}#{pointer}"), &mut schemas).unwrap();
    if let Err(error) = schemas.validate(value, schema) {
        panic!("not as documented at {pointer}: {error:#}\n{value:#}");
    }
}

/// Where the document has the schema of this answer.
fn answer(method: &Method, path: &str, status: StatusCode, media: &str) -> Option<String> {
    let methods = template(path).map(|template| (template, &document()["paths"][template]));
    let operation = methods.and_then(|(template, methods)| {
        let method = method.as_str().to_lowercase();
        methods.get(&method).map(|operation| (format!("/paths/{}/{method}", escaped(template)), operation))
    });
    let Some((pointer, operation)) = operation else {
        // What is not documented is not served.
        let expected = if methods.is_some() { StatusCode::METHOD_NOT_ALLOWED } else { StatusCode::NOT_FOUND };
        return (status == expected).then(|| "/components/schemas/Error".to_owned());
    };
    let response = operation["responses"].get(status.as_str())?;
    let (pointer, response) = match response["$ref"].as_str() {
        Some(reference) => (reference[1..].to_owned(), document().pointer(&reference[1..])?),
        None => (format!("{pointer}/responses/{}", status.as_str()), response),
    };
    response["content"].get(media)?;
    Some(format!("{pointer}/content/{}/schema", escaped(media)))
}

/// The documented path that this one is an instance of.
fn template(path: &str) -> Option<&'static str> {
    let paths = document()["paths"].as_object()?;
    if let Some((template, _)) = paths.get_key_value(path) {
        return Some(template);
    }
    // Ids of models may have slashes.
    if path.starts_with("/v1/models/") {
        return Some("/v1/models/{id}");
    }
    let parts: Vec<&str> = path.split('/').collect();
    paths.keys().map(String::as_str).find(|template| {
        let wanted: Vec<&str> = template.split('/').collect();
        let matches = |(wanted, part): (&&str, &&str)| wanted == part || (wanted.starts_with('{') && !part.is_empty());
        wanted.len() == parts.len() && wanted.iter().zip(&parts).all(matches)
    })
}

fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}
