//! The bodies of requests, for the document alone: they are read field by field for exact errors, not by these types.
//!
//! One field here is one row of the document. Tests read every example with the real readers, and fail when a field is documented and not
//! read, or read and not documented, or when a bound is not where it is said to be. So each field has an example; the words are for users.

#![expect(dead_code, reason = "these types are never built: their schemas are")]

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::{Map, Value, json};

/// A conversation to answer. `null` is as if a field were absent; fields that are not listed are named in the response header
/// `x-tandem-ignored-params`, or refused where they would change the answer.
#[derive(JsonSchema)]
#[schemars(extend("dependentSchemas" = {
    "top_logprobs": {"required": ["logprobs"], "properties": {"logprobs": {"const": true}}},
    "stream_options": {"required": ["stream"], "properties": {"stream": {"const": true}}}
}))]
pub(super) struct ChatRequest {
    /// One of `/v1/models`.
    #[schemars(length(min = 1), example = &"demo")]
    model: String,
    /// The conversation so far.
    #[schemars(length(min = 1, max = 2048), example = conversation())]
    messages: Vec<Message>,
    /// Tokens of the answer, at most; what the context has room for if absent.
    #[schemars(range(min = 1), example = 16)]
    max_completion_tokens: Option<u32>,
    #[schemars(flatten)]
    generation: Generation,
    /// Tell the log-probability of each token of the answer.
    #[schemars(example = true)]
    logprobs: Option<bool>,
    /// So many of the likeliest tokens beside each chosen one; needs `logprobs`.
    #[schemars(range(max = 20), example = 2)]
    top_logprobs: Option<u8>,
    /// Open the assistant's turn. Otherwise the prompt ends with the last message.
    #[schemars(example = true)]
    add_generation_prompt: Option<bool>,
    /// Further variables of the model's chat template: plain values under names that are not the server's own.
    #[schemars(extend("maxProperties" = 32), example = json!({"enable_thinking": false}))]
    chat_template_kwargs: Option<BTreeMap<String, Plain>>,
    /// How much the model thinks first, for templates that know of it.
    #[schemars(example = &"low")]
    reasoning_effort: Option<Effort>,
    /// Calls of functions are not offered: nothing but what asks for none.
    #[schemars(example = &"none")]
    tool_choice: Option<NoTools>,
    /// The deprecated name of `tool_choice`.
    #[schemars(example = &"none")]
    function_call: Option<NoTools>,
    #[schemars(flatten)]
    hints: Hints,
}

/// A text to continue.
#[derive(JsonSchema)]
#[schemars(extend("dependentSchemas" = {
    "stream_options": {"required": ["stream"], "properties": {"stream": {"const": true}}}
}))]
pub(super) struct CompletionRequest {
    /// One of `/v1/models`.
    #[schemars(length(min = 1), example = &"demo")]
    model: String,
    #[schemars(example = &"Once upon a time", example = json!(["One", "Two"]), example = json!([104, 105]), example = json!([[104], [105, 106]]))]
    prompt: Prompts,
    #[schemars(flatten)]
    generation: Generation,
    /// Tell the log-probability of each token, with so many of the likeliest.
    #[schemars(range(max = 5), example = 2)]
    logprobs: Option<u8>,
    /// Put the prompt in front of the text. Not together with `logprobs`.
    #[schemars(example = true)]
    echo: Option<bool>,
    #[schemars(flatten)]
    hints: Hints,
}

/// Texts to turn into vectors.
#[derive(JsonSchema)]
pub(super) struct EmbeddingRequest {
    /// One of `/v1/models` that embeds.
    #[schemars(length(min = 1), example = &"embedder")]
    model: String,
    #[schemars(example = &"The quick brown fox", example = json!(["One", "Two"]), example = json!([104, 105]), example = json!([[104], [105, 106]]))]
    input: Prompts,
    /// Numbers, or Base64 of single-precision numbers, the least significant byte first.
    #[schemars(extend("enum" = ["float", "base64", null]), example = &"base64")]
    encoding_format: Option<String>,
    /// The first so many numbers of each vector, for models that were trained for it.
    #[schemars(range(min = 1), example = 64)]
    dimensions: Option<u32>,
    /// Put around texts what the model was trained to find there; `true` if absent.
    #[schemars(example = false)]
    add_special_tokens: Option<bool>,
    /// Inputs that are longer lose tokens; -1 is as much as the model takes.
    #[schemars(extend("anyOf" = [{"const": -1}, {"minimum": 1, "maximum": 4_294_967_295u32}, {"type": "null"}]), example = 16, example = -1)]
    truncate_prompt_tokens: Option<i64>,
    /// At which end they lose them; `right` if absent.
    #[schemars(extend("enum" = ["left", "right", null]), example = &"left")]
    truncation_side: Option<String>,
    /// Bring vectors to length 1; `true` if absent.
    #[schemars(example = false)]
    normalize: Option<bool>,
    #[schemars(flatten)]
    hints: Hints,
}

