//! Keys: who gets in, and with what; how often and how much.

use std::time::Duration;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::program::{Program, keys, new_key, refusal, run, tandem};

/// Longer than a change of keys may take to be noticed.
const NOTICED: Duration = Duration::from_secs(5);

fn completion(server: &Program, key: &str, max_tokens: u32) -> RequestBuilder {
    let body = json!({"model": "sim", "prompt": "x", "max_tokens": max_tokens, "ignore_eos": true});
    server.call(Method::POST, "/v1/completions", key).json(&body)
}

async fn status(request: RequestBuilder) -> u16 {
    request.send().await.unwrap().status().as_u16()
}

fn refused(status: u16, kind: &str, code: &str, message: &str) -> (u16, String, String, String) {
    (status, kind.to_owned(), code.to_owned(), message.to_owned())
}

/// The first answer of another status than `before`.
async fn changed(before: u16, request: impl Fn() -> RequestBuilder) -> (u16, String, String, String) {
    let deadline = Instant::now() + NOTICED;
    while status(request()).await == before {
        assert!(Instant::now() < deadline, "not noticed");
        // sleep: between two polls, within the deadline
        sleep(Duration::from_millis(20)).await;
    }
    refusal(request()).await
}

#[tokio::test]
async fn keys_are_made_and_revoked_beside_a_running_server() {
    let storage = tempfile::tempdir().unwrap();
    let server = Program::start(storage.path(), 0).await;
    assert_eq!(status(server.call(Method::GET, "/v1/models", "any key will do")).await, 200);

    let key = new_key(storage.path(), &["--name", "ci", "--tenant", "acme", "--env", "test"]);
    assert!(key.starts_with("bk_test_"), "{key}");
    let models = |key: &str| server.call(Method::GET, "/v1/models", key);
    let missing = refused(401, "authentication_error", "missing_api_key", "You didn't provide an API key.");
    assert_eq!(changed(200, || models("")).await, missing);
    assert_eq!(status(models(&key)).await, 200);

    let id = key.split('_').nth(2).unwrap();
    let [listed] = <[String; 1]>::try_from(keys(storage.path(), &["list"])).unwrap();
    assert!(listed.starts_with(&format!("{id}  acme  inference,files:read,files:write,batches:read,")), "{listed}");
    assert!(listed.contains("active") && listed.ends_with("  ci"), "{listed}");
    // Neither the database nor its log has the key.
    let secret = key.rsplit('_').next().unwrap();
    assert!(!listed.contains(secret));
    for file in ["tandem.db", "tandem.db-wal"] {
        let bytes = fs_err::read(storage.path().join(file)).unwrap();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "{file}");
    }

    keys(storage.path(), &["revoke", id]);
    let revoked = refused(401, "authentication_error", "revoked_api_key", "This API key has been revoked.");
    assert_eq!(changed(200, || models(&key)).await, revoked);
    // Who has asked for keys goes on to.
    assert_eq!(refusal(models("")).await, missing);
    assert!(keys(storage.path(), &["list"])[0].contains("revoked 2"));
    let output = tandem(&["keys", "revoke", "nothing1"]).env("STORAGE_PATH", storage.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "error: there is no key 'nothing1'\n");
}

#[test]
fn wrong_words_for_keys_are_wrong_usage() {
    for args in [
        &["--scopes", "root"][..],
        &["--models", ""],
        &["--tenant", "a b"],
        &["--env", "A"],
        &["--max-concurrent", "0"],
    ] {
        assert_eq!(run(&[&["keys", "create", "--profile", "sim"], args].concat()).0, 2, "{args:?}");
    }
}

#[tokio::test]
async fn wrong_keys_are_refused_in_so_many_words() {
    let storage = tempfile::tempdir().unwrap();
    let key = new_key(storage.path(), &[]);
    let server = Program::start(storage.path(), 0).await;
    let with = |header: &str| server.call(Method::GET, "/v1/models", "").header("authorization", header);
    let missing = refused(401, "authentication_error", "missing_api_key", "You didn't provide an API key.");
    assert_eq!(refusal(with("Basic eDp5")).await, missing);
    assert_eq!(refusal(server.call(Method::GET, &format!("/v1/models?api_key={key}"), "")).await, missing);
    let wrong = |shown: &str| {
        let message = format!("Incorrect API key provided: {shown}.");
        refused(401, "authentication_error", "invalid_api_key", &message)
    };
    assert_eq!(refusal(with("Bearer sk-0123456789abcdef")).await, wrong("sk-…cdef"));
    assert_eq!(refusal(with("Bearer ' OR '1'='1")).await, wrong("…"));
    assert_eq!(refusal(with("Bearer short")).await, wrong("…"));
    assert_eq!(refusal(with(&format!("Bearer {}", "x".repeat(10 << 10)))).await, wrong("xxx…xxxx"));
    let other = new_key(tempfile::tempdir().unwrap().path(), &[]);
    assert_eq!(refusal(with(&format!("Bearer {other}"))).await, wrong(&format!("bk_…{}", &other[other.len() - 4..])));
    let response = with("Bearer x").send().await.unwrap();
    assert_eq!(response.headers()["www-authenticate"], "Bearer");
    assert_eq!(response.headers()["x-should-retry"], "false");
    assert!(response.headers().contains_key("x-request-id"));
    assert_eq!(status(with(&format!("Bearer {key}"))).await, 200);

    // Who tries too many is told to wait, and a good key is still good.
    let deadline = Instant::now() + NOTICED;
    let refused = loop {
        let refused = with("Bearer x").send().await.unwrap();
        if refused.status() == 429 {
            break refused;
        }
        assert!(Instant::now() < deadline, "never told to wait");
    };
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(refused.json::<Value>().await.unwrap()["error"]["code"], "too_many_failed_auth");
    assert_eq!(status(with(&format!("Bearer {key}"))).await, 200);
}

