//! Answers as families of models write them, whole and cut at every byte.

use serde_json::{Value, json};
use tandem_core::{TokenKind, Vocab, VocabParts};
use tandem_engine::internals::GrammarState;
use tandem_engine::{GrammarSpec, Grammars};

use super::*;
use crate::completion::read::{Tool, ToolChoice};

fn tool(name: &str, parameters: Value) -> Tool {
    let Value::Object(parameters) = parameters else { panic!() };
    Tool { name: name.to_owned(), description: None, parameters, path: format!("tools.{name}"), strict: false }
}

fn tools(choice: ToolChoice, parallel: bool) -> Arc<Tools> {
    let weather = json!({"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"], "additionalProperties": false});
    let clock = json!({"type": "object", "properties": {}});
    let list = vec![tool("weather", weather), tool("clock", clock)];
    Arc::new(Tools { list, choice, parallel, deprecated: false })
}

/// What is told of an answer, folded: reasoning, text, and calls with their arguments.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    reasoning: String,
    text: String,
    calls: Vec<(String, String)>,
}

impl Told {
    fn add(&mut self, pieces: Vec<Piece>) {
        for piece in pieces {
            match piece {
                Piece::Reasoning(text) => self.reasoning += &text,
                Piece::Content(text) => self.text += &text,
                Piece::Call { index, name } => {
                    assert_eq!(index, self.calls.len());
                    self.calls.push((name, String::new()));
                }
                Piece::Arguments { index, text } => {
                    // Only the last call goes on.
                    assert_eq!(index + 1, self.calls.len());
                    self.calls[index].1 += &text;
                }
            }
        }
    }
}

fn read(form: &AnswerForm, parts: &[&str]) -> Told {
    let mut reader = form.reader().unwrap();
    let mut told = Told::default();
    parts.iter().for_each(|part| told.add(reader.push(part)));
    told.add(reader.finish(""));
    told
}

/// What is told of an answer, the same wherever it is cut.
fn told(form: &AnswerForm, answer: &str) -> Told {
    let whole = read(form, &[answer]);
    for at in (0..answer.len()).filter(|at| answer.is_char_boundary(*at)) {
        let (head, tail) = answer.split_at(at);
        assert_eq!(read(form, &[head, tail]), whole, "{head}|{tail}");
    }
    let characters: Vec<String> = answer.chars().map(String::from).collect();
    let characters: Vec<&str> = characters.iter().map(String::as_str).collect();
    assert_eq!(read(form, &characters), whole, "{answer}");
    whole
}

fn form(format: ToolFormat) -> AnswerForm {
    with(format, true)
}

fn with(format: ToolFormat, parallel: bool) -> AnswerForm {
    AnswerForm { reasoning: None, tools: Some((format, tools(ToolChoice::Auto, parallel))), shows_reasoning: true }
}

fn calls(calls: &[(&str, &str)]) -> Vec<(String, String)> {
    calls.iter().map(|(name, arguments)| ((*name).to_owned(), (*arguments).to_owned())).collect()
}

