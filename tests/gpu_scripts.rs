//! `scripts/gpu-check` on machines as they may be, with programs in the place of drivers and tests; and what `scripts/gpu-build` refuses.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

/// An archive's content, and what the machine is like.
struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    /// `driver` is what stands for `nvidia-smi`.
    fn new(driver: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let machine = Self { folder };
        machine.program("machine/nvidia-smi", driver);
        machine.program("build/bin/tandem", "exit 1");
        let built =
            format!("directory={}\nfeatures=cuda\narchs=80,89\ncommit=0123456789ab\n", env!("CARGO_MANIFEST_DIR"));
        fs_err::write(machine.path().join("build/built"), built).unwrap();
        machine
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.path().join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The script's output with these arguments, behind what is to be checked.
    fn run(&self, args: &[&str], seconds: &str) -> Output {
        let path = format!("{}:{}", self.path().join("machine").display(), std::env::var("PATH").unwrap());
        Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/gpu-check"))
            .arg(self.path().join("build"))
            .args(args)
            .arg("--out")
            .arg(self.path().join("out"))
            .env("PATH", path)
            .env("TANDEM_CACHE", self.path().join("cache"))
            // So many have gone by when it begins.
            .env("SECONDS", seconds)
            .output()
            .unwrap()
    }

    /// The exit code, the last line, and what was written as JSON.
    fn check_with(&self, args: &[&str], seconds: &str) -> (Option<i32>, String, Value) {
        let Output { status, stdout, stderr } = self.run(args, seconds);
        let text = String::from_utf8(stdout).unwrap();
        let written = fs_err::read(self.path().join("out/gpu-check.json"));
        let written = written.unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&stderr)));
        (status.code(), text.lines().last().unwrap().to_owned(), serde_json::from_slice(&written).unwrap())
    }

    fn check(&self) -> (Option<i32>, String, Value) {
        self.check_with(&["--no-bench"], "0")
    }
}

