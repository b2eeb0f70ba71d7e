//! From rows as they lie in a file to panels, and back to single rows.

use half::{bf16, f16};

use crate::{
    BLOCK, PANEL,
    dense::{Dense, Half, Single},
    format::{Eight, Five, Four, Halved, Plain, Quants, SUPER, Scales, Six, VECTORS, WithMinimums},
    line::Line,
    matrix::Format,
};

/// Quants of one output and block, all above zero.
type Unpacked = [u8; BLOCK];

/// Lines of a panel with so many inputs: first scales, then quants (or floats).
pub(crate) fn lines(format: Format, inputs: usize) -> (usize, usize) {
    let blocks = inputs / BLOCK;
    match format {
        Format::F32 => (0, inputs.div_ceil(Single::PER_LINE)),
        Format::Bf16 => (0, inputs.div_ceil(2)),
        Format::F16 => (0, inputs.div_ceil(Half::PER_LINE)),
        Format::Q4_0 => (Plain::<8>::lines(blocks), blocks * Four::LINES),
        Format::Q5_0 => (Plain::<16>::lines(blocks), blocks * Five::LINES),
        Format::Q8_0 => (Plain::<128>::lines(blocks), blocks * Eight::LINES),
        Format::Q4K => (WithMinimums::lines(blocks), blocks * Four::LINES),
        Format::Q5K => (WithMinimums::lines(blocks), blocks * Five::LINES),
        Format::Q6K => (Halved::lines(blocks), blocks * Six::LINES),
    }
}

/// Fills one output of a panel from a row of the file. `scales` and `quants` are the panel's and begin as zeros.
pub(crate) fn pack_row(format: Format, row: &[u8], output: usize, scales: &mut [Line], quants: &mut [Line]) {
    let (values, bytes) = format.block();
    for (at, block) in row.chunks_exact(bytes).enumerate() {
        match format {
            Format::F32 => quants[at].0[4 * output..][..4].copy_from_slice(block),
            Format::F16 => quants[at / 2].0[2 * PANEL * (at % 2) + 2 * output..][..2].copy_from_slice(block),
            // Both inputs of a pair behind each other.
            Format::Bf16 => quants[at / 2].0[4 * output + 2 * (at % 2)..][..2].copy_from_slice(block),
            Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => {
                put_f16(&mut scales[at / 2], PANEL * (at % 2) + output, &block[..2]);
                put_quants(format, &small_quants(format, &block[2..]), output, at, quants);
            }
            Format::Q4K | Format::Q5K | Format::Q6K => {
                put_super_scales(format, block, output, &mut scales[5 * at..][..5]);
                for part in 0..values / BLOCK {
                    put_quants(format, &super_quants(format, block, part), output, SUPER * at + part, quants);
                }
            }
        }
    }
}

/// The values of one output of a panel.
pub(crate) fn unpack_row(format: Format, scales: &[Line], quants: &[Line], output: usize, values: &mut [f32]) {
    let f16_at = |line: &Line, at: usize| f16::from_le_bytes([line.0[2 * at], line.0[2 * at + 1]]).to_f32();
    match format {
        Format::F32 => {
            for (value, line) in values.iter_mut().zip(quants) {
                *value = f32::from_le_bytes(line.0.as_chunks().0[output]);
            }
        }
        Format::F16 => {
            for (at, value) in values.iter_mut().enumerate() {
                *value = f16_at(&quants[at / 2], PANEL * (at % 2) + output);
            }
        }
        Format::Bf16 => {
            for (at, value) in values.iter_mut().enumerate() {
                *value = bf16::from_le_bytes(quants[at / 2].0.as_chunks().0[2 * output + at % 2]).to_f32();
            }
        }
        Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => {
            for (block, values) in values.chunks_exact_mut(BLOCK).enumerate() {
                let scale = f16_at(&scales[block / 2], PANEL * (block % 2) + output);
                let zero = match format {
                    Format::Q4_0 => 8.0,
                    Format::Q5_0 => 16.0,
                    _ => 128.0,
                };
                for (value, quant) in values.iter_mut().zip(get_quants(format, output, block, quants)) {
                    *value = scale * (f32::from(quant) - zero);
                }
            }
        }
        Format::Q4K | Format::Q5K => {
            for (block, values) in values.chunks_exact_mut(BLOCK).enumerate() {
                let (scales, at) = (&scales[block / SUPER * 5..][..5], block % SUPER);
                let scale = f16_at(&scales[0], output) * f32::from(scales[1 + at / 4].quarter(at % 4)[output]);
                let minimum =
                    f16_at(&scales[0], PANEL + output) * f32::from(scales[3 + at / 4].quarter(at % 4)[output]);
                for (value, quant) in values.iter_mut().zip(get_quants(format, output, block, quants)) {
                    *value = scale * f32::from(quant) - minimum;
                }
            }
        }
        Format::Q6K => {
            for (half, values) in values.chunks_exact_mut(BLOCK / 2).enumerate() {
                let (scales, at) = (&scales[half / (2 * SUPER) * 5..][..5], half % (2 * SUPER));
                let small = scales[1 + at / 4].quarter(at % 4)[output].cast_signed();
                let scale = f16_at(&scales[0], output) * f32::from(small);
                let block = get_quants(format, output, half / 2, quants);
                for (value, quant) in values.iter_mut().zip(&block[BLOCK / 2 * (half % 2)..]) {
                    *value = scale * (f32::from(*quant) - 32.0);
                }
            }
        }
    }
}

fn put_f16(line: &mut Line, at: usize, bytes: &[u8]) {
    line.0[2 * at..][..2].copy_from_slice(bytes);
}

