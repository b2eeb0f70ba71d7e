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

    /// The exit code, the last line, and what was written as JSON.
    fn check(&self) -> (Option<i32>, String, Value) {
        let path = format!("{}:{}", self.path().join("machine").display(), std::env::var("PATH").unwrap());
        let Output { status, stdout, stderr } = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/gpu-check"))
            .arg(self.path().join("build"))
            .args(["--no-bench", "--out"])
            .arg(self.path().join("out"))
            .env("PATH", path)
            .env("TANDEM_CACHE", self.path().join("cache"))
            .output()
            .unwrap();
        let text = String::from_utf8(stdout).unwrap();
        let written = fs_err::read(self.path().join("out/gpu-check.json"));
        let written = written.unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&stderr)));
        (status.code(), text.lines().last().unwrap().to_owned(), serde_json::from_slice(&written).unwrap())
    }
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
