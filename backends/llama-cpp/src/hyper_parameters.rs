//! The numbers of a model that llama.cpp divides by, sizes memory with, or aborts the process over.

use std::fmt::Display;

use tandem_core::LoadError;
use tandem_gguf::{GgufFile, Header, Value};

use crate::model_file::EMBEDDERS;

/// llama.cpp's bounds, which it asserts.
const MAX_LAYERS: u64 = 512;
const MAX_EXPERTS: u64 = 1024;
/// Beyond any head, and beyond any number of them; llama.cpp multiplies the two in 32 bits.
const MAX_HEAD_LENGTH: u64 = 1 << 16;
const MAX_HEADS: u64 = 1 << 15;
/// Beyond any inner width of an MLP.
const MAX_FEED_FORWARD: u64 = 1 << 24;
/// Beyond any width of a state.
const MAX_STATE: u64 = 1 << 24;
/// Encoders whose heads may have a length of their own: with a matrix each for queries, keys and values.
const FREE_HEADS: &[&str] = &["eurobert", "gemma-embedding", "llama-embed"];
const ROPE_SCALINGS: &[&str] = &["none", "linear", "yarn", "longrope"];

/// Checks what every architecture has in common. Keys that an architecture does not have are left to llama.cpp.
///
/// # Errors
/// With the first key that makes no sense, and its value.
pub(crate) fn check(file: &GgufFile, architecture: &str) -> Result<(), LoadError> {
    let invalid = |reason| LoadError::Invalid { path: file.path().display().to_string(), reason };
    let numbers = Numbers { header: file.header(), architecture };
    numbers.check().map_err(invalid)?;
    // Some models have a number for each layer instead of one for all.
    let listed = |name: &str| file.numbers(&numbers.key(name));
    let (heads, kv_heads) = (listed("attention.head_count")?, listed("attention.head_count_kv")?);
    numbers.check_listed_heads(heads.as_deref(), kv_heads.as_deref()).map_err(invalid)?;
    for (name, max) in [
        ("feed_forward_length", MAX_FEED_FORWARD),
        ("expert_feed_forward_length", MAX_FEED_FORWARD),
        ("expert_used_count", MAX_EXPERTS),
    ] {
        let list = listed(name)?;
        numbers.check_list(name, list.as_deref().unwrap_or_default(), max).map_err(invalid)?;
    }
    Ok(())
}

struct Numbers<'a> {
    header: &'a Header,
    architecture: &'a str,
}

