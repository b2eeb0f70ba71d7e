//! Model architectures: one decoder, and for each family what its `config.json` asks of it.

mod decoder;
mod gemma;
mod granite;
mod layer;
mod llama;
mod mistral;
mod olmo;
mod phi;
mod qwen;
mod smollm;
mod windows;

pub(crate) use decoder::Decoder;

use crate::config::{DecoderConfig, Fields};

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

/// The family of an architecture, `None` when this backend does not run it.
pub(crate) fn family(architecture: &str) -> Option<Describe> {
    FAMILIES.iter().find(|(name, _)| *name == architecture).map(|(_, describe)| *describe)
}

pub(crate) fn architectures() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|(name, _)| *name)
}
