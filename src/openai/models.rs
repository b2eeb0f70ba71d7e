use schemars::JsonSchema;
use serde::Serialize;

/// The models that requests may name.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct ModelList {
    #[schemars(extend("const" = "list"))]
    pub object: &'static str,
    pub data: Vec<Model>,
}

/// A model that is served.
#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct Model {
    pub id: String,
    #[schemars(extend("const" = "model"))]
    pub object: &'static str,
    pub created: i64,
    pub owned_by: &'static str,
    /// Tokens of prompt and answer together; as `vllm serve` names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_model_len: Option<u32>,
    /// What it does.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<&'static str>,
    /// What a request may name in `lora`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<String>,
}
