use serde_json::Value;

/// How a checkpoint keeps the weights of its layers, by `quantization_config`. They are turned into plain numbers when they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    Plain,
    /// Four bits; groups of inputs share a scale and a zero point.
    Int4 {
        packing: Packing,
        group: Group,
    },
    /// Eight-bit floats that share scales.
    Fp8(Shared),
}

/// Where the four bits of a weight lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// Eight inputs of an output are a number, as GPTQ has it. Zero points are so far above what is written.
    ByInput { above: i32 },
    /// Eight outputs of an input are a number, in an order of their own, as AWQ has it.
    ByOutput,
}

/// Inputs that share a scale and a zero point: so many, or all.
pub(crate) type Group = Option<usize>;

/// Which weights of a matrix share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shared {
    /// Blocks that follow from how many scales there are.
    ByShape,
    /// Blocks of so many outputs and inputs.
    Block(usize, usize),
    /// Those of an output.
    Output,
    All,
}

const MAX_BLOCK: u64 = 1 << 20;

impl Stored {
    /// Reads `quantization_config` of a `config.json`.
    pub(crate) fn parse(config: &Value) -> Result<Self, String> {
        let fields = &config["quantization_config"];
        if fields.is_null() {
            return Ok(Self::Plain);
        }
        let stored = match fields["quant_method"].as_str() {
            Some("gptq") => gptq(fields),
            Some("awq") => awq(fields),
            Some("fp8") => block(fields, "weight_block_size").map(|block| Self::Fp8(block.unwrap_or(Shared::ByShape))),
            Some("compressed-tensors") => compressed_tensors(fields).map(Self::Fp8),
            Some(other) => Err(format!(
                "quant_method: {other} is not supported; known: gptq and awq of 4 bits, fp8, compressed-tensors of 8-bit floats"
            )),
            None => Err("quant_method: missing".to_owned()),
        };
        stored.map_err(|reason| format!("invalid config: quantization_config: {reason}"))
    }
}

fn gptq(fields: &Value) -> Result<Stored, String> {
    four_bits(fields, "gptq")?;
    // The first version wrote zero points less one.
    let above = match fields["checkpoint_format"].as_str() {
        None | Some("gptq") => 1,
        Some("gptq_v2") => 0,
        Some(other) => {
            return Err(format!("checkpoint_format: {other} of gptq is not supported, only gptq and gptq_v2"));
        }
    };
    if fields["is_marlin_format"] == true {
        return Err("is_marlin_format: weights in the order of one kernel are not supported".to_owned());
    }
    if is_given(&fields["dynamic"]) {
        return Err("dynamic: layers that differ in how they are quantized are not supported".to_owned());
    }
    Ok(Stored::Int4 { packing: Packing::ByInput { above }, group: group(fields)? })
}

fn awq(fields: &Value) -> Result<Stored, String> {
    four_bits(fields, "awq")?;
    match fields["version"].as_str().map(str::to_ascii_lowercase).as_deref() {
        None | Some("gemm") => Ok(Stored::Int4 { packing: Packing::ByOutput, group: group(fields)? }),
        Some(other) => Err(format!("version: {other} of awq is not supported, only gemm")),
    }
}

/// Eight-bit floats alone; what else the format can hold is refused by its name.
fn compressed_tensors(fields: &Value) -> Result<Shared, String> {
    for field in ["kv_cache_scheme", "transform_config"] {
        if is_given(&fields[field]) {
            return Err(format!("{field}: is not supported"));
        }
    }
    let sparsity = &fields["sparsity_config"];
    if is_given(sparsity) && sparsity["format"] != "dense" {
        return Err(format!("sparsity_config: format {} is not supported, only dense", sparsity["format"]));
    }
    let groups = fields["config_groups"].as_object().filter(|groups| !groups.is_empty());
    let groups = groups.ok_or("config_groups: missing")?;
    let mut shared = None;
    for (name, group) in groups {
        let refused = |reason: String| format!("config_groups: {name}: {reason}");
        let format = if group["format"].is_null() { &fields["format"] } else { &group["format"] };
        if format != "float-quantized" && format != "naive-quantized" {
            return Err(refused(format!("format: {format} is not supported, only float-quantized")));
        }
        let weights = weights_of_group(&group["weights"]).map_err(|reason| refused(format!("weights: {reason}")))?;
        if *shared.get_or_insert(weights) != weights {
            return Err(refused("groups whose scales differ in what they are of are not supported".to_owned()));
        }
    }
    shared.ok_or_else(|| "config_groups: missing".to_owned())
}

