//! What sentence-transformers writes beside a model that it makes vectors with.

use std::path::{Component, Path};

use serde_json::{Map, Value};
use tandem_core::{LoadError, Pooling};

use crate::{
    config::Fields,
    directory::{ModelDirectory, invalid, unreadable},
};

const MODULES: &str = "modules.json";
const POOLING_FOLDER: &str = "1_Pooling";
const TRANSFORMER: &str = "sentence_bert_config.json";
const MAX_BYTES: u64 = 1 << 20;

/// The ways of pooling: as a flag of their own, by name, and what they are here.
const MODES: [(&str, &str, Option<Pooling>); 6] = [
    ("pooling_mode_cls_token", "cls", Some(Pooling::Cls)),
    ("pooling_mode_mean_tokens", "mean", Some(Pooling::Mean)),
    ("pooling_mode_lasttoken", "lasttoken", Some(Pooling::Last)),
    ("pooling_mode_max_tokens", "max", None),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens", None),
    ("pooling_mode_weightedmean_tokens", "weightedmean", None),
];

/// How a directory says that vectors of texts are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SentenceFiles {
    pub(crate) pooling: Pooling,
    /// Where that is said.
    file: String,
    /// Numbers of a vector.
    dimensions: Option<usize>,
    /// Texts are turned into lower case before the tokenizer gets them.
    pub(crate) lower_case: bool,
}

impl SentenceFiles {
    /// `None` where a directory has nothing of the kind, and is not for vectors.
    pub(crate) fn load(directory: &ModelDirectory) -> Result<Option<Self>, LoadError> {
        let folder = match directory.read_json(MODULES, MAX_BYTES)? {
            Some(modules) => {
                let folder = pooling_folder(&modules).map_err(|reason| invalid(directory.path(MODULES), reason))?;
                Some(folder)
            }
            None => None,
        };
        let file = format!("{}/config.json", folder.as_deref().unwrap_or(POOLING_FOLDER));
        let path = directory.path(&file);
        let Some(config) = directory.read_json(&file, MAX_BYTES)? else {
            let missing = folder.map(|_| unreadable(path, &std::io::ErrorKind::NotFound.into()));
            return missing.map_or(Ok(None), Err);
        };
        let (pooling, dimensions) = object(&config).and_then(pooling).map_err(|reason| invalid(&path, reason))?;
        let transformer = directory.read_json(TRANSFORMER, MAX_BYTES)?.unwrap_or_else(|| Map::new().into());
        let lower_case = object(&transformer).and_then(|fields| fields.flag("do_lower_case"));
        let lower_case = lower_case.map_err(|reason| invalid(directory.path(TRANSFORMER), reason))?;
        Ok(Some(Self { pooling, file, dimensions, lower_case }))
    }

    /// Refuses a model whose vectors are not those that the files speak of.
    pub(crate) fn check(&self, directory: &ModelDirectory, hidden_size: usize) -> Result<(), LoadError> {
        match self.dimensions {
            Some(said) if said != hidden_size => {
                let reason =
                    format!("word_embedding_dimension: {said}, where the model's vectors have {hidden_size} numbers");
                Err(invalid(directory.path(&self.file), reason))
            }
            Some(_) | None => Ok(()),
        }
    }
}

fn object(file: &Value) -> Result<Fields<'_>, String> {
    file.as_object().map(Fields::new).ok_or_else(|| "invalid config: not an object".to_owned())
}

/// The folder of the module that pools. Bringing vectors to length 1 is no affair of a backend; what else is done to them is refused.
fn pooling_folder(modules: &Value) -> Result<String, String> {
    let modules = modules.as_array().ok_or("not a list of modules")?;
    let mut folder = None;
    for (at, module) in modules.iter().enumerate() {
        let text = |field: &str| {
            let text = module.get(field).and_then(Value::as_str);
            text.ok_or_else(|| format!("module {at}: {field}: missing or not a text"))
        };
        let (kind, path) = (text("type")?, text("path")?);
        match kind.rsplit('.').next().unwrap_or_default() {
            "Transformer" if at == 0 && path.is_empty() => {}
            "Transformer" if at == 0 => {
                return Err(format!(
                    "module {at}: path: {path}, where only a model in the directory itself is supported"
                ));
            }
            "Pooling" if at == 1 => {
                let name = plain_name(path);
                let reason =
                    || format!("module {at}: path: {path:?} is not the name of a folder of the model directory");
                folder = Some(name.ok_or_else(reason)?);
            }
            "Normalize" if at > 1 => {}
            other => {
                return Err(format!(
                    "module {at}: {other} is not supported there; known: Transformer, then Pooling, then Normalize or nothing"
                ));
            }
        }
    }
    folder.ok_or_else(|| "no module pools the vectors of tokens".to_owned())
}

fn plain_name(path: &str) -> Option<String> {
    let mut components = Path::new(path).components();
    match (components.next(), components.next()) {
        (Some(Component::Normal(_)), None) => Some(path.to_owned()),
        _ => None,
    }
}

/// How vectors of tokens are pooled, and how many numbers they have.
fn pooling(fields: Fields<'_>) -> Result<(Pooling, Option<usize>), String> {
    const MAX_DIMENSIONS: usize = 1 << 24;
    if fields.optional::<bool>("include_prompt")? == Some(false) {
        return Err("invalid config: include_prompt: only true is supported".to_owned());
    }
    let mut asked = Vec::new();
    for (flag, name, pooling) in MODES {
        if fields.flag(flag)? {
            asked.push((flag, name, pooling));
        }
    }
    if let Some(named) = fields.optional::<String>("pooling_mode")? {
        let known = MODES.into_iter().find(|(_, name, _)| *name == named);
        asked.push(known.ok_or_else(|| format!("invalid config: pooling_mode: {named} is not supported"))?);
    }
    let dimensions = match fields.optional_size("word_embedding_dimension", MAX_DIMENSIONS)? {
        None => fields.optional_size("embedding_dimension", MAX_DIMENSIONS)?,
        some => some,
    };
    match asked[..] {
        [(_, _, Some(pooling))] => Ok((pooling, dimensions)),
        [(flag, _, None)] => Err(format!("invalid config: {flag}: not supported; known: cls, mean, lasttoken")),
        [] => Err("invalid config: no way of pooling is set; known: cls, mean, lasttoken".to_owned()),
        [(first, ..), (second, ..), ..] => {
            Err(format!("invalid config: {first} and {second}: several ways of pooling at once are not supported"))
        }
    }
}
