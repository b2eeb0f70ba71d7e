//! Structured output: what is refused, with the codes and paths that clients see.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::helpers::{MODEL, TestApp, chat_body, merged, spawn_app};

/// Status, code and path of the answer.
async fn refusal(app: &TestApp, path: &str, body: Value) -> (u16, String, String) {
    let response = app.post(path, &body).await;
    let status = response.status().as_u16();
    let answer: Value = response.json().await.unwrap();
    let text = |name: &str| answer["error"][name].as_str().unwrap_or("-").to_owned();
    (status, text("code"), text("param"))
}

fn described(schema: &Value) -> Value {
    json!({"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}})
}

/// Text in which "<f" begins what is said of it.
fn tagged(begin: &str, schema: &Value) -> Value {
    let structure = json!({"begin": begin, "schema": schema, "end": "</f>"});
    let tag = json!({"type": "structural_tag", "triggers": ["<f"], "structures": [structure]});
    json!({"structured_outputs": {"structural_tag": tag.to_string()}})
}

/// What this model says at random has one of the letters in it soon, and then what has to follow.
#[tokio::test]
async fn a_trigger_in_free_text_begins_what_it_is_for() {
    let app = spawn_app().await;
    let structure = |begin: &str, schema: Value| json!({"begin": begin, "schema": schema, "end": ";"});
    let structures = [structure("q:", json!({"type": "boolean"})), structure("z", json!({"const": "w"}))];
    let tag = json!({"triggers": ["q", "z"], "structures": structures});
    let mut found = [0, 0];
    for seed in 0..20 {
        let asked = json!({"structured_outputs": {"structural_tag": tag}, "max_tokens": 200, "temperature": 1, "seed": seed, "n": 8});
        let answer = app.chat(asked).await;
        for choice in answer["choices"].as_array().unwrap() {
            let text = choice["message"]["content"].as_str().unwrap();
            for (at, trigger) in text.char_indices().filter(|(_, c)| ['q', 'z'].contains(c)) {
                let rest = &text[at..];
                let forms = if trigger == 'q' { &["q:true;", "q:false;"][..] } else { &["z\"w\";"][..] };
                let follows = |form: &&str| rest.starts_with(*form) || form.starts_with(rest);
                assert!(forms.iter().any(follows), "{text}");
                found[usize::from(trigger == 'z')] += 1;
            }
        }
    }
    assert!(found.iter().all(|count| *count > 0), "{found:?}");
}

#[tokio::test]
async fn what_is_wrong_with_a_constraint_is_told_by_its_place() {
    let app = spawn_app().await;
    const SCHEMA: &str = "response_format.json_schema.schema";
    let values: Vec<_> = (0..100_000).collect();
    for (extra, code, param) in [
        (json!({"response_format": {"type": "xml"}}), "invalid_value", "response_format.type"),
        (json!({"response_format": {}}), "missing_required_parameter", "response_format.type"),
        (
            json!({"response_format": {"type": "json_schema"}}),
            "missing_required_parameter",
            "response_format.json_schema",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}),
            "missing_required_parameter",
            "response_format.json_schema.name",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}}),
            "invalid_value",
            "response_format.json_schema.name",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}),
            "missing_required_parameter",
            SCHEMA,
        ),
        (described(&json!([])), "invalid_type", SCHEMA),
        (described(&json!({"$ref": "http://a/b"})), "invalid_schema", "response_format.json_schema.schema.$ref"),
        (
            described(&json!({"properties": {"a": {"type": "string", "pattern": "a{0,100000}"}}})),
            "invalid_schema",
            "response_format.json_schema.schema.properties.a.pattern",
        ),
        (described(&json!({"type": "pattern"})), "invalid_schema", "response_format.json_schema.schema.type"),
        (described(&json!({"type": "array", "minItems": 1_000_000_000})), "schema_too_complex", SCHEMA),
        (described(&json!({"enum": values})), "schema_too_complex", SCHEMA),
        (json!({"structured_outputs": {}}), "invalid_value", "structured_outputs"),
        (json!({"structured_outputs": {"regex": "a", "json_object": true}}), "invalid_value", "structured_outputs"),
        (json!({"structured_outputs": {"regex": "["}}), "invalid_schema", "structured_outputs.regex"),
        (json!({"structured_outputs": {"choice": ["a", ""]}}), "invalid_schema", "structured_outputs.choice[1]"),
        (json!({"structured_outputs": {"choice": ["a", 1]}}), "invalid_type", "structured_outputs.choice[1]"),
        (json!({"structured_outputs": {"structural_tag": "x"}}), "invalid_value", "structured_outputs.structural_tag"),
        (
            json!({"structured_outputs": {"regex": "a", "disable_any_whitespace": true}}),
            "invalid_value",
            "structured_outputs.disable_any_whitespace",
        ),
        (
            json!({"structured_outputs": {"json": {}, "disable_any_whitespace": true, "whitespace_pattern": " "}}),
            "invalid_value",
            "structured_outputs.whitespace_pattern",
        ),
        (
            json!({"structured_outputs": {"json": {}, "whitespace_pattern": "("}}),
            "invalid_schema",
            "structured_outputs.whitespace_pattern",
        ),
        (
            json!({"structured_outputs": {"structural_tag": "{}"}}),
            "missing_required_parameter",
            "structured_outputs.structural_tag.triggers",
        ),
        (tagged("<a>", &json!({})), "invalid_value", "structured_outputs.structural_tag.structures[0].begin"),
        (tagged("<f", &json!(7)), "invalid_type", "structured_outputs.structural_tag.structures[0].schema"),
        (
            tagged("<f", &json!({"type": "pattern"})),
            "invalid_schema",
            "structured_outputs.structural_tag.structures[0].schema.type",
        ),
        (
            json!({"structured_outputs": {"structural_tag": {"type": "structural_tag", "format": {}}}}),
            "missing_required_parameter",
            "structured_outputs.structural_tag.triggers",
        ),
        (json!({"guided_whitespace_pattern": " "}), "invalid_value", "guided_whitespace_pattern"),
        (json!({"guided_json": "{"}), "invalid_schema", "guided_json"),
        (json!({"guided_grammar": "start: nothing"}), "invalid_schema", "guided_grammar"),
        (json!({"guided_grammar": "root ::= nothing"}), "invalid_schema", "guided_grammar"),
        (json!({"guided_regex": "a", "guided_choice": ["a"]}), "invalid_value", "guided_choice"),
        (json!({"response_format": {"type": "json_object"}, "guided_regex": "a"}), "invalid_value", "guided_regex"),
    ] {
        let expected = (400, code.to_owned(), param.to_owned());
        assert_eq!(refusal(&app, "/v1/chat/completions", chat_body(extra.clone())).await, expected, "{extra:.200}");
        let text = merged(json!({"model": MODEL, "prompt": "Hello"}), extra.clone());
        assert_eq!(refusal(&app, "/v1/completions", text).await, expected, "{extra:.200}");
    }
}

