//! Models that rank documents, against what their heads make of the vectors of the same models without them.

use tandem_core::{Loaded, Pooling, TokenId, conformance};
use tandem_llama_cpp::{Assumptions, LlamaCppSettings, Planner};

use crate::{
    embedder::{CLS, LAST, MEAN, RANK, WIDTH, backend, bert, embed, embedder, invalid},
    gguf::{Gguf, VOCABULARY, Value},
    helpers::{settings, with_backend},
};

/// Kernels round differently for other shapes.
const TOLERANCE: f32 = 1e-3;
const ROW: usize = WIDTH as usize;
const PROMPT: &str = "tokenizer.chat_template.rerank";
const LABELS: &str = "qwen3.classifier.output_labels";
const INPUTS: [&[TokenId]; 4] = [&[2, 5, 6, 3, 9, 3], &[2, 5, 6, 3, 20, 21, 22, 3], &[2, 7, 3, 7, 3], &[9]];

/// As a cross-encoder is published: a hidden layer, and one label.
fn bert_ranks() -> Gguf {
    let mut file = bert(Some(RANK));
    file.matrix("cls.weight", &[WIDTH, WIDTH]);
    file.matrix("cls.bias", &[WIDTH]);
    file.matrix("cls.output.weight", &[WIDTH, 1]);
    file.tensor("cls.output.bias", &[1], vec![0.25]);
    file
}

/// With `ALiBi` in the place of positions, and the label's layer alone.
fn jina_ranks() -> Gguf {
    let mut file = bert(Some(RANK));
    file.rename_keys("bert.", "jina-bert-v2.");
    file.set("general.architecture", Value::Text("jina-bert-v2".to_owned()));
    file.remove("position_embd.weight");
    file.matrix("cls.weight", &[WIDTH, 1]);
    file.tensor("cls.bias", &[1], vec![-0.25]);
    file
}

/// As converters write `gte-reranker-modernbert`, which takes the mean first.
fn modern_bert_ranks() -> Gguf {
    const INNER: u64 = 48;
    let mut file = Gguf::new("modern-bert");
    for (key, number) in [
        ("block_count", 2),
        ("context_length", 48),
        ("embedding_length", WIDTH as u32),
        ("feed_forward_length", INNER as u32),
        ("attention.head_count", 4),
        ("pooling_type", RANK),
    ] {
        file.number(key, number);
    }
    file.float("attention.layer_norm_epsilon", 1e-5);
    file.float("rope.freq_base", 10_000.0);
    file.value("modern-bert.attention.causal", Value::Bool(false));
    file.value("tokenizer.ggml.add_eos_token", Value::Bool(true));
    file.matrix("token_embd.weight", &[WIDTH, VOCABULARY]);
    for norm in ["token_embd_norm", "output_norm", "blk.0.ffn_norm", "blk.1.ffn_norm", "blk.1.attn_norm"] {
        file.constant(&format!("{norm}.weight"), &[WIDTH], 1.0);
    }
    for layer in 0..2 {
        for (name, dims) in [
            ("attn_qkv", [WIDTH, 3 * WIDTH]),
            ("attn_output", [WIDTH, WIDTH]),
            ("ffn_up", [WIDTH, 2 * INNER]),
            ("ffn_down", [INNER, WIDTH]),
        ] {
            file.matrix(&format!("blk.{layer}.{name}.weight"), &dims);
        }
    }
    file.matrix("cls.weight", &[WIDTH, WIDTH]);
    file.constant("cls.norm.weight", &[WIDTH], 1.5);
    file.matrix("cls.output.weight", &[WIDTH, 1]);
    file.tensor("cls.output.bias", &[1], vec![0.25]);
    file
}