/// A row of the table: its result and its remark.
fn row<'a>(written: &'a Value, name: &str) -> (&'a str, &'a str) {
    let rows = written["checks"].as_array().unwrap();
    let row = rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no {name} in {written:#}"));
    (row["result"].as_str().unwrap(), row["remark"].as_str().unwrap())
}

const CARD: &str = "echo '580.95.05, NVIDIA GeForce RTX 4080, 8.9, 16376'";

#[test]
fn a_machine_without_a_driver_is_told_so_in_one_sentence() {
    let (code, last, written) = Machine::new("echo 'has failed'; exit 9").check();
    assert_eq!((code, last.as_str()), (Some(2), "There is no NVIDIA driver on this machine: nothing was checked."));
    assert_eq!((&written["result"], &written["memory_mib"]), (&Value::from(last), &Value::Null));
    let (code, last, _) = Machine::new("echo 'No devices were found'").check();
    let expected = "The NVIDIA driver finds no card (No devices were found): nothing was checked.";
    assert_eq!((code, last.as_str()), (Some(2), expected));
}

#[test]
fn a_build_for_other_cards_is_told_apart() {
    for (capability, fits) in
        [("8.9", true), ("8.6", true), ("8.0", true), ("9.0", false), ("7.5", false), ("12.0", false)]
    {
        let machine = Machine::new(&format!("echo '580.95.05, A card, {capability}, 16376'"));
        machine
            .program("build/tests/tandem-llama-cpp-backend", "echo 'test result: ok. 3 passed; 0 failed; 0 ignored'");
        let (code, last, _) = machine.check();
        assert_eq!(code, Some(if fits { 0 } else { 2 }), "{capability}: {last}");
        assert_eq!(last.contains("scripts/gpu-build --arch "), !fits, "{capability}: {last}");
    }
}

#[test]
fn what_passed_and_what_failed_is_in_the_table() {
    let machine = Machine::new(CARD);
    let passes = "test \"$1\" = gpu:: || exit 3; echo 'test result: ok. 3 passed; 0 failed; 0 ignored'";
    machine.program("build/tests/tandem-llama-cpp-backend", passes);
    machine.program("build/tests/tandem-cuda-unit", "echo 'test result: ok. 12 passed; 0 failed; 0 ignored'");
    let (code, last, written) = machine.check();
    assert_eq!(code, Some(0), "{last}");
    assert!(last.starts_with("All 2 checks passed on NVIDIA GeForce RTX 4080; "), "{last}");
    assert_eq!(written["card"], "NVIDIA GeForce RTX 4080");
    assert_eq!((&written["driver"], &written["memory_mib"]), (&Value::from("580.95.05"), &Value::from(16_376)));
    assert_eq!(written["checks"][1]["name"], "tandem-llama-cpp-backend");
    assert_eq!(written["checks"][1]["remark"], "3 passed; 0 failed");

    machine.program(
        "build/tests/tandem-cuda-unit",
        "echo 'test result: FAILED. 11 passed; 1 failed; 0 ignored'; exit 101",
    );
    let (code, last, written) = machine.check();
    assert_eq!(code, Some(1), "{last}");
    assert!(last.starts_with("1 of 2 checks failed on NVIDIA GeForce RTX 4080; "), "{last}");
    assert_eq!((&written["checks"][0]["result"], &written["checks"][1]["result"]), (&"FAILED".into(), &"ok".into()));

    // A filter that nothing matches would pass for ever.
    machine.program("build/tests/tandem-cuda-unit", "echo 'test result: ok. 0 passed; 0 failed; 0 ignored'");
    assert_eq!(machine.check().0, Some(1));
}

#[test]
fn a_library_that_is_missing_is_named() {
    let machine = Machine::new(CARD);
    machine.program("machine/ldd", "echo '\tlibcublas.so.13 => not found'");
    let (code, last, _) = machine.check();
    assert_eq!(code, Some(2), "{last}");
    assert!(last.starts_with("Missing on this machine: libcublas.so.13. scripts/cuda-toolkit --runtime "), "{last}");
}

#[test]
fn wrong_arguments_of_a_check_are_refused() {
    let machine = Machine::new(CARD);
    for (args, expected) in [
        (&["--only", "speed"][..], "error: --only is speed; it may be kernels numerics nano card peers plan bench\n"),
        (&["--minutes", "0"], "error: --minutes is a positive number\n"),
        (&["--repeats", "x"], "error: --repeats is a positive number\n"),
        (&["--shapes", "llama"], "error: --shapes is llama; shapes look like llama-8b,qwen3-1.7b\n"),
        (&["--model", "/no/such.gguf"], "error: there is no file /no/such.gguf\n"),
        (&["--onyl", "card"], "error: unknown argument --onyl; scripts/gpu-check --help lists them\n"),
    ] {
        let Output { status, stderr, .. } = machine.run(args, "0");
        assert_eq!((status.code(), String::from_utf8(stderr).unwrap().as_str()), (Some(1), expected));
        assert!(!machine.path().join("out").exists(), "{args:?}");
    }
}

/// A card whose memory is used by what is served.
const MEMORY: &str = r#"case "$*" in
    *memory.used*) if [ -e "$(dirname "$0")/served" ]; then echo 21000; else echo 1000; fi ;;
    *) echo '580.95.05, NVIDIA H200, 9.0, 143771' ;;
esac"#;

