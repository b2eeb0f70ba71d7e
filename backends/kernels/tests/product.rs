//! Products with packed weights, against plain sums in F64.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use half::{bf16, f16};
use proptest::prelude::*;
use tandem_kernels::{Format, Matrix, PANEL, PackError, Packed, Unread};

const FORMATS: [Format; 9] = [
    Format::F32,
    Format::F16,
    Format::Bf16,
    Format::Q4_0,
    Format::Q5_0,
    Format::Q8_0,
    Format::Q4K,
    Format::Q5K,
    Format::Q6K,
];

/// Values that repeat only after a long time, between -1 and 1.
fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// A weight in the given format, as bytes, and the values that it stands for.
fn weight(format: Format, outputs: usize, inputs: usize, seed: u64) -> (Vec<u8>, Vec<f32>) {
    let values = values(seed, outputs * inputs);
    let quantized = |dtype: GgmlDType| {
        let tensor = Tensor::from_slice(&values, (outputs, inputs), &Device::Cpu).unwrap();
        let quantized = QTensor::quantize(&tensor, dtype).unwrap();
        let back = quantized.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        (quantized.data().unwrap().into_owned(), back)
    };
    match format {
        Format::F32 => (values.iter().flat_map(|value| value.to_le_bytes()).collect(), values),
        Format::F16 => {
            let rounded: Vec<f16> = values.iter().map(|&value| f16::from_f32(value)).collect();
            (
                rounded.iter().flat_map(|value| value.to_le_bytes()).collect(),
                rounded.iter().map(|value| value.to_f32()).collect(),
            )
        }
        Format::Bf16 => {
            let rounded: Vec<bf16> = values.iter().map(|&value| bf16::from_f32(value)).collect();
            (
                rounded.iter().flat_map(|value| value.to_le_bytes()).collect(),
                rounded.iter().map(|value| value.to_f32()).collect(),
            )
        }
        Format::Q4_0 => quantized(GgmlDType::Q4_0),
        Format::Q5_0 => quantized(GgmlDType::Q5_0),
        Format::Q8_0 => quantized(GgmlDType::Q8_0),
        Format::Q4K => quantized(GgmlDType::Q4K),
        Format::Q5K => quantized(GgmlDType::Q5K),
        Format::Q6K => quantized(GgmlDType::Q6K),
    }
}

/// Activations that 8 bits hold exactly: whole numbers, with 127 in each block, times a power of two for each block.
fn exact_activations(rows: usize, inputs: usize, seed: u64) -> Vec<f32> {
    let mut x: Vec<f32> = values(seed, rows * inputs).iter().map(|value| (value * 127.0).round()).collect();
    for (at, block) in x.chunks_mut(32).enumerate() {
        block[at % block.len()] = 127.0;
        let scale = [0.25, 1.0, 0.5][at % 3];
        block.iter_mut().for_each(|value| *value *= scale);
    }
    x
}

