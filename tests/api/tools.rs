//! Tools: calls that follow their schemas, at once and as a stream, over a model that is a hash.

use serde_json::{Value, json};
use tandem_sim::SimSettings;

use crate::helpers::{Setup, TestApp, chat_body, events, merged, spawn, spawn_app};

const HERMES: &str = "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\
    {% for call in m.tool_calls %}{{ call.function.arguments.city }}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n";

async fn spawn_with(template: &str) -> TestApp {
    let sim = SimSettings { chat_template: template.to_owned(), ..SimSettings::default() };
    spawn(Setup { sim, ..Setup::default() }).await
}

fn tools() -> Value {
    let weather = json!({"type": "object", "required": ["city", "days"], "additionalProperties": false, "properties": {
        "city": {"enum": ["Bern", "Zürich"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}, "exact": {"type": "boolean"}}});
    json!([
        {"type": "function", "function": {"name": "weather", "description": "Tells the weather.", "parameters": weather}},
        {"type": "function", "function": {"name": "clock"}},
    ])
}

/// The name of a call, whose arguments are as its schema wants them.
fn checked(call: &Value) -> String {
    assert_eq!(call["type"], "function");
    let function = &call["function"];
    let arguments: Value = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
    match function["name"].as_str().unwrap() {
        "weather" => {
            assert!(arguments["city"] == "Bern" || arguments["city"] == "Zürich", "{arguments}");
            assert!((1..=9).contains(&arguments["days"].as_i64().unwrap()), "{arguments}");
            let known =
                arguments.as_object().unwrap().keys().all(|key| ["city", "days", "exact"].contains(&key.as_str()));
            assert!(known && (arguments["exact"].is_boolean() || arguments["exact"].is_null()), "{arguments}");
        }
        "clock" => assert_eq!(arguments, json!({})),
        name => panic!("{name}"),
    }
    function["name"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn calls_that_have_to_be_made_follow_their_schemas() {
    let mut names = Vec::new();
    for template in [
        tandem_sim::CHAT_TEMPLATE,
        HERMES,
        "{{ messages[0].content }}[TOOL_CALLS]{{ tools }}",
        "<｜tool▁call▁begin｜>{{ tools }}",
    ] {
        let app = spawn_with(template).await;
        for seed in 0..8 {
            let question = json!([{"role": "user", "content": format!("Question {seed}")}]);
            let extra = json!({"seed": seed, "messages": question, "max_tokens": 800, "tools": tools(), "tool_choice": "required", "parallel_tool_calls": false});
            let answer = app.chat(extra).await;
            let choice = &answer["choices"][0];
            assert_eq!(
                (&choice["finish_reason"], &choice["message"]["content"]),
                (&json!("tool_calls"), &Value::Null),
                "{answer}"
            );
            let [call] = &choice["message"]["tool_calls"].as_array().unwrap()[..] else { panic!("{answer}") };
            names.push(checked(call));
            let id = call["id"].as_str().unwrap();
            let is_short = template.contains("[TOOL_CALLS]") && id.len() == 9;
            assert!(is_short || id.starts_with("call_"), "{id}");
        }
    }
    assert!(names.iter().any(|name| name == "weather") && names.iter().any(|name| name == "clock"), "{names:?}");
}

#[tokio::test]
async fn a_stream_tells_the_calls_that_the_whole_answer_has() {
    for template in [tandem_sim::CHAT_TEMPLATE, HERMES] {
        let app = spawn_with(template).await;
        for (seed, named) in [(1, false), (2, false), (3, true)] {
            let choice =
                if named { json!({"type": "function", "function": {"name": "weather"}}) } else { json!("required") };
            let extra = json!({"seed": seed, "max_tokens": 300, "tools": tools(), "tool_choice": choice});
            let whole = app.chat(extra.clone()).await;
            let message = &whole["choices"][0]["message"];
            let streamed = app.post("/v1/chat/completions", &chat_body(merged(extra, json!({"stream": true})))).await;
            let mut calls: Vec<Value> = Vec::new();
            let mut finish = Value::Null;
            let data = events(&streamed.text().await.unwrap());
            for chunk in data.iter().filter(|data| *data != "[DONE]") {
                let chunk: Value = serde_json::from_str(chunk).unwrap();
                let choice = &chunk["choices"][0];
                for delta in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
                    let index = delta["index"].as_u64().unwrap() as usize;
                    if let Some(id) = delta["id"].as_str() {
                        assert_eq!(index, calls.len());
                        let function = json!({"name": delta["function"]["name"], "arguments": ""});
                        calls.push(json!({"id": id, "type": delta["type"], "function": function}));
                    }
                    let arguments = calls[index]["function"]["arguments"].as_str().unwrap().to_owned();
                    calls[index]["function"]["arguments"] =
                        (arguments + delta["function"]["arguments"].as_str().unwrap()).into();
                }
                finish = if choice["finish_reason"].is_null() { finish } else { choice["finish_reason"].clone() };
            }
            assert_eq!(finish, whole["choices"][0]["finish_reason"]);
            let functions = |calls: &[Value]| calls.iter().map(|call| call["function"].clone()).collect::<Vec<_>>();
            assert_eq!(functions(&calls), functions(message["tool_calls"].as_array().unwrap()));
            // Arguments come as they are made, not at the end.
            assert!(data.len() > 10 * calls.len(), "{} chunks", data.len());
            if named {
                assert_eq!(calls.iter().map(checked).collect::<Vec<_>>(), ["weather"]);
            }
        }
    }
}

#[tokio::test]
async fn an_answer_that_has_a_form_is_that_or_a_call() {
    let app = spawn_with(HERMES).await;
    let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": schema}});
    let mut strict = tools();
    strict.as_array_mut().unwrap().iter_mut().for_each(|tool| tool["function"]["strict"] = true.into());
    let (mut calls, mut texts) = (0, 0);
    for question in 0..16 {
        let messages = json!([{"role": "user", "content": format!("Question {question}")}]);
        let extra = json!({"messages": messages, "max_tokens": 800, "tools": strict, "response_format": format, "parallel_tool_calls": false});
        let answer = app.chat(extra).await;
        let choice = &answer["choices"][0];
        match choice["message"]["content"].as_str() {
            Some(text) => {
                let value: Value = serde_json::from_str(text).unwrap();
                assert!(value["ok"].is_boolean() && choice["finish_reason"] == "stop", "{answer}");
                texts += 1;
            }
            None => {
                assert_eq!(choice["finish_reason"], "tool_calls");
                calls += choice["message"]["tool_calls"].as_array().unwrap().iter().map(checked).count();
            }
        }
    }
    assert!(calls > 0 && texts > 0, "{calls} calls, {texts} texts");
}

#[tokio::test]
async fn functions_are_answered_in_their_own_form() {
    let app = spawn_with(HERMES).await;
    let functions: Vec<Value> = tools().as_array().unwrap().iter().map(|tool| tool["function"].clone()).collect();
    let extra = json!({"max_tokens": 300, "functions": functions, "function_call": {"name": "weather"}});
    let answer = app.chat(extra.clone()).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "function_call");
    assert!(choice["message"].get("tool_calls").is_none());
    let call = choice["message"]["function_call"].clone();
    checked(&json!({"type": "function", "function": call}));
    let history = json!({"messages": [
        {"role": "user", "content": "How warm?"},
        {"role": "assistant", "content": null, "function_call": call},
        {"role": "function", "name": "weather", "content": "cold"},
    ]});
    app.chat(merged(history, json!({"functions": functions, "function_call": "none"}))).await;
    let streamed = app
        .post("/v1/chat/completions", &chat_body(merged(extra, json!({"stream": true}))))
        .await
        .text()
        .await
        .unwrap();
    assert!(
        streamed.contains("\"function_call\":{\"name\":\"weather\"")
            && streamed.contains("\"finish_reason\":\"function_call\"")
    );
}

/// What a model is told.
async fn prompt(app: &TestApp, extra: Value) -> String {
    let tokens = app.ok("/tokenize", &chat_body(extra)).await["tokens"].clone();
    app.ok("/detokenize", &json!({"model": "org/sim", "tokens": tokens})).await["prompt"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_model_is_told_of_the_tools_that_it_may_call() {
    let call =
        json!({"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\": \"Bern\"}"}});
    let messages = json!([
        {"role": "user", "content": "How warm?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "cold"},
    ]);
    // By the template, or else by a message.
    for (app, result) in [
        (spawn_with(HERMES).await, "assistant\nBern<|im_end|>\n<|im_start|>tool\ncold"),
        (spawn_app().await, "<|im_start|>user\ncold"),
    ] {
        let with = |extra: Value| merged(json!({"tools": tools(), "messages": messages}), extra);
        let all = prompt(&app, with(json!({}))).await;
        assert!(all.contains("Tells the weather.") && all.contains("\"clock\"") && all.contains(result), "{all}");
        let allowed = json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "clock"}}]}});
        let some = prompt(&app, with(json!({"tool_choice": allowed}))).await;
        assert!(!some.contains("Tells the weather.") && some.contains("\"clock\""), "{some}");
        let none = prompt(&app, with(json!({"tool_choice": "none"}))).await;
        assert!(!none.contains("\"clock\""), "{none}");
    }
}

