use serde_json::Value;
use tandem_engine::{GrammarSpec, JsonForm, WhiteSpace, check_pattern, is_ebnf};

use super::fields::{Fields, kind};
use super::structural_tag::structural_tag;
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
    let mut guided = Vec::new();
    constraints(fields, ["guided_json", "guided_regex", "guided_choice", "guided_grammar"], &mut guided)?;
    if fields.boolean("guided_json_object")? == Some(true) {
        guided.push(Structure { path: "guided_json_object".to_owned(), spec: GrammarSpec::JsonObject });
    }
    let form = white_space(fields, "guided_whitespace_pattern")?;
    let form = form.map(|(path, white_space)| (path, JsonForm { white_space, closed: false }));
    match guided.pop() {
        Some(one) => {
            found.append(&mut guided);
            found.push(formed(one, form)?);
        }
        None => form.map_or(Ok(()), |(path, _)| Err(no_json(&path)))?,
    }
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
    found.extend(structural_tag(outputs)?);
    let form = form(outputs, "whitespace_pattern")?;
    nothing_else(outputs)?;
    match (found.pop(), found.is_empty()) {
        (Some(one), true) => formed(one, form),
        _ => {
            let path = "structured_outputs";
            let text = format!(
                "Invalid '{path}': expected exactly one of json, regex, choice, grammar, json_object and structural_tag."
            );
            Err(ApiError::invalid_value(path, text))
        }
    }
}

/// The options about the form of JSON that are set, with the path of one of them.
fn form(outputs: &mut Fields<'_>, pattern: &'static str) -> Result<Option<(String, JsonForm)>, ApiError> {
    let nothing = outputs.boolean("disable_any_whitespace")?.unwrap_or(false);
    let closed = outputs.boolean("disable_additional_properties")?.unwrap_or(false);
    let white_space = white_space(outputs, pattern)?;
    match (white_space, nothing, closed) {
        (None, false, false) => Ok(None),
        (None, true, closed) => {
            let form = JsonForm { white_space: WhiteSpace::Nothing, closed };
            Ok(Some((outputs.path("disable_any_whitespace"), form)))
        }
        (None, false, true) => {
            let form = JsonForm { white_space: WhiteSpace::Compact, closed };
            Ok(Some((outputs.path("disable_additional_properties"), form)))
        }
        (Some((path, white_space)), false, closed) => Ok(Some((path, JsonForm { white_space, closed }))),
        (Some((path, _)), true, _) => {
            let text = format!("Invalid '{path}': there is no white space with 'disable_any_whitespace'.");
            Err(ApiError::invalid_value(&path, text))
        }
    }
}

fn white_space(fields: &mut Fields<'_>, name: &'static str) -> Result<Option<(String, WhiteSpace)>, ApiError> {
    let Some(pattern) = fields.string(name)? else { return Ok(None) };
    let path = fields.path(name);
    check_pattern(pattern).map_err(|reason| ApiError::invalid_schema(&path, reason))?;
    Ok(Some((path, WhiteSpace::Pattern(pattern.to_owned()))))
}

/// The constraint in that form, which only JSON has.
fn formed(structure: Structure, form: Option<(String, JsonForm)>) -> Result<Structure, ApiError> {
    let Some((asked, form)) = form else { return Ok(structure) };
    let Structure { path, spec } = structure;
    let schema = if let GrammarSpec::JsonSchema(schema) = spec {
        schema
    } else if spec == GrammarSpec::JsonObject {
        r#"{"type":"object"}"#.to_owned()
    } else {
        return Err(no_json(&asked));
    };
    Ok(Structure { path, spec: GrammarSpec::JsonSchemaIn(schema, form) })
}

fn no_json(path: &str) -> ApiError {
    ApiError::invalid_value(path, format!("Invalid '{path}': it is for output that is constrained to be JSON."))
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

pub(super) fn nothing_else(fields: &Fields<'_>) -> Result<(), ApiError> {
    match fields.unread().find(|(_, value)| !value.is_null()) {
        Some((name, _)) => Err(ApiError::unsupported_parameter(&fields.path(name))),
        None => Ok(()),
    }
}