/// As converters write Qwen3-Reranker: the rows of two tokens of what was a generator's output, and the prompt to put texts into.
fn qwen_ranks() -> Gguf {
    let mut file = Gguf::new("qwen3");
    for (key, number) in [
        ("block_count", 2),
        ("context_length", 64),
        ("embedding_length", WIDTH as u32),
        ("feed_forward_length", 48),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("pooling_type", RANK),
    ] {
        file.number(key, number);
    }
    file.float("attention.layer_norm_rms_epsilon", 1e-5);
    file.float("rope.freq_base", 10_000.0);
    file.value(LABELS, Value::Texts(["yes", "no"].map(str::to_owned).into()));
    file.value(PROMPT, Value::Text("{query}<end>{document}<end>".to_owned()));
    file.matrix("token_embd.weight", &[WIDTH, VOCABULARY]);
    file.constant("output_norm.weight", &[WIDTH], 1.0);
    for layer in 0..2 {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        for (part, width) in [("attn_norm", WIDTH), ("ffn_norm", WIDTH), ("attn_q_norm", 8), ("attn_k_norm", 8)] {
            file.constant(&name(part), &[width], 1.0);
        }
        for (part, dims) in [
            ("attn_q", [WIDTH, WIDTH]),
            ("attn_k", [WIDTH, 16]),
            ("attn_v", [WIDTH, 16]),
            ("attn_output", [WIDTH, WIDTH]),
            ("ffn_gate", [WIDTH, 48]),
            ("ffn_up", [WIDTH, 48]),
            ("ffn_down", [48, WIDTH]),
        ] {
            file.matrix(&name(part), &dims);
        }
    }
    file.matrix("cls.output.weight", &[WIDTH, 2]);
    file
}

/// One of each kind of head.
pub(crate) fn all() -> [Gguf; 4] {
    [bert_ranks(), jina_ranks(), modern_bert_ranks(), qwen_ranks()]
}

/// What a file's model makes of the inputs, all in one pass.
fn run(file: &Gguf, inputs: &[&[TokenId]]) -> Vec<Vec<f32>> {
    let path = file.write();
    let mut vectors = Vec::new();
    with_backend(embedder(&path, 48, 64), |loaded| vectors = embed(backend(loaded), inputs));
    vectors
}

/// The vectors that the head is given: those of the same file that says another pooling.
fn pooled(mut file: Gguf, architecture: &str, pooling: u32) -> Vec<Vec<f32>> {
    file.set(&format!("{architecture}.pooling_type"), Value::U32(pooling));
    run(&file, &INPUTS)
}

/// A matrix times a vector, as GGUF has it: a row for each number that comes of it.
fn product(matrix: &[f32], vector: &[f64]) -> Vec<f64> {
    let row = |row: &[f32]| std::iter::zip(row, vector).map(|(a, b)| f64::from(*a) * b).sum();
    matrix.chunks_exact(ROW).map(row).collect()
}

fn sum(a: &[f64], b: &[f32]) -> Vec<f64> {
    std::iter::zip(a, b).map(|(a, b)| a + f64::from(*b)).collect()
}

fn sigmoid(logit: f64) -> f64 {
    1.0 / (1.0 + (-logit).exp())
}

fn wide(vector: &[f32]) -> Vec<f64> {
    vector.iter().copied().map(f64::from).collect()
}

/// That the scores of a file are what `head` makes of its pooled vectors, and are not all the same.
fn assert_scores(file: &Gguf, architecture: &str, pooling: u32, tolerance: f64, head: impl Fn(&[f64]) -> f64) {
    let expected: Vec<f64> =
        pooled(file.clone(), architecture, pooling).iter().map(|vector| head(&wide(vector))).collect();
    let scores = run(file, &INPUTS);
    for (score, expected) in std::iter::zip(&scores, &expected) {
        assert!(
            (f64::from(score[0]) - expected).abs() < tolerance,
            "{architecture}: {scores:?}, {expected:?} expected"
        );
    }
    assert!((expected[0] - expected[2]).abs() > 0.01, "{architecture}: a head that matters: {expected:?}");
}

#[test]
fn rerankers_keep_the_contract() {
    for file in all() {
        let path = file.write();
        for max_step_tokens in [100, 32] {
            conformance::check_embedder(Box::new(embedder(&path, 48, max_step_tokens)), TOLERANCE)
                .expect("the model loads");
        }
    }
}