fn weights_of_group(weights: &Value) -> Result<Shared, String> {
    let kind = (weights["type"].as_str(), weights["num_bits"].as_u64());
    if kind != (Some("float"), Some(8)) {
        return Err(format!("{} of {} bits is not supported, only float of 8", weights["type"], weights["num_bits"]));
    }
    for (field, only) in [("symmetric", true), ("dynamic", false)] {
        if !weights[field].is_null() && weights[field] != only {
            return Err(format!("{field}: {} is not supported, only {only}", weights[field]));
        }
    }
    match weights["strategy"].as_str() {
        Some("tensor") => Ok(Shared::All),
        Some("channel") => Ok(Shared::Output),
        Some("block") => block(weights, "block_structure")?.ok_or_else(|| "block_structure: missing".to_owned()),
        _ => Err(format!("strategy: {} is not supported, only tensor, channel and block", weights["strategy"])),
    }
}

fn four_bits(fields: &Value, method: &str) -> Result<(), String> {
    match fields["bits"].as_u64() {
        Some(4) => Ok(()),
        bits => {
            let bits = bits.map_or("none".to_owned(), |bits| bits.to_string());
            Err(format!("bits: {bits} of {method} are not supported, only 4"))
        }
    }
}

fn group(fields: &Value) -> Result<Group, String> {
    match fields["group_size"].as_i64() {
        Some(-1) => Ok(None),
        Some(size) if (1..=MAX_BLOCK as i64).contains(&size) => Ok(Some(size as usize)),
        _ => Err(format!("group_size: {} is no size, nor -1 for all inputs", fields["group_size"])),
    }
}

fn block(fields: &Value, field: &str) -> Result<Option<Shared>, String> {
    let block = &fields[field];
    match (block.is_null(), block[0].as_u64(), block[1].as_u64()) {
        (true, ..) => Ok(None),
        (false, Some(outputs @ 1..=MAX_BLOCK), Some(inputs @ 1..=MAX_BLOCK)) => {
            Ok(Some(Shared::Block(outputs as usize, inputs as usize)))
        }
        _ => Err(format!("{field}: {block} is no pair of sizes")),
    }
}

