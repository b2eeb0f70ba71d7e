use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

/// An error as OpenAI's clients expect it, with the HTTP status it travels under.
///
/// Messages come from this program alone: text of foreign libraries is logged, never sent. The constructors below are the whole set of
/// what the online API can answer; where OpenAI has words for a mistake, they are OpenAI's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    pub status: u16,
    pub body: ErrorBody,
    /// Seconds after which trying again makes sense: sent as `Retry-After`.
    pub retry_after: Option<u32>,
}

/// The value of `error` in an error response.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize)]
pub struct ErrorBody {
    pub message: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub param: Option<String>,
    pub code: Option<&'static str>,
}

/// `{"error": {…}}`.
#[derive(Clone, Debug, JsonSchema, Serialize)]
#[schemars(rename = "Error")]
pub struct ErrorEnvelope<'a> {
    pub error: &'a ErrorBody,
}

pub const INVALID_REQUEST: &str = "invalid_request_error";
pub const SERVER_ERROR: &str = "server_error";
pub const AUTHENTICATION_ERROR: &str = "authentication_error";
pub const PERMISSION_ERROR: &str = "permission_error";

impl ApiError {
    #[must_use]
    pub fn envelope(&self) -> ErrorEnvelope<'_> {
        ErrorEnvelope { error: &self.body }
    }

    /// A 400 about one parameter.
    #[must_use]
    pub fn invalid(code: &'static str, param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::request(400, code, Some(param.into()), message)
    }

    fn request(status: u16, code: &'static str, param: Option<String>, message: impl Into<String>) -> Self {
        let body = ErrorBody { message: message.into(), kind: INVALID_REQUEST, param, code: Some(code) };
        Self { status, body, retry_after: None }
    }

    fn server(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        let body = ErrorBody { message: message.into(), kind: SERVER_ERROR, param: None, code: Some(code) };
        Self { status, body, retry_after: None }
    }
}

/// The shape of a body or of a value in it.
impl ApiError {
    #[must_use]
    pub fn invalid_json(line: usize, column: usize) -> Self {
        let message = format!("We could not parse the JSON body of your request. (line {line} column {column})");
        Self::request(400, "invalid_json", None, message)
    }

    #[must_use]
    pub fn not_an_object() -> Self {
        Self::request(400, "invalid_type", None, "Expected an object.")
    }

    #[must_use]
    pub fn duplicate_field(name: &str) -> Self {
        Self::invalid("duplicate_field", name, format!("Duplicate field: '{name}'."))
    }

    #[must_use]
    pub fn missing(param: &str) -> Self {
        Self::invalid("missing_required_parameter", param, format!("Missing required parameter: '{param}'."))
    }

    /// `expected` and `got` with their articles: "an integer", "a string".
    #[must_use]
    pub fn invalid_type(param: &str, expected: &str, got: &str) -> Self {
        let message = format!("Invalid type for '{param}': expected {expected}, but got {got} instead.");
        Self::invalid("invalid_type", param, message)
    }

    #[must_use]
    pub fn invalid_value(param: &str, message: impl Into<String>) -> Self {
        Self::invalid("invalid_value", param, message)
    }

    #[must_use]
    pub fn not_one_of(param: &str, got: &str, supported: &[&str]) -> Self {
        let got = shortened(got);
        let message = format!("Invalid value: '{got}'. Supported values are: {}.", listed(supported));
        Self::invalid("invalid_value", param, message)
    }

    #[must_use]
    pub fn nul_character(param: &str) -> Self {
        Self::invalid("invalid_value", param, format!("Invalid '{param}': NUL characters are not allowed."))
    }

    #[must_use]
    pub fn empty_array(param: &str) -> Self {
        let message = format!(
            "Invalid '{param}': empty array. Expected an array with minimum length 1, but got an empty array instead."
        );
        Self::invalid("empty_array", param, message)
    }

    #[must_use]
    pub fn empty_string(param: &str) -> Self {
        let message = format!(
            "Invalid '{param}': empty string. Expected a string with minimum length 1, but got an empty string instead."
        );
        Self::invalid("empty_string", param, message)
    }

