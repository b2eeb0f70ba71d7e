use std::fmt::Write as _;

use reqwest::Method;
use serde_json::{Value, json};

use crate::helpers::{MODEL, Setup, TestApp, chat_body, merged, spawn, spawn_app};

/// Status, code, parameter and message of each answer, one line each.
pub(crate) async fn refusals(app: &TestApp, path: &str, bodies: &[Value]) -> String {
    let mut lines = String::new();
    for body in bodies {
        let response = app.post(path, body).await;
        let status = response.status().as_u16();
        let retry = response.headers().get("x-should-retry").map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(retry.as_deref(), (400..500).contains(&status).then_some("false"), "{body}");
        let answer: Value = response.json().await.unwrap();
        let error = &answer["error"];
        let text = |name: &str| error[name].as_str().unwrap_or("-").to_owned();
        let (code, param, message) = (text("code"), text("param"), text("message"));
        writeln!(lines, "{status} {code} {param}: {message}").unwrap();
    }
    lines
}

async fn chat_refusals(extras: &[Value]) -> String {
    let app = spawn_app().await;
    let bodies: Vec<Value> = extras.iter().map(|extra| chat_body(extra.clone())).collect();
    refusals(&app, "/v1/chat/completions", &bodies).await
}

#[tokio::test]
async fn messages_are_checked_one_by_one() {
    let one = |message: Value| json!({"messages": [message]});
    let lines = chat_refusals(&[
        json!({"messages": null}),
        json!({"messages": "hi"}),
        json!({"messages": []}),
        one(json!("hi")),
        one(json!({"content": "x"})),
        one(json!({"role": "root", "content": "x"})),
        one(json!({"role": "user"})),
        one(json!({"role": "user", "content": null})),
        one(json!({"role": "user", "content": 5})),
        one(json!({"role": "user", "content": [{"type": "exe", "text": "x"}]})),
        one(json!({"role": "user", "content": "a\u{0}b"})),
        one(json!({"role": "tool", "content": "x"})),
        one(json!({"role": "tool", "content": "x", "tool_call_id": "none"})),
        json!({"messages": vec![json!({"role": "user", "content": "x"}); 2049]}),
    ])
    .await;
    insta::assert_snapshot!(lines, @"
    400 missing_required_parameter messages: Missing required parameter: 'messages'.
    400 invalid_type messages: Invalid type for 'messages': expected an array, but got a string instead.
    400 empty_array messages: Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.
    400 invalid_type messages[0]: Invalid type for 'messages[0]': expected an object, but got a string instead.
    400 missing_required_parameter messages[0].role: Missing required parameter: 'messages[0].role'.
    400 invalid_value messages[0].role: Invalid value: 'root'. Supported values are: 'system', 'developer', 'user', 'assistant', and 'tool'.
    400 missing_required_parameter messages[0].content: Missing required parameter: 'messages[0].content'.
    400 invalid_value messages[0].content: Invalid value for 'messages[0].content': expected a string, got null.
    400 invalid_type messages[0].content: Invalid type for 'messages[0].content': expected a string or an array, but got an integer instead.
    400 invalid_value messages[0].content[0].type: Invalid value: 'exe'. Supported values are: 'text'.
    400 invalid_value messages[0].content: Invalid 'messages[0].content': NUL characters are not allowed.
    400 invalid_value messages[0].tool_call_id: Invalid 'messages[0].tool_call_id': a message of role 'tool' needs the id of the call that it answers.
    400 invalid_value messages[0].tool_call_id: Invalid 'messages[0].tool_call_id': it does not answer a tool call of an earlier message.
    400 array_above_max_length messages: Invalid 'messages': array too long. Expected an array with maximum length 2048, but got an array with length 2049 instead.
    ");
}

#[tokio::test]
async fn parameters_are_refused_with_openai_s_codes() {
    let lines = chat_refusals(&[
        json!({"model": null}),
        json!({"model": 5}),
        json!({"model": "../../etc/passwd"}),
        json!({"n": 0}),
        json!({"n": 9}),
        json!({"n": 1.0}),
        json!({"temperature": -0.1}),
        json!({"temperature": 2.5}),
        json!({"temperature": "hot"}),
        json!({"top_k": -2}),
        json!({"repetition_penalty": 0}),
        json!({"max_tokens": 0}),
        json!({"max_tokens": 4294967296u64}),
        json!({"min_tokens": 13}),
        json!({"seed": 9223372036854775808u64}),
        json!({"stop": ["a", "b", "c", "d", "e"]}),
        json!({"stop": ""}),
        json!({"stop": "x".repeat(257)}),
        json!({"stop": 5}),
        json!({"logit_bias": {"abc": 1}}),
        json!({"logit_bias": {"259": 1}}),
        json!({"logit_bias": {"5": 101}}),
        json!({"stop_token_ids": [1, 259]}),
        json!({"typical_p": 1.1}),
        json!({"typical_p": "usual"}),
        json!({"allowed_token_ids": []}),
        json!({"allowed_token_ids": [97, 98, 97, 259]}),
        json!({"allowed_token_ids": [97, -1]}),
        json!({"allowed_token_ids": vec![97; 1025]}),
        json!({"allowed_token_ids": 97}),
        json!({"bad_words": ["x", ""]}),
        json!({"bad_words": ["x".repeat(257)]}),
        json!({"bad_words": [5]}),
        json!({"bad_words": ["a\0b"]}),
        json!({"bad_words": vec!["x"; 129]}),
        json!({"bad_words": "x"}),
        json!({"cache_salt": ""}),
        json!({"cache_salt": "a@b"}),
        json!({"cache_salt": 5}),
        json!({"cache_salt": "x".repeat(129)}),
        json!({"top_logprobs": 2}),
        json!({"logprobs": true, "top_logprobs": 21}),
        json!({"stream_options": {"include_usage": true}}),
        json!({"metadata": {"tags": []}}),
    ])
    .await;
    insta::assert_snapshot!(lines, @"
    400 missing_required_parameter model: Missing required parameter: 'model'.
    400 invalid_type model: Invalid type for 'model': expected a string, but got an integer instead.
    404 model_not_found model: The model `../../etc/passwd` does not exist or you do not have access to it.
    400 integer_below_min_value n: Invalid 'n': integer below minimum value. Expected a value >= 1, but got 0 instead.
    400 integer_above_max_value n: Invalid 'n': integer above maximum value. Expected a value <= 8, but got 9 instead.
    400 invalid_type n: Invalid type for 'n': expected an integer, but got a decimal number instead.
    400 decimal_below_min_value temperature: Invalid 'temperature': decimal below minimum value. Expected a value >= 0, but got -0.1 instead.
    400 decimal_above_max_value temperature: Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 2.5 instead.
    400 invalid_type temperature: Invalid type for 'temperature': expected a decimal, but got a string instead.
    400 integer_below_min_value top_k: Invalid 'top_k': integer below minimum value. Expected a value >= -1, but got -2 instead.
    400 decimal_below_min_value repetition_penalty: Invalid 'repetition_penalty': decimal below minimum value. Expected a value > 0, but got 0 instead.
    400 integer_below_min_value max_tokens: Invalid 'max_tokens': integer below minimum value. Expected a value >= 1, but got 0 instead.
    400 invalid_value max_tokens: This model's maximum context length is 4096 tokens. However, you requested 4294967319 tokens (24 in the messages, 4294967295 in the completion). Please reduce the length of the messages or completion.
    400 invalid_value min_tokens: Invalid 'min_tokens': it must not be greater than 'max_tokens', which is 12.
    400 invalid_type seed: Invalid type for 'seed': expected a 64-bit integer, but got an integer instead.
    400 array_above_max_length stop: Invalid 'stop': array too long. Expected an array with maximum length 4, but got an array with length 5 instead.
    400 empty_string stop: Invalid 'stop': empty string. Expected a string with minimum length 1, but got an empty string instead.
    400 string_above_max_length stop: Invalid 'stop': string too long. Expected a string with maximum length 256, but got a string with length 257 instead.
    400 invalid_type stop: Invalid type for 'stop': expected a string or an array of strings, but got an integer instead.
    400 invalid_value logit_bias.abc: Invalid key in 'logit_bias': 'abc' is not a token id.
    400 invalid_value logit_bias.259: Invalid 'logit_bias.259': 259 is not a token of this model.
    400 invalid_value logit_bias.5: Invalid 'logit_bias.5': expected a value between -100 and 100, but got 101 instead.
    400 invalid_value stop_token_ids[1]: Invalid 'stop_token_ids[1]': 259 is not a token of this model.
    400 decimal_above_max_value typical_p: Invalid 'typical_p': decimal above maximum value. Expected a value <= 1, but got 1.1 instead.
    400 invalid_type typical_p: Invalid type for 'typical_p': expected a decimal, but got a string instead.
    400 empty_array allowed_token_ids: Invalid 'allowed_token_ids': empty array. Expected an array with minimum length 1, but got an empty array instead.
    400 invalid_value allowed_token_ids[3]: Invalid 'allowed_token_ids[3]': 259 is not a token of this model.
    400 integer_below_min_value allowed_token_ids[1]: Invalid 'allowed_token_ids[1]': integer below minimum value. Expected a value >= 0, but got -1 instead.
    400 array_above_max_length allowed_token_ids: Invalid 'allowed_token_ids': array too long. Expected an array with maximum length 1024, but got an array with length 1025 instead.
    400 invalid_type allowed_token_ids: Invalid type for 'allowed_token_ids': expected an array, but got an integer instead.
    400 empty_string bad_words[1]: Invalid 'bad_words[1]': empty string. Expected a string with minimum length 1, but got an empty string instead.
    400 string_above_max_length bad_words[0]: Invalid 'bad_words[0]': string too long. Expected a string with maximum length 256, but got a string with length 257 instead.
    400 invalid_type bad_words[0]: Invalid type for 'bad_words[0]': expected a string, but got an integer instead.
    400 invalid_value bad_words[0]: Invalid 'bad_words[0]': NUL characters are not allowed.
    400 array_above_max_length bad_words: Invalid 'bad_words': array too long. Expected an array with maximum length 128, but got an array with length 129 instead.
    400 invalid_type bad_words: Invalid type for 'bad_words': expected an array, but got a string instead.
    400 empty_string cache_salt: Invalid 'cache_salt': empty string. Expected a string with minimum length 1, but got an empty string instead.
    400 invalid_value cache_salt: Invalid 'cache_salt': it must not contain '@', '/' or '\\'.
    400 invalid_type cache_salt: Invalid type for 'cache_salt': expected a string, but got an integer instead.
    400 string_above_max_length cache_salt: Invalid 'cache_salt': string too long. Expected a string with maximum length 128, but got a string with length 129 instead.
    400 invalid_value top_logprobs: Invalid 'top_logprobs': when using 'top_logprobs', 'logprobs' must be set to true.
    400 integer_above_max_value top_logprobs: Invalid 'top_logprobs': integer above maximum value. Expected a value <= 20, but got 21 instead.
    400 invalid_value stream_options: Invalid 'stream_options': it can only be used when 'stream' is true.
    400 invalid_type metadata.tags: Invalid type for 'metadata.tags': expected a string, but got an array instead.
    ");
}

#[tokio::test]
async fn what_is_not_honoured_is_refused_by_name() {
    let fields = [
        json!({"chat_template": "{{ x }}"}),
        json!({"chat_template_kwargs": {"tokenize": true}}),
        json!({"prompt_embeds": "x"}),
        json!({"best_of": 2}),
        json!({"guided_decoding_backend": "auto"}),
        json!({"store": true}),
    ];
    insta::assert_snapshot!(chat_refusals(&fields).await, @"
    400 unsupported_parameter chat_template: Unsupported parameter: 'chat_template'.
    400 unsupported_parameter chat_template_kwargs.tokenize: Unsupported parameter: 'chat_template_kwargs.tokenize'.
    400 unsupported_parameter prompt_embeds: Unsupported parameter: 'prompt_embeds'.
    400 unsupported_parameter best_of: Unsupported parameter: 'best_of'.
    400 unsupported_parameter guided_decoding_backend: Unsupported parameter: 'guided_decoding_backend'.
    400 unsupported_parameter store: Unsupported parameter: 'store'.
    ");
    let formats = [json!({"modalities": ["audio"]})];
    insta::assert_snapshot!(chat_refusals(&formats).await, @r#"
    400 unsupported_value modalities: Unsupported value: 'modalities' supports only ["text"] on this server.
    "#);
    let mut setup = Setup::default();
    setup.limits.strict_params = true;
    let strict = spawn(setup).await;
    let lines = refusals(&strict, "/v1/chat/completions", &[chat_body(json!({"frobnicate": 1}))]).await;
    insta::assert_snapshot!(lines, @"400 unknown_parameter frobnicate: Unknown parameter: 'frobnicate'.");
}

#[tokio::test]
async fn what_does_not_fit_the_context_is_refused_before_it_is_queued() {
    let message = |length: usize| json!({"messages": [{"role": "user", "content": "x".repeat(length)}]});
    let mut setup = Setup::default();
    setup.sim.context = 256;
    let app = spawn(setup).await;
    let bodies = [
        chat_body(message(300)),
        chat_body(json!({"max_tokens": 1000})),
        chat_body(json!({"max_completion_tokens": 1000})),
        chat_body(message(256 * 8 + 4097)),
    ];
    insta::assert_snapshot!(refusals(&app, "/v1/chat/completions", &bodies).await, @"
    400 context_length_exceeded messages: This model's maximum context length is 256 tokens. However, your messages resulted in 319 tokens. Please reduce the length of the messages.
    400 invalid_value max_tokens: This model's maximum context length is 256 tokens. However, you requested 1024 tokens (24 in the messages, 1000 in the completion). Please reduce the length of the messages or completion.
    400 invalid_value max_completion_tokens: This model's maximum context length is 256 tokens. However, you requested 1024 tokens (24 in the messages, 1000 in the completion). Please reduce the length of the messages or completion.
    400 string_above_max_length messages: Invalid 'messages': string too long. Expected a string with maximum length 6144, but got a string with length 6145 instead.
    ");
    assert_eq!(app.stats().await.prompt_tokens, 0);
    let filled = app.chat(json!({"max_tokens": null, "ignore_eos": true})).await;
    assert_eq!(filled["usage"]["total_tokens"], 256);
}

#[tokio::test]
async fn a_cache_smaller_than_the_context_is_the_context() {
    let mut setup = Setup::default();
    setup.sim.layout = tandem_sim::SimLayout::Blocks { count: 8, block_size: 16 };
    let app = spawn(setup).await;
    let filled = app.chat(json!({"max_tokens": null, "ignore_eos": true})).await;
    assert_eq!(filled["usage"]["total_tokens"], 128);
    let refused = refusals(&app, "/v1/chat/completions", &[chat_body(json!({"max_tokens": 120}))]).await;
    assert!(refused.starts_with("400 invalid_value max_tokens: This model's maximum context length is 128 tokens."));
}

#[tokio::test]
async fn prompts_are_checked() {
    let app = spawn_app().await;
    let of = |extra: Value| merged(json!({"model": MODEL, "prompt": "x"}), extra);
    let bodies = [
        json!({"model": MODEL}),
        of(json!({"prompt": ""})),
        of(json!({"prompt": []})),
        of(json!({"prompt": [[]]})),
        of(json!({"prompt": [5, -1]})),
        of(json!({"prompt": [[5, 259]]})),
        of(json!({"prompt": [1.5]})),
        of(json!({"prompt": ["a", 5]})),
        of(json!({"prompt": vec!["x"; 2049]})),
        of(json!({"logprobs": 6})),
        of(json!({"suffix": "x"})),
        of(json!({"best_of": 2})),
    ];
    insta::assert_snapshot!(refusals(&app, "/v1/completions", &bodies).await, @"
    400 missing_required_parameter prompt: Missing required parameter: 'prompt'.
    400 invalid_value prompt: Invalid 'prompt': the prompt must not be empty.
    400 invalid_value prompt: Invalid 'prompt': the prompt must not be empty.
    400 invalid_value prompt[0]: Invalid 'prompt[0]': the prompt must not be empty.
    400 invalid_value prompt[1]: Invalid 'prompt[1]': expected a token id.
    400 invalid_value prompt[0][1]: Invalid 'prompt[0][1]': 259 is not a token of this model.
    400 invalid_value prompt[0]: Invalid 'prompt[0]': expected a token id.
    400 invalid_type prompt[1]: Invalid type for 'prompt[1]': expected a string, but got an integer instead.
    400 array_above_max_length prompt: Invalid 'prompt': array too long. Expected an array with maximum length 2048, but got an array with length 2049 instead.
    400 integer_above_max_value logprobs: Invalid 'logprobs': integer above maximum value. Expected a value <= 5, but got 6 instead.
    400 unsupported_value suffix: Unsupported value: 'suffix' is not supported by this model.
    400 unsupported_parameter best_of: Unsupported parameter: 'best_of'.
    ");
}

/// Four may wait beside the two that the model runs: seven never fit, however long a client waits.
#[tokio::test]
async fn more_generations_than_the_queue_can_ever_hold_are_refused_for_good() {
    let mut setup = Setup::default();
    setup.engine.queue = 4;
    setup.sim.parallel = 2;
    setup.limits.max_n = 8;
    let app = spawn(setup).await;
    let text =
        |prompts: usize, n: usize| json!({"model": MODEL, "prompt": vec!["x"; prompts], "n": n, "max_tokens": 1});
    let lines = [
        refusals(&app, "/v1/chat/completions", &[chat_body(json!({"n": 7}))]).await,
        refusals(&app, "/v1/completions", &[text(1, 7), text(7, 1), text(4, 2)]).await,
    ];
    insta::assert_snapshot!(lines.concat(), @"
    400 invalid_value n: Invalid 'n': the request asks for 7 generations, where this server holds 6 for this model, those that run and `limits.queue` that wait.
    400 invalid_value n: Invalid 'n': the request asks for 7 generations, where this server holds 6 for this model, those that run and `limits.queue` that wait.
    400 invalid_value prompt: Invalid 'prompt': the request asks for 7 generations, where this server holds 6 for this model, those that run and `limits.queue` that wait.
    400 invalid_value prompt: Invalid 'prompt': the request asks for 8 generations, where this server holds 6 for this model, those that run and `limits.queue` that wait.
    ");
    app.ok("/v1/completions", &text(3, 2)).await;
}

#[tokio::test]
async fn bodies_that_are_no_json_objects_are_refused() {
    let app = spawn_app().await;
    let url = format!("{}/v1/chat/completions", app.url);
    let mut lines = String::new();
    for (body, header) in [
        ("{", ("content-type", "application/json")),
        ("[]", ("content-type", "application/json; charset=utf-8")),
        (r#"{"model":"a","model":"b"}"#, ("content-type", "application/json")),
        ("{}", ("content-type", "text/plain")),
        ("{}", ("content-encoding", "gzip")),
    ] {
        let response = app.client.post(&url).header(header.0, header.1).body(body).send().await.unwrap();
        let status = response.status().as_u16();
        writeln!(lines, "{status} {}", response.text().await.unwrap()).unwrap();
    }
    insta::assert_snapshot!(lines, @r#"
    400 {"error":{"message":"We could not parse the JSON body of your request. (line 1 column 1)","type":"invalid_request_error","param":null,"code":"invalid_json"}}
    400 {"error":{"message":"Expected an object.","type":"invalid_request_error","param":null,"code":"invalid_type"}}
    400 {"error":{"message":"Duplicate field: 'model'.","type":"invalid_request_error","param":"model","code":"duplicate_field"}}
    415 {"error":{"message":"Expected application/json.","type":"invalid_request_error","param":null,"code":"unsupported_media_type"}}
    415 {"error":{"message":"Compressed request bodies are not supported.","type":"invalid_request_error","param":null,"code":"unsupported_content_encoding"}}
    "#);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_whole_or_in_chunks() {
    let app = spawn_app().await;
    let request =
        || app.client.post(format!("{}/v1/chat/completions", app.url)).header("content-type", "application/json");
    let large = vec![b' '; tandem::api::MAX_JSON_BYTES + 1];
    let whole = request().body(large.clone()).send().await.unwrap();
    assert_eq!(whole.status(), 413);
    let pieces: Vec<Result<Vec<u8>, std::io::Error>> = large.chunks(1 << 20).map(|chunk| Ok(chunk.to_vec())).collect();
    let chunked = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    let chunked = request().body(chunked).send().await.unwrap();
    assert_eq!(chunked.status(), 413);
    let body: Value = chunked.json().await.unwrap();
    assert_eq!(body["error"]["message"], "Request body exceeds 10485760 bytes.");
}

#[tokio::test]
async fn urls_and_methods_that_are_not_served() {
    let app = spawn_app().await;
    let mut lines = String::new();
    for (method, path) in [
        (Method::POST, "/v1/nope"),
        (Method::GET, "/v1//models"),
        (Method::GET, "/v1/models%2f..%2ffiles"),
        (Method::GET, "/v1/chat/completions"),
        (Method::DELETE, "/v1/models"),
    ] {
        let response = app.client.request(method, format!("{}{path}", app.url)).send().await.unwrap();
        assert!(response.headers().contains_key("x-request-id"));
        let allow = response.headers().get("allow").map_or("-", |value| value.to_str().unwrap()).to_owned();
        let status = response.status().as_u16();
        let body: Value = response.json().await.unwrap();
        writeln!(lines, "{status} {allow} {}: {}", body["error"]["code"], body["error"]["message"]).unwrap();
    }
    insta::assert_snapshot!(lines, @r#"
    404 - "unknown_url": "Unknown request URL: POST /v1/nope."
    404 - "unknown_url": "Unknown request URL: GET /v1//models."
    404 - "unknown_url": "Unknown request URL: GET /v1/models%2f..%2ffiles."
    405 POST "method_not_allowed": "Method not allowed: GET /v1/chat/completions."
    405 GET "method_not_allowed": "Method not allowed: DELETE /v1/models."
    "#);
}

#[tokio::test]
async fn a_full_queue_is_an_overload_that_passes() {
    let mut setup = Setup::default();
    setup.sim.parallel = 1;
    setup.sim.step_delay = std::time::Duration::from_millis(5);
    setup.engine.queue = 0;
    let app = spawn(setup).await;
    let long = chat_body(json!({"stream": true, "max_tokens": 4000, "ignore_eos": true}));
    let running = app.post("/v1/chat/completions", &long).await;
    app.until(|stats| stats.running == 1).await;
    let refused = app.post("/v1/chat/completions", &chat_body(json!({}))).await;
    assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].to_str().unwrap()), (503, "1"));
    insta::assert_json_snapshot!(refused.json::<Value>().await.unwrap(), @r#"
    {
      "error": {
        "message": "The server is overloaded, please retry later.",
        "type": "server_error",
        "param": null,
        "code": "overloaded"
      }
    }
    "#);
    drop(running);
    app.until(|stats| stats.running == 0).await;
    app.chat(json!({})).await;
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_given_up() {
    let mut setup = Setup::default();
    setup.sim.step_delay = std::time::Duration::from_millis(5);
    setup.limits.request_timeout = std::time::Duration::from_millis(50);
    let app = spawn(setup).await;
    let response = app.post("/v1/chat/completions", &chat_body(json!({"max_tokens": 4000, "ignore_eos": true}))).await;
    assert_eq!(response.status(), 408);
    assert_eq!(response.json::<Value>().await.unwrap()["error"]["code"], "request_timeout");
    app.until(|stats| stats.cancelled == 1 && stats.running == 0).await;
}

#[tokio::test]
async fn tools_are_checked() {
    let function = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
    let with = |extra: Value| merged(function(json!({"name": "f"})), extra);
    let many: Vec<Value> =
        (0..129).map(|at| json!({"type": "function", "function": {"name": format!("f{at}")}})).collect();
    let call = |role: Value| json!({"messages": [{"role": "user", "content": "x"}, role]});
    let fields = [
        json!({"tools": []}),
        json!({"tools": {}}),
        json!({"tools": many}),
        json!({"tools": [{"type": "custom", "custom": {"name": "f"}}]}),
        json!({"tools": [{"type": "function"}]}),
        function(json!({})),
        function(json!({"name": "x".repeat(65)})),
        function(json!({"name": "a b"})),
        function(json!({"name": "f", "parameters": []})),
        function(json!({"name": "f", "parameters": {"type": "string"}})),
        function(json!({"name": "f", "strict": "yes"})),
        json!({"tools": [{"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "f"}}]}),
        json!({"tool_choice": "auto"}),
        json!({"tool_choice": "required"}),
        with(json!({"tool_choice": "any"})),
        with(json!({"tool_choice": {"type": "function", "function": {"name": "g"}}})),
        with(json!({"tool_choice": {"type": "function"}})),
        with(json!({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}})),
        with(json!({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "none", "tools": []}}})),
        with(json!({"parallel_tool_calls": 1})),
        with(json!({"functions": [{"name": "f"}]})),
        with(json!({"function_call": "auto"})),
        json!({"functions": []}),
        json!({"functions": [{"name": "f"}, {"name": "f"}]}),
        json!({"functions": [{"name": "f"}], "function_call": {"name": "g"}}),
        json!({"function_call": {"name": "g"}}),
        merged(
            function(json!({"name": "f", "parameters": {"properties": {"a": {"pattern": "["}}}})),
            json!({"tool_choice": "required"}),
        ),
        call(json!({"role": "function", "content": "1"})),
        call(json!({"role": "function", "name": "f", "content": "1"})),
        call(json!({"role": "assistant", "tool_calls": []})),
        call(
            json!({"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]}),
        ),
    ];
    insta::assert_snapshot!(chat_refusals(&fields).await, @"
    400 empty_array tools: Invalid 'tools': empty array. Expected an array with minimum length 1, but got an empty array instead.
    400 invalid_type tools: Invalid type for 'tools': expected an array, but got an object instead.
    400 array_above_max_length tools: Invalid 'tools': array too long. Expected an array with maximum length 128, but got an array with length 129 instead.
    400 invalid_value tools[0].type: Invalid value: 'custom'. Supported values are: 'function'.
    400 missing_required_parameter tools[0].function: Missing required parameter: 'tools[0].function'.
    400 missing_required_parameter tools[0].function.name: Missing required parameter: 'tools[0].function.name'.
    400 invalid_value tools[0].function.name: Invalid 'tools[0].function.name': expected 1 to 64 letters, digits, underscores or dashes.
    400 invalid_value tools[0].function.name: Invalid 'tools[0].function.name': expected 1 to 64 letters, digits, underscores or dashes.
    400 invalid_type tools[0].function.parameters: Invalid type for 'tools[0].function.parameters': expected an object, but got an array instead.
    400 invalid_value tools[0].function.parameters.type: Invalid 'tools[0].function.parameters.type': the parameters of a function are a schema of type 'object'.
    400 invalid_type tools[0].function.strict: Invalid type for 'tools[0].function.strict': expected a boolean, but got a string instead.
    400 invalid_value tools[1].function.name: Invalid 'tools[1].function.name': there is another function of the name 'f'.
    400 invalid_value tool_choice: Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.
    400 invalid_value tool_choice: Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.
    400 invalid_value tool_choice: Invalid value: 'any'. Supported values are: 'none', 'auto', and 'required'.
    400 invalid_value tool_choice: Invalid value for 'tool_choice': there is no function named 'g'.
    400 missing_required_parameter tool_choice.function: Missing required parameter: 'tool_choice.function'.
    400 empty_array tool_choice.allowed_tools.tools: Invalid 'tool_choice.allowed_tools.tools': empty array. Expected an array with minimum length 1, but got an empty array instead.
    400 invalid_value tool_choice.allowed_tools.mode: Invalid value: 'none'. Supported values are: 'auto' and 'required'.
    400 invalid_type parallel_tool_calls: Invalid type for 'parallel_tool_calls': expected a boolean, but got an integer instead.
    400 invalid_value functions: Invalid 'functions': it cannot be used together with 'tools'.
    400 invalid_value function_call: Invalid 'function_call': it cannot be used together with 'tools'.
    400 empty_array functions: Invalid 'functions': empty array. Expected an array with minimum length 1, but got an empty array instead.
    400 invalid_value functions[1].name: Invalid 'functions[1].name': there is another function of the name 'f'.
    400 invalid_value function_call: Invalid value for 'function_call': there is no function named 'g'.
    400 invalid_value function_call: Invalid value for 'function_call': 'function_call' is only allowed when 'functions' are specified.
    400 invalid_schema tools[0].function.parameters.properties.a.pattern: Invalid 'tools[0].function.parameters.properties.a.pattern': This is not a valid regular expression.
    400 missing_required_parameter messages[1].name: Missing required parameter: 'messages[1].name'.
    400 invalid_value messages[1].name: Invalid 'messages[1].name': it does not answer a function call of the message before.
    400 empty_array messages[1].tool_calls: Invalid 'messages[1].tool_calls': empty array. Expected an array with minimum length 1, but got an empty array instead.
    400 missing_required_parameter messages[1].tool_calls[0].id: Missing required parameter: 'messages[1].tool_calls[0].id'.
    ");
}
