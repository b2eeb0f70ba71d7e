use serde_json::Value;
use tandem_engine::Repetition;

use super::fields::{Fields, kind};
use super::options::short_text;
use crate::openai::error::ApiError;

const MAX_REQUEST_ID_BYTES: usize = 128;

/// How an answer is told, beyond what OpenAI's clients ask for.
#[derive(Clone, Debug, Default)]
pub(in crate::completion) struct Telling {
    /// Of a stream: what is told of the tokens counted.
    pub(in crate::completion) usage: StreamUsage,
    /// What ended the generation is part of its text.
    pub(in crate::completion) include_end: bool,
    /// Control tokens are told as text.
    pub(in crate::completion) special_tokens: bool,
    /// Tell the ids of the tokens, of the prompt and of the answer.
    pub(in crate::completion) token_ids: bool,
    /// Name tokens by their ids among log-probabilities.
    pub(in crate::completion) tokens_as_ids: bool,
    /// Tell the prompt as the model saw it.
    pub(in crate::completion) prompt_text: bool,
    /// The tier that is answered with, when one was asked for.
    pub(in crate::completion) service_tier: Option<&'static str>,
    /// The client's own name for the request.
    pub(in crate::completion) request_id: Option<String>,
}

/// What a stream tells of the tokens counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::completion) struct StreamUsage {
    /// A last chunk with all of them.
    pub(in crate::completion) at_end: bool,
    /// Each chunk tells those that there are so far.
    pub(in crate::completion) always: bool,
}

impl Telling {
    pub(super) fn read(fields: &mut Fields<'_>, stream: bool) -> Result<Self, ApiError> {
        // No text is ever put between tokens here, so nothing depends on it.
        fields.boolean("spaces_between_special_tokens")?;
        let mut is_set = |name| Ok::<_, ApiError>(fields.boolean(name)?.unwrap_or(false));
        Ok(Self {
            include_end: is_set("include_stop_str_in_output")?,
            token_ids: is_set("return_token_ids")?,
            tokens_as_ids: is_set("return_tokens_as_token_ids")?,
            prompt_text: is_set("return_prompt_text")?,
            special_tokens: !fields.boolean("skip_special_tokens")?.unwrap_or(true),
            usage: stream_usage(fields, stream)?,
            service_tier: None,
            request_id: request_id(fields)?,
        })
    }
}

/// Who goes first, and the tier to answer with. `priority` says it in vLLM's API; in OpenAI's a request may say that it can wait.
pub(super) fn rank(fields: &mut Fields<'_>) -> Result<(i64, Option<&'static str>), ApiError> {
    let tier = fields.one_of("service_tier", &["auto", "default", "flex", "scale", "priority"])?;
    let rank = fields.integer("priority", i64::MIN..=i64::MAX)?;
    let (default, tier) = match tier {
        None => (0, None),
        // Behind everything that has a number of its own.
        Some("flex") => (i64::MAX, Some("flex")),
        Some(_) => (0, Some("default")),
    };
    Ok((rank.unwrap_or(default), tier))
}

/// vLLM's rule for outputs that run in circles.
pub(super) fn repetition(fields: &mut Fields<'_>) -> Result<Option<Repetition>, ApiError> {
    const NAME: &str = "repetition_detection";
    let Some(mut rule) = fields.object(NAME)? else { return Ok(None) };
    let longest = rule.integer("max_pattern_size", 0..=i64::from(Repetition::MAX_RUN))?.unwrap_or(0) as u32;
    let shortest = rule.integer("min_pattern_size", 0..=i64::from(Repetition::MAX_RUN))?.unwrap_or(0).max(1) as u32;
    let count = rule.integer("min_count", 0..=i64::from(u32::MAX))?.unwrap_or(0) as u32;
    if let Some((name, _)) = rule.unread().next() {
        return Err(ApiError::unknown_parameter(&rule.path(name)));
    }
    if longest == 0 {
        // As in vLLM nothing is looked for then.
        return Ok(None);
    }
    if count < 2 {
        return Err(ApiError::integer_below(&rule.path("min_count"), 2, &count.to_string()));
    }
    if shortest > longest {
        let path = rule.path("min_pattern_size");
        let text = format!("Invalid '{path}': it must not be greater than 'max_pattern_size', which is {longest}.");
        return Err(ApiError::invalid_value(&path, text));
    }
    Ok(Some(Repetition { shortest, longest, count }))
}

fn stream_usage(fields: &mut Fields<'_>, stream: bool) -> Result<StreamUsage, ApiError> {
    let Some(mut options) = fields.object("stream_options")? else { return Ok(StreamUsage::default()) };
    if !stream {
        return Err(ApiError::invalid_value(
            "stream_options",
            "Invalid 'stream_options': it can only be used when 'stream' is true.",
        ));
    }
    // Padding of chunks against observers of their size; none is added, which is what a server may always do.
    options.boolean("include_obfuscation")?;
    let at_end = options.boolean("include_usage")?.unwrap_or(false);
    let always = options.boolean("continuous_usage_stats")?.unwrap_or(false);
    match options.unread().find(|(_, value)| !value.is_null() && **value != Value::Bool(false)) {
        Some((name, _)) => Err(ApiError::unsupported_parameter(&options.path(name))),
        None => Ok(StreamUsage { at_end, always }),
    }
}

/// What goes into a header has to be fit for one.
pub(super) fn request_id(fields: &mut Fields<'_>) -> Result<Option<String>, ApiError> {
    let Some(value) = fields.value("request_id") else { return Ok(None) };
    let text = value.as_str().ok_or_else(|| ApiError::invalid_type("request_id", "a string", kind(value)))?;
    short_text("request_id", text, MAX_REQUEST_ID_BYTES)?;
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        let message = "Invalid 'request_id': expected visible ASCII characters.";
        return Err(ApiError::invalid_value("request_id", message));
    }
    Ok(Some(text.to_owned()))
}