    #[must_use]
    pub fn array_too_long(param: &str, max: usize, got: usize) -> Self {
        let message = format!(
            "Invalid '{param}': array too long. Expected an array with maximum length {max}, but got an array with length {got} instead."
        );
        Self::invalid("array_above_max_length", param, message)
    }

    #[must_use]
    pub fn string_too_long(param: &str, max: usize, got: usize) -> Self {
        let message = format!(
            "Invalid '{param}': string too long. Expected a string with maximum length {max}, but got a string with length {got} instead."
        );
        Self::invalid("string_above_max_length", param, message)
    }

    #[must_use]
    pub fn object_too_large(param: &str, max: usize, got: usize) -> Self {
        let message = format!(
            "Invalid '{param}': too many properties. Expected an object with at most {max} properties, but got an object with {got} properties instead."
        );
        Self::invalid("object_above_max_properties", param, message)
    }

    #[must_use]
    pub fn integer_below(param: &str, min: i64, got: &str) -> Self {
        let message = format!(
            "Invalid '{param}': integer below minimum value. Expected a value >= {min}, but got {got} instead."
        );
        Self::invalid("integer_below_min_value", param, message)
    }

    #[must_use]
    pub fn integer_above(param: &str, max: i64, got: &str) -> Self {
        let message = format!(
            "Invalid '{param}': integer above maximum value. Expected a value <= {max}, but got {got} instead."
        );
        Self::invalid("integer_above_max_value", param, message)
    }

    #[must_use]
    pub fn decimal_below(param: &str, bound: &str, got: f64) -> Self {
        let message =
            format!("Invalid '{param}': decimal below minimum value. Expected a value {bound}, but got {got} instead.");
        Self::invalid("decimal_below_min_value", param, message)
    }

    #[must_use]
    pub fn decimal_above(param: &str, max: f64, got: f64) -> Self {
        let message = format!(
            "Invalid '{param}': decimal above maximum value. Expected a value <= {max}, but got {got} instead."
        );
        Self::invalid("decimal_above_max_value", param, message)
    }

    #[must_use]
    pub fn unknown_parameter(name: &str) -> Self {
        let name = shortened(name);
        Self::invalid("unknown_parameter", name.clone(), format!("Unknown parameter: '{name}'."))
    }

    #[must_use]
    pub fn unsupported_parameter(name: &str) -> Self {
        let name = shortened(name);
        Self::invalid("unsupported_parameter", name.clone(), format!("Unsupported parameter: '{name}'."))
    }

    #[must_use]
    pub fn unsupported_value(param: &str, message: impl Into<String>) -> Self {
        Self::invalid("unsupported_value", param, message)
    }
}

/// What a request asks of a model.
impl ApiError {
    #[must_use]
    pub fn model_not_found(model: &str) -> Self {
        let message = format!("The model `{}` does not exist or you do not have access to it.", shortened(model));
        Self::request(404, "model_not_found", Some("model".to_owned()), message)
    }

    #[must_use]
    pub fn adapter_not_found(adapter: &str, model: &str) -> Self {
        let (adapter, model) = (shortened(adapter), shortened(model));
        let message = format!("The model `{model}` has no adapter `{adapter}`.");
        Self::request(404, "adapter_not_found", Some("lora".to_owned()), message)
    }

    /// `choice` names a function that the request does not have.
    #[must_use]
    pub fn tool_not_found(choice: &str, name: &str) -> Self {
        let name = shortened(name);
        Self::invalid_value(choice, format!("Invalid value for '{choice}': there is no function named '{name}'."))
    }

    /// The model cannot do what this endpoint does.
    #[must_use]
    pub fn model_not_supported(model: &str, what: &str) -> Self {
        let message = format!("The model `{}` does not support {what}.", shortened(model));
        Self::invalid("model_not_supported", "model", message)
    }

    /// The model is not of the kind that the endpoint is for.
    #[must_use]
    pub fn endpoint_not_supported(what: &str) -> Self {
        Self::invalid("model_not_supported", "model", format!("This model does not support {what}."))
    }

    #[must_use]
    pub fn dimensions_not_supported() -> Self {
        Self::unsupported_value("dimensions", "This model does not support specifying dimensions.")
    }

    /// A limit that cuts an input to nothing.
    #[must_use]
    pub fn nothing_left(param: &str) -> Self {
        Self::invalid_value(param, format!("Invalid '{param}': no token of the input would be left."))
    }

