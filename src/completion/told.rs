//! Tools, their calls and their results, told to models whose chat template has no place for them.

use serde_json::{Map, Value, json};

const INTRODUCTION: &str = "You may call functions. To call one, answer with nothing but a JSON object of the form \
{\"name\": FUNCTION, \"arguments\": ARGUMENTS}, where the arguments follow the function's parameters, a JSON Schema. \
To call several, write one object after the other with a semicolon between them. These are the functions:";

/// Tells of the tools in the system message, which is made if there is none.
pub(super) fn tools_in_system_message(messages: &mut Vec<Value>, tools: &[Value]) {
    let is_system = messages.first().is_some_and(|first| first["role"] == "system" || first["role"] == "developer");
    if !is_system {
        messages.insert(0, json!({ "role": "system", "content": introduction(tools) }));
        return;
    }
    tools_in_first_message(messages, tools);
}

/// Tells of the tools in front of what the first message says.
pub(super) fn tools_in_first_message(messages: &mut [Value], tools: &[Value]) {
    if let Some(first) = messages.first_mut() {
        let content = first["content"].as_str().unwrap_or_default();
        first["content"] = format!("{}\n\n{content}", introduction(tools)).into();
    }
}

/// Makes text of calls, and a user's message of what they gave.
pub(super) fn calls_as_text(messages: &mut Vec<Value>) {
    let mut told: Vec<Value> = Vec::with_capacity(messages.len());
    for mut message in messages.drain(..) {
        if let Some(Value::Array(calls)) =
            message.as_object_mut().and_then(|message| message.shift_remove("tool_calls"))
        {
            let calls: Vec<String> = calls.iter().map(|call| call["function"].to_string()).collect();
            let content = message["content"].as_str().unwrap_or_default();
            let blank = if content.is_empty() { "" } else { "\n" };
            message["content"] = format!("{content}{blank}{}", calls.join("; ")).into();
        }
        if message["role"] == "tool" {
            let content = message["content"].as_str().unwrap_or_default();
            // Results of calls that were made together are one message: users and assistants take turns.
            if let Some(before) = told.last_mut().filter(|before| before["role"] == "user") {
                let text = before["content"].as_str().unwrap_or_default();
                before["content"] = format!("{text}\n{content}").into();
                continue;
            }
            message = json!({ "role": "user", "content": content });
        }
        told.push(message);
    }
    *messages = told;
}

fn introduction(tools: &[Value]) -> String {
    let mut text = INTRODUCTION.to_owned();
    for tool in tools {
        let empty = Value::Object(Map::new());
        text.push('\n');
        text.push_str(&tool.get("function").unwrap_or(&empty).to_string());
    }
    text
}
