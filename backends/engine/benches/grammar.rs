//! What following a grammar costs a row, over a made-up vocabulary of 131,072 tokens: bytes, and pieces of words, numbers and JSON.
//!
//! `mask` is one mask and one accepted token, in a long output of which the first two items are not counted: what is met for the first time
//! costs more. `first` is compiling the grammar and computing its first mask, for a model whose trie of tokens is there. `begin` is what a
//! generation costs beside that.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on should panic")]

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{Criterion, criterion_group, criterion_main};
use tandem_core::{TokenId, TokenMask, Vocab, VocabParts, sampling::uniform};
use tandem_engine::{GrammarSpec, Grammars, internals::GrammarState};

const VOCABULARY: usize = 131_072;

/// A list of calls of a tool.
const TOOL: &str = r#"{"type":"array","items":{"type":"object","properties":{"city":{"type":"string","maxLength":40},
    "unit":{"enum":["celsius","fahrenheit"]},"days":{"type":"integer","minimum":1,"maximum":14}},
    "required":["city","unit","days"],"additionalProperties":false}}"#;
const TOOL_ITEM: &str = r#"{"city":"San Francisco","unit":"celsius","days":7}"#;

/// A list of things with lists of things.
const NESTED: &str = r##"{"type":"array","items":{"$ref":"#/$defs/item"},"$defs":{"item":{"type":"object",
    "properties":{"name":{"type":"string"},"price":{"type":"number"},"tags":{"type":"array","maxItems":4,
    "items":{"type":"string","pattern":"^[a-z]{2,12}$"}},"parts":{"type":"array","items":{"$ref":"#/$defs/item"}}},
    "required":["name","price","tags"],"additionalProperties":false}}}"##;
const NESTED_ITEM: &str =
    r#"{"name":"Bicycle, used","price":129.5,"tags":["blue","small"],"parts":[{"name":"wheel","price":20,"tags":[]}]}"#;

fn vocab() -> Arc<Vocab> {
    const LETTERS: &[u8] = b"eeeeettttaaaooiinnsshhrrddllccuummwwffggyyppbbvk";
    const MARKS: [&str; 16] = [
        "{\"", "\":", "\":\"", "\",\"", "\"}", "\"},{\"", "[{\"", "}]", ", \"", ": ", "\":[", "\"],\"", "},", ".5",
        "\n\n", "  ",
    ];
    let mut seen = HashSet::new();
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    tokens.extend(MARKS.iter().map(|mark| mark.as_bytes().to_vec()));
    tokens.extend((10..1000).map(|number| number.to_string().into_bytes()));
    seen.extend(tokens.iter().cloned());
    for at in 0.. {
        if tokens.len() == VOCABULARY - 1 {
            break;
        }
        let draw = |place: u32| uniform(at, place);
        let len = 2 + (draw(0) * 7.0) as u32;
        let mut word: Vec<u8> = if draw(1) < 0.5 { vec![b' '] } else { Vec::new() };
        word.extend((0..len).map(|place| LETTERS[(draw(2 + place) * LETTERS.len() as f32) as usize]));
        if draw(20) < 0.2 {
            let first = usize::from(word[0] == b' ');
            word[first].make_ascii_uppercase();
        }
        if seen.insert(word.clone()) {
            tokens.push(word);
        }
    }
    tokens.push(b"<end>".to_vec());
    let end = tokens.len() as TokenId - 1;
    let tokens = tokens.into_iter().map(|bytes| (bytes.into_boxed_slice(), None)).collect();
    Arc::new(Vocab::new(VocabParts { tokens, eog: vec![end], ..VocabParts::default() }))
}

/// The longest tokens that spell the text.
fn tokenize(vocab: &Vocab, text: &str) -> Vec<TokenId> {
    let mut rest = text.as_bytes();
    let mut ids = Vec::new();
    while !rest.is_empty() {
        let longest = (0..vocab.len() as TokenId - 1).filter(|id| rest.starts_with(vocab.bytes(*id)));
        let id = longest.max_by_key(|id| vocab.bytes(*id).len()).unwrap();
        ids.push(id);
        rest = &rest[vocab.bytes(id).len()..];
    }
    ids
}

fn grammar(c: &mut Criterion) {
    let vocab = vocab();
    let mut group = c.benchmark_group("grammar");
    for (name, schema, item) in [("tool", TOOL, TOOL_ITEM), ("nested", NESTED, NESTED_ITEM)] {
        let spec = GrammarSpec::JsonSchema(schema.to_owned());
        let begin = tokenize(&vocab, "[");
        let item = tokenize(&vocab, &format!("{item},"));
        let grammars = Grammars::new(Arc::clone(&vocab), VOCABULARY as u32);
        let compiled = grammars.compile(&spec).unwrap();
        let mut mask = TokenMask::empty(VOCABULARY as u32);
        let mut follow = |state: &mut GrammarState, tokens: &[TokenId]| {
            let began = Instant::now();
            for token in tokens {
                state.mask(&mut mask).unwrap();
                assert!(mask.contains(*token));
                state.accept(*token).unwrap();
            }
            began.elapsed()
        };
        group.bench_function(format!("mask/{name}"), |bencher| {
            bencher.iter_custom(|rows| {
                const ITEMS: usize = 50;
                let mut elapsed = Duration::ZERO;
                let mut left = rows as usize;
                while left > 0 {
                    let mut state = GrammarState::new(&compiled);
                    follow(&mut state, &begin);
                    for _ in 0..2 {
                        follow(&mut state, &item);
                    }
                    for _ in 0..ITEMS {
                        let now = left.min(item.len());
                        elapsed += follow(&mut state, &item[..now]);
                        left -= now;
                        if left == 0 {
                            break;
                        }
                    }
                }
                elapsed
            });
        });
        group.bench_function(format!("begin/{name}"), |bencher| bencher.iter(|| GrammarState::new(&compiled)));
        group.bench_function(format!("first/{name}"), |bencher| {
            bencher.iter_custom(|times| {
                let mut elapsed = Duration::ZERO;
                for time in 0..times {
                    // One more blank is another source, which is not in the cache.
                    let spec = GrammarSpec::JsonSchema(format!("{schema}{}", " ".repeat(time as usize % 1000)));
                    let fresh = Grammars::new(Arc::clone(&vocab), VOCABULARY as u32);
                    fresh.compile(&GrammarSpec::Choice(vec!["a".to_owned()])).unwrap();
                    let began = Instant::now();
                    fresh.compile(&spec).unwrap();
                    elapsed += began.elapsed();
                }
                elapsed
            });
        });
    }
}

criterion_group! { name = benches; config = Criterion::default().sample_size(10); targets = grammar }
criterion_main!(benches);
