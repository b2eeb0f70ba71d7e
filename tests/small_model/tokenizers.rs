//! Texts in tokens: candle builds its tokenizer out of what a GGUF file says, llama.cpp has its own. On one file they agree.

use std::collections::BTreeSet;

use tandem_core::{TokenId, sampling::uniform};
use tandem_engine::Engine;

use crate::{
    gguf_writer::{Gguf, Value},
    helpers::engine_of,
};

/// Characters that rules are about: of words, numbers, spaces, punctuation, other scripts and none.
const CHARACTERS: [&str; 64] = [
    "a", "b", "e", "h", "s", "t", "he", "the", "is", "A", "S", "T", "B", "'", "'s", "'T", "'re", "'LL", "'m", "'ve",
    "'D", " ", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\u{a0}", "\u{3000}", "0", "1", "9", "12", "2024", "½",
    "²", "Ⅷ", "٣", ".", ",", "!", "?", "-", "_", "/", "+", "$", "=", "|", "«", "…", "中", "文", "ひ", "한", "ไ", "🦀",
    "\u{200d}", "é", "ß", "я", "Ж",
];

/// A model of no sense. Any two bytes of our characters make a token, and many three, so that where a text was cut shows.
fn model(change: impl FnOnce(&mut Gguf)) -> tempfile::TempPath {
    let mut file = Gguf::new("llama");
    let Some(Value::Texts(mut tokens)) = file.get("tokenizer.ggml.tokens") else { panic!("tokens") };
    let Some(Value::I32s(mut kinds)) = file.get("tokenizer.ggml.token_type") else { panic!("types") };
    let bytes: BTreeSet<u8> = CHARACTERS.concat().into_bytes().into_iter().collect();
    let spelled: Vec<&String> = bytes.iter().map(|&byte| &tokens[usize::from(byte)]).collect();
    let mut merges: Vec<(String, String)> = Vec::new();
    for left in &spelled {
        merges.extend(spelled.iter().map(|right| ((*left).clone(), (*right).clone())));
    }
    let pairs: Vec<String> = merges.iter().map(|(left, right)| format!("{left}{right}")).collect();
    for (seed, pair) in (0..).zip(&pairs) {
        let right = spelled[(uniform(seed, 0) * spelled.len() as f32) as usize];
        merges.push((pair.clone(), right.clone()));
    }
    // In no order that anybody would think of.
    let mut order: Vec<_> = (0..merges.len()).collect();
    order.sort_by(|a, b| uniform(*a as u64, 1).total_cmp(&uniform(*b as u64, 1)));
    let mut known: BTreeSet<String> = tokens.iter().cloned().collect();
    tokens.extend(
        merges.iter().map(|(left, right)| format!("{left}{right}")).filter(|token| known.insert(token.clone())),
    );
    kinds.resize(tokens.len(), 1);
    let merges = order.into_iter().map(|at| format!("{} {}", merges[at].0, merges[at].1)).collect();
    file.set("tokenizer.ggml.tokens", Value::Texts(tokens));
    file.set("tokenizer.ggml.token_type", Value::I32s(kinds));
    file.set("tokenizer.ggml.merges", Value::Texts(merges));
    file.value("tokenizer.ggml.bos_token_id", Value::U32(256));
    // What the name of the rules says is left to it.
    file.unset("tokenizer.ggml.add_bos_token");
    change(&mut file);
    let Some(Value::Texts(tokens)) = file.get("tokenizer.ggml.tokens") else { panic!("tokens") };
    for (key, number) in [
        ("block_count", 1),
        ("context_length", 1024),
        ("embedding_length", 32),
        ("feed_forward_length", 32),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 2),
        ("rope.dimension_count", 16),
    ] {
        file.number(key, number);
    }
    file.float("attention.layer_norm_rms_epsilon", 1e-5);
    file.matrix("token_embd.weight", &[32, tokens.len() as u64]);
    file.constant("output_norm.weight", &[32], 1.0);
    for norm in ["attn_norm", "ffn_norm"] {
        file.constant(&format!("blk.0.{norm}.weight"), &[32], 1.0);
    }
    for part in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
        file.matrix(&format!("blk.0.{part}.weight"), &[32, 32]);
    }
    file.write()
}

/// A text of up to a dozen pieces.
fn text(seed: u64, pieces: &[&str]) -> String {
    let drawn = |at: u32, of: usize| (uniform(seed, at) * of as f32) as usize;
    (1..=drawn(0, 12) as u32).map(|at| pieces[drawn(at, pieces.len())]).collect()
}

/// Compares the ways from text to tokens and from tokens to bytes.
async fn compare(what: &str, file: &tempfile::TempPath, pieces: &[&str]) {
    let path = file.to_str().unwrap();
    let (llama_cpp, candle) = (engine_of("llama-cpp", path).await, engine_of("candle", path).await);
    assert_same_vocab(what, &llama_cpp, &candle);
    for seed in 0..1000 {
        let text = text(seed, pieces);
        let expected = llama_cpp.kind().tokenizer().encode(&text).unwrap();
        let got = candle.kind().tokenizer().encode(&text).unwrap();
        assert_eq!(got, expected, "{what}: {text:?}");
    }
}

