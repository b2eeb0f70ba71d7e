use std::time::Duration;

use serde_json::{Value, json};
use tandem::settings::LimitSettings;
use tandem_core::Matryoshka;
use tandem_sim::{Faults, SimEmbedderSettings, vector};

use crate::errors::refusals;
use crate::helpers::{MODEL, Setup, TestApp, chat_body, merged, spawn_app, spawn_embedder};

async fn spawn() -> TestApp {
    spawn_with(SimEmbedderSettings::default(), |_| {}).await
}

async fn spawn_with(settings: SimEmbedderSettings, change: impl FnOnce(&mut LimitSettings)) -> TestApp {
    let mut limits = Setup::default().limits;
    change(&mut limits);
    spawn_embedder(settings, limits).await
}

fn body(extra: Value) -> Value {
    merged(json!({"model": MODEL, "input": "hello"}), extra)
}

async fn embed(app: &TestApp, extra: Value) -> Value {
    app.ok("/v1/embeddings", &body(extra)).await
}

fn numbers(answer: &Value, index: usize) -> Vec<f32> {
    let numbers = answer["data"][index]["embedding"].as_array().unwrap();
    numbers.iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

/// What the simulated model makes of these tokens, with length 1.
fn expected(tokens: &[u32]) -> Vec<f32> {
    let vector: Vec<f32> = vector(tokens, 16).collect();
    let length = vector.iter().map(|number| number * number).sum::<f32>().sqrt();
    vector.iter().map(|number| number / length).collect()
}

/// A text between the tokens that this model wants around one.
fn framed(text: &str) -> Vec<u32> {
    [257].into_iter().chain(text.bytes().map(u32::from)).chain([258]).collect()
}

fn assert_near(got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    let near = std::iter::zip(got, expected).all(|(a, b)| (a - b).abs() < 1e-6);
    assert!(near, "{got:?} is not {expected:?}");
}

#[tokio::test]
async fn embeddings_have_openai_s_shape() {
    let app = spawn().await;
    let answer = embed(&app, json!({"input": ["hello", "you"], "user": "somebody"})).await;
    insta::assert_json_snapshot!(answer, {".data[].embedding" => "[embedding]"}, @r#"
    {
      "object": "list",
      "data": [
        {
          "object": "embedding",
          "index": 0,
          "embedding": "[embedding]"
        },
        {
          "object": "embedding",
          "index": 1,
          "embedding": "[embedding]"
        }
      ],
      "model": "org/sim",
      "usage": {
        "prompt_tokens": 12,
        "total_tokens": 12
      }
    }
    "#);
    assert_near(&numbers(&answer, 0), &expected(&framed("hello")));
    assert_near(&numbers(&answer, 1), &expected(&framed("you")));
}

#[tokio::test]
async fn inputs_come_in_four_forms() {
    let app = spawn().await;
    let ids = framed("hello");
    for input in [json!("hello"), json!(["hello"]), json!(ids), json!([ids])] {
        let answer = embed(&app, json!({"input": input})).await;
        assert_eq!(answer["usage"], json!({"prompt_tokens": 7, "total_tokens": 7}), "{input}");
        assert_near(&numbers(&answer, 0), &expected(&ids));
    }
    let many: Vec<String> = (0..2048).map(|at| format!("text {at}")).collect();
    let answer = embed(&app, json!({"input": many})).await;
    assert_eq!(answer["data"].as_array().unwrap().len(), 2048);
    assert_eq!(answer["data"][2047]["index"], 2047);
    assert_near(&numbers(&answer, 2047), &expected(&framed("text 2047")));
}

#[tokio::test]
async fn base64_holds_the_same_numbers() {
    let app = spawn().await;
    let floats = embed(&app, json!({"encoding_format": "float"})).await;
    let answer = embed(&app, json!({"encoding_format": "base64"})).await;
    let text = answer["data"][0]["embedding"].as_str().unwrap();
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = text.trim_end_matches('=').chars().map(|digit| ALPHABET.find(digit).unwrap());
    let bits: Vec<bool> = bits.flat_map(|digit| (0..6).rev().map(move |bit| digit >> bit & 1 == 1)).collect();
    let bytes: Vec<u8> =
        bits.chunks_exact(8).map(|bits| bits.iter().fold(0, |n, bit| n << 1 | u8::from(*bit))).collect();
    let decoded: Vec<f32> = bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
    assert_eq!(decoded, numbers(&floats, 0));
}

#[tokio::test]
async fn vectors_have_length_one_unless_that_is_not_wanted() {
    let app = spawn().await;
    let plain = embed(&app, json!({"normalize": false})).await;
    assert_near(&numbers(&plain, 0), &vector(&framed("hello"), 16).collect::<Vec<_>>());
    // The model's own size is no wish.
    embed(&app, json!({"dimensions": 16})).await;
}

#[tokio::test]
async fn special_tokens_can_be_left_out() {
    let app = spawn().await;
    let answer = embed(&app, json!({"add_special_tokens": false})).await;
    assert_eq!(answer["usage"]["prompt_tokens"], 5);
    assert_near(&numbers(&answer, 0), &expected(&framed("hello")[1..6]));
}

#[tokio::test]
async fn long_inputs_are_cut_where_that_is_asked_for() {
    let app = spawn().await;
    let long = "x".repeat(100_000);
    for (extra, tokens) in [
        (json!({"truncate_prompt_tokens": 5}), framed("hel")),
        (json!({"truncate_prompt_tokens": 5, "truncation_side": "right"}), framed("hel")),
        (json!({"truncate_prompt_tokens": 5, "truncation_side": "left"}), framed("llo")),
        (json!({"truncate_prompt_tokens": 7}), framed("hello")),
        (json!({"truncate_prompt_tokens": 3, "add_special_tokens": false}), framed("hel")[1..4].to_vec()),
        (json!({"truncate_prompt_tokens": 2, "input": [1, 2, 3]}), vec![1, 2]),
        (json!({"truncate_prompt_tokens": 2, "input": [[1, 2, 3]], "truncation_side": "left"}), vec![2, 3]),
        (json!({"truncate_prompt_tokens": -1, "input": long}), framed(&"x".repeat(510))),
    ] {
        let answer = embed(&app, extra.clone()).await;
        assert_eq!(answer["usage"]["prompt_tokens"], tokens.len(), "{extra}");
        assert_near(&numbers(&answer, 0), &expected(&tokens));
    }
}

#[tokio::test]
async fn requests_are_checked() {
    let app = spawn().await;
    let bodies = [
        json!({"model": MODEL}),
        json!({"input": "x"}),
        json!({"input": "x", "model": "none"}),
        body(json!({"input": ""})),
        body(json!({"input": []})),
        body(json!({"input": [[]]})),
        body(json!({"input": ["a", ""]})),
        body(json!({"input": ["a", 5]})),
        body(json!({"input": [5, "a"]})),
        body(json!({"input": [5, -1]})),
        body(json!({"input": [[5, 259]]})),
        body(json!({"input": {"text": "x"}})),
        body(json!({"input": "a\u{0}b"})),
        body(json!({"input": vec!["x"; 2049]})),
        body(json!({"encoding_format": "int8"})),
        body(json!({"encoding_format": 8})),
        body(json!({"dimensions": 8})),
        body(json!({"dimensions": 0})),
        body(json!({"dimensions": "8"})),
        body(json!({"truncate_prompt_tokens": -2})),
        body(json!({"truncate_prompt_tokens": 0})),
        body(json!({"truncate_prompt_tokens": 2})),
        body(json!({"truncate_prompt_tokens": 513})),
        body(json!({"truncation_side": "middle"})),
        body(json!({"normalize": 1})),
        body(json!({"priority": "high"})),
        body(json!({"messages": [{"role": "user", "content": "x"}]})),
        body(json!({"embed_dtype": "float16"})),
        body(json!({"stream": true})),
        body(json!({"metadata": {"a": 1}})),
    ];
    insta::assert_snapshot!(refusals(&app, "/v1/embeddings", &bodies).await, @"
    400 missing_required_parameter input: Missing required parameter: 'input'.
    400 missing_required_parameter model: Missing required parameter: 'model'.
    404 model_not_found model: The model `none` does not exist or you do not have access to it.
    400 invalid_value input: Invalid 'input': the input must not be empty.
    400 invalid_value input: Invalid 'input': the input must not be empty.
    400 invalid_value input[0]: Invalid 'input[0]': the input must not be empty.
    400 invalid_value input[1]: Invalid 'input[1]': the input must not be empty.
    400 invalid_type input[1]: Invalid type for 'input[1]': expected a string, but got an integer instead.
    400 invalid_value input[1]: Invalid 'input[1]': expected a token id.
    400 invalid_value input[1]: Invalid 'input[1]': expected a token id.
    400 invalid_value input[0][1]: Invalid 'input[0][1]': 259 is not a token of this model.
    400 invalid_type input: Invalid type for 'input': expected a string or an array, but got an object instead.
    400 invalid_value input: Invalid 'input': NUL characters are not allowed.
    400 array_above_max_length input: Invalid 'input': array too long. Expected an array with maximum length 2048, but got an array with length 2049 instead.
    400 invalid_value encoding_format: Invalid value: 'int8'. Supported values are: 'float' and 'base64'.
    400 invalid_type encoding_format: Invalid type for 'encoding_format': expected a string, but got an integer instead.
    400 unsupported_value dimensions: This model does not support specifying dimensions.
    400 integer_below_min_value dimensions: Invalid 'dimensions': integer below minimum value. Expected a value >= 1, but got 0 instead.
    400 invalid_type dimensions: Invalid type for 'dimensions': expected an integer, but got a string instead.
    400 integer_below_min_value truncate_prompt_tokens: Invalid 'truncate_prompt_tokens': integer below minimum value. Expected a value >= -1, but got -2 instead.
    400 invalid_value truncate_prompt_tokens: Invalid 'truncate_prompt_tokens': no token of the input would be left.
    400 invalid_value truncate_prompt_tokens: Invalid 'truncate_prompt_tokens': no token of the input would be left.
    400 integer_above_max_value truncate_prompt_tokens: Invalid 'truncate_prompt_tokens': integer above maximum value. Expected a value <= 512, but got 513 instead.
    400 invalid_value truncation_side: Invalid value: 'middle'. Supported values are: 'left' and 'right'.
    400 invalid_type normalize: Invalid type for 'normalize': expected a boolean, but got an integer instead.
    400 invalid_type priority: Invalid type for 'priority': expected an integer, but got a string instead.
    400 unsupported_parameter messages: Unsupported parameter: 'messages'.
    400 unsupported_parameter embed_dtype: Unsupported parameter: 'embed_dtype'.
    400 unsupported_parameter stream: Unsupported parameter: 'stream'.
    400 invalid_type metadata.a: Invalid type for 'metadata.a': expected a string, but got an integer instead.
    ");
}

#[tokio::test]
async fn what_is_too_long_is_refused_before_it_is_queued() {
    let app = spawn().await;
    let bodies = [
        body(json!({"input": "x".repeat(511)})),
        body(json!({"input": ["x", "x".repeat(8 * 512 + 4097)]})),
        body(json!({"input": [vec![5; 513]]})),
        body(json!({"input": vec!["x".repeat(300); 1000]})),
    ];
    insta::assert_snapshot!(refusals(&app, "/v1/embeddings", &bodies).await, @"
    400 context_length_exceeded input: This model's maximum context length is 512 tokens. However, your input resulted in 513 tokens. Please reduce the length of the input.
    400 string_above_max_length input[1]: Invalid 'input[1]': string too long. Expected a string with maximum length 8192, but got a string with length 8193 instead.
    400 context_length_exceeded input[0]: This model's maximum context length is 512 tokens. However, your input[0] resulted in 513 tokens. Please reduce the length of the input[0].
    400 max_tokens_per_request input: Requested 302000 tokens, max 300000 tokens per request
    ");
    assert_eq!(app.stats().await.prompt_tokens, 0);
}

#[tokio::test]
async fn a_model_does_what_it_is_for_and_nothing_else() {
    let embedder = spawn().await;
    let lines = [
        refusals(&embedder, "/v1/chat/completions", &[chat_body(json!({}))]).await,
        refusals(&embedder, "/v1/completions", &[json!({"model": MODEL, "prompt": "x"})]).await,
        refusals(&embedder, "/tokenize", &[chat_body(json!({}))]).await,
        refusals(&spawn_app().await, "/v1/embeddings", &[body(json!({}))]).await,
    ];
    insta::assert_snapshot!(lines.concat(), @"
    400 model_not_supported model: This model does not support chat completions.
    400 model_not_supported model: This model does not support completions.
    400 model_not_supported model: This model does not support chat completions.
    400 model_not_supported model: This model does not support embeddings.
    ");
}

#[tokio::test]
async fn an_embedding_model_is_listed_and_tokenizes() {
    let app = spawn().await;
    let list: Value = app.get("/v1/models").await.json().await.unwrap();
    assert_eq!((&list["data"][0]["id"], &list["data"][0]["max_model_len"]), (&json!(MODEL), &json!(512)));
    let tokens = app.ok("/tokenize", &json!({"model": MODEL, "prompt": "hi"})).await;
    assert_eq!(tokens, json!({"count": 4, "max_model_len": 512, "tokens": [257, 104, 105, 258], "token_strs": null}));
    let plain = app.ok("/tokenize", &json!({"model": MODEL, "prompt": "hi", "add_special_tokens": false})).await;
    assert_eq!(plain["tokens"], json!([104, 105]));
    let text = app.ok("/detokenize", &json!({"model": MODEL, "tokens": [104, 105]})).await;
    assert_eq!(text, json!({"prompt": "hi"}));
}

/// The beginning of the vector, brought to length 1 anew.
#[tokio::test]
async fn vectors_are_cut_where_the_model_was_trained_for_it() {
    let sizes = Matryoshka::Sizes(vec![4, 8]);
    let app = spawn_with(SimEmbedderSettings { matryoshka: sizes, ..SimEmbedderSettings::default() }, |_| {}).await;
    let vector = async |extra: Value| -> Vec<f64> {
        let answer = app.ok("/v1/embeddings", &body(extra)).await;
        serde_json::from_value(answer["data"][0]["embedding"].clone()).unwrap()
    };
    let whole = vector(json!({"normalize": false})).await;
    let cut = vector(json!({"normalize": false, "dimensions": 4})).await;
    assert_eq!(cut, whole[..4]);
    let unit = vector(json!({"dimensions": 8})).await;
    assert!((unit.iter().map(|number| number * number).sum::<f64>() - 1.0).abs() < 1e-5, "{unit:?}");
    assert!((unit[0] / unit[7] - whole[0] / whole[7]).abs() < 1e-4);
    assert_eq!(vector(json!({"dimensions": 16})).await.len(), 16);
    let lines =
        refusals(&app, "/v1/embeddings", &[body(json!({"dimensions": 5})), body(json!({"dimensions": 17}))]).await;
    insta::assert_snapshot!(lines, @"
    400 invalid_value dimensions: Invalid 'dimensions': this model has vectors of 4, 8 or 16 numbers.
    400 invalid_value dimensions: Invalid 'dimensions': this model has vectors of 4, 8 or 16 numbers.
    ");
}

#[tokio::test]
async fn fields_that_nobody_knows_are_named_or_refused() {
    let app = spawn().await;
    let response =
        app.post("/v1/embeddings", &body(json!({"frobnicate": 1, "embed_dtype": "float32", "stream": false}))).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-tandem-ignored-params"], "frobnicate");
    let strict = spawn_with(SimEmbedderSettings::default(), |limits| limits.strict_params = true).await;
    let lines = refusals(&strict, "/v1/embeddings", &[body(json!({"frobnicate": 1}))]).await;
    insta::assert_snapshot!(lines, @"400 unknown_parameter frobnicate: Unknown parameter: 'frobnicate'.");
}

#[tokio::test]
async fn what_goes_wrong_is_told() {
    let fault = |faults| SimEmbedderSettings { faults, ..SimEmbedderSettings::default() };
    let nan = spawn_with(fault(Faults { nan_every: 1, ..Faults::default() }), |_| {}).await;
    let gone = spawn_with(fault(Faults { device_fails_at: 1, ..Faults::default() }), |_| {}).await;
    let slow = SimEmbedderSettings { pass_delay: Duration::from_secs(1), ..SimEmbedderSettings::default() };
    let slow = spawn_with(slow, |limits| limits.request_timeout = Duration::from_millis(50)).await;
    let mut lines = String::new();
    for app in [&nan, &gone, &slow] {
        let response = app.post("/v1/embeddings", &body(json!({}))).await;
        let status = response.status().as_u16();
        let answer: Value = response.json().await.unwrap();
        lines += &format!("{status} {} {}\n", answer["error"]["code"], answer["error"]["message"]);
    }
    insta::assert_snapshot!(lines, @r#"
    500 "non_finite_embedding" "The model produced a non-finite embedding for this request."
    503 "engine_unavailable" "The inference engine has stopped, please retry later."
    408 "request_timeout" "The request was not answered within 0 seconds."
    "#);
    // Its engine is followed by another.
    assert_eq!(slow.get("/health").await.status(), 200);
}
