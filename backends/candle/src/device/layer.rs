use tandem_core::LoadError;
use tandem_cuda::{
    Activation, Attention, Buffer, CudaError, Device, HeadNorms, Input, KvPages, Norm, Number, Rank, Routing, Rows,
    Scene, Weight,
};

use super::{DeviceLinear, batch::Batch, buffers::Buffers};
use crate::config::{self, DecoderConfig};

/// One layer of a decoder: an attention block and an MLP block, each added to the hidden state.
#[derive(Debug)]
pub(super) struct DeviceLayer {
    pub(super) attention_norms: BlockNorms,
    pub(super) qkv: DeviceLinear,
    pub(super) qk_norms: Option<QkNorms>,
    /// Which of the decoder's angles.
    pub(super) rope: Option<usize>,
    pub(super) window: Option<usize>,
    pub(super) output: DeviceLinear,
    pub(super) mlp_norms: BlockNorms,
    pub(super) mlp: DeviceMlp,
    pub(super) pages: KvPages,
}

#[derive(Debug)]
pub(super) enum DeviceMlp {
    Dense {
        gate_up: DeviceLinear,
        down: DeviceLinear,
        width: usize,
    },
    Experts {
        router: DeviceLinear,
        /// Of all experts, behind each other.
        gate_up: Weight,
        down: Weight,
        width: usize,
        experts: usize,
        per_token: usize,
        among_chosen: bool,
    },
}

/// The weights of the norms of a block, before and after it.
#[derive(Debug, Default)]
pub(super) struct BlockNorms {
    pub(super) before: Option<Buffer>,
    pub(super) after: Option<Buffer>,
}

#[derive(Debug)]
pub(super) struct QkNorms {
    pub(super) queries: Buffer,
    pub(super) keys: Buffer,
    pub(super) per_head: bool,
}

/// What a block made and is still to be added to the hidden state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending<'a> {
    bias: Option<&'a Buffer>,
    norm: Option<&'a Buffer>,
}

/// What all layers of a model have in common.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) device: Device,
    pub(super) rank: Rank,
    pub(super) number: Number,
    pub(super) attention: Attention,
    pub(super) heads: usize,
    pub(super) hidden: usize,
    pub(super) eps: f32,
    pub(super) residual_scale: f32,
    pub(super) activation: Activation,
    /// Pairs of each of the model's angles.
    pub(super) pairs: Vec<usize>,
    /// Pages of the longest sequence.
    pub(super) table: usize,
}

impl Common {
    pub(super) fn new(
        rank: &Rank,
        number: Number,
        config: &DecoderConfig,
        pairs: Vec<usize>,
        table: usize,
    ) -> Result<Self, LoadError> {
        let &DecoderConfig { heads, kv_heads, head_dim, score_scale, score_cap, .. } = config;
        let device = rank.device();
        let attention =
            Attention::new(device, heads, kv_heads, head_dim, score_scale, score_cap).map_err(super::refused)?;
        Ok(Self {
            device: device.clone(),
            rank: rank.clone(),
            number,
            attention,
            heads,
            hidden: config.hidden_size,
            eps: config.norm_eps,
            residual_scale: config.residual_scale,
            activation: match config.activation {
                config::Activation::Silu => Activation::Silu,
                config::Activation::GeluTanh => Activation::GeluTanh,
            },
            pairs,
            table,
        })
    }

    /// The hidden state with what is pending, about to be normalised.
    pub(super) fn rows<'a>(&self, buffers: &'a Buffers, rows: usize, pending: Option<Pending<'a>>) -> Rows<'a> {
        let state = Rows::new(buffers.hidden.all(), rows, self.hidden, self.eps);
        match pending {
            Some(Pending { bias, norm }) => state.add(buffers.delta.all(), bias, norm, self.residual_scale),
            None => state,
        }
    }
}

