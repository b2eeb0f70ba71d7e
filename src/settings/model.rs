use super::{
    ModelSource, SettingsError,
    checked::{in_range, one_of},
    raw::{Kind, RawAdapter, RawMatryoshka, RawModel},
    sha256,
};

/// Adapters of one model: all of them are loaded with it.
const MAX_ADAPTERS: u64 = 256;

/// A model under the name that requests use.
#[derive(Clone, Debug)]
pub struct ModelSettings {
    pub name: String,
    /// `None` for the simulated model.
    pub source: Option<ModelSource>,
    /// The SHA-256 hash that the source, one file, must have; any will do when there is none.
    pub sha256: Option<[u8; 32]>,
    pub task: Task,
    /// Whether requests that leave open how tokens are chosen have it chosen as the model's files say.
    pub generation_config: GenerationConfig,
    /// How an embedding model's vectors may be cut, in the place of what its files say.
    pub matryoshka: Option<Matryoshka>,
    /// What requests may have the model adapted by.
    pub adapters: Vec<AdapterSettings>,
}

/// A `LoRA` adapter under the name that requests use.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSettings {
    pub name: String,
    /// `None` for the simulated model.
    pub source: Option<ModelSource>,
    /// How strongly it is applied; finite.
    pub scale: f32,
}

/// Where defaults of sampling come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GenerationConfig {
    /// The model's files, and OpenAI's where they say nothing.
    #[default]
    Auto,
    /// OpenAI's alone.
    Off,
}

/// How vectors may be cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Matryoshka {
    No,
    /// To any length.
    Any,
    /// To these lengths, of which there is one at least.
    Sizes(Vec<u32>),
}

/// What the simulated model does. Others have files that say it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Task {
    #[default]
    Generate,
    Embed,
    /// Documents, by how well they answer a query.
    Rank,
}

const TASKS: [(&str, Task); 3] = [("generate", Task::Generate), ("embed", Task::Embed), ("rank", Task::Rank)];

pub(super) fn check(name: String, raw: RawModel, kind: Kind) -> Result<ModelSettings, SettingsError> {
    let key = |part: &str| format!("models.{name}{part}");
    if name.is_empty() || name.len() > 256 || name.contains("..") || name.chars().any(char::is_control) {
        return Err(SettingsError::new(key(""), "is no name for a model"));
    }
    let RawModel { source, gguf, sha256, task, generation_config, matryoshka, adapters } = raw;
    let task = match task {
        Some(_) if kind != Kind::Sim => {
            let reason = format!("does not apply to the backend {}: a model's file says what it is for", kind.name());
            return Err(SettingsError::new(key(".task"), reason));
        }
        Some(task) => one_of(&key(".task"), &task, &TASKS)?,
        None => Task::default(),
    };
    let origins = [("auto", GenerationConfig::Auto), ("off", GenerationConfig::Off)];
    let generation_config = match generation_config {
        Some(origin) => one_of(&key(".generation_config"), &origin, &origins)?,
        None => GenerationConfig::default(),
    };
    let matryoshka = match matryoshka {
        None => None,
        Some(RawMatryoshka::Whether(cut)) => Some(if cut { Matryoshka::Any } else { Matryoshka::No }),
        Some(RawMatryoshka::Sizes(sizes)) if sizes.is_empty() || sizes.contains(&0) => {
            return Err(SettingsError::new(key(".matryoshka"), "names no lengths that a vector can have"));
        }
        Some(RawMatryoshka::Sizes(sizes)) => Some(Matryoshka::Sizes(sizes)),
    };
    let spec = match kind {
        Kind::Sim => None,
        Kind::LlamaCpp => Some(gguf.or(source)),
        Kind::Candle => Some(source.or(gguf)),
    };
    let source = match spec {
        None => None,
        Some(None) => {
            return Err(SettingsError::new(key(".source"), format!("is missing: {} needs a file", kind.name())));
        }
        Some(Some(spec)) => {
            Some(ModelSource::parse(&spec).map_err(|reason| SettingsError::new(key(".source"), reason))?)
        }
    };
    let sha256 = match (kind, sha256) {
        (_, None) => None,
        (Kind::Sim, Some(_)) => {
            let reason = "does not apply to the backend sim: the simulated model has no file";
            return Err(SettingsError::new(key(".sha256"), reason));
        }
        (Kind::LlamaCpp | Kind::Candle, Some(hash)) => {
            Some(sha256::parse(&hash).map_err(|reason| SettingsError::new(key(".sha256"), reason))?)
        }
    };
    if kind == Kind::Candle && !adapters.is_empty() {
        return Err(SettingsError::new(key(".adapters"), "the backend candle has no adapters"));
    }
    in_range(&key(".adapters"), adapters.len() as u64, 0, MAX_ADAPTERS)?;
    let adapters = adapters
        .into_iter()
        .map(|(adapter, raw)| check_adapter(&key(&format!(".adapters.{adapter}")), adapter, raw, kind))
        .collect::<Result<_, _>>()?;
    Ok(ModelSettings { name, source, sha256, task, generation_config, matryoshka, adapters })
}

fn check_adapter(key: &str, name: String, raw: RawAdapter, kind: Kind) -> Result<AdapterSettings, SettingsError> {
    if name.is_empty() || name.len() > 256 || name.chars().any(char::is_control) {
        return Err(SettingsError::new(key, "is no name for an adapter"));
    }
    let RawAdapter { path, scale } = raw;
    let source = match (kind, path) {
        (Kind::Sim, _) => None,
        (Kind::LlamaCpp | Kind::Candle, None) => {
            return Err(SettingsError::new(format!("{key}.path"), format!("is missing: {} needs a file", kind.name())));
        }
        (Kind::LlamaCpp | Kind::Candle, Some(spec)) => {
            let source = ModelSource::parse(&spec);
            Some(source.map_err(|reason| SettingsError::new(format!("{key}.path"), reason))?)
        }
    };
    let scale = scale.unwrap_or(1.0) as f32;
    if !scale.is_finite() {
        return Err(SettingsError::new(format!("{key}.scale"), "is no number that a model can be adapted by"));
    }
    Ok(AdapterSettings { name, source, scale })
}
