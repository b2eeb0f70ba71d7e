//! The bodies of requests, for the document alone: they are read field by field for exact errors, not by these types.
//!
//! One field here is one row of the document. Tests read every example with the real readers, and fail when a field is documented and not
//! read, or read and not documented, or when a bound is not where it is said to be. So each field has an example; the words are for users.

#![expect(dead_code, reason = "these types are never built: their schemas are")]

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::{Map, Value, json};

use super::messages::{Function, FunctionChoice, Message, Tool, ToolChoice, conversation, functions, tools};

/// A conversation to answer. `null` is as if a field were absent; fields that are not listed are named in the response header
/// `x-tandem-ignored-params`, or refused where they would change the answer.
#[derive(JsonSchema)]
#[schemars(extend("dependentSchemas" = {
    "top_logprobs": {"required": ["logprobs"], "properties": {"logprobs": {"const": true}}},
    "logprob_token_ids": {"required": ["logprobs"], "properties": {"logprobs": {"const": true}}},
    "tool_choice": {"anyOf": [{"required": ["tools"]}, {"properties": {"tool_choice": {"enum": ["none", null]}}}]},
    "function_call": {"anyOf": [{"required": ["functions"]}, {"properties": {"function_call": {"enum": ["none", null]}}}]},
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
    /// The older name of `max_completion_tokens`, which goes before it.
    #[schemars(range(min = 1), example = 16)]
    max_tokens: Option<u32>,
    #[schemars(flatten)]
    generation: Generation,
    /// Tell the log-probability of each token of the answer.
    #[schemars(example = true)]
    logprobs: Option<bool>,
    /// So many of the likeliest tokens beside each chosen one; needs `logprobs`.
    #[schemars(range(max = 20), example = 2)]
    top_logprobs: Option<u8>,
    /// Open the assistant's turn; `true` if absent, unless the last message is left open.
    #[schemars(example = true)]
    add_generation_prompt: Option<bool>,
    /// Leave the last message open, for the answer to go on with it. Not together with `add_generation_prompt`.
    #[schemars(example = true)]
    continue_final_message: Option<bool>,
    /// Put the last message in front of the answer, if it is the assistant's.
    #[schemars(example = true)]
    echo: Option<bool>,
    /// Tell what the model says to itself, as `reasoning_content` and `reasoning`; `true` if absent.
    #[schemars(example = false)]
    include_reasoning: Option<bool>,
    /// Further variables of the model's chat template: plain values under names that are not the server's own.
    #[schemars(extend("maxProperties" = 32), example = json!({"enable_thinking": false}))]
    chat_template_kwargs: Option<BTreeMap<String, Plain>>,
    /// How much the model thinks first, for templates that know of it.
    #[schemars(example = &"low")]
    reasoning_effort: Option<Effort>,
    /// Functions that the model may call, 128 at most, each of another name.
    #[schemars(extend("minItems" = 1), example = tools())]
    tools: Option<Vec<Tool>>,
    /// Whether it calls one, and which; `auto` if absent.
    #[schemars(
        example = &"none",
        example = &"auto",
        example = &"required",
        example = json!({"type": "function", "function": {"name": "weather"}}),
        example = json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "weather"}}]}})
    )]
    tool_choice: Option<ToolChoice>,
    /// Whether there may be several calls in one answer; `true` if absent.
    #[schemars(example = false)]
    parallel_tool_calls: Option<bool>,
    /// The deprecated form of `tools`. Not together with it.
    #[schemars(extend("minItems" = 1), example = functions())]
    functions: Option<Vec<Function>>,
    /// The deprecated form of `tool_choice`.
    #[schemars(example = &"none", example = &"auto", example = json!({"name": "weather"}))]
    function_call: Option<FunctionChoice>,
    #[schemars(flatten)]
    handling: Handling,
    #[schemars(flatten)]
    hints: Hints,
}

