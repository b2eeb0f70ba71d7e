use std::collections::{BTreeMap, BTreeSet};

use tandem_core::{AheadStep, LoadError};
use tandem_cuda::{
    Buffer, Copying, CudaError, Device, Graph, Input, LogitMap, Number, Outbox, Pinned, Rank, Rows, Turns, Weight,
};

use super::{
    DeviceLinear, Split, batch,
    batch::{Batch, Limits, is_decoding},
    buffers::{Buffers, SCORED_ROWS},
    layer::{Common, DeviceLayer},
    loader::Loader,
    refused,
};
use crate::{
    config::{self, DecoderConfig, Head},
    layers::RotaryEmbedding,
    models::{Product, distinct_ropes, is_derived},
    weights::Weights,
};

const F32: usize = 4;
const I32: usize = 4;

/// A decoder on a device, with its KV cache; or a rank's share of one.
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
    /// Of a rank, its share of the logits.
    head: DeviceLinear,
    logit_map: LogitMap,
    buffers: Buffers,
    /// What a step is told, and what it is told through.
    told: Buffer,
    telling: Outbox,
    /// The token that was chosen last for each slot.
    chosen: Buffer,
    /// Where rows of logits come to on the host; those that nobody has.
    landings: Vec<Pinned>,
    /// Rows of a step of decoding, at most.
    most_decoding: usize,
    /// Rows of the last step that tokens are sampled after, and those behind them that are scored.
    sampled: usize,
    scored: usize,
}

/// The vectors of tokens, which may be the head as well.
#[derive(Debug)]
struct Embedding(DeviceLinear);