impl Numbers<'_> {
    fn check(&self) -> Result<(), String> {
        self.check_sizes()?;
        self.check_heads()?;
        self.check_experts()?;
        self.check_states()?;
        self.check_rope()
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn unsigned(&self, name: &str) -> Option<u64> {
        self.header.unsigned(&self.key(name))
    }

    fn invalid<T>(&self, name: &str, value: impl Display) -> Result<T, String> {
        Err(format!("invalid hyper-parameter {}: {value}", self.key(name)))
    }

    fn check_sizes(&self) -> Result<(), String> {
        let bounds = [("block_count", MAX_LAYERS), ("embedding_length", 1 << 24), ("context_length", (1 << 31) - 1)];
        for (name, max) in bounds {
            match self.unsigned(name) {
                Some(value) if (1..=max).contains(&value) => {}
                Some(value) => return self.invalid(name, value),
                None => return self.invalid(name, "missing, or no positive number"),
            }
        }
        let (predicting, layers) = (self.unsigned("nextn_predict_layers"), self.unsigned("block_count"));
        match predicting {
            Some(value) if predicting > layers => self.invalid("nextn_predict_layers", value),
            Some(_) | None => Ok(()),
        }
    }

    /// llama.cpp divides by the number of heads in its encoders, and takes it for granted that heads make up the width of the model: queries,
    /// keys and values are views of one product.
    fn check_heads_of_encoder(&self, heads: u64) -> Result<(), String> {
        const NAME: &str = "attention.head_count";
        let width = self.unsigned("embedding_length").unwrap_or(0);
        let Some(length) = width.checked_div(heads) else {
            return self.invalid(NAME, "missing, or no positive number");
        };
        let (key, value) = (self.unsigned("attention.key_length"), self.unsigned("attention.value_length"));
        if FREE_HEADS.contains(&self.architecture) && key.is_some() {
            return Ok(());
        }
        if heads * length != width || [key, value].into_iter().flatten().any(|given| given != length) {
            return self.invalid(NAME, format!("{heads}, with a width of {width}"));
        }
        Ok(())
    }

    fn check_heads(&self) -> Result<(), String> {
        let (heads, kv_heads) = (self.unsigned("attention.head_count"), self.unsigned("attention.head_count_kv"));
        if EMBEDDERS.contains(&self.architecture) {
            self.check_heads_of_encoder(heads.unwrap_or(0))?;
        }
        if let (Some(heads), Some(kv_heads)) = (heads, kv_heads)
            && kv_heads != 0
            && (heads == 0 || heads % kv_heads != 0)
        {
            return self.invalid("attention.head_count", format!("{heads}, with {kv_heads} for keys and values"));
        }
        for (name, max) in [
            ("attention.head_count", MAX_HEADS),
            ("attention.head_count_kv", MAX_HEADS),
            ("attention.key_length", MAX_HEAD_LENGTH),
            ("attention.value_length", MAX_HEAD_LENGTH),
            ("feed_forward_length", MAX_FEED_FORWARD),
            ("expert_feed_forward_length", MAX_FEED_FORWARD),
        ] {
            if let Some(value) = self.unsigned(name)
                && value > max
            {
                return self.invalid(name, value);
            }
        }
        for name in ["attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"] {
            self.check_positive(name)?;
        }
        Ok(())
    }

    /// By layer. One without attention has no heads for keys and values.
    fn check_listed_heads(&self, heads: Option<&[f64]>, kv_heads: Option<&[f64]>) -> Result<(), String> {
        let (heads_name, kv_name) = ("attention.head_count", "attention.head_count_kv");
        self.check_list(heads_name, heads.unwrap_or_default(), MAX_HEADS)?;
        self.check_list(kv_name, kv_heads.unwrap_or_default(), MAX_HEADS)?;
        let of_all = |name| self.unsigned(name).map(|count| count as f64);
        let at = |list: Option<&[f64]>, layer: usize, name| match list {
            Some(list) => list.get(layer).copied(),
            None => of_all(name),
        };
        let layers = heads.map_or(0, <[f64]>::len).max(kv_heads.map_or(0, <[f64]>::len));
        for layer in 0..layers {
            let (Some(heads), Some(kv_heads)) = (at(heads, layer, heads_name), at(kv_heads, layer, kv_name)) else {
                continue;
            };
            if kv_heads != 0.0 && (heads == 0.0 || heads % kv_heads != 0.0) {
                let value = format!("{heads}, with {kv_heads} for keys and values, in layer {layer}");
                return self.invalid(heads_name, value);
            }
        }
        Ok(())
    }

    fn check_list(&self, name: &str, list: &[f64], max: u64) -> Result<(), String> {
        let wrong = list.iter().enumerate().find(|(_, value)| !(0.0..=max as f64).contains(*value));
        match wrong {
            Some((layer, value)) => self.invalid(name, format!("{value} in layer {layer}")),
            None => Ok(()),
        }
    }

    fn check_experts(&self) -> Result<(), String> {
        let count = |name| self.unsigned(name).unwrap_or(0);
        let (experts, used) = (count("expert_count"), count("expert_used_count"));
        let (groups, used_groups) = (count("expert_group_count"), count("expert_group_used_count"));
        if experts > MAX_EXPERTS {
            return self.invalid("expert_count", experts);
        }
        // A list has one number for each layer; llama.cpp reads it.
        let listed = self.header.array_len(&self.key("expert_used_count")).is_some();
        if !listed && (used > experts || (used == 0) != (experts == 0)) {
            return self.invalid("expert_used_count", format!("{used} of {experts}"));
        }
        let divided = groups > 1 && (!experts.is_multiple_of(groups) || !(1..groups).contains(&used_groups));
        if divided || groups > experts.saturating_sub(1) {
            return self.invalid("expert_group_count", format!("{groups} of {experts} experts, {used_groups} used"));
        }
        Ok(())
    }

    /// Of layers that keep a state. Some divide by these numbers, others assert that they fit together.
    fn check_states(&self) -> Result<(), String> {
        for (name, least) in [
            ("ssm.conv_kernel", 1),
            ("ssm.inner_size", 1),
            ("ssm.state_size", 1),
            ("ssm.time_step_rank", 1),
            // A convolution over one token would leave no state to keep.
            ("shortconv.l_cache", 2),
        ] {
            if let Some(value) = self.unsigned(name)
                && !(least..=MAX_STATE).contains(&value)
            {
                return self.invalid(name, value);
            }
        }
        let inner = self.unsigned("ssm.inner_size").unwrap_or(0);
        if let Some(groups) = self.unsigned("ssm.group_count").filter(|groups| *groups > 0) {
            let heads = self.unsigned("ssm.time_step_rank").unwrap_or(1);
            if !inner.is_multiple_of(groups) || !inner.is_multiple_of(heads) {
                return self.invalid("ssm.inner_size", format!("{inner}, in {groups} groups and {heads} heads"));
            }
        }
        let width = self.unsigned("embedding_length").unwrap_or(0);
        if self.architecture == "jamba" && inner != 2 * width {
            return self.invalid("ssm.inner_size", format!("{inner}, twice embedding_length ({width}) expected"));
        }
        let (keys, values) = (self.unsigned("attention.key_length"), self.unsigned("attention.value_length"));
        if matches!(self.architecture, "lfm2" | "lfm2moe") && keys != values {
            let text = |length: Option<u64>| length.map_or("the default".to_owned(), |length| length.to_string());
            return self.invalid("attention.key_length", format!("{}, with {} for values", text(keys), text(values)));
        }
        Ok(())
    }

    fn check_rope(&self) -> Result<(), String> {
        self.check_positive("rope.freq_base")?;
        let name = "rope.scaling.type";
        match (self.header.get(&self.key(name)), self.header.text(&self.key(name))) {
            (None, _) => Ok(()),
            (Some(_), Some(scaling)) if ROPE_SCALINGS.contains(&scaling) => Ok(()),
            (Some(_), scaling) => self.invalid(name, scaling.unwrap_or("no text")),
        }
    }

    fn check_positive(&self, name: &str) -> Result<(), String> {
        match self.header.get(&self.key(name)) {
            Some(&Value::Float(value)) if !(value.is_finite() && value > 0.0) => self.invalid(name, value),
            Some(&Value::Double(value)) if !(value.is_finite() && value > 0.0) => self.invalid(name, value),
            Some(_) | None => Ok(()),
        }
    }
}