/// Programs of an archive that answer as they do where all is well; what is served takes a fifth of a second to be so.
fn archive(machine: &Machine) {
    let server = "import http.server
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
server = http.server.HTTPServer((\"127.0.0.1\", 0), Ready)
print(f\"Tandem is listening on http://127.0.0.1:{server.server_port}\", flush=True)
server.serve_forever()
";
    fs_err::write(machine.path().join("server.py"), server).unwrap();
    let (used, server) = (machine.path().join("machine/served"), machine.path().join("server.py"));
    let tandem = format!(
        r#"words="$*"; what=$1
while [ $# -gt 0 ]; do case $1 in --out) out=$2 ;; esac; shift; done
case $what in
dev) mkdir -p "$out"; echo x > "$out/model.safetensors"; echo x > "$out/llama-8b-Q4_K_M.gguf" ;;
plan) echo 'model default: 256 sequences'; echo "together         ${{PLANNED:-19.0 GiB}}"; echo fits ;;
serve) touch {used}; trap 'kill $!; rm {used}' TERM; python3 {server} & wait $! ;;
bench)
    echo "$words" >> {seen}
    mkdir -p "$out"
    printf '{{\n  "targets": [\n    {{\n      "runs": [\n        {{\n          "output_tokens_per_s": 1.0\n        }}\n      ],\n' > "$out/report.json"
    printf '      "input_tokens": 10,\n      "output_tokens": 20,\n      "wall_s": 2.5,\n      "output_tokens_per_s": 12345.6,\n' >> "$out/report.json"
    printf '      "roofline_fraction": 0.61,\n      "roofline_reason": null\n    }}\n  ]\n}}\n' >> "$out/report.json" ;;
esac"#,
        used = used.display(),
        server = server.display(),
        seen = machine.path().join("bench.args").display(),
    );
    machine.program("build/bin/tandem", &tandem);
    let bench = r#"while [ $# -gt 0 ]; do case $1 in --json) json=$2 ;; esac; shift; done
echo 'NVIDIA H200: copies 4.312 TB/s, BF16 785.5 TFLOP/s'
echo 'loaded in 4.0 s, 15.0 GiB read by each step'
echo 'prompt of    512:     41000 tokens/s, 0.812 of the roofline'
echo 'decoding       8:      1900 tokens/s, 0.840 of the roofline, host 0.021 of the time'
printf '{ "device": "NVIDIA H200" }\n' > "$json""#;
    machine.program("build/bench/tandem-candle-card", bench);
    let built = format!("directory={}\nfeatures=cuda\narchs=90\ncommit=0123456789ab\n", env!("CARGO_MANIFEST_DIR"));
    fs_err::write(machine.path().join("build/built"), built).unwrap();
}

#[test]
fn what_is_measured_is_in_the_table_and_in_the_file() {
    let machine = Machine::new(MEMORY);
    archive(&machine);
    machine.program("machine/python3", "echo 'this Python has no torch'; exit 3");
    machine.program(
        "machine/llama-batched-bench",
        r#"echo '{"n_kv_max": 4608, "pl": 8, "speed_pp": 30000.5, "speed_tg": 1500.25, "speed": 1.0}'"#,
    );
    let args = ["--only", "nano", "--only", "card", "--only", "peers", "--shapes", "llama-8b"];
    let (code, last, written) = machine.check_with(&args, "0");
    assert_eq!(code, Some(0), "{last}");
    assert!(last.starts_with("All 7 checks passed on NVIDIA H200, and 2 were skipped; "), "{last}");
    let steps = "copies 4.312 TB/s, BF16 785.5 TFLOP/s; prompt 512: 41000/s 0.812; decode 8: 1900/s 0.840 host 0.021";
    for name in ["card-qwen3-0.6b-bf16", "card-llama-8b-bf16", "card-llama-8b-q4"] {
        assert_eq!(row(&written, name), ("ok", steps));
    }
    let nano = "12345.6 output tokens/s, 0.61 of the roofline, the median of 2";
    assert_eq!(row(&written, "nano-qwen3-0.6b"), ("ok", nano));
    for name in ["peer-transformers-nano-qwen3-0.6b", "peer-transformers-llama-8b"] {
        assert_eq!(row(&written, name), ("skipped", "this Python has no torch"));
    }
    assert_eq!(row(&written, "peer-llama-cpp-llama-8b-q4"), ("ok", "decode 8: 1500.25/s, prompts 30000.5/s"));
    let rows = written["checks"].as_array().unwrap();
    let of = |name: &str| &rows.iter().find(|row| row["name"] == name).unwrap()["measured"];
    assert_eq!(of("card-llama-8b-q4")["device"], "NVIDIA H200");
    assert_eq!(of("nano-qwen3-0.6b")["roofline_fraction"], 0.61);
    assert_eq!(of("peer-llama-cpp-llama-8b-q4")[0]["speed_tg"], 1500.25);
    // What was measured of the card is what the engine is held against.
    let asked = fs_err::read_to_string(machine.path().join("bench.args")).unwrap();
    assert!(asked.contains("--gpu-rates 4.312,785.5") && asked.contains("--input-tokens 100..1024"), "{asked}");
    // Models are large, and are not left behind.
    let left = fs_err::read_dir(machine.path().join("cache/gpu/models"));
    assert_eq!(left.map_or(0, Iterator::count), 0);

    machine.program("build/bench/tandem-candle-card", "echo 'error: no memory'; exit 1");
    let (code, last, written) = machine.check_with(&["--only", "card", "--shapes", "llama-8b"], "0");
    assert_eq!(code, Some(1), "{last}");
    assert!(last.starts_with("2 of 3 checks failed on NVIDIA H200; "), "{last}");
    assert_eq!(row(&written, "card-llama-8b-q4").0, "FAILED");
}

