use serde_json::Value;
use tandem_engine::{GrammarSpec, is_ebnf};

use super::fields::{Fields, kind};
use crate::openai::error::ApiError;

const MAX_NAME_CHARS: usize = 64;

/// What the answer has to look like, with the field that said so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::completion) struct Structure {
    /// The path of the source, which errors in it go on from.
    pub(in crate::completion) path: String,
    pub(in crate::completion) spec: GrammarSpec,
}

/// Reads `response_format`, `structured_outputs` and the older `guided_…`: one of them at most may ask for something.
pub(super) fn structure(fields: &mut Fields<'_>) -> Result<Option<Structure>, ApiError> {
    let mut found = Vec::new();
    found.extend(response_format(fields)?);
    if let Some(mut outputs) = fields.object("structured_outputs")? {
        found.push(structured_outputs(&mut outputs)?);
    }
    constraints(fields, ["guided_json", "guided_regex", "guided_choice", "guided_grammar"], &mut found)?;
    match found.get(1) {
        None => Ok(found.pop()),
        Some(second) => {
            let text = format!("Invalid '{}': the output is constrained by '{}' already.", second.path, found[0].path);
            Err(ApiError::invalid_value(&second.path, text))
        }
    }
}

/// OpenAI's. A schema is followed whether it is `strict` or not.
fn response_format(fields: &mut Fields<'_>) -> Result<Option<Structure>, ApiError> {
    let Some(mut format) = fields.object("response_format")? else { return Ok(None) };
    let found = match format.one_of("type", &["text", "json_object", "json_schema"])? {
        None => return Err(ApiError::missing(&format.path("type"))),
        Some("text") => None,
        Some("json_object") => match format.value("schema") {
            // llama-server's.
            Some(schema) => Some(object_schema(format.path("schema"), schema)?),
            None => Some(Structure { path: format.path("type"), spec: GrammarSpec::JsonObject }),
        },
        Some(_) => Some(json_schema(&mut format)?),
    };
    nothing_else(&format)?;
    Ok(found)
}

fn json_schema(format: &mut Fields<'_>) -> Result<Structure, ApiError> {
    // llama-server's, without a name.
    if !format.has("json_schema")
        && let Some(schema) = format.value("schema")
    {
        return object_schema(format.path("schema"), schema);
    }
    let Some(mut described) = format.object("json_schema")? else {
        return Err(ApiError::missing(&format.path("json_schema")));
    };
    let name = described.required_string("name")?;
    let plain = |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | '-');
    if name.is_empty() || name.len() > MAX_NAME_CHARS || !name.chars().all(plain) {
        let path = described.path("name");
        let text = format!("Invalid '{path}': expected 1 to {MAX_NAME_CHARS} letters, digits, underscores or dashes.");
        return Err(ApiError::invalid_value(&path, text));
    }
    described.string("description")?;
    described.boolean("strict")?;
    let path = described.path("schema");
    let schema = described.value("schema").ok_or_else(|| ApiError::missing(&path))?;
    nothing_else(&described)?;
    object_schema(path, schema)
}

fn object_schema(path: String, schema: &Value) -> Result<Structure, ApiError> {
    if !schema.is_object() {
        return Err(ApiError::invalid_type(&path, "an object", kind(schema)));
    }
    Ok(Structure { path, spec: GrammarSpec::JsonSchema(schema.to_string()) })
}

/// vLLM's.
fn structured_outputs(outputs: &mut Fields<'_>) -> Result<Structure, ApiError> {
    let mut found = Vec::new();
    constraints(outputs, ["json", "regex", "choice", "grammar"], &mut found)?;
    if outputs.boolean("json_object")? == Some(true) {
        found.push(Structure { path: outputs.path("json_object"), spec: GrammarSpec::JsonObject });
    }
    // Options that change the form of the output: what is not done is not accepted.
    for name in ["disable_any_whitespace", "disable_additional_properties"] {
        if outputs.boolean(name)? == Some(true) {
            return Err(ApiError::unsupported_parameter(&outputs.path(name)));
        }
    }
    nothing_else(outputs)?;
    match (found.pop(), found.is_empty()) {
        (Some(one), true) => Ok(one),
        _ => {
            let path = "structured_outputs";
            let text =
                format!("Invalid '{path}': expected exactly one of json, regex, choice, grammar and json_object.");
            Err(ApiError::invalid_value(path, text))
        }
    }
}

/// The four kinds of constraint, by the names that they have here.
fn constraints(
    fields: &mut Fields<'_>,
    [json, regex, choice, grammar]: [&'static str; 4],
    found: &mut Vec<Structure>,
) -> Result<(), ApiError> {
    match fields.value(json) {
        None => {}
        Some(Value::String(text)) => {
            found.push(Structure { path: fields.path(json), spec: GrammarSpec::JsonSchema(text.clone()) });
        }
        Some(schema) => found.push(object_schema(fields.path(json), schema)?),
    }
    if let Some(text) = fields.string(regex)? {
        found.push(Structure { path: fields.path(regex), spec: GrammarSpec::Regex(text.to_owned()) });
    }
    if let Some(items) = fields.array(choice)? {
        let path = fields.path(choice);
        let texts = items.iter().enumerate().map(|(at, item)| {
            let text = item.as_str().map(str::to_owned);
            text.ok_or_else(|| ApiError::invalid_type(&format!("{path}[{at}]"), "a string", kind(item)))
        });
        let spec = GrammarSpec::Choice(texts.collect::<Result<_, _>>()?);
        found.push(Structure { path, spec });
    }
    if let Some(text) = fields.string(grammar)? {
        let kind = if is_ebnf(text) { GrammarSpec::Ebnf } else { GrammarSpec::Lark };
        found.push(Structure { path: fields.path(grammar), spec: kind(text.to_owned()) });
    }
    Ok(())
}

fn nothing_else(fields: &Fields<'_>) -> Result<(), ApiError> {
    match fields.unread().find(|(_, value)| !value.is_null()) {
        Some((name, _)) => Err(ApiError::unsupported_parameter(&fields.path(name))),
        None => Ok(()),
    }
}
