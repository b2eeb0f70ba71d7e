use super::windows::{sliding_layers, window, windows};
use crate::config::{
    Activation, Biases, DecoderConfig, Defaults, Fields, Head, LogitMap, NormPlacement, NormWeight, QkNorm, Rope,
    RopeFrame,
};

const WINDOW: Option<usize> = Some(4096);
/// Of the layers with a window in Gemma 3, where its file says nothing.
const LOCAL_THETA: f64 = 1e4;

/// Gemma 2: every second layer has a window, and scores and logits are softly capped.
pub(super) fn describe_2(fields: &Fields<'_>) -> Result<DecoderConfig, String> {
    let config = common(fields, &defaults())?;
    let sliding = sliding_layers(fields, config.layers.len(), |layer| layer.is_multiple_of(2))?;
    let windows = windows(&sliding, window(fields, WINDOW)?)?;
    Ok(DecoderConfig {
        score_cap: cap(fields, "attn_logit_softcapping", Some(50.0))?,
        logits: logits(fields, Some(30.0))?,
        ..config.with_windows(windows)
    })
}

/// Gemma 3: norms of queries and keys instead of the caps, and layers with a window have angles of their own.
pub(super) fn describe_3(fields: &Fields<'_>) -> Result<DecoderConfig, String> {
    if fields.has("attn_logit_softcapping") {
        return Err("invalid config: attn_logit_softcapping: Gemma 3 has none".to_owned());
    }
    let config = common(fields, &Defaults { rope_theta: 1e6, rope: Rope::parse_global, ..defaults() })?;
    let pattern = fields.optional_size("sliding_window_pattern", usize::MAX)?.unwrap_or(6);
    let sliding = sliding_layers(fields, config.layers.len(), |layer| !(layer + 1).is_multiple_of(pattern))?;
    let windows = windows(&sliding, window(fields, WINDOW)?)?;
    let frame = RopeFrame { head_dim: config.head_dim, positions: config.max_positions, theta: LOCAL_THETA };
    let local = Rope::parse_local(fields, &frame)?;
    let mut config = config.with_windows(windows);
    for layer in config.layers.iter_mut().filter(|layer| layer.window.is_some()) {
        layer.rope = Some(local.clone());
    }
    Ok(DecoderConfig { qk_norm: Some(QkNorm::PerHead), logits: logits(fields, None)?, ..config })
}

fn defaults() -> Defaults {
    Defaults {
        kv_heads: Some(4),
        head_dim: Some(256),
        head: Head::Tied,
        activation: ("hidden_activation", Activation::GeluTanh),
        ..Defaults::default()
    }
}

/// What Gemma 2 and 3 share: scaled embeddings, norms around each block whose weights are kept less one, scores of another scale.
fn common(fields: &Fields<'_>, defaults: &Defaults) -> Result<DecoderConfig, String> {
    if fields.flag("use_bidirectional_attention")? {
        return Err("invalid config: use_bidirectional_attention: only false is supported".to_owned());
    }
    let config = DecoderConfig::plain(fields, defaults)?;
    let query_scalar = fields.optional_positive("query_pre_attn_scalar")?.unwrap_or(256.0);
    Ok(DecoderConfig {
        embedding_scale: (config.hidden_size as f64).sqrt() as f32,
        biases: Biases { mlp: false, ..Biases::parse(fields)? },
        norms: NormPlacement::Around,
        norm_weight: NormWeight::FactorLessOne,
        score_scale: (1.0 / query_scalar.sqrt()) as f32,
        ..config
    })
}

fn cap(fields: &Fields<'_>, name: &str, absent: Option<f64>) -> Result<Option<f32>, String> {
    Ok(fields.nullable(name, absent, |fields, name| fields.positive(name))?.map(|cap| cap as f32))
}

fn logits(fields: &Fields<'_>, absent: Option<f64>) -> Result<LogitMap, String> {
    Ok(cap(fields, "final_logit_softcapping", absent)?.map_or(LogitMap::Plain, LogitMap::Capped))
}