/// A text to continue.
#[derive(JsonSchema)]
#[schemars(extend("dependentSchemas" = {
    "logprob_token_ids": {"required": ["logprobs"]},
    "max_tokens": {"anyOf": [{"properties": {"max_tokens": {"minimum": 1}}}, {"required": ["echo"]}]},
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
    /// Tokens of the answer, at most; 16 if absent. 0 with `echo`, to be told of the prompt alone.
    #[schemars(with = "Option<i64>", example = 16)]
    max_tokens: Option<u32>,
    /// Put the prompt in front of the text; with `logprobs` its tokens too.
    #[schemars(example = true)]
    echo: Option<bool>,
    /// What comes after the answer, for models that fill in the middle.
    #[schemars(example = &"The end.")]
    suffix: Option<String>,
    #[schemars(flatten)]
    handling: Handling,
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
    handling: Handling,
    #[schemars(flatten)]
    hints: Hints,
}

/// Documents to rank by how well they answer a query.
#[derive(JsonSchema)]
pub(super) struct RerankRequest {
    /// One of `/v1/models` that reranks.
    #[schemars(length(min = 1), example = &"reranker")]
    model: String,
    /// What is looked for.
    #[schemars(length(min = 1), example = &"Where do pandas live?")]
    query: String,
    /// What may answer it.
    #[schemars(length(min = 1, max = 2048), example = json!(["Pandas live in China.", "Paris is in France."]), example = json!([{"text": "Pandas live in China."}]))]
    documents: Vec<Document>,
    /// So many of the best alone; 0, as if it were absent, is all of them.
    #[schemars(example = 1)]
    top_n: Option<u32>,
    /// Tell the documents beside their scores; `true` if absent.
    #[schemars(example = false)]
    return_documents: Option<bool>,
    /// Documents of longer inputs lose tokens, so that each input, with the query and what the model wants around both, has so many; -1 is as
    /// many as the model takes.
    #[schemars(extend("anyOf" = [{"const": -1}, {"minimum": 1, "maximum": 4_294_967_295u32}, {"type": "null"}]), example = 64, example = -1)]
    truncate_prompt_tokens: Option<i64>,
    /// At which end texts lose tokens; `right` if absent.
    #[schemars(extend("enum" = ["left", "right", null]), example = &"left")]
    truncation_side: Option<String>,
    /// Longer documents lose tokens; 0 is no limit.
    #[schemars(example = 64)]
    max_tokens_per_doc: Option<u32>,
    /// A longer query loses tokens; 0 is no limit.
    #[schemars(example = 64)]
    max_tokens_per_query: Option<u32>,
    #[schemars(flatten)]
    handling: Handling,
    #[schemars(flatten)]
    hints: Hints,
}

/// A text, or an object with one.
#[derive(JsonSchema)]
#[schemars(untagged, inline)]
enum Document {
    Text(String),
    Object(DocumentObject),
}

#[derive(JsonSchema)]
#[schemars(inline, extend("additionalProperties" = false))]
struct DocumentObject {
    text: String,
}

