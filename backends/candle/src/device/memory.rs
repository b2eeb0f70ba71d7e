use tandem_core::MemoryNeeds;
use tandem_cuda::{Attention, MOST_EXPERTS, MOST_TOKENS, MOST_WIDTH, Number};
use tandem_kernels::Format;

use super::{Split, batch, buffers::Buffers};
use crate::{
    config::{DecoderConfig, MlpConfig},
    models::distinct_ropes,
    settings::{CandleSettings, Dtype, KvType},
    weights::Weights,
};

/// For what a driver and its libraries take once they are used: code, stacks, and the workspace of products.
const RESERVE: u64 = 512 << 20;

/// What a model takes of a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceNeeds {
    pub(crate) weights: u64,
    /// Of one page, over all layers.
    pub(crate) page: u64,
    pub(crate) compute: u64,
}

/// What numbers that are not quantised are on the device. Quantised weights meet BF16, but where F32 is asked for.
pub(crate) fn number(settings: &CandleSettings, weights: &Weights) -> Number {
    let formats = weights.formats();
    let is_plain = |format: &Format| matches!(format, Format::F32 | Format::F16 | Format::Bf16);
    let quantized = formats.keys().any(|format| !is_plain(format));
    match settings.dtype {
        Dtype::F32 => Number::F32,
        Dtype::Bf16 => Number::Bf16,
        Dtype::F16 | Dtype::Auto if quantized => Number::Bf16,
        Dtype::F16 => Number::F16,
        // Vectors, such as norms, are counted as F32 and are few.
        Dtype::Auto => match formats.iter().max_by_key(|(_, bytes)| **bytes) {
            Some((Format::F16, _)) => Number::F16,
            Some((Format::F32, _)) => Number::F32,
            _ => Number::Bf16,
        },
    }
}

/// What K and V are on a device whose other numbers are `number`.
pub(crate) fn kv_number(settings: &CandleSettings, number: Number) -> Number {
    match settings.kv_type {
        KvType::Auto => number,
        KvType::Fp8 => Number::F8,
    }
}

impl DeviceNeeds {
    /// On a device of so many processors, of weights of so many bytes. Where there are several `ranks`, `config` and `weights` are of what one
    /// has, and the needs those of the first, which has the most.
    pub(crate) fn new(
        processors: u32,
        settings: &CandleSettings,
        config: &DecoderConfig,
        weights: u64,
        number: Number,
        ranks: usize,
    ) -> Self {
        let (rows, parallel) = (settings.max_step_tokens as usize, settings.parallel as usize);
        let page_numbers = settings.block_size as usize * config.kv_width() * 2 * config.layers.len();
        let pairs: Vec<_> = distinct_ropes(config).iter().map(|rope| rope.rotary_dim / 2).collect();
        let context = settings.context.unwrap_or(config.max_positions) as usize;
        let told = (rows * 8 + parallel * (context.div_ceil(settings.block_size as usize) + 8)) * 4;
        let sampled = batch::most_sampled(parallel, rows);
        let buffers = Buffers::bytes(config, &pairs, rows, sampled, number, Split::new(0, ranks)) + told;
        let attention = Attention::bytes(processors, config.heads, config.kv_heads, config.head_dim);
        Self {
            weights,
            page: (page_numbers * kv_number(settings, number).bytes()) as u64,
            compute: (buffers + attention) as u64 + RESERVE,
        }
    }

    pub(crate) fn with_kv(&self, pages: u64) -> MemoryNeeds {
        MemoryNeeds { weights: self.weights, kv: pages.saturating_mul(self.page), compute: self.compute }
    }
}

/// What may be used of a device's memory that has so much free and so much in all: what is in use already counts.
pub(crate) fn room((free, all): (u64, u64), fraction: f64) -> u64 {
    let share = (all as f64 * fraction) as u64;
    free.min(share.saturating_sub(all - free))
}

/// Tokens of the KV cache: as many as the settings say, or as fit into so much room beside the rest; never more than all sequences at their
/// longest, and not fewer than one has.
pub(crate) fn kv_tokens(settings: &CandleSettings, config: &DecoderConfig, needs: &DeviceNeeds, room: u64) -> u32 {
    let context = settings.context.unwrap_or(config.max_positions);
    let page_len = u64::from(settings.block_size);
    let one = u64::from(context).div_ceil(page_len);
    let most = one * u64::from(settings.parallel);
    let fitting = room.saturating_sub(needs.with_kv(0).total()) / needs.page.max(1);
    let pages = match settings.kv_tokens {
        Some(tokens) => u64::from(tokens).div_ceil(page_len),
        None => fitting.min(most).max(one),
    };
    u32::try_from(pages * page_len).unwrap_or(u32::MAX / settings.block_size * settings.block_size)
}

/// Why a device does not compute a model.
pub(crate) fn unsupported(config: &DecoderConfig) -> Option<String> {
    let more = |count: usize, most: usize, what: &str| (count > most).then(|| format!("{what}, more than {most},"));
    let (tokens, width) = (config.vocab_size, config.hidden_size);
    let of_rows = more(tokens, MOST_TOKENS, &format!("{tokens} tokens"))
        .or_else(|| more(width, MOST_WIDTH, &format!("hidden states of {width} numbers")));
    let of_layers = config.layers.iter().find_map(|layer| match layer.mlp {
        MlpConfig::Dense { .. } => None,
        MlpConfig::Experts { experts, .. } if experts > MOST_EXPERTS => {
            Some(format!("{experts} experts in a layer, more than {MOST_EXPERTS},"))
        }
        MlpConfig::Experts { .. } => config.biases.mlp.then(|| "biases of experts".to_owned()),
    });
    of_rows
        .or(of_layers)
        .map(|reason| format!("{reason} are not computed on a GPU (backend.device = \"cpu\" has no such bound)"))
}
