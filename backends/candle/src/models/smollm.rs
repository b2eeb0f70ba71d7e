use super::windows::{flagged_window, sliding_layers, windows};
use crate::config::{Biases, DecoderConfig, Defaults, Fields, Head};

/// SmolLM 3: Llama without positions in every fourth layer.
pub(super) fn describe(fields: &Fields<'_>) -> Result<DecoderConfig, String> {
    let defaults = Defaults { kv_heads: Some(4), rope_theta: 2e6, head: Head::Tied, ..Defaults::default() };
    let config = DecoderConfig::plain(fields, &defaults)?;
    let layers = config.layers.len();
    let rotated = match fields.optional::<Vec<u8>>("no_rope_layers")? {
        // Despite its name, the list has a one for the layers that are rotated.
        Some(list) if list.len() == layers => list.into_iter().map(|rotated| rotated != 0).collect(),
        Some(list) => return Err(format!("invalid config: no_rope_layers: {} for {layers} layers", list.len())),
        None => {
            let interval = fields.optional_size("no_rope_layer_interval", usize::MAX)?.unwrap_or(4);
            (1..=layers).map(|layer| !layer.is_multiple_of(interval)).collect::<Vec<_>>()
        }
    };
    let window = flagged_window(fields, None)?;
    let sliding = sliding_layers(fields, layers, |layer| window.is_some() && !rotated[layer])?;
    let mut config = config.with_windows(windows(&sliding, window)?);
    for (layer, rotated) in config.layers.iter_mut().zip(rotated) {
        layer.rope = layer.rope.take().filter(|_| rotated);
    }
    Ok(DecoderConfig { biases: Biases::parse(fields)?, ..config })
}
