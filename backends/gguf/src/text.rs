//! What the vocabulary and the chat template must be, whoever reads them.

use crate::header::{Header, Value};

/// Templates beyond this are no templates.
const MAX_CHAT_TEMPLATE_BYTES: u64 = 256 << 10;

/// Checks that there is a vocabulary, that all lists about it are as long as it is, and that the ids of special tokens lie in it.
///
/// # Errors
/// With the first rule that is broken.
pub fn check_tokenizer(header: &Header) -> Result<(), String> {
    let Some(tokens) = header.array_len("tokenizer.ggml.tokens").filter(|&len| len > 0) else {
        return Err("holds no tokenizer (`tokenizer.ggml.tokens`)".into());
    };
    for key in ["tokenizer.ggml.scores", "tokenizer.ggml.token_type"] {
        if let Some(len) = header.array_len(key)
            && len != tokens
        {
            return Err(format!("tokenizer size mismatch: {tokens} tokens, `{key}` has {len}"));
        }
    }
    if let Some(embedding) = header.tensors().iter().find(|tensor| tensor.name == "token_embd.weight")
        && embedding.dims.get(1) != Some(&tokens)
    {
        return Err(format!("tokenizer size mismatch: {tokens} tokens, the embedding has {:?}", embedding.dims));
    }
    // As llama.cpp spells them.
    for name in ["bos", "eos", "cls", "seperator", "unknown"] {
        let key = format!("tokenizer.ggml.{name}_token_id");
        // All bits set is how some converters write "none".
        if let Some(id) = header.unsigned(&key)
            && id >= tokens
            && id != u64::from(u32::MAX)
        {
            return Err(format!("special token id out of range: `{key}` is {id} of {tokens} tokens"));
        }
    }
    Ok(())
}

/// The Jinja source that the file ships, whole.
///
/// # Errors
/// When there is something of that name that is none.
pub fn chat_template(header: &Header) -> Result<Option<String>, String> {
    template(header, "tokenizer.chat_template")
}

/// The prompt that a model which ranks documents has them put into with a query, if the file ships one, by the key of llama.cpp.
///
/// # Errors
/// When there is something of that name that is none.
pub fn pair_template(header: &Header) -> Result<Option<String>, String> {
    template(header, "tokenizer.chat_template.rerank")
}

fn template(header: &Header, key: &str) -> Result<Option<String>, String> {
    let len = match header.get(key) {
        None => return Ok(None),
        Some(Value::String(bytes)) => bytes.len() as u64,
        Some(&Value::LongString(len)) => len,
        Some(
            Value::Unsigned(_)
            | Value::Signed(_)
            | Value::Float(_)
            | Value::Double(_)
            | Value::Bool(_)
            | Value::Array(_),
        ) => return Err(format!("`{key}` is no string")),
    };
    if len > MAX_CHAT_TEMPLATE_BYTES {
        return Err(format!("a chat template of {len} bytes, {MAX_CHAT_TEMPLATE_BYTES} at most"));
    }
    match header.text(key) {
        Some(template) => Ok(Some(template.to_owned())),
        None => Err("the chat template is not UTF-8".into()),
    }
}
