use super::windows::window;
use crate::config::{DecoderConfig, Defaults, Fields};

/// Mistral: Llama with a window in all layers, unless the file says null.
pub(super) fn describe(fields: &Fields<'_>) -> Result<DecoderConfig, String> {
    let config = DecoderConfig::plain(fields, &Defaults { kv_heads: Some(8), ..Defaults::default() })?;
    let windows = vec![window(fields, Some(4096))?; config.layers.len()];
    Ok(config.with_windows(windows))
}
