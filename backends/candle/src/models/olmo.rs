use crate::config::{Biases, DecoderConfig, Defaults, Fields, NormPlacement, QkNorm};

/// OLMo 2: norms of what leaves a block rather than of what enters it, and of all queries and all keys of a token.
pub(super) fn describe(fields: &Fields<'_>) -> Result<DecoderConfig, String> {
    Ok(DecoderConfig {
        biases: Biases { mlp: false, ..Biases::parse(fields)? },
        qk_norm: Some(QkNorm::AllHeads),
        norms: NormPlacement::After,
        ..DecoderConfig::plain(fields, &Defaults { norm_eps: 1e-5, ..Defaults::default() })?
    })
}
