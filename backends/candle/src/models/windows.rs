use crate::config::Fields;

/// Wider than any context, narrower than what could overflow beside a position.
const MAX_WINDOW: usize = 1 << 30;

/// `sliding_window`, or `absent` where the file does not mention it.
pub(super) fn window(fields: &Fields<'_>, absent: Option<usize>) -> Result<Option<usize>, String> {
    fields.nullable("sliding_window", absent, |fields, name| fields.size(name, MAX_WINDOW))
}

/// The window for the families that have it only where a flag says so.
pub(super) fn flagged_window(fields: &Fields<'_>, absent: Option<usize>) -> Result<Option<usize>, String> {
    if fields.flag("use_sliding_window")? { window(fields, absent) } else { Ok(None) }
}

/// The kind of each layer: by `layer_types`, or by `slides` in files that were written before there was that field.
pub(super) fn sliding_layers(
    fields: &Fields<'_>,
    layers: usize,
    slides: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, String> {
    let Some(kinds) = fields.optional::<Vec<String>>("layer_types")? else {
        return Ok((0..layers).map(slides).collect());
    };
    if kinds.len() != layers {
        return Err(format!("invalid config: layer_types: {} for {layers} layers", kinds.len()));
    }
    let slides = kinds.iter().map(|kind| match kind.as_str() {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        other => Err(format!(
            "invalid config: layer_types: {other} is not supported; known: full_attention, sliding_attention"
        )),
    });
    slides.collect()
}

/// Gives the window to the layers that slide.
pub(super) fn windows(sliding: &[bool], window: Option<usize>) -> Result<Vec<Option<usize>>, String> {
    if window.is_none() && sliding.contains(&true) {
        return Err("invalid config: sliding_window: none, but layers that want one".to_owned());
    }
    Ok(sliding.iter().map(|&slides| window.filter(|_| slides)).collect())
}