fn check(x: &[f32], weight: &[f32], bias: &[f32], inputs: usize, y: &[f32], tolerance: f64) {
    let outputs = bias.len();
    assert_eq!(y.len(), x.len() / inputs * outputs);
    for (row, (x, y)) in x.chunks(inputs).zip(y.chunks(outputs)).enumerate() {
        for (output, (weight, y)) in weight.chunks(inputs).zip(y).enumerate() {
            let products = x.iter().zip(weight).map(|(&x, &w)| f64::from(x) * f64::from(w));
            let expected = products.clone().sum::<f64>() + f64::from(bias[output]);
            // What cancels in the sum still costs accuracy.
            let size = products.map(f64::abs).sum::<f64>() + 1.0;
            let error = (f64::from(*y) - expected).abs() / size;
            assert!(error <= tolerance, "row {row}, output {output}: {y} for {expected}, off by {error:e} of {size}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn products_are_those_of_the_weights(
        formats in prop::collection::vec(prop::sample::select(&FORMATS[..]), 1..4),
        outputs in 1usize..70, blocks in 1usize..4, rows in 1usize..30, seed in any::<u64>(),
    ) {
        let inputs = 256 * blocks;
        let weights: Vec<_> = formats.iter().zip(1u64..).map(|(&format, at)| weight(format, outputs, inputs, seed ^ at)).collect();
        let matrices: Vec<_> = formats.iter().zip(&weights)
            .map(|(&format, (bytes, _))| Matrix { format, outputs, inputs, bytes }).collect();
        let bias = values(!seed, outputs * formats.len());
        let x = exact_activations(rows, inputs, seed ^ 77);
        let mut y = vec![f32::NAN; 5];
        let packed = Packed::new(&matrices, Some(&bias)).unwrap();
        packed.forward(&x, &mut y);
        let weight: Vec<f32> = weights.iter().flat_map(|(_, values)| values.clone()).collect();
        check(&x, &weight, &bias, inputs, &y, 1e-5);
        let mut row = vec![0.0; inputs];
        for (output, expected) in weight.chunks(inputs).enumerate() {
            packed.row(output, &mut row);
            for (got, expected) in row.iter().zip(expected) {
                prop_assert!((got - expected).abs() <= 1e-5 * expected.abs().max(1e-3), "{} for {}", got, expected);
            }
        }
    }

    #[test]
    fn dense_rows_may_have_any_length(inputs in 1usize..100, outputs in 1usize..50, rows in 1usize..20, seed in any::<u64>()) {
        for format in [Format::F32, Format::F16, Format::Bf16] {
            let (bytes, weight) = weight(format, outputs, inputs, seed);
            let packed = Packed::new(&[Matrix { format, outputs, inputs, bytes: &bytes }], None).unwrap();
            let mut x = values(!seed, rows * inputs);
            if format == Format::Bf16 {
                // What products with such weights round activations to.
                x.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
            }
            let mut y = Vec::new();
            packed.forward(&x, &mut y);
            check(&x, &weight, &vec![0.0; outputs], inputs, &y, 1e-6);
        }
    }
}

#[test]
fn activations_lose_little() {
    let (outputs, inputs, rows) = (48, 1024, 9);
    for format in FORMATS {
        let (bytes, weight) = weight(format, outputs, inputs, 3);
        let packed = Packed::new(&[Matrix { format, outputs, inputs, bytes: &bytes }], None).unwrap();
        let x = values(5, rows * inputs);
        let mut y = Vec::new();
        packed.forward(&x, &mut y);
        check(&x, &weight, &vec![0.0; outputs], inputs, &y, 1e-3);
    }
}

#[test]
fn several_threads_compute_the_same() {
    let (outputs, inputs, rows) = (530, 512, 21);
    let (bytes, _) = weight(Format::Q4K, outputs, inputs, 9);
    let packed = Packed::new(&[Matrix { format: Format::Q4K, outputs, inputs, bytes: &bytes }], None).unwrap();
    let x = values(5, rows * inputs);
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut y = Vec::new();
        pool.install(|| packed.forward(&x, &mut y));
        y
    };
    assert_eq!(on(1), on(5));
}

#[test]
fn strange_activations_are_not_hidden() {
    let (bytes, _) = weight(Format::Q8_0, 16, 64, 9);
    let packed = Packed::new(&[Matrix { format: Format::Q8_0, outputs: 16, inputs: 64, bytes: &bytes }], None).unwrap();
    for strange in [f32::NAN, f32::INFINITY] {
        let mut x = values(5, 64);
        x[40] = strange;
        let mut y = Vec::new();
        packed.forward(&x, &mut y);
        assert!(y.iter().all(|value| !value.is_finite()), "{strange}: {y:?}");
    }
}

#[test]
fn sizes_must_fit() {
    let bytes = [0; 144];
    let matrix = |format, outputs, inputs| Matrix { format, outputs, inputs, bytes: &bytes };
    let refused = |matrices: &[Matrix<'_>]| Packed::new(matrices, None).unwrap_err();
    assert_eq!(refused(&[matrix(Format::Q4K, 2, 128)]), PackError::Row { inputs: 128, block: 256 });
    assert_eq!(refused(&[matrix(Format::Q4K, 2, 256)]), PackError::Bytes { expected: 288, got: 144 });
    let both = [matrix(Format::Q4K, 1, 256), matrix(Format::F32, 1, 36)];
    assert_eq!(refused(&both), PackError::Inputs { expected: 256, got: 36 });
}

/// Bytes that are counted for as long as they live.
struct Counted<'a> {
    bytes: Vec<u8>,
    alive: &'a AtomicUsize,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.alive.fetch_sub(self.bytes.len(), Ordering::SeqCst);
    }
}

