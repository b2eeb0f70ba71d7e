use half::{bf16, f16};
use serde_json::Value;

/// Values of four bits in one number of a file.
const PER_WORD: usize = 8;

/// How a checkpoint keeps the weights of its layers, by `quantization_config`. They are turned into plain numbers when they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    Plain,
    /// Four bits, packed by input; groups of inputs share a scale and a zero point.
    Gptq {
        /// How far the zero points are above what is written.
        above: i32,
        group: Group,
    },
    /// Four bits, packed by output in an order of its own; groups of inputs share a scale and a zero point.
    Awq {
        group: Group,
    },
    /// Eight-bit floats; blocks of a matrix share a scale. `block` is their outputs and inputs, as far as the file says it.
    Fp8 {
        block: Option<(usize, usize)>,
    },
}

/// Inputs that share a scale and a zero point: so many, or all.
pub(crate) type Group = Option<usize>;

const MAX_BLOCK: u64 = 1 << 20;
/// Where AWQ puts the columns of eight outputs: the one at bit 0 of a word, at bit 4, and so on.
const AWQ_ORDER: [usize; PER_WORD] = [0, 2, 4, 6, 1, 3, 5, 7];

impl Stored {
    /// Reads `quantization_config` of a `config.json`.
    pub(crate) fn parse(config: &Value) -> Result<Self, String> {
        let fields = &config["quantization_config"];
        if fields.is_null() {
            return Ok(Self::Plain);
        }
        let refused = |what: &str| Err(format!("invalid config: quantization_config: {what}"));
        let bits = |method: &str| match fields["bits"].as_u64() {
            Some(4) => Ok(()),
            bits => Err(format!(
                "invalid config: quantization_config: bits: {} of {method} are not supported, only 4",
                bits.map_or("none".to_owned(), |bits| bits.to_string())
            )),
        };
        let group = || match fields["group_size"].as_i64() {
            Some(-1) => Ok(None),
            Some(size) if (1..=MAX_BLOCK as i64).contains(&size) => Ok(Some(size as usize)),
            _ => Err(format!(
                "invalid config: quantization_config: group_size: {} is no size, nor -1 for all inputs",
                fields["group_size"]
            )),
        };
        match fields["quant_method"].as_str() {
            Some("gptq") => {
                bits("gptq")?;
                // The first version wrote zero points less one.
                Ok(Self::Gptq { above: i32::from(fields["checkpoint_format"] != "gptq_v2"), group: group()? })
            }
            Some("awq") => {
                bits("awq")?;
                match fields["version"].as_str().map(str::to_ascii_lowercase).as_deref() {
                    None | Some("gemm") => Ok(Self::Awq { group: group()? }),
                    Some(other) => refused(&format!("version: {other} of awq is not supported, only gemm")),
                }
            }
            Some("fp8") => {
                let block = &fields["weight_block_size"];
                match (block.is_null(), block[0].as_u64(), block[1].as_u64()) {
                    (true, ..) => Ok(Self::Fp8 { block: None }),
                    (false, Some(outputs @ 1..=MAX_BLOCK), Some(inputs @ 1..=MAX_BLOCK)) => {
                        Ok(Self::Fp8 { block: Some((outputs as usize, inputs as usize)) })
                    }
                    _ => refused(&format!("weight_block_size: {block} is no pair of sizes")),
                }
            }
            Some(other) => {
                refused(&format!("quant_method: {other} is not supported; known: gptq and awq of 4 bits, fp8"))
            }
            None => refused("quant_method: missing"),
        }
    }
}

/// The tensors of a layer of four bits, checked against each other.
#[derive(Debug)]
pub(super) struct Int4<'a> {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    /// GPTQ: `[inputs / 8, outputs]`; AWQ: `[inputs, outputs / 8]`.
    pub(super) quants: &'a [u8],
    /// `[groups, outputs / 8]`
    pub(super) zeros: &'a [u8],
    /// F16, `[groups, outputs]`
    pub(super) scales: &'a [u8],
    /// By input; where there is none, groups are of consecutive inputs.
    pub(super) groups: Option<&'a [u8]>,
}

