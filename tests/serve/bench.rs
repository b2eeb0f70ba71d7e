//! `tandem bench` as it is used: programs of its own beside servers that are there, and what becomes of those that fail.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::program::{Program, tandem};

const FAST: &str = "[backend]\nkind = \"sim\"\ncontext = 4096\n[models.sim]\n";
const SLOW: &str = "[backend]\nkind = \"sim\"\ncontext = 4096\nstep_delay_ms = 10\n[models.sim]\n";
/// A step hangs, and the watchdog ends the process: after loading and warm-up, before the end.
const DIES: &str = "[backend]\nkind = \"sim\"\ncontext = 4096\nfaults = { hangs_at = 20 }\n[engine]\nstep_timeout_ms = 100\n[models.sim]\n";
const EMBEDS: &str = "[backend]\nkind = \"sim\"\ncontext = 4096\n[models.sim]\ntask = \"embed\"\n";

/// A few short requests.
const SMALL: [&str; 8] = ["--requests", "12", "--concurrency", "4", "--input-tokens", "64", "--output-tokens", "8"];

/// A directory with profiles of its own.
struct Place(TempDir);

/// How a bench ended, and what it said.
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Place {
    fn with(profiles: &[(&str, &str)]) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs_err::create_dir(place.0.path().join("config")).unwrap();
        for (name, text) in profiles {
            place.profile(name, text);
        }
        place
    }

    fn profile(&self, name: &str, text: &str) {
        fs_err::write(self.0.path().join(format!("config/{name}.toml")), text).unwrap();
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = tandem(&["bench"]);
        command.args(args).current_dir(self.0.path());
        command
    }

    fn bench(&self, args: &[&[&str]]) -> Ended {
        let output = self.command(&args.concat()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    fn report(&self, out: &str) -> Value {
        serde_json::from_slice(&fs_err::read(self.path(out).join("report.json")).unwrap()).unwrap()
    }
}

fn target<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["targets"].as_array().unwrap().iter().find(|target| target["name"] == name).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn profiles_are_measured_by_turns_on_the_same_requests() {
    let place = Place::with(&[("fast", FAST), ("slow", SLOW)]);
    let args = ["--profile", "fast", "--profile", "slow", "--repeats", "2", "--check", "4", "--out", "out"];
    let Ended { code, out, err } = place.bench(&[&args, &SMALL]);
    assert_eq!(code, Some(0), "{out}{err}");
    let turns: Vec<&str> = err.lines().filter(|line| line.contains("at a time")).collect();
    let turn = |name: &str, repeat: u32| format!("{name}, repeat {repeat} of 2, 4 at a time");
    assert_eq!(turns, [turn("fast", 1), turn("slow", 1), turn("fast", 2), turn("slow", 2)]);

    let report = place.report("out");
    let (fast, slow) = (target(&report, "fast"), target(&report, "slow"));
    for target in [fast, slow] {
        // The prompts have exactly the tokens that were asked for, as the model counts them.
        assert_eq!((&target["input_tokens"], &target["output_tokens"]), (&json!(24 * 64), &json!(24 * 8)), "{target}");
        assert_eq!(target["requests"], json!({"ok": 24, "failed": 0, "empty": 0, "cut": 0}));
        assert_eq!(
            (&target["backend"], &target["mode"], &target["model"]),
            (&json!("sim"), &json!("server"), &json!("sim"))
        );
        assert_eq!(target["runs"].as_array().unwrap().len(), 2);
        for figure in ["ttft_ms", "itl_ms", "e2e_ms"] {
            assert!(number(&target[figure]["p50"]) <= number(&target[figure]["p99"]), "{target}");
        }
        assert!(number(&target["peak_memory_bytes"]) > 1e6 && target["cpu_s"].is_number(), "{target}");
        assert!(target["roofline_fraction"].is_null() && target["roofline_reason"].is_string(), "{target}");
    }
    // A step of the slow one takes 10 ms more, and a token is a step. Each is sent at once, on a connection that was used before too.
    assert!(number(&slow["itl_ms"]["p50"]) >= 10.0 && number(&slow["tpot_ms"]["p50"]) >= 10.0, "{slow}");
    let ratio = &report["ratios"][0];
    assert_eq!((&ratio["a"], &ratio["b"]), (&json!("fast"), &json!("slow")));
    let spread = &ratio["output_tokens_per_s"];
    assert!(number(&spread["min"]) > 1.0 && number(&spread["min"]) <= number(&spread["max"]), "{ratio}");
    let workload = &report["workload"];
    assert_eq!((&workload["requests"], &workload["input_tokens"]), (&json!(12), &json!(12 * 64)));
    assert_eq!(workload["sized_by"], "fast");
    // The same model says the same, whatever its steps take.
    let agreement = &report["agreement"][0];
    assert_eq!((&agreement["answers"], &agreement["exact"]), (&json!(4), &json!(4)), "{agreement}");
    assert_eq!(agreement["logprob_distance"]["max"], 0.0);

    assert!(out.contains("| fast ") && out.contains("fast over slow: "), "{out}");
    let document = fs_err::read_to_string(place.path("out/report.md")).unwrap();
    for chart in ["throughput.svg", "ttft.svg", "e2e.svg"] {
        assert!(document.contains(chart), "{document}");
        let text = fs_err::read_to_string(place.path("out").join(chart)).unwrap();
        assert!(text.starts_with("<svg") && text.contains("slow"), "{text}");
    }
    let requests = fs_err::read_to_string(place.path("out/requests.jsonl")).unwrap();
    assert_eq!(requests.lines().count(), 2 * 2 * 12);
    insta::assert_snapshot!(shape(&report), @"
    .agreement[].a text
    .agreement[].answers number
    .agreement[].b text
    .agreement[].exact number
    .agreement[].exact_fraction number
    .agreement[].first_difference null
    .agreement[].logprob_distance.max number
    .agreement[].logprob_distance.mean number
    .agreement[].logprob_distance.tokens number
    .command[] text
    .commit text
    .host null
    .interrupted bool
    .ratios[].a text
    .ratios[].b text
    .ratios[].concurrency null
    .ratios[].output_tokens_per_s.max number
    .ratios[].output_tokens_per_s.median number
    .ratios[].output_tokens_per_s.min number
    .ratios[].requests_per_s.max number
    .ratios[].requests_per_s.median number
    .ratios[].requests_per_s.min number
    .started_at text
    .tandem text
    .targets[].backend text
    .targets[].cached_input_tokens number
    .targets[].client_cpu_s number
    .targets[].concurrency number
    .targets[].cpu_s number
    .targets[].e2e_ms.p50 number
    .targets[].e2e_ms.p90 number
    .targets[].e2e_ms.p99 number
    .targets[].energy_j null
    .targets[].energy_reason null
    .targets[].error null
    .targets[].goodput null
    .targets[].gpus null
    .targets[].input_tokens number
    .targets[].input_tokens_per_s number
    .targets[].itl_ms.p50 number
    .targets[].itl_ms.p90 number
    .targets[].itl_ms.p99 number
    .targets[].knee null
    .targets[].mode text
    .targets[].model text
    .targets[].name text
    .targets[].output_tokens number
    .targets[].output_tokens_per_s number
    .targets[].peak_memory_bytes number
    .targets[].quantization null
    .targets[].requests.cut number
    .targets[].requests.empty number
    .targets[].requests.failed number
    .targets[].requests.ok number
    .targets[].requests_per_s number
    .targets[].roofline_fraction null
    .targets[].roofline_reason text
    .targets[].runs[].broken null
    .targets[].runs[].cached_input_tokens number
    .targets[].runs[].client_cpu_s number
    .targets[].runs[].concurrency number
    .targets[].runs[].cpu_s number
    .targets[].runs[].e2e_ms.p50 number
    .targets[].runs[].e2e_ms.p90 number
    .targets[].runs[].e2e_ms.p99 number
    .targets[].runs[].energy_j null
    .targets[].runs[].goodput null
    .targets[].runs[].gpus null
    .targets[].runs[].input_tokens number
    .targets[].runs[].input_tokens_per_s number
    .targets[].runs[].itl_ms.p50 number
    .targets[].runs[].itl_ms.p90 number
    .targets[].runs[].itl_ms.p99 number
    .targets[].runs[].load_s number
    .targets[].runs[].output_tokens number
    .targets[].runs[].output_tokens_per_s number
    .targets[].runs[].peak_memory_bytes number
    .targets[].runs[].rate null
    .targets[].runs[].repeat number
    .targets[].runs[].requests.cut number
    .targets[].runs[].requests.empty number
    .targets[].runs[].requests.failed number
    .targets[].runs[].requests.ok number
    .targets[].runs[].requests_per_s number
    .targets[].runs[].tpot_ms.p50 number
    .targets[].runs[].tpot_ms.p90 number
    .targets[].runs[].tpot_ms.p99 number
    .targets[].runs[].ttft_ms.p50 number
    .targets[].runs[].ttft_ms.p90 number
    .targets[].runs[].ttft_ms.p99 number
    .targets[].runs[].wall_s number
    .targets[].sweep[]
    .targets[].tpot_ms.p50 number
    .targets[].tpot_ms.p90 number
    .targets[].tpot_ms.p99 number
    .targets[].ttft_ms.p50 number
    .targets[].ttft_ms.p90 number
    .targets[].ttft_ms.p99 number
    .targets[].url null
    .targets[].wall_s number
    .workload.bad_lines[]
    .workload.goal.e2e_ms null
    .workload.goal.itl_ms null
    .workload.goal.ttft_ms null
    .workload.input_tokens number
    .workload.loads[] text
    .workload.name text
    .workload.output_tokens number
    .workload.repeats number
    .workload.requests number
    .workload.seed number
    .workload.sha256 text
    .workload.sized_by text
    .workload.streamed bool
    ");
}

/// The names of all fields, with the kinds of their values; of a list those of its first.
fn shape(value: &Value) -> String {
    fn fields(value: &Value, path: &str, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(object) => {
                for (name, value) in object {
                    fields(value, &format!("{path}.{name}"), found);
                }
            }
            Value::Array(values) => match values.first() {
                Some(first) => fields(first, &format!("{path}[]"), found),
                None => drop(found.insert(format!("{path}[]"))),
            },
            Value::Null => drop(found.insert(format!("{path} null"))),
            Value::Bool(_) => drop(found.insert(format!("{path} bool"))),
            Value::Number(_) => drop(found.insert(format!("{path} number"))),
            Value::String(_) => drop(found.insert(format!("{path} text"))),
        }
    }
    let mut found = BTreeSet::new();
    // Machines tell different things of themselves.
    let mut value = value.clone();
    value["host"] = json!(null);
    for target in value["targets"].as_array_mut().into_iter().flatten() {
        for of_cards in ["energy_j", "energy_reason", "gpus"] {
            target[of_cards] = json!(null);
            for run in target["runs"].as_array_mut().into_iter().flatten().filter(|_| of_cards != "energy_reason") {
                run[of_cards] = json!(null);
            }
        }
    }
    fields(&value, "", &mut found);
    found.into_iter().collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn what_cannot_be_measured_is_named_beside_what_can() {
    let place = Place::with(&[("fast", FAST)]);
    let storage = tempfile::tempdir().unwrap();
    let server = Program::start(storage.path(), 0).await;
    // A port that was just given back: nobody listens there.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (gone, here) = (format!("gone=http://{closed}/v1"), format!("here={}", server.url()));
    let other = format!("other={}/v1#nosuch", server.url());
    let targets =
        ["--target", &gone, "--target", &other, "--target", &here, "--profile", "nowhere", "--profile", "fast,tempo=1"];
    let Ended { code, out, err } = place.bench(&[&targets, &["--repeats", "1", "--out", "out"], &SMALL]);
    assert_eq!(code, Some(1), "{out}{err}");
    let report = place.report("out");
    let error = |name: &str| target(&report, name)["error"].as_str().unwrap().to_owned();
    assert!(error("gone").contains("cannot be reached"), "{}", error("gone"));
    assert_eq!(error("other"), "it has no model \"nosuch\"; it lists sim");
    assert!(error("nowhere").contains("unknown profile 'nowhere'"), "{}", error("nowhere"));
    assert!(error("fast,tempo=1").contains("tempo"), "{}", error("fast,tempo=1"));
    for name in ["gone", "other", "nowhere"] {
        assert!(err.contains(&error(name)) && out.contains(&error(name)), "{out}{err}");
        assert_eq!(target(&report, name)["requests"]["ok"], 0);
        assert!(target(&report, name)["output_tokens_per_s"].is_null());
    }
    let here = target(&report, "here");
    assert_eq!((&here["error"], &here["requests"]["ok"]), (&json!(null), &json!(12)), "{here}");
    assert_eq!(here["input_tokens"], 12 * 64);
    assert!(here["backend"].is_null() && here["peak_memory_bytes"].is_null());
}

/// A server of the kind of llama.cpp's: its `/tokenize` takes `content` and answers with tokens, here a letter each, and what a chat comes to
/// as a text has to be asked for. Keeps the bodies of chats.
fn llama_server(asked: &Arc<Mutex<Vec<Value>>>) -> String {
    use actix_web::{App, HttpResponse, HttpServer, web};

    fn rendered(body: &Value) -> String {
        let texts = body["messages"].as_array().unwrap().iter().map(|message| message["content"].as_str().unwrap());
        format!("<user>{}<answer>", texts.collect::<Vec<_>>().concat())
    }
    let keep = web::Data::from(Arc::clone(asked));
    let server = HttpServer::new(move || {
        App::new()
            .app_data(keep.clone())
            .route("/v1/models", web::get().to(|| async { HttpResponse::Ok().json(json!({"data": [{"id": "peer"}]})) }))
            .route(
                "/tokenize",
                web::post().to(|body: web::Json<Value>| async move {
                    let letters = body["content"].as_str().unwrap_or_default().len();
                    // One that begins every prompt.
                    let special = usize::from(body["add_special"] == true && letters > 0);
                    HttpResponse::Ok().json(json!({"tokens": vec![7; letters + special]}))
                }),
            )
            .route(
                "/apply-template",
                web::post().to(|body: web::Json<Value>| async move {
                    HttpResponse::Ok().json(json!({"prompt": rendered(&body)}))
                }),
            )
            .route(
                "/v1/chat/completions",
                web::post().to(|body: web::Json<Value>, asked: web::Data<Mutex<Vec<Value>>>| async move {
                    let answer = json!({
                        "choices": [{"message": {"content": "text"}, "finish_reason": "length"}],
                        "usage": {"prompt_tokens": rendered(&body).len() + 1, "completion_tokens": body["max_tokens"]},
                    });
                    asked.lock().unwrap().push(body.into_inner());
                    HttpResponse::Ok().json(answer)
                }),
            )
    });
    let server = server.workers(1).disable_signals().bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://{}", server.addrs()[0]);
    tokio::spawn(server.run());
    url
}

#[tokio::test]
async fn prompts_are_measured_by_a_server_that_counts_in_its_own_way() {
    let place = Place::with(&[]);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let url = llama_server(&asked);
    let args = ["--target".to_owned(), format!("peer={url}"), "--no-stream".to_owned()];
    let ended = tokio::task::spawn_blocking(move || {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let ended = place.bench(&[&args, &["--repeats", "2", "--out", "out"], &SMALL]);
        (ended, place.report("out"))
    });
    let (Ended { code, out, err }, report) = ended.await.unwrap();
    assert_eq!(code, Some(0), "{out}{err}");
    assert_eq!(report["workload"]["sized_by"], "peer");
    // With what the template adds and the token that begins them, each has what was asked for.
    let peer = target(&report, "peer");
    assert_eq!((&peer["input_tokens"], &peer["output_tokens"]), (&json!(24 * 64), &json!(24 * 8)), "{peer}");
    let lengths: Vec<usize> = asked
        .lock()
        .unwrap()
        .iter()
        .filter(|body| body["ignore_eos"] == true)
        .map(|body| body["messages"][0]["content"].as_str().unwrap().len())
        .collect();
    assert_eq!(lengths, [64 - "<user><answer>".len() - 1; 24]);
}

/// One of the two, whether this machine has cards or not.
#[test]
fn cards_are_told_of_or_the_log_says_why_not() {
    let place = Place::with(&[("fast", FAST)]);
    let mut command = place.command(&[&["--profile", "fast", "--repeats", "1"][..], &SMALL].concat());
    let output = command.env("RUST_LOG", "tandem=debug").output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{log}");
    let report = place.report("bench-report");
    let (host, fast) = (&report["host"], target(&report, "fast"));
    assert_eq!(log.matches("NVML").count(), usize::from(host["gpu_driver"].is_null()), "{log}{host}");
    assert_eq!(fast["gpus"].is_null(), host["gpu_driver"].is_null(), "{report}");
    assert_eq!(fast["energy_j"].is_null(), fast["energy_reason"].is_string(), "{report}");
}

#[test]
fn a_target_that_dies_is_reported_as_far_as_it_came() {
    let place = Place::with(&[("fast", FAST), ("dies", DIES)]);
    let args = ["--profile", "dies", "--profile", "fast", "--repeats", "2", "--out", "out"];
    let Ended { code, out, err } = place.bench(&[&args, &SMALL]);
    assert_eq!(code, Some(1), "{out}{err}");
    let report = place.report("out");
    let (dies, fast) = (target(&report, "dies"), target(&report, "fast"));
    let error = dies["error"].as_str().unwrap();
    assert!(error.starts_with("ended with exit code 70: "), "{error}");
    let runs = dies["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 1, "{dies}");
    assert_eq!(runs[0]["broken"], error);
    // What it did before is told, and is no figure.
    assert!(dies["output_tokens_per_s"].is_null(), "{dies}");
    assert_eq!((&fast["requests"]["ok"], &fast["error"]), (&json!(24), &json!(null)));
    assert_eq!(report["ratios"], json!([]));
    assert!(out.contains("exit code 70") && place.path("out/dies.log").exists(), "{out}");
}

#[test]
fn a_file_is_a_workload_and_its_bad_lines_are_named() {
    let place = Place::with(&[("fast", FAST)]);
    let line = |id: u32| {
        let body = json!({"model": "another", "messages": [{"role": "user", "content": format!("Question {id}")}], "max_tokens": 8});
        json!({"custom_id": id.to_string(), "method": "POST", "url": "/v1/chat/completions", "body": body}).to_string()
    };
    let lines = [line(1), "no JSON".to_owned(), line(2), "{\"url\":\"/v1/images\",\"body\":{}}".to_owned(), line(3)];
    fs_err::write(place.path("work.jsonl"), lines.join("\n")).unwrap();
    let args = ["--profile", "fast", "--workload", "work.jsonl", "--mode", "both", "--repeats", "1"];
    let Ended { code, out, err } = place.bench(&[&args]);
    assert_eq!(code, Some(1), "{out}{err}");
    let report = place.report("bench-report");
    let bad: Vec<&Value> = report["workload"]["bad_lines"].as_array().unwrap().iter().map(|bad| &bad["line"]).collect();
    assert_eq!(bad, [2, 4]);
    assert!(err.contains("work.jsonl: line 2: ") && out.contains("line 4 of the workload: "), "{out}{err}");
    let (server, offline) = (target(&report, "fast"), target(&report, "fast offline"));
    assert_eq!((&server["requests"]["ok"], &offline["requests"]["ok"]), (&json!(3), &json!(3)), "{report}");
    // Both ways to the same model read and say the same.
    assert_eq!(server["input_tokens"], offline["input_tokens"]);
    assert!(number(&offline["requests_per_s"]) > 0.0 && offline["e2e_ms"].is_null(), "{offline}");
    assert!(number(&offline["runs"][0]["load_s"]) > 0.0, "{offline}");

    fs_err::write(place.path("bad.jsonl"), "{}\n").unwrap();
    let Ended { code, err, .. } = place.bench(&[&["--profile", "fast", "--workload", "bad.jsonl"]]);
    assert_eq!(code, Some(65), "{err}");
    assert!(err.contains("bad.jsonl: has no line that is a request; line 1: "), "{err}");
    let Ended { code, err, .. } = place.bench(&[&["--profile", "fast", "--workload", "missing.jsonl"]]);
    assert_eq!(code, Some(66), "{err}");
    let Ended { code, err, .. } = place.bench(&[&["--profile", "fast", "--workload", "fixt"]]);
    assert_eq!(code, Some(2), "{err}");
}

#[test]
fn what_got_slower_is_found_by_an_older_report() {
    let place = Place::with(&[("changing", FAST)]);
    let run = |out: &str, more: &[&str]| {
        place.bench(&[&["--profile", "changing", "--repeats", "2", "--out", out], &SMALL, more])
    };
    let Ended { code, out, err } = run("before", &[]);
    assert_eq!(code, Some(0), "{out}{err}");
    place.profile("changing", SLOW);
    let Ended { code, out, .. } = run("after", &["--compare", "before/report.json"]);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("WORSE  changing: output tokens/s ") && out.contains("WORSE  changing: E2E p50 ms "), "{out}");

    let Ended { code, out, err } = place.bench(&[&["report", "before", "after"]]);
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(out.matches("\n- Machine: ").count(), 2, "{out}");
    assert!(out.starts_with("### 20") && out.contains("`tandem bench --profile changing"), "{out}");
    let Ended { code, out, .. } = place.bench(&[&["report", "before", "--compare", "after/report.json"]]);
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains("better changing: output tokens/s "), "{out}");

    // Other requests say nothing about it.
    let Ended { code, out, .. } = run("other", &["--seed", "2", "--compare", "before/report.json"]);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("cannot be compared: the workloads differ"), "{out}");
    let Ended { code, err, .. } = place.bench(&[&["report", "nowhere"]]);
    assert_eq!(code, Some(66), "{err}");
}