/// What chat and text completions have in common.
#[derive(JsonSchema)]
struct Generation {
    /// Answers to one prompt; at most `limits.max_n`, which is 8 unless set.
    #[schemars(range(min = 1), example = 2)]
    n: Option<u32>,
    /// Tokens of the answer, at most.
    #[schemars(range(min = 1), example = 16)]
    max_tokens: Option<u32>,
    /// No end before so many tokens.
    #[schemars(example = 2)]
    min_tokens: Option<u32>,
    /// 0 always takes the likeliest token; higher is more varied. 1 if absent.
    #[schemars(range(min = 0.0, max = 2.0), example = 0.7)]
    temperature: Option<f32>,
    /// Only the likeliest tokens that have this much probability together.
    #[schemars(range(min = 0.0, max = 1.0), example = 0.9)]
    top_p: Option<f32>,
    /// Only so many of the likeliest tokens; 0 and -1 are all.
    #[schemars(range(min = -1), example = 40)]
    top_k: Option<i32>,
    /// Only tokens at least so likely, relative to the likeliest.
    #[schemars(range(min = 0.0, max = 1.0), example = 0.05)]
    min_p: Option<f32>,
    /// Only the tokens that are most typical, with this much probability together.
    #[schemars(range(min = 0.0, max = 1.0), example = 0.9)]
    typical_p: Option<f32>,
    /// Makes tokens of the prompt and of the answer less likely; 1 changes nothing.
    #[schemars(extend("exclusiveMinimum" = 0, "maximum" = 10), example = 1.1)]
    repetition_penalty: Option<f32>,
    /// Makes tokens less likely the more often they came.
    #[schemars(range(min = -2.0, max = 2.0), example = 0.5)]
    frequency_penalty: Option<f32>,
    /// Makes tokens that came less likely.
    #[schemars(range(min = -2.0, max = 2.0), example = 0.5)]
    presence_penalty: Option<f32>,
    /// Token ids, and what is added to their logits: -100 to 100.
    #[schemars(with = "Option<BTreeMap<String, f32>>", extend("maxProperties" = 300), example = json!({"104": -5}))]
    logit_bias: Option<Value>,
    /// The only tokens that may come.
    #[schemars(length(min = 1, max = 1024), example = json!([104, 105]))]
    allowed_token_ids: Option<Vec<u32>>,
    /// Texts that do not come, of 1 to 256 bytes.
    #[schemars(length(max = 128), example = json!(["never"]))]
    bad_words: Option<Vec<String>>,
    /// One to four texts that end the answer, of 1 to 256 bytes.
    #[schemars(example = &"END", example = json!(["one", "two"]))]
    stop: Option<Stop>,
    /// Tokens that end the answer.
    #[schemars(length(max = 128), example = json!([0]))]
    stop_token_ids: Option<Vec<u32>>,
    /// Go on past the model's own end.
    #[schemars(example = true)]
    ignore_eos: Option<bool>,
    /// The same request with the same seed gives the same tokens.
    #[schemars(example = 7)]
    seed: Option<i64>,
    /// Share cached prompts with requests of the same salt alone. Without `@`, `/` and `\`.
    #[schemars(length(min = 1, max = 128), example = &"tenant-7")]
    cache_salt: Option<String>,
    /// An adapter of the model, or an empty list for none.
    #[schemars(example = &"legal", example = json!([]))]
    lora: Option<Lora>,
    /// Send the answer as server-sent events, as it comes.
    #[schemars(example = true)]
    stream: Option<bool>,
    /// Needs `stream`.
    #[schemars(example = json!({"include_usage": true, "include_obfuscation": false}))]
    stream_options: Option<StreamOptions>,
    /// What the answer has to look like. Only one of this, `structured_outputs` and the `guided_…` may ask for something.
    #[schemars(
        example = json!({"type": "text"}),
        example = json!({"type": "json_object", "schema": {"type": "object"}}),
        example = json!({"type": "json_schema", "json_schema": {"name": "answer", "description": "An answer", "strict": true, "schema": {"type": "object"}}}),
        example = json!({"type": "json_schema", "schema": {"type": "object"}})
    )]
    response_format: Option<ResponseFormat>,
    /// The same by vLLM's names: exactly one of its constraints.
    #[schemars(example = json!({"json": {"type": "object"}}), example = json!({"regex": "[0-9]+"}), example = json!({"choice": ["yes", "no"]}), example = json!({"grammar": "root ::= \"a\"", "disable_any_whitespace": false, "disable_additional_properties": false}), example = json!({"json_object": true}))]
    structured_outputs: Option<StructuredOutputs>,
    /// A JSON schema, or its text.
    #[schemars(example = json!({"type": "object"}), example = &"{\"type\": \"object\"}")]
    guided_json: Option<Schema>,
    /// A regular expression that the whole answer matches.
    #[schemars(example = &"[0-9]+")]
    guided_regex: Option<String>,
    /// The answers to choose from.
    #[schemars(example = json!(["yes", "no"]))]
    guided_choice: Option<Vec<String>>,
    /// A grammar in Lark's form, or in EBNF.
    #[schemars(example = &"root ::= \"yes\" | \"no\"")]
    guided_grammar: Option<String>,
}

