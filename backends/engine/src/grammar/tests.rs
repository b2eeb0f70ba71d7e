use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};
use tandem_core::{TokenId, TokenKind, TokenMask, Vocab, VocabParts};

use super::*;

/// One model's grammars, and what is needed to walk in them.
struct Model {
    vocab: Arc<Vocab>,
    size: u32,
    grammars: Grammars,
}

impl Model {
    fn new(vocab: Vocab, padding: u32) -> Self {
        let vocab = Arc::new(vocab);
        let size = vocab.len() as u32 + padding;
        Self { grammars: Grammars::new(Arc::clone(&vocab), size), vocab, size }
    }

    fn compile(&self, spec: &GrammarSpec) -> Grammar {
        self.grammars.compile(spec).unwrap_or_else(|error| panic!("{spec:?}: {error}"))
    }

    fn mask(&self, state: &mut GrammarState) -> TokenMask {
        let mut mask = TokenMask::empty(self.size);
        state.mask(&mut mask).unwrap();
        mask
    }

    fn token(&self, text: &str) -> TokenId {
        (0..self.size).find(|token| self.vocab.bytes(*token) == text.as_bytes()).unwrap()
    }

    /// The text of a random way through the grammar. What may end a string, an array or an object is chosen often, so that walks end.
    fn walk(&self, grammar: &Grammar, seed: u64) -> String {
        let mut state = GrammarState::new(grammar);
        let mut mask = TokenMask::empty(self.size);
        let mut bytes = Vec::new();
        let mut random = seed;
        for step in 0..4_000 {
            state.mask(&mut mask).unwrap_or_else(|_| panic!("after {}", String::from_utf8_lossy(&bytes)));
            if state.is_complete() {
                assert!((0..self.size).all(|token| !mask.contains(token) || self.vocab.is_eog(token)));
            }
            let allowed: Vec<_> = (0..self.size).filter(|token| mask.contains(*token)).collect();
            assert_eq!(allowed.len(), mask.len(), "tokens beyond the vocabulary are allowed");
            for &token in &allowed {
                assert!(self.vocab.is_eog(token) || self.vocab.is_text(token), "token {token} is no text");
            }
            let ends = |token: &TokenId| {
                self.vocab.is_eog(*token) || matches!(self.vocab.bytes(*token), [b'"' | b'}' | b']', ..])
            };
            let ending: Vec<_> = allowed.iter().copied().filter(ends).collect();
            let eager = !ending.is_empty() && (step > 60 || next(&mut random).is_multiple_of(4));
            let choice = if eager { &ending } else { &allowed };
            let token = choice[(next(&mut random) % choice.len() as u64) as usize];
            state.accept(token).unwrap();
            if self.vocab.is_eog(token) {
                assert!(state.is_complete());
                assert_eq!(state.accept(token), Err(DeadEnd));
                return String::from_utf8(bytes).unwrap();
            }
            bytes.extend_from_slice(self.vocab.bytes(token));
        }
        panic!("no end in sight of {}", String::from_utf8_lossy(&bytes));
    }
}

/// The value of a JSON text; none where a number is past what a double holds, which JSON itself allows.
fn parsed(text: &str) -> Option<Value> {
    match serde_json::from_str(text) {
        Ok(value) => Some(value),
        Err(error) if error.to_string().starts_with("number out of range") => None,
        Err(error) => panic!("{text}: {error}"),
    }
}

/// `SplitMix64`.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn bytes_model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| Model::new(tandem_sim::vocab(), 0))
}

/// Tokens of several bytes, of halves of characters and of the same bytes twice; an end that is text; gaps and padding.
fn merged_model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| {
        let merges: [&[u8]; 34] = [
            b"{\"",
            b"\":",
            b"\": ",
            b"\",\"",
            b"\", \"",
            b"\"}",
            b"\"]",
            b"},{",
            b"true",
            b" false",
            b"null",
            b"12",
            b"-1",
            b"00",
            b"1e",
            b"\\\"",
            b"\\n",
            b"\n  ",
            b"  ",
            b" ",
            b" \"",
            b"the",
            b" the",
            b"name",
            b"2024-",
            b"-01-",
            "é".as_bytes(),
            "日本".as_bytes(),
            &[0xf0, 0x9f],
            &[0x98, 0x80, b'"'],
            &[0xc3],
            b"]}",
            b"[1,",
            b"abc",
        ];
        let text = |bytes: &[u8]| (Box::from(bytes), Some(TokenKind::Text));
        let mut tokens: Vec<_> = (0..=255u8).map(|byte| text(&[byte])).collect();
        tokens.extend(merges.map(text));
        let special = |text: &str, kind| (Box::from(text.as_bytes()), Some(kind));
        let end = tokens.len() as TokenId;
        tokens.push(special("a", TokenKind::Control));
        tokens.push(special("b", TokenKind::Text));
        tokens.push(special("c", TokenKind::Control));
        tokens.push(special("d", TokenKind::Unused));
        Model::new(Vocab::new(VocabParts { tokens, eog: vec![end, end + 1], ..VocabParts::default() }), 45)
    })
}

fn models() -> [&'static Model; 2] {
    [bytes_model(), merged_model()]
}