/// A step as all ranks are told of it.
#[derive(Debug)]
pub(super) struct Planned {
    batch: Batch,
    /// The rows that it was made to have, where it is one of decoding.
    bucket: Option<usize>,
    sampled: usize,
}

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
    /// Takes its weights: of the model that `config` describes what the rank has of it, which `part` describes.
    pub(crate) fn load(
        rank: &Rank,
        number: Number,
        (config, part): (&DecoderConfig, &DecoderConfig),
        shape: Shape,
        mut weights: Weights,
    ) -> Result<Self, LoadError> {
        let (device, split) = (rank.device(), Split::new(rank.rank(), rank.ranks()));
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
        let common = Common::new(rank, number, part, pairs.clone(), table)?;
        let mut loader = Loader { device, number, split, config, part, weights: &mut weights };
        let vocabulary = |name: &str| Product {
            parts: vec![(name.to_owned(), config.vocab_size)],
            inputs: config.hidden_size,
            has_bias: false,
        };
        let embedding = Embedding(loader.linear(&Split::whole(&vocabulary("model.embed_tokens")), false)?);
        let layers = config.layers.iter().enumerate().map(|(at, layer)| {
            let rope = layer.rope.as_ref().map(|rope| {
                ropes.iter().position(|known| *known == rope).expect("the decoder has the angles of all layers")
            });
            loader.layer(at, rope, &shape)
        });
        let layers = layers.collect::<Result<Vec<_>, _>>()?;
        let norm = loader.norm("model.norm", config.hidden_size)?;
        let head = match config.head {
            Head::Tied => DeviceLinear::new(vec![embedding.table().part(rank.share(config.vocab_size))], None),
            Head::Own => loader.linear(&split.head(&vocabulary("lm_head")), false)?,
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
        let flash = common.attention.flash_keys(number, shape.kv, shape.page_len);
        if device.has_flash_attention() && flash.is_none() {
            tracing::warn!(
                block_size = shape.page_len,
                "prompts are not computed by FlashAttention's kernels, which need a block_size of a multiple of 32, heads of 64, 96, 128 or \
                 256 numbers, and a cache of the same numbers as the weights, BF16 or F16"
            );
        }
        let rows = shape.max_step_tokens;
        let sampled = batch::most_sampled(shape.parallel, rows);
        let buffers = Buffers::new(device, part, &pairs, rows, sampled, number, split).map_err(refused)?;
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
            landings: Vec::new(),
            most_decoding: sampled,
            sampled: 0,
            scored: 0,
        })
    }

    /// Where it computes, and with whom.
    pub(super) fn rank(&self) -> &Rank {
        &self.common.rank
    }

    /// Lays out one pass, the same for all ranks. Steps of decoding are made as long as the next of a few sizes.
    pub(super) fn plan(&self, step: &AheadStep<'_>) -> Result<Planned, DeviceStepError> {
        let used = step.tokens();
        let bucket = if is_decoding(step) { batch::bucket(used, self.most_decoding) } else { None };
        let batch = Batch::new(step, bucket.unwrap_or(used), &self.limits).map_err(DeviceStepError::Step)?;
        Ok(Planned { batch, bucket, sampled: step.sampled_rows() })
    }

    /// Asks for one pass: fills the cache with the K and V of all tokens, and makes the logits of the rows that tokens are sampled after. Returns
    /// while the device computes.
    ///
    /// Steps of decoding are the same work again and again: what they ask for is written down, so that the host asks once for all of it.
    pub(super) fn forward(&mut self, planned: &Planned) -> Result<(), CudaError> {
        let Planned { batch, bucket, sampled } = planned;
        // A graph does not ask whether those that it meets are still there.
        self.rank().check()?;
        self.telling.send(&self.told, batch.bytes(), |bytes| batch.write(bytes))?;
        self.sampled = *sampled;
        self.scored = batch.scored;
        let &Some(bucket) = bucket else { return self.compute(batch) };
        if let Some(graph) = self.graphs.get(&bucket) {
            return graph.replay();
        }
        self.compute(batch)?;
        // The places of all operands depend on the number of rows alone, if that is also the number of sequences.
        if !self.warm.insert(bucket) {
            let graph = self.common.device.record(|| self.compute(batch))?;
            self.graphs.insert(bucket, graph);
        }
        Ok(())
    }

    fn compute(&self, batch: &Batch) -> Result<(), CudaError> {
        let Self { common, buffers, told, .. } = self;
        let Common { device, rank, number, .. } = common;
        let rows = batch.rows;
        // Only the first rank has chosen.
        rank.broadcast(self.chosen.all(), self.limits.slots)?;
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

    /// Of some of the wanted rows, on the first rank. Each makes its share of them.
    fn logits(&self, first: usize, count: usize, out: &Buffer) -> Result<(), CudaError> {
        let Common { device, rank, number, hidden, .. } = &self.common;
        let (vocab, scratch) = (self.limits.vocab, &self.buffers.scratch);
        if count == 0 {
            return Ok(());
        }
        let x = self.buffers.wanted.at(first * hidden * number.bytes());
        let input = Input { x, number: *number, rows: count };
        match &self.buffers.parts {
            None => self.head.forward(device, input, out.all(), scratch)?,
            Some(parts) => {
                let longest = vocab.div_ceil(rank.ranks());
                self.head.forward_apart(device, input, parts.all(), longest, scratch)?;
                rank.gather(parts.all(), count * longest, parts.all())?;
                if rank.rank() > 0 {
                    return Ok(());
                }
                device.join_parts(parts.all(), rank.ranks(), count, vocab, out.all())?;
            }
        }
        device.map_logits(self.logit_map, out.all(), count * vocab)
    }

    /// The logits on the device, of the rows that tokens are sampled after, and where the next step looks for what is chosen from them.
    pub(crate) fn sampled_logits(&self) -> (&Device, &Buffer, &Buffer) {
        (&self.common.device, &self.buffers.logits, &self.chosen)
    }

    /// Those of some of these rows, all of which are on their way at once. To be given back.
    pub(crate) fn rows(&mut self, rows: &[usize]) -> Result<Vec<Pinned>, CudaError> {
        let bytes = self.limits.vocab * F32;
        let Self { common, buffers, landings, .. } = self;
        let asked = rows.iter().map(|&row| {
            debug_assert!(row < self.sampled, "row {row} of {}", self.sampled);
            let landing = landings.pop().map_or_else(|| common.device.pin(bytes), Ok)?;
            buffers.logits.read_later(row * bytes, landing, bytes)
        });
        let asked = asked.collect::<Result<Vec<_>, _>>()?;
        asked.into_iter().map(Copying::wait).collect()
    }

    /// Takes back what rows came to.
    pub(crate) fn give_back(&mut self, rows: Vec<Pinned>) {
        self.landings.extend(rows);
    }

    /// Those of rows that are scored, all of the last step, a few at a time. All ranks have to be asked, and the first is told.
    pub(crate) fn scored(&self, mut each: impl FnMut(usize, &[f32])) -> Result<(), CudaError> {
        let mut logits = Vec::new();
        for first in (0..self.scored).step_by(SCORED_ROWS) {
            let now = (self.scored - first).min(SCORED_ROWS);
            self.logits(self.sampled + first, now, &self.buffers.scored)?;
            if self.common.rank.rank() > 0 {
                continue;
            }
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
    fn table(&self) -> &Weight {
        self.0.whole().expect("a table is one weight")
    }

    fn look_up(
        &self,
        device: &Device,
        told: &Buffer,
        batch: &Batch,
        hidden: &Buffer,
        scale: f32,
    ) -> Result<(), CudaError> {
        device.embed(self.table(), told.at(batch.tokens()), batch.rows, hidden.all(), scale)
    }
}
