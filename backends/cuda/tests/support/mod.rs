//! Numbers on a device and back. The device is the emulator, or a card where `TANDEM_TEST_DEVICE=cuda` says so.

#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses a part of it")]

use candle_core::{
    Device as Host, Tensor,
    quantized::{GgmlDType, QTensor},
};
use tandem_core::sampling::uniform;
use tandem_cuda::{Buffer, Device, Number, Weight, WeightFormat};

pub(crate) fn device() -> Device {
    match std::env::var("TANDEM_TEST_DEVICE").as_deref() {
        Ok("cuda") => Device::open(0).unwrap(),
        _ => Device::emulated(),
    }
}

/// Between -1 and 1.
pub(crate) fn random(seed: u64, count: usize) -> Vec<f32> {
    (0..count as u32).map(|at| 2.0 * uniform(seed, at) - 1.0).collect()
}

pub(crate) fn put(device: &Device, number: Number, values: &[f32]) -> Buffer {
    let mut bytes = Vec::new();
    number.write(values, &mut bytes);
    device.allocate_with(&bytes).unwrap()
}

pub(crate) fn get(buffer: &Buffer, number: Number) -> Vec<f32> {
    let mut bytes = vec![0; buffer.len()];
    buffer.read(0, &mut bytes).unwrap();
    number.read(&bytes)
}

/// What is left of numbers that a device keeps so.
pub(crate) fn rounded(number: Number, values: &[f32]) -> Vec<f32> {
    let mut bytes = Vec::new();
    number.write(values, &mut bytes);
    number.read(&bytes)
}

pub(crate) fn integers(device: &Device, values: &[i32]) -> Buffer {
    device.allocate_with(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>()).unwrap()
}

pub(crate) fn room(device: &Device, number: Number, count: usize) -> Buffer {
    device.allocate(count * number.bytes()).unwrap()
}

/// A weight of random numbers on the device, and the numbers as it keeps them: quantised ones by candle.
pub(crate) fn weight(device: &Device, format: WeightFormat, outputs: usize, inputs: usize) -> (Weight, Vec<f32>) {
    let values = random(9, outputs * inputs);
    let dtype = match format {
        WeightFormat::Plain(number) => {
            let mut bytes = Vec::new();
            number.write(&values, &mut bytes);
            return (Weight::new(device, format, outputs, inputs, &bytes).unwrap(), rounded(number, &values));
        }
        WeightFormat::Q4_0 => GgmlDType::Q4_0,
        WeightFormat::Q5_0 => GgmlDType::Q5_0,
        WeightFormat::Q8_0 => GgmlDType::Q8_0,
        WeightFormat::Q4K => GgmlDType::Q4K,
        WeightFormat::Q5K => GgmlDType::Q5K,
        WeightFormat::Q6K => GgmlDType::Q6K,
    };
    let tensor = Tensor::from_vec(values, (outputs, inputs), &Host::Cpu).unwrap();
    let blocks = QTensor::quantize(&tensor, dtype).unwrap();
    let kept = blocks.dequantize(&Host::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    (Weight::new(device, format, outputs, inputs, &blocks.data().unwrap()).unwrap(), kept)
}

/// How far numbers may be off, as a share of their root mean square.
pub(crate) fn tolerance(number: Number) -> f64 {
    match number {
        Number::F32 => 1e-5,
        Number::Bf16 => 1e-2,
        Number::F16 => 2e-3,
        // Against the number before it was rounded.
        Number::F8 => 4e-2,
    }
}

#[track_caller]
pub(crate) fn assert_close(got: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let scale = (expected.iter().map(|x| x * x).sum::<f64>() / expected.len() as f64).sqrt();
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - expected).abs() / scale.max(1e-30);
        // Also where it is not a number.
        assert!(error <= 4.0 * tolerance, "{what}: number {at} is {got} for {expected}, off by {error:e}");
    }
    let error: f64 = got.iter().zip(expected).map(|(got, expected)| (f64::from(*got) - expected).powi(2)).sum();
    let relative = (error / expected.len() as f64).sqrt() / scale.max(1e-30);
    assert!(relative <= tolerance, "{what}: relative error {relative:e}");
}