fn schema(value: &Value) -> GrammarSpec {
    GrammarSpec::JsonSchema(value.to_string())
}

type Valid = fn(&Value) -> bool;

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap()
}

fn only_keys(value: &Value, keys: &[&str]) -> bool {
    value.as_object().is_some_and(|map| map.keys().all(|key| keys.contains(&key.as_str())))
}

fn is_list(value: &Value) -> bool {
    value["value"].is_i64() && (value["next"].is_null() || is_list(&value["next"]))
}

/// Schemas, and what is valid under them, said a second time in Rust.
fn schemas() -> Vec<(Value, Valid)> {
    vec![
        (json!({"enum": ["a", 1, null, "é\n"]}), |v| [json!("a"), json!(1), json!(null), json!("é\n")].contains(v)),
        (json!({"const": {"a": [1, "x"]}}), |v| *v == json!({"a": [1, "x"]})),
        (
            json!({"type": "object", "additionalProperties": false, "required": ["p"], "properties": {
                "p": {"type": "object", "required": ["q"], "properties": {"q": {"type": "boolean"}}}}}),
            |v| only_keys(v, &["p"]) && v["p"]["q"].is_boolean(),
        ),
        (json!({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4}), |v| {
            v.as_array().is_some_and(|v| (2..=4).contains(&v.len()) && v.iter().all(|v| v.is_number()))
        }),
        (
            json!({"type": "object", "additionalProperties": false, "required": ["a"], "properties": {
                "a": {"type": "null"}, "b": {"type": "string"}, "c": {"type": "number"}}}),
            |v| {
                only_keys(v, &["a", "b", "c"])
                    && v.get("a") == Some(&Value::Null)
                    && v.get("b").is_none_or(Value::is_string)
                    && v.get("c").is_none_or(Value::is_number)
            },
        ),
        (json!({"anyOf": [{"type": "boolean"}, {"type": "array", "items": false}]}), |v| {
            v.is_boolean() || *v == json!([])
        }),
        (
            json!({"$ref": "#/$defs/list", "$defs": {"list": {"type": "object", "required": ["value", "next"],
                "additionalProperties": false, "properties": {"value": {"type": "integer", "minimum": 0, "maximum": 99},
                "next": {"anyOf": [{"type": "null"}, {"$ref": "#/%24defs/list"}]}}}}}),
            is_list,
        ),
        (json!({"type": "string", "pattern": "^[a-c]{2,3}-\\d+$"}), |v| {
            let (letters, digits) = v.as_str().unwrap().split_once('-').unwrap();
            (2..=3).contains(&letters.len())
                && letters.bytes().all(|b| (b'a'..=b'c').contains(&b))
                && !digits.is_empty()
                && digits.bytes().all(|b| b.is_ascii_digit())
        }),
        (json!({"type": "string", "format": "date"}), |v| {
            let text = v.as_str().unwrap();
            let part = |range| str::parse::<u32>(&text[range]).unwrap();
            text.len() == 10 && part(0..4) <= 9999 && (1..=12).contains(&part(5..7)) && (1..=31).contains(&part(8..10))
        }),
        (
            json!({"type": "object", "required": ["i", "x"], "properties": {
                "i": {"type": "integer", "minimum": -5, "exclusiveMaximum": 17},
                "x": {"type": "number", "minimum": 0.5, "maximum": 2}}}),
            |v| (-5.0..17.0).contains(&number(v, "i")) && (0.5..=2.0).contains(&number(v, "x")),
        ),
        (json!({"type": "object", "additionalProperties": false}), |v| *v == json!({})),
        (json!({"type": "string", "minLength": 1, "maxLength": 3}), |v| {
            (1..=3).contains(&v.as_str().unwrap().chars().count())
        }),
        (json!({"type": "array", "prefixItems": [{"type": "string"}, {"type": "null"}], "items": false}), |v| {
            let v = v.as_array().unwrap();
            v.len() <= 2 && v.first().is_none_or(Value::is_string) && v.get(1).is_none_or(Value::is_null)
        }),
        (json!({"type": "object", "additionalProperties": {"type": "integer"}}), |v| {
            v.as_object().unwrap().values().all(Value::is_number)
        }),
        (json!({"type": ["integer", "null"], "multipleOf": 5}), |v| {
            v.is_null() || v.as_f64().is_some_and(|v| v.abs() > 9e15 || v % 5.0 == 0.0)
        }),
        (
            json!({"oneOf": [{"type": "object", "required": ["k"], "properties": {"k": {"const": "x"}}},
                {"type": "object", "required": ["k"], "properties": {"k": {"const": "y"}}}]}),
            |v| v["k"] == "x" || v["k"] == "y",
        ),
        (
            json!({"allOf": [{"type": "object", "required": ["a"]}, {"properties": {"a": {"type": "boolean"}}}],
                "title": "both", "description": "…", "default": {}, "x-order": 1,
                "$schema": "https://json-schema.org/draft/2020-12/schema"}),
            |v| v["a"].is_boolean(),
        ),
    ]
}

