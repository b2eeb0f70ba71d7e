//! What reviews would otherwise have to say again and again: which part may know which, how long a file may get, and what is not written
//! anywhere. Each test lists every offence it finds, with file and line.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

const MAX_LINES: usize = 800;

/// Which of our crates each crate may depend on. A new crate has to be given its place here.
const CRATES: &[(&str, &[&str])] = &[
    ("tandem-core", &[]),
    ("tandem-engine", &["tandem-core"]),
    ("tandem-sim", &["tandem-core"]),
    ("tandem-gguf", &["tandem-core"]),
    ("tandem-llama-cpp", &["tandem-core", "tandem-gguf"]),
    ("tandem-kernels", &[]),
    ("tandem-cuda", &[]),
    ("tandem-candle", &["tandem-core", "tandem-gguf", "tandem-kernels", "tandem-cuda"]),
    ("tandem-migrations", &[]),
    (
        "tandem",
        &["tandem-core", "tandem-engine", "tandem-sim", "tandem-llama-cpp", "tandem-candle", "tandem-migrations"],
    ),
];

/// Dependencies from outside that would break a promise of the crate.
const BANNED_DEPENDENCIES: &[(&str, &[&str], &str)] = &[
    ("tandem-core", &["tokio", "serde", "serde_json", "anyhow", "log"], "the contract stands on nothing"),
    (
        "tandem-engine",
        // serde_json reads the schemas of grammars, and nothing else.
        &["serde", "actix-web", "sea-orm", "anyhow", "rand"],
        "the loop knows no wire format and no source of randomness",
    ),
    ("tandem-sim", &["tokio", "serde", "rand"], "a backend is synchronous and draws nothing"),
    ("tandem-gguf", &["tokio", "serde", "rand"], "a reader of files needs no more than the files"),
    ("tandem-llama-cpp", &["tokio", "rand"], "a backend is synchronous and draws nothing"),
    ("tandem-candle", &["tokio", "rand"], "a backend is synchronous and draws nothing"),
];

/// Which modules of the server each of its modules must not name.
const MODULES: &[(&str, &[&str])] = &[
    ("openai", &["access", "api", "app", "batch", "bench", "cli", "completion", "models", "settings", "store"]),
    ("settings", &["access", "api", "app", "batch", "bench", "cli", "completion", "models", "store"]),
    ("store", &["access", "api", "app", "bench", "cli", "completion", "models"]),
    ("models", &["access", "api", "app", "batch", "bench", "cli", "completion", "store"]),
    ("completion", &["access", "api", "app", "batch", "bench", "cli", "store"]),
    ("batch", &["access", "api", "app", "bench", "cli"]),
    ("access", &["api", "app", "batch", "bench", "cli", "completion", "models"]),
    ("api", &["app", "bench", "cli"]),
    ("webhooks", &["api", "app", "batch", "bench", "cli", "completion", "models", "openai"]),
    (
        "http",
        &["api", "app", "batch", "bench", "cli", "completion", "models", "openai", "settings", "store", "webhooks"],
    ),
    ("bench", &["access", "api", "batch", "cli", "completion", "store", "webhooks"]),
    ("app", &["bench", "cli"]),
];

#[test]
fn crates_depend_in_one_direction() {
    let metadata = metadata();
    let known: BTreeMap<_, BTreeSet<_>> =
        CRATES.iter().map(|(name, allowed)| (*name, allowed.iter().copied().collect())).collect();
    let mut offences = Offences::default();
    for package in array(&metadata, "packages") {
        let name = string(package, "name");
        let Some(allowed) = known.get(name) else {
            offences.add(format_args!("{name}: give this crate its place in CRATES"));
            continue;
        };
        for dependency in shipped_dependencies(package) {
            if known.contains_key(dependency) && !allowed.contains(dependency) {
                offences.add(format_args!("{name} must not depend on {dependency}"));
            }
        }
    }
    offences.none();
}

#[test]
fn crates_keep_their_promises() {
    let metadata = metadata();
    let mut offences = Offences::default();
    for package in array(&metadata, "packages") {
        let name = string(package, "name");
        let shipped: BTreeSet<_> = shipped_dependencies(package).collect();
        for (krate, banned, reason) in BANNED_DEPENDENCIES {
            for dependency in banned.iter().filter(|dependency| *krate == name && shipped.contains(**dependency)) {
                offences.add(format_args!("{name} must not depend on {dependency}: {reason}"));
            }
        }
    }
    offences.none();
}

#[test]
fn what_is_shipped_has_no_failpoints() {
    let metadata = metadata();
    let mut offences = Offences::default();
    for package in array(&metadata, "packages") {
        let is_shipped =
            |dependency: &&Value| dependency["kind"].as_str() != Some("dev") && dependency["name"] == "fail";
        for dependency in array(package, "dependencies").iter().filter(is_shipped) {
            if !array(dependency, "features").is_empty() {
                offences.add(format_args!("{}: `fail` has features outside of tests", string(package, "name")));
            }
        }
    }
    offences.none();
}

