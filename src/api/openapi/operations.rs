//! What is served, one entry for each method of each URL. A test compares this with what the server's routes are.

use super::super::batches::ResultsParams;
use super::super::files::EstimateParams;
use super::super::health::{Status, Version};
use super::super::listing::ListQuery;
use super::operation::{Answer, Body, Operation, Schemas};
use super::requests::{
    ChatRequest, CompletionRequest, DetokenizeRequest, EmbeddingRequest, RerankRequest, TokenizeRequest,
};
use super::submissions::{BatchRequest, ContentHeaders, ResultsHeaders, StartHeaders, UploadForm};
use crate::completion::{Detokenized, Tokenized};
use crate::openai::batches::{BatchObject, OutputRecord, ResultList};
use crate::openai::chat::{ChatChunk, ChatCompletion};
use crate::openai::completions::Completion;
use crate::openai::embeddings::EmbeddingList;
use crate::openai::files::{EstimateObject, FileDeleted, FileObject, ListObject};
use crate::openai::models::{Model, ModelList};
use crate::openai::rerank::Ranking;

const INFERENCE: &str = "Inference";
const BATCHES: &str = "Batches";
const FILES: &str = "Files";
const MODELS: &str = "Models";
const SERVER: &str = "Server";

/// Groups of operations, with what they are for.
pub(super) const TAGS: [(&str, &str); 5] = [
    (INFERENCE, "Answers at once: whole, or as a stream."),
    (BATCHES, "Many requests as one, which outlive a restart of the server."),
    (FILES, "What batches read and write."),
    (MODELS, "What requests may name, and how it reads texts."),
    (SERVER, "The server itself."),
];

/// Of every request, whoever sends it.
const ANY: &[u16] = &[400, 403, 414, 431, 500];
/// Where a key may be asked for.
const KEYED: &[u16] = &[401, 429];
/// Of a body of JSON.
const JSON: &[u16] = &[408, 413, 415];
/// Where a model has to be there and to have room.
const MODEL: &[u16] = &[404, 503];
/// Where the store is read.
const STORED: &[u16] = &[503];
/// Where the store is written.
const WRITTEN: &[u16] = &[503, 507];
const MISSING: &[u16] = &[404];