/// Writes the quants of one output and block.
fn put_quants(format: Format, unpacked: &Unpacked, output: usize, block: usize, quants: &mut [Line]) {
    let per_block = quants_lines(format);
    let lines = &mut quants[block * per_block..][..per_block];
    for (vector, four) in unpacked.as_chunks::<4>().0.iter().enumerate() {
        for (at, &quant) in four.iter().enumerate() {
            let at = 4 * output + at;
            match format {
                Format::Q8_0 => lines[vector].0[at] = quant,
                _ => lines[vector / 2].0[at] |= (quant & 15) << (4 * (vector % 2)),
            }
            match format {
                Format::Q5_0 | Format::Q5K => lines[4].0[at] |= (quant >> 4) << vector,
                Format::Q6K => lines[4 + vector / 4].0[at] |= (quant >> 4) << (2 * (vector % 4)),
                _ => {}
            }
        }
    }
}

/// What [`put_quants`] wrote.
fn get_quants(format: Format, output: usize, block: usize, quants: &[Line]) -> Unpacked {
    let per_block = quants_lines(format);
    let lines = &quants[block * per_block..][..per_block];
    std::array::from_fn(|at| {
        let (vector, at) = (at / 4, 4 * output + at % 4);
        let nibble = (lines[vector / 2].0[at] >> (4 * (vector % 2))) & 15;
        match format {
            Format::Q8_0 => lines[vector].0[at],
            Format::Q5_0 | Format::Q5K => nibble | ((lines[4].0[at] >> vector) & 1) << 4,
            Format::Q6K => nibble | ((lines[4 + vector / 4].0[at] >> (2 * (vector % 4))) & 3) << 4,
            _ => nibble,
        }
    })
}

fn quants_lines(format: Format) -> usize {
    match format {
        Format::Q4_0 | Format::Q4K => Four::LINES,
        Format::Q5_0 | Format::Q5K => Five::LINES,
        Format::Q6K => Six::LINES,
        Format::Q8_0 => Eight::LINES,
        Format::F32 | Format::F16 | Format::Bf16 => 0,
    }
}

/// The quants of a block of 32, from what follows its scale.
fn small_quants(format: Format, bytes: &[u8]) -> Unpacked {
    match format {
        Format::Q4_0 => std::array::from_fn(|at| nibble(bytes, at)),
        Format::Q5_0 => {
            let (high, low) = bytes.split_at(4);
            std::array::from_fn(|at| nibble(low, at) | bit(high, at) << 4)
        }
        _ => std::array::from_fn(|at| bytes[at].wrapping_add(128)),
    }
}

/// The first 16 values are in the low nibbles, the others in the high ones.
fn nibble(bytes: &[u8], at: usize) -> u8 {
    (bytes[at % 16] >> (4 * (at / 16))) & 15
}

fn bit(bytes: &[u8], at: usize) -> u8 {
    (bytes[at / 8] >> (at % 8)) & 1
}

/// The quants of the `part`th 32 values of a block of 256.
fn super_quants(format: Format, block: &[u8], part: usize) -> Unpacked {
    // 64 values share 32 bytes: the first half is in the low nibbles.
    let nibble = |bytes: &[u8], at: usize| (bytes[part / 2 * BLOCK + at] >> (4 * (part % 2))) & 15;
    match format {
        Format::Q4K => std::array::from_fn(|at| nibble(&block[16..], at)),
        Format::Q5K => {
            let (high, low) = (&block[16..48], &block[48..]);
            std::array::from_fn(|at| nibble(low, at) | ((high[at] >> part) & 1) << 4)
        }
        _ => {
            // 128 values share 64 bytes of nibbles and 32 of the two bits above them.
            let (half, quarter) = (part / 4, part % 4);
            let (low, high) = (&block[64 * half..][..64], &block[128 + 32 * half..][..32]);
            std::array::from_fn(|at| {
                let nibble = (low[quarter % 2 * BLOCK + at] >> (4 * (quarter / 2))) & 15;
                nibble | ((high[at] >> (2 * quarter)) & 3) << 4
            })
        }
    }
}

fn put_super_scales(format: Format, block: &[u8], output: usize, lines: &mut [Line]) {
    if format == Format::Q6K {
        put_f16(&mut lines[0], output, &block[208..210]);
        for (at, scale) in block[192..208].iter().enumerate() {
            lines[1 + at / 4].0[PANEL * (at % 4) + output] = *scale;
        }
        return;
    }
    put_f16(&mut lines[0], output, &block[..2]);
    put_f16(&mut lines[0], PANEL + output, &block[2..4]);
    for at in 0..SUPER {
        let (scale, minimum) = six_bits(&block[4..16], at);
        let place = PANEL * (at % 4) + output;
        lines[1 + at / 4].0[place] = scale;
        lines[3 + at / 4].0[place] = minimum;
    }
}

/// The `at`th of eight scales and of eight minimums of 6 bits, which share 12 bytes: the first four of each are the lower bits of a byte
/// each; of the others, four bits are in the last four bytes, and two are the upper bits of the first eight.
fn six_bits(bytes: &[u8], at: usize) -> (u8, u8) {
    if at < 4 {
        return (bytes[at] & 63, bytes[at + 4] & 63);
    }
    let low = bytes[at + 4];
    ((low & 15) | (bytes[at - 4] >> 6) << 4, (low >> 4) | (bytes[at] >> 6) << 4)
}

const _: () = assert!(VECTORS * 4 == BLOCK, "a vector holds four inputs");
