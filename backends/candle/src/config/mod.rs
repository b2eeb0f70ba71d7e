//! `config.json`: from the fields that a family of models writes to one checked description of what is computed.

mod decoder;
mod fields;
mod rope;

use serde_json::Value;
use tandem_core::LoadError;

pub(crate) use decoder::{
    Activation, Biases, DecoderConfig, Defaults, Head, LayerConfig, LogitMap, MAX_MLP, MlpConfig, NormPlacement,
    NormWeight, Projections, QkNorm, RouteWeights,
};
pub(crate) use fields::Fields;
pub(crate) use rope::{Rope, RopeFrame, RopeScaling};

use crate::{
    directory::{ModelDirectory, invalid, unreadable},
    models,
};

const FILE: &str = "config.json";
const MAX_BYTES: u64 = 1 << 20;

impl DecoderConfig {
    /// Reads and checks `config.json`; also gives back the parsed file, which names the end-of-generation tokens.
    pub(crate) fn load(directory: &ModelDirectory) -> Result<(Self, Value), LoadError> {
        let path = directory.path(FILE);
        let Some(file) = directory.read_json(FILE, MAX_BYTES)? else {
            return Err(unreadable(path, &std::io::ErrorKind::NotFound.into()));
        };
        match Self::parse(&file) {
            Ok(config) => Ok((config, file)),
            Err(reason) => Err(invalid(path, reason)),
        }
    }

    /// Checks what `config.json` holds, or what another format says in its terms.
    pub(crate) fn parse(file: &Value) -> Result<Self, String> {
        let fields = Fields::new(file.as_object().ok_or("invalid config: not an object")?);
        let architectures = fields.optional::<Vec<String>>("architectures")?.unwrap_or_default();
        let named = architectures.first().map_or("none", String::as_str);
        let describe = models::family(named).ok_or_else(|| {
            let known: Vec<_> = models::architectures().collect();
            format!("architecture {named} is not supported; known: {}", known.join(", "))
        })?;
        describe(&fields)
    }
}
