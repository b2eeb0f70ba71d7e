//! Chat templates of the families that people use, against what `transformers` makes of them: `tests/chat_templates`.

use std::path::PathBuf;

use serde_json::{Map, Value, json};
use tandem_core::{TokenId, TokenKind, TokenizeError, Tokenizer, Vocab, VocabParts};
use time::macros::datetime;

use super::Limits;
use super::prompt::{self, Conversation};
use super::read::chat;
use super::template::ChatTemplate;

/// One token for each byte, and a beginning and an end of sequence.
fn vocab() -> Vocab {
    let bytes = (0..=255u8).map(|byte| (Box::from([byte]), Some(TokenKind::Text)));
    let specials = ["<s>", "</s>"].map(|text| (Box::from(text.as_bytes()), Some(TokenKind::Control)));
    let tokens = bytes.chain(specials).collect();
    Vocab::new(VocabParts { tokens, bos: Some(256), eos: Some(257), ..VocabParts::default() })
}

struct Bytes;

impl Tokenizer for Bytes {
    fn encode(&self, text: &str) -> Result<Vec<TokenId>, TokenizeError> {
        Ok(text.bytes().map(TokenId::from).collect())
    }
}

fn fixture(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/chat_templates", name].iter().collect()
}

fn read(name: &str) -> Value {
    serde_json::from_str(&fs_err::read_to_string(fixture(name)).unwrap()).unwrap()
}

/// The conversation as a client sends it.
fn body(conversation: &Value, tools: &Value) -> Map<String, Value> {
    let mut body = json!({"model": "m", "messages": conversation["messages"]});
    for call in body["messages"].as_array_mut().unwrap().iter_mut().filter_map(|message| message.get_mut("tool_calls"))
    {
        for call in call.as_array_mut().unwrap() {
            call["function"]["arguments"] = call["function"]["arguments"].to_string().into();
        }
    }
    if let Some(name) = conversation["tools"].as_str() {
        body["tools"] = tools[name].clone();
    }
    body["add_generation_prompt"] = conversation.get("add_generation_prompt").cloned().unwrap_or(true.into());
    body["chat_template_kwargs"] = conversation.get("variables").cloned().unwrap_or(json!({}));
    let Value::Object(body) = body else { panic!() };
    body
}

/// The text, or the words of refusal.
fn rendered(template: &ChatTemplate, body: &Map<String, Value>) -> Result<String, String> {
    let request = chat(body, &Limits::default()).unwrap();
    let conversation = Conversation {
        messages: &request.messages,
        tools: request.tools.as_ref().map(|tools| tools.list.as_slice()).unwrap_or_default(),
        add_generation_prompt: request.add_generation_prompt,
        continue_final_message: request.continue_final_message,
        variables: &request.variables,
    };
    let prompt = prompt::of_chat(conversation, template, &vocab(), &Bytes);
    prompt.map(|prompt| prompt::text_of(&prompt.ids, &vocab())).map_err(|error| {
        assert_eq!((error.status, error.body.code), (400, Some("invalid_request")), "{error}");
        error.body.message
    })
}

/// Whoever adds a template has to say whose it is, and that it may be passed on.
#[test]
fn each_template_is_our_own_or_freely_licensed() {
    let listed = fs_err::read_to_string(fixture("README.md")).unwrap();
    let mut others = 0;
    for file in fs_err::read_dir(fixture("templates")).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        let name = name.strip_suffix(".jinja").unwrap();
        if !name.starts_with("like-") {
            let row = listed.lines().find(|line| line.starts_with(&format!("| `{name}` | ")));
            let licence = row.and_then(|row| row.trim_end_matches(" |").rsplit(" | ").next());
            assert!(matches!(licence, Some("Apache-2.0" | "MIT")), "{name}: {licence:?}");
            others += 1;
        }
    }
    assert_eq!(listed.lines().filter(|line| line.starts_with("| `")).count(), others, "what is listed is there");
}

#[test]
fn templates_are_rendered_as_transformers_renders_them() {
    let (conversations, tools, expected) = (read("conversations.json"), read("tools.json"), read("expected.json"));
    let mut differences = Vec::new();
    let mut compared = 0;
    for (name, texts) in expected.as_object().unwrap() {
        let source = fs_err::read_to_string(fixture(&format!("templates/{name}.jinja"))).unwrap();
        let template = ChatTemplate::compile_with_clock(&source, || datetime!(2026-11-24 14:05:09 UTC)).unwrap();
        for conversation in conversations.as_array().unwrap() {
            let of = conversation["name"].as_str().unwrap();
            let Some(expected) = texts.get(of) else { continue };
            // A model that does not know of tools is told of them in our words.
            if conversation.get("tools").is_some() && !(template.knows_tools() && template.knows_calls()) {
                continue;
            }
            let found = match rendered(&template, &body(conversation, &tools)) {
                Ok(text) => json!({ "text": text }),
                Err(words) => json!({ "refused": words }),
            };
            compared += 1;
            if found != *expected {
                differences.push(format!("{name}, {of}:\n  found    {found}\n  expected {expected}"));
            }
        }
    }
    assert!(differences.is_empty(), "{} of {compared}\n{}", differences.len(), differences.join("\n"));
    assert!(compared > 150, "{compared}");
}
