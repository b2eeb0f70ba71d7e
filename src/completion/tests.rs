//! What a conversation becomes: the template's control tokens, and nobody else's.

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tandem_core::{TokenId, TokenKind, TokenizeError, Tokenizer, Vocab, VocabParts};

use super::Limits;
use super::prompt::{self, Conversation};
use super::read::{Message, body, chat};
use super::template::ChatTemplate;
use crate::openai::Endpoint;
use crate::openai::error::ApiError;

const SPECIALS: [&str; 7] = ["<s>", "<|im_start|>", "<|im_end|>", "[INST]", "</think>", "<a b>", ">>"];

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
/// Literals and texts in one expression, trimmed; nothing tells them apart once it is evaluated.
const TRIMMING: &str = "{{ bos_token }}{% for m in messages %}{{ '[INST]' + m['content'] | trim + '</think>' + m.content.strip() }}{% endfor %}";
/// Writes the beginnings and ends of spellings right beside the texts.
const HALVES: &str =
    "{% for m in messages %}<|im_{{ m.content }}start|><{{ m.content | trim }}></{{ m.content }}b>{% endfor %}";

/// One token for each byte, and the specials behind them.
fn vocab() -> Vocab {
    let bytes = (0..=255u8).map(|byte| (Box::from([byte]), Some(TokenKind::Text)));
    let specials = SPECIALS.map(|text| (Box::from(text.as_bytes()), Some(TokenKind::Control)));
    Vocab::new(VocabParts { tokens: bytes.chain(specials).collect(), bos: Some(256), ..VocabParts::default() })
}

struct Bytes;

impl Tokenizer for Bytes {
    fn encode(&self, text: &str) -> Result<Vec<TokenId>, TokenizeError> {
        Ok(text.bytes().map(TokenId::from).collect())
    }
}

fn user(text: &str) -> Message {
    Message { role: "user", content: Some(text.to_owned()), ..Message::default() }
}

fn render(source: &str, messages: &[Message]) -> Result<Vec<TokenId>, ApiError> {
    let template = ChatTemplate::compile(source).unwrap();
    let variables = Map::new();
    let conversation =
        Conversation { messages, add_generation_prompt: true, continue_final_message: false, variables: &variables };
    prompt::of_chat(conversation, &template, &vocab(), &Bytes)
}

fn specials(ids: &[TokenId]) -> Vec<TokenId> {
    ids.iter().copied().filter(|id| *id > 255).collect()
}

fn text(ids: &[TokenId]) -> String {
    prompt::text_of(ids, &vocab())
}

