//! Conversations and functions in requests; as in [`requests`](super::requests), for the document alone.

#![expect(dead_code, reason = "these types are never built: their schemas are")]

use schemars::JsonSchema;
use serde_json::{Map, Value, json};

/// One message of a conversation.
#[derive(JsonSchema)]
#[schemars(tag = "role", rename_all = "snake_case")]
pub(super) enum Message {
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
        /// The deprecated form of a call. Not together with `tool_calls`.
        function_call: Option<FunctionCall>,
        /// What the model said to itself, by either name.
        reasoning_content: Option<String>,
        reasoning: Option<String>,
    },
    Tool {
        content: Content,
        name: Option<String>,
        /// The id of a call of an earlier message.
        tool_call_id: String,
    },
    /// What came of the `function_call` before it.
    Function {
        content: Content,
        /// The function's.
        name: String,
    },
}

#[derive(JsonSchema)]
#[schemars(inline)]
pub(super) struct Said {
    content: Content,
    name: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(untagged, inline)]
pub(super) enum Content {
    Text(String),
    /// Texts, which are joined by line breaks.
    Parts(#[schemars(length(min = 1, max = 4096))] Vec<TextPart>),
}

#[derive(JsonSchema)]
pub(super) struct TextPart {
    #[schemars(rename = "type", extend("const" = "text"))]
    kind: String,
    text: String,
}

/// A call that the assistant made earlier in the conversation.
#[derive(JsonSchema)]
#[schemars(rename = "ToolCallMade")]
pub(super) struct ToolCall {
    id: String,
    #[schemars(rename = "type", extend("const" = "function"))]
    kind: String,
    function: FunctionCall,
}

#[derive(JsonSchema)]
#[schemars(rename = "FunctionCallMade")]
pub(super) struct FunctionCall {
    name: String,
    /// JSON, as the model wrote it.
    arguments: String,
}

/// A function that the model may call.
#[derive(JsonSchema)]
#[schemars(rename = "Tool")]
pub(super) struct Tool {
    #[schemars(rename = "type", extend("const" = "function"))]
    kind: String,
    function: Function,
}

#[derive(JsonSchema)]
#[schemars(rename = "Function")]
pub(super) struct Function {
    #[schemars(regex(pattern = "^[A-Za-z0-9_-]{1,64}$"))]
    name: String,
    description: Option<String>,
    /// A JSON schema of an object; none if absent.
    parameters: Option<Map<String, Value>>,
    /// Calls follow the schema also where the model itself decides to call.
    strict: Option<bool>,
}

#[derive(JsonSchema)]
#[schemars(untagged, inline)]
pub(super) enum ToolChoice {
    Word(ToolWord),
    Object(ChosenTool),
}

#[derive(JsonSchema)]
#[schemars(inline, transparent, extend("enum" = ["none", "auto", "required"]))]
pub(super) struct ToolWord(String);

/// One function, or some of them.
#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case")]
pub(super) enum ChosenTool {
    Function { function: Named },
    AllowedTools { allowed_tools: AllowedTools },
}

#[derive(JsonSchema)]
pub(super) struct AllowedTools {
    #[schemars(extend("enum" = ["auto", "required"]))]
    mode: String,
    #[schemars(length(min = 1))]
    tools: Vec<NamedTool>,
}

#[derive(JsonSchema)]
pub(super) struct NamedTool {
    #[schemars(rename = "type", extend("const" = "function"))]
    kind: String,
    function: Named,
}

/// One of the request's functions.
#[derive(JsonSchema)]
#[schemars(rename = "NamedFunction")]
pub(super) struct Named {
    name: String,
}

#[derive(JsonSchema)]
#[schemars(untagged, inline)]
pub(super) enum FunctionChoice {
    Word(FunctionWord),
    Named(Named),
}

#[derive(JsonSchema)]
#[schemars(inline, transparent, extend("enum" = ["none", "auto"]))]
pub(super) struct FunctionWord(String);

/// Every kind of message, with everything that it may have.
pub(super) fn conversation() -> Value {
    json!([
        {"role": "system", "content": "Be brief.", "name": "rules"},
        {"role": "developer", "content": "Answer in English."},
        {"role": "user", "content": [{"type": "text", "text": "What is the weather"}, {"type": "text", "text": "in Paris?"}]},
        {"role": "assistant", "content": null, "reasoning_content": "Ask.", "reasoning": "Ask.", "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\":\"Paris\"}"}}
        ]},
        {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
        {"role": "assistant", "content": "And now?", "name": "helper", "function_call": {"name": "weather", "arguments": "{}"}},
        {"role": "function", "content": "rain", "name": "weather"},
        {"role": "user", "content": "Thanks!"}
    ])
}

pub(super) fn tools() -> Value {
    let functions = functions();
    json!([{"type": "function", "function": functions[0]}])
}

pub(super) fn functions() -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    json!([{"name": "weather", "description": "The weather of a city", "parameters": parameters, "strict": true}])
}
