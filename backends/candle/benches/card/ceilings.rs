//! What a card does at most.

use std::time::Instant;

use tandem_cuda::{CudaError, Device, Input, Number, Weight, WeightFormat};

/// The best of so many runs counts.
pub(crate) const REPEATS: usize = 3;
const COPIES: u32 = 20;
const PRODUCTS: u32 = 10;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Ceilings {
    /// Of a copy, read and written.
    pub(crate) bytes_per_second: f64,
    /// Of a product of BF16.
    pub(crate) flop_per_second: f64,
}

impl Ceilings {
    pub(crate) fn of_card(device: &Device) -> Result<Self, CudaError> {
        Self::measure(device, 1 << 30, 8192)
    }

    /// By copies of so many bytes, and a product of so many on each side.
    pub(crate) fn measure(device: &Device, bytes: usize, side: usize) -> Result<Self, CudaError> {
        let (from, to) = (device.allocate(bytes)?, device.allocate(bytes)?);
        from.clear()?;
        let seconds = best(device, || (0..COPIES).try_for_each(|_| device.copy(&from, &to)))?;
        let bytes_per_second = f64::from(COPIES) * 2.0 * bytes as f64 / seconds;
        // Of random numbers: with zeros a card needs less power, and is faster than it ever is with a model.
        let matrix = random(side * side);
        let weight = Weight::new(device, WeightFormat::Plain(Number::Bf16), side, side, &matrix)?;
        let (x, y, scratch) =
            (device.allocate_with(&matrix)?, device.allocate(side * side * size_of::<f32>())?, device.allocate(1)?);
        let input = Input { x: x.all(), number: Number::Bf16, rows: side };
        let multiply = || device.multiply(&weight, input, y.all(), side, &scratch);
        let seconds = best(device, || (0..PRODUCTS).try_for_each(|_| multiply()))?;
        Ok(Self { bytes_per_second, flop_per_second: f64::from(PRODUCTS) * 2.0 * (side as f64).powi(3) / seconds })
    }
}

fn best(device: &Device, run: impl Fn() -> Result<(), CudaError>) -> Result<f64, CudaError> {
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        device.synchronize()?;
        let begun = Instant::now();
        run()?;
        device.synchronize()?;
        best = best.min(begun.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Numbers of BF16 between -2 and 2, evenly spread.
fn random(count: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let number = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let value = (state >> 40) as f32 / (1 << 22) as f32 - 2.0;
        half::bf16::from_f32(value).to_le_bytes()
    };
    (0..count).flat_map(number).collect()
}
