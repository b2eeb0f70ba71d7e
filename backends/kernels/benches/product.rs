//! Speed of products by format and rows, on one thread: operations (two for each weight and row) in a second. candle has threads of its
//! own: `CANDLE_NUM_THREADS=1` makes it one.

use std::hint::black_box;

use candle_core::{
    Device, Module, Tensor,
    quantized::{GgmlDType, QMatMul, QTensor},
};
use criterion::{Bencher, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tandem_kernels::{Format, Matrix, Packed};

const OUTPUTS: usize = 3072;
const INPUTS: usize = 1024;

fn product(c: &mut Criterion) {
    let values: Vec<f32> = (0..OUTPUTS * INPUTS).map(|at| ((at * 7919 % 1009) as f32 - 504.0) / 504.0).collect();
    let tensor = Tensor::from_slice(&values, (OUTPUTS, INPUTS), &Device::Cpu).expect("sizes fit");
    let quantized = |dtype| QTensor::quantize(&tensor, dtype).expect("sizes fit");
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    let formats = [
        (Format::Q4K, Some(GgmlDType::Q4K)),
        (Format::Q6K, Some(GgmlDType::Q6K)),
        (Format::Q8_0, Some(GgmlDType::Q8_0)),
        (Format::Q4_0, Some(GgmlDType::Q4_0)),
        (Format::Bf16, None),
        (Format::F32, None),
    ];
    for (format, dtype) in formats {
        let mut group = c.benchmark_group(format!("{format:?}"));
        let bytes: Vec<u8> = match (dtype, format) {
            (Some(dtype), _) => quantized(dtype).data().expect("on the CPU").into_owned(),
            (None, Format::Bf16) => {
                values.iter().flat_map(|value| [value.to_le_bytes()[2], value.to_le_bytes()[3]]).collect()
            }
            (None, _) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        };
        let matrix = Matrix { format, outputs: OUTPUTS, inputs: INPUTS, bytes: &bytes };
        let packed = Packed::new(&[matrix], None).expect("sizes fit");
        for rows in [1, 2, 4, 8, 16, 32, 512] {
            let x = values[..rows * INPUTS].to_vec();
            group.throughput(Throughput::Elements((2 * rows * OUTPUTS * INPUTS) as u64));
            let mut y = Vec::new();
            let bench = |b: &mut Bencher<'_>| one_thread.install(|| b.iter(|| packed.forward(black_box(&x), &mut y)));
            group.bench_function(BenchmarkId::new("packed", rows), bench);
            if let Some(dtype) = dtype {
                let theirs = QMatMul::from_qtensor(quantized(dtype)).expect("a quantised matrix");
                let x = Tensor::from_slice(&x, (rows, INPUTS), &Device::Cpu).expect("sizes fit");
                group.bench_function(BenchmarkId::new("candle", rows), |b| {
                    b.iter(|| theirs.forward(black_box(&x)).expect("sizes fit"));
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, product);
criterion_main!(benches);
