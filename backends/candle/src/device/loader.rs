use tandem_core::LoadError;
use tandem_cuda::{Buffer, Device, KvPages, Number, Weight};

use super::{
    DeviceLinear, Shape, Split,
    layer::{BlockNorms, DeviceLayer, DeviceMlp, QkNorms},
    refused,
};
use crate::{
    config::{DecoderConfig, MlpConfig, QkNorm, RouteWeights},
    models::{LayerTensors, NormNames, norm_weight},
    weights::{Slice, Weights},
};

/// Brings a rank's share of the tensors to its device.
pub(super) struct Loader<'a> {
    pub(super) device: &'a Device,
    pub(super) number: Number,
    pub(super) split: Split,
    /// Of the whole model, and of what a rank has of it.
    pub(super) config: &'a DecoderConfig,
    pub(super) part: &'a DecoderConfig,
    pub(super) weights: &'a mut Weights,
}

impl Loader<'_> {
    pub(super) fn layer(&mut self, at: usize, rope: Option<usize>, shape: &Shape) -> Result<DeviceLayer, LoadError> {
        let (config, part) = (self.config, self.part);
        let (layer, of_rank) = (&config.layers[at], &part.layers[at]);
        let tensors = &LayerTensors::new(config, format!("model.layers.{at}"));
        let (attention_norms, mlp_norms) = tensors.block_norms();
        let pages = KvPages::new(self.device, shape.kv, shape.pages, shape.page_len, part.kv_heads, part.head_dim);
        let (qkv, output) = (tensors.qkv(), tensors.output());
        Ok(DeviceLayer {
            attention_norms: self.block_norms(&attention_norms)?,
            qkv: self.linear(&self.split.qkv(config, &qkv), qkv.has_bias)?,
            qk_norms: match tensors.qk_norms() {
                None => None,
                Some(names) => Some(QkNorms {
                    queries: self.norm(&names.queries.0, names.queries.1)?,
                    keys: self.norm(&names.keys.0, names.keys.1)?,
                    // A model of one head has it by itself either way.
                    per_head: config.qk_norm == Some(QkNorm::PerHead) || config.heads == 1,
                }),
            },
            rope,
            window: layer.window,
            output: self.linear(&self.split.columns(&output), output.has_bias)?,
            mlp_norms: self.block_norms(&mlp_norms)?,
            mlp: self.mlp(tensors, &layer.mlp, &of_rank.mlp)?,
            pages: pages.map_err(refused)?,
        })
    }

    fn mlp(
        &mut self,
        tensors: &LayerTensors<'_>,
        mlp: &MlpConfig,
        of_rank: &MlpConfig,
    ) -> Result<DeviceMlp, LoadError> {
        let (&MlpConfig::Dense { width: of_rank } | &MlpConfig::Experts { width: of_rank, .. }) = of_rank;
        match *mlp {
            MlpConfig::Dense { width } => {
                let (gate_up, down) = tensors.mlp("mlp", width);
                Ok(DeviceMlp::Dense {
                    gate_up: self.linear(&self.split.gate_up(width, &gate_up), gate_up.has_bias)?,
                    down: self.linear(&self.split.columns(&down), down.has_bias)?,
                    width: of_rank,
                })
            }
            MlpConfig::Experts { width, experts, per_token, weights } => {
                let router = self.linear(&Split::whole(&tensors.router(experts)), false)?;
                let products = (0..experts).map(|at| tensors.mlp(&format!("mlp.experts.{at}"), width));
                let slices =
                    products.map(|(gate_up, down)| (self.split.gate_up(width, &gate_up), self.split.columns(&down)));
                let (gate_ups, downs): (Vec<_>, Vec<_>) = slices.unzip();
                Ok(DeviceMlp::Experts {
                    router,
                    gate_up: self.stacked(&gate_ups.concat())?,
                    down: self.stacked(&downs.concat())?,
                    width: of_rank,
                    experts,
                    per_token,
                    among_chosen: weights == RouteWeights::OfChosen,
                })
            }
        }
    }

    /// The weights of products of equal shape behind each other.
    fn stacked(&mut self, slices: &[Slice]) -> Result<Weight, LoadError> {
        let mut weights = self.weights.put_on_device(self.device, self.number, slices)?;
        match (weights.pop(), weights.is_empty()) {
            (Some(whole), true) => Ok(whole),
            _ => Err(LoadError::Unsupported(format!(
                "{} and its like are quantised in more than one way, which a GPU does not compute (backend.device = \"cpu\" does)",
                slices[0].name
            ))),
        }
    }

    pub(super) fn linear(&mut self, slices: &[Slice], has_bias: bool) -> Result<DeviceLinear, LoadError> {
        let weights: Vec<Weight> = self.weights.put_on_device(self.device, self.number, slices)?;
        let mut bias = Vec::new();
        if has_bias {
            for Slice { name, shape: [outputs, _], rows, .. } in slices {
                let whole = self.weights.vector(&format!("{name}.bias"), *outputs)?;
                bias.extend(rows.iter().flat_map(|rows| &whole[rows.clone()]));
            }
        }
        let bias = has_bias.then(|| self.upload(&bias)).transpose()?;
        Ok(DeviceLinear::new(weights, bias))
    }

    fn block_norms(&mut self, names: &NormNames) -> Result<BlockNorms, LoadError> {
        let width = self.config.hidden_size;
        let mut load = |name: &Option<String>| name.as_ref().map(|name| self.norm(name, width)).transpose();
        Ok(BlockNorms { before: load(&names.before)?, after: load(&names.after)? })
    }

    pub(super) fn norm(&mut self, name: &str, width: usize) -> Result<Buffer, LoadError> {
        let weight = norm_weight(self.config, self.weights, name, width)?;
        self.upload(&weight)
    }

    fn upload(&self, values: &[f32]) -> Result<Buffer, LoadError> {
        let mut bytes = Vec::new();
        Number::F32.write(values, &mut bytes);
        self.device.allocate_with(&bytes).map_err(refused)
    }
}
