//! The numbers of a model that llama.cpp divides by, sizes memory with, or aborts the process over.

use std::fmt::Display;

use tandem_gguf::{Header, Value};

/// llama.cpp's bounds, which it asserts.
const MAX_LAYERS: u64 = 512;
const MAX_EXPERTS: u64 = 1024;
/// Beyond any head; llama.cpp multiplies it in 32 bits.
const MAX_HEAD_LENGTH: u64 = 1 << 16;
/// Beyond any width of a state.
const MAX_STATE: u64 = 1 << 24;
const ROPE_SCALINGS: &[&str] = &["none", "linear", "yarn", "longrope"];

/// Checks what every architecture has in common. Keys that an architecture does not have, and those that differ from layer to layer, are left
/// to llama.cpp.
///
/// # Errors
/// With the first key that makes no sense, and its value.
pub(crate) fn check(header: &Header, architecture: &str) -> Result<(), String> {
    let numbers = Numbers { header, architecture };
    numbers.check_sizes()?;
    numbers.check_heads()?;
    numbers.check_experts()?;
    numbers.check_states()?;
    numbers.check_rope()
}

struct Numbers<'a> {
    header: &'a Header,
    architecture: &'a str,
}

impl Numbers<'_> {
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

    fn check_heads(&self) -> Result<(), String> {
        let (heads, kv_heads) = (self.unsigned("attention.head_count"), self.unsigned("attention.head_count_kv"));
        if let (Some(heads), Some(kv_heads)) = (heads, kv_heads)
            && kv_heads != 0
            && (heads == 0 || heads % kv_heads != 0)
        {
            return self.invalid("attention.head_count", format!("{heads}, with {kv_heads} for keys and values"));
        }
        for name in ["attention.key_length", "attention.value_length"] {
            if let Some(value) = self.unsigned(name)
                && value > MAX_HEAD_LENGTH
            {
                return self.invalid(name, value);
            }
        }
        for name in ["attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"] {
            self.check_positive(name)?;
        }
        Ok(())
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
