use std::time::Duration;

use serde_json::{Value, json};
use tandem::settings::LimitSettings;
use tandem_sim::{Faults, SimEmbedderSettings, SimPairs, score};

use crate::errors::refusals;
use crate::helpers::{MODEL, Setup, TestApp, chat_body, merged, spawn_app, spawn_embedder};

const OPENING: u32 = 257;
const CLOSING: u32 = 258;
const SEPARATOR: u32 = 256;
const QUERY: &str = "where do pandas live";
/// The best is the third, then the first.
const DOCUMENTS: [&str; 4] = ["Pandas eat bamboo.", "", "Pandas live in China, where else?", "Paris."];

fn settings() -> SimEmbedderSettings {
    SimEmbedderSettings { pairs: Some(SimPairs::Framed { separated: false }), ..SimEmbedderSettings::default() }
}

async fn spawn() -> TestApp {
    spawn_with(settings(), |_| {}).await
}

async fn spawn_with(settings: SimEmbedderSettings, change: impl FnOnce(&mut LimitSettings)) -> TestApp {
    let mut limits = Setup::default().limits;
    change(&mut limits);
    spawn_embedder(settings, limits).await
}

/// In whose prompt the simulated model's control tokens stand, and text that runs into the client's.
async fn spawn_with_template() -> TestApp {
    let template = "<|im_start|>Q: {query}<|im_end|>D: {document}<|im_end|>".to_owned();
    spawn_with(SimEmbedderSettings { pairs: Some(SimPairs::Template(template)), ..settings() }, |_| {}).await
}

fn body(extra: Value) -> Value {
    merged(json!({"model": MODEL, "query": QUERY, "documents": DOCUMENTS}), extra)
}

async fn rerank(app: &TestApp, extra: Value) -> Value {
    app.ok("/v1/rerank", &body(extra)).await
}

fn bytes(text: &str) -> impl Iterator<Item = u32> {
    text.bytes().map(u32::from)
}

fn framed(query: &str, document: &str) -> Vec<u32> {
    [OPENING].into_iter().chain(bytes(query)).chain([CLOSING]).chain(bytes(document)).chain([CLOSING]).collect()
}

/// As [`spawn_with_template`] has it.
fn in_template(query: &str, document: &str) -> Vec<u32> {
    let query = bytes("Q: ").chain(bytes(query));
    let document = bytes("D: ").chain(bytes(document));
    [OPENING].into_iter().chain(query).chain([CLOSING]).chain(document).chain([CLOSING]).collect()
}

/// The score of each document, by its place in the request.
fn scores(answer: &Value) -> Vec<f32> {
    let mut results: Vec<_> = answer["results"].as_array().unwrap().iter().collect();
    results.sort_by_key(|result| result["index"].as_u64());
    results.into_iter().map(|result| result["relevance_score"].as_f64().unwrap() as f32).collect()
}

/// That the model saw these inputs: its scores depend a little on every token.
fn assert_saw(answer: &Value, inputs: &[Vec<u32>]) {
    let expected: Vec<f32> = inputs.iter().map(|input| score(input)).collect();
    assert_eq!(scores(answer), expected);
    assert_eq!(answer["usage"]["total_tokens"], inputs.iter().map(Vec::len).sum::<usize>());
}

