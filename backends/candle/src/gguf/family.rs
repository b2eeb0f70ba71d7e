/// Architectures, each with the layers that it is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Llama,
    Qwen2,
    Qwen3,
    Qwen3Moe,
    Gemma2,
    Gemma3,
    Phi3,
    SmolLm3,
    Granite,
    Olmo2,
}

/// What GGUF calls an architecture, and what Hugging Face calls it: in `architectures` and in `model_type`.
const NAMES: [(Family, &str, &str, &str); 10] = [
    (Family::Llama, "llama", "LlamaForCausalLM", "llama"),
    (Family::Qwen2, "qwen2", "Qwen2ForCausalLM", "qwen2"),
    (Family::Qwen3, "qwen3", "Qwen3ForCausalLM", "qwen3"),
    (Family::Qwen3Moe, "qwen3moe", "Qwen3MoeForCausalLM", "qwen3_moe"),
    (Family::Gemma2, "gemma2", "Gemma2ForCausalLM", "gemma2"),
    (Family::Gemma3, "gemma3", "Gemma3ForCausalLM", "gemma3_text"),
    (Family::Phi3, "phi3", "Phi3ForCausalLM", "phi3"),
    (Family::SmolLm3, "smollm3", "SmolLM3ForCausalLM", "smollm3"),
    (Family::Granite, "granite", "GraniteForCausalLM", "granite"),
    (Family::Olmo2, "olmo2", "Olmo2ForCausalLM", "olmo2"),
];

/// Layers of a block, as Hugging Face and as GGUF name them. Most architectures have these and no others.
const PLAIN: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

const QWEN3: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// `{expert}` stands for a number: all experts of a block are one tensor.
const QWEN3_MOE: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate", "ffn_gate_inp"),
    ("mlp.experts.{expert}.gate_proj", "ffn_gate_exps"),
    ("mlp.experts.{expert}.up_proj", "ffn_up_exps"),
    ("mlp.experts.{expert}.down_proj", "ffn_down_exps"),
];

/// Norms on both sides of attention and of the MLP.
const GEMMA: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];

/// Fused, as in the files of its authors.
const PHI3: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// Norms behind attention and the MLP, and none before them.
const OLMO2: &[(&str, &str)] = &[
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "post_attention_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];

impl Family {
    /// By its name in GGUF.
    pub(crate) fn find(architecture: &str) -> Result<Self, String> {
        NAMES.iter().find(|(_, name, ..)| *name == architecture).map(|(family, ..)| *family).ok_or_else(|| {
            let known: Vec<_> = NAMES.iter().map(|(_, name, ..)| *name).collect();
            format!("architecture `{architecture}` is not supported by the candle backend; known: {}", known.join(", "))
        })
    }

    /// Its name in GGUF, where keys begin with it.
    pub(crate) fn name(self) -> &'static str {
        self.names().0
    }

    /// What Hugging Face calls it in `architectures` and in `model_type`.
    pub(crate) fn hugging_face(self) -> (&'static str, &'static str) {
        let (_, class, model_type) = self.names();
        (class, model_type)
    }

    fn names(self) -> (&'static str, &'static str, &'static str) {
        let found = NAMES.iter().find(|(family, ..)| *family == self);
        found.map(|&(_, name, class, model_type)| (name, class, model_type)).expect("every family stands in the table")
    }

    /// The layers of a block, as Hugging Face and as GGUF name them.
    pub(crate) fn layers(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Llama | Self::Qwen2 | Self::SmolLm3 | Self::Granite => PLAIN,
            Self::Qwen3 => QWEN3,
            Self::Qwen3Moe => QWEN3_MOE,
            Self::Gemma2 | Self::Gemma3 => GEMMA,
            Self::Phi3 => PHI3,
            Self::Olmo2 => OLMO2,
        }
    }

    /// Whether the rows of Q and K are in the order of pairs that lie side by side, which llama.cpp turns; the model code turns the halves of
    /// a head, as the files of Hugging Face are made for.
    pub(crate) fn pairs_lie_side_by_side(self) -> bool {
        match self {
            Self::Llama | Self::SmolLm3 | Self::Granite => true,
            Self::Qwen2 | Self::Qwen3 | Self::Qwen3Moe | Self::Gemma2 | Self::Gemma3 | Self::Phi3 | Self::Olmo2 => {
                false
            }
        }
    }

    /// Whether the weights of norms are what activations are multiplied with, though Hugging Face has them without the one that Gemma adds.
    pub(crate) fn norms_hold_the_one(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_architecture_is_refused_with_those_that_are_known() {
        assert_eq!(Family::find("qwen3moe"), Ok(Family::Qwen3Moe));
        let error = Family::find("mamba").unwrap_err();
        assert!(
            error.starts_with("architecture `mamba` is not supported by the candle backend; known: llama, qwen2,"),
            "{error}"
        );
        assert!(NAMES.iter().all(|(family, name, ..)| family.name() == *name));
    }
}
