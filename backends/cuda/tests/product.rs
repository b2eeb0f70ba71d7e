//! Products with weights in all formats, against F64; quantised weights by what candle makes of their blocks.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use support::{assert_close, device, get, integers, put, random, room, rounded, weight};
use tandem_cuda::{Device, Input, Number, WeightFormat};

const QUANTIZED: [WeightFormat; 6] = [
    WeightFormat::Q4_0,
    WeightFormat::Q5_0,
    WeightFormat::Q8_0,
    WeightFormat::Q4K,
    WeightFormat::Q5K,
    WeightFormat::Q6K,
];

fn check(device: &Device, format: WeightFormat, number: Number, outputs: usize, inputs: usize) {
    check_rows(device, format, number, outputs, inputs, &[1, 2, 3, 5, 8, 9, 17, 33, 97]);
}

fn check_rows(device: &Device, format: WeightFormat, number: Number, outputs: usize, inputs: usize, rows: &[usize]) {
    let (weight, kept) = weight(device, format, outputs, inputs);
    // Room for no more than a few outputs at a time.
    let scratch = device.allocate(3 * inputs * number.bytes()).unwrap();
    for &rows in rows {
        let x = random(rows as u64, rows * inputs);
        let x_there = put(device, number, &x);
        let (before, stride) = (2, outputs + 5);
        let y = put(device, Number::F32, &vec![7.0; before + rows * stride]);
        let input = Input { x: x_there.all(), number, rows };
        device.multiply(&weight, input, y.at(before * 4), stride, &scratch).unwrap();
        let got = get(&y, Number::F32);
        let x = rounded(number, &x);
        // A wide weight is rounded to the activations' numbers on its way to a large product.
        let narrow = number == Number::Bf16 && rows <= 96 && inputs.is_multiple_of(64);
        let exact = rows <= 8 || narrow || matches!(format, WeightFormat::Plain(_));
        let kept = if exact { kept.clone() } else { rounded(number, &kept) };
        let mut of_rows = Vec::new();
        for row in 0..rows {
            let x = &x[row * inputs..][..inputs];
            let product = |w: &[f32]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
            of_rows.extend(kept.chunks(inputs).map(product));
            let beside = &got[before + row * stride + outputs..before + (row + 1) * stride];
            assert!(beside.iter().all(|x| *x == 7.0), "what lies beside the product is left alone");
        }
        let computed: Vec<f32> = (0..rows).flat_map(|row| got[before + row * stride..][..outputs].to_vec()).collect();
        assert_close(&computed, &of_rows, 1e-5, &format!("{format:?} {number:?}, {rows} rows"));
        assert_eq!(&got[..before], [7.0, 7.0]);
    }
}

#[test]
fn plain_weights() {
    let device = device();
    for number in [Number::F32, Number::Bf16, Number::F16] {
        for (outputs, inputs) in [(33, 264), (8, 8), (5, 44), (1, 512), (70, 192)] {
            check(&device, WeightFormat::Plain(number), number, outputs, inputs);
        }
    }
}

#[test]
fn quantized_weights() {
    let device = device();
    for format in QUANTIZED {
        for number in [Number::F32, Number::Bf16] {
            check(&device, format, number, 13, 512);
        }
        // Several blocks, warps that have no chunk, and blocks of values that are half of one.
        check_rows(&device, format, Number::Bf16, 150, 1280, &[6, 20, 70]);
    }
    for format in [WeightFormat::Q4_0, WeightFormat::Q5_0, WeightFormat::Q8_0] {
        for inputs in [64, 96] {
            check(&device, format, Number::Bf16, 40, inputs);
        }
    }
}

#[test]
fn vectors_of_tokens_from_blocks() {
    let device = device();
    for format in QUANTIZED {
        let (table, kept) = weight(&device, format, 20, 256);
        let tokens = [19, 0, 7];
        let hidden = room(&device, Number::F32, 3 * 256);
        device.embed(&table, integers(&device, &tokens).all(), 3, hidden.all(), 0.5).unwrap();
        let expected: Vec<f64> = tokens
            .iter()
            .flat_map(|&token| kept[token as usize * 256..][..256].iter().map(|x| 0.5 * f64::from(*x)))
            .collect();
        assert_close(&get(&hidden, Number::F32), &expected, 1e-6, &format!("{format:?}"));
    }
}