/// Whether a field is there and says something.
fn is_given(field: &Value) -> bool {
    !field.is_null() && field.as_object().is_none_or(|fields| !fields.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(fields: Value) -> Result<Stored, String> {
        Stored::parse(&Value::from_iter([("quantization_config", fields)]))
    }

    fn by_input(above: i32, group: Group) -> Stored {
        Stored::Int4 { packing: Packing::ByInput { above }, group }
    }

    /// What llm-compressor writes, with a change.
    fn compressed(change: impl FnOnce(&mut Value)) -> Result<Stored, String> {
        let mut fields = json!({
            "quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
            "config_groups": { "group_0": {
                "targets": ["Linear"], "output_activations": null,
                "weights": { "num_bits": 8, "type": "float", "strategy": "channel", "symmetric": true, "dynamic": false, "group_size": null },
                "input_activations": { "num_bits": 8, "type": "float", "strategy": "token", "symmetric": true, "dynamic": true }
            } },
            "ignore": ["lm_head"], "kv_cache_scheme": null, "sparsity_config": {}, "transform_config": {}
        });
        change(&mut fields);
        parse(fields)
    }

    fn weights(fields: &mut Value) -> &mut Value {
        &mut fields["config_groups"]["group_0"]["weights"]
    }

    #[test]
    fn what_is_known_is_read() {
        assert_eq!(Stored::parse(&json!({})), Ok(Stored::Plain));
        assert_eq!(parse(json!({ "quant_method": "gptq", "bits": 4, "group_size": 128 })), Ok(by_input(1, Some(128))));
        let second = json!({ "quant_method": "gptq", "bits": 4, "group_size": -1, "checkpoint_format": "gptq_v2" });
        assert_eq!(parse(second), Ok(by_input(0, None)));
        assert_eq!(
            parse(json!({ "quant_method": "awq", "bits": 4, "group_size": 64, "version": "GEMM" })),
            Ok(Stored::Int4 { packing: Packing::ByOutput, group: Some(64) })
        );
        assert_eq!(parse(json!({ "quant_method": "fp8" })), Ok(Stored::Fp8(Shared::ByShape)));
        let blocks = json!({ "quant_method": "fp8", "weight_block_size": [128, 64] });
        assert_eq!(parse(blocks), Ok(Stored::Fp8(Shared::Block(128, 64))));
        assert_eq!(compressed(|_| ()), Ok(Stored::Fp8(Shared::Output)));
        assert_eq!(compressed(|fields| weights(fields)["strategy"] = "tensor".into()), Ok(Stored::Fp8(Shared::All)));
        let of_blocks = compressed(|fields| {
            weights(fields)["strategy"] = "block".into();
            weights(fields)["block_structure"] = json!([128, 128]);
        });
        assert_eq!(of_blocks, Ok(Stored::Fp8(Shared::Block(128, 128))));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let gptq = |field: &str, value: Value| {
            let mut fields = json!({ "quant_method": "gptq", "bits": 4, "group_size": 128 });
            fields[field] = value;
            parse(fields)
        };
        let of_weights = |field: &str, value: Value| compressed(|fields| weights(fields)[field] = value);
        let other_group = compressed(|fields| {
            let mut group = fields["config_groups"]["group_0"].clone();
            group["weights"]["strategy"] = "tensor".into();
            fields["config_groups"]["group_1"] = group;
        });
        for (parsed, reason) in [
            (gptq("bits", json!(8)), "bits: 8 of gptq are not supported, only 4"),
            (gptq("group_size", Value::Null), "group_size: null is no size"),
            (gptq("group_size", json!(0)), "group_size: 0 is no size"),
            (gptq("checkpoint_format", json!("marlin")), "checkpoint_format: marlin of gptq"),
            (gptq("is_marlin_format", json!(true)), "is_marlin_format: "),
            (gptq("dynamic", json!({ "-:lm_head": {} })), "dynamic: "),
            (parse(json!({ "quant_method": "awq", "bits": 4, "version": "gemv" })), "version: gemv of awq"),
            (
                parse(json!({ "quant_method": "fp8", "weight_block_size": [0, 1] })),
                "weight_block_size: [0,1] is no pair",
            ),
            (parse(json!({ "quant_method": "bitsandbytes" })), "quant_method: bitsandbytes is not supported"),
            (parse(json!({})), "quant_method: missing"),
            (compressed(|fields| fields["format"] = "pack-quantized".into()), "group_0: format: \"pack-quantized\""),
            (compressed(|fields| fields["config_groups"] = json!({})), "config_groups: missing"),
            (compressed(|fields| fields["kv_cache_scheme"] = json!({ "num_bits": 8 })), "kv_cache_scheme: "),
            (compressed(|fields| fields["transform_config"] = json!({ "r1": {} })), "transform_config: "),
            (compressed(|fields| fields["sparsity_config"] = json!({ "format": "sparse-24" })), "sparsity_config: "),
            (of_weights("num_bits", json!(4)), "group_0: weights: \"float\" of 4 bits"),
            (of_weights("type", json!("int")), "weights: \"int\" of 8 bits"),
            (of_weights("strategy", json!("group")), "strategy: \"group\" is not supported"),
            (of_weights("strategy", json!("block")), "block_structure: missing"),
            (of_weights("symmetric", json!(false)), "symmetric: false is not supported"),
            (of_weights("dynamic", json!(true)), "dynamic: true is not supported"),
            (other_group, "group_1: groups whose scales differ"),
        ] {
            let error = parsed.unwrap_err();
            assert!(error.starts_with("invalid config: quantization_config: ") && error.contains(reason), "{error}");
        }
    }
}
