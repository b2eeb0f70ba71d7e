use schemars::JsonSchema;
use serde::Serialize;

use super::embeddings::EmbeddingUsage;

/// The answer of `POST /v1/rerank`, as Jina, Cohere and vLLM have it.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct Ranking<'a> {
    pub id: &'a str,
    pub model: &'a str,
    pub usage: EmbeddingUsage,
    /// The best first.
    pub results: Vec<RankedDocument>,
}

/// One document, and how well it answers the query.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct RankedDocument {
    /// Its place in the request.
    pub index: usize,
    /// Where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<DocumentText>,
    /// From 0 to 1, which is best.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub relevance_score: f32,
}

/// A document as the request had it.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct DocumentText {
    pub text: String,
}
