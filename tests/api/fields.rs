//! Fields beyond OpenAI's, as `vllm serve` has them: whole and streamed.

use serde_json::{Value, json};
use tandem_core::GenerationDefaults;
use tandem_sim::Oracle;

use crate::helpers::{MODEL, Setup, TestApp, chat_body, events, merged, spawn, spawn_app};

async fn complete(app: &TestApp, extra: Value) -> Value {
    app.ok("/v1/completions", &completion(extra)).await
}

fn completion(extra: Value) -> Value {
    merged(json!({"model": MODEL, "seed": 7, "prompt": "Once", "ignore_eos": true}), extra)
}

/// The chunks of a stream.
async fn stream(app: &TestApp, path: &str, body: Value) -> Vec<Value> {
    let response = app.post(path, &merged(body, json!({"stream": true}))).await;
    let text = response.text().await.unwrap();
    let mut events = events(&text);
    assert_eq!(events.pop().as_deref(), Some("[DONE]"), "{text}");
    events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

/// A list, put together from all chunks.
fn joined(chunks: &[Value], pointer: &str) -> Vec<Value> {
    chunks.iter().filter_map(|chunk| chunk.pointer(pointer)?.as_array()).flatten().cloned().collect()
}

fn text_of(chunks: &[Value], pointer: &str) -> String {
    chunks.iter().filter_map(|chunk| chunk.pointer(pointer)?.as_str()).collect()
}

#[tokio::test]
async fn an_echo_has_the_log_probabilities_of_the_prompt() {
    let app = spawn_app().await;
    let asked = json!({"echo": true, "logprobs": 2, "max_tokens": 3});
    let body = complete(&app, asked.clone()).await;
    let choice = &body["choices"][0];
    let logprobs = &choice["logprobs"];
    assert!(choice["text"].as_str().unwrap().starts_with("Once"));
    let expected = Oracle::scores(&[79, 110, 99, 101], None);
    let told: Vec<_> = logprobs["token_logprobs"].as_array().unwrap().iter().map(Value::as_f64).collect();
    assert_eq!(told[0], None, "nothing comes before the first token");
    for (told, expected) in std::iter::zip(&told[1..4], expected) {
        assert!((told.unwrap() - f64::from(expected)).abs() < 1e-5);
    }
    assert_eq!(told.len(), 7);
    assert_eq!(logprobs["tokens"].as_array().unwrap()[..4], ["O", "n", "c", "e"].map(Value::from));
    assert_eq!(logprobs["top_logprobs"][0], Value::Null);
    assert!(logprobs["top_logprobs"][1].as_object().unwrap().len() >= 2);
    assert_eq!(logprobs["text_offset"].as_array().unwrap()[..5], [0, 1, 2, 3, 4].map(Value::from));
    let plain = complete(&app, json!({"logprobs": 2, "max_tokens": 3})).await;
    assert_eq!(
        logprobs["token_logprobs"].as_array().unwrap()[4..],
        plain["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap()[..]
    );
    let chunks = stream(&app, "/v1/completions", completion(asked)).await;
    assert_eq!(text_of(&chunks, "/choices/0/text"), choice["text"].as_str().unwrap());
    for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let streamed = joined(&chunks, &format!("/choices/0/logprobs/{list}"));
        assert_eq!(streamed, logprobs[list].as_array().unwrap()[..], "{list}");
    }
}

#[tokio::test]
async fn a_prompt_is_scored_alone_and_as_a_whole() {
    let app = spawn_app().await;
    let prompt = "the quick brown fox jumps over the lazy dog and then again";
    // In the cache, where no log-probabilities are.
    complete(&app, json!({"prompt": prompt, "max_tokens": 1})).await;
    let asked = json!({"prompt": [prompt, "x"], "echo": true, "logprobs": 0, "max_tokens": 0});
    let body = complete(&app, asked.clone()).await;
    let ids: Vec<u32> = prompt.bytes().map(u32::from).collect();
    let expected = Oracle::scores(&ids, None);
    let choice = &body["choices"][0];
    assert_eq!((choice["text"].as_str(), choice["finish_reason"].as_str()), (Some(prompt), Some("length")));
    let told = choice["logprobs"]["token_logprobs"].as_array().unwrap();
    assert_eq!(told.len(), ids.len());
    for (told, expected) in std::iter::zip(&told[1..], expected) {
        assert!((told.as_f64().unwrap() - f64::from(expected)).abs() < 1e-5);
    }
    assert_eq!(body["choices"][1]["logprobs"]["token_logprobs"], json!([null]), "a prompt of one token");
    assert_eq!(body["usage"]["completion_tokens"], 0);
    let chunks = stream(&app, "/v1/completions", completion(merged(asked, json!({"prompt": "x"})))).await;
    assert_eq!(joined(&chunks, "/choices/0/logprobs/token_logprobs"), [Value::Null]);
    let unscored = complete(&app, json!({"echo": true, "max_tokens": 0})).await;
    assert_eq!((&unscored["choices"][0]["text"], &unscored["choices"][0]["logprobs"]), (&json!("Once"), &Value::Null));
}

#[tokio::test]
async fn what_stopped_a_choice_is_told_and_kept_if_asked_for() {
    let app = spawn_app().await;
    let plain = complete(&app, json!({"temperature": 0})).await;
    let text = plain["choices"][0]["text"].as_str().unwrap();
    assert!(plain["choices"][0].get("stop_reason").is_none(), "nothing of the request's stopped it");
    let stop = &text[4..6];
    for (include, expected) in
        [(false, &text[..text.find(stop).unwrap()]), (true, &text[..text.find(stop).unwrap() + 2])]
    {
        let asked = json!({"temperature": 0, "stop": ["~~~~", stop], "include_stop_str_in_output": include});
        let stopped = complete(&app, asked.clone()).await;
        let choice = &stopped["choices"][0];
        assert_eq!((choice["text"].as_str(), &choice["stop_reason"]), (Some(expected), &json!(stop)));
        assert_eq!(choice["finish_reason"], "stop");
        let chunks = stream(&app, "/v1/completions", completion(asked)).await;
        assert_eq!(text_of(&chunks, "/choices/0/text"), expected);
        assert_eq!(chunks.last().unwrap()["choices"][0]["stop_reason"], stop);
    }
    let id = text.as_bytes()[5];
    let by_token = json!({"temperature": 0, "stop_token_ids": [id]});
    let stopped = complete(&app, by_token.clone()).await;
    let end = text.find(char::from(id)).unwrap();
    assert_eq!(stopped["choices"][0]["text"], text[..end]);
    assert_eq!(stopped["choices"][0]["stop_reason"], id);
    let kept = complete(&app, merged(by_token, json!({"include_stop_str_in_output": true}))).await;
    assert_eq!(kept["choices"][0]["text"], text[..=end]);
}

#[tokio::test]
async fn control_tokens_are_told_when_they_are_not_skipped() {
    let app = spawn_app().await;
    let only_control = json!({"allowed_token_ids": [257], "max_tokens": 2});
    let skipped = complete(&app, only_control.clone()).await;
    assert_eq!(skipped["choices"][0]["text"], "");
    let told = complete(&app, merged(only_control, json!({"skip_special_tokens": false}))).await;
    assert_eq!(told["choices"][0]["text"], "<|im_start|><|im_start|>");
    let asked = json!({
        "allowed_token_ids": [258], "skip_special_tokens": false, "ignore_eos": false, "logprobs": true,
        "spaces_between_special_tokens": false,
    });
    let ended = app.chat(asked.clone()).await;
    assert_eq!(ended["choices"][0]["message"]["content"], "");
    let kept = app.chat(merged(asked, json!({"include_stop_str_in_output": true}))).await;
    assert_eq!(kept["choices"][0]["message"]["content"], "<|im_end|>");
    assert_eq!(kept["choices"][0]["logprobs"]["content"][0]["token"], "<|im_end|>");
}

#[tokio::test]
async fn token_ids_and_prompts_are_told() {
    let app = spawn_app().await;
    let asked = json!({"return_token_ids": true, "return_prompt_text": true, "max_tokens": 5, "n": 2});
    let body = complete(&app, asked.clone()).await;
    for choice in body["choices"].as_array().unwrap() {
        assert_eq!(choice["prompt_token_ids"], json!(b"Once".to_vec()));
        assert_eq!(choice["prompt_text"], "Once");
        let ids: Vec<u32> = serde_json::from_value(choice["token_ids"].clone()).unwrap();
        let text: Vec<u8> = ids.iter().filter_map(|id| u8::try_from(*id).ok()).collect();
        assert_eq!((ids.len(), String::from_utf8_lossy(&text).as_ref()), (5, choice["text"].as_str().unwrap()));
    }
    let one = merged(asked, json!({"n": 1}));
    let chunks = stream(&app, "/v1/completions", completion(one.clone())).await;
    assert_eq!(joined(&chunks, "/choices/0/token_ids"), body["choices"][0]["token_ids"].as_array().unwrap()[..]);
    assert_eq!(joined(&chunks, "/choices/0/prompt_token_ids"), json!(b"Once".to_vec()).as_array().unwrap()[..]);
    let chat = app.chat(one.clone()).await;
    assert_eq!(chat["prompt_text"], "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n");
    let prompt = chat["prompt_token_ids"].as_array().unwrap();
    assert_eq!(prompt.len(), chat["usage"]["prompt_tokens"]);
    let chunks = stream(&app, "/v1/chat/completions", chat_body(one)).await;
    assert_eq!((&chunks[0]["prompt_token_ids"], &chunks[0]["prompt_text"]), (&json!(prompt), &chat["prompt_text"]));
    assert!(chunks[1..].iter().all(|chunk| chunk.get("prompt_token_ids").is_none()));
    assert_eq!(joined(&chunks, "/choices/0/token_ids"), chat["choices"][0]["token_ids"].as_array().unwrap()[..]);
}

#[tokio::test]
async fn log_probabilities_name_tokens_as_asked_and_tell_of_those_that_are_named() {
    let app = spawn_app().await;
    let asked = json!({"logprobs": 1, "max_tokens": 2, "return_tokens_as_token_ids": true, "return_token_ids": true});
    let body = complete(&app, asked).await;
    let ids = body["choices"][0]["token_ids"].as_array().unwrap();
    let names: Vec<_> = ids.iter().map(|id| json!(format!("token_id:{id}"))).collect();
    assert_eq!(body["choices"][0]["logprobs"]["tokens"], json!(names));
    let asked = json!({"logprobs": true, "top_logprobs": 3, "logprob_token_ids": [122, 65], "max_tokens": 2});
    let chat = app.chat(asked).await;
    for token in chat["choices"][0]["logprobs"]["content"].as_array().unwrap() {
        let top: Vec<_> = token["top_logprobs"].as_array().unwrap().iter().map(|top| top["token"].as_str()).collect();
        assert_eq!(top, [Some("z"), Some("A")]);
        assert!(token["top_logprobs"][1]["logprob"].as_f64().unwrap() < 0.0);
    }
}

#[tokio::test]
async fn prompts_are_cut_and_opened_as_asked() {
    let app = spawn_app().await;
    let ids = json!({"return_token_ids": true, "max_tokens": 1});
    for (extra, left) in [
        (json!({"truncate_prompt_tokens": 3}), "nce"),
        (json!({"truncate_prompt_tokens": 3, "truncation_side": "right"}), "Onc"),
        (json!({"truncate_prompt_tokens": -1}), "Once"),
        (json!({"truncate_prompt_tokens": 3, "prompt": b"Once".to_vec()}), "nce"),
    ] {
        let body = complete(&app, merged(ids.clone(), merged(extra.clone(), json!({"echo": true})))).await;
        assert_eq!(body["choices"][0]["prompt_token_ids"], json!(left.as_bytes()), "{extra}");
        assert!(body["choices"][0]["text"].as_str().unwrap().starts_with(left), "{extra}");
    }
    let long = "x".repeat(10_000);
    let body = complete(&app, json!({"prompt": long, "truncate_prompt_tokens": -1, "max_tokens": 96})).await;
    assert_eq!(
        body["usage"],
        json!({
            "prompt_tokens": 4000, "completion_tokens": 96, "total_tokens": 4096,
            "prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 0},
        })
    );
    let chat = app.chat(merged(ids, json!({"truncate_prompt_tokens": 2}))).await;
    assert_eq!(chat["prompt_token_ids"], json!(b"t\n".to_vec()));
}

#[tokio::test]
async fn the_last_message_is_gone_on_with_and_repeated() {
    let app = spawn_app().await;
    let messages =
        json!([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": " Well, <|im_end|> I "}]);
    let asked = json!({
        "messages": messages, "continue_final_message": true, "add_generation_prompt": false,
        "return_prompt_text": true, "temperature": 0, "ignore_eos": true,
    });
    let body = app.chat(asked.clone()).await;
    assert_eq!(body["prompt_text"], "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n Well, <|im_end|> I ");
    let text = body["choices"][0]["message"]["content"].as_str().unwrap();
    let echo = merged(asked, json!({"echo": true}));
    let echoed = app.chat(echo.clone()).await;
    assert_eq!(echoed["choices"][0]["message"]["content"], format!(" Well, <|im_end|> I {text}"));
    let chunks = stream(&app, "/v1/chat/completions", chat_body(echo)).await;
    assert_eq!(text_of(&chunks, "/choices/0/delta/content"), format!(" Well, <|im_end|> I {text}"));
    let other = app.chat(json!({"echo": true, "temperature": 0})).await;
    let plain = app.chat(json!({"temperature": 0})).await;
    assert_eq!(other["choices"], plain["choices"], "the last message is the user's");
}

#[tokio::test]
async fn an_output_that_repeats_itself_ends() {
    let app = spawn_app().await;
    let asked = json!({
        "allowed_token_ids": [97], "max_tokens": 50,
        "repetition_detection": {"max_pattern_size": 4, "min_pattern_size": 2, "min_count": 3},
    });
    let body = complete(&app, asked.clone()).await;
    let choice = &body["choices"][0];
    assert_eq!((choice["text"].as_str(), choice["finish_reason"].as_str()), (Some("aaaaaa"), Some("repetition")));
    assert_eq!(choice["stop_reason"], "repetition_detected");
    let later = complete(&app, merged(asked, json!({"min_tokens": 9}))).await;
    assert_eq!(later["choices"][0]["text"], "aaaaaaaaa");
}

#[tokio::test]
async fn usage_is_told_with_every_chunk() {
    let app = spawn_app().await;
    let options = json!({"max_tokens": 4, "ignore_eos": true, "stream_options": {"continuous_usage_stats": true}});
    for (path, body) in
        [("/v1/chat/completions", chat_body(options.clone())), ("/v1/completions", completion(options.clone()))]
    {
        let chunks = stream(&app, path, body).await;
        let counts: Vec<_> = chunks.iter().map(|chunk| chunk["usage"]["completion_tokens"].as_u64().unwrap()).collect();
        assert!(counts.is_sorted() && counts.last() == Some(&4), "{counts:?}");
        assert!(chunks.iter().all(|chunk| chunk["usage"]["prompt_tokens"].as_u64() > Some(0)));
    }
}

#[tokio::test]
async fn a_request_is_named_by_its_client() {
    let app = spawn_app().await;
    let response = app.post("/v1/chat/completions", &chat_body(json!({"request_id": "my-7"}))).await;
    assert_eq!(response.headers()["x-request-id"], "my-7");
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["id"], "chatcmpl-my-7");
    let refused = app.post("/v1/chat/completions", &chat_body(json!({"request_id": "a\r\nb"}))).await;
    assert_eq!(refused.status(), 400);
    assert!(refused.headers()["x-request-id"].to_str().unwrap().starts_with("req_"));
}

#[tokio::test]
async fn a_tier_is_answered_with() {
    let app = spawn_app().await;
    for (asked, told) in [("flex", "flex"), ("auto", "default"), ("default", "default")] {
        let body = app.chat(json!({"service_tier": asked})).await;
        assert_eq!(body["service_tier"], told);
    }
    assert!(app.chat(json!({})).await.get("service_tier").is_none());
}

/// Requests that wait for the one slot go in the order of their priority, and those that can wait go last.
#[tokio::test]
async fn lower_priorities_go_first() {
    let mut setup = Setup::default();
    setup.sim.parallel = 1;
    setup.sim.step_delay = std::time::Duration::from_millis(5);
    let app = spawn(setup).await;
    let ask = |extra: Value, max_tokens: u32| {
        let body = completion(merged(json!({"max_tokens": max_tokens}), extra));
        let request = app.client.post(format!("{}/v1/completions", app.url)).json(&body);
        tokio::spawn(async move { request.send().await.unwrap().text().await.unwrap() })
    };
    let first = ask(json!({}), 60);
    app.until(|stats| stats.running == 1).await;
    let order = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for (at, extra) in [
        json!({"service_tier": "flex"}),
        json!({"priority": 5}),
        json!({}),
        json!({"priority": -3}),
        json!({"service_tier": "flex", "priority": 4}),
    ]
    .into_iter()
    .enumerate()
    {
        let (asked, order) = (ask(extra, 2), std::sync::Arc::clone(&order));
        tasks.push(tokio::spawn(async move {
            asked.await.unwrap();
            order.lock().unwrap().push(at);
        }));
        app.until(|stats| stats.waiting == at as u32 + 1).await;
    }
    first.await.unwrap();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(*order.lock().unwrap(), [3, 2, 4, 1, 0]);
}

#[tokio::test]
async fn what_a_request_leaves_open_the_model_says() {
    let mut setup = Setup::default();
    setup.sim.defaults = GenerationDefaults { top_k: Some(1), max_tokens: Some(3), ..GenerationDefaults::default() };
    let app = spawn(setup).await;
    let plain = spawn_app().await;
    let greedy = complete(&plain, json!({"temperature": 0})).await;
    assert_eq!(complete(&app, json!({})).await["choices"], greedy["choices"], "the likeliest token alone");
    let all = complete(&plain, json!({})).await;
    assert_ne!(all["choices"], greedy["choices"]);
    assert_eq!(complete(&app, json!({"top_k": 0})).await["choices"], all["choices"], "the request goes first");
    let answer = app.chat(json!({"max_tokens": null, "ignore_eos": true})).await;
    assert_eq!(answer["usage"]["completion_tokens"], 3);
}

#[tokio::test]
async fn a_suffix_is_what_the_answer_ends_before() {
    let mut setup = Setup::default();
    setup.sim.fills_in_the_middle = true;
    let app = spawn(setup).await;
    let asked = json!({"suffix": "a time", "return_token_ids": true, "max_tokens": 4});
    let body = complete(&app, asked.clone()).await;
    let expected = b"\x01Once\x02a time\x03".to_vec();
    assert_eq!(body["choices"][0]["prompt_token_ids"], json!(expected));
    let plain = complete(&app, json!({"prompt": expected, "max_tokens": 4})).await;
    assert_eq!(body["choices"][0]["text"], plain["choices"][0]["text"]);
    let echoed = complete(&app, merged(asked, json!({"echo": true, "prompt": b"Once".to_vec()}))).await;
    assert_eq!(echoed["choices"][0]["text"], format!("Once{}", plain["choices"][0]["text"].as_str().unwrap()));
    assert_eq!(complete(&app, json!({"suffix": ""})).await["choices"], complete(&app, json!({})).await["choices"]);
    let card: Value = app.get("/v1/models").await.json().await.unwrap();
    assert_eq!(card["data"][0]["capabilities"], json!(["completion", "chat", "insert"]));
}

#[tokio::test]
async fn tokens_are_told_with_their_texts() {
    let app = spawn_app().await;
    let body = app.ok("/tokenize", &json!({"model": MODEL, "prompt": "hé", "return_token_strs": true})).await;
    assert_eq!((&body["count"], &body["tokens"]), (&json!(3), &json!([104, 195, 169])));
    assert_eq!(body["token_strs"], json!(["h", "\u{fffd}", "\u{fffd}"]));
    let messages = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
    let asked = json!({"model": MODEL, "messages": messages, "continue_final_message": true});
    let body = app.ok("/tokenize", &asked).await;
    assert_eq!((&body["tokens"].as_array().unwrap().last(), &body["token_strs"]), (&Some(&json!(98)), &Value::Null));
    let refused = app.post("/tokenize", &merged(asked, json!({"chat_template": "x"}))).await;
    assert_eq!(refused.status(), 400);
}

#[tokio::test]
async fn json_has_the_form_that_was_asked_for() {
    let app = spawn_app().await;
    let schema = json!({"type": "array", "items": {"enum": [1, 2]}, "minItems": 4, "maxItems": 4});
    for (options, blanks) in [
        (json!({"json": schema, "disable_any_whitespace": true}), 0..=0),
        (json!({"json": schema, "whitespace_pattern": "  "}), 0..=18),
    ] {
        let asked = json!({"structured_outputs": options, "max_tokens": 64, "ignore_eos": false});
        let body = complete(&app, asked).await;
        let text = body["choices"][0]["text"].as_str().unwrap();
        let values: Vec<u32> = serde_json::from_str(text).unwrap();
        assert_eq!(values.len(), 4);
        assert!(blanks.contains(&text.matches(' ').count()) && text.matches(' ').count().is_multiple_of(2), "{text:?}");
    }
    let guided =
        complete(&app, json!({"guided_json_object": true, "max_tokens": 3, "guided_whitespace_pattern": " "})).await;
    assert!(guided["choices"][0]["text"].as_str().unwrap().trim_start().starts_with('{'));
}

/// What does not go together, or not at all.
#[tokio::test]
async fn fields_are_refused_by_name() {
    let app = spawn_app().await;
    let mut refused = Vec::new();
    for (path, extra) in [
        ("/v1/completions", json!({"max_tokens": 0})),
        ("/v1/completions", json!({"suffix": "x"})),
        ("/v1/completions", json!({"suffix": "x", "echo": true, "logprobs": 1})),
        ("/v1/completions", json!({"logprob_token_ids": [1]})),
        ("/v1/completions", json!({"logprobs": 1, "logprob_token_ids": [259]})),
        ("/v1/completions", json!({"logprobs": 1, "logprob_token_ids": vec![1; 129]})),
        ("/v1/completions", json!({"truncate_prompt_tokens": 0})),
        ("/v1/completions", json!({"truncate_prompt_tokens": 5000})),
        ("/v1/completions", json!({"truncation_side": "middle"})),
        ("/v1/completions", json!({"priority": 1.5})),
        ("/v1/completions", json!({"service_tier": "gold"})),
        ("/v1/completions", json!({"skip_special_tokens": "no"})),
        ("/v1/completions", json!({"repetition_detection": {"max_pattern_size": 3}})),
        ("/v1/completions", json!({"repetition_detection": {"max_pattern_size": 513, "min_count": 2}})),
        (
            "/v1/completions",
            json!({"repetition_detection": {"max_pattern_size": 3, "min_pattern_size": 4, "min_count": 2}}),
        ),
        ("/v1/completions", json!({"repetition_detection": {"size": 3}})),
        ("/v1/chat/completions", json!({"max_tokens": 0, "echo": true})),
        ("/v1/chat/completions", json!({"continue_final_message": true, "add_generation_prompt": true})),
        ("/v1/chat/completions", json!({"suffix": "x"})),
        ("/v1/chat/completions", json!({"request_id": ""})),
    ] {
        let body = if path.ends_with("chat/completions") { chat_body(extra) } else { completion(extra) };
        let response = app.post(path, &body).await;
        let status = response.status().as_u16();
        let error = response.json::<Value>().await.unwrap()["error"].take();
        refused.push(format!("{status} {} {}", error["code"].as_str().unwrap(), error["param"].as_str().unwrap()));
    }
    insta::assert_snapshot!(refused.join("\n"), @"
    400 integer_below_min_value max_tokens
    400 unsupported_value suffix
    400 unsupported_value suffix
    400 invalid_value logprob_token_ids
    400 invalid_value logprob_token_ids[0]
    400 array_above_max_length logprob_token_ids
    400 invalid_value truncate_prompt_tokens
    400 integer_above_max_value truncate_prompt_tokens
    400 invalid_value truncation_side
    400 invalid_type priority
    400 invalid_value service_tier
    400 invalid_type skip_special_tokens
    400 integer_below_min_value repetition_detection.min_count
    400 integer_above_max_value repetition_detection.max_pattern_size
    400 invalid_value repetition_detection.min_pattern_size
    400 unknown_parameter repetition_detection.size
    400 integer_below_min_value max_tokens
    400 invalid_value continue_final_message
    400 unsupported_parameter suffix
    400 empty_string request_id
    ");
}
