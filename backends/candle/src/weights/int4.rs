use std::ops::Range;

use half::f16;

use super::stored::{Group, Packing};

/// Values of four bits in one number of a file.
const PER_WORD: usize = 8;

/// Where AWQ puts the columns of eight outputs: the one at bit 0 of a word, at bit 4, and so on.
const AWQ_ORDER: [usize; PER_WORD] = [0, 2, 4, 6, 1, 3, 5, 7];

/// The tensors of a layer of four bits.
#[derive(Clone, Debug)]
pub(super) struct Int4 {
    pub(super) packing: Packing,
    pub(super) group: Group,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    /// GPTQ: `[inputs / 8, outputs]`; AWQ: `[inputs, outputs / 8]`.
    pub(super) quants: Vec<u8>,
    /// `[groups, outputs / 8]`
    pub(super) zeros: Vec<u8>,
    /// F16, `[groups, outputs]`
    pub(super) scales: Vec<u8>,
    /// By input; where there is none, groups are of consecutive inputs.
    pub(super) groups: Option<Vec<u8>>,
}

impl Int4 {
    /// Names what does not fit.
    pub(super) fn check(&self) -> Result<(), String> {
        let Self { outputs, inputs, quants, zeros, scales, groups, .. } = self;
        let (outputs, inputs) = (*outputs, *inputs);
        let count = inputs.div_ceil(self.per_group());
        let fits = outputs.is_multiple_of(PER_WORD)
            && inputs.is_multiple_of(PER_WORD)
            && quants.len() == inputs * outputs / 2
            && scales.len() == 2 * count * outputs
            && zeros.len() == count * outputs / 2
            && groups.as_ref().is_none_or(|groups| groups.len() == 4 * inputs);
        if !fits {
            let made = format!("{outputs} x {inputs} weights in groups of {} inputs", self.per_group());
            return Err(format!("quants, zero points and scales do not make {made}"));
        }
        match (0..inputs).map(|input| self.group_of(input)).find(|&group| group >= count) {
            Some(group) => Err(format!("g_idx: group {group} of {count}")),
            None => Ok(()),
        }
    }

    /// The weights of some outputs in F16, output by output, of tensors that were checked.
    pub(super) fn dequantize(&self, rows: Range<usize>) -> Vec<u8> {
        let &Self { packing, outputs, inputs, ref quants, ref zeros, ref scales, .. } = self;
        let mut values = vec![0; 2 * rows.len() * inputs];
        for input in 0..inputs {
            let group = self.group_of(input);
            for (row, output) in rows.clone().enumerate() {
                let (quant, zero) = match packing {
                    Packing::ByOutput => {
                        let shift = 4 * AWQ_ORDER.iter().position(|&at| at == output % PER_WORD).unwrap_or(0);
                        let at = |row: usize| row * outputs / PER_WORD + output / PER_WORD;
                        (nibble(word(quants, at(input)), shift), nibble(word(zeros, at(group)), shift))
                    }
                    Packing::ByInput { above } => {
                        let quant = word(quants, input / PER_WORD * outputs + output);
                        let zero = word(zeros, group * outputs / PER_WORD + output / PER_WORD);
                        (nibble(quant, 4 * (input % PER_WORD)), nibble(zero, 4 * (output % PER_WORD)) + above)
                    }
                };
                let scale = half_at(scales, group * outputs + output);
                let value = f16::from_f32(scale * (quant - zero) as f32);
                values[2 * (row * inputs + input)..][..2].copy_from_slice(&value.to_le_bytes());
            }
        }
        values
    }

    fn per_group(&self) -> usize {
        self.group.unwrap_or(self.inputs).min(self.inputs).max(1)
    }

    fn group_of(&self, input: usize) -> usize {
        self.groups.as_ref().map_or(input / self.per_group(), |groups| word(groups, input) as usize)
    }
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
    use super::*;

    const OUTPUTS: usize = 16;
    const INPUTS: usize = 24;
    const GROUPS: usize = 3;
    /// As the first version of GPTQ wrote zero points.
    const FIRST: Packing = Packing::ByInput { above: 1 };

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

    fn layer(packing: Packing, quants: Vec<u8>, zeros: Vec<u8>) -> Int4 {
        let scales = (0..GROUPS).flat_map(|group| (0..OUTPUTS).map(move |output| f16::from_f32(scale(output, group))));
        let scales = scales.flat_map(f16::to_le_bytes).collect();
        Int4 { packing, group: Some(8), outputs: OUTPUTS, inputs: INPUTS, quants, zeros, scales, groups: None }
    }

    /// All outputs at once, and some of them, are what they stand for.
    fn check(layer: &Int4, group: impl Fn(usize) -> usize, above: i32) {
        layer.check().unwrap();
        let values = layer.dequantize(0..OUTPUTS);
        for output in 0..OUTPUTS {
            for input in 0..INPUTS {
                let group = group(input);
                let expected =
                    scale(output, group) * (quant(output, input) as i32 - zero(output, group) as i32 - above) as f32;
                assert_eq!(half_at(&values, output * INPUTS + input), expected, "output {output}, input {input}");
            }
        }
        assert_eq!(layer.dequantize(3..11), values[2 * 3 * INPUTS..2 * 11 * INPUTS]);
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
        let mut layer = layer(FIRST, quants, zeros);
        check(&layer, |input| input / 8, 1);
        layer.packing = Packing::ByInput { above: 0 };
        check(&layer, |input| input / 8, 0);
        layer.packing = FIRST;
        // Inputs in an order of their own.
        layer.groups = Some(words(INPUTS, |input| (input % GROUPS) as u32));
        check(&layer, |input| input % GROUPS, 1);
        layer.groups = Some(words(INPUTS, |input| input as u32));
        assert_eq!(layer.check(), Err("g_idx: group 3 of 3".to_owned()));
        layer.group = None;
        assert!(layer.check().is_err(), "one group has one scale");
        layer.group = Some(8);
        layer.quants.truncate(8);
        assert!(layer.check().unwrap_err().contains("do not make 16 x 24 weights in groups of 8 inputs"));
    }

    #[test]
    fn awq_packs_by_output() {
        let pack = |row: usize, first: usize, of: fn(usize, usize) -> u32| {
            AWQ_ORDER.iter().enumerate().map(|(bit, at)| of(first + at, row) << (4 * bit)).sum()
        };
        let quants = words(INPUTS * OUTPUTS / 8, |at| pack(at / (OUTPUTS / 8), at % (OUTPUTS / 8) * 8, quant));
        let zeros = words(GROUPS * OUTPUTS / 8, |at| pack(at / (OUTPUTS / 8), at % (OUTPUTS / 8) * 8, zero));
        check(&layer(Packing::ByOutput, quants, zeros), |input| input / 8, 0);
    }
}