/// What chat and text completions have in common.
#[derive(JsonSchema)]
struct Generation {
    /// Answers to one prompt; at most `limits.max_n`, which is 8 unless set.
    #[schemars(range(min = 1), example = 2)]
    n: Option<u32>,
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
    /// What ended the answer is part of its text: a stop string, or a token that has a text.
    #[schemars(example = true)]
    include_stop_str_in_output: Option<bool>,
    /// End when the answer runs in circles; its `finish_reason` is then `repetition`.
    #[schemars(example = json!({"max_pattern_size": 8, "min_pattern_size": 2, "min_count": 3}))]
    repetition_detection: Option<Repetition>,
    /// Longer prompts lose tokens; -1 leaves as many as fit beside the answer.
    #[schemars(extend("anyOf" = [{"const": -1}, {"minimum": 1, "maximum": 4_294_967_295u32}, {"type": "null"}]), example = 16, example = -1)]
    truncate_prompt_tokens: Option<i64>,
    /// At which end they lose them; `left` if absent.
    #[schemars(extend("enum" = ["left", "right", null]), example = &"right")]
    truncation_side: Option<String>,
    /// Put the beginning of sequence in front, if the model's prompts have one; `true` if absent, in a chat `false`.
    #[schemars(example = true)]
    add_special_tokens: Option<bool>,
    /// `false` tells control tokens as text.
    #[schemars(example = false)]
    skip_special_tokens: Option<bool>,
    /// Changes nothing: no text is ever put between tokens.
    #[schemars(example = true)]
    spaces_between_special_tokens: Option<bool>,
    /// Tell the token ids of the prompt and of the answer.
    #[schemars(example = true)]
    return_token_ids: Option<bool>,
    /// Tell the prompt as the model saw it.
    #[schemars(example = true)]
    return_prompt_text: Option<bool>,
    /// Log-probabilities name tokens `token_id:7`.
    #[schemars(example = true)]
    return_tokens_as_token_ids: Option<bool>,
    /// Tokens whose log-probabilities are told in the place of the likeliest; needs `logprobs`.
    #[schemars(length(max = 128), example = json!([104, 105]))]
    logprob_token_ids: Option<Vec<u32>>,
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
    #[schemars(example = json!({"include_usage": true, "continuous_usage_stats": true, "include_obfuscation": false}))]
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
    #[schemars(example = json!({"json": {"type": "object"}}), example = json!({"regex": "[0-9]+"}), example = json!({"choice": ["yes", "no"]}), example = json!({"grammar": "root ::= \"a\"", "disable_any_whitespace": false, "disable_additional_properties": false}), example = json!({"json_object": true, "disable_any_whitespace": true}), example = json!({"structural_tag": {"type": "structural_tag", "triggers": ["<f"], "structures": [{"begin": "<f>", "schema": {"type": "object"}, "end": "</f>"}]}}), example = json!({"json": {"type": "object"}, "whitespace_pattern": "[ ]?", "disable_additional_properties": true}))]
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
    /// Any object of JSON.
    #[schemars(example = true)]
    guided_json_object: Option<bool>,
    /// A regular expression of what stands between the parts of JSON; with `guided_json` or `guided_json_object`.
    #[schemars(example = &"[ ]?")]
    guided_whitespace_pattern: Option<String>,
}

/// How a request is handled, which changes nothing about its answer.
#[derive(JsonSchema)]
struct Handling {
    /// Among the online requests, or the lines of batches, lower goes first. 0 if absent.
    #[schemars(example = -1)]
    priority: Option<i64>,
    /// `flex` waits for all others, unless `priority` says otherwise. The others are as usual.
    #[schemars(extend("enum" = ["auto", "default", "flex", "scale", "priority", null]), example = &"flex")]
    service_tier: Option<String>,
    /// The client's own name for the request, of visible ASCII characters: the end of the answer's `id`, and the header `X-Request-Id`.
    #[schemars(length(min = 1, max = 128), regex(pattern = "^[!-~]+$"), example = &"mine-7")]
    request_id: Option<String>,
}

