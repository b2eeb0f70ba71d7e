//! What a file says of how text is generated.

use tandem_core::{FillInTheMiddle, GenerationDefaults, TokenId};

use crate::header::Header;

/// How the model's makers would have its tokens chosen, by the keys of llama.cpp.
#[must_use]
pub fn sampling(header: &Header) -> GenerationDefaults {
    let number = |name: &str| header.number(&format!("general.sampling.{name}")).map(|number| number as f32);
    let top_k = number("top_k").filter(|k| *k >= 0.0).map(|k| k as u32);
    GenerationDefaults {
        temperature: number("temp"),
        top_k,
        top_p: number("top_p"),
        min_p: number("min_p"),
        repetition_penalty: number("penalty_repeat"),
        ..GenerationDefaults::default()
    }
    .within_range()
}

/// The tokens that a model fills in the middle with, if the file names all three, by their newer or their older keys.
#[must_use]
pub fn fill_in_the_middle(header: &Header) -> Option<FillInTheMiddle> {
    let tokens = header.array_len("tokenizer.ggml.tokens").unwrap_or(0);
    let id = |names: [&str; 2]| {
        let named = names.iter().find_map(|name| header.unsigned(&format!("tokenizer.ggml.{name}_token_id")));
        named.filter(|id| *id < tokens).and_then(|id| TokenId::try_from(id).ok())
    };
    Some(FillInTheMiddle {
        prefix: id(["fim_pre", "prefix"])?,
        suffix: id(["fim_suf", "suffix"])?,
        middle: id(["fim_mid", "middle"])?,
    })
}