    #[must_use]
    pub fn too_many_tokens(param: &str, max: usize, got: usize) -> Self {
        let message = format!("Requested {got} tokens, max {max} tokens per request");
        Self::invalid("max_tokens_per_request", param, message)
    }

    /// The choices for all prompts of a request, more than may run and wait at a time.
    #[must_use]
    pub fn too_many_generations(param: &str, max: usize, got: usize) -> Self {
        let message = format!(
            "Invalid '{param}': the request asks for {got} generations, where this server holds {max} for this model, those that run and `limits.queue` that wait."
        );
        Self::invalid_value(param, message)
    }

    /// `param` is what to shorten, such as `messages`, `prompt` or `documents[0]`.
    #[must_use]
    pub fn context_length_exceeded(param: &str, context: u64, tokens: u64) -> Self {
        let message = format!(
            "This model's maximum context length is {context} tokens. However, your {param} resulted in {tokens} tokens. Please reduce the length of the {param}."
        );
        Self::invalid("context_length_exceeded", param, message)
    }

    /// The prompt alone would fit: the length asked for does not. `limit` is the name it was asked by.
    #[must_use]
    pub fn output_too_long(limit: &str, param: &str, context: u32, prompt: u32, output: u32) -> Self {
        let total = u64::from(prompt) + u64::from(output);
        let message = format!(
            "This model's maximum context length is {context} tokens. However, you requested {total} tokens ({prompt} in the {param}, {output} in the completion). Please reduce the length of the {param} or completion."
        );
        Self::invalid("invalid_value", limit, message)
    }

    #[must_use]
    pub fn answer_too_large(max_bytes: u64) -> Self {
        let message = format!(
            "The answer could exceed {max_bytes} bytes. Please reduce 'n', the output length or the log-probabilities."
        );
        Self::invalid("request_too_large", "n", message)
    }

    /// A schema or grammar that is wrong or asks for what cannot be enforced; `param` leads into it.
    #[must_use]
    pub fn invalid_schema(param: &str, reason: &str) -> Self {
        let param = shortened(param);
        let message = format!("Invalid '{param}': {reason}");
        Self::invalid("invalid_schema", param, message)
    }

    #[must_use]
    pub fn schema_too_complex(param: &str) -> Self {
        Self::invalid("schema_too_complex", param, format!("Invalid '{param}': it is too complex to be enforced."))
    }

    /// The chat template itself refused the messages, in its own words.
    #[must_use]
    pub fn refused_by_template(message: String) -> Self {
        Self::invalid("invalid_request", "messages", message)
    }

    #[must_use]
    pub fn chat_template_error() -> Self {
        Self::server(500, "chat_template_error", "The model's chat template could not be rendered.")
    }

    #[must_use]
    pub fn not_encodable(param: &str) -> Self {
        Self::invalid(
            "invalid_value",
            param,
            format!("Invalid '{param}': the model's tokenizer cannot represent this text."),
        )
    }
}

/// What happens on the way.
impl ApiError {
    #[must_use]
    pub fn internal() -> Self {
        Self::server(500, "internal_error", "The server had an error while processing your request.")
    }

    #[must_use]
    pub fn overloaded() -> Self {
        let error = Self::server(503, "overloaded", "The server is overloaded, please retry later.");
        Self { retry_after: Some(1), ..error }
    }

    /// The model is being loaded, or loading it failed.
    #[must_use]
    pub fn model_unavailable(model: &str) -> Self {
        let message = format!("The model `{}` is not available at the moment, please retry later.", shortened(model));
        Self { retry_after: Some(5), ..Self::server(503, "model_unavailable", message) }
    }

    #[must_use]
    pub fn engine_gone() -> Self {
        let error = Self::server(503, "engine_unavailable", "The inference engine has stopped, please retry later.");
        Self { retry_after: Some(5), ..error }
    }

    #[must_use]
    pub fn non_finite_logits() -> Self {
        Self::server(500, "non_finite_logits", "The model produced non-finite logits for this request.")
    }

    #[must_use]
    pub fn non_finite_embedding() -> Self {
        Self::server(500, "non_finite_embedding", "The model produced a non-finite embedding for this request.")
    }

