//! Batches and files in requests; as in [`requests`](super::requests), for the document alone.

#![expect(dead_code, reason = "these types are never built: their schemas are")]

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::{Map, Value, json};

/// A batch to run.
#[derive(JsonSchema)]
pub(super) struct BatchRequest {
    /// A file of purpose `batch`, with a `BatchInputLine` in each line. What is wrong with it is told by the batch.
    #[schemars(example = &"file-abc123")]
    input_file_id: String,
    /// Where all its requests go.
    #[schemars(extend("enum" = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank"]), example = &"/v1/chat/completions")]
    endpoint: String,
    /// What is not done by then is given up. `24h`, and what else the server is set to take.
    #[schemars(example = &"24h")]
    completion_window: String,
    /// Comes back as it was sent: 16 pairs at most, with keys of 64 and values of 512 characters at most.
    #[schemars(extend("maxProperties" = 16), example = json!({"purpose": "test"}))]
    metadata: Option<BTreeMap<String, String>>,
    #[schemars(example = json!({"anchor": "created_at", "seconds": 86400}))]
    output_expires_after: Option<ExpiresAfter>,
    /// As the header of that name, which goes before it.
    #[schemars(length(min = 1, max = 255), example = &"nightly-7")]
    idempotency_key: Option<String>,
    /// Among the batches of one owner the lower goes first, and the others have what it leaves; 0 if absent.
    #[schemars(example = -1)]
    priority: Option<i64>,
    /// Unix seconds: no request starts before. The file is checked at once, and the completion window goes on.
    #[schemars(range(min = 0), example = 1)]
    not_before: Option<i64>,
}

/// When the output and error files go; never, if absent.
#[derive(JsonSchema)]
struct ExpiresAfter {
    #[schemars(extend("const" = "created_at"))]
    anchor: String,
    #[schemars(range(min = 3600, max = 2_592_000))]
    seconds: u32,
}

/// One request of a batch: a line of its input file.
#[derive(JsonSchema)]
pub(super) struct BatchInputLine {
    /// Names the request in the output, where the order is another. Once in a file.
    #[schemars(length(min = 1, max = 512), example = &"request-1")]
    custom_id: String,
    #[schemars(extend("const" = "POST"))]
    method: String,
    /// The endpoint of the batch.
    url: String,
    /// What the endpoint takes, without `stream`.
    body: Map<String, Value>,
}

/// A file, as a form.
#[derive(JsonSchema)]
pub(super) struct UploadForm {
    /// For a batch: `.jsonl`, 200 MiB at most unless set otherwise.
    #[schemars(extend("format" = "binary", "contentMediaType" = "application/octet-stream"))]
    file: String,
    /// Before the file, if its limit is to hold while it comes.
    #[schemars(extend("enum" = ["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]))]
    purpose: String,
    #[schemars(rename = "expires_after[anchor]", extend("enum" = ["created_at"]), with = "String", default)]
    anchor: String,
    /// After this the file goes. A batch's input goes after 30 days if nothing is said.
    #[schemars(rename = "expires_after[seconds]", range(min = 3600, max = 2_592_000), default)]
    seconds: u32,
}

/// Headers of `POST /v1/batches`, and of what else starts a batch.
#[derive(JsonSchema)]
pub(super) struct StartHeaders {
    /// A request that comes again with the same key and body is answered with the batch that the first one made.
    #[schemars(rename = "Idempotency-Key")]
    idempotency_key: Option<String>,
}

/// Headers of `GET /v1/files/{id}/content`.
#[derive(JsonSchema)]
pub(super) struct ContentHeaders {
    /// One range of bytes, as `bytes=0-99`. Others are as if absent.
    #[schemars(rename = "Range")]
    range: Option<String>,
}

/// Headers of `GET /v1/batches/{id}/results`.
#[derive(JsonSchema)]
pub(super) struct ResultsHeaders {
    /// The id of the last event that was seen, from which a stream goes on.
    #[schemars(rename = "Last-Event-ID")]
    last_event_id: Option<String>,
}