#[test]
fn every_crate_has_the_workspace_lints() {
    let metadata = metadata();
    let mut offences = Offences::default();
    for package in array(&metadata, "packages") {
        let path = string(package, "manifest_path");
        let manifest: toml::Table = read(Path::new(path)).parse().expect("cargo has read it already");
        let inherited = manifest["lints"].get("workspace").is_some_and(|value| value.as_bool() == Some(true));
        // Kernels may need `unsafe`, so their crates carry tables of their own.
        if !inherited && !["tandem-kernels", "tandem-cuda"].contains(&string(package, "name")) {
            offences.add(format_args!("{path}: wants `[lints] workspace = true`"));
        }
    }
    offences.none();
}

#[test]
fn modules_depend_in_one_direction() {
    let mut offences = Offences::default();
    for file in sources(&["src"]) {
        let module = top_module(&file.path);
        let Some((_, forbidden)) = MODULES.iter().find(|(name, _)| *name == module) else { continue };
        for (line, imported) in imports(&file.code) {
            if forbidden.contains(&imported.as_str()) {
                offences.at(&file, line, format_args!("`{module}` must not name `crate::{imported}`"));
            }
        }
    }
    offences.none();
}

#[test]
fn only_the_loader_knows_which_backends_are_built() {
    let mut offences = Offences::default();
    for file in sources(&["src"]) {
        if file.path.ends_with("src/models/loader.rs") {
            continue;
        }
        for (number, line) in file.lines() {
            if line.contains("cfg") && line.contains("feature =") {
                offences.at(&file, number, format_args!("`cfg(feature)` belongs in src/models/loader.rs"));
            }
        }
    }
    offences.none();
}

#[test]
fn only_the_command_line_prints() {
    let mut offences = Offences::default();
    for file in sources(&["src", "backends", "migrations"]) {
        let builds = file.path.ends_with("build.rs") || file.path.starts_with("backends/cuda/build");
        if file.path.starts_with("src/cli") || builds || is_test(&file.path) {
            continue;
        }
        for (number, line) in file.lines_before_tests() {
            if ["println!", "print!", "eprintln!", "eprint!", "dbg!"].iter().any(|name| has_word(line, name)) {
                offences.at(&file, number, format_args!("prints; elsewhere than in src/cli use tracing"));
            }
        }
    }
    offences.none();
}

#[test]
fn unsafe_is_for_kernels_only() {
    let mut offences = Offences::default();
    for file in sources(&["src", "backends", "migrations", "tests"]) {
        let of_kernels = ["backends/kernels", "backends/cuda"].iter().any(|kernels| file.path.starts_with(kernels));
        if of_kernels || file.path == Path::new("tests/tidy.rs") {
            continue;
        }
        for (number, line) in file.lines() {
            if has_word(line, "unsafe") {
                offences.at(
                    &file,
                    number,
                    format_args!("`unsafe` is allowed in backends/kernels and backends/cuda only"),
                );
            }
        }
    }
    offences.none();
}

#[test]
fn files_stay_short() {
    let mut offences = Offences::default();
    for file in sources(&["src", "backends", "migrations"]) {
        let lines = file.lines_before_tests().count();
        if !is_test(&file.path) && lines > MAX_LINES {
            offences.at(&file, lines, format_args!("{lines} lines without its tests, more than {MAX_LINES}"));
        }
    }
    offences.none();
}

/// A test that sleeps for a while and hopes fails on a slow machine and wastes time on a fast one. Where a sleep is right (between two
/// polls within a deadline), a comment beginning with `sleep:` on the same line or the one above says why.
#[test]
fn tests_wait_for_things_not_for_time() {
    let mut offences = Offences::default();
    for file in sources(&["src", "backends", "migrations", "tests", "scripts"]) {
        let only_tests = is_test(&file.path);
        let start = if only_tests { 0 } else { file.lines_before_tests().count() };
        let lines: Vec<&str> = file.text.lines().collect();
        for (index, line) in lines.iter().enumerate().skip(start) {
            let above = index.checked_sub(1).map_or("", |above| lines[above]);
            if line.contains(concat!("sleep", "(")) && !line.contains("sleep: ") && !above.contains("sleep: ") {
                offences.at(&file, index + 1, format_args!("sleeps: poll with a deadline, or say why after `sleep:`"));
            }
        }
    }
    offences.none();
}

#[test]
fn imports_are_found_however_they_are_written() {
    let found = |code: &str| imports(code).into_iter().map(|(_, name)| name).collect::<Vec<_>>();
    assert_eq!(found("use crate::store::Files;"), ["store"]);
    assert_eq!(found("let x = crate::api::error(1);"), ["api"]);
    assert_eq!(found("use crate::{\n    api::{self, sse},\n    store,\n};"), ["api", "store"]);
    assert_eq!(found("pub(crate) fn f() {}\nuse serde::de;"), [""; 0]);
    assert_eq!(imports("\n\nuse crate::batch;"), [(3, "batch".to_owned())]);
}

