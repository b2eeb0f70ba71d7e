//! What the program cannot use is named on one line, with the exit code of its kind.

use crate::program::{Program, run, tandem};

#[test]
fn unknown_profiles_keys_and_backends_are_named() {
    let (code, error) = run(&["serve", "--profile", "rtx5090"]);
    assert_eq!(
        (code, error.as_str()),
        (78, "error: config: profile: unknown profile 'rtx5090': those that ship are a100, demo, rtx4080, sim\n")
    );
    let (code, error) = run(&["serve", "--backend", "vllm"]);
    assert_eq!(
        (code, error.as_str()),
        (78, "error: config: backend.kind: unknown backend 'vllm': one of llama-cpp, candle, sim\n")
    );
    let output = tandem(&["config", "show", "--profile", "sim"]).env("TANDEM__SERVER__PROT", "1").output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.starts_with("error: config: server.prot: unknown field `prot`"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn a_fraction_of_the_gpus_memory_is_noted_where_there_is_no_gpu() {
    let show = |args: &[&str]| {
        let output = tandem(args).env("GPU_MEMORY_UTILIZATION", "0.9").output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, shown) = show(&["config", "show", "--profile", "demo"]);
    assert_eq!(code, 0, "{shown}");
    assert!(shown.contains("# GPU_MEMORY_UTILIZATION is set and has no effect"), "{shown}");
    let (_, shown) = show(&["config", "show", "--profile", "a100"]);
    assert!(shown.contains("gpu_memory_fraction = 0.9  # environment (GPU_MEMORY_UTILIZATION)"), "{shown}");
}

#[test]
fn a_model_is_divided_among_gpus_or_not_at_all() {
    let show = |profile: &str, size: &str| {
        let args = ["config", "show", "--profile", profile];
        let output = tandem(&args).env("TENSOR_PARALLEL_SIZE", size).output().unwrap();
        let text = if output.status.success() { output.stdout } else { output.stderr };
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    };
    let (code, shown) = show("a100", "2");
    assert!(code == 0 && shown.contains("tensor_parallel_size = 2  # environment (TENSOR_PARALLEL_SIZE)"), "{shown}");
    let (code, shown) = show("demo", "1");
    assert!(code == 0 && !shown.contains("tensor_parallel_size"), "{shown}");
    let refused = "error: config: TENSOR_PARALLEL_SIZE: a model is divided among GPUs by the backend candle with backend.device = \"cuda\", \
                   and by nothing else here, so '2' cannot be honoured\n";
    assert_eq!(show("demo", "2"), (78, refused.to_owned()));
    assert_eq!(show("a100", "0").1, "error: config: backend.tensor_parallel_size: 0 is not between 1 and 64\n");
}

#[test]
fn a_revision_goes_with_a_repository_and_is_noted_without_one() {
    let show = |name: &str| {
        let args = ["config", "show", "--profile", "demo"];
        let output = tandem(&args).env("MODEL_NAME", name).env("MODEL_REVISION", "v1").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(show("org/repo").contains("source = \"hf:org/repo@v1\""), "{}", show("org/repo"));
    assert!(show("models/tiny").contains("# MODEL_REVISION is set and has no effect"), "{}", show("models/tiny"));
}

#[test]
fn wrong_usage_is_told_apart_from_wrong_settings() {
    assert_eq!(run(&["serve", "--port", "70000"]).0, 2);
    assert_eq!(run(&["frobnicate"]).0, 2);
}

#[tokio::test]
async fn a_port_in_use_and_a_data_directory_in_use_are_told_at_once() {
    let storage = tempfile::tempdir().unwrap();
    let server = Program::start(storage.path(), 0).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let second = |port: &str, storage: &std::path::Path| {
        let output =
            tandem(&["serve", "--profile", "sim", "--port", port]).env("STORAGE_PATH", storage).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, error) = second(server.port(), elsewhere.path());
    assert_eq!(
        (code, error),
        (69, format!("error: cannot listen on 127.0.0.1:{}: the port is in use\n", server.port()))
    );
    let (code, error) = second("0", storage.path());
    assert_eq!(code, 75, "{error}");
    assert!(error.contains("the data directory is locked by pid"), "{error}");
}

#[test]
fn a_batch_file_that_is_no_batch_is_named_by_line() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    fs_err::write(&input, "{\"custom_id\": \"a\"\n").unwrap();
    let args = ["run-batch", "--profile", "sim", "-i", input.to_str().unwrap(), "-o", output.to_str().unwrap()];
    let (code, error) = run(&args);
    assert_eq!(code, 65);
    assert_eq!(
        error,
        "error: the input file is not a valid batch: line 1: This line is not parseable as valid JSON.\n"
    );
    assert!(!output.exists());
    let (code, error) = run(&["run-batch", "--profile", "sim", "-i", "no/such/file", "-o", output.to_str().unwrap()]);
    assert_eq!(code, 66, "{error}");
}