#[test]
fn scores_are_those_of_the_head() {
    let file = bert_ranks();
    assert_scores(&file, "bert", CLS, 1e-4, |pooled| {
        let hidden = sum(&product(file.numbers("cls.weight"), pooled), file.numbers("cls.bias"));
        let hidden: Vec<f64> = hidden.into_iter().map(f64::tanh).collect();
        sigmoid(product(file.numbers("cls.output.weight"), &hidden)[0] + 0.25)
    });
    let mut file = bert_ranks();
    file.remove("cls.weight");
    file.remove("cls.bias");
    assert_scores(&file, "bert", CLS, 1e-4, |pooled| {
        sigmoid(product(file.numbers("cls.output.weight"), pooled)[0] + 0.25)
    });
    let file = jina_ranks();
    assert_scores(&file, "jina-bert-v2", CLS, 1e-4, |pooled| {
        sigmoid(product(file.numbers("cls.weight"), pooled)[0] - 0.25)
    });
}

/// Its GELU is looked up in a table of half-precision numbers.
#[test]
fn a_modern_bert_has_a_mean_and_a_norm() {
    let file = modern_bert_ranks();
    assert_scores(&file, "modern-bert", MEAN, 2e-3, |pooled| {
        let gelu =
            |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh());
        let hidden: Vec<f64> = product(file.numbers("cls.weight"), pooled).into_iter().map(gelu).collect();
        let mean = hidden.iter().sum::<f64>() / ROW as f64;
        let variance = hidden.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / ROW as f64;
        let normed: Vec<f64> = hidden.iter().map(|x| 1.5 * (x - mean) / (variance + 1e-5).sqrt()).collect();
        sigmoid(product(file.numbers("cls.output.weight"), &normed)[0] + 0.25)
    });
}

#[test]
fn of_yes_and_no_the_score_is_the_probability_of_yes() {
    let file = qwen_ranks();
    assert_scores(&file, "qwen3", LAST, 1e-4, |pooled| {
        let logits = product(file.numbers("cls.output.weight"), pooled);
        sigmoid(logits[0] - logits[1])
    });
}

#[test]
fn what_is_known_of_a_reranker() {
    let path = bert_ranks().write();
    with_backend(embedder(&path, 4096, 512), |loaded| {
        let (vocab, template) = (loaded.vocab.clone(), loaded.pair_template.clone());
        let spec = backend(loaded).spec();
        assert_eq!((spec.dimensions, spec.pooling, spec.max_input_tokens), (1, Pooling::Rank, 48));
        // `[CLS] query [SEP] document [SEP]`.
        assert_eq!((vocab.opening(), vocab.closing(), vocab.separator()), (Some(2), Some(3), None));
        assert_eq!(template, None);
    });
    let path = qwen_ranks().write();
    with_backend(embedder(&path, 48, 64), |loaded| {
        assert_eq!(loaded.pair_template.as_deref(), Some("{query}<end>{document}<end>"));
        assert_eq!((loaded.vocab.opening(), loaded.vocab.closing()), (None, None));
    });
}

#[test]
fn texts_have_a_separator_where_the_file_or_its_kind_says_so() {
    let around = |file: &Gguf| {
        let mut found = None;
        with_backend(embedder(&file.write(), 48, 64), |Loaded { vocab, .. }| {
            found = Some((vocab.opening(), vocab.closing(), vocab.separator()));
        });
        found.expect("the model was served")
    };
    let mut file = modern_bert_ranks();
    let end = VOCABULARY as TokenId - 1;
    assert_eq!(around(&file), (None, Some(end), None));
    file.value("tokenizer.ggml.seperator_token_id", Value::U32(end));
    file.value("tokenizer.ggml.add_sep_token", Value::Bool(true));
    assert_eq!(around(&file), (None, Some(end), Some(end)));
    // As XLM-R has it, `<s> query </s></s> document </s>`, whether or not the file says so.
    let mut file = bert_ranks();
    file.set("tokenizer.ggml.model", Value::Text("t5".to_owned()));
    file.value("tokenizer.ggml.scores", Value::F32s(vec![-1.0; 65]));
    file.value("tokenizer.ggml.eos_token_id", Value::U32(3));
    file.value("tokenizer.ggml.add_bos_token", Value::Bool(true));
    assert_eq!(around(&file), (Some(2), Some(3), Some(3)));
    file.value("tokenizer.ggml.add_sep_token", Value::Bool(true));
    assert_eq!(around(&file), (Some(2), Some(3), Some(3)));
    file.set("tokenizer.ggml.add_sep_token", Value::Bool(false));
    assert_eq!(around(&file), (Some(2), Some(3), None));
}

