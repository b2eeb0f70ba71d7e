//! Model architectures: one decoder and one encoder, and for each family what its `config.json` asks of it.

mod bert;
mod decoder;
mod encoder;
mod gemma;
mod granite;
mod head;
mod layer;
mod llama;
mod mistral;
mod olmo;
mod phi;
mod qwen;
mod smollm;
mod tensors;
mod trunk;
mod windows;

pub(crate) use decoder::Decoder;
pub(crate) use encoder::Encoder;
pub(crate) use head::Head;
pub(crate) use tensors::{LayerTensors, NormNames, Product};
pub(crate) use trunk::{Trunk, distinct_ropes, is_derived, norm_weight};

use crate::config::{DecoderConfig, EncoderConfig, Fields};

/// Reads the fields of one family.
type Describe = fn(&Fields<'_>) -> Result<DecoderConfig, String>;

/// Architectures, as `config.json` names them, that this backend runs.
const FAMILIES: [(&str, Describe); 11] = [
    ("LlamaForCausalLM", llama::describe),
    ("MistralForCausalLM", mistral::describe),
    ("Qwen2ForCausalLM", qwen::describe_2),
    ("Qwen3ForCausalLM", qwen::describe_3),
    ("Qwen3MoeForCausalLM", qwen::describe_3_moe),
    ("Gemma2ForCausalLM", gemma::describe_2),
    ("Gemma3ForCausalLM", gemma::describe_3),
    ("Phi3ForCausalLM", phi::describe),
    ("SmolLM3ForCausalLM", smollm::describe),
    ("GraniteForCausalLM", granite::describe),
    ("Olmo2ForCausalLM", olmo::describe),
];

/// Reads the fields of one family of encoders.
type DescribeEncoder = fn(&Fields<'_>) -> Result<EncoderConfig, String>;

/// Architectures that turn texts into vectors.
const ENCODERS: [(&str, DescribeEncoder); 4] = [
    ("BertModel", bert::describe),
    ("RobertaModel", bert::describe_roberta),
    ("XLMRobertaModel", bert::describe_roberta),
    ("DistilBertModel", bert::describe_distilled),
];

/// Architectures that give a score to a query and a document.
const RANKERS: [(&str, DescribeEncoder); 3] = [
    ("BertForSequenceClassification", bert::describe_ranking),
    ("RobertaForSequenceClassification", bert::describe_ranking_roberta),
    ("XLMRobertaForSequenceClassification", bert::describe_ranking_roberta),
];

/// The family of an architecture, `None` when this backend does not run it.
pub(crate) fn family(architecture: &str) -> Option<Describe> {
    FAMILIES.iter().find(|(name, _)| *name == architecture).map(|(_, describe)| *describe)
}

/// The same for encoders.
pub(crate) fn encoder_family(architecture: &str) -> Option<DescribeEncoder> {
    let mut all = ENCODERS.iter().chain(&RANKERS);
    all.find(|(name, _)| *name == architecture).map(|(_, describe)| *describe)
}

pub(crate) fn architectures() -> impl Iterator<Item = &'static str> {
    let encoders = ENCODERS.iter().chain(&RANKERS).map(|(name, _)| *name);
    FAMILIES.iter().map(|(name, _)| *name).chain(encoders)
}
