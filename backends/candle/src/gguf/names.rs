use super::family::Family;

/// The translation of tensor names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names {
    pub(crate) family: Family,
    pub(crate) head_dim: usize,
}

/// What a tensor of a file is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Name {
    /// One tensor.
    One(String, Change),
    /// A tensor for each expert, one behind the other; `{expert}` in the name stands for the number.
    Experts(String),
    /// Nothing that the model code asks for: it went into the configuration.
    Configuration,
}

/// What has to be done to a tensor for it to be the one that Hugging Face has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Nothing,
    /// The rows of each head go from pairs that lie side by side to halves of the head.
    PairsToHalves {
        head_dim: usize,
    },
    /// The one that the model adds is taken away.
    WithoutTheOne,
}

/// Layers outside of blocks.
const OUTER: [(&str, &str); 3] =
    [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];

/// Factors of rotary positions.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";
pub(super) const ROPE_FACTORS_SHORT: &str = "rope_factors_short.weight";
pub(super) const ROPE_FACTORS_LONG: &str = "rope_factors_long.weight";

impl Names {
    /// What the model code calls a tensor of the file; `None` for one that a model of this architecture has not.
    pub(crate) fn hugging_face(&self, name: &str) -> Option<Name> {
        if [ROPE_FACTORS, ROPE_FACTORS_SHORT, ROPE_FACTORS_LONG].contains(&name) {
            return Some(Name::Configuration);
        }
        let (layer, kind) = name.rsplit_once('.').filter(|(_, kind)| ["weight", "bias"].contains(kind))?;
        if let Some((outer, _)) = OUTER.iter().find(|(_, outer)| *outer == layer) {
            return Some(Name::One(format!("{outer}.{kind}"), self.change(outer)));
        }
        let (block, layer) = layer.strip_prefix("blk.")?.split_once('.')?;
        let block = block.parse::<u32>().ok().filter(|number| number.to_string() == block)?;
        let (layer, _) = self.family.layers().iter().find(|(_, theirs)| *theirs == layer)?;
        let full = format!("model.layers.{block}.{layer}.{kind}");
        if layer.contains("{expert}") {
            return Some(Name::Experts(full));
        }
        Some(Name::One(full, self.change(layer)))
    }

    /// What the file calls a tensor that the model code asks for; the name itself where nothing is known of it.
    pub(crate) fn gguf(&self, name: &str) -> String {
        let translated = || {
            let (layer, kind) = name.rsplit_once('.')?;
            if let Some((_, outer)) = OUTER.iter().find(|(outer, _)| *outer == layer) {
                return Some(format!("{outer}.{kind}"));
            }
            let (block, layer) = layer.strip_prefix("model.layers.")?.split_once('.')?;
            let layer = match layer.strip_prefix("mlp.experts.").and_then(|rest| rest.split_once('.')) {
                Some((_, projection)) => format!("mlp.experts.{{expert}}.{projection}"),
                None => layer.to_owned(),
            };
            let (_, layer) = self.family.layers().iter().find(|(ours, _)| *ours == layer)?;
            Some(format!("blk.{block}.{layer}.{kind}"))
        };
        translated().unwrap_or_else(|| name.to_owned())
    }

    fn change(&self, layer: &str) -> Change {
        let turned = ["self_attn.q_proj", "self_attn.k_proj"].contains(&layer);
        let is_norm = layer.ends_with("norm");
        if turned && self.family.pairs_lie_side_by_side() {
            Change::PairsToHalves { head_dim: self.head_dim }
        } else if is_norm && self.family.norms_hold_the_one() {
            Change::WithoutTheOne
        } else {
            Change::Nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(family: Family) -> Names {
        Names { family, head_dim: 64 }
    }

    #[test]
    fn names_are_translated_both_ways() {
        let one = |name: &str, change| Some(Name::One(name.to_owned(), change));
        let turned = Change::PairsToHalves { head_dim: 64 };
        for (family, gguf, expected) in [
            (Family::Llama, "token_embd.weight", one("model.embed_tokens.weight", Change::Nothing)),
            (Family::Llama, "output.weight", one("lm_head.weight", Change::Nothing)),
            (Family::Llama, "blk.12.attn_q.weight", one("model.layers.12.self_attn.q_proj.weight", turned)),
            (Family::Llama, "blk.0.attn_k.bias", one("model.layers.0.self_attn.k_proj.bias", turned)),
            (Family::Llama, "blk.0.attn_v.bias", one("model.layers.0.self_attn.v_proj.bias", Change::Nothing)),
            (
                Family::Llama,
                "blk.0.ffn_norm.weight",
                one("model.layers.0.post_attention_layernorm.weight", Change::Nothing),
            ),
            (Family::Qwen2, "blk.1.attn_q.bias", one("model.layers.1.self_attn.q_proj.bias", Change::Nothing)),
            (Family::Gemma3, "output_norm.weight", one("model.norm.weight", Change::WithoutTheOne)),
            (
                Family::Gemma3,
                "blk.3.attn_q_norm.weight",
                one("model.layers.3.self_attn.q_norm.weight", Change::WithoutTheOne),
            ),
            (
                Family::Gemma2,
                "blk.3.ffn_norm.weight",
                one("model.layers.3.pre_feedforward_layernorm.weight", Change::WithoutTheOne),
            ),
            (
                Family::Olmo2,
                "blk.3.post_ffw_norm.weight",
                one("model.layers.3.post_feedforward_layernorm.weight", Change::Nothing),
            ),
            (Family::Phi3, "blk.3.ffn_up.weight", one("model.layers.3.mlp.gate_up_proj.weight", Change::Nothing)),
            (Family::Qwen3Moe, "blk.3.ffn_gate_inp.weight", one("model.layers.3.mlp.gate.weight", Change::Nothing)),
        ] {
            assert_eq!(names(family).hugging_face(gguf), expected, "{gguf}");
            let Some(Name::One(ours, _)) = expected else { unreachable!("all are") };
            assert_eq!(names(family).gguf(&ours), gguf);
        }
        let experts = names(Family::Qwen3Moe).hugging_face("blk.7.ffn_down_exps.weight");
        assert_eq!(experts, Some(Name::Experts("model.layers.7.mlp.experts.{expert}.down_proj.weight".to_owned())));
        let gguf = names(Family::Qwen3Moe).gguf("model.layers.7.mlp.experts.31.down_proj.weight");
        assert_eq!(gguf, "blk.7.ffn_down_exps.weight");
    }

    #[test]
    fn what_a_model_has_not_is_unknown() {
        for name in [
            "blk.0.attn_q",
            "blk.0.attn_q.scale",
            "blk.x.attn_q.weight",
            "blk.01.attn_q.weight",
            "blk.0.ssm_a.weight",
            "v.weight",
            "",
        ] {
            assert_eq!(names(Family::Llama).hugging_face(name), None, "{name}");
        }
        assert_eq!(names(Family::Llama).hugging_face("rope_freqs.weight"), Some(Name::Configuration));
        assert_eq!(
            names(Family::Llama).gguf("model.layers.0.self_attn.q_norm.weight"),
            "model.layers.0.self_attn.q_norm.weight"
        );
    }
}
