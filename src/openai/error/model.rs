use super::{ApiError, shortened};

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
