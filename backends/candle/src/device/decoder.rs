use std::collections::{BTreeMap, BTreeSet};

use tandem_core::{AheadStep, LoadError};
use tandem_cuda::{Buffer, CudaError, Device, Graph, Input, KvPages, LogitMap, Number, Outbox, Rows, Turns, Weight};

use super::{
    DeviceLinear, batch,
    batch::{Batch, Limits, is_decoding},
    buffers::{Buffers, SCORED_ROWS},
    layer::{BlockNorms, Common, DeviceLayer, DeviceMlp, QkNorms},
    refused,
};
use crate::{
    config::{self, DecoderConfig, Head, MlpConfig, QkNorm, RouteWeights},
    layers::RotaryEmbedding,
    models::{LayerTensors, NormNames, Product, distinct_ropes, is_derived, norm_weight},
    weights::Weights,
};

const F32: usize = 4;
const I32: usize = 4;

/// A decoder on a device, with its KV cache.
#[derive(Debug)]
pub(crate) struct DeviceDecoder {
    /// Steps that were written down, by their rows. Dropped first: they work on all the rest.
    graphs: BTreeMap<usize, Graph>,
    /// Numbers of rows that were computed once, so that all that is set up at first use is there.
    warm: BTreeSet<usize>,
    common: Common,
    limits: Limits,
    embedding: Embedding,
    embedding_scale: f32,
    turns: Vec<Turns>,
    layers: Vec<DeviceLayer>,
    norm: Buffer,
    head: Option<DeviceLinear>,
    logit_map: LogitMap,
    buffers: Buffers,
    /// What a step is told, and what it is told through.
    told: Buffer,
    telling: Outbox,
    /// The token that was chosen last for each slot.
    chosen: Buffer,
    /// Rows of a step of decoding, at most.
    most_decoding: usize,
    /// Rows of the last step that tokens are sampled after, and those behind them that are scored.
    sampled: usize,
    scored: usize,
}

/// The vectors of tokens, which may be the head as well.
#[derive(Debug)]
struct Embedding(DeviceLinear);

/// How large the cache and the steps are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) context: u32,
    pub(crate) parallel: usize,
    pub(crate) max_step_tokens: usize,
    pub(crate) pages: usize,
    pub(crate) page_len: usize,
    /// What K and V are.
    pub(crate) kv: Number,
}

impl DeviceDecoder {
    /// Takes its weights.
    pub(crate) fn load(
        device: &Device,
        number: Number,
        config: &DecoderConfig,
        shape: Shape,
        mut weights: Weights,
    ) -> Result<Self, LoadError> {
        let ropes = distinct_ropes(config);
        let embeddings: Vec<_> =
            ropes.iter().map(|rope| RotaryEmbedding::new(rope, config.head_dim, shape.context)).collect();
        let turns = embeddings.iter().map(|rope| {
            let (frequencies, magnitude) = rope.angles();
            Turns::new(device, frequencies, magnitude).map_err(refused)
        });
        let turns = turns.collect::<Result<Vec<_>, _>>()?;
        let pairs: Vec<_> = turns.iter().map(Turns::pairs).collect();
        let table = (shape.context as usize).div_ceil(shape.page_len);
        let common = Common::new(device, number, config, pairs.clone(), table)?;
        let mut loader = Loader { device, number, config, weights: &mut weights };
        let vocabulary = |name: &str| Product {
            parts: vec![(name.to_owned(), config.vocab_size)],
            inputs: config.hidden_size,
            has_bias: false,
        };
        let embedding = Embedding(loader.linear(&vocabulary("model.embed_tokens"))?);
        let layers = config.layers.iter().enumerate().map(|(at, layer)| {
            let tensors = LayerTensors::new(config, format!("model.layers.{at}"));
            let rope = layer.rope.as_ref().map(|rope| {
                ropes.iter().position(|known| *known == rope).expect("the decoder has the angles of all layers")
            });
            loader.layer(&tensors, layer, rope, &shape)
        });
        let layers = layers.collect::<Result<Vec<_>, _>>()?;
        let norm = loader.norm("model.norm", config.hidden_size)?;
        let head = match config.head {
            Head::Tied => None,
            Head::Own => Some(loader.linear(&vocabulary("lm_head"))?),
        };
        // Some files carry a copy of the tied embedding.
        let tied = config.head == Head::Tied;
        weights.finish(|name| is_derived(name) || (tied && name == "lm_head.weight"))?;
        let limits = Limits {
            vocab: config.vocab_size,
            slots: shape.parallel,
            page_len: shape.page_len,
            pages: shape.pages,
            table,
            prompts: common.attention.has_prompts(number, shape.kv),
        };
        let rows = shape.max_step_tokens;
        let sampled = batch::most_sampled(shape.parallel, rows);
        let buffers = Buffers::new(device, config, &pairs, rows, sampled, number).map_err(refused)?;
        let told = device.allocate(Batch::most_bytes(&limits, rows, shape.parallel)).map_err(refused)?;
        let telling = Outbox::new(device, told.len()).map_err(refused)?;
        let chosen = device.allocate(shape.parallel * I32).map_err(refused)?;
        Ok(Self {
            graphs: BTreeMap::new(),
            warm: BTreeSet::new(),
            common,
            limits,
            embedding,
            embedding_scale: config.embedding_scale,
            turns,
            layers,
            norm,
            head,
            logit_map: match config.logits {
                config::LogitMap::Plain => LogitMap::Plain,
                config::LogitMap::Divided(divisor) => LogitMap::Divided(divisor),
                config::LogitMap::Capped(cap) => LogitMap::Capped(cap),
            },
            buffers,
            told,
            telling,
            chosen,
            most_decoding: sampled,
            sampled: 0,
            scored: 0,
        })
    }

