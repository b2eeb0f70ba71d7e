use rand::Rng;
use rand::distr::Alphanumeric;

/// Random base62 text: 24 characters carry 142 bits, so that an id cannot be guessed and a path made from one cannot collide.
const RANDOM_CHARS: usize = 24;

pub(super) fn new_file_id() -> String {
    format!("file-{}", random_text())
}

pub(super) fn new_batch_id() -> String {
    format!("batch_{:032x}", rand::rng().random::<u128>())
}

pub(super) fn new_event_id() -> String {
    format!("evt_{}", random_text())
}

pub(super) fn new_blob_key() -> String {
    random_text()
}

pub(super) fn new_instance_id() -> String {
    format!("instance_{}", random_text())
}

fn random_text() -> String {
    rand::rng().sample_iter(Alphanumeric).take(RANDOM_CHARS).map(char::from).collect()
}

/// Whether a client's text may be the id of a file at all; anything else is unknown without asking the database.
pub(super) fn is_file_id(text: &str) -> bool {
    is_id(text, "file-")
}

pub(super) fn is_batch_id(text: &str) -> bool {
    is_id(text, "batch_")
}

fn is_id(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix)
        .is_some_and(|rest| (1..=64).contains(&rest.len()) && rest.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}
