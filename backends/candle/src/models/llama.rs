use crate::config::{Biases, DecoderConfig, Defaults, Fields};

/// Llama 2 and 3, and the many models that were made in its image.
pub(super) fn describe(fields: &Fields<'_>) -> Result<DecoderConfig, String> {
    Ok(DecoderConfig { biases: Biases::parse(fields)?, ..DecoderConfig::plain(fields, &Defaults::default())? })
}
