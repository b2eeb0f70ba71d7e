//! What the listings of files and of batches share: their query and their page.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::openai::error::ApiError;
use crate::openai::files::ListObject;
use crate::store::{Page, StoreError};

/// The query of a listing, as it was typed.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub(super) struct ListQuery {
    /// How many on a page.
    #[schemars(with = "Option<u32>", range(min = 1))]
    pub(super) limit: Option<String>,
    /// By age: `desc`, the newest first, if absent.
    #[schemars(extend("enum" = ["asc", "desc"]))]
    pub(super) order: Option<String>,
    /// The last id of the page before.
    pub(super) after: Option<String>,
    /// Files of this purpose alone.
    pub(super) purpose: Option<String>,
}

impl ListQuery {
    pub(super) fn page(&self, default_limit: u64, limit_max: u64) -> Result<Page, ApiError> {
        let limit = match &self.limit {
            None => default_limit,
            Some(text) => text.parse().ok().filter(|limit| (1..=limit_max).contains(limit)).ok_or_else(|| {
                let message = format!("Invalid 'limit': expected an integer from 1 to {limit_max}.");
                ApiError::invalid_value("limit", message)
            })?,
        };
        let newest_first = match self.order.as_deref() {
            None | Some("desc") => true,
            Some("asc") => false,
            Some(order) => return Err(ApiError::not_one_of("order", order, &["asc", "desc"])),
        };
        Ok(Page { limit, after: self.after.clone(), newest_first })
    }
}

pub(super) fn list<T>(data: Vec<T>, has_more: bool, id: impl Fn(&T) -> &str) -> ListObject<T> {
    let first_id = data.first().map(|item| id(item).to_owned());
    let last_id = data.last().map(|item| id(item).to_owned());
    ListObject { object: "list", data, first_id, last_id, has_more }
}

/// A cursor that names nothing is the client's mistake, not a missing resource.
pub(super) fn page_error(error: StoreError) -> ApiError {
    let StoreError::NotFound = error else { return store_error(error) };
    ApiError::invalid("invalid_cursor", "after", "Invalid 'after': it names nothing in this list.")
}

/// What a client is told when the store fails; what happened is for the log.
pub(super) fn store_error(error: StoreError) -> ApiError {
    match error {
        StoreError::Full(source) => {
            tracing::error!(error = %source, "the data directory is full");
            let mut error = ApiError::internal();
            error.status = 507;
            error.body.code = Some("insufficient_storage");
            "The server has no space left to store this.".clone_into(&mut error.body.message);
            error.retry_after = Some(60);
            error
        }
        StoreError::Busy(source) => {
            tracing::warn!(error = %source, "the store is busy");
            ApiError::overloaded()
        }
        error @ (StoreError::NotFound
        | StoreError::Quota
        | StoreError::Locked { .. }
        | StoreError::Lost(_)
        | StoreError::Corrupt(_)
        | StoreError::Io(_)
        | StoreError::Database(_)) => {
            tracing::error!(error = ?error, "the store failed");
            ApiError::internal()
        }
    }
}
