use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
};

use config::{Config, Environment, File, FileFormat, Source as _, Value, ValueKind};
use serde::Deserialize as _;

use super::{
    Overrides, Settings, SettingsError,
    raw::{Kind, RawSettings},
};

const DEFAULT: &str = include_str!("../../config/default.toml");

/// The profiles that ship with the program. A file of the same name under `config/` takes a profile's place.
const PROFILES: [(&str, &str); 4] = [
    ("a100", include_str!("../../config/a100.toml")),
    ("demo", include_str!("../../config/demo.toml")),
    ("rtx4080", include_str!("../../config/rtx4080.toml")),
    ("sim", include_str!("../../config/sim.toml")),
];

/// Environment names of other servers that users bring along, and the keys that they set.
const ALIASES: [(&str, &[&str]); 5] = [
    ("GPU_MEMORY_UTILIZATION", &["backend", "gpu_memory_fraction"]),
    ("MAX_BATCH_SIZE", &["backend", "parallel"]),
    ("MAX_CONCURRENT_BATCHES", &["batch", "max_concurrent"]),
    ("STORAGE_PATH", &["storage", "path"]),
    ("TENSOR_PARALLEL_SIZE", &["backend", "tensor_parallel_size"]),
];

/// The file that a profile is in, where it has one of its own.
fn profile_file(name: &str) -> Option<PathBuf> {
    let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    let path = Path::new("config").join(format!("{name}.toml"));
    (plain && path.exists()).then_some(path)
}

fn built_in(name: &str) -> Option<&'static str> {
    PROFILES.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// `PROFILE-BACKEND` as the two, where there is no profile of the whole name and one of what stands in front of the backend.
#[must_use]
pub fn profile_and_backend(name: &str) -> Option<(&str, &'static str)> {
    let exists = |name: &str| profile_file(name).is_some() || built_in(name).is_some();
    let split = |kind: Kind| Some((name.strip_suffix(kind.name())?.strip_suffix('-')?, kind.name()));
    Kind::ALL.into_iter().find_map(split).filter(|(profile, _)| exists(profile) && !exists(name))
}

/// The leaves of all layers laid over each other, each with where it came from.
#[derive(Debug)]
pub struct Resolved {
    pub(super) profile: String,
    pub(super) leaves: BTreeMap<Vec<String>, Leaf>,
    layers: Vec<String>,
    /// What was said and has no meaning with the rest, where that is no error.
    pub(super) notes: Vec<String>,
}

#[derive(Clone, Debug)]
pub(super) struct Leaf {
    pub(super) value: Value,
    layer: usize,
}

impl Resolved {
    /// Reads all layers.
    ///
    /// # Errors
    /// When one cannot be read, or a key is set for a backend that does not know it.
    pub fn load(overrides: &Overrides) -> Result<Self, SettingsError> {
        let profile = overrides.profile.clone().unwrap_or_else(|| "demo".to_owned());
        let mut resolved = Self { profile, leaves: BTreeMap::new(), layers: Vec::new(), notes: Vec::new() };
        resolved.add_text("config/default.toml (built in)", DEFAULT)?;
        resolved.add_profile()?;
        let local = Path::new("config/local.toml");
        if local.exists() {
            resolved.add_file(local)?;
        }
        if let Some(file) = &overrides.config {
            resolved.add_file(file)?;
        }
        resolved.add_environment()?;
        resolved.add_flags(overrides);
        resolved.leave_out_a_fraction_of_no_gpu();
        resolved.leave_out_one_gpu_of_none()?;
        resolved.leave_out_other_backends_keys()?;
        Ok(resolved)
    }

    /// The name of the layer that a leaf came from.
    pub(super) fn origin(&self, leaf: &Leaf) -> &str {
        &self.layers[leaf.layer]
    }

    /// Turns the leaves into checked settings.
    ///
    /// # Errors
    /// When a key is unknown or has a wrong value, or values contradict each other.
    pub fn settings(&self) -> Result<Settings, SettingsError> {
        let mut root = BTreeMap::new();
        for (path, leaf) in &self.leaves {
            insert(&mut root, path, leaf.value.clone());
        }
        let value = table(root);
        let mut track = serde_path_to_error::Track::new();
        let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
        let raw = RawSettings::deserialize(deserializer)
            .map_err(|error| SettingsError::new(track.path().to_string(), reason(&error)))?;
        Settings::check(self.profile.clone(), raw, self.notes.clone())
    }

    fn add_profile(&mut self) -> Result<(), SettingsError> {
        let name = self.profile.clone();
        if let Some(path) = profile_file(&name) {
            return self.add_file(&path);
        }
        match built_in(&name) {
            Some(text) => self.add_text(&format!("config/{name}.toml (built in)"), text),
            None => {
                let known: Vec<_> = PROFILES.iter().map(|(known, _)| *known).collect();
                let reason = format!("unknown profile '{name}': those that ship are {}", known.join(", "));
                Err(SettingsError::new("profile", reason))
            }
        }
    }

