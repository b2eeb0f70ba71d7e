//! Model architectures, one file each.

mod llama;

pub(crate) use llama::Llama;
