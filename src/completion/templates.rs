use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::template::{ChatTemplate, TemplateError};
use crate::models::Generator;
use crate::openai::error::ApiError;

/// Compiled chat templates, by model. One is compiled again when its model comes back with another template.
#[derive(Debug, Default)]
pub(super) struct Templates {
    compiled: Mutex<HashMap<String, Arc<ChatTemplate>>>,
}

impl Templates {
    /// The template of a model.
    pub(super) fn of(&self, lease: &Generator) -> Result<Arc<ChatTemplate>, ApiError> {
        let Some(source) = &lease.info().chat_template else {
            return Err(ApiError::model_not_supported(lease.name(), "chat completions, for it has no chat template"));
        };
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(template) = compiled.get(lease.name()).filter(|template| template.source() == source) {
            return Ok(Arc::clone(template));
        }
        let template = Arc::new(ChatTemplate::compile(source).map_err(|error: TemplateError| {
            tracing::error!(model = lease.name(), %error, "a model's chat template does not compile");
            ApiError::chat_template_error()
        })?);
        compiled.insert(lease.name().to_owned(), Arc::clone(&template));
        Ok(template)
    }
}