#[tokio::test]
async fn every_way_to_ask_is_accepted() {
    let app = spawn_app().await;
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    for extra in [
        described(&schema),
        json!({"response_format": {"type": "json_schema", "json_schema":
            {"name": "a", "schema": schema, "strict": false, "description": "d"}}}),
        json!({"response_format": {"type": "json_schema", "schema": schema}}),
        json!({"response_format": {"type": "json_object", "schema": schema}}),
        json!({"response_format": {"type": "json_object"}}),
        json!({"response_format": {"type": "text"}, "guided_regex": "[a-z]+"}),
        json!({"structured_outputs": {"json": schema, "disable_any_whitespace": false}}),
        json!({"structured_outputs": {"json": schema.to_string()}}),
        json!({"structured_outputs": {"json_object": true}}),
        json!({"structured_outputs": {"choice": ["yes", "no"]}}),
        json!({"guided_grammar": "start: /[a-z]+/"}),
        json!({"guided_grammar": "root ::= [a-z]+"}),
        json!({"guided_json": schema, "guided_json_object": false}),
    ] {
        let response = app.post("/v1/chat/completions", &chat_body(extra.clone())).await;
        assert_eq!(response.status(), StatusCode::OK, "{extra}");
        let text = merged(json!({"model": MODEL, "prompt": "Hello", "max_tokens": 4}), extra.clone());
        assert_eq!(app.post("/v1/completions", &text).await.status(), StatusCode::OK, "{extra}");
    }
}

#[tokio::test]
async fn answers_look_as_they_were_asked_to() {
    let app = spawn_app().await;
    let schema = json!({"type": "object", "required": ["done", "kind", "size"], "additionalProperties": false, "properties": {
        "done": {"type": "boolean"}, "kind": {"enum": ["big", "small"]}, "size": {"type": "integer", "minimum": 1, "maximum": 99}}});
    for seed in 0..8 {
        let at_length = json!({"seed": seed, "max_tokens": 64});
        let answer = app.chat(merged(described(&schema), at_length.clone())).await;
        let choice = &answer["choices"][0];
        let text = choice["message"]["content"].as_str().unwrap();
        let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert!(value["done"].is_boolean(), "{text}");
        assert!(value["kind"] == "big" || value["kind"] == "small", "{text}");
        assert!((1..=99).contains(&value["size"].as_i64().unwrap()), "{text}");
        assert_eq!(value.as_object().unwrap().len(), 3, "{text}");
        assert_eq!(choice["finish_reason"], "stop");

        let choices =
            json!({"model": MODEL, "prompt": ["one", "two"], "structured_outputs": {"choice": ["yes", "no"]}});
        let answer = app.ok("/v1/completions", &merged(choices, at_length.clone())).await;
        for choice in answer["choices"].as_array().unwrap() {
            assert!(choice["text"] == "yes" || choice["text"] == "no", "{choice}");
            assert_eq!(choice["finish_reason"], "stop");
        }
        let answer = app.chat(merged(json!({"guided_regex": "[x-z]{3}!", "n": 2}), at_length)).await;
        for choice in answer["choices"].as_array().unwrap() {
            let text = choice["message"]["content"].as_str().unwrap();
            let letters = text.strip_suffix('!').unwrap();
            assert!(letters.len() == 3 && letters.bytes().all(|byte| (b'x'..=b'z').contains(&byte)), "{text}");
        }
    }
}
