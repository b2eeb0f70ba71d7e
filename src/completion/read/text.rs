use super::fields::Fields;
use crate::openai::error::ApiError;

/// The name of the model.
pub(super) fn model(fields: &mut Fields<'_>) -> Result<String, ApiError> {
    match fields.required_string("model")? {
        "" => Err(ApiError::missing("model")),
        name => Ok(name.to_owned()),
    }
}

/// NUL would end the text early for tokenizers that are written in C.
pub(super) fn without_nul(path: &str, text: &str) -> Result<(), ApiError> {
    if text.contains('\0') { Err(ApiError::nul_character(path)) } else { Ok(()) }
}
