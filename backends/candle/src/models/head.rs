use tandem_core::LoadError;

use crate::{config::HeadNames, weights::Weights};

/// The last layers of a model that ranks documents: what the first token's hidden state says of the whole becomes a score.
#[derive(Debug)]
pub(crate) struct Head {
    /// A row for each number of the state between the two layers.
    dense: Vec<f32>,
    dense_bias: Vec<f32>,
    output: Vec<f32>,
    output_bias: f32,
}

impl Head {
    /// Its names stand behind `whole`, or by themselves.
    pub(crate) fn load(names: &HeadNames, whole: &str, width: usize, weights: &mut Weights) -> Result<Self, LoadError> {
        let dense = if names.within { format!("{whole}{}", names.dense) } else { names.dense.to_owned() };
        let output = names.output;
        Ok(Self {
            dense: weights.table(&format!("{dense}.weight"), width, width)?,
            dense_bias: weights.vector(&format!("{dense}.bias"), width)?,
            output: weights.table(&format!("{output}.weight"), 1, width)?,
            output_bias: weights.vector(&format!("{output}.bias"), 1)?.into_iter().sum(),
        })
    }

    /// From 0 to 1.
    pub(crate) fn score(&self, state: &[f32]) -> f32 {
        let rows = self.dense.chunks_exact(state.len());
        let hidden = std::iter::zip(rows, &self.dense_bias).map(|(row, bias)| (dot(row, state) + bias).tanh());
        let logit = std::iter::zip(hidden, &self.output).map(|(x, weight)| x * weight).sum::<f32>() + self.output_bias;
        1.0 / (1.0 + (-logit).exp())
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    std::iter::zip(a, b).map(|(a, b)| a * b).sum()
}