    fn add_file(&mut self, path: &Path) -> Result<(), SettingsError> {
        let text = fs_err::read_to_string(path).map_err(|error| {
            let reason = error.raw_os_error().map(std::io::Error::from_raw_os_error);
            SettingsError::new(path.display().to_string(), reason.map_or_else(|| error.to_string(), |e| e.to_string()))
        })?;
        self.add_text(&path.display().to_string(), &text)
    }

    fn add_text(&mut self, name: &str, text: &str) -> Result<(), SettingsError> {
        let parsed = File::from_str(text, FileFormat::Toml).collect();
        let parsed = parsed.map_err(|error| SettingsError::new(name, error.to_string().trim().replace('\n', " ")))?;
        let layer = self.new_layer(name);
        self.add_table(&[], parsed.into_iter(), layer);
        Ok(())
    }

    fn add_environment(&mut self) -> Result<(), SettingsError> {
        let source = Environment::with_prefix("TANDEM").prefix_separator("__").separator("__").try_parsing(true);
        let parsed = Config::builder().add_source(source).build().and_then(|config| config.cache.into_table());
        let parsed = parsed.map_err(|error| SettingsError::new("environment", error.to_string()))?;
        let layer = self.new_layer("environment");
        self.add_table(&[], parsed.into_iter(), layer);
        for (name, path) in ALIASES {
            if let Some(text) = variable(name)? {
                let layer = self.new_layer(&format!("environment ({name})"));
                self.set(path.iter().map(|&part| part.to_owned()).collect(), parse_word(&text), layer);
            }
        }
        let mut revision = variable("MODEL_REVISION")?;
        if let Some(model) = variable("MODEL_NAME")? {
            let layer = self.new_layer("environment (MODEL_NAME)");
            let mut source = if model.starts_with("hf:") || Path::new(&model).exists() {
                model.clone()
            } else {
                format!("hf:{model}")
            };
            // A repository alone takes a revision; a path has none, and a full spec says its own.
            if source.strip_prefix("hf:").is_some_and(|repo| !repo.contains(['@', ':']))
                && let Some(revision) = revision.take()
            {
                source = format!("{source}@{revision}");
            }
            self.set_only_model(&model, source, layer);
        }
        if revision.is_some() {
            self.notes
                .push("MODEL_REVISION is set and has no effect: MODEL_NAME names no repository without one".to_owned());
        }
        Ok(())
    }

    fn add_flags(&mut self, overrides: &Overrides) {
        let Overrides { profile: _, config: _, backend, model, host, port, insecure_no_auth } = overrides;
        if let Some(kind) = backend {
            let layer = self.new_layer("--backend");
            self.set(path("backend", "kind"), ValueKind::String(kind.clone()), layer);
        }
        if let Some(spec) = model {
            let layer = self.new_layer("--model");
            let name = super::source::default_name(spec);
            self.set_only_model(&name, spec.clone(), layer);
        }
        if let Some(host) = host {
            let layer = self.new_layer("--host");
            self.set(path("server", "host"), ValueKind::String(host.clone()), layer);
        }
        if let Some(port) = port {
            let layer = self.new_layer("--port");
            self.set(path("server", "port"), ValueKind::U64(u64::from(*port)), layer);
        }
        if *insecure_no_auth {
            let layer = self.new_layer("--insecure-no-auth");
            self.set(path("server", "insecure_no_auth"), ValueKind::Boolean(true), layer);
        }
    }

    /// Who sets `GPU_MEMORY_UTILIZATION` for all their servers has not asked this one for a GPU.
    fn leave_out_a_fraction_of_no_gpu(&mut self) {
        let fraction = path("backend", "gpu_memory_fraction");
        if self.is_from(&fraction, "GPU_MEMORY_UTILIZATION") && !self.is_on_gpu() {
            self.leaves.remove(&fraction);
            self.notes.push(
                "GPU_MEMORY_UTILIZATION is set and has no effect: no model is loaded to a GPU by candle".to_owned(),
            );
        }
    }

    /// Who sets `TENSOR_PARALLEL_SIZE` to 1 has asked for nothing; who sets it to more must not get less.
    fn leave_out_one_gpu_of_none(&mut self) -> Result<(), SettingsError> {
        let size = path("backend", "tensor_parallel_size");
        let Some(leaf) = self.leaves.get(&size) else { return Ok(()) };
        if !self.is_from(&size, "TENSOR_PARALLEL_SIZE") || self.is_on_gpu() {
            return Ok(());
        }
        let asked = leaf.value.to_string();
        if asked != "1" {
            let reason = format!(
                "a model is divided among GPUs by the backend candle with backend.device = \"cuda\", and by nothing else here, so '{asked}' cannot be honoured"
            );
            return Err(SettingsError::new("TENSOR_PARALLEL_SIZE", reason));
        }
        self.leaves.remove(&size);
        Ok(())
    }