#[test]
fn random_walks_satisfy_the_schema() {
    for (source, valid) in schemas() {
        for model in models() {
            let grammar = model.compile(&schema(&source));
            for seed in 0..20 {
                let text = model.walk(&grammar, seed);
                assert!(parsed(&text).is_none_or(|value| valid(&value)), "{source}: {text}");
            }
        }
    }
}

#[test]
fn walks_through_an_enum_reach_all_of_it() {
    let spec = schema(&json!({"enum": ["ab", "abc", 10, 1]}));
    let mut seen: Vec<_> = (0..200).map(|seed| merged_model().walk(&merged_model().compile(&spec), seed)).collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen, ["\"ab\"", "\"abc\"", "1", "10"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_object_parses(seed: u64) {
        for model in models() {
            let text = model.walk(&model.compile(&GrammarSpec::JsonObject), seed);
            prop_assert!(parsed(&text).is_none_or(|value| value.is_object()), "{text}");
            prop_assert!(!text.contains('\n') && !text.starts_with(' '));
        }
    }

    #[test]
    fn a_regex_matches_as_a_whole(seed: u64, anchored: bool) {
        let pattern = if anchored { "^(?:ab|c)+/[0-9]{2}é?$" } else { "(?:ab|c)+/[0-9]{2}é?" };
        for model in models() {
            let text = model.walk(&model.compile(&GrammarSpec::Regex(pattern.to_owned())), seed);
            let (head, tail) = text.split_once('/').unwrap();
            prop_assert!(!head.is_empty() && head.replace("ab", "").chars().all(|c| c == 'c'), "{text}");
            let digits = tail.trim_end_matches('é');
            prop_assert!(digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit()), "{text}");
        }
    }

    #[test]
    fn a_choice_is_one_of_the_choices(seed: u64, choices in proptest::collection::vec("[a-c.*/é\"\n]{1,4}", 1..6)) {
        for model in models() {
            let text = model.walk(&model.compile(&GrammarSpec::Choice(choices.clone())), seed);
            prop_assert!(choices.contains(&text), "{text:?}");
        }
    }

    #[test]
    fn a_lark_grammar_is_followed(seed: u64) {
        let source = "start: \"(\" inner \")\"\ninner: /[0-9]/ | start";
        for model in models() {
            let text = model.walk(&model.compile(&GrammarSpec::Lark(source.to_owned())), seed);
            let opened = text.bytes().take_while(|b| *b == b'(').count();
            prop_assert_eq!(text.len(), 2 * opened + 1);
            prop_assert!(opened > 0 && text.ends_with(&")".repeat(opened)));
        }
    }
}

#[test]
fn wherever_the_end_is_allowed_all_ends_are() {
    for model in models() {
        let ends = TokenMask::of(model.size, model.vocab.eog().iter().copied());
        let mut state = GrammarState::new(&model.compile(&GrammarSpec::Regex("x{1,2}".to_owned())));
        assert_eq!(model.mask(&mut state), TokenMask::of(model.size, [model.token("x")]));
        state.accept(model.token("x")).unwrap();
        assert!(!state.is_complete());
        let mask = model.mask(&mut state);
        assert_eq!(mask.len(), 3);
        assert!(model.vocab.eog().iter().all(|token| mask.contains(*token)) && model.vocab.eog().len() == 2);
        state.accept(model.token("x")).unwrap();
        assert!(state.is_complete());
        assert_eq!(model.mask(&mut state), ends);
        for end in model.vocab.eog() {
            let mut state = GrammarState::new(&model.compile(&GrammarSpec::Choice(vec!["x".to_owned()])));
            assert_eq!(state.accept(*end), Err(DeadEnd));
            let mut state = GrammarState::new(&model.compile(&GrammarSpec::Choice(vec!["x".to_owned()])));
            state.accept(model.token("x")).unwrap();
            state.accept(*end).unwrap();
            assert!(state.is_complete());
        }
    }
}

#[test]
fn tokens_that_are_refused_are_dead_ends() {
    let model = merged_model();
    let grammar = model.compile(&GrammarSpec::Regex("[a-d]+".to_owned()));
    let first = model.mask(&mut GrammarState::new(&grammar));
    // The control, unused and ending tokens that are spelled `a` to `d`, padding, and what is beyond it.
    let specials = (0..model.vocab.len() as TokenId).filter(|token| !model.vocab.is_text(*token));
    let beyond = [model.vocab.len() as TokenId, model.size, TokenId::MAX];
    for token in specials.chain(model.vocab.eog().iter().copied()).chain(beyond).chain([model.token("x")]) {
        assert!(!first.contains(token), "{token}");
        let mut state = GrammarState::new(&grammar);
        assert_eq!(state.accept(token), Err(DeadEnd), "{token}");
        assert!(!state.is_complete());
    }
}