impl Int4<'_> {
    /// The weights in F16, by output. `Err` names what does not fit.
    pub(super) fn dequantize(&self, stored: Stored) -> Result<Vec<u8>, String> {
        let &Self { outputs, inputs, quants, zeros, scales, groups } = self;
        let (group, above) = match stored {
            Stored::Gptq { above, group } => (group, above),
            Stored::Awq { group } => (group, 0),
            Stored::Plain | Stored::Fp8 { .. } => return Err("the configuration knows of no four bits".to_owned()),
        };
        let per_group = group.unwrap_or(inputs).min(inputs).max(1);
        let count = inputs.div_ceil(per_group);
        let fits = outputs.is_multiple_of(PER_WORD)
            && inputs.is_multiple_of(PER_WORD)
            && quants.len() == inputs * outputs / 2
            && scales.len() == 2 * count * outputs
            && zeros.len() == count * outputs / 2
            && groups.is_none_or(|groups| groups.len() == 4 * inputs);
        if !fits {
            let made = format!("{outputs} x {inputs} weights in groups of {per_group} inputs");
            return Err(format!("quants, zero points and scales do not make {made}"));
        }
        let mut values = vec![0; 2 * outputs * inputs];
        for input in 0..inputs {
            let group = groups.map_or(input / per_group, |groups| word(groups, input) as usize);
            if group >= count {
                return Err(format!("g_idx: group {group} of {count}"));
            }
            for output in 0..outputs {
                let (quant, zero) = match stored {
                    Stored::Awq { .. } => {
                        let shift = 4 * AWQ_ORDER.iter().position(|&at| at == output % PER_WORD).unwrap_or(0);
                        let at = |row: usize| row * outputs / PER_WORD + output / PER_WORD;
                        (nibble(word(quants, at(input)), shift), nibble(word(zeros, at(group)), shift))
                    }
                    Stored::Plain | Stored::Gptq { .. } | Stored::Fp8 { .. } => {
                        let quant = word(quants, input / PER_WORD * outputs + output);
                        let zero = word(zeros, group * outputs / PER_WORD + output / PER_WORD);
                        (nibble(quant, 4 * (input % PER_WORD)), nibble(zero, 4 * (output % PER_WORD)) + above)
                    }
                };
                let scale = half_at(scales, group * outputs + output);
                let value = f16::from_f32(scale * (quant - zero) as f32);
                values[2 * (output * inputs + input)..][..2].copy_from_slice(&value.to_le_bytes());
            }
        }
        Ok(values)
    }
}

/// Eight-bit floats (E4M3) times the scales of their blocks, in BF16. `scales` are `[rows, columns]` of blocks that divide the matrix evenly
/// but for the last ones; `Err` says what does not fit.
pub(super) fn scale_blocks(
    values: &[u8],
    (outputs, inputs): (usize, usize),
    scales: &[f32],
    (rows, columns): (usize, usize),
    block: (usize, usize),
) -> Result<Vec<u8>, String> {
    if outputs.div_ceil(block.0) != rows || inputs.div_ceil(block.1) != columns {
        return Err(format!("{rows} x {columns} scales of blocks of {} x {}", block.0, block.1));
    }
    let mut scaled = Vec::with_capacity(2 * values.len());
    for (output, values) in values.chunks_exact(inputs).enumerate() {
        for (input, &value) in values.iter().enumerate() {
            let scale = scales[output / block.0 * columns + input / block.1];
            scaled.extend_from_slice(&bf16::from_f32(e4m3(value) * scale).to_le_bytes());
        }
    }
    Ok(scaled)
}

/// A float of four bits of exponent and three of mantissa, without infinities.
pub(super) fn e4m3(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let size = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if bits & 0x80 == 0 { size } else { -size }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes.as_chunks().0[at])
}