    /// Whether candle computes on a card.
    fn is_on_gpu(&self) -> bool {
        let word = |key: &str| self.leaves.get(&path("backend", key)).map(|leaf| leaf.value.to_string());
        word("kind").as_deref() == Some("candle") && word("device").is_some_and(|device| device.starts_with("cuda"))
    }

    /// Whether a leaf was set by a variable that has its name from elsewhere.
    fn is_from(&self, path: &[String], alias: &str) -> bool {
        let layer = self.leaves.get(path).map(|leaf| &self.layers[leaf.layer]);
        layer.is_some_and(|layer| layer.ends_with(&format!("({alias})")))
    }

    /// A profile's keys for its own backend mean nothing when a later layer chooses another; a key that is set after the choice, or with
    /// it, has to fit.
    fn leave_out_other_backends_keys(&mut self) -> Result<(), SettingsError> {
        let Some(chosen) = self.leaves.get(&path("backend", "kind")) else {
            return Err(SettingsError::new("backend.kind", "is missing: one of llama-cpp, candle, sim"));
        };
        let name = chosen.value.clone().into_string().unwrap_or_default();
        let Some(kind) = Kind::parse(&name) else {
            let reason = format!("unknown backend '{name}': one of llama-cpp, candle, sim");
            return Err(SettingsError::new("backend.kind", reason));
        };
        let decided = chosen.layer;
        let mut misplaced = None;
        self.leaves.retain(|path, leaf| {
            let foreign = path.len() >= 2 && path[0] == "backend" && !kind.knows(&path[1]);
            if foreign && leaf.layer >= decided {
                misplaced = Some(path.join("."));
            }
            !foreign
        });
        match misplaced {
            Some(key) => Err(SettingsError::new(key, format!("does not apply to the backend {name}"))),
            None => Ok(()),
        }
    }

    fn set_only_model(&mut self, name: &str, source: String, layer: usize) {
        self.leaves.retain(|path, _| path[0] != "models");
        let path = vec!["models".to_owned(), name.to_owned(), "source".to_owned()];
        self.set(path, ValueKind::String(source), layer);
    }

    fn new_layer(&mut self, name: &str) -> usize {
        self.layers.push(name.to_owned());
        self.layers.len() - 1
    }

    fn set(&mut self, path: Vec<String>, kind: impl Into<ValueKind>, layer: usize) {
        self.leaves.insert(path, Leaf { value: Value::new(None, kind), layer });
    }

    fn add_table(&mut self, at: &[String], entries: impl Iterator<Item = (String, Value)>, layer: usize) {
        for (key, value) in entries {
            let path: Vec<String> = at.iter().cloned().chain([key]).collect();
            // An empty table is a leaf: it names a model that has no settings of its own.
            if let ValueKind::Table(table) = &value.kind
                && !table.is_empty()
            {
                self.add_table(&path, table.clone().into_iter(), layer);
            } else {
                self.leaves.insert(path, Leaf { value, layer });
            }
        }
    }
}

fn path(section: &str, key: &str) -> Vec<String> {
    vec![section.to_owned(), key.to_owned()]
}

/// A tree of values, as it is put together from leaves.
enum Node {
    Leaf(Value),
    Table(BTreeMap<String, Self>),
}

fn insert(table: &mut BTreeMap<String, Node>, path: &[String], value: Value) {
    match path {
        [] => {}
        [last] => drop(table.insert(last.clone(), Node::Leaf(value))),
        [first, rest @ ..] => {
            let node = table.entry(first.clone()).or_insert_with(|| Node::Table(BTreeMap::new()));
            if let Node::Leaf(_) = node {
                // `models.x` set as a whole in one layer and in part in a later one.
                *node = Node::Table(BTreeMap::new());
            }
            if let Node::Table(inner) = node {
                insert(inner, rest, value);
            }
        }
    }
}

fn table(nodes: BTreeMap<String, Node>) -> Value {
    let entries = nodes.into_iter().map(|(key, node)| match node {
        Node::Leaf(value) => (key, value),
        Node::Table(inner) => (key, table(inner)),
    });
    Value::new(None, ValueKind::Table(entries.collect()))
}

fn variable(name: &str) -> Result<Option<String>, SettingsError> {
    match env::var(name) {
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) => Ok(Some(text)),
        Err(env::VarError::NotPresent) => Ok(None),
        Err(env::VarError::NotUnicode(_)) => Err(SettingsError::new(name, "is not UTF-8")),
    }
}

fn parse_word(text: &str) -> ValueKind {
    text.parse()
        .map(ValueKind::I64)
        .or_else(|_| text.parse().map(ValueKind::Float))
        .unwrap_or_else(|_| ValueKind::String(text.to_owned()))
}

/// What is wrong with a value, without the path, which stands before it.
fn reason(error: &config::ConfigError) -> String {
    if let config::ConfigError::Type { unexpected, expected, .. } = error {
        format!("expected {expected}, got {unexpected}")
    } else if let config::ConfigError::At { error, .. } = error {
        reason(error)
    } else {
        error.to_string()
    }
}