pub(crate) fn assert_same_vocab(what: &str, llama_cpp: &Engine, candle: &Engine) {
    let (theirs, ours) = (llama_cpp.kind().vocab(), candle.kind().vocab());
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for id in 0..ours.len() as TokenId {
        assert_eq!((ours.bytes(id), ours.is_text(id)), (theirs.bytes(id), theirs.is_text(id)), "{what}: token {id}");
    }
    assert_eq!((ours.eog(), ours.specials()), (theirs.eog(), theirs.specials()), "{what}");
    assert_eq!((ours.bos(), ours.eos()), (theirs.bos(), theirs.eos()), "{what}");
    assert_eq!((ours.opening(), ours.closing()), (theirs.opening(), theirs.closing()), "{what}");
}

#[tokio::test]
async fn words_are_cut_alike_under_every_name() {
    for name in ["default", "gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "stablelm2", "tekken", "gpt-4o"] {
        let file = model(|file| file.set("tokenizer.ggml.pre", Value::Text(name.to_owned())));
        // llama.cpp takes letters beyond ASCII for capitals and small ones at once. candle does as the models were trained to expect.
        let beyond_ascii: &[&str] = if ["tekken", "gpt-4o"].contains(&name) { &["é", "ß", "я", "Ж"] } else { &[] };
        let characters: Vec<_> = CHARACTERS.into_iter().filter(|one| !beyond_ascii.contains(one)).collect();
        compare(name, &file, &characters).await;
    }
}

/// Pieces with scores in the place of merges: the same two or three bytes, if they are whole characters.
fn pieces(file: &mut Gguf) {
    let Some(Value::Texts(merges)) = file.get("tokenizer.ggml.merges") else { panic!("merges") };
    let mut tokens: Vec<(String, i32)> = vec![("<unk>".to_owned(), 2), ("<s>".to_owned(), 3), ("</s>".to_owned(), 3)];
    tokens.extend((0..256).map(|byte| (format!("<0x{byte:02X}>"), 6)));
    tokens.extend([("<tag>".to_owned(), 4), ("  ".to_owned(), 4), ("the".to_owned(), 4)]);
    let characters: BTreeSet<char> =
        CHARACTERS.concat().chars().filter(|one| !"🦀ไß \n".contains(*one)).chain(['▁']).collect();
    let mut pieces: BTreeSet<String> = characters.iter().map(char::to_string).collect();
    for (seed, _) in (0u64..).zip(&merges) {
        let drawn = |at: u32| characters.iter().nth((uniform(seed, at) * characters.len() as f32) as usize).unwrap();
        let (a, b, c) = (drawn(0), drawn(1), drawn(2));
        pieces.extend([format!("{a}{b}"), format!("{a}{b}{c}")]);
    }
    pieces.remove("the");
    tokens.extend(pieces.into_iter().map(|piece| (piece, 1)));
    let scores = (0..tokens.len() as u64).map(|id| (uniform(id, 7) * -1e8) as i32).collect();
    file.set("tokenizer.ggml.model", Value::Text("llama".to_owned()));
    file.set("tokenizer.ggml.token_type", Value::I32s(tokens.iter().map(|(_, kind)| *kind).collect()));
    file.set("tokenizer.ggml.tokens", Value::Texts(tokens.into_iter().map(|(token, _)| token).collect()));
    file.set("tokenizer.ggml.scores", Value::I32s(scores));
    file.unset("tokenizer.ggml.merges");
    file.unset("tokenizer.ggml.pre");
    file.set("tokenizer.ggml.bos_token_id", Value::U32(1));
    file.set("tokenizer.ggml.eos_token_id", Value::U32(2));
    file.value("tokenizer.ggml.unknown_token_id", Value::U32(0));
}

#[tokio::test]
async fn pieces_are_put_together_alike() {
    let characters: Vec<_> = CHARACTERS.into_iter().chain(["<tag>", "▁", "<", "/", ">"]).collect();
    for adds_space in [None, Some(true), Some(false)] {
        let file = model(|file| {
            pieces(file);
            if let Some(adds_space) = adds_space {
                file.value("tokenizer.ggml.add_space_prefix", Value::Bool(adds_space));
            }
        });
        compare(&format!("a space in front: {adds_space:?}"), &file, &characters).await;
    }
}

#[tokio::test]
async fn what_ends_generation_is_found_alike() {
    let file = model(|file| {
        let Some(Value::Texts(mut tokens)) = file.get("tokenizer.ggml.tokens") else { panic!("tokens") };
        let Some(Value::I32s(mut kinds)) = file.get("tokenizer.ggml.token_type") else { panic!("types") };
        for (token, kind) in [
            ("<|endoftext|>", 3),
            ("<|im_start|>", 3),
            ("<|im_end|>", 3),
            // Not a control token, says the file.
            ("<|eot_id|>", 1),
            ("<|fim_pad|>", 4),
            ("<|repo_name|>", 1),
            ("<|file_sep|>", 3),
            ("<tool_call>", 4),
            ("<|reserved|>", 5),
            ("odd", 0),
        ] {
            tokens.push(token.to_owned());
            kinds.push(kind);
        }
        file.value("tokenizer.ggml.eot_token_id", Value::U32(tokens.len() as u32 - 8));
        file.value("tokenizer.ggml.add_eos_token", Value::Bool(true));
        file.value("tokenizer.ggml.add_bos_token", Value::Bool(true));
        file.set("tokenizer.ggml.tokens", Value::Texts(tokens));
        file.set("tokenizer.ggml.token_type", Value::I32s(kinds));
    });
    let characters = [
        "<|endoftext|>",
        "<|eot_id|>",
        "<|fim_pad|>",
        "<tool_call>",
        "<tool_call",
        ">",
        " ",
        "a",
        "he",
        "<|reserved|>",
    ];
    compare("special tokens", &file, &characters).await;
}
