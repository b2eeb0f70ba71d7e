use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tandem_core::LoadError;

use crate::directory::{ModelDirectory, invalid, unreadable};

const FILE: &str = "config.json";
const MAX_BYTES: u64 = 1 << 20;

/// Architectures, as `config.json` names them, that this backend runs.
const ARCHITECTURES: [&str; 1] = ["LlamaForCausalLM"];

/// The hyper-parameters of a Llama model, all checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LlamaConfig {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) rms_norm_eps: f32,
    pub(crate) max_position_embeddings: u32,
    pub(crate) rope: Rope,
    pub(crate) tied: bool,
    pub(crate) attention_bias: bool,
    pub(crate) mlp_bias: bool,
}

/// How positions become angles.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rope {
    pub(crate) theta: f64,
    pub(crate) scaling: RopeScaling,
}

/// How the angles are stretched beyond the context that the model was first trained on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RopeScaling {
    None,
    Linear {
        factor: f64,
    },
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_context: f64,
    },
    /// A factor for each pair of a head, as GGUF files have it.
    Factors(Vec<f64>),
}

impl LlamaConfig {
    /// Reads and checks `config.json`; also gives back the parsed file, which names the end-of-generation tokens.
    pub(crate) fn load(directory: &ModelDirectory) -> Result<(Self, Value), LoadError> {
        let path = directory.path(FILE);
        let Some(file) = directory.read_json(FILE, MAX_BYTES)? else {
            return Err(unreadable(path, &std::io::ErrorKind::NotFound.into()));
        };
        Self::from_json(&file).map(|config| (config, file)).map_err(|reason| invalid(path, reason))
    }

    /// Checks what `config.json` says, wherever it was read.
    pub(crate) fn from_json(file: &Value) -> Result<Self, String> {
        match file.as_object() {
            Some(fields) => Self::parse(&Fields(fields)),
            None => Err("invalid config: not an object".to_owned()),
        }
    }

