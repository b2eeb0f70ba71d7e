use crate::config::{Biases, DecoderConfig, Defaults, Fields, LogitMap};

/// Granite 3 and 4 without experts: Llama with numbers that scale embeddings, scores, residuals and logits.
pub(super) fn describe(fields: &Fields<'_>) -> Result<DecoderConfig, String> {
    let factor = |name: &str| Ok::<_, String>(fields.optional_positive(name)?.unwrap_or(1.0) as f32);
    Ok(DecoderConfig {
        biases: Biases::parse(fields)?,
        embedding_scale: factor("embedding_multiplier")?,
        score_scale: factor("attention_multiplier")?,
        residual_scale: factor("residual_multiplier")?,
        logits: LogitMap::Divided(factor("logits_scaling")?),
        ..DecoderConfig::plain(fields, &Defaults::default())?
    })
}