    /// Asks for one pass: fills the cache with the K and V of all tokens, and makes the logits of the rows that tokens are sampled after. Returns
    /// while the device computes.
    ///
    /// Steps of decoding are the same work again and again. They are made as long as the next of a few sizes, and what they ask for is written
    /// down, so that the host asks once for all of it.
    pub(crate) fn forward(&mut self, step: &AheadStep<'_>) -> Result<(), DeviceStepError> {
        let used = step.tokens();
        let bucket = if is_decoding(step) { batch::bucket(used, self.most_decoding) } else { None };
        let batch = Batch::new(step, bucket.unwrap_or(used), &self.limits).map_err(DeviceStepError::Step)?;
        self.telling.send(&self.told, batch.bytes(), |bytes| batch.write(bytes))?;
        self.sampled = step.sampled_rows();
        self.scored = batch.scored;
        let Some(bucket) = bucket else { return Ok(self.compute(&batch)?) };
        if let Some(graph) = self.graphs.get(&bucket) {
            return Ok(graph.replay()?);
        }
        self.compute(&batch)?;
        // The places of all operands depend on the number of rows alone, if that is also the number of sequences.
        if !self.warm.insert(bucket) {
            let graph = self.common.device.record(|| self.compute(&batch))?;
            self.graphs.insert(bucket, graph);
        }
        Ok(())
    }

    fn compute(&self, batch: &Batch) -> Result<(), CudaError> {
        let Self { common, buffers, told, .. } = self;
        let Common { device, number, .. } = common;
        let rows = batch.rows;
        device.follow(told.at(batch.tokens()), rows, &self.chosen)?;
        self.embedding.look_up(device, told, batch, &buffers.hidden, self.embedding_scale)?;
        for (turns, out) in self.turns.iter().zip(&buffers.turns) {
            device.angles(turns, told.at(batch.positions()), rows, out.all())?;
        }
        let mut pending = None;
        for layer in &self.layers {
            pending = Some(layer.forward(common, batch, told, buffers, pending)?);
        }
        let state = common.rows(buffers, rows, pending);
        let wanted = batch.sampled + batch.scored;
        if batch.all_wanted {
            state.enter(device, Some(&self.norm), buffers.wanted.all(), *number)?;
        } else {
            // First all are added, each once: a row may be wanted twice.
            state.enter(device, None, buffers.normed.all(), *number)?;
            let picked = Rows::new(buffers.hidden.all(), rows, common.hidden, common.eps);
            let picked = picked.pick(told.at(batch.wanted()), wanted);
            picked.enter(device, Some(&self.norm), buffers.wanted.all(), *number)?;
        }
        self.logits(0, batch.sampled, &buffers.logits)
    }

    /// Of some of the wanted rows.
    fn logits(&self, first: usize, count: usize, out: &Buffer) -> Result<(), CudaError> {
        let Common { device, number, hidden, .. } = &self.common;
        let head = self.head.as_ref().unwrap_or(&self.embedding.0);
        let x = self.buffers.wanted.at(first * hidden * number.bytes());
        let input = Input { x, number: *number, rows: count };
        head.forward(device, input, out.all(), &self.buffers.scratch)?;
        device.map_logits(self.logit_map, out.all(), count * self.limits.vocab)
    }

    /// The logits on the device, of the rows that tokens are sampled after, and where the next step looks for what is chosen from them.
    pub(crate) fn sampled_logits(&self) -> (&Device, &Buffer, &Buffer) {
        (&self.common.device, &self.buffers.logits, &self.chosen)
    }

    /// Those of one of these rows.
    pub(crate) fn row(&self, row: usize, logits: &mut Vec<f32>) -> Result<(), CudaError> {
        debug_assert!(row < self.sampled, "row {row} of {}", self.sampled);
        self.read(&self.buffers.logits, row, 1, logits)
    }

