use super::windows::{flagged_window, sliding_layers, windows};
use crate::config::{Biases, DecoderConfig, Defaults, Fields, MAX_MLP, MlpConfig, QkNorm, RouteWeights};

const MAX_EXPERTS: usize = 1 << 12;
const WINDOW: Option<usize> = Some(4096);

/// Qwen 2 and 2.5: Llama with biases of Q, K and V, and a window in the upper layers.
pub(super) fn describe_2(fields: &Fields<'_>) -> Result<DecoderConfig, String> {
    let config = upper_windows(fields, &Defaults { kv_heads: Some(32), ..Defaults::default() })?;
    Ok(DecoderConfig { biases: Biases { qkv: true, output: false, mlp: false }, ..config })
}

/// Qwen 3: norms of queries and keys instead.
pub(super) fn describe_3(fields: &Fields<'_>) -> Result<DecoderConfig, String> {
    let defaults = Defaults { kv_heads: Some(32), head_dim: Some(128), ..Defaults::default() };
    Ok(DecoderConfig {
        biases: attention_biases(fields)?,
        qk_norm: Some(QkNorm::PerHead),
        ..upper_windows(fields, &defaults)?
    })
}

/// Qwen 3 with experts: the window, if any, is in all layers.
pub(super) fn describe_3_moe(fields: &Fields<'_>) -> Result<DecoderConfig, String> {
    let defaults = Defaults { kv_heads: Some(4), ..Defaults::default() };
    let mut config = DecoderConfig::plain(fields, &defaults)?;
    config.biases = attention_biases(fields)?;
    config.qk_norm = Some(QkNorm::PerHead);
    let window = flagged_window(fields, WINDOW)?;
    let experts = experts(fields)?;
    let dense = fields.optional::<Vec<usize>>("mlp_only_layers")?.unwrap_or_default();
    let step = fields.optional_size("decoder_sparse_step", config.layers.len())?.unwrap_or(1);
    for (at, layer) in config.layers.iter_mut().enumerate() {
        layer.window = window;
        if !dense.contains(&at) && (at + 1).is_multiple_of(step) {
            layer.mlp = experts.clone();
        }
    }
    Ok(config)
}

/// The plain decoder, with a window in the layers from `max_window_layers` on.
fn upper_windows(fields: &Fields<'_>, defaults: &Defaults) -> Result<DecoderConfig, String> {
    let config = DecoderConfig::plain(fields, defaults)?;
    let window = flagged_window(fields, WINDOW)?;
    let first = fields.optional::<usize>("max_window_layers")?.unwrap_or(28);
    let sliding = sliding_layers(fields, config.layers.len(), |layer| window.is_some() && layer >= first)?;
    Ok(config.with_windows(windows(&sliding, window)?))
}

fn attention_biases(fields: &Fields<'_>) -> Result<Biases, String> {
    Ok(Biases { mlp: false, ..Biases::parse(fields)? })
}

fn experts(fields: &Fields<'_>) -> Result<MlpConfig, String> {
    // Newer files call it by the second name.
    let name = if fields.has("num_experts") { "num_experts" } else { "num_local_experts" };
    let experts = fields.size(name, MAX_EXPERTS)?;
    Ok(MlpConfig::Experts {
        width: fields.size("moe_intermediate_size", MAX_MLP)?,
        experts,
        per_token: fields.size("num_experts_per_tok", experts)?,
        weights: if fields.flag("norm_topk_prob")? { RouteWeights::OfChosen } else { RouteWeights::OfAll },
    })
}