const THINKING: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n\
    {% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}";

#[tokio::test]
async fn reasoning_is_told_beside_the_answer() {
    let app = spawn_with(THINKING).await;
    let answer = app.chat(json!({"ignore_eos": true})).await;
    let message = &answer["choices"][0]["message"];
    let reasoning = message["reasoning_content"].as_str().unwrap();
    assert!(!reasoning.is_empty() && message["reasoning"] == reasoning && message["content"] == "", "{answer}");
    assert_eq!(answer["usage"]["completion_tokens_details"]["reasoning_tokens"], 12);

    let stream = json!({"ignore_eos": true, "stream": true, "stream_options": {"include_usage": true}});
    let streamed = app.post("/v1/chat/completions", &chat_body(stream)).await.text().await.unwrap();
    let chunks: Vec<Value> = events(&streamed).iter().filter_map(|data| serde_json::from_str(data).ok()).collect();
    let told =
        |name: &str| chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"][name].as_str()).collect::<String>();
    assert_eq!(
        (told("reasoning_content"), told("reasoning"), told("content")),
        (reasoning.to_owned(), reasoning.to_owned(), String::new())
    );
    assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens_details"]["reasoning_tokens"], 12);

    let hidden = app.chat(json!({"ignore_eos": true, "include_reasoning": false})).await;
    assert!(
        hidden["choices"][0]["message"].get("reasoning_content").is_none()
            && hidden["choices"][0]["message"]["content"] == ""
    );
    // The template has it that there is nothing to think about: all is the answer, and constrained from its beginning.
    let extra = json!({"chat_template_kwargs": {"enable_thinking": false}, "guided_choice": ["yes", "no"]});
    let plain = app.chat(extra.clone()).await;
    let text = plain["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text == "yes" || text == "no", "{plain}");
    assert_eq!(plain["usage"]["completion_tokens_details"]["reasoning_tokens"], 0);
}