/// An operation with nothing that most do not have.
const PLAIN: Operation = Operation {
    method: "get",
    path: "",
    id: "",
    tag: SERVER,
    summary: "",
    about: "",
    query: None,
    headers: None,
    tells: &[],
    body: None,
    answers: &[],
    fails: &[ANY],
};

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        method: "post",
        path: "/v1/chat/completions",
        id: "createChatCompletion",
        tag: INFERENCE,
        summary: "Answer a conversation",
        body: Some(Body::Json(Schemas::request::<ChatRequest>)),
        answers: &[
            Answer::Json(Schemas::response::<ChatCompletion<'_>>),
            Answer::Events(Schemas::response::<ChatChunk<'_>>),
        ],
        fails: &[ANY, KEYED, JSON, MODEL],
        ..PLAIN
    },
    Operation {
        method: "post",
        path: "/v1/completions",
        id: "createCompletion",
        tag: INFERENCE,
        summary: "Continue a text",
        body: Some(Body::Json(Schemas::request::<CompletionRequest>)),
        answers: &[
            Answer::Json(Schemas::response::<Completion<'_>>),
            Answer::Events(Schemas::response::<Completion<'_>>),
        ],
        fails: &[ANY, KEYED, JSON, MODEL],
        ..PLAIN
    },
    Operation {
        method: "post",
        path: "/v1/embeddings",
        id: "createEmbedding",
        tag: INFERENCE,
        summary: "Turn texts into vectors",
        about: "Needs a model that embeds.",
        body: Some(Body::Json(Schemas::request::<EmbeddingRequest>)),
        answers: &[Answer::Json(Schemas::response::<EmbeddingList<'_>>)],
        fails: &[ANY, KEYED, JSON, MODEL],
        ..PLAIN
    },
    Operation {
        method: "post",
        path: "/v1/rerank",
        id: "rerank",
        tag: INFERENCE,
        summary: "Rank documents by how well they answer a query",
        about: "Needs a model that reranks.",
        body: Some(Body::Json(Schemas::request::<RerankRequest>)),
        answers: &[Answer::Json(Schemas::response::<Ranking<'_>>)],
        fails: &[ANY, KEYED, JSON, MODEL],
        ..PLAIN
    },
    Operation {
        method: "post",
        path: "/v2/rerank",
        id: "rerankV2",
        tag: INFERENCE,
        summary: "Rank documents by how well they answer a query",
        about: "The same as `/v1/rerank`, where Cohere's clients look for it.",
        body: Some(Body::Json(Schemas::request::<RerankRequest>)),
        answers: &[Answer::Json(Schemas::response::<Ranking<'_>>)],
        fails: &[ANY, KEYED, JSON, MODEL],
        ..PLAIN
    },
    Operation {
        method: "post",
        path: "/rerank",
        id: "rerankPlain",
        tag: INFERENCE,
        summary: "Rank documents by how well they answer a query",
        about: "The same as `/v1/rerank`.",
        body: Some(Body::Json(Schemas::request::<RerankRequest>)),
        answers: &[Answer::Json(Schemas::response::<Ranking<'_>>)],
        fails: &[ANY, KEYED, JSON, MODEL],
        ..PLAIN
    },
    Operation {
        method: "post",
        path: "/v1/batches",
        id: "createBatch",
        tag: BATCHES,
        summary: "Start a batch",
        about: "Answers at once; the file is checked afterwards, and what is wrong with it fails the batch.",
        headers: Some(Schemas::fields::<StartHeaders>),
        body: Some(Body::Json(Schemas::request::<BatchRequest>)),
        answers: &[Answer::Json(Schemas::response::<BatchObject>)],
        fails: &[ANY, KEYED, JSON, WRITTEN, &[409]],
        ..PLAIN
    },
    Operation {
        path: "/v1/batches",
        id: "listBatches",
        tag: BATCHES,
        summary: "List batches",
        about: "20 on a page unless `limit` says otherwise, and 100 at most.",
        query: Some((Schemas::fields::<ListQuery>, &["limit", "order", "after"])),
        answers: &[Answer::Json(Schemas::response::<ListObject<BatchObject>>)],
        fails: &[ANY, KEYED, STORED],
        ..PLAIN
    },
    Operation {
        path: "/v1/batches/{id}",
        id: "retrieveBatch",
        tag: BATCHES,
        summary: "Show a batch",
        answers: &[Answer::Json(Schemas::response::<BatchObject>)],
        fails: &[ANY, KEYED, MISSING, STORED],
        ..PLAIN
    },
    Operation {
        method: "post",
        path: "/v1/batches/{id}/cancel",
        id: "cancelBatch",
        tag: BATCHES,
        summary: "Cancel a batch",
        about: "What is done by then is kept. A batch that has ended another way is a conflict.",
        answers: &[Answer::Json(Schemas::response::<BatchObject>)],
        fails: &[ANY, KEYED, MISSING, WRITTEN, &[409]],
        ..PLAIN
    },
    Operation {
        path: "/v1/batches/{id}/results",
        id: "listBatchResults",
        tag: BATCHES,
        summary: "Read finished lines",
        about: "Those that there are, also while the batch runs: 100 on a page unless `limit` says otherwise, and 1,000 at most. With \
                `follow` a stream of all of them, which ends with the batch.",
        query: Some((Schemas::fields::<ResultsParams>, &["after", "limit", "status", "follow"])),
        headers: Some(Schemas::fields::<ResultsHeaders>),
        tells: &["X-Incomplete", "X-Last-Line"],
        answers: &[
            Answer::Json(Schemas::response::<ResultList>),
            Answer::Followed(Schemas::response::<OutputRecord<'_>>, Schemas::response::<BatchObject>),
        ],
        fails: &[ANY, KEYED, MISSING, STORED],
        ..PLAIN
    },
    Operation {
        method: "post",
        path: "/v1/batches/{id}/pause",
        id: "pauseBatch",
        tag: BATCHES,
        summary: "Start no more lines",
        about: "Lines that have started are finished. One that is paused already stays so.",
        answers: &[Answer::Json(Schemas::response::<BatchObject>)],
        fails: &[ANY, KEYED, MISSING, WRITTEN, &[409]],
        ..PLAIN
    },
    Operation {
        method: "post",
        path: "/v1/batches/{id}/resume",
        id: "resumeBatch",
        tag: BATCHES,
        summary: "Start lines again",
        answers: &[Answer::Json(Schemas::response::<BatchObject>)],
        fails: &[ANY, KEYED, MISSING, WRITTEN, &[409]],
        ..PLAIN
    },
    Operation {
        method: "post",
        path: "/v1/batches/{id}/retry",
        id: "retryBatch",
        tag: BATCHES,
        summary: "Run what failed again",
        about: "Starts a new batch on the lines that failed, expired or were cancelled.",
        headers: Some(Schemas::fields::<StartHeaders>),
        answers: &[Answer::Json(Schemas::response::<BatchObject>)],
        fails: &[ANY, KEYED, MISSING, WRITTEN, &[409]],
        ..PLAIN
    },
    Operation {
        method: "post",
        path: "/v1/files",
        id: "createFile",
        tag: FILES,
        summary: "Upload a file",
        body: Some(Body::Form(Schemas::request::<UploadForm>)),
        answers: &[Answer::Json(Schemas::response::<FileObject>)],
        fails: &[ANY, KEYED, WRITTEN, &[408, 413, 415]],
        ..PLAIN
    },
    Operation {
        path: "/v1/files",
        id: "listFiles",
        tag: FILES,
        summary: "List files",
        about: "10,000 on a page at most, and unless `limit` says otherwise.",
        query: Some((Schemas::fields::<ListQuery>, &["limit", "order", "after", "purpose"])),
        answers: &[Answer::Json(Schemas::response::<ListObject<FileObject>>)],
        fails: &[ANY, KEYED, STORED],
        ..PLAIN
    },
    Operation {
        path: "/v1/files/{id}",
        id: "retrieveFile",
        tag: FILES,
        summary: "Show a file",
        answers: &[Answer::Json(Schemas::response::<FileObject>)],
        fails: &[ANY, KEYED, MISSING, STORED],
        ..PLAIN
    },
    Operation {
        method: "delete",
        path: "/v1/files/{id}",
        id: "deleteFile",
        tag: FILES,
        summary: "Delete a file",
        about: "A batch that reads it goes on: it keeps what it needs.",
        answers: &[Answer::Json(Schemas::response::<FileDeleted>)],
        fails: &[ANY, KEYED, MISSING, WRITTEN],
        ..PLAIN
    },
    Operation {
        path: "/v1/files/{id}/content",
        id: "downloadFile",
        tag: FILES,
        summary: "Read a file",
        headers: Some(Schemas::fields::<ContentHeaders>),
        answers: &[Answer::Bytes(200, "application/octet-stream"), Answer::Bytes(206, "application/octet-stream")],
        fails: &[ANY, KEYED, MISSING, STORED, &[416]],
        ..PLAIN
    },
    Operation {
        path: "/v1/files/{id}/estimate",
        id: "estimateFile",
        tag: FILES,
        summary: "Tell what a file would come to as a batch",
        about: "Its requests, tokens and time, and what is wrong with it.",
        query: Some((Schemas::fields::<EstimateParams>, &["endpoint"])),
        answers: &[Answer::Json(Schemas::response::<EstimateObject>)],
        fails: &[ANY, KEYED, MISSING, STORED],
        ..PLAIN
    },
    Operation {
        path: "/v1/models",
        id: "listModels",
        tag: MODELS,
        summary: "List models",
        answers: &[Answer::Json(Schemas::response::<ModelList>)],
        fails: &[ANY, KEYED],
        ..PLAIN
    },
    Operation {
        path: "/v1/models/{id}",
        id: "retrieveModel",
        tag: MODELS,
        summary: "Show a model",
        about: "The id may have slashes in it.",
        answers: &[Answer::Json(Schemas::response::<Model>)],
        fails: &[ANY, KEYED, MISSING],
        ..PLAIN
    },
    Operation {
        method: "post",
        path: "/tokenize",
        id: "tokenize",
        tag: MODELS,
        summary: "Turn a text or a conversation into tokens",
        body: Some(Body::Json(Schemas::request::<TokenizeRequest>)),
        answers: &[Answer::Json(Schemas::response::<Tokenized>)],
        fails: &[ANY, KEYED, JSON, MODEL],
        ..PLAIN
    },
    Operation {
        method: "post",
        path: "/detokenize",
        id: "detokenize",
        tag: MODELS,
        summary: "Turn tokens into a text",
        body: Some(Body::Json(Schemas::request::<DetokenizeRequest>)),
        answers: &[Answer::Json(Schemas::response::<Detokenized>)],
        fails: &[ANY, KEYED, JSON, MODEL],
        ..PLAIN
    },
    Operation {
        path: "/health",
        id: "health",
        summary: "Whether requests would be served",
        about: "The same as `/health/ready`.",
        answers: &[Answer::Json(Schemas::response::<Status>)],
        fails: &[ANY, &[503]],
        ..PLAIN
    },
    Operation {
        path: "/health/live",
        id: "healthLive",
        summary: "Whether the process answers",
        answers: &[Answer::Json(Schemas::response::<Status>)],
        ..PLAIN
    },
    Operation {
        path: "/health/ready",
        id: "healthReady",
        summary: "Whether requests to every model would be served",
        answers: &[Answer::Json(Schemas::response::<Status>)],
        fails: &[ANY, &[503]],
        ..PLAIN
    },
    Operation {
        path: "/version",
        id: "version",
        summary: "Which version answers",
        answers: &[Answer::Json(Schemas::response::<Version>)],
        fails: &[ANY, KEYED],
        ..PLAIN
    },
    Operation {
        path: "/openapi.json",
        id: "openapi",
        summary: "This document",
        answers: &[Answer::Json(Schemas::any_object)],
        fails: &[ANY, KEYED],
        ..PLAIN
    },
    Operation {
        path: "/docs",
        id: "docs",
        summary: "This document as a page",
        answers: &[Answer::Bytes(200, "text/html")],
        ..PLAIN
    },
];