/// Accepted, and nothing is changed by it.
#[derive(JsonSchema)]
struct Hints {
    /// Changes nothing.
    #[schemars(example = &"user-7")]
    user: Option<Value>,
    /// Changes nothing.
    #[schemars(example = &"user-7")]
    safety_identifier: Option<Value>,
    /// Changes nothing: every prompt is looked for in the prefix cache.
    #[schemars(example = &"chat-7")]
    prompt_cache_key: Option<Value>,
    /// Changes nothing.
    #[schemars(example = &"24h")]
    prompt_cache_retention: Option<Value>,
    /// Changes nothing.
    #[schemars(example = json!({}))]
    prompt_cache_options: Option<Value>,
    /// Changes nothing.
    #[schemars(example = &"auto")]
    service_tier: Option<Value>,
    /// Changes nothing.
    #[schemars(example = true)]
    parallel_tool_calls: Option<Value>,
    /// Changes nothing.
    #[schemars(example = &"low")]
    verbosity: Option<Value>,
    /// Changes nothing.
    #[schemars(example = json!({"type": "content", "content": "x"}))]
    prediction: Option<Value>,
    /// Changes nothing.
    #[schemars(example = &"mine-7")]
    request_id: Option<Value>,
    /// Changes nothing.
    #[schemars(example = true)]
    include_reasoning: Option<Value>,
    /// Text is all that is made here.
    #[schemars(extend("items" = {"const": "text"}), example = json!(["text"]))]
    modalities: Option<Vec<String>>,
    /// Notes of the client's own, which are not kept: 16 pairs at most, with keys of 64 and values of 512 characters at most.
    #[schemars(extend("maxProperties" = 16), example = json!({"purpose": "test"}))]
    metadata: Option<BTreeMap<String, String>>,
}

/// One message of a conversation.
#[derive(JsonSchema)]
#[schemars(tag = "role", rename_all = "snake_case")]
enum Message {
    System(Said),
    /// As `system`.
    Developer(Said),
    User(Said),
    Assistant {
        /// Absent or null beside `tool_calls`.
        content: Option<Content>,
        name: Option<String>,
        #[schemars(length(min = 1, max = 128))]
        tool_calls: Option<Vec<ToolCall>>,
    },
    Tool {
        content: Content,
        name: Option<String>,
        /// The id of a call of an earlier message.
        tool_call_id: String,
    },
}

#[derive(JsonSchema)]
#[schemars(inline)]
struct Said {
    content: Content,
    name: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(untagged, inline)]