#[test]
fn states_of_one_grammar_are_independent() {
    let model = bytes_model();
    let grammar = model.compile(&GrammarSpec::Choice(vec!["ab".to_owned(), "cd".to_owned()]));
    let (mut one, mut other) = (GrammarState::new(&grammar), GrammarState::new(&grammar));
    one.accept(u32::from(b'a')).unwrap();
    other.accept(u32::from(b'c')).unwrap();
    assert_eq!(model.mask(&mut one), TokenMask::of(model.size, [u32::from(b'b')]));
    assert_eq!(model.mask(&mut other), TokenMask::of(model.size, [u32::from(b'd')]));
    assert_eq!(one.accept(u32::from(b'd')), Err(DeadEnd));
    assert_eq!(one.mask(&mut TokenMask::empty(model.size)), Err(DeadEnd));
    other.accept(u32::from(b'd')).unwrap();
    assert!(other.is_complete() && !GrammarState::new(&grammar).is_complete());
}

#[test]
fn a_model_without_an_end_can_still_complete() {
    let tokens = (0..=255u8).map(|byte| (Box::from([byte]), None)).collect();
    let model = Model::new(Vocab::new(VocabParts { tokens, ..VocabParts::default() }), 0);
    let mut state = GrammarState::new(&model.compile(&GrammarSpec::Choice(vec!["x".to_owned()])));
    state.accept(u32::from(b'x')).unwrap();
    assert!(state.is_complete());
    assert_eq!(state.mask(&mut TokenMask::empty(256)), Err(DeadEnd));
}

/// What a bad source is answered with, and that it is soon.
fn refusal(spec: &GrammarSpec) -> GrammarError {
    let started = Instant::now();
    let Err(error) = bytes_model().grammars.compile(spec) else { panic!("{spec:?} compiles") };
    assert!(started.elapsed() < Duration::from_secs(5), "{error}");
    error
}

#[test]
fn schemas_that_cannot_be_enforced_are_refused_by_place() {
    for (source, place, part) in [
        (json!({"$ref": "http://example.com/s"}), "$ref", "Remote $ref is not supported."),
        (json!({"items": {"$ref": "file:///etc/passwd"}}), "items.$ref", "Remote $ref is not supported."),
        (json!({"$id": "http://a/b", "$ref": "c"}), "$ref", "Remote"),
        (json!({"$ref": "#/$defs/none"}), "$ref", "leads to no schema"),
        (json!({"$ref": "#/default", "default": {"not": {}}}), "$ref", "leads to no schema"),
        (json!({"$ref": "#name"}), "$ref", "Only"),
        (json!({"type": "pattern"}), "type", "Unknown type."),
        (json!({"type": ["string", 1]}), "type", "Unknown type."),
        (json!({"properties": {"a": {"type": "string", "pattern": "["}}}), "properties.a.pattern", "not a valid"),
        (json!({"type": "string", "pattern": "(?=x)"}), "pattern", "Look-around"),
        (json!({"type": "string", "pattern": "(x)\\1"}), "pattern", "Back-references"),
        (json!({"type": "string", "pattern": "a{0,100000}"}), "pattern", "too large"),
        (json!({"type": "string", "pattern": "a\\bc"}), "", "boundaries"),
        (json!({"patternProperties": {"(": true}}), "patternProperties.(", "not a valid"),
        (json!({"type": "string", "format": "unknown"}), "format", "Unsupported format."),
        (json!({"not": {}}), "not", "Unsupported keyword."),
        (json!({"type": "array", "uniqueItems": true}), "uniqueItems", "Unsupported keyword."),
        (json!({"type": "string", "maxlength": 3}), "maxlength", "Unsupported keyword."),
        (json!({"x-guidance": {"lenient": true}, "type": "string"}), "x-guidance", "Unsupported keyword."),
        (json!({"$schema": "http://json-schema.org/draft-04/schema#", "if": true}), "if", "Unsupported keyword."),
        (json!({"anyOf": []}), "anyOf", "one or more schemas"),
        (json!({"enum": []}), "enum", "one or more values"),
        (json!({"minItems": -1}), "minItems", "whole number"),
        (json!({"prefixItems": [true], "additionalItems": false}), "", "older drafts"),
        (json!(false), "", "Nothing satisfies"),
        (json!([]), "", "object or a boolean"),
        (json!({"type": "string", "minLength": 3, "maxLength": 2}), "", "No output"),
        (json!({"$ref": "#"}), "", "cannot be enforced"),
        (json!({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}), "", "oneOf"),
        (json!({"properties": {"a": true, "b": true}, "minProperties": 1, "type": "object"}), "", "minProperties"),
        (json!({"items": {"type": "object", "minProperties": 2}}), "items.minProperties", "one more than 'required'"),
        (json!({"type": "string", "pattern": "[a&&b]"}), "pattern", "Classes within classes"),
        (json!({"type": "string", "pattern": "[a[b]"}), "pattern", "not a valid"),
        (json!({"type": "string", "pattern": "[[:alpha:]]"}), "pattern", "Classes within classes"),
        (
            json!({"patternProperties": {".": true, "[^\\n\\r\\x{2028}\\x{2029}]": true}}),
            "patternProperties.[^\\n\\r\\x{2028}\\x{2029}]",
            "same name",
        ),
    ] {
        let error = refusal(&schema(&source));
        let GrammarError::Invalid { place: got, reason } = &error else { panic!("{source}: {error:?}") };
        assert_eq!(got, place, "{source}: {reason}");
        assert!(reason.contains(part), "{source}: {reason}");
    }
    assert!(matches!(refusal(&GrammarSpec::JsonSchema("{".to_owned())), GrammarError::Invalid { .. }));
}