impl DeviceLayer {
    /// Adds what is pending, and leaves what the MLP made.
    pub(super) fn forward<'a>(
        &'a self,
        common: &Common,
        batch: &Batch,
        told: &Buffer,
        buffers: &'a Buffers,
        pending: Option<Pending<'a>>,
    ) -> Result<Pending<'a>, CudaError> {
        let Common { device, rank, number, attention, .. } = common;
        let (rows, number) = (batch.rows, *number);
        let Buffers { normed, qkv, attended, delta, gate_up, gated, scratch, .. } = buffers;

        let input = |x: &'a Buffer| Input { x: x.all(), number, rows };
        let state = common.rows(buffers, rows, pending);
        state.enter(device, self.attention_norms.before.as_ref(), normed.all(), number)?;
        self.qkv.forward(device, input(normed), qkv.all(), scratch)?;
        let norms = self.qk_norms.as_ref().map(|norms| HeadNorms {
            queries: Norm { weight: &norms.queries, eps: common.eps },
            keys: &norms.keys,
            per_head: norms.per_head,
        });
        let turns = self.rope.map(|rope| (buffers.turns[rope].all(), common.pairs[rope]));
        device.rope_store(qkv.all(), rows, common.heads, self.qkv.bias(), norms, turns, &self.pages, told.all())?;
        let scene = Scene {
            qkv: qkv.all(),
            rows,
            pages: &self.pages,
            window: self.window,
            tables: told.at(batch.tables()),
            table_stride: common.table,
            sequences: batch.sequences,
            out: attended.all(),
            number,
        };
        let (sequences, positions) = (told.at(batch.sequence_of_row()), told.at(batch.positions()));
        attention.rows(device, &scene, told.at(batch.single_rows()), batch.single, sequences, positions)?;
        attention.prompts(device, &scene, told.at(batch.run_lists()), batch.runs)?;
        self.output.forward(device, input(attended), delta.all(), scratch)?;
        // Each rank has made what its heads add to every row. A bias is added once, to the sum.
        rank.all_reduce(delta.all(), rows * common.hidden)?;

        let pending = Pending { bias: self.output.bias(), norm: self.attention_norms.after.as_ref() };
        let state = common.rows(buffers, rows, Some(pending));
        state.enter(device, self.mlp_norms.before.as_ref(), normed.all(), number)?;
        let bias = match &self.mlp {
            DeviceMlp::Dense { gate_up: first, down, width } => {
                first.forward(device, input(normed), gate_up.all(), scratch)?;
                device.gated(common.activation, gate_up.all(), first.bias(), rows, *width, gated.all(), number)?;
                down.forward(device, input(gated), delta.all(), scratch)?;
                down.bias()
            }
            DeviceMlp::Experts { router, gate_up: first, down, width, experts, per_token, among_chosen } => {
                let room = buffers.experts.as_ref().expect("there is room for experts where a layer has them");
                let inputs = [common.hidden, *width];
                let routing = Routing {
                    group: Routing::group(rows, *experts, *per_token, number, inputs),
                    rows,
                    experts: *experts,
                    per_token: *per_token,
                    chosen: room.chosen.all(),
                    shares: room.shares.all(),
                    groups: room.groups.all(),
                };
                let pairs = rows * per_token;
                router.forward(device, input(normed), room.scores.all(), scratch)?;
                device.route(room.scores.all(), *among_chosen, &routing)?;
                device.multiply_experts(first, input(normed), &routing, gate_up.all())?;
                device.gated(common.activation, gate_up.all(), None, pairs, *width, gated.all(), number)?;
                let of_pairs = Input { x: gated.all(), number, rows: pairs };
                device.multiply_experts(down, of_pairs, &routing, room.outputs.all())?;
                device.join_experts(room.outputs.all(), &routing, common.hidden, delta.all())?;
                None
            }
        };
        rank.all_reduce(delta.all(), rows * common.hidden)?;
        Ok(Pending { bias, norm: self.mlp_norms.after.as_ref() })
    }
}
