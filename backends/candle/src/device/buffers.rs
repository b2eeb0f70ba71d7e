use tandem_cuda::{Buffer, CudaError, Device, Number, Routing};

use super::Split;
use crate::config::{DecoderConfig, MlpConfig};

const F32: usize = 4;
/// For quantised weights as plain numbers, some outputs at a time.
const SCRATCH: usize = 64 << 20;
/// Rows of logits that are computed at a time for log-probabilities of prompts.
pub(super) const SCORED_ROWS: usize = 32;

/// Activations, which live from step to step.
#[derive(Debug)]
pub(super) struct Buffers {
    pub(super) hidden: Buffer,
    pub(super) normed: Buffer,
    pub(super) qkv: Buffer,
    pub(super) attended: Buffer,
    pub(super) delta: Buffer,
    pub(super) gate_up: Buffer,
    pub(super) gated: Buffer,
    /// Rows that logits are made of.
    pub(super) wanted: Buffer,
    pub(super) logits: Buffer,
    pub(super) scored: Buffer,
    /// What ranks made of logits; None where there is but one.
    pub(super) parts: Option<Buffer>,
    /// Cosines and sines, for each of the model's angles.
    pub(super) turns: Vec<Buffer>,
    pub(super) scratch: Buffer,
    /// Where a layer of the model has experts.
    pub(super) experts: Option<ExpertBuffers>,
}

/// What the rows of a step go through experts with.
#[derive(Debug)]
pub(super) struct ExpertBuffers {
    pub(super) scores: Buffer,
    pub(super) chosen: Buffer,
    pub(super) shares: Buffer,
    pub(super) groups: Buffer,
    /// What each expert made of each of its rows.
    pub(super) outputs: Buffer,
}

/// Bytes of each.
struct Sizes {
    hidden: usize,
    normed: usize,
    qkv: usize,
    attended: usize,
    gate_up: usize,
    gated: usize,
    logits: usize,
    scored: usize,
    parts: usize,
    turns: Vec<usize>,
    /// Scores, pairs of rows and experts, groups of them, and what experts make.
    experts: Option<[usize; 4]>,
}

impl Sizes {
    /// For steps of `rows` tokens, of which `sampled` are sampled after, with what a rank has of a model.
    fn new(config: &DecoderConfig, pairs: &[usize], rows: usize, sampled: usize, number: Number, split: Split) -> Self {
        let (ranks, vocab) = (split.ranks(), config.vocab_size);
        // The first rank has those of all, and what comes of them.
        let (gathered, logits) = if split.rank() == 0 { (ranks, vocab) } else { (1, 0) };
        let (hidden, q) = (config.hidden_size, config.q_width());
        let mlp = config.layers.iter().map(|layer| match layer.mlp {
            MlpConfig::Dense { width } => width,
            MlpConfig::Experts { width, per_token, .. } => width * per_token,
        });
        let mlp = mlp.max().unwrap_or(0);
        let number = number.bytes();
        let experts = config.layers.iter().filter_map(|layer| match layer.mlp {
            MlpConfig::Dense { .. } => None,
            MlpConfig::Experts { experts, per_token, .. } => Some([
                rows * experts * F32,
                rows * per_token * F32,
                Routing::group_bytes(rows, experts, per_token),
                rows * per_token * hidden * F32,
            ]),
        });
        Self {
            // Each as large as the layer needs that needs the most of it.
            experts: experts.reduce(|a, b| std::array::from_fn(|at| a[at].max(b[at]))),
            hidden: rows * hidden * F32,
            normed: rows * hidden * number,
            qkv: rows * (q + 2 * config.kv_width()) * F32,
            attended: rows * q * number,
            gate_up: rows * 2 * mlp * F32,
            gated: rows * mlp * number,
            logits: sampled * logits * F32,
            scored: SCORED_ROWS * logits * F32,
            parts: if ranks == 1 { 0 } else { gathered * sampled.max(SCORED_ROWS) * vocab.div_ceil(ranks) * F32 },
            turns: pairs.iter().map(|pairs| rows * pairs * 2 * F32).collect(),
        }
    }
}

impl Buffers {
    pub(super) fn new(
        device: &Device,
        config: &DecoderConfig,
        pairs: &[usize],
        rows: usize,
        sampled: usize,
        number: Number,
        split: Split,
    ) -> Result<Self, CudaError> {
        let sizes = Sizes::new(config, pairs, rows, sampled, number, split);
        Ok(Self {
            hidden: device.allocate(sizes.hidden)?,
            normed: device.allocate(sizes.normed)?,
            qkv: device.allocate(sizes.qkv)?,
            attended: device.allocate(sizes.attended)?,
            delta: device.allocate(sizes.hidden)?,
            gate_up: device.allocate(sizes.gate_up)?,
            gated: device.allocate(sizes.gated)?,
            wanted: device.allocate(sizes.normed)?,
            logits: device.allocate(sizes.logits)?,
            scored: device.allocate(sizes.scored)?,
            parts: (sizes.parts > 0).then(|| device.allocate(sizes.parts)).transpose()?,
            turns: sizes.turns.iter().map(|bytes| device.allocate(*bytes)).collect::<Result<_, _>>()?,
            scratch: device.allocate(SCRATCH.min(scratch(config, number)))?,
            experts: match sizes.experts {
                None => None,
                Some([scores, pairs, groups, outputs]) => Some(ExpertBuffers {
                    scores: device.allocate(scores)?,
                    chosen: device.allocate(pairs)?,
                    shares: device.allocate(pairs)?,
                    groups: device.allocate(groups)?,
                    outputs: device.allocate(outputs)?,
                }),
            },
        })
    }

    /// Bytes of all of them.
    pub(super) fn bytes(
        config: &DecoderConfig,
        pairs: &[usize],
        rows: usize,
        sampled: usize,
        number: Number,
        split: Split,
    ) -> usize {
        let sizes = Sizes::new(config, pairs, rows, sampled, number, split);
        let Sizes { hidden, normed, qkv, attended, gate_up, gated, logits, scored, parts, turns, experts } = sizes;
        2 * (hidden + normed)
            + qkv
            + attended
            + gate_up
            + gated
            + logits
            + scored
            + parts
            + turns.iter().sum::<usize>()
            + experts.map_or(0, |[scores, pairs, groups, outputs]| scores + 2 * pairs + groups + outputs)
            + SCRATCH.min(scratch(config, number))
    }
}

/// Bytes of the largest weight as plain numbers.
fn scratch(config: &DecoderConfig, number: Number) -> usize {
    let mlp = config.layers.iter().map(|layer| match layer.mlp {
        MlpConfig::Dense { width } | MlpConfig::Experts { width, .. } => width,
    });
    let widest = mlp.max().unwrap_or(0).max(config.vocab_size).max(config.q_width() + 2 * config.kv_width());
    widest * config.hidden_size.max(config.q_width()) * number.bytes()
}