#[test]
fn costly_schemas_are_refused_soon() {
    let nested = |depth: usize| format!("{}{{}}{}", "{\"items\":".repeat(depth), "}".repeat(depth));
    let values: Vec<_> = (0..100_000).collect();
    for source in [
        json!({"type": "array", "minItems": 1_000_000_000}).to_string(),
        json!({"type": "string", "maxLength": 1_000_000_000_000_u64}).to_string(),
        json!({"type": "string", "maxLength": 1e300}).to_string(),
        json!({"enum": values}).to_string(),
        nested(65),
        nested(5_000),
        format!("{{\"const\":{}1{}}}", "[".repeat(80), "]".repeat(80)),
    ] {
        assert_eq!(refusal(&GrammarSpec::JsonSchema(source.clone())), GrammarError::TooComplex, "{source:.80}");
    }
}

#[test]
fn references_are_not_written_out() {
    // Every level refers twice to the next one: 2^40 paths.
    let doubling = (0..40).map(|at| {
        let next = json!({"$ref": format!("#/$defs/d{}", at + 1)});
        (format!("d{at}"), json!({"allOf": [next, {"properties": {"a": next}}]}))
    });
    let mut definitions: serde_json::Map<String, Value> = doubling.collect();
    definitions.insert("d40".to_owned(), json!({"type": "object"}));
    let source = schema(&json!({"$ref": "#/$defs/d0", "$defs": definitions}));
    let started = Instant::now();
    let text = bytes_model().walk(&bytes_model().compile(&source), 1);
    assert!(
        started.elapsed() < Duration::from_secs(5) && parsed(&text).is_none_or(|value| value.is_object()),
        "{text}"
    );
}

#[test]
fn a_chain_of_references_as_long_as_a_source_fits_the_stack() {
    let rule = |at: usize| (format!("{at}"), json!({"items": {"items": {"$ref": format!("#/$defs/{}", at + 1)}}}));
    let mut definitions: serde_json::Map<String, Value> = (0..1_100).map(rule).collect();
    definitions.insert("1100".to_owned(), json!({"type": "null"}));
    let source = json!({"$ref": "#/$defs/0", "$defs": definitions}).to_string();
    assert!(source.len() < MAX_SOURCE_BYTES && source.len() > 3 * MAX_SOURCE_BYTES / 4, "{}", source.len());
    // Whether it compiles or is too complex, it is answered.
    let _answer = bytes_model().grammars.compile(&GrammarSpec::JsonSchema(source));
}

#[test]
fn bad_patterns_choices_and_grammars_are_refused() {
    let regex = |text: &str| refusal(&GrammarSpec::Regex(text.to_owned()));
    for text in
        ["[", "(?=x)", "(?<!x)y", "(a)\\1", "a{0,100000}", "(a{100}){200}", "", "^$", "a^b", "\\bx", "[^\\d\\D]"]
    {
        assert!(matches!(regex(text), GrammarError::Invalid { .. }), "{text}");
    }
    assert!(matches!(regex(&"(".repeat(10_000)), GrammarError::Invalid { .. }));
    assert_eq!(regex(&"a".repeat(MAX_SOURCE_BYTES + 1)), GrammarError::TooComplex);
    for choices in [vec![], vec![String::new()]] {
        assert!(matches!(refusal(&GrammarSpec::Choice(choices)), GrammarError::Invalid { .. }));
    }
    let lark = |text: &str| refusal(&GrammarSpec::Lark(text.to_owned()));
    for text in [
        "",
        "start: nothing",
        "start: %json {\"type\":\"string\"}",
        "start: <[0-300]>",
        "start: <|im_end|>",
        "start: start",
    ] {
        assert!(matches!(lark(text), GrammarError::Invalid { .. } | GrammarError::TooComplex), "{text}");
    }
    let nested = format!("start: {}\"x\"{}", "(".repeat(30_000), ")".repeat(30_000));
    assert!(matches!(lark(&nested), GrammarError::TooComplex | GrammarError::Invalid { .. }));
}

/// JSON as llama.cpp's users have it, near enough.
const JSON_EBNF: &str = r#"
# Values.
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"#;

fn accepts(source: &str, text: &str) -> bool {
    takes(&GrammarSpec::Ebnf(source.to_owned()), text)
}

/// Whether a grammar allows the text, as it is and no further.
fn takes(spec: &GrammarSpec, text: &str) -> bool {
    let model = bytes_model();
    let mut state = GrammarState::new(&model.compile(spec));
    let mut mask = TokenMask::empty(model.size);
    for byte in text.bytes() {
        let token = (0..model.size).find(|token| model.vocab.bytes(*token) == [byte]).unwrap();
        if state.mask(&mut mask).is_err() || !mask.contains(token) || state.accept(token).is_err() {
            return false;
        }
    }
    state.mask(&mut mask).is_ok() && model.vocab.eog().iter().all(|end| mask.contains(*end))
}