    /// Those of rows that are scored, all of the last step, a few at a time.
    pub(crate) fn scored(&self, mut each: impl FnMut(usize, &[f32])) -> Result<(), CudaError> {
        let mut logits = Vec::new();
        for first in (0..self.scored).step_by(SCORED_ROWS) {
            let now = (self.scored - first).min(SCORED_ROWS);
            self.logits(self.sampled + first, now, &self.buffers.scored)?;
            self.read(&self.buffers.scored, 0, now, &mut logits)?;
            logits.chunks_exact(self.limits.vocab).enumerate().for_each(|(at, logits)| each(first + at, logits));
        }
        Ok(())
    }

    fn read(&self, buffer: &Buffer, row: usize, count: usize, logits: &mut Vec<f32>) -> Result<(), CudaError> {
        let mut bytes = vec![0; count * self.limits.vocab * F32];
        buffer.read(row * self.limits.vocab * F32, &mut bytes)?;
        *logits = Number::F32.read(&bytes);
        Ok(())
    }
}

/// Why a step was not computed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceStepError {
    #[error("a step that is none: {0}")]
    Step(String),
    #[error(transparent)]
    Device(#[from] CudaError),
}

impl Embedding {
    fn look_up(
        &self,
        device: &Device,
        told: &Buffer,
        batch: &Batch,
        hidden: &Buffer,
        scale: f32,
    ) -> Result<(), CudaError> {
        let table = self.0.whole().expect("a table is one weight");
        device.embed(table, told.at(batch.tokens()), batch.rows, hidden.all(), scale)
    }
}

/// Brings tensors to a device.
struct Loader<'a> {
    device: &'a Device,
    number: Number,
    config: &'a DecoderConfig,
    weights: &'a mut Weights,
}

impl Loader<'_> {
    fn layer(
        &mut self,
        tensors: &LayerTensors<'_>,
        layer: &config::LayerConfig,
        rope: Option<usize>,
        shape: &Shape,
    ) -> Result<DeviceLayer, LoadError> {
        let config = self.config;
        let (attention_norms, mlp_norms) = tensors.block_norms();
        let pages = KvPages::new(self.device, shape.kv, shape.pages, shape.page_len, config.kv_heads, config.head_dim);
        Ok(DeviceLayer {
            attention_norms: self.block_norms(&attention_norms)?,
            qkv: self.linear(&tensors.qkv())?,
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
            output: self.linear(&tensors.output())?,
            mlp_norms: self.block_norms(&mlp_norms)?,
            mlp: self.mlp(tensors, &layer.mlp)?,
            pages: pages.map_err(refused)?,
        })
    }

    fn mlp(&mut self, tensors: &LayerTensors<'_>, mlp: &MlpConfig) -> Result<DeviceMlp, LoadError> {
        match *mlp {
            MlpConfig::Dense { width } => {
                let (gate_up, down) = tensors.mlp("mlp", width);
                Ok(DeviceMlp::Dense { gate_up: self.linear(&gate_up)?, down: self.linear(&down)?, width })
            }
            MlpConfig::Experts { width, experts, per_token, weights } => {
                let router = self.linear(&tensors.router(experts))?;
                let products = (0..experts).map(|at| tensors.mlp(&format!("mlp.experts.{at}"), width));
                let (gate_ups, downs): (Vec<_>, Vec<_>) = products.unzip();
                Ok(DeviceMlp::Experts {
                    router,
                    gate_up: self.stacked(gate_ups)?,
                    down: self.stacked(downs)?,
                    width,
                    experts,
                    per_token,
                    among_chosen: weights == RouteWeights::OfChosen,
                })
            }
        }
    }

    /// The weights of products of equal shape behind each other.
    fn stacked(&mut self, products: Vec<Product>) -> Result<Weight, LoadError> {
        let inputs = products.first().map_or(0, |product| product.inputs);
        let names: Vec<_> = products.into_iter().flat_map(|product| product.parts).collect();
        let mut weights = self.weights.put_on_device(self.device, self.number, &names, inputs)?;
        match (weights.pop(), weights.is_empty()) {
            (Some(whole), true) => Ok(whole),
            _ => Err(LoadError::Unsupported(format!(
                "{} and its like are quantised in more than one way, which a GPU does not compute (backend.device = \"cpu\" does)",
                names[0].0
            ))),
        }
    }

    fn linear(&mut self, product: &Product) -> Result<DeviceLinear, LoadError> {
        let Product { parts, inputs, has_bias } = product;
        let weights: Vec<Weight> = self.weights.put_on_device(self.device, self.number, parts, *inputs)?;
        let mut bias = Vec::new();
        if *has_bias {
            for (name, outputs) in parts {
                bias.extend(self.weights.vector(&format!("{name}.bias"), *outputs)?);
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

    fn norm(&mut self, name: &str, width: usize) -> Result<Buffer, LoadError> {
        let weight = norm_weight(self.config, self.weights, name, width)?;
        self.upload(&weight)
    }

    fn upload(&self, values: &[f32]) -> Result<Buffer, LoadError> {
        let mut bytes = Vec::new();
        Number::F32.write(values, &mut bytes);
        self.device.allocate_with(&bytes).map_err(refused)
    }
}