#[test]
fn a_plan_is_held_against_what_is_used() {
    let machine = Machine::new(MEMORY);
    archive(&machine);
    let args = ["--only", "plan", "--shapes", "llama-8b"];
    let (code, last, written) = machine.check_with(&args, "0");
    assert_eq!(code, Some(0), "{last}");
    let expected = "planned 19456 MiB, used 20000 MiB (2.8 %)";
    assert_eq!(row(&written, "plan-llama-8b"), ("ok", expected));
    assert_eq!(row(&written, "plan-llama-8b-all"), ("ok", expected));
    assert!(!machine.path().join("machine/served").exists(), "what was served is stopped");

    let tandem = fs_err::read_to_string(machine.path().join("build/bin/tandem")).unwrap();
    machine.program("build/bin/tandem", tandem.replace("19.0 GiB", "18.0 GiB").trim_start_matches("#!/bin/sh\n"));
    let (code, _, written) = machine.check_with(&args, "0");
    assert_eq!(code, Some(1));
    let expected = "planned 18432 MiB, used 20000 MiB (8.5 %), which is more than 5 % off";
    assert_eq!(row(&written, "plan-llama-8b"), ("FAILED", expected));
}

#[test]
fn what_would_begin_too_late_is_skipped() {
    let machine = Machine::new(MEMORY);
    archive(&machine);
    machine.program("build/tests/tandem-cuda-rows", "echo 'test result: ok. 6 passed; 0 failed; 0 ignored'");
    let args = ["--minutes", "1", "--only", "kernels", "--only", "card"];
    let (code, last, written) = machine.check_with(&args, "60");
    assert_eq!(code, Some(0), "{last}");
    assert!(last.starts_with("All 0 checks passed on NVIDIA H200, and 4 were skipped; "), "{last}");
    for name in ["tandem-cuda-rows", "shape-qwen3-1.7b", "shape-llama-8b", "shape-gemma3-12b"] {
        assert_eq!(row(&written, name), ("skipped", "the 1 minutes were over"));
    }
    let (_, last, written) = machine.check_with(&["--minutes", "1", "--only", "kernels"], "0");
    assert_eq!(row(&written, "tandem-cuda-rows"), ("ok", "6 passed; 0 failed"), "{last}");
    // One that does not come to its end.
    machine.program("build/tests/tandem-cuda-rows", "exec tail -f /dev/null");
    let (code, _, written) = machine.check_with(&["--minutes", "1", "--only", "kernels"], "56");
    let (result, remark) = row(&written, "tandem-cuda-rows");
    assert!(result == "skipped" && remark.starts_with("the 1 minutes were over before it ended"), "{remark}");
    assert_eq!(code, Some(0));
}