/// Spellings, parts of them, white space, and what a person might write.
fn hostile() -> impl Strategy<Value = String> {
    let spelling = prop::sample::select(SPECIALS.to_vec());
    let cut = (spelling.clone(), any::<prop::sample::Index>(), any::<prop::sample::Index>());
    let cut = cut.prop_map(|(s, a, b)| (s, a.index(s.len() + 1), b.index(s.len() + 1)));
    let part = prop_oneof![
        cut.clone().prop_map(|(s, end, _)| s[..end].to_owned()),
        cut.clone().prop_map(|(s, start, _)| s[start..].to_owned()),
        cut.prop_map(|(s, a, b)| s[a.min(b)..a.max(b)].to_owned()),
    ];
    let piece = prop_oneof![
        spelling.prop_map(str::to_owned),
        part,
        prop::sample::select(vec![" ", "\n", "x", "é", "<", ">", "|", "\u{f0000}", "\u{f0001}"])
            .prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_text_of_a_client_becomes_a_control_token(texts in prop::collection::vec(hostile(), 1..4)) {
        let messages: Vec<Message> = texts.iter().map(|text| user(text)).collect();
        let harmless: Vec<Message> = texts.iter().map(|_| user("x")).collect();
        for source in [CHATML, TRIMMING] {
            prop_assert_eq!(specials(&render(source, &messages).unwrap()), specials(&render(source, &harmless).unwrap()));
        }
        // Around no text at all, the halves are a whole of the template's own.
        if texts.iter().all(|text| !text.trim().is_empty()) {
            prop_assert_eq!(specials(&render(HALVES, &messages).unwrap()), Vec::<TokenId>::new());
        }
    }

    #[test]
    fn every_text_arrives_as_it_was_written(content in hostile()) {
        let ids = render(CHATML, &[user(&content)]).unwrap();
        prop_assert_eq!(text(&ids), format!("<|im_start|>user\n{content}<|im_end|>\n"));
        // A special has white space within, so white space alone may be marked, which keeps it from being trimmed.
        let trimmed = content.trim();
        if !trimmed.is_empty() {
            let ids = render(TRIMMING, &[user(&content)]).unwrap();
            prop_assert_eq!(text(&ids), format!("<s>[INST]{trimmed}</think>{trimmed}"));
        }
    }
}

#[test]
fn benign_text_is_tokenized_together_with_what_the_template_writes_around_it() {
    struct Whole;
    impl Tokenizer for Whole {
        fn encode(&self, text: &str) -> Result<Vec<TokenId>, TokenizeError> {
            Ok(vec![text.len() as TokenId])
        }
    }
    let template = ChatTemplate::compile(CHATML).unwrap();
    let (messages, variables) = ([user("hello <b>")], Map::new());
    let conversation = Conversation {
        messages: &messages,
        add_generation_prompt: true,
        continue_final_message: false,
        variables: &variables,
    };
    let ids = prompt::of_chat(conversation, &template, &vocab(), &Whole).unwrap();
    assert_eq!(ids, [257, "user\nhello <b>".len() as TokenId, 258, 1]);
}

#[test]
fn templates_render_as_in_python() {
    let source = "{%- for m in messages %}\n  {% if '</x>' in m.content and m.content.startswith('a') %}\n{{ m | tojson }}\n  {% endif %}\n{%- endfor %}{% generation %}!{% endgeneration %}{{ none_such }}";
    let ids = render(source, &[user("a</x>&é")]).unwrap();
    assert_eq!(text(&ids), "{\"role\": \"user\", \"content\": \"a</x>&é\"}\n!");
}

#[test]
fn a_role_that_the_template_does_not_know_is_put_in_its_words() {
    let developer = Message { role: "developer", ..user("x") };
    assert!(text(&render(CHATML, std::slice::from_ref(&developer)).unwrap()).contains("system\nx"));
    let knowing = format!("{CHATML}{{# developer #}}");
    assert!(text(&render(&knowing, &[developer]).unwrap()).contains("developer\nx"));
}

#[test]
fn a_template_says_no_in_its_own_words_and_never_runs_for_ever() {
    let error = render("{{ raise_exception('No ' + messages[0].content) }}", &[user("<s>")]).unwrap_err();
    assert_eq!((error.status, error.body.message.as_str()), (400, "No <s>"));
    let nested = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
    let error = render(nested, &[user("x")]).unwrap_err();
    assert_eq!((error.status, error.body.code), (500, Some("chat_template_error")));
    assert!(ChatTemplate::compile("{% if %}").is_err());
}

#[test]
fn calls_of_tools_reach_the_template_with_their_arguments_parsed() {
    let request = json!({"model": "m", "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": \"<s>\"}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]});
    let Value::Object(map) = request else { unreachable!() };
    let messages = chat(&map, &Limits::default()).unwrap().messages;
    let source = "{% for m in messages %}{{ m.content }};{% for c in m.tool_calls %}{{ c.function.name }}={{ c.function.arguments.x }}{% endfor %}{% endfor %}";
    let ids = render(source, &messages).unwrap();
    assert_eq!(text(&ids), "a\nb;;f=<s>42;");
    assert!(specials(&ids).is_empty());
}

#[test]
fn endpoints_are_their_paths() {
    for endpoint in Endpoint::ALL {
        assert_eq!(Endpoint::from_path(endpoint.path()), Some(endpoint));
    }
    assert_eq!(Endpoint::from_path("/v1/moderations"), None);
    assert!(body::object(b"{}").is_ok());
}
