//! Which fields readers ask for, so that a test can compare them with those that are documented.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{chat, completions, embeddings, rerank};
use crate::completion::Limits;
use crate::openai::Endpoint;
use crate::openai::error::ApiError;

thread_local! {
    static ASKED: RefCell<BTreeSet<String>> = RefCell::default();
}

/// Takes down that the field of this path was asked for: `messages[3].role` as `messages[].role`.
pub(super) fn note(path: &str) {
    let name = path.split('[').map(|part| part.trim_start_matches(|c: char| c.is_ascii_digit())).collect::<Vec<_>>();
    ASKED.with_borrow_mut(|asked| asked.insert(name.join("[")));
}

/// What was asked for on this thread since the last call.
pub(crate) fn take() -> BTreeSet<String> {
    ASKED.take()
}

/// Reads a body as the endpoint would.
pub(crate) fn read(endpoint: Endpoint, body: &Map<String, Value>) -> Result<(), ApiError> {
    let limits = Limits::default();
    match endpoint {
        Endpoint::ChatCompletions => chat(body, &limits).map(|_| ()),
        Endpoint::Completions => completions(body, &limits).map(|_| ()),
        Endpoint::Embeddings => embeddings(body, &limits).map(|_| ()),
        Endpoint::Rerank => rerank(body, &limits).map(|_| ()),
    }
}