const PARIS: (&str, &str) = ("weather", r#"{"city": "Paris"}"#);
const ROME: (&str, &str) = ("weather", r#"{"city": "Rome", "days": 3}"#);

/// Answers of each format with one call and with two.
const ANSWERS: &[(ToolFormat, &str, &str)] = &[
    (
        ToolFormat::Hermes,
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>",
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>\n<tool_call>\n{\"arguments\": {\"city\": \"Rome\", \"days\": 3}, \"name\": \"weather\"}\n</tool_call>\n",
    ),
    (
        ToolFormat::Qwen3Coder,
        "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
    ),
    (
        ToolFormat::Llama3,
        r#"<|python_tag|>{"name": "weather", "parameters": {"city": "Paris"}}"#,
        r#"{"name": "weather", "parameters": {"city": "Paris"}}; {"type": "function", "function": {"name": "weather", "parameters": {"city": "Rome", "days": 3}}}"#,
    ),
    (
        ToolFormat::Mistral,
        r#"[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}, "id": "abcdefghi"}]"#,
        r#"[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}}, {"name": "weather", "arguments": {"city": "Rome", "days": 3}}]"#,
    ),
    (
        ToolFormat::MistralNamed,
        r#"[TOOL_CALLS]weather[ARGS]{"city": "Paris"}"#,
        r#"[TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{"city": "Paris"}[TOOL_CALLS]weather{"city": "Rome", "days": 3}"#,
    ),
    (
        ToolFormat::DeepSeek,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{\"city\": \"Paris\"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{\"city\": \"Paris\"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{\"city\": \"Rome\", \"days\": 3}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    (
        ToolFormat::DeepSeekNamed,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\": \"Paris\"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\": \"Paris\"}<｜tool▁call▁end｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\": \"Rome\", \"days\": 3}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    (
        ToolFormat::Granite,
        r#"<|tool_call|>[{"name": "weather", "arguments": {"city": "Paris"}}]"#,
        r#"<tool_call>[{"arguments": {"city": "Paris"}, "name": "weather"}, {"name": "weather", "arguments": {"city": "Rome", "days": 3}}]"#,
    ),
    (
        ToolFormat::Phi4,
        r#"<|tool_call|>[{"name": "weather", "arguments": {"city": "Paris"}}]<|/tool_call|>"#,
        r#"<|tool_call|>[{"name": "weather", "parameters": {"city": "Paris"}}, {"type": "function", "function": "weather", "arguments": "{\"city\": \"Rome\", \"days\": 3}"}]<|/tool_call|>"#,
    ),
    (
        ToolFormat::Functools,
        r#"functools[{"name": "weather", "arguments": {"city": "Paris"}}]"#,
        r#"functools[{"name": "weather", "arguments": {"city": "Paris"}}, {"name": "weather", "arguments": {"city": "Rome", "days": 3}}]"#,
    ),
    (
        ToolFormat::CommandR,
        "Action: ```json\n[\n    {\n        \"tool_name\": \"weather\",\n        \"parameters\": {\"city\": \"Paris\"}\n    }\n]```",
        "Action:```json\n[{\"tool_name\": \"weather\", \"parameters\": {\"city\": \"Paris\"}},\n{\"tool_name\": \"weather\", \"parameters\": {\"city\": \"Rome\", \"days\": 3}}]\n```\n",
    ),
    (
        ToolFormat::CommandR7b,
        r#"<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "weather", "parameters": {"city": "Paris"}}]<|END_ACTION|>"#,
        "<|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"weather\", \"parameters\": {\"city\": \"Paris\"}},\n    {\"tool_call_id\": \"1\", \"tool_name\": \"weather\", \"parameters\": {\"city\": \"Rome\", \"days\": 3}}\n]<|END_ACTION|>",
    ),
    (
        ToolFormat::Json,
        r#" {"name": "weather", "arguments": {"city": "Paris"}}"#,
        r#"[{"name": "weather", "arguments": {"city": "Paris"}}, {"name": "weather", "arguments": {"city": "Rome", "days": 3}}]"#,
    ),
];

#[test]
fn calls_of_every_format_are_read_wherever_they_are_cut() {
    for (format, one, two) in ANSWERS {
        let expected = |found: &[(&str, &str)]| Told { calls: calls(found), ..Told::default() };
        assert_eq!(told(&form(*format), one), expected(&[PARIS]), "{one}");
        assert_eq!(told(&form(*format), two), expected(&[PARIS, ROME]), "{two}");
        // At most one, if the client wants no more.
        assert_eq!(told(&with(*format, false), two), expected(&[PARIS]), "{two}");
    }
}

#[test]
fn text_in_front_of_calls_is_text() {
    for (format, one, _) in ANSWERS.iter().filter(|(format, ..)| !format.syntax().bare) {
        let answer = format!("Let me see.\n  I < you \n\n{one}");
        let found = told(&form(*format), &answer);
        assert_eq!(
            found,
            Told { text: "Let me see.\n  I < you".to_owned(), calls: calls(&[PARIS]), ..Told::default() }
        );
    }
}

#[test]
fn an_answer_without_calls_is_told_as_it_is() {
    let answers = [
        "",
        " \n",
        "Hello, <b>world</b>! \n",
        "{\"name\": \"x",
        "{\"a\": [1, {\"name\": \"weather\"}]}",
        "{\"name\": \"unknown\", \"arguments\": {}}",
        "[1, 2]",
        "<tool_cal",
        "<tool_call>",
        "<tool_call>\nno object",
        "<tool_call>{\"a\": 1}",
        "<function=",
        "[TOOL_CALLS]",
        "[TOOL_CALLS]two words[ARGS]{",
        "[TOOL_CALLS][]",
        "functools are nice",
        "Action: none",
        "```\ncode\n```",
    ];
    for (format, ..) in ANSWERS {
        for answer in answers {
            let found = told(&form(*format), answer);
            let noise = found.calls.is_empty() && found.reasoning.is_empty();
            assert!(noise && found.text == answer, "{format:?} {answer}: {found:?}");
        }
    }
}

#[test]
fn calls_that_break_off_are_told_as_far_as_they_go() {
    let hermes = form(ToolFormat::Hermes);
    let cut = told(&hermes, "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Par");
    assert_eq!(cut.calls, calls(&[("weather", "{\"city\": \"Par")]));
    // Braces in strings, missing ends, and what follows.
    let odd =
        told(&hermes, "<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"}\\\"{\"}</tool_call> Done.");
    assert_eq!(
        odd,
        Told { text: "Done.".to_owned(), calls: calls(&[("weather", "{\"city\": \"}\\\"{\"}")]), ..Told::default() }
    );
    // Without arguments there are none.
    for none in [
        "<tool_call>{\"name\": \"clock\"}</tool_call>",
        "<tool_call>{\"name\": \"clock\", \"arguments\": null}</tool_call>",
    ] {
        assert_eq!(told(&hermes, none).calls, calls(&[("clock", "{}")]));
    }
    let none = told(&form(ToolFormat::Qwen3Coder), "<tool_call>\n<function=clock>\n</function>\n</tool_call>");
    assert_eq!(none.calls, calls(&[("clock", "{}")]));
}

#[test]
fn plain_values_become_json_by_the_schema() {
    let answer = "<function=weather><parameter=city>\n12\n</parameter><parameter=days>12</parameter><parameter=x>\n{\"a\": 1}\n</parameter><parameter=y>a \"b\"\n</parameter></function>";
    let found = told(&form(ToolFormat::Qwen3Coder), answer);
    assert_eq!(found.calls, calls(&[("weather", r#"{"city": "12", "days": 12, "x": {"a": 1}, "y": "a \"b\""}"#)]));
}

#[test]
fn formats_are_known_by_their_templates() {
    for (template, format) in [
        ("{% for tool in tools %}<tool_call>{% endfor %}", ToolFormat::Hermes),
        ("<tool_call>\n<function=a>\n<parameter=b>", ToolFormat::Qwen3Coder),
        ("Environment: ipython {{ '<|python_tag|>' }}", ToolFormat::Llama3),
        ("[AVAILABLE_TOOLS] [TOOL_CALLS]", ToolFormat::Mistral),
        ("[TOOL_CALLS]{{ name }}[ARGS]", ToolFormat::MistralNamed),
        ("<｜tool▁call▁begin｜>function<｜tool▁sep｜>\n```json", ToolFormat::DeepSeek),
        ("<｜tool▁call▁begin｜>{{ name }}<｜tool▁sep｜>", ToolFormat::DeepSeekNamed),
        ("respond only with <|tool_call|>", ToolFormat::Granite),
        ("<|tool_call|>[]<|/tool_call|>", ToolFormat::Phi4),
        ("functools", ToolFormat::Functools),
        ("Action: tool_name", ToolFormat::CommandR),
        ("<|START_ACTION|>", ToolFormat::CommandR7b),
        ("{{ messages }}", ToolFormat::Json),
    ] {
        assert_eq!(ToolFormat::of(template), format, "{template}");
    }
}

fn reasoning(template: &str, beginning: Beginning) -> AnswerForm {
    let format = ReasoningFormat::of(template).unwrap();
    AnswerForm { reasoning: Some((format, beginning)), shows_reasoning: true, ..form(ToolFormat::Hermes) }
}

#[test]
fn reasoning_is_told_apart_wherever_the_answer_is_cut() {
    let told_of = |reasoning: &str, text: &str| Told {
        reasoning: reasoning.to_owned(),
        text: text.to_owned(),
        calls: Vec::new(),
    };
    for (beginning, answer, expected) in [
        (Beginning::Open, "<think>\nLet a < b.\n\n So\n</think>\n\nYes. ", told_of("Let a < b.\n\n So", "Yes. ")),
        (Beginning::Inside, "Let a < b.\n</think>\n\nYes.", told_of("Let a < b.", "Yes.")),
        (Beginning::Inside, "Let </thin", told_of("Let </thin", "")),
        (Beginning::Open, "\n<think>\n\n</think>\n\nYes.", told_of("", "Yes.")),
        (Beginning::Open, "\nYes <think>.", told_of("", "\nYes <think>.")),
        (Beginning::Open, " <thin", told_of("", " <thin")),
        (Beginning::Open, "", told_of("", "")),
    ] {
        assert_eq!(told(&reasoning("</think>", beginning), answer), expected, "{answer}");
    }
    let call = ANSWERS[0].1;
    let found = told(&reasoning("</think>", Beginning::Open), &format!("<think>hm</think>\n\n{call}"));
    assert_eq!(found, Told { reasoning: "hm".to_owned(), text: String::new(), calls: calls(&[PARIS]) });
    let hidden = AnswerForm { shows_reasoning: false, ..reasoning("</think>", Beginning::Open) };
    assert_eq!(told(&hidden, "<think>hm</think>Yes"), told_of("", "Yes"));
}

#[test]
fn tokens_of_the_reasoning_are_counted() {
    let count = |beginning, tokens: &[&str]| {
        let mut reader = reasoning("</think>", beginning).reader().unwrap();
        tokens.iter().for_each(|token| drop(reader.push(token)));
        reader.reasoning_tokens()
    };
    assert_eq!(count(Beginning::Open, &["<think>", "\n", "a", "", "</th", "ink>", "\n", "Yes", "."]), 6);
    assert_eq!(count(Beginning::Inside, &["a", "</think>", "Yes"]), 2);
    assert_eq!(count(Beginning::Open, &["\n", "Yes", "."]), 0);
}

#[test]
fn a_prompt_says_whether_its_answer_begins_with_reasoning() {
    let format = ReasoningFormat::of("{% if '</think>' in content %}").unwrap();
    assert_eq!(format.beginning("<|im_start|>assistant\n<think>\n"), Some(Beginning::Inside));
    assert_eq!(format.beginning("<|im_start|>assistant\n<think>\n\n</think>\n\n"), None);
    assert_eq!(format.beginning("<|im_start|>assistant\n"), Some(Beginning::Open));
    assert_eq!(ReasoningFormat::of("no such thing"), None);
}

/// One token for each byte, an end, and control tokens for some of the markers.
fn vocab(controls: &[&str]) -> Vocab {
    let bytes = (0..=255u8).map(|byte| (Box::from([byte]), Some(TokenKind::Text)));
    let controls = ["<end>"].iter().chain(controls).map(|text| (Box::from(text.as_bytes()), Some(TokenKind::Control)));
    Vocab::new(VocabParts { tokens: bytes.chain(controls).collect(), eog: vec![256], ..VocabParts::default() })
}

/// Whether the grammar of a format takes an answer, of which control tokens are one each, and may end there.
fn takes(grammars: &Grammars, vocab: &Vocab, part: &Part, answer: &str) -> bool {
    let grammar = grammars.compile(&GrammarSpec::Parts(part.clone())).unwrap();
    let mut state = GrammarState::new(&grammar);
    let follows = |part: &Part, state: &mut GrammarState| {
        if let Part::Control(token) = part {
            return state.accept(*token).is_ok();
        }
        let Part::Text(text) = part else { panic!("{part:?}") };
        text.bytes().all(|byte| state.accept(byte.into()).is_ok())
    };
    written(answer, vocab).iter().all(|part| follows(part, &mut state))
        && (state.is_complete() || state.accept(256).is_ok())
}

#[test]
fn what_a_grammar_lets_pass_is_read_as_calls_by_the_schema() {
    let specials = [
        "[TOOL_CALLS]",
        "[ARGS]",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁end｜>",
        "<|tool_call|>",
        "<|START_ACTION|>",
        "</think>",
    ];
    for controls in [&[][..], &specials] {
        let vocab = Arc::new(vocab(controls));
        let grammars = Grammars::new(Arc::clone(&vocab), vocab.len() as u32);
        for (format, ..) in ANSWERS {
            let layout = |arguments: &[&str]| format.written("weather", arguments);
            let good = layout(&[r#"{"city": "Paris"}"#]);
            let two = layout(&[r#"{"city": "Paris"}"#, r#"{"city": "Rome", "days": 3}"#]);
            let bad = layout(&[r#"{"days": 3}"#]);
            assert_eq!(told(&form(*format), &two).calls, calls(&[PARIS, ROME]), "{format:?}");
            let check = |choice: ToolChoice, parallel: bool, expected: [bool; 4]| {
                let part = format.constraint(&tools(choice.clone(), parallel), None, &vocab).unwrap();
                let takes = |answer: &str| takes(&grammars, &vocab, &part, answer);
                assert_eq!(
                    [takes(&good), takes(&two), takes(&bad), takes("Hello.")],
                    expected,
                    "{format:?} {choice:?} {part:?}"
                );
            };
            check(ToolChoice::Required, true, [true, true, false, false]);
            check(ToolChoice::Required, false, [true, false, false, false]);
            check(ToolChoice::Named(0), true, [true, false, false, false]);
            check(ToolChoice::Named(1), true, [false, false, false, false]);
            assert!(format.constraint(&tools(ToolChoice::Auto, true), None, &vocab).is_none());

            // Strict tools are followed once the model calls them.
            let mut strict = Arc::unwrap_or_clone(tools(ToolChoice::Auto, true));
            strict.list[0].strict = true;
            let part = format.constraint(&strict, None, &vocab).unwrap();
            for (answer, expected) in [(good.as_str(), true), (&two, true), (&bad, false), ("Hello.", true), ("", true)]
            {
                assert_eq!(takes(&grammars, &vocab, &part, answer), expected, "{format:?} {answer}");
            }
            if !format.syntax().bare {
                assert!(takes(&grammars, &vocab, &part, &format!("Let me see: {good}")), "{format:?}");
                assert!(!takes(&grammars, &vocab, &part, &format!("Let me see: {bad}")), "{format:?}");
            }

            // Reasoning goes before.
            let thinking = ReasoningFormat::of("</think>").unwrap();
            let required = format.constraint(&tools(ToolChoice::Required, true), None, &vocab).unwrap();
            let inside = thinking.before(Beginning::Inside, required.clone(), &vocab);
            assert!(takes(&grammars, &vocab, &inside, &format!("Hm. {{</think>\n\n{good}")), "{format:?}");
            assert!(!takes(&grammars, &vocab, &inside, &good), "{format:?}");
            let open = thinking.before(Beginning::Open, required, &vocab);
            assert!(
                takes(&grammars, &vocab, &open, &format!("<think>\nHm.</think>{good}"))
                    && takes(&grammars, &vocab, &open, &good)
            );
            assert!(!takes(&grammars, &vocab, &open, "<think>Hm.</think>Hello."));
        }
    }
}