    fn parse(fields: &Fields<'_>) -> Result<Self, String> {
        refuse_other_models(fields)?;
        let hidden_size = fields.size("hidden_size", 1 << 20)?;
        let heads = fields.size("num_attention_heads", 1 << 16)?;
        let kv_heads = match fields.optional::<Value>("num_key_value_heads")? {
            Some(_) => fields.size("num_key_value_heads", heads)?,
            None => heads,
        };
        if !heads.is_multiple_of(kv_heads) {
            return Err(format!("invalid config: num_key_value_heads: {heads} heads cannot be shared by {kv_heads}"));
        }
        let head_dim = match fields.optional::<Value>("head_dim")? {
            Some(_) => fields.size("head_dim", 1 << 12)?,
            None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => return Err(format!("invalid config: hidden_size: {hidden_size} is no multiple of {heads} heads")),
        };
        if !head_dim.is_multiple_of(2) {
            return Err(format!("invalid config: head_dim: {head_dim} is odd, rotary positions need pairs"));
        }
        let rope = Rope::parse(fields)?;
        if let RopeScaling::Factors(factors) = &rope.scaling
            && factors.len() != head_dim / 2
        {
            let (got, pairs) = (factors.len(), head_dim / 2);
            return Err(format!("invalid config: factors: {got} of them, a head has {pairs} pairs"));
        }
        Ok(Self {
            vocab_size: fields.size("vocab_size", 1 << 24)?,
            hidden_size,
            intermediate_size: fields.size("intermediate_size", 1 << 22)?,
            layers: fields.size("num_hidden_layers", 1 << 12)?,
            heads,
            kv_heads,
            head_dim,
            rms_norm_eps: fields.optional_positive("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            max_position_embeddings: fields.size("max_position_embeddings", 1 << 30)? as u32,
            rope,
            tied: fields.flag("tie_word_embeddings")?,
            attention_bias: fields.flag("attention_bias")?,
            mlp_bias: fields.flag("mlp_bias")?,
        })
    }

    /// Query heads that share one K and V head.
    pub(crate) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Width of all query heads together.
    pub(crate) fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all K (or all V) heads together.
    pub(crate) fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// Refuses what would load and then compute something else than the model's authors did.
fn refuse_other_models(fields: &Fields<'_>) -> Result<(), String> {
    let architectures = fields.optional::<Vec<String>>("architectures")?.unwrap_or_default();
    let named = architectures.first().map_or("none", String::as_str);
    if !ARCHITECTURES.contains(&named) {
        return Err(format!("architecture {named} is not supported; known: {}", ARCHITECTURES.join(", ")));
    }
    let activation = fields.optional::<String>("hidden_act")?;
    if let Some(other) = activation.filter(|name| name != "silu") {
        return Err(format!("invalid config: hidden_act: {other} is not supported, only silu"));
    }
    if fields.optional::<Value>("quantization_config")?.is_some() {
        return Err("quantized safetensors (quantization_config) are not supported".to_owned());
    }
    Ok(())
}

impl Rope {
    /// Reads `rope_parameters`, where newer files keep everything, or else `rope_theta` and `rope_scaling`.
    fn parse(fields: &Fields<'_>) -> Result<Self, String> {
        let parameters = fields.optional::<Map<String, Value>>("rope_parameters")?;
        let scaling = match parameters {
            Some(parameters) => Some(parameters),
            None => fields.optional("rope_scaling")?,
        };
        let scaling = scaling.unwrap_or_default();
        let nested = Fields(&scaling);
        let theta = match nested.optional_positive("rope_theta")? {
            Some(theta) => theta,
            None => fields.optional_positive("rope_theta")?.unwrap_or(10_000.0),
        };
        for partial in [fields, &nested] {
            if partial.optional::<f64>("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
                return Err("invalid config: partial_rotary_factor: only 1 is supported".to_owned());
            }
        }
        Ok(Self { theta, scaling: RopeScaling::parse(&nested)? })
    }
}

impl RopeScaling {
    fn parse(fields: &Fields<'_>) -> Result<Self, String> {
        let kind = match fields.optional::<String>("rope_type")? {
            Some(kind) => Some(kind),
            None => fields.optional::<String>("type")?,
        };
        match kind.as_deref() {
            None | Some("default") => Ok(Self::None),
            Some("linear") => Ok(Self::Linear { factor: fields.positive("factor")? }),
            Some("llama3") => {
                let (low, high) = (fields.positive("low_freq_factor")?, fields.positive("high_freq_factor")?);
                if low >= high {
                    return Err("invalid config: low_freq_factor: must be less than high_freq_factor".to_owned());
                }
                Ok(Self::Llama3 {
                    factor: fields.positive("factor")?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_context: fields.positive("original_max_position_embeddings")?,
                })
            }
            Some("factors") => {
                let factors = fields.required::<Vec<f64>>("factors")?;
                match factors.iter().find(|factor| !(factor.is_finite() && **factor > 0.0)) {
                    Some(factor) => Err(format!("invalid config: factors: {factor} is not positive")),
                    None => Ok(Self::Factors(factors)),
                }
            }
            Some(other) => {
                Err(format!("invalid config: rope_type: {other} is not supported; known: default, linear, llama3"))
            }
        }
    }
}

/// Typed access to a JSON object, with errors that name the field.
struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    /// The field, `None` when it is missing or null.
    fn optional<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, String> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(value).map(Some).map_err(|error| format!("invalid config: {name}: {error}")),
        }
    }

    fn required<T: DeserializeOwned>(&self, name: &str) -> Result<T, String> {
        self.optional(name)?.ok_or_else(|| format!("invalid config: {name}: missing"))
    }

    fn flag(&self, name: &str) -> Result<bool, String> {
        Ok(self.optional(name)?.unwrap_or(false))
    }

    fn size(&self, name: &str, max: usize) -> Result<usize, String> {
        let size = self.required::<usize>(name)?;
        if (1..=max).contains(&size) {
            Ok(size)
        } else {
            Err(format!("invalid config: {name}: {size} is not in 1..={max}"))
        }
    }

    fn optional_positive(&self, name: &str) -> Result<Option<f64>, String> {
        match self.optional::<f64>(name)? {
            Some(number) if !(number.is_finite() && number > 0.0) => {
                Err(format!("invalid config: {name}: {number} is not positive"))
            }
            other => Ok(other),
        }
    }

    fn positive(&self, name: &str) -> Result<f64, String> {
        self.optional_positive(name)?.ok_or_else(|| format!("invalid config: {name}: missing"))
    }
}
