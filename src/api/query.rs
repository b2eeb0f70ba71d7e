//! Parameters of a URL that nothing here knows: named in the response like unknown fields of a body, or refused.

use std::collections::BTreeSet;

use actix_web::HttpRequest;
use actix_web::dev::ServiceRequest;
use actix_web::web::{Data, Query};

use super::{Guard, openapi};
use crate::openai::error::ApiError;

/// The names that this resource has no use for.
///
/// # Errors
/// The first of them, where the settings are strict.
pub(super) fn unknown(request: &ServiceRequest) -> Result<Vec<String>, ApiError> {
    let query = request.query_string();
    if query.is_empty() {
        return Ok(Vec::new());
    }
    // One that cannot be read is refused by whoever wants to read it.
    let Ok(Query(pairs)) = Query::<Vec<(String, String)>>::from_query(query) else { return Ok(Vec::new()) };
    let known = openapi::query_names(request.method(), &request.match_pattern().unwrap_or_default());
    let unknown: BTreeSet<String> =
        pairs.into_iter().map(|(name, _)| name).filter(|name| !known.contains(&name.as_str())).collect();
    match unknown.first() {
        Some(name) if is_strict(request.request()) => Err(ApiError::unknown_parameter(name)),
        _ => Ok(unknown.into_iter().collect()),
    }
}

/// Whether what is unknown is refused.
pub(super) fn is_strict(request: &HttpRequest) -> bool {
    request.app_data::<Data<Guard>>().is_some_and(|guard| guard.strict_params)
}