#[tokio::test]
async fn every_route_but_health_and_the_page_wants_a_key_and_its_scope() {
    let storage = tempfile::tempdir().unwrap();
    let (infer, rest) = (new_key(storage.path(), &["--scopes", "inference"]), "files:write,batches:read,admin");
    let rest = new_key(storage.path(), &["--scopes", rest]);
    let server = Program::start(storage.path(), 0).await;
    // The scope that is named to a key without it; of two keys, one has it.
    let routes = [
        (Method::POST, "/v1/chat/completions", "inference"),
        (Method::POST, "/v1/completions", "inference"),
        (Method::POST, "/v1/embeddings", "inference"),
        (Method::POST, "/v1/rerank", "inference"),
        (Method::POST, "/v2/rerank", "inference"),
        (Method::POST, "/rerank", "inference"),
        (Method::POST, "/tokenize", "inference"),
        (Method::POST, "/detokenize", "inference"),
        (Method::GET, "/v1/models", ""),
        (Method::GET, "/v1/models/sim", ""),
        (Method::GET, "/version", ""),
        (Method::GET, "/openapi.json", ""),
        (Method::GET, "/debug/engine", "admin"),
        (Method::POST, "/v1/files", "files:write"),
        (Method::GET, "/v1/files", "files:read"),
        (Method::GET, "/v1/files/file-x", "files:read"),
        (Method::DELETE, "/v1/files/file-x", "files:write"),
        (Method::GET, "/v1/files/file-x/content", "files:read"),
        (Method::POST, "/v1/batches", "batches:write"),
        (Method::GET, "/v1/batches", "batches:read"),
        (Method::GET, "/v1/batches/batch_x", "batches:read"),
        (Method::POST, "/v1/batches/batch_x/cancel", "batches:write"),
        (Method::POST, "/v1/batches/batch_x/pause", "batches:write"),
        (Method::POST, "/v1/batches/batch_x/resume", "batches:write"),
        (Method::POST, "/v1/batches/batch_x/retry", "batches:write"),
        (Method::GET, "/v1/batches/batch_x/results", "batches:read"),
        (Method::GET, "/v1/files/file-x/estimate", "files:read"),
    ];
    for (method, path, scope) in routes {
        for method in [method.clone(), Method::PUT] {
            assert_eq!(status(server.call(method, path, "")).await, 401, "{path}");
        }
        for (key, scopes) in [(&infer, "inference"), (&rest, "files:write batches:read admin")] {
            let answer = server.call(method.clone(), path, key);
            if scope.is_empty() || scopes.contains(scope) {
                assert!(![401, 403].contains(&status(answer).await), "{path}");
            } else {
                let message = format!("This API key lacks scope {scope}.");
                let lacks = refused(403, "permission_error", "insufficient_scope", &message);
                assert_eq!(refusal(answer).await, lacks, "{path}");
            }
        }
    }
    for open in ["/health", "/health/live", "/health/ready", "/docs"] {
        assert_eq!(status(server.call(Method::GET, open, "")).await, 200);
    }
}

