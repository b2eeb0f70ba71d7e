use serde_json::{Value, json};

use crate::helpers::{MODEL, TestApp, merged, spawn_app};

async fn complete(app: &TestApp, extra: Value) -> Value {
    app.ok("/v1/completions", &merged(json!({"model": MODEL, "seed": 7, "prompt": "Once"}), extra)).await
}

fn text(body: &Value, index: usize) -> &str {
    body["choices"][index]["text"].as_str().unwrap()
}

#[tokio::test]
async fn a_completion_has_openai_s_shape() {
    let app = spawn_app().await;
    let body = complete(&app, json!({"temperature": 0, "ignore_eos": true})).await;
    insta::assert_json_snapshot!(body, {".id" => "[id]", ".created" => "[created]", ".system_fingerprint" => "[fp]", ".choices[].text" => "[text]"}, @r#"
    {
      "id": "[id]",
      "object": "text_completion",
      "created": "[created]",
      "model": "org/sim",
      "system_fingerprint": "[fp]",
      "choices": [
        {
          "text": "[text]",
          "index": 0,
          "logprobs": null,
          "finish_reason": "length"
        }
      ],
      "usage": {
        "prompt_tokens": 4,
        "completion_tokens": 16,
        "total_tokens": 20,
        "prompt_tokens_details": {
          "cached_tokens": 0
        },
        "completion_tokens_details": {
          "reasoning_tokens": 0
        }
      }
    }
    "#);
}

#[tokio::test]
async fn prompts_come_as_text_or_tokens_one_or_many() {
    let app = spawn_app().await;
    let ids: Vec<u8> = b"Once".to_vec();
    let expected = complete(&app, json!({})).await;
    for prompt in [json!(["Once"]), json!(ids), json!([ids])] {
        assert_eq!(text(&complete(&app, json!({"prompt": prompt})).await, 0), text(&expected, 0));
    }
    let both = complete(&app, json!({"prompt": ["Once", "Twice"], "n": 2, "ignore_eos": true})).await;
    assert_eq!(both["choices"].as_array().unwrap().len(), 4);
    assert_eq!(both["usage"]["prompt_tokens"], 9, "each prompt once");
    let again = complete(&app, json!({"prompt": "Twice", "n": 2, "ignore_eos": true})).await;
    assert_eq!([text(&both, 2), text(&both, 3)], [text(&again, 0), text(&again, 1)]);
}

#[tokio::test]
async fn echo_puts_the_prompt_in_front() {
    let app = spawn_app().await;
    let plain = complete(&app, json!({})).await;
    for prompt in [json!("Once"), json!(b"Once".to_vec())] {
        let echoed = complete(&app, json!({"prompt": prompt, "echo": true})).await;
        assert_eq!(text(&echoed, 0), format!("Once{}", text(&plain, 0)));
    }
}

#[tokio::test]
async fn log_probabilities_are_four_lists() {
    let app = spawn_app().await;
    let no_control = json!({"256": -100, "257": -100, "258": -100});
    let body =
        complete(&app, json!({"logprobs": 2, "max_tokens": 5, "temperature": 0, "logit_bias": no_control})).await;
    let logprobs = &body["choices"][0]["logprobs"];
    let tokens: Vec<&str> = logprobs["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    assert_eq!(tokens.concat(), text(&body, 0));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2, 3, 4]));
    let top = logprobs["top_logprobs"].as_array().unwrap();
    assert!(top.iter().all(|top| (2..=3).contains(&top.as_object().unwrap().len())), "the chosen one beside two");
    assert_eq!(logprobs["top_logprobs"][4][tokens[4]], logprobs["token_logprobs"][4]);
}