/// When an answer runs in circles: when it ends with `min_count` copies of a run of tokens.
#[derive(JsonSchema)]
#[schemars(extend("additionalProperties" = false))]
struct Repetition {
    /// The longest run that is looked for, in tokens; 0 looks for none.
    #[schemars(range(max = 512))]
    max_pattern_size: Option<u32>,
    /// The shortest, 1 if absent.
    #[schemars(range(max = 512))]
    min_pattern_size: Option<u32>,
    /// 2 at least.
    min_count: Option<u32>,
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
    #[schemars(example = &"low")]
    verbosity: Option<Value>,
    /// Changes nothing.
    #[schemars(example = json!({"type": "content", "content": "x"}))]
    prediction: Option<Value>,
    /// Text is all that is made here.
    #[schemars(extend("items" = {"const": "text"}), example = json!(["text"]))]
    modalities: Option<Vec<String>>,
    /// Notes of the client's own, which are not kept: 16 pairs at most, with keys of 64 and values of 512 characters at most.
    #[schemars(extend("maxProperties" = 16), example = json!({"purpose": "test"}))]
    metadata: Option<BTreeMap<String, String>>,
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
struct StreamOptions {
    /// One more event at the end, with the tokens counted.
    include_usage: Option<bool>,
    /// The tokens counted so far with each event.
    continuous_usage_stats: Option<bool>,
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
    /// `triggers`, and the `structures` that they begin in free text: `begin`, `schema` and `end` of each. Or JSON of it.
    structural_tag: Option<StructuralTag>,
    /// JSON without white space. Not together with `whitespace_pattern`.
    disable_any_whitespace: Option<bool>,
    /// Objects have no properties but those that their schema names.
    disable_additional_properties: Option<bool>,
    /// A regular expression of what stands between the parts of JSON; with `guided_json` or `guided_json_object`.
    whitespace_pattern: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(untagged, inline)]
enum StructuralTag {
    Object(TagObject),
    Text(String),
}

#[derive(JsonSchema)]
struct TagObject {
    #[schemars(extend("const" = "structural_tag"))]
    #[schemars(rename = "type")]
    kind: Option<String>,
    #[schemars(length(min = 1, max = 128))]
    triggers: Vec<String>,
    #[schemars(length(min = 1, max = 128))]
    structures: Vec<TagStructure>,
}

#[derive(JsonSchema)]
struct TagStructure {
    /// Begins with one of the triggers.
    begin: String,
    schema: Map<String, Value>,
    end: String,
}

/// A text, or a conversation, to turn into tokens.
#[derive(JsonSchema)]
#[schemars(extend("anyOf" = [{"required": ["prompt"]}, {"required": ["messages"]}], "dependentSchemas" = {
    "tool_choice": {"anyOf": [{"required": ["tools"]}, {"required": ["prompt"]}, {"properties": {"tool_choice": {"enum": ["none", null]}}}]},
    "function_call": {"anyOf": [{"required": ["functions"]}, {"required": ["prompt"]}, {"properties": {"function_call": {"enum": ["none", null]}}}]}
}))]
pub(super) struct TokenizeRequest {
    /// One of `/v1/models`.
    #[schemars(length(min = 1), example = &"demo")]
    model: String,
    /// Instead of `messages`.
    #[schemars(example = &"Hello")]
    prompt: Option<String>,
    /// Put around a text what the model's prompts have, or the beginning of sequence in front of a conversation; `true` if absent, in a
    /// conversation `false`.
    #[schemars(example = false)]
    add_special_tokens: Option<bool>,
    /// Instead of `prompt`.
    #[schemars(length(min = 1, max = 2048), example = conversation())]
    messages: Option<Vec<Message>>,
    /// A conversation: open the assistant's turn; `true` if absent, unless the last message is left open.
    #[schemars(example = false)]
    add_generation_prompt: Option<bool>,
    /// A conversation: leave the last message open. Not together with `add_generation_prompt`.
    #[schemars(example = true)]
    continue_final_message: Option<bool>,
    /// A conversation: as in a request for an answer.
    #[schemars(extend("minItems" = 1), example = tools())]
    tools: Option<Vec<Tool>>,
    /// The same.
    #[schemars(
        example = &"none",
        example = json!({"type": "function", "function": {"name": "weather"}}),
        example = json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "weather"}}]}})
    )]
    tool_choice: Option<ToolChoice>,
    /// The same.
    #[schemars(example = false)]
    parallel_tool_calls: Option<bool>,
    /// The same.
    #[schemars(extend("minItems" = 1), example = functions())]
    functions: Option<Vec<Function>>,
    /// The same.
    #[schemars(example = &"none", example = json!({"name": "weather"}))]
    function_call: Option<FunctionChoice>,
    /// Tell the tokens' texts.
    #[schemars(example = true)]
    return_token_strs: Option<bool>,
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