enum Content {
    Text(String),
    /// Texts, which are joined by line breaks.
    Parts(#[schemars(length(min = 1, max = 4096))] Vec<TextPart>),
}

#[derive(JsonSchema)]
struct TextPart {
    #[schemars(rename = "type", extend("const" = "text"))]
    kind: String,
    text: String,
}

/// A call that the assistant made earlier in the conversation.
#[derive(JsonSchema)]
#[schemars(rename = "ToolCallMade")]
struct ToolCall {
    id: String,
    #[schemars(rename = "type", extend("const" = "function"))]
    kind: String,
    function: FunctionCall,
}

#[derive(JsonSchema)]
#[schemars(rename = "FunctionCallMade")]
struct FunctionCall {
    name: String,
    /// JSON, as the model wrote it.
    arguments: String,
}

/// A text, texts, token ids, or lists of token ids; none of them empty.
#[derive(JsonSchema)]
#[schemars(untagged, inline)]
enum Prompts {
    Text(#[schemars(length(min = 1))] String),
    Texts(#[schemars(length(min = 1, max = 2048))] Vec<String>),
    Tokens(#[schemars(length(min = 1))] Vec<u32>),
    TokenLists(#[schemars(length(min = 1, max = 2048))] Vec<Vec<u32>>),
}

#[derive(JsonSchema)]
#[schemars(untagged, inline)]
enum Stop {
    One(#[schemars(length(min = 1, max = 256))] String),
    Several(#[schemars(length(max = 4))] Vec<String>),
}

#[derive(JsonSchema)]
#[schemars(untagged, inline)]
enum Lora {
    Name(#[schemars(length(min = 1, max = 256))] String),
    None(#[schemars(length(max = 0))] Vec<Value>),
}

#[derive(JsonSchema)]
#[schemars(untagged, inline)]
enum Plain {
    Text(String),
    Number(f64),
    Switch(bool),
    Null(()),
}

#[derive(JsonSchema)]
#[schemars(untagged, inline)]
enum Schema {
    Json(Map<String, Value>),
    Text(String),
}

#[derive(JsonSchema)]
#[schemars(inline, transparent, extend("enum" = ["none", "minimal", "low", "medium", "high", "xhigh", "max"]))]
struct Effort(String);

#[derive(JsonSchema)]
#[schemars(inline, transparent, extend("enum" = ["none", "auto"]))]
struct NoTools(String);

#[derive(JsonSchema)]
struct StreamOptions {
    /// One more event at the end, with the tokens counted.
    include_usage: Option<bool>,
    /// Accepted; nothing is padded.
    include_obfuscation: Option<bool>,
}

#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case")]
enum ResponseFormat {
    Text {},
    JsonObject {
        /// A schema for the object.
        schema: Option<Map<String, Value>>,
    },
    JsonSchema {
        /// The schema with its name; or `schema` alone.
        json_schema: Option<NamedSchema>,
        schema: Option<Map<String, Value>>,
    },
}

#[derive(JsonSchema)]
struct NamedSchema {
    #[schemars(regex(pattern = "^[A-Za-z0-9_-]{1,64}$"))]
    name: String,
    description: Option<String>,
    /// The schema is followed either way.
    strict: Option<bool>,
    schema: Map<String, Value>,
}

#[derive(JsonSchema)]
struct StructuredOutputs {
    json: Option<Schema>,
    regex: Option<String>,
    choice: Option<Vec<String>>,
    grammar: Option<String>,
    json_object: Option<bool>,
    #[schemars(extend("enum" = [false, null]))]
    disable_any_whitespace: Option<bool>,
    #[schemars(extend("enum" = [false, null]))]
    disable_additional_properties: Option<bool>,
}

/// A text, or a conversation, to turn into tokens.
#[derive(JsonSchema)]
#[schemars(extend("anyOf" = [{"required": ["prompt"]}, {"required": ["messages"]}]))]
pub(super) struct TokenizeRequest {
    /// One of `/v1/models`.
    #[schemars(length(min = 1), example = &"demo")]
    model: String,
    /// Instead of `messages`.
    #[schemars(example = &"Hello")]
    prompt: Option<String>,
    /// A text: put around it what the model's prompts have; `true` if absent.
    #[schemars(example = false)]
    add_special_tokens: Option<bool>,
    /// Instead of `prompt`.
    #[schemars(length(min = 1, max = 2048), example = conversation())]
    messages: Option<Vec<Message>>,
    /// A conversation: open the assistant's turn; `true` if absent.
    #[schemars(example = false)]
    add_generation_prompt: Option<bool>,
}

/// Tokens to turn into a text.
#[derive(JsonSchema)]
pub(super) struct DetokenizeRequest {
    /// One of `/v1/models`.
    #[schemars(length(min = 1), example = &"demo")]
    model: String,
    /// Tokens of the model.
    #[schemars(example = json!([104, 105]))]
    tokens: Vec<u32>,
}

/// A batch to run.
#[derive(JsonSchema)]
pub(super) struct BatchRequest {
    /// A file of purpose `batch`, with a `BatchInputLine` in each line. What is wrong with it is told by the batch.
    #[schemars(example = &"file-abc123")]
    input_file_id: String,
    /// Where all its requests go.
    #[schemars(extend("enum" = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]), example = &"/v1/chat/completions")]
    endpoint: String,
    /// What is not done by then is given up.
    #[schemars(extend("enum" = ["24h"]), example = &"24h")]
    completion_window: String,
    /// Comes back as it was sent: 16 pairs at most, with keys of 64 and values of 512 characters at most.
    #[schemars(extend("maxProperties" = 16), example = json!({"purpose": "test"}))]
    metadata: Option<BTreeMap<String, String>>,
    #[schemars(example = json!({"anchor": "created_at", "seconds": 86400}))]
    output_expires_after: Option<ExpiresAfter>,
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

/// Headers of `POST /v1/batches`.
#[derive(JsonSchema)]
pub(super) struct CreateBatchHeaders {
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

/// Every kind of message, with everything that it may have.
fn conversation() -> Value {
    json!([
        {"role": "system", "content": "Be brief.", "name": "rules"},
        {"role": "developer", "content": "Answer in English."},
        {"role": "user", "content": [{"type": "text", "text": "What is the weather"}, {"type": "text", "text": "in Paris?"}]},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\":\"Paris\"}"}}
        ]},
        {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
        {"role": "user", "content": "Thanks!"}
    ])
}