    #[must_use]
    pub fn non_finite_score() -> Self {
        Self::server(500, "non_finite_score", "The model produced a non-finite score for this request.")
    }

    #[must_use]
    pub fn no_token_left() -> Self {
        let message = "Invalid request: 'logit_bias', 'allowed_token_ids' and 'bad_words' leave no token to sample.";
        Self::request(400, "invalid_value", None, message)
    }

    #[must_use]
    pub fn grammar_dead_end() -> Self {
        let message = "The output ran into a dead end of the grammar or schema that it has to follow.";
        Self::server(500, "grammar_dead_end", message)
    }

    /// A batch's files were deleted or have expired.
    #[must_use]
    pub fn results_gone() -> Self {
        Self::request(404, "results_gone", None, "The results of this batch are no longer stored.")
    }

    #[must_use]
    pub fn file_expired() -> Self {
        Self::request(404, "file_expired", Some("id".to_owned()), "This file has expired and is no longer stored.")
    }

    #[must_use]
    pub fn stopping() -> Self {
        let error = Self::server(503, "server_stopping", "The server is stopping, please reconnect later.");
        Self { retry_after: Some(5), ..error }
    }

    #[must_use]
    pub fn generation_timeout(seconds: u64) -> Self {
        Self::request(408, "request_timeout", None, format!("The request was not answered within {seconds} seconds."))
    }

    #[must_use]
    pub fn body_timeout() -> Self {
        Self::request(408, "request_timeout", None, "Request body was not received in time.")
    }

    #[must_use]
    pub fn unreadable_body() -> Self {
        Self::request(400, "invalid_body", None, "The request body could not be read.")
    }

    #[must_use]
    pub fn body_too_large(max_bytes: usize) -> Self {
        Self::request(413, "request_too_large", None, format!("Request body exceeds {max_bytes} bytes."))
    }

    #[must_use]
    pub fn too_many_pieces(max: usize) -> Self {
        let message = format!("Request body comes in more than {max} small pieces.");
        Self::request(413, "request_too_large", None, message)
    }

    #[must_use]
    pub fn unsupported_media_type() -> Self {
        Self::request(415, "unsupported_media_type", None, "Expected application/json.")
    }

    #[must_use]
    pub fn unsupported_content_encoding() -> Self {
        Self::request(415, "unsupported_content_encoding", None, "Compressed request bodies are not supported.")
    }

    #[must_use]
    pub fn unreadable_query() -> Self {
        Self::request(400, "invalid_query", None, "The query of the URL could not be read, or names a parameter twice.")
    }

    #[must_use]
    pub fn range_not_satisfiable(bytes: u64) -> Self {
        let message = format!("The range lies outside of the file, which has {bytes} bytes.");
        Self::request(416, "range_not_satisfiable", None, message)
    }

    #[must_use]
    pub fn unknown_url(method: &str, path: &str) -> Self {
        let path: String = path.escape_default().take(200).collect();
        Self::request(404, "unknown_url", None, format!("Unknown request URL: {method} {path}."))
    }

    #[must_use]
    pub fn method_not_allowed(method: &str, path: &str) -> Self {
        let path: String = path.escape_default().take(200).collect();
        Self::request(405, "method_not_allowed", None, format!("Method not allowed: {method} {path}."))
    }
}

/// Who asks, and how much.
impl ApiError {
    fn of_kind(status: u16, kind: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        let body = ErrorBody { message: message.into(), kind, param: None, code: Some(code) };
        Self { status, body, retry_after: None }
    }

    #[must_use]
    pub fn missing_api_key() -> Self {
        Self::of_kind(401, AUTHENTICATION_ERROR, "missing_api_key", "You didn't provide an API key.")
    }

    /// Shows of the key as much as tells its owner which one it was.
    #[must_use]
    pub fn invalid_api_key(key: &str) -> Self {
        const SHOWN_CHARS_MIN: usize = 12;
        let shown = match (key.get(..3), key.len().checked_sub(4).and_then(|at| key.get(at..))) {
            (Some(first), Some(last))
                if key.len() >= SHOWN_CHARS_MIN && key.bytes().all(|byte| byte.is_ascii_graphic()) =>
            {
                format!("{first}…{last}")
            }
            _ => "…".to_owned(),
        };
        let message = format!("Incorrect API key provided: {shown}.");
        Self::of_kind(401, AUTHENTICATION_ERROR, "invalid_api_key", message)
    }

