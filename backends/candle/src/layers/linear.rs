use candle_core::{Device, Result, Storage, Tensor, bail};
use rayon::prelude::*;

use crate::kernels::dots;

/// Up to this many rows, our own loop over the weight is at least as fast as candle's product: twice as fast at two and three rows, even
/// at eight (AVX2 code on one core, a weight of 3072 x 1024).
const FEW_ROWS: usize = 8;
/// Rows of the weight, and rows of the input, in one tile of the loop.
const TILE: (usize, usize) = (4, 3);
/// Weights that are worth a task of their own.
const WEIGHTS_PER_TASK: usize = 1 << 15;

/// `y = x Wᵀ + b`, with `W` in F32 as `[outputs, inputs]`.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Tensor,
    inputs: usize,
    outputs: usize,
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// `weight` may be shared with another layer, as that of tied embeddings is.
    pub(crate) fn new(weight: Tensor, bias: Option<Vec<f32>>) -> Result<Self> {
        let (outputs, inputs) = weight.dims2()?;
        Ok(Self { weight, inputs, outputs, bias })
    }

    /// Replaces `y` by the product of all rows of `x`.
    pub(crate) fn forward(&self, x: &[f32], y: &mut Vec<f32>) -> Result<()> {
        let rows = x.len() / self.inputs;
        y.resize(rows * self.outputs, 0.0);
        if rows <= FEW_ROWS {
            with_values(&self.weight, |weight| few_rows(weight, self.inputs, x, y))?;
        } else {
            self.many_rows(x, rows, y)?;
        }
        if let Some(bias) = &self.bias {
            for row in y.chunks_exact_mut(self.outputs) {
                row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        }
        Ok(())
    }

    /// candle's product, with the weight on the left: the other way round candle packs the weight anew on each call.
    fn many_rows(&self, x: &[f32], rows: usize, y: &mut [f32]) -> Result<()> {
        let x = Tensor::from_slice(x, (rows, self.inputs), &Device::Cpu)?;
        let product = self.weight.matmul(&x.t()?)?;
        with_values(&product, |product| transpose(product, rows, y))
    }
}

/// Lends the values of a contiguous F32 tensor in host memory.
pub(super) fn with_values<T>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("the tensor is not in host memory") };
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("the tensor is not contiguous") };
    Ok(read(&storage.as_slice()?[start..end]))
}

/// Reads the weight once, a few rows at a time, and applies them to all rows of `x`.
fn few_rows(weight: &[f32], inputs: usize, x: &[f32], y: &mut [f32]) {
    let outputs = weight.len() / inputs;
    let per_task = (WEIGHTS_PER_TASK / inputs).max(1).next_multiple_of(TILE.0);
    // Each task owns some columns of `y`: one piece of each of its rows.
    let mut columns: Vec<Vec<&mut [f32]>> = Vec::new();
    columns.resize_with(outputs.div_ceil(per_task), || Vec::with_capacity(x.len() / inputs));
    for row in y.chunks_exact_mut(outputs) {
        columns.iter_mut().zip(row.chunks_mut(per_task)).for_each(|(column, piece)| column.push(piece));
    }
    let x: Vec<&[f32]> = x.chunks_exact(inputs).collect();
    columns.par_iter_mut().zip(weight.par_chunks(per_task * inputs)).for_each(|(column, weight)| {
        for (at, rows) in weight.chunks(TILE.0 * inputs).enumerate() {
            let at = at * TILE.0;
            match *rows.chunks_exact(inputs).collect::<Vec<_>>() {
                [a, b, c, d] => product([a, b, c, d], &x, at, column),
                ref rest => rest.iter().zip(at..).for_each(|(&row, at)| product([row], &x, at, column)),
            }
        }
    });
}

/// The products of `R` rows of the weight, which are outputs `at` and after, with all rows of `x`.
fn product<const R: usize>(weight: [&[f32]; R], x: &[&[f32]], at: usize, y: &mut [&mut [f32]]) {
    let mut put = |token: usize, products: [f32; R]| y[token][at..at + R].copy_from_slice(&products);
    let (tiles, rest) = x.as_chunks::<{ TILE.1 }>();
    for (tile, x) in tiles.iter().enumerate() {
        let products = dots(weight, *x);
        for token in 0..TILE.1 {
            put(tile * TILE.1 + token, products.map(|row| row[token]));
        }
    }
    let done = x.len() - rest.len();
    match *rest {
        [a, b] => {
            let products = dots(weight, [a, b]);
            put(done, products.map(|row| row[0]));
            put(done + 1, products.map(|row| row[1]));
        }
        [a] => put(done, dots(weight, [a]).map(|row| row[0])),
        _ => {}
    }
}

/// Turns `[outputs, rows]` into `[rows, outputs]`.
fn transpose(product: &[f32], rows: usize, y: &mut [f32]) {
    let outputs = product.len() / rows;
    y.par_chunks_exact_mut(outputs).enumerate().for_each(|(row, y)| {
        for (y, product) in y.iter_mut().zip(product[row..].iter().step_by(rows)) {
            *y = *product;
        }
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values(seed: u64, len: usize) -> Vec<f32> {
        (0..len as u32).map(|at| tandem_core::sampling::uniform(seed, at) - 0.5).collect()
    }

    proptest! {
        #[test]
        fn both_ways_are_the_product(rows in 1usize..9, many in any::<bool>(), inputs in 1usize..40, outputs in 1usize..40, seed in any::<u64>()) {
            let rows = if many { rows + FEW_ROWS } else { rows };
            let (weight, x, bias) = (values(seed, outputs * inputs), values(!seed, rows * inputs), values(seed ^ 1, outputs));
            let tensor = Tensor::from_slice(&weight, (outputs, inputs), &Device::Cpu).unwrap();
            let mut y = vec![f32::NAN; 3];
            Linear::new(tensor, Some(bias.clone())).unwrap().forward(&x, &mut y).unwrap();
            prop_assert_eq!(y.len(), rows * outputs);
            for (row, y) in y.chunks_exact(outputs).enumerate() {
                for (output, &y) in y.iter().enumerate() {
                    let products = (0..inputs).map(|at| f64::from(x[row * inputs + at]) * f64::from(weight[output * inputs + at]));
                    let expected = products.sum::<f64>() + f64::from(bias[output]);
                    prop_assert!((f64::from(y) - expected).abs() < 1e-5, "row {}, output {}: {} for {}", row, output, y, expected);
                }
            }
        }
    }
}
