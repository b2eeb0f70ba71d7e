use tandem_kernels::exp;

use super::{Linear, Mlp, MlpBuffers};
use crate::config::RouteWeights;

/// Many MLPs of which each token goes through a few, chosen by a router.
///
/// Rows are grouped by expert, so that the weights of each are read once per step whatever the number of rows that chose it.
#[derive(Debug)]
pub(crate) struct Experts {
    router: Linear,
    experts: Vec<Mlp>,
    /// Of the hidden state.
    width: usize,
    /// Experts that each token goes through.
    per_token: usize,
    weights: RouteWeights,
}

/// One row's way through one expert.
#[derive(Clone, Copy, Debug)]
struct Route {
    expert: usize,
    row: usize,
    weight: f32,
}

/// Activations, which live from step to step.
#[derive(Debug, Default)]
pub(crate) struct ExpertBuffers {
    /// By row and expert: what the router says, then probabilities.
    scores: Vec<f32>,
    /// Experts by falling probability, of one row.
    order: Vec<usize>,
    routes: Vec<Route>,
    /// The rows that go through one expert, and what comes out.
    inputs: Vec<f32>,
    outputs: Vec<f32>,
}

impl Experts {
    /// The router has one output for each of `experts`; `width` is that of the hidden state.
    pub(crate) fn new(
        router: Linear,
        experts: Vec<Mlp>,
        width: usize,
        per_token: usize,
        weights: RouteWeights,
    ) -> Self {
        Self { router, experts, width, per_token, weights }
    }

    /// Replaces `y` by the results of the rows of `x`.
    pub(crate) fn forward(&self, x: &[f32], buffers: &mut ExpertBuffers, mlp: &mut MlpBuffers, y: &mut Vec<f32>) {
        let ExpertBuffers { scores, order, routes, inputs, outputs } = buffers;
        let width = self.width;
        self.router.forward(x, scores);
        routes.clear();
        for (row, scores) in scores.chunks_exact_mut(self.experts.len()).enumerate() {
            self.choose(row, scores, order, routes);
        }
        routes.sort_unstable_by_key(|route| (route.expert, route.row));
        y.clear();
        y.resize(x.len(), 0.0);
        for routes in routes.chunk_by(|a, b| a.expert == b.expert) {
            inputs.clear();
            routes.iter().for_each(|route| inputs.extend_from_slice(&x[route.row * width..][..width]));
            self.experts[routes[0].expert].forward(inputs, mlp, outputs);
            for (route, output) in routes.iter().zip(outputs.chunks_exact(width)) {
                let y = &mut y[route.row * width..][..width];
                y.iter_mut().zip(output).for_each(|(y, output)| *y += route.weight * output);
            }
        }
    }

    /// Adds the routes of one row to `routes`.
    fn choose(&self, row: usize, scores: &mut [f32], order: &mut Vec<usize>, routes: &mut Vec<Route>) {
        softmax(scores);
        order.clear();
        order.extend(0..scores.len());
        order.sort_unstable_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
        let chosen = &order[..self.per_token];
        let total = match self.weights {
            RouteWeights::OfAll => 1.0,
            RouteWeights::OfChosen => chosen.iter().map(|&expert| scores[expert]).sum(),
        };
        routes.extend(chosen.iter().map(|&expert| Route { expert, row, weight: scores[expert] / total }));
    }
}

fn softmax(scores: &mut [f32]) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|score| *score -= max);
    exp(scores);
    let total: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|score| *score /= total);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tandem_kernels::{Format, Matrix, Packed};

    use super::*;
    use crate::config::Activation;

    fn linear(weight: &[f32], outputs: usize) -> Linear {
        let bytes: Vec<u8> = weight.iter().flat_map(|value| value.to_le_bytes()).collect();
        let matrix = Matrix { format: Format::F32, outputs, inputs: weight.len() / outputs, bytes: &bytes };
        Linear::new(Arc::new(Packed::new(&[matrix], None).unwrap()))
    }

    /// Three experts that give back the activation of a row of one value, times 1, 10 and 100.
    fn experts(router: &[f32; 3], weights: RouteWeights) -> Experts {
        let expert = |factor| Mlp::new(linear(&[1.0, 1.0], 2), linear(&[factor], 1), 1, Activation::Silu);
        Experts::new(linear(router, 3), [1.0, 10.0, 100.0].map(expert).into(), 1, 2, weights)
    }

    #[test]
    fn each_row_goes_through_the_likeliest_experts() {
        for (weights, shares) in [(RouteWeights::OfAll, [0.5, 0.3]), (RouteWeights::OfChosen, [0.625, 0.375])] {
            let experts = experts(&[0.5f32.ln(), 0.2f32.ln(), 0.3f32.ln()], weights);
            let (mut buffers, mut mlp, mut y) = (ExpertBuffers::default(), MlpBuffers::default(), Vec::new());
            // The second row turns the order of the router's scores around.
            experts.forward(&[1.0, -1.0], &mut buffers, &mut mlp, &mut y);
            let silu = |x: f32| x / (1.0 + (-x).exp()) * x;
            assert!((y[0] - silu(1.0) * (shares[0] + 100.0 * shares[1])).abs() < 1e-4, "{y:?}");
            let turned = [2.0, 5.0, 10.0 / 3.0];
            let total: f32 = match weights {
                RouteWeights::OfAll => turned.iter().sum(),
                RouteWeights::OfChosen => turned[1] + turned[2],
            };
            let expected = silu(-1.0) * (10.0 * turned[1] + 100.0 * turned[2]) / total;
            assert!((y[1] - expected).abs() < 1e-4, "{y:?} for {expected}");
        }
    }
}