    #[must_use]
    pub fn expired_api_key() -> Self {
        Self::of_kind(401, AUTHENTICATION_ERROR, "expired_api_key", "This API key has expired.")
    }

    #[must_use]
    pub fn revoked_api_key() -> Self {
        Self::of_kind(401, AUTHENTICATION_ERROR, "revoked_api_key", "This API key has been revoked.")
    }

    #[must_use]
    pub fn insufficient_scope(scope: &str) -> Self {
        Self::of_kind(403, PERMISSION_ERROR, "insufficient_scope", format!("This API key lacks scope {scope}."))
    }

    #[must_use]
    pub fn host_not_allowed() -> Self {
        let message = "This server does not answer to the host name of the request.";
        Self::of_kind(403, PERMISSION_ERROR, "host_not_allowed", message)
    }

    #[must_use]
    pub fn origin_not_allowed() -> Self {
        let message = "This server does not answer to web pages of the request's origin.";
        Self::of_kind(403, PERMISSION_ERROR, "origin_not_allowed", message)
    }

    /// `of` is what there were too many of: `requests` or `tokens`.
    #[must_use]
    pub fn rate_limited(of: &'static str, limit: u64, wait: Duration) -> Self {
        let seconds = whole_seconds(wait);
        let message = format!("Rate limit reached: {limit} {of} per minute. Please try again in {seconds} s.");
        Self { retry_after: Some(seconds), ..Self::of_kind(429, of, "rate_limit_exceeded", message) }
    }

    #[must_use]
    pub fn too_many_concurrent(limit: u32) -> Self {
        let message = format!("Rate limit reached: {limit} requests at a time.");
        Self { retry_after: Some(1), ..Self::of_kind(429, "requests", "rate_limit_exceeded", message) }
    }

    #[must_use]
    pub fn too_many_failed_auth(wait: Duration) -> Self {
        let message = "Too many incorrect API keys came from this address, please retry later.";
        let error = Self::of_kind(429, AUTHENTICATION_ERROR, "too_many_failed_auth", message);
        Self { retry_after: Some(whole_seconds(wait)), ..error }
    }

    #[must_use]
    pub fn quota_exceeded(max_bytes: u64) -> Self {
        let message = format!("Your files would exceed the {max_bytes} bytes that you may store.");
        Self::of_kind(429, "insufficient_quota", "quota_exceeded", message)
    }
}

/// The head of a request.
impl ApiError {
    #[must_use]
    pub fn head_too_large(max_bytes: usize) -> Self {
        let message = format!("Request header block exceeds {max_bytes} bytes.");
        Self::request(431, "request_header_fields_too_large", None, message)
    }

    #[must_use]
    pub fn too_many_headers(max: usize) -> Self {
        let message = format!("Request has more than {max} header fields.");
        Self::request(431, "request_header_fields_too_large", None, message)
    }

    /// It came too slowly.
    #[must_use]
    pub fn head_timeout() -> Self {
        Self::request(408, "request_timeout", None, "Request head was not received in time.")
    }

    /// No HTTP/1.1, or something that could be read in two ways.
    #[must_use]
    pub fn malformed_request() -> Self {
        Self::request(400, "malformed_request", None, "The request could not be read as HTTP/1.1.")
    }

    #[must_use]
    pub fn uri_too_long(max_bytes: usize) -> Self {
        Self::request(414, "uri_too_long", None, format!("Request URI exceeds {max_bytes} bytes."))
    }
}

/// Rounded up, for `Retry-After`: at least one.
fn whole_seconds(wait: Duration) -> u32 {
    u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1)
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status, self.body.message)
    }
}

impl std::error::Error for ApiError {}

/// Names from a request are quoted in messages: at most this much of them.
fn shortened(text: &str) -> String {
    const MAX_CHARS: usize = 100;
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// `'a', 'b', and 'c'`.
fn listed(values: &[&str]) -> String {
    let quoted: Vec<String> = values.iter().map(|value| format!("'{value}'")).collect();
    match quoted.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        [one, other] => format!("{one} and {other}"),
        [head @ .., last] => format!("{}, and {last}", head.join(", ")),
    }
}