#[test]
fn every_workload_is_answered() {
    let place = Place::with(&[("fast", FAST), ("embeds", EMBEDS)]);
    for (workload, profile) in [
        ("sharegpt-like", "fast"),
        ("shared-prefix", "fast"),
        ("multi-turn", "fast"),
        ("structured", "fast"),
        ("embeddings", "embeds"),
    ] {
        let args = ["--profile", profile, "--workload", workload, "--out", workload, "--repeats", "1"];
        let Ended { code, out, err } = place.bench(&[&args, &SMALL, &["--shared-tokens", "200"]]);
        assert_eq!(code, Some(0), "{workload}: {out}{err}");
        assert_eq!(target(&place.report(workload), profile)["requests"]["ok"], 12, "{workload}");
    }
    // What is shared is computed once.
    let cached = number(&target(&place.report("shared-prefix"), "fast")["cached_input_tokens"]);
    assert!(cached >= 11.0 * 190.0, "{cached}");
    // A model that answers no chats says so once, and not twelve times.
    let args = ["--profile", "embeds", "--repeats", "1"];
    let Ended { code, out, .. } = place.bench(&[&args, &SMALL]);
    assert_eq!(code, Some(1), "{out}");
    assert_eq!(target(&place.report("bench-report"), "embeds")["runs"], json!([]));
}