#[tokio::test]
async fn requests_and_tokens_of_a_minute_are_limited() {
    let storage = tempfile::tempdir().unwrap();
    let few = new_key(storage.path(), &["--max-requests-per-minute", "2"]);
    let short = new_key(storage.path(), &["--max-tokens-per-minute", "20"]);
    let other = new_key(storage.path(), &["--max-tokens-per-minute", "20"]);
    let server = Program::start(storage.path(), 0).await;
    let first = server.call(Method::GET, "/v1/models", &few).send().await.unwrap();
    let header = |response: &reqwest::Response, name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header(&first, "x-ratelimit-limit-requests"), "2");
    assert_eq!(header(&first, "x-ratelimit-remaining-requests"), "1");
    assert_eq!(header(&first, "x-ratelimit-reset-requests"), "30s");
    assert!(!first.headers().contains_key("x-ratelimit-limit-tokens"));
    assert_eq!(status(server.call(Method::GET, "/v1/files", &few)).await, 200);
    let third = server.call(Method::GET, "/v1/models", &few).send().await.unwrap();
    assert_eq!(third.status(), 429);
    let wait: u32 = header(&third, "retry-after").parse().unwrap();
    assert!((25..=30).contains(&wait), "{wait}");
    assert_eq!(header(&third, "x-ratelimit-remaining-requests"), "0");
    assert_eq!(header(&third, "x-should-retry"), "true");
    let error = third.json::<Value>().await.unwrap()["error"].clone();
    assert_eq!((&error["type"], &error["code"]), (&json!("requests"), &json!("rate_limit_exceeded")));

    // What an answer costs is known behind it; then the next has to wait.
    let streamed = json!({"model": "sim", "prompt": "x", "max_tokens": 60, "ignore_eos": true, "stream": true});
    let streamed = server.call(Method::POST, "/v1/completions", &other).json(&streamed).send().await.unwrap();
    assert!(streamed.text().await.unwrap().ends_with("data: [DONE]\n\n"));
    let whole = completion(&server, &short, 60).send().await.unwrap();
    let used = whole.json::<Value>().await.unwrap()["usage"]["total_tokens"].as_u64().unwrap();
    assert!(used > 60);
    for key in [&short, &other] {
        let refused = completion(&server, key, 1).send().await.unwrap();
        assert_eq!(refused.status(), 429);
        assert_eq!(header(&refused, "x-ratelimit-remaining-tokens"), "0");
        // A third of a token comes back in a second.
        let wait: u64 = header(&refused, "retry-after").parse().unwrap();
        let debt = (used - 20 + 1) * 3;
        assert!((debt - 10..=debt).contains(&wait), "{wait}, {debt}");
        assert_eq!(refused.json::<Value>().await.unwrap()["error"]["type"], "tokens");
        assert_eq!(status(server.call(Method::GET, "/v1/models", key)).await, 200, "it costs no tokens");
    }
}

#[tokio::test]
async fn a_stream_holds_its_place_until_it_is_left() {
    let storage = tempfile::tempdir().unwrap();
    let key = new_key(storage.path(), &["--max-concurrent", "1"]);
    let server = Program::start(storage.path(), 5).await;
    let long = json!({"model": "sim", "prompt": "x", "max_tokens": 4000, "ignore_eos": true, "stream": true});
    let running = server.call(Method::POST, "/v1/completions", &key).json(&long).send().await.unwrap();
    assert_eq!(running.status(), 200);
    let message = "Rate limit reached: 1 requests at a time.";
    let full = refused(429, "requests", "rate_limit_exceeded", message);
    assert_eq!(refusal(completion(&server, &key, 1)).await, full);
    drop(running);
    let deadline = Instant::now() + NOTICED;
    while status(completion(&server, &key, 1)).await != 200 {
        assert!(Instant::now() < deadline, "the place was never given back");
    }
}

#[tokio::test]
async fn others_are_listened_to_with_keys_or_a_word_of_consent() {
    let dir = tempfile::tempdir().unwrap();
    let storage = dir.path().join("data");
    let serve = |host: &str| {
        let args = ["serve", "--profile", "sim", "--port", "0", "--host", host];
        let output = tandem(&args).env("STORAGE_PATH", &storage).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let line = "error: config: server.host: refusing to listen on a non-loopback address without API keys\n";
    for host in ["0.0.0.0", "::", "192.0.2.1"] {
        assert_eq!(serve(host), (78, line.to_owned()), "{host}");
    }
    assert!(!storage.exists(), "nothing is made");

    let exposed = ("TANDEM__SERVER__HOST", "0.0.0.0");
    let mode = || std::os::unix::fs::PermissionsExt::mode(&fs_err::metadata(&storage).unwrap().permissions());
    let open = Program::spawn("sim", &storage, &[exposed, ("TANDEM__SERVER__INSECURE_NO_AUTH", "true")]);
    assert_eq!(open.terminate(), Some(0));
    assert_eq!(mode() & 0o777, 0o700, "its owner's alone");
    let key = new_key(&storage, &[]);
    let server = Program::start_with(&storage, &[exposed]).await;
    assert_eq!(status(server.call(Method::GET, "/v1/models", "")).await, 401);
    assert_eq!(status(server.call(Method::GET, "/v1/models", &key)).await, 200);
    assert_eq!(server.terminate(), Some(0));
    // Consent goes before keys.
    let open = Program::start_with(&storage, &[("TANDEM__SERVER__INSECURE_NO_AUTH", "true")]).await;
    assert_eq!(status(open.call(Method::GET, "/v1/models", "")).await, 200);
}
