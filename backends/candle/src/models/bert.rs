use serde_json::Value;

use crate::config::{EncoderConfig, EncoderFields, EncoderNames, Fields, HeadNames};

const FIELDS: EncoderFields = EncoderFields {
    hidden_size: "hidden_size",
    heads: "num_attention_heads",
    layers: "num_hidden_layers",
    inner_size: "intermediate_size",
    activation: "hidden_act",
};

const BERT: EncoderNames = EncoderNames {
    whole: "bert.",
    layers: "encoder.layer",
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    attention_output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    inner: "intermediate.dense",
    outer: "output.dense",
    output_norm: "output.LayerNorm",
};

const ROBERTA: EncoderNames = EncoderNames { whole: "roberta.", ..BERT };

const DISTIL: EncoderNames = EncoderNames {
    whole: "distilbert.",
    layers: "transformer.layer",
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    attention_output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    inner: "ffn.lin1",
    outer: "ffn.lin2",
    output_norm: "output_layer_norm",
};

/// The pooler, which counts in a model that ranks, and a layer for its label.
const BERT_HEAD: HeadNames = HeadNames { dense: "pooler.dense", within: true, output: "classifier" };

const ROBERTA_HEAD: HeadNames = HeadNames { dense: "classifier.dense", within: false, output: "classifier.out_proj" };

/// BERT, and the many embedding models that were made of it.
pub(super) fn describe(fields: &Fields<'_>) -> Result<EncoderConfig, String> {
    typed(fields, &BERT, 2)
}

/// `RoBERTa` and XLM-R, whose positions begin behind that of padding.
pub(super) fn describe_roberta(fields: &Fields<'_>) -> Result<EncoderConfig, String> {
    let config = typed(fields, &ROBERTA, 1)?;
    let padding = fields.optional::<usize>("pad_token_id")?.unwrap_or(1);
    let first_position = padding.saturating_add(1);
    if first_position >= config.positions {
        let positions = config.positions;
        return Err(format!("invalid config: pad_token_id: {padding} leaves none of {positions} positions"));
    }
    Ok(EncoderConfig { first_position, ..config })
}

/// BERT as a cross-encoder.
pub(super) fn describe_ranking(fields: &Fields<'_>) -> Result<EncoderConfig, String> {
    one_label(fields)?;
    Ok(EncoderConfig { head: Some(&BERT_HEAD), ..describe(fields)? })
}

/// `RoBERTa` and XLM-R as cross-encoders.
pub(super) fn describe_ranking_roberta(fields: &Fields<'_>) -> Result<EncoderConfig, String> {
    one_label(fields)?;
    Ok(EncoderConfig { head: Some(&ROBERTA_HEAD), ..describe_roberta(fields)? })
}

/// Of several labels nobody says which one tells how well a document answers. A file without names for them has two.
fn one_label(fields: &Fields<'_>) -> Result<(), String> {
    let named = fields.optional::<Value>("id2label")?;
    match named.as_ref().and_then(Value::as_object).map_or(2, |labels| labels.len()) {
        1 => Ok(()),
        labels => Err(format!("invalid config: id2label: {labels} labels, where a reranker has one")),
    }
}

/// Distilled BERT, which knows no token types.
pub(super) fn describe_distilled(fields: &Fields<'_>) -> Result<EncoderConfig, String> {
    const FIELDS: EncoderFields = EncoderFields {
        hidden_size: "dim",
        heads: "n_heads",
        layers: "n_layers",
        inner_size: "hidden_dim",
        activation: "activation",
    };
    EncoderConfig::plain(fields, &FIELDS, &DISTIL)
}

fn typed(fields: &Fields<'_>, names: &'static EncoderNames, types: usize) -> Result<EncoderConfig, String> {
    const MAX_TYPES: usize = 1 << 10;
    match fields.optional::<String>("position_embedding_type")?.as_deref() {
        None | Some("absolute") => {}
        Some(other) => {
            return Err(format!("invalid config: position_embedding_type: {other} is not supported; known: absolute"));
        }
    }
    for field in ["is_decoder", "add_cross_attention"] {
        if fields.flag(field)? {
            return Err(format!("invalid config: {field}: only false is supported"));
        }
    }
    let token_types = Some(fields.optional_size("type_vocab_size", MAX_TYPES)?.unwrap_or(types));
    Ok(EncoderConfig { token_types, ..EncoderConfig::plain(fields, &FIELDS, names)? })
}
