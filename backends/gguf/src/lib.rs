//! A reader of GGUF files that trusts nothing.
//!
//! It runs before anybody else sees the file, so that one that is cut short, forged or simply something else is refused with one exact
//! sentence, the same for every backend. It is total: no input makes it panic, loop for long, or allocate more than what the file really
//! holds.
//!
//! In reading order: `cursor` and `header` from bytes to metadata and the tensor table; `arrays` for the parts of the metadata that are too
//! large to be kept unasked; `file` for files on disk, of which a model may have several, and `pin` for the hash that one may have to have;
//! `text` for what the vocabulary and the chat
//! template must be; `generation` for what it says of choosing tokens; `ggml_type` for the sizes of what tensors are made of.

mod arrays;
mod cursor;
mod file;
mod generation;
pub mod ggml_type;
mod header;
mod pin;
mod text;

pub use cursor::HeaderError;
pub use file::{GgufFile, Shard};
pub use generation::{fill_in_the_middle, sampling};
pub use header::{Array, Header, Tensor, Value};
pub use text::{chat_template, check_tokenizer, pair_template};