#[test]
fn comments_and_strings_are_not_code() {
    assert_eq!(without_comments("a // use crate::api\nb"), "a \nb");
    assert_eq!(without_comments("let url = \"http://x\"; // y"), "let url = \"http://x\"; ");
    assert!(has_word("    unsafe { f() }", "unsafe"));
    assert!(!has_word("unsafe_code = 1", "unsafe"));
    assert!(!has_word("eprintln!()", "println!"));
}

// --- reading the tree --------------------------------------------------------------------------------------------------------------------

struct Source {
    /// Relative to the repository's root.
    path: PathBuf,
    text: String,
    /// The text without comments.
    code: String,
}

impl Source {
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        std::iter::zip(1.., self.code.lines())
    }

    /// The lines in front of the file's own `#[cfg(test)] mod`, which by our habit is its end.
    fn lines_before_tests(&self) -> impl Iterator<Item = (usize, &str)> {
        self.lines().take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs_err::read_to_string(path).expect("files of the repository are readable text")
}

/// Every Rust and Python file under the given directories.
fn sources(directories: &[&str]) -> Vec<Source> {
    let mut pending: Vec<PathBuf> = directories.iter().map(|name| root().join(name)).collect();
    let mut found = Vec::new();
    while let Some(directory) = pending.pop() {
        for entry in fs_err::read_dir(&directory).expect("directories of the repository can be listed") {
            let path = entry.expect("directories of the repository can be listed").path();
            if path.is_dir() {
                if !path.ends_with("node_modules") && !path.ends_with("target") {
                    pending.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "py") {
                let text = read(&path);
                let path = path.strip_prefix(root()).expect("below the root").to_owned();
                found.push(Source { path, code: without_comments(&text), text });
            }
        }
    }
    assert!(!found.is_empty(), "nothing was looked at");
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn is_test(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "benches")
        || path.ends_with("tests.rs")
}

/// `api` for src/api.rs and for anything under src/api.
fn top_module(path: &Path) -> String {
    let part = path.components().nth(1).map(|part| part.as_os_str().to_string_lossy().into_owned());
    part.unwrap_or_default().trim_end_matches(".rs").to_owned()
}

/// Cuts `//` comments, line for line. A `//` inside a string counts as text when the quotes before it are uneven.
fn without_comments(text: &str) -> String {
    let cut = |line: &str| {
        let comment =
            line.match_indices("//").map(|(at, _)| at).find(|at| line[..*at].matches('"').count().is_multiple_of(2));
        line[..comment.unwrap_or(line.len())].to_owned()
    };
    text.lines().map(cut).collect::<Vec<_>>().join("\n")
}

/// The top-level modules that the code names through `crate::`, each with its line.
fn imports(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, path) in code.match_indices("crate::") {
        let rest = &code[at + path.len()..];
        let line = code[..at].matches('\n').count() + 1;
        match rest.strip_prefix('{') {
            Some(group) => found.extend(group_heads(group).into_iter().map(|name| (line, name))),
            None => found.push((line, identifier(rest))),
        }
    }
    found
}

/// The first identifier of each entry of a `{…}` group, whose opening brace has been read.
fn group_heads(group: &str) -> Vec<String> {
    let (mut depth, mut heads, mut at_head) = (1, Vec::new(), true);
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => at_head = true,
            _ if at_head && depth == 1 && !character.is_whitespace() => {
                heads.push(identifier(&group[at..]));
                at_head = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    heads
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|character| character.is_alphanumeric() || *character == '_').collect()
}

fn has_word(line: &str, word: &str) -> bool {
    let part_of_name = |character: Option<char>| character.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        !part_of_name(line[..at].chars().next_back()) && !part_of_name(line[at + word.len()..].chars().next())
    })
}

// --- reading cargo's metadata ------------------------------------------------------------------------------------------------------------

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo prints JSON")
}

/// Names of what the package is built with, leaving out what only its tests need.
fn shipped_dependencies(package: &Value) -> impl Iterator<Item = &str> {
    let shipped = |dependency: &&Value| dependency["kind"].as_str() != Some("dev");
    array(package, "dependencies").iter().filter(shipped).map(|dependency| string(dependency, "name"))
}

fn array<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().expect("cargo's metadata has this array")
}

fn string<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().expect("cargo's metadata has this string")
}

// -----------------------------------------------------------------------------------------------------------------------------------------

#[derive(Default)]
struct Offences(String);

impl Offences {
    fn add(&mut self, what: std::fmt::Arguments<'_>) {
        writeln!(self.0, "  {what}").expect("writing to a string does not fail");
    }

    fn at(&mut self, file: &Source, line: usize, what: std::fmt::Arguments<'_>) {
        self.add(format_args!("{}:{line}: {what}", file.path.display()));
    }

    #[track_caller]
    fn none(&self) {
        assert!(self.0.is_empty(), "\n{}", self.0);
    }
}