#[test]
fn tests_run_under_a_sanitizer_where_there_is_one() {
    let machine = Machine::new(MEMORY);
    archive(&machine);
    machine.program("build/tests/tandem-cuda-attention", "exit 7");
    let sanitizer = r#"case "$*" in
*racecheck*) echo '========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)'; exit 9 ;;
*) echo '========= COMPUTE-SANITIZER'; echo 'test result: ok. 1 passed; 0 failed'; echo '========= ERROR SUMMARY: 0 errors' ;;
esac"#;
    machine.program("build/compute-sanitizer/compute-sanitizer", sanitizer);
    let args = ["--sanitize", "--only", "plan", "--minutes", "9", "--shapes", "llama-8b"];
    let (code, last, written) = machine.check_with(&args, "0");
    assert_eq!(code, Some(1), "{last}");
    assert_eq!(row(&written, "memcheck-attention"), ("ok", "ERROR SUMMARY: 0 errors"));
    let (result, remark) = row(&written, "racecheck-attention");
    assert!(result == "FAILED" && remark.starts_with("RACECHECK SUMMARY: 2 hazards"), "{remark}");
    // The archive has no such test.
    assert_eq!(row(&written, "memcheck-product").0, "skipped");
}

#[test]
fn all_of_it_can_be_rehearsed_without_a_card() {
    let machine = Machine::new("echo 'has failed'; exit 9");
    archive(&machine);
    machine.program("machine/python3", "exit 3");
    let emulated = "test \"$TANDEM_TEST_DEVICE\" = emulated || exit 4";
    machine.program("build/tests/tandem-cuda-rows", &format!("{emulated}; echo 'test result: ok. 6 passed; 0 failed'"));
    let bench = fs_err::read_to_string(machine.path().join("build/bench/tandem-candle-card")).unwrap();
    let emulated = "case \"$*\" in *--emulated*) ;; *) exit 5 ;; esac\n".to_owned();
    machine.program("build/bench/tandem-candle-card", &(emulated + bench.trim_start_matches("#!/bin/sh\n")));
    let (code, last, written) = machine.check_with(&["--rehearse"], "0");
    assert_eq!(code, Some(0), "{last}\n{written:#}");
    assert_eq!(row(&written, "tandem-cuda-rows").0, "ok");
    assert_eq!(row(&written, "card-gemma3-tiny-q4").0, "ok");
    assert_eq!(row(&written, "plan-llama-tiny").0, "skipped");
    assert_eq!(row(&written, "bench-candle").0, "ok");
}

#[test]
fn wrong_arguments_of_a_build_are_refused() {
    for (args, expected) in [
        (&["--arch", "8.9"][..], "error: --arch is 8.9; compute capabilities look like 89 or 80,89\n"),
        (
            &["--features", "metal"],
            "error: --features is metal; it may be cuda, vulkan or cuda,vulkan, and those with cuda may end with flash-attn\n",
        ),
        (&["--jobs"], "error: --jobs needs a value\n"),
        (&["--arc", "89"], "error: unknown argument --arc; scripts/gpu-build --help lists them\n"),
    ] {
        let output =
            Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/gpu-build")).args(args).output().unwrap();
        assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()), (Some(1), expected));
    }
}

#[test]
fn headers_of_vulkan_that_are_too_old_are_told_before_anything_is_built() {
    let machine = Machine::new("exit 9");
    machine.program("machine/glslc", "exit 1");
    let build = || {
        let path = format!("{}:{}", machine.path().join("machine").display(), std::env::var("PATH").unwrap());
        let Output { status, stderr, .. } = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/gpu-build"))
            .args(["--features", "vulkan"])
            .env("PATH", path)
            .env("TANDEM_CACHE", machine.path().join("cache"))
            .env("VULKAN_SDK", machine.path())
            .output()
            .unwrap();
        (status.code(), String::from_utf8(stderr).unwrap())
    };
    let headers = machine.path().join("include/vulkan/vulkan_core.h");
    let (code, said) = build();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("{} is missing", headers.display())), "{said}");
    fs_err::create_dir_all(headers.parent().unwrap()).unwrap();
    fs_err::write(&headers, "#define VK_HEADER_VERSION 239\n").unwrap();
    let (code, said) = build();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("{} is too old", headers.display())), "{said}");
}