#[test]
fn memory_is_planned_as_for_an_embedder() {
    for file in all() {
        let path = file.write();
        let settings = LlamaCppSettings { model: path.to_path_buf(), ..settings(8, 40) };
        let plan = Planner::new(&settings, Assumptions::default()).and_then(|planner| planner.plan());
        let plan = plan.expect("the model is there");
        assert_eq!((plan.context, plan.parallel), (40, 1));
        let room = Assumptions { memory: Some(plan.needs().total()), absent_gpu: None };
        let planner = Planner::new(&settings, room).expect("the model is there");
        assert_eq!(planner.most_sequences().expect("sequences"), Some(1));
    }
}

#[test]
fn files_without_a_head_that_fits() {
    let changed = |mut file: Gguf, change: fn(&mut Gguf)| {
        change(&mut file);
        invalid(&file)
    };
    assert_eq!(invalid(&bert(Some(RANK))), "a reranker without `cls.output.weight`");
    assert_eq!(
        changed(bert_ranks(), |file| file.matrix("cls.output.weight", &[WIDTH, 3])),
        "tensor `cls.output.weight`: shape [32, 3], [32, 1] expected"
    );
    assert_eq!(
        changed(bert_ranks(), |file| file.matrix("cls.weight", &[WIDTH, 16])),
        "tensor `cls.weight`: shape [32, 16], [32, 32] expected"
    );
    assert_eq!(
        changed(bert_ranks(), |file| {
            file.matrix("cls.output.weight", &[WIDTH, 3]);
            let labels = ["yes", "no", "perhaps"].map(str::to_owned);
            file.value("bert.classifier.output_labels", Value::Texts(labels.into()));
        }),
        "a reranker with 3 labels (`bert.classifier.output_labels`), where one of architecture `bert` has 1"
    );
    assert_eq!(
        changed(qwen_ranks(), |file| file.unset(LABELS)),
        format!("a reranker with 1 labels (`{LABELS}`), where one of architecture `qwen3` has 2")
    );
    assert_eq!(
        changed(qwen_ranks(), |file| file.unset(PROMPT)),
        format!(
            "a reranker that has neither a prompt for a query and a document (`{PROMPT}`) nor a token between them"
        )
    );
    assert_eq!(
        changed(qwen_ranks(), |file| file.set(PROMPT, Value::Text("{query}".to_owned()))),
        "the template of a reranker has no {document}"
    );
    assert_eq!(changed(qwen_ranks(), |file| file.set(PROMPT, Value::U32(1))), format!("`{PROMPT}` is no string"));
    assert_eq!(
        changed(modern_bert_ranks(), |file| file.number("decision.block_count", 1)),
        "a model that decides among options, which is not served"
    );
    assert_eq!(changed(jina_ranks(), |file| file.remove("cls.weight")), "a reranker without `cls.weight`");
    assert_eq!(
        changed(jina_ranks(), |file| file.matrix("blk.1.ffn_up.weight", &[WIDTH, 65])),
        "tensor `blk.1.ffn_up.weight`: shape [32, 65], 64 rows expected"
    );
    assert_eq!(
        changed(modern_bert_ranks(), |file| file.unset("modern-bert.attention.head_count")),
        "invalid hyper-parameter modern-bert.attention.head_count: missing, or no positive number"
    );
    assert_eq!(
        changed(modern_bert_ranks(), |file| file.set("modern-bert.attention.head_count", Value::U32(260))),
        "invalid hyper-parameter modern-bert.attention.head_count: 260, with a width of 32"
    );
    assert_eq!(
        changed(modern_bert_ranks(), |file| file.number("attention.key_length", 4)),
        "invalid hyper-parameter modern-bert.attention.head_count: 4, with a width of 32"
    );
    let mut causal = crate::architectures::plain();
    causal.number("pooling_type", RANK);
    assert_eq!(invalid(&causal), "a reranker of architecture `llama`, for which llama.cpp has no scores");
}

#[test]
fn weights_that_are_no_numbers() {
    let mut file = bert_ranks();
    file.tensor("cls.output.bias", &[1], vec![f32::NAN]);
    assert_eq!(invalid(&file), "the model produced a score that is not finite");
}