#[test]
fn an_ebnf_grammar_is_followed_exactly() {
    let cases: [(&str, &[&str], &[&str]); 9] = [
        // What a lexer that takes the longest match would never let end.
        ("root ::= [a-z]+ \"x\"", &["ax", "xx", "abcxx"], &["x", "ab", "abxc", ""]),
        ("root ::= (\"a\" | \"ab\") \"bc\"", &["abc", "abbc"], &["ab", "bc", "abbbc"]),
        ("root ::= word (\", \" word)*\nword ::= [^,]{1,3}", &["a", "abc, \n", "a, b, cd"], &["abcd", "a,", ",a"]),
        ("root ::= \"é\\u20ac\\x41\\n\\\"\" . ", &["é€A\n\"ß", "é€A\n\"]"], &["é€A\n\"", "éA"]),
        ("root ::= [\\]\\-a^]* | [-] [x-]", &["]-a^", "-x", "--", ""], &["b", "-y", "x"]),
        ("root ::= a-1 a_1\na-1 ::= \"1\"\na_1 ::=\n  \"2\" |\n  \"3\" # or so", &["12", "13"], &["1", "21"]),
        ("root ::= \"\" | \"(\" root \")\"", &["", "((()))"], &["(", "())"]),
        ("root ::= \"a\"{2} \"b\"{1,} \"c\"{0,1} \"d\"?", &["aab", "aabbbcd", "aabd"], &["ab", "aaabc", "aabcc"]),
        (JSON_EBNF, &["{}", "{\"a\": [1, -2.5e3, true], \"\\u00e9\":null}"], &["[]", "{\"a\"}", "{\"a\":01}"]),
    ];
    for (source, good, bad) in cases {
        assert!(is_ebnf(source), "{source}");
        for text in good {
            assert!(accepts(source, text), "{source}\ntakes {text:?}");
        }
        for text in bad {
            assert!(!accepts(source, text), "{source}\ndoes not take {text:?}");
        }
    }
    for seed in 0..20 {
        for model in models() {
            let text = model.walk(&model.compile(&GrammarSpec::Ebnf(JSON_EBNF.to_owned())), seed);
            assert!(parsed(&text).is_none_or(|value| value.is_object()), "{text}");
        }
    }
}

/// As validators check them.
#[test]
fn strings_of_a_format_are_of_it() {
    let x = |count: usize| "x".repeat(count);
    let mailbox = |count: usize| format!("{}@b.co", x(count));
    let cases: [(&str, Vec<String>, &[&str]); 7] = [
        (
            "duration",
            ["P1Y2M3DT4H5M6S", "P2W", "PT1M", "P1M", "PT1H2M", "P10D"].map(str::to_owned).into(),
            &["P", "PT", "P1YT", "P1Y2D", "P1W2D", "1D", "P1H", "PT1D", "P-1D", "P1234567890D"],
        ),
        (
            "date",
            ["2024-02-29", "2000-02-29", "0001-01-01", "9999-12-31", "2023-04-30", "0004-02-29"]
                .map(str::to_owned)
                .into(),
            &[
                "2023-02-29",
                "1900-02-29",
                "0000-01-01",
                "2023-04-31",
                "2023-13-01",
                "2023-00-10",
                "2023-1-1",
                "0000-02-29",
            ],
        ),
        (
            "time",
            ["23:59:59Z", "00:00:00.123456789+05:30"].map(str::to_owned).into(),
            &["23:59:60Z", "24:00:00Z", "12:00:00", "12:00:00.Z", "12:00:00+24:00"],
        ),
        (
            "date-time",
            ["2024-02-29T12:00:00Z", "2023-12-31t23:59:59-01:00"].map(str::to_owned).into(),
            &["2023-02-29T12:00:00Z", "2024-02-29 12:00:00Z", "2024-02-29"],
        ),
        (
            "email",
            vec!["a@b.co".into(), "a.b.c.d@x-y.example".into(), "x+y@a.b.c.museum".into(), mailbox(64)],
            &["a@b", "a..b@c.de", ".a@b.co", "a@-b.co", "a@b.c", "a@b.1a", &mailbox(65)],
        ),
        (
            "hostname",
            vec!["localhost".into(), "a.b.svc.cluster.local".into(), "1.2".into(), x(62)],
            &["-a", "a-", "a..b", "a.", "a_b", &x(64), &[x(62), x(62), x(62), x(62), x(62)].join(".")],
        ),
        ("uuid", vec!["123e4567-e89b-12d3-a456-426614174000".into()], &["123e4567-e89b-12d3-a456-42661417400"]),
    ];
    for (format, good, bad) in cases {
        let spec = schema(&json!({"type": "string", "format": format}));
        for text in good {
            assert!(takes(&spec, &format!("\"{text}\"")), "{format} has {text}");
        }
        for text in bad {
            assert!(!takes(&spec, &format!("\"{text}\"")), "{format} does not have {text}");
        }
    }
    let both = schema(&json!({"type": "string", "format": "date", "pattern": "^19|-02-"}));
    assert!(takes(&both, "\"1999-12-31\"") && takes(&both, "\"2024-02-29\""));
    assert!(!takes(&both, "\"2024-12-31\"") && !takes(&both, "\"2023-02-29\"") && !takes(&both, "\"1\""));
}

