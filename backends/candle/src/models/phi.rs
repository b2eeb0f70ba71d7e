use super::windows::window;
use crate::config::{DecoderConfig, Defaults, Fields, Projections, Rope, RopeScaling};

/// Phi 3 and 4: Llama with fused projections in the file, and angles that the context chooses, for a part of each head.
pub(super) fn describe(fields: &Fields<'_>) -> Result<DecoderConfig, String> {
    let defaults = Defaults { norm_eps: 1e-5, rope: Rope::parse_partial, ..Defaults::default() };
    let config = DecoderConfig::plain(fields, &defaults)?;
    for rope in config.layers.iter().filter_map(|layer| layer.rope.as_ref()) {
        match rope.scaling {
            RopeScaling::None | RopeScaling::Long { .. } => {}
            RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } | RopeScaling::Yarn { .. } => {
                return Err("invalid config: rope_type: Phi 3 has default and longrope only".to_owned());
            }
        }
    }
    let windows = vec![window(fields, None)?; config.layers.len()];
    Ok(DecoderConfig { projections: Projections::Fused, ..config.with_windows(windows) })
}