fn nibble(word: u32, shift: usize) -> i32 {
    (word >> shift & 15) as i32
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes(bytes.as_chunks().0[at]).to_f32()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const OUTPUTS: usize = 16;
    const INPUTS: usize = 24;
    const GROUPS: usize = 3;

    fn quant(output: usize, input: usize) -> u32 {
        ((output * 7 + input * 3) % 16) as u32
    }

    fn zero(output: usize, group: usize) -> u32 {
        ((output + 5 * group) % 15) as u32
    }

    fn scale(output: usize, group: usize) -> f32 {
        (1.0 + output as f32) / 64.0 * (1.0 + group as f32)
    }

    fn words(count: usize, fill: impl Fn(usize) -> u32) -> Vec<u8> {
        (0..count).flat_map(|at| fill(at).to_le_bytes()).collect()
    }

    fn scales() -> Vec<u8> {
        let all = (0..GROUPS).flat_map(|group| (0..OUTPUTS).map(move |output| f16::from_f32(scale(output, group))));
        all.flat_map(f16::to_le_bytes).collect()
    }

    fn check(values: &[u8], group: impl Fn(usize) -> usize, above: i32) {
        for output in 0..OUTPUTS {
            for input in 0..INPUTS {
                let group = group(input);
                let expected =
                    scale(output, group) * (quant(output, input) as i32 - zero(output, group) as i32 - above) as f32;
                assert_eq!(half_at(values, output * INPUTS + input), expected, "output {output}, input {input}");
            }
        }
    }

    #[test]
    fn gptq_packs_by_input() {
        let quants = words(INPUTS / 8 * OUTPUTS, |at| {
            (0..8).map(|bit| quant(at % OUTPUTS, at / OUTPUTS * 8 + bit) << (4 * bit)).sum()
        });
        let zeros = words(GROUPS * OUTPUTS / 8, |at| {
            let (group, first) = (at / (OUTPUTS / 8), at % (OUTPUTS / 8) * 8);
            (0..8).map(|bit| zero(first + bit, group) << (4 * bit)).sum()
        });
        let scales = scales();
        let mut layer =
            Int4 { outputs: OUTPUTS, inputs: INPUTS, quants: &quants, zeros: &zeros, scales: &scales, groups: None };
        check(&layer.dequantize(Stored::Gptq { above: 1, group: Some(8) }).unwrap(), |input| input / 8, 1);
        check(&layer.dequantize(Stored::Gptq { above: 0, group: Some(8) }).unwrap(), |input| input / 8, 0);
        // Inputs in an order of their own.
        let order = words(INPUTS, |input| (input % GROUPS) as u32);
        layer.groups = Some(&order);
        check(&layer.dequantize(Stored::Gptq { above: 1, group: Some(8) }).unwrap(), |input| input % GROUPS, 1);
        let beyond = words(INPUTS, |input| input as u32);
        layer.groups = Some(&beyond);
        assert_eq!(layer.dequantize(Stored::Gptq { above: 1, group: Some(8) }), Err("g_idx: group 3 of 3".to_owned()));
        layer.quants = &quants[..8];
        assert!(
            layer
                .dequantize(Stored::Gptq { above: 1, group: Some(8) })
                .unwrap_err()
                .contains("do not make 16 x 24 weights in groups of 8 inputs")
        );
        layer.quants = &quants;
        assert!(layer.dequantize(Stored::Gptq { above: 1, group: None }).is_err(), "one group has one scale");
    }

    #[test]
    fn awq_packs_by_output() {
        let pack = |row: usize, first: usize, of: fn(usize, usize) -> u32| {
            AWQ_ORDER.iter().enumerate().map(|(bit, at)| of(first + at, row) << (4 * bit)).sum()
        };
        let quants = words(INPUTS * OUTPUTS / 8, |at| pack(at / (OUTPUTS / 8), at % (OUTPUTS / 8) * 8, quant));
        let zeros = words(GROUPS * OUTPUTS / 8, |at| pack(at / (OUTPUTS / 8), at % (OUTPUTS / 8) * 8, zero));
        let scales = scales();
        let layer =
            Int4 { outputs: OUTPUTS, inputs: INPUTS, quants: &quants, zeros: &zeros, scales: &scales, groups: None };
        check(&layer.dequantize(Stored::Awq { group: Some(8) }).unwrap(), |input| input / 8, 0);
    }

    #[test]
    fn eight_bit_floats() {
        for (bits, value) in
            [(0x38, 1.0), (0xb8, -1.0), (0x7e, 448.0), (0x01, 2f32.powi(-9)), (0x08, 2f32.powi(-6)), (0, 0.0)]
        {
            assert_eq!(e4m3(bits), value, "{bits:x}");
        }
        assert!(e4m3(0x7f).is_nan());
        // Three columns of blocks two wide, of which the last is cut.
        let scaled = scale_blocks(&[0x38; 10], (2, 5), &[1.0, 2.0, 4.0], (1, 3), (2, 2)).unwrap();
        let values: Vec<f32> = scaled.as_chunks().0.iter().map(|&value| bf16::from_le_bytes(value).to_f32()).collect();
        assert_eq!(values, [1.0, 1.0, 2.0, 2.0, 4.0, 1.0, 1.0, 2.0, 2.0, 4.0]);
        assert!(scale_blocks(&[0x38; 10], (2, 5), &[1.0], (1, 1), (2, 2)).is_err());
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let parse = |fields: Value| Stored::parse(&json!({ "quantization_config": fields }));
        assert_eq!(Stored::parse(&json!({})), Ok(Stored::Plain));
        assert_eq!(
            parse(json!({ "quant_method": "gptq", "bits": 4, "group_size": 128 })),
            Ok(Stored::Gptq { above: 1, group: Some(128) })
        );
        let second = json!({ "quant_method": "gptq", "bits": 4, "group_size": -1, "checkpoint_format": "gptq_v2" });
        assert_eq!(parse(second), Ok(Stored::Gptq { above: 0, group: None }));
        assert_eq!(
            parse(json!({ "quant_method": "awq", "bits": 4, "group_size": 64, "version": "GEMM" })),
            Ok(Stored::Awq { group: Some(64) })
        );
        assert_eq!(parse(json!({ "quant_method": "fp8" })), Ok(Stored::Fp8 { block: None }));
        let blocks = json!({ "quant_method": "fp8", "weight_block_size": [128, 64] });
        assert_eq!(parse(blocks), Ok(Stored::Fp8 { block: Some((128, 64)) }));
        for (fields, reason) in [
            (json!({ "quant_method": "gptq", "bits": 8 }), "bits: 8 of gptq are not supported, only 4"),
            (json!({ "quant_method": "gptq", "bits": 4 }), "group_size: null is no size"),
            (json!({ "quant_method": "gptq", "bits": 4, "group_size": 0 }), "group_size: 0 is no size"),
            (json!({ "quant_method": "awq", "bits": 4, "version": "gemv" }), "version: gemv of awq"),
            (json!({ "quant_method": "fp8", "weight_block_size": [0, 1] }), "weight_block_size: [0,1] is no pair"),
            (json!({ "quant_method": "bitsandbytes" }), "quant_method: bitsandbytes is not supported"),
            (json!({}), "quant_method: missing"),
        ] {
            let error = parse(fields).unwrap_err();
            assert!(error.starts_with("invalid config: quantization_config: ") && error.contains(reason), "{error}");
        }
    }
}
