//! An adapter's file, checked against the model's before llama.cpp opens it.
//!
//! llama.cpp compares the outer sizes of tensors when it loads an adapter, and multiplies when it computes: what fits the one and not the
//! other ends the process with the first request. What it would pass over in silence is refused here as well, since an adapter that is
//! applied in part answers wrongly.

use std::{collections::BTreeMap, path::Path};

use llama_cpp_2::{
    LlamaLoraAdapterInitError,
    model::{LlamaLoraAdapter, LlamaModel},
};
use tandem_core::LoadError;
use tandem_gguf::{
    Header, Shard, Tensor, Value,
    ggml_type::{self, NVFP4},
};

use crate::{
    LlamaCppSettings,
    model_file::{ModelFile, read_header},
};

const EMBEDDING: &str = "token_embd.weight";

/// A file that llama.cpp may see beside the model's.
#[derive(Debug)]
pub(crate) struct AdapterFile {
    file: Shard,
    scale: f32,
    /// Of its numbers.
    pub(crate) bytes: u64,
}

impl AdapterFile {
    /// Checks that all files that the settings name are `LoRA` adapters and fit the model.
    ///
    /// # Errors
    /// With the first rule that one breaks, and which file it is.
    pub(crate) fn check_all(settings: &LlamaCppSettings, model: &ModelFile) -> Result<Vec<Self>, LoadError> {
        settings.adapters.iter().map(|adapter| Self::check(&adapter.path, adapter.scale, model)).collect()
    }

    fn check(path: &Path, scale: f32, model: &ModelFile) -> Result<Self, LoadError> {
        let (header, file) = read_header(path)?;
        check_metadata(&header, model)
            .and_then(|()| check_tensors(header.tensors(), model))
            .map_err(|reason| LoadError::Invalid { path: path.display().to_string(), reason })?;
        Ok(Self { file, scale, bytes: header.tensors().iter().map(|tensor| tensor.bytes).sum() })
    }

    /// Has llama.cpp load it: what it is, and how strongly it is to be applied. The model keeps it, and frees it in the end.
    ///
    /// # Errors
    /// When llama.cpp says no, or the file is another one than was checked.
    pub(crate) fn load(&self, model: &mut LlamaModel) -> Result<(LlamaLoraAdapter, f32), LoadError> {
        let path = &self.file.path;
        let invalid = |reason| LoadError::Invalid { path: path.display().to_string(), reason };
        let adapter = model.lora_adapter_init(path);
        if self.file.has_changed() {
            return Err(invalid("the file changed while it was being loaded".into()));
        }
        let adapter = adapter.map_err(|error| {
            invalid(match error {
                LlamaLoraAdapterInitError::NullResult => "llama.cpp cannot load this adapter; its log says why".into(),
                LlamaLoraAdapterInitError::NullError(_) => "its path contains a NUL byte".into(),
                LlamaLoraAdapterInitError::PathToStrError(_) => "its path is not UTF-8".into(),
            })
        })?;
        Ok((adapter, self.scale))
    }
}

/// llama.cpp reads these without asking for their types, and aborts on a wrong one.
fn check_metadata(header: &Header, model: &ModelFile) -> Result<(), String> {
    if header.text("general.type") != Some("adapter") {
        return Err("no adapter: its `general.type` is not `adapter`".into());
    }
    if header.text("adapter.type") != Some("lora") {
        return Err("no LoRA adapter: its `adapter.type` is not `lora`".into());
    }
    match header.text("general.architecture") {
        Some(architecture) if architecture == model.architecture() => {}
        architecture => {
            let of = architecture.unwrap_or("none");
            return Err(format!("an adapter for the architecture `{of}`, the model's is `{}`", model.architecture()));
        }
    }
    match header.get("adapter.lora.alpha") {
        Some(Value::Float(alpha)) if alpha.is_finite() => {}
        Some(value) => return Err(format!("`adapter.lora.alpha` is {value:?}, a finite 32-bit float expected")),
        None => return Err("does not say its `adapter.lora.alpha`".into()),
    }
    if header.get("adapter.alora.invocation_tokens").is_some() {
        return Err("an adapter that certain tokens activate (aLoRA), which is not supported".into());
    }
    Ok(())
}

fn check_tensors(tensors: &[Tensor], model: &ModelFile) -> Result<(), String> {
    let mut pairs = BTreeMap::<&str, [Option<&Tensor>; 2]>::new();
    for tensor in tensors {
        let name = &tensor.name;
        let (base, half) = if let Some(base) = name.strip_suffix(".lora_a") {
            (base, 0)
        } else if let Some(base) = name.strip_suffix(".lora_b") {
            (base, 1)
        } else {
            return Err(format!("tensor `{name}`: neither `.lora_a` nor `.lora_b`; llama.cpp would not apply it"));
        };
        if !ggml_type::ADAPTER_TYPES.contains(&tensor.kind) {
            return Err(format!("tensor `{name}`: adapters are stored as F32, F16, BF16 or Q8_0"));
        }
        pairs.entry(base).or_default()[half] = Some(tensor);
    }
    if pairs.is_empty() {
        return Err("holds no tensors, only metadata".into());
    }
    for (base, pair) in pairs {
        let [Some(a), Some(b)] = pair else {
            let missing = if pair[0].is_none() { "a" } else { "b" };
            return Err(format!("tensor `{base}.lora_{missing}` is missing"));
        };
        check_pair(base, a, b, model)?;
    }
    Ok(())
}

/// `a` takes an input to the rank's numbers, `b` those to an output that is added to the base tensor's.
fn check_pair(base: &str, a: &Tensor, b: &Tensor, model: &ModelFile) -> Result<(), String> {
    let Some(tensor) = model.tensor(base) else {
        return Err(format!("tensor `{base}` is not in the model: is the adapter for another one?"));
    };
    if tensor.dims.len() < 2 {
        return Err(format!("tensor `{base}` is no matrix; llama.cpp applies adapters to matrices alone"));
    }
    if base.ends_with(EMBEDDING) {
        // The output of a model without a matrix for it is computed with the embedding's, which wants the halves the other way round.
        if base != EMBEDDING || model.tensor("output.weight").is_none() {
            return Err(format!("tensor `{base}`: llama.cpp cannot adapt the embedding of this model"));
        }
    } else if tensor.kind == NVFP4 && base.contains(".ffn_") {
        return Err(format!("tensor `{base}`: llama.cpp cannot adapt a feed-forward layer of NVFP4"));
    }
    let ([base_in, base_out, base_more @ ..], [a_in, a_out, a_more @ ..], [b_in, b_out, b_more @ ..]) =
        (tensor.shape(), a.shape(), b.shape());
    let fits = if base == EMBEDDING {
        // Rows are looked up in `a`, and `b` is not transposed.
        a_in == b_in && a_out == base_out && b_out == base_in
    } else {
        a_in == base_in && a_out == b_in && b_out == base_out
    };
    if !fits || a_more != base_more || b_more != base_more {
        let (base_dims, a_dims, b_dims) = (&tensor.dims, &a.dims, &b.dims);
        return Err(format!(
            "tensor `{base}` of {base_dims:?} cannot be adapted by {a_dims:?} and {b_dims:?}: is the adapter for another model?"
        ));
    }
    Ok(())
}