impl AsRef<[u8]> for Counted<'_> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[derive(Debug, PartialEq)]
enum Refused {
    Pack(PackError),
    Read(usize),
}

impl From<PackError> for Refused {
    fn from(error: PackError) -> Self {
        Self::Pack(error)
    }
}

/// Rows that are read when they are wanted make the same weight, and no more of them are in memory than each thread needs.
#[test]
fn rows_are_read_a_few_at_a_time() {
    let (inputs, threads, at_a_time) = (256, 3, 2 * PANEL);
    // The last panel of either is not whole.
    let sources = [(Format::Q4K, 1000), (Format::Bf16, 300)].map(|(format, outputs)| {
        let (bytes, _) = weight(format, outputs, inputs, 7);
        (format, outputs, bytes)
    });
    let matrices = sources.each_ref().map(|&(format, outputs, ref bytes)| Matrix { format, outputs, inputs, bytes });
    let bias = values(8, 1300);
    let expected = Packed::new(&matrices, Some(&bias)).unwrap();
    let (alive, peak) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let read = |part: usize, rows: Range<usize>| {
        assert!(rows.start.is_multiple_of(at_a_time) && rows.len() <= at_a_time, "{rows:?}");
        let row = matrices[part].bytes.len() / matrices[part].outputs;
        let bytes = matrices[part].bytes[rows.start * row..rows.end * row].to_vec();
        peak.fetch_max(alive.fetch_add(bytes.len(), Ordering::SeqCst) + bytes.len(), Ordering::SeqCst);
        Ok::<_, Refused>(Counted { bytes, alive: &alive })
    };
    let unread = sources.each_ref().map(|&(format, outputs, _)| Unread { format, outputs, at_a_time });
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let packed = pool.install(|| Packed::from_rows(inputs, &unread, Some(&bias), read)).unwrap();

    let x = exact_activations(3, inputs, 5);
    let (mut y, mut expected_y) = (Vec::new(), Vec::new());
    packed.forward(&x, &mut y);
    expected.forward(&x, &mut expected_y);
    assert_eq!(y, expected_y);
    assert_eq!(packed.bytes(), expected.bytes());
    let row = inputs * size_of::<bf16>();
    assert!(peak.into_inner() <= threads * at_a_time * row);
    assert_eq!(alive.into_inner(), 0);

    let failing = |_: usize, rows: Range<usize>| {
        if rows.start < 512 { Ok(vec![0; rows.len() * 144]) } else { Err(Refused::Read(rows.start)) }
    };
    let error = Packed::from_rows(inputs, &unread[..1], None, failing).unwrap_err();
    assert!(matches!(error, Refused::Read(512..)), "{error:?}");
    let short = |_: usize, _: Range<usize>| Ok::<_, Refused>(vec![0; 144]);
    let error = Packed::from_rows(inputs, &unread[..1], None, short).unwrap_err();
    assert!(matches!(error, Refused::Pack(PackError::Bytes { got: 144, .. })), "{error:?}");
}

/// What docs/CONFIGURATION.md says of the memory that each format takes.
#[test]
fn weights_take_so_many_bits() {
    let expected = [32.0, 16.0, 16.0, 4.5, 5.5, 8.5, 4.625, 5.625, 6.625];
    for (format, bits) in FORMATS.into_iter().zip(expected) {
        assert_eq!(Packed::size(format, 64, 512) as f64 * 8.0 / f64::from(64 * 512), bits, "{format}");
    }
}