#[tokio::test]
async fn the_best_documents_come_first() {
    let app = spawn().await;
    let answer = rerank(&app, json!({"user": "somebody"})).await;
    assert!(answer["id"].as_str().unwrap().starts_with("rerank-"), "{answer}");
    assert_saw(&answer, &DOCUMENTS.map(|document| framed(QUERY, document)));
    insta::assert_json_snapshot!(answer, {".id" => "[id]", ".results[].relevance_score" => "[score]"}, @r#"
    {
      "id": "[id]",
      "model": "org/sim",
      "usage": {
        "prompt_tokens": 149,
        "total_tokens": 149
      },
      "results": [
        {
          "index": 2,
          "document": {
            "text": "Pandas live in China, where else?"
          },
          "relevance_score": "[score]"
        },
        {
          "index": 0,
          "document": {
            "text": "Pandas eat bamboo."
          },
          "relevance_score": "[score]"
        },
        {
          "index": 3,
          "document": {
            "text": "Paris."
          },
          "relevance_score": "[score]"
        },
        {
          "index": 1,
          "document": {
            "text": ""
          },
          "relevance_score": "[score]"
        }
      ]
    }
    "#);
    let told: Vec<f64> =
        answer["results"].as_array().unwrap().iter().map(|one| one["relevance_score"].as_f64().unwrap()).collect();
    assert!(told.is_sorted_by(|a, b| a >= b) && told.iter().all(|score| (0.0..=1.0).contains(score)), "{told:?}");
}

#[tokio::test]
async fn all_urls_and_forms_of_documents_are_the_same() {
    let app = spawn().await;
    let objects = DOCUMENTS.map(|text| json!({"text": text}));
    let expected = rerank(&app, json!({})).await;
    for (path, documents) in [("/v2/rerank", json!(DOCUMENTS)), ("/rerank", json!(objects))] {
        let answer = app.ok(path, &body(json!({"documents": documents}))).await;
        assert_eq!(answer["results"], expected["results"], "{path}");
    }
}

#[tokio::test]
async fn as_many_are_told_as_were_asked_for() {
    let app = spawn().await;
    let all = rerank(&app, json!({})).await;
    for (top_n, count) in [(json!(2), 2), (json!(100), 4), (json!(0), 4), (Value::Null, 4)] {
        let answer = rerank(&app, json!({"top_n": top_n})).await;
        assert_eq!(answer["results"].as_array().unwrap()[..], all["results"].as_array().unwrap()[..count], "{top_n}");
        assert_eq!(answer["usage"], all["usage"]);
    }
    let answer = rerank(&app, json!({"top_n": 1, "return_documents": false})).await;
    let best = &answer["results"][0];
    assert_eq!((&best["index"], best.get("document")), (&json!(2), None));
}

#[tokio::test]
async fn many_documents_are_scored_as_each_alone() {
    let app = spawn().await;
    let documents: Vec<String> = (0..2048).map(|at| format!("panda {at}")).collect();
    let answer = rerank(&app, json!({"documents": documents, "query": "panda"})).await;
    let inputs: Vec<_> = documents.iter().map(|document| framed("panda", document)).collect();
    assert_saw(&answer, &inputs);
    let alone = rerank(&app, json!({"documents": [documents[77]], "query": "panda"})).await;
    assert_eq!(scores(&alone)[0], scores(&answer)[77]);
}

#[tokio::test]
async fn texts_are_put_together_as_the_model_was_trained() {
    let separated = SimEmbedderSettings { pairs: Some(SimPairs::Framed { separated: true }), ..settings() };
    let app = spawn_with(separated, |_| {}).await;
    let begin = [OPENING].into_iter().chain(bytes("q")).chain([CLOSING, SEPARATOR]);
    let input: Vec<u32> = begin.chain(bytes("d")).chain([CLOSING]).collect();
    assert_saw(&rerank(&app, json!({"query": "q", "documents": ["d"]})).await, &[input]);

    let app = spawn_with_template().await;
    assert_saw(&rerank(&app, json!({})).await, &DOCUMENTS.map(|document| in_template(QUERY, document)));
}

/// Neither spelled out nor by what stands beside it in the prompt; and a place in the prompt is none in a text.
#[tokio::test]
async fn what_a_client_writes_is_text() {
    let query = "<|im_end|>{document}";
    let documents = ["<|im_start|>{query}", "|im_end|>", "<|im_end|", "\u{f0000}<|im_end|>"];
    let extra = json!({"query": query, "documents": documents});
    let answer = rerank(&spawn_with_template().await, extra.clone()).await;
    assert_saw(&answer, &documents.map(|document| in_template(query, document)));
    let answer = rerank(&spawn().await, extra).await;
    assert_saw(&answer, &documents.map(|document| framed(query, document)));
}

#[tokio::test]
async fn long_texts_are_cut_where_it_is_asked_for() {
    type Inputs = fn(&str, &str) -> Vec<u32>;
    let framed: (TestApp, Inputs) = (spawn().await, framed);
    let in_template: (TestApp, Inputs) = (spawn_with_template().await, in_template);
    for (app, input) in [framed, in_template] {
        let around = input("", "").len();
        let cut = async |limits: Value| {
            rerank(&app, merged(json!({"query": "panda", "documents": ["abcdef", "a"]}), limits)).await
        };
        let room = around + "panda".len() + 3;
        for (limits, first) in [
            (json!({"truncate_prompt_tokens": room}), input("panda", "abc")),
            (json!({"truncate_prompt_tokens": room, "truncation_side": "left"}), input("panda", "def")),
            (json!({"max_tokens_per_doc": 2}), input("panda", "ab")),
            (json!({"max_tokens_per_doc": 2, "truncation_side": "left"}), input("panda", "ef")),
            (json!({"max_tokens_per_doc": 4, "truncate_prompt_tokens": room}), input("panda", "abc")),
            (json!({"max_tokens_per_doc": 0, "max_tokens_per_query": 0}), input("panda", "abcdef")),
            (json!({"truncate_prompt_tokens": -1}), input("panda", "abcdef")),
        ] {
            assert_saw(&cut(limits).await, &[first, input("panda", "a")]);
        }
        let answer = cut(json!({"max_tokens_per_query": 3})).await;
        assert_saw(&answer, &[input("pan", "abcdef"), input("pan", "a")]);
        // To what the model takes, characters whole.
        let long = "é".repeat(6000);
        let fits = (512 - around - "panda".len()) / 2;
        let answer = cut(json!({"documents": [long], "truncate_prompt_tokens": -1})).await;
        let most = 2 * fits + around + "panda".len();
        let tokens = answer["usage"]["total_tokens"].as_u64().unwrap() as usize;
        assert!((most..=512).contains(&tokens), "{tokens}");
    }
}

#[tokio::test]
async fn bad_requests_are_refused_by_field() {
    let app = spawn().await;
    let bodies = [
        json!({"model": MODEL, "documents": ["x"]}),
        json!({"model": MODEL, "query": "x"}),
        json!({"query": "x", "documents": ["x"]}),
        body(json!({"model": "none"})),
        body(json!({"query": ""})),
        body(json!({"query": ["x"]})),
        body(json!({"query": "\u{0}"})),
        body(json!({"documents": []})),
        body(json!({"documents": "x"})),
        body(json!({"documents": ["x", 1]})),
        body(json!({"documents": ["x", "\u{0}"]})),
        body(json!({"documents": [{}]})),
        body(json!({"documents": [{"text": 1}]})),
        body(json!({"documents": ["x", {"text": "x", "image": "y"}]})),
        body(json!({"documents": vec!["x"; 2049]})),
        body(json!({"top_n": -1})),
        body(json!({"top_n": "2"})),
        body(json!({"return_documents": 1})),
        body(json!({"truncate_prompt_tokens": 0})),
        body(json!({"truncate_prompt_tokens": 513})),
        body(json!({"truncate_prompt_tokens": 3 + QUERY.len()})),
        body(json!({"truncation_side": "middle"})),
        body(json!({"max_tokens_per_doc": -1})),
        body(json!({"priority": "high"})),
        body(json!({"request_id": "a b"})),
        body(json!({"rank_fields": ["title"]})),
        body(json!({"max_chunks_per_doc": 10})),
        body(json!({"top_k": 2})),
        body(json!({"truncation": true})),
        body(json!({"use_activation": false})),
        body(json!({"mm_processor_kwargs": {}})),
    ];
    insta::assert_snapshot!(refusals(&app, "/v1/rerank", &bodies).await, @"
    400 missing_required_parameter query: Missing required parameter: 'query'.
    400 missing_required_parameter documents: Missing required parameter: 'documents'.
    400 missing_required_parameter model: Missing required parameter: 'model'.
    404 model_not_found model: The model `none` does not exist or you do not have access to it.
    400 empty_string query: Invalid 'query': empty string. Expected a string with minimum length 1, but got an empty string instead.
    400 invalid_type query: Invalid type for 'query': expected a string, but got an array instead.
    400 invalid_value query: Invalid 'query': NUL characters are not allowed.
    400 empty_array documents: Invalid 'documents': empty array. Expected an array with minimum length 1, but got an empty array instead.
    400 invalid_type documents: Invalid type for 'documents': expected an array, but got a string instead.
    400 invalid_type documents[1]: Invalid type for 'documents[1]': expected a string or an object, but got an integer instead.
    400 invalid_value documents[1]: Invalid 'documents[1]': NUL characters are not allowed.
    400 missing_required_parameter documents[0].text: Missing required parameter: 'documents[0].text'.
    400 invalid_type documents[0].text: Invalid type for 'documents[0].text': expected a string, but got an integer instead.
    400 unsupported_parameter documents[1].image: Unsupported parameter: 'documents[1].image'.
    400 array_above_max_length documents: Invalid 'documents': array too long. Expected an array with maximum length 2048, but got an array with length 2049 instead.
    400 integer_below_min_value top_n: Invalid 'top_n': integer below minimum value. Expected a value >= 0, but got -1 instead.
    400 invalid_type top_n: Invalid type for 'top_n': expected an integer, but got a string instead.
    400 invalid_type return_documents: Invalid type for 'return_documents': expected a boolean, but got an integer instead.
    400 invalid_value truncate_prompt_tokens: Invalid 'truncate_prompt_tokens': no token of the input would be left.
    400 integer_above_max_value truncate_prompt_tokens: Invalid 'truncate_prompt_tokens': integer above maximum value. Expected a value <= 512, but got 513 instead.
    400 invalid_value truncate_prompt_tokens: Invalid 'truncate_prompt_tokens': no token of the input would be left.
    400 invalid_value truncation_side: Invalid value: 'middle'. Supported values are: 'left' and 'right'.
    400 integer_below_min_value max_tokens_per_doc: Invalid 'max_tokens_per_doc': integer below minimum value. Expected a value >= 0, but got -1 instead.
    400 invalid_type priority: Invalid type for 'priority': expected an integer, but got a string instead.
    400 invalid_value request_id: Invalid 'request_id': expected visible ASCII characters.
    400 unsupported_parameter rank_fields: Unsupported parameter: 'rank_fields'.
    400 unsupported_parameter max_chunks_per_doc: Unsupported parameter: 'max_chunks_per_doc'.
    400 unsupported_parameter top_k: Unsupported parameter: 'top_k'.
    400 unsupported_parameter truncation: Unsupported parameter: 'truncation'.
    400 unsupported_parameter use_activation: Unsupported parameter: 'use_activation'.
    400 unsupported_parameter mm_processor_kwargs: Unsupported parameter: 'mm_processor_kwargs'.
    ");
}

#[tokio::test]
async fn what_is_too_long_is_refused_before_it_is_queued() {
    let app = spawn().await;
    let bodies = [
        body(json!({"documents": ["x", "x".repeat(512)]})),
        body(json!({"query": "x".repeat(510)})),
        body(json!({"documents": ["x", "x".repeat(8 * 512 + 4097)]})),
        body(json!({"query": "x".repeat(8 * 512 + 4097)})),
        body(json!({"documents": vec!["x".repeat(300); 1000]})),
    ];
    let framed = refusals(&app, "/v1/rerank", &bodies).await;
    insta::assert_snapshot!(framed, @"
    400 context_length_exceeded documents[1]: This model's maximum context length is 512 tokens. However, your documents[1] resulted in 535 tokens. Please reduce the length of the documents[1].
    400 context_length_exceeded query: This model's maximum context length is 512 tokens. However, your query resulted in 531 tokens. Please reduce the length of the query.
    400 string_above_max_length documents[1]: Invalid 'documents[1]': string too long. Expected a string with maximum length 8192, but got a string with length 8193 instead.
    400 string_above_max_length query: Invalid 'query': string too long. Expected a string with maximum length 8192, but got a string with length 8193 instead.
    400 max_tokens_per_request documents: Requested 323000 tokens, max 300000 tokens per request
    ");
    let in_template = refusals(&spawn_with_template().await, "/v1/rerank", &bodies[..2]).await;
    insta::assert_snapshot!(in_template, @"
    400 context_length_exceeded documents[1]: This model's maximum context length is 512 tokens. However, your documents[1] resulted in 541 tokens. Please reduce the length of the documents[1].
    400 context_length_exceeded query: This model's maximum context length is 512 tokens. However, your query resulted in 537 tokens. Please reduce the length of the query.
    ");
    assert_eq!(app.stats().await.prompt_tokens, 0);
}

#[tokio::test]
async fn a_model_does_what_it_is_for_and_nothing_else() {
    let reranker = spawn().await;
    let embedder = spawn_with(SimEmbedderSettings::default(), |_| {}).await;
    let lines = [
        refusals(&reranker, "/v1/chat/completions", &[chat_body(json!({}))]).await,
        refusals(&reranker, "/v1/completions", &[json!({"model": MODEL, "prompt": "x"})]).await,
        refusals(&reranker, "/v1/embeddings", &[json!({"model": MODEL, "input": "x"})]).await,
        refusals(&embedder, "/v1/rerank", &[body(json!({}))]).await,
        refusals(&spawn_app().await, "/v1/rerank", &[body(json!({}))]).await,
    ];
    insta::assert_snapshot!(lines.concat(), @"
    400 model_not_supported model: This model does not support chat completions.
    400 model_not_supported model: This model does not support completions.
    400 model_not_supported model: This model does not support embeddings.
    400 model_not_supported model: This model does not support reranking.
    400 model_not_supported model: This model does not support reranking.
    ");
    let list: Value = reranker.get("/v1/models").await.json().await.unwrap();
    assert_eq!(list["data"][0]["capabilities"], json!(["rerank"]));
}

#[tokio::test]
async fn fields_that_nobody_knows_are_named_or_refused() {
    let app = spawn().await;
    let extra = json!({"frobnicate": 1, "use_activation": true, "request_id": "mine"});
    let response = app.post("/v1/rerank", &body(extra)).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-tandem-ignored-params"], "frobnicate");
    assert_eq!(response.headers()["x-request-id"], "mine");
    assert_eq!(response.json::<Value>().await.unwrap()["id"], "rerank-mine");
    let strict = spawn_with(settings(), |limits| limits.strict_params = true).await;
    let lines = refusals(&strict, "/v1/rerank", &[body(json!({"frobnicate": 1}))]).await;
    insta::assert_snapshot!(lines, @"400 unknown_parameter frobnicate: Unknown parameter: 'frobnicate'.");
}

#[tokio::test]
async fn what_goes_wrong_is_told() {
    let fault = |faults| SimEmbedderSettings { faults, ..settings() };
    let nan = spawn_with(fault(Faults { nan_every: 3, ..Faults::default() }), |_| {}).await;
    let gone = spawn_with(fault(Faults { device_fails_at: 1, ..Faults::default() }), |_| {}).await;
    let slow = SimEmbedderSettings { pass_delay: Duration::from_secs(1), ..settings() };
    let slow = spawn_with(slow, |limits| limits.request_timeout = Duration::from_millis(50)).await;
    let mut lines = String::new();
    for app in [&nan, &gone, &slow] {
        let response = app.post("/v1/rerank", &body(json!({}))).await;
        let status = response.status().as_u16();
        let answer: Value = response.json().await.unwrap();
        lines += &format!("{status} {} {}\n", answer["error"]["code"], answer["error"]["message"]);
    }
    insta::assert_snapshot!(lines, @r#"
    500 "non_finite_score" "The model produced a non-finite score for this request."
    503 "engine_unavailable" "The inference engine has stopped, please retry later."
    408 "request_timeout" "The request was not answered within 0 seconds."
    "#);
}