/// In JavaScript a dot is no end of a line, and a validator's white space is not ours.
#[test]
fn patterns_of_schemas_are_those_of_javascript() {
    for (pattern, good, bad) in [
        ("^.$", "a é \\t", "\\n \\r \u{2028} \u{2029}"),
        ("^[.]$", ".", "a"),
        ("^\\s$", "\\t \\n \\r", "a \u{85} \u{feff} \u{2003}"),
        ("^\\S$", "a é", "\\t \u{85} \u{feff} \u{2003}"),
        ("^[x\\s]$", "x \\t", "a \u{feff}"),
        ("^[^x\\s]$", "a", "x \\t \u{85} \u{feff}"),
        ("^[^x\\S]$", "\\t", "a x \u{85}"),
        ("^[\\w\\d]$", "a 1 _", "é ٣"),
        ("^(?s:.)$", "a \\n", ""),
    ] {
        let spec = schema(&json!({"type": "string", "pattern": pattern}));
        for text in good.split(' ') {
            assert!(takes(&spec, &format!("\"{text}\"")), "{pattern} matches {text:?}");
        }
        for text in bad.split(' ').filter(|text| !text.is_empty()) {
            assert!(!takes(&spec, &format!("\"{text}\"")), "{pattern} does not match {text:?}");
        }
    }
}

#[test]
fn lark_is_no_ebnf() {
    for source in ["start: \"a ::= b\"", "start: /x ::= y/", "", "root ::="] {
        assert_eq!(is_ebnf(source), source.starts_with("root"), "{source}");
    }
}

#[test]
fn what_is_wrong_with_an_ebnf_grammar_is_said() {
    for (source, reason) in [
        ("rule ::= \"a\"", "The grammar has no rule 'root'."),
        ("root ::= a\n", "line 1: the rule 'a' is not defined."),
        ("root ::= \"a\"\n\nroot ::= \"b\"", "line 3: the rule 'root' is defined twice."),
        ("root ::= \"a", "line 1: a text has no end."),
        ("root ::= [a", "line 1: a class of characters is empty, or has no end."),
        ("root ::= []", "line 1: a class of characters is empty, or has no end."),
        ("root ::=\n [z-a]", "line 2: the range z-a is empty."),
        ("root ::= \"\\q\"", "line 1: an escape is not one of"),
        ("root ::= \"\\uD800\"", "line 1: an escape stands for no character."),
        ("root ::= \"a\"{x}", "line 1: a repetition is not of the form"),
        ("root ::= \"a\" ::= \"b\"", "line 1: '::=' stands behind no name."),
        ("root ::= \"a\" & \"b\"", "line 1: '&' is not expected."),
        ("root ::= (\"a\"", "This is not a valid grammar."),
        ("root ::= root", ""),
    ] {
        match refusal(&GrammarSpec::Ebnf(source.to_owned())) {
            GrammarError::Invalid { place, reason: found } => {
                assert!(place.is_empty() && found.contains(reason), "{source}: {found}");
            }
            GrammarError::TooComplex => assert_eq!(reason, "", "{source}"),
        }
    }
}

#[test]
fn what_was_compiled_is_kept_within_bounds() {
    let grammars = &bytes_model().grammars;
    let numbered = |number: u32| schema(&json!({"const": number}));
    let first = grammars.compile(&numbered(0)).unwrap();
    assert!(Arc::ptr_eq(first.vocab(), &bytes_model().vocab));
    for number in 1..1_200 {
        grammars.compile(&numbered(number)).unwrap();
    }
    let (entries, bytes) = grammars.cached();
    assert!(entries <= 1_000 && bytes <= 64 << 20, "{entries} entries, {bytes} bytes");
    assert!(entries > 500, "{entries} entries, {bytes} bytes");
    assert!(grammars.holds(&numbered(1_199)) && !grammars.holds(&numbered(1)));
}