#[test]
fn loads_are_swept_and_requests_come_at_a_rate() {
    let place = Place::with(&[("slow", SLOW)]);
    let work = ["--requests", "16", "--input-tokens", "32", "--output-tokens", "4", "--repeats", "1"];
    let args = ["--profile", "slow", "--sweep", "1,4", "--goal", "ttft=100000", "--goal", "itl=1"];
    let Ended { code, out, err } = place.bench(&[&args, &work]);
    assert_eq!(code, Some(0), "{out}{err}");
    let report = place.report("bench-report");
    let slow = target(&report, "slow");
    let levels = slow["sweep"].as_array().unwrap();
    assert_eq!(levels.iter().map(|level| &level["concurrency"]).collect::<Vec<_>>(), [1, 4]);
    // Four sequences share each step of 10 ms.
    let rate = |level: &Value| number(&level["output_tokens_per_s"]["median"]);
    assert!(rate(&levels[1]) > 1.5 * rate(&levels[0]), "{slow}");
    assert_eq!((&slow["knee"], &slow["concurrency"]), (&json!(4), &json!(4)));
    // A token takes 10 ms at least, and 1 ms was the goal.
    assert_eq!((&levels[0]["within_goal"], &levels[0]["goodput"]["fraction"]), (&json!(false), &json!(0.0)));
    assert!(place.path("bench-report/sweep.svg").exists());

    let args = ["--profile", "slow", "--rate", "50", "--goal", "e2e=100000"];
    let Ended { code, out, err } = place.bench(&[&args, &work]);
    assert_eq!(code, Some(0), "{out}{err}");
    let report = place.report("bench-report");
    let run = &target(&report, "slow")["runs"][0];
    assert_eq!((&run["rate"], &run["concurrency"]), (&json!(50.0), &json!(null)));
    assert_eq!((&run["requests"]["ok"], &run["goodput"]["fraction"]), (&json!(16), &json!(1.0)), "{run}");
}

#[test]
fn what_is_finished_is_told_when_it_is_interrupted() {
    let place = Place::with(&[("slow", SLOW)]);
    let args = ["--profile", "slow", "--repeats", "100"];
    let mut command = place.command(&[&args[..], &SMALL].concat());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.starts_with("slow, repeat 2 of 100")));
    let kill = format!("kill -INT {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    // Read to its end, so that nobody waits for a reader.
    lines.for_each(drop);
    let ended = child.wait_with_output().unwrap();
    let out = String::from_utf8(ended.stdout).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{out}");
    assert!(out.contains("interrupted: what was finished is above"), "{out}");
    let report = place.report("bench-report");
    assert_eq!(report["interrupted"], true);
    let slow = target(&report, "slow");
    assert!(slow["runs"].as_array().unwrap().len() < 100 && number(&slow["output_tokens_per_s"]) > 0.0, "{slow}");
}

#[test]
fn a_sample_file_can_be_made() {
    let output = tandem(&["dev", "sample-batch", "--lines", "20", "--model", "m", "--out", "-"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 20);
    assert!(lines.iter().all(|line| line["body"]["model"] == "m" && line["method"] == "POST"), "{text}");
}