/// White space and further properties as the request would have them.
#[test]
fn json_has_the_form_that_was_asked_for() {
    let source = r#"{"type":"object","properties":{"a":{"type":"array","items":{"type":"integer"}}},"required":["a"]}"#;
    let accepts = |form: JsonForm, text: &str| {
        let grammar = bytes_model().compile(&GrammarSpec::JsonSchemaIn(source.to_owned(), form));
        let mut state = GrammarState::new(&grammar);
        let mut mask = TokenMask::empty(bytes_model().size);
        for byte in text.bytes() {
            state.mask(&mut mask).unwrap();
            if !mask.contains(byte.into()) {
                return false;
            }
            state.accept(byte.into()).unwrap();
        }
        state.is_complete()
    };
    let nothing = || JsonForm { white_space: WhiteSpace::Nothing, closed: false };
    assert!(accepts(nothing(), r#"{"a":[1,2],"b":true}"#));
    assert!(!accepts(nothing(), r#"{"a": [1,2]}"#));
    let closed = || JsonForm { closed: true, ..JsonForm::default() };
    assert!(accepts(closed(), r#"{"a": [1, 2]}"#));
    assert!(!accepts(closed(), r#"{"a":[1,2],"b":true}"#));
    let lines = || JsonForm { white_space: WhiteSpace::Pattern("[\n ]{0,3}".to_owned()), closed: true };
    assert!(accepts(lines(), "{\n \"a\" : [1,\n  2]\n}"));
    assert!(accepts(lines(), r#"{"a":[1,2]}"#));
    assert!(!accepts(lines(), "{\t\"a\":[1]}"));
    assert!(!accepts(lines(), "{\"a\":[1]\n\n\n\n}"));
}

fn object_of_x(path: &str) -> Part {
    let schema = json!({"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": false});
    Part::Json { path: path.to_owned(), schema: schema.to_string() }
}

/// The state behind a text, and what may follow.
fn behind(model: &Model, grammar: &Grammar, text: &str) -> (GrammarState, Vec<TokenId>) {
    let mut state = GrammarState::new(grammar);
    for byte in text.bytes() {
        let mask = model.mask(&mut state);
        assert!(mask.contains(byte.into()), "{} in {text}", byte as char);
        state.accept(byte.into()).unwrap();
    }
    let mask = model.mask(&mut state);
    let allowed = (0..model.size).filter(|token| mask.contains(*token)).collect();
    (state, allowed)
}

#[test]
fn json_stands_where_its_part_is() {
    let call =
        Part::Sequence(vec![Part::Text("<call>\"\n".to_owned()), object_of_x("a"), Part::Text("</call>".to_owned())]);
    for model in models() {
        let grammar = model.compile(&GrammarSpec::Parts(call.clone()));
        for seed in 0..20 {
            let text = model.walk(&grammar, seed);
            let json = text.strip_prefix("<call>\"\n").and_then(|rest| rest.strip_suffix("</call>"));
            if let Some(value) = parsed(json.unwrap_or_else(|| panic!("{text}"))) {
                assert!(only_keys(&value, &["x"]) && value["x"].is_number(), "{text}");
            }
        }
    }
    let wrong =
        Part::Json { path: "tools[0]".to_owned(), schema: r#"{"properties": {"a": {"type": "x"}}}"#.to_owned() };
    let GrammarError::Invalid { place, .. } = refusal(&GrammarSpec::Parts(wrong)) else { panic!() };
    assert_eq!(place, "tools[0].properties.a.type");
}

#[test]
fn a_control_token_stands_only_where_its_part_is() {
    let model = bytes_model();
    let control = model.token("<|im_start|>");
    let text = |text: &str| Part::Text(text.to_owned());
    let parts = Part::Sequence(vec![
        text("a"),
        Part::Repeated(Box::new(Part::Sequence(vec![Part::Control(control), text("b")]))),
    ]);
    let grammar = model.compile(&GrammarSpec::Parts(parts));
    let (mut state, allowed) = behind(model, &grammar, "a");
    assert!(allowed.contains(&control) && allowed.iter().all(|token| *token == control || model.vocab.is_eog(*token)));
    state.accept(control).unwrap();
    let mask = model.mask(&mut state);
    assert!(mask.contains(b'b'.into()) && mask.len() == 1);
    // Its spelling is text like any other, and not it.
    let free = model.compile(&GrammarSpec::Parts(Part::Free { without: Vec::new() }));
    assert!(!behind(model, &free, "<|im_start|>").1.contains(&control));
    assert!(GrammarState::new(&free).accept(control).is_err());
    // A client's grammar cannot name it.
    for source in ["start: <|im_start|>", "start: <257>", "start: <[257]>"] {
        refusal(&GrammarSpec::Lark(source.to_owned()));
    }
}

#[test]
fn text_is_free_up_to_its_end_and_no_longer() {
    let model = bytes_model();
    let parts = Part::Sequence(vec![Part::Until("</think>".to_owned()), object_of_x("")]);
    let grammar = model.compile(&GrammarSpec::Parts(parts));
    assert!(behind(model, &grammar, "{\"y\": </thin").1.len() > 100);
    assert_eq!(behind(model, &grammar, "a </think </think>").1, [TokenId::from(b'{')]);
    let (mut state, allowed) = behind(model, &grammar, "</think>{\"x\":1}");
    assert_eq!(allowed, model.vocab.eog());
    state.accept(allowed[0]).unwrap();
}

/// What is constrained begins when the model begins it.
#[test]
fn a_trigger_in_free_text_begins_what_is_constrained() {
    let model = bytes_model();
    let call =
        Part::Sequence(vec![Part::Until("<call>".to_owned()), object_of_x(""), Part::Text("</call>".to_owned())]);
    let rest = Part::Free { without: vec!["<call>".to_owned()] };
    let parts = Part::Sequence(vec![Part::Repeated(Box::new(call)), rest]);
    let grammar = model.compile(&GrammarSpec::Parts(parts));
    let ends = model.vocab.eog()[0];
    for free in ["", "hello {", "hello <call", "<call>{\"x\":1}</call> and <c"] {
        let (_, allowed) = behind(model, &grammar, free);
        assert!(allowed.contains(&ends) && allowed.len() > 100, "{free}: {}", allowed.len());
    }
    for constrained in ["hello <call>", "<call>{\"x\":1}</call> and <call>"] {
        assert_eq!(behind(model, &grammar, constrained).1, [TokenId::from(b'{')], "{constrained}");
    }
}
