//! Free text with parts of a given form in it, as vLLM and `XGrammar` name it: a trigger in the text begins one of the parts.

use serde_json::{Map, Value};
use tandem_engine::{GrammarSpec, Part};

use super::fields::{Fields, kind};
use super::structured::{Structure, nothing_else};
use crate::openai::error::ApiError;

const NAME: &str = "structural_tag";
const MAX_STRUCTURES: usize = 128;

/// Reads the field of that name: an object, or JSON of one.
pub(super) fn structural_tag(outputs: &mut Fields<'_>) -> Result<Option<Structure>, ApiError> {
    let path = outputs.path(NAME);
    let parsed;
    let object = match outputs.value(NAME) {
        None => return Ok(None),
        Some(Value::Object(object)) => object,
        Some(Value::String(text)) => {
            parsed = serde_json::from_str::<Map<String, Value>>(text)
                .map_err(|_| ApiError::invalid_value(&path, format!("Invalid '{path}': expected a JSON object.")))?;
            &parsed
        }
        Some(other) => return Err(ApiError::invalid_type(&path, "a string", kind(other))),
    };
    let mut tag = Fields::new(path.clone(), object);
    tag.one_of("type", &[NAME])?;
    let triggers = items(&mut tag, "triggers")?.iter().enumerate().map(|(at, trigger)| {
        let path = format!("{path}.triggers[{at}]");
        match trigger.as_str() {
            None => Err(ApiError::invalid_type(&path, "a string", kind(trigger))),
            Some("") => Err(ApiError::invalid_value(&path, format!("Invalid '{path}': it is empty."))),
            Some(text) => Ok(text.to_owned()),
        }
    });
    let triggers: Vec<String> = triggers.collect::<Result<_, _>>()?;
    let structures = items(&mut tag, "structures")?.iter().enumerate();
    let structures = structures.map(|(at, one)| structure(format!("{path}.structures[{at}]"), one, &triggers));
    let structures = structures.collect::<Result<_, _>>()?;
    nothing_else(&tag)?;
    let free = Part::Free { without: triggers };
    let more = Part::Sequence(vec![Part::Choice(structures), free.clone()]);
    let part = Part::Sequence(vec![free, Part::Repeated(Box::new(more))]);
    Ok(Some(Structure { path, spec: GrammarSpec::Parts(part) }))
}

fn structure(path: String, value: &Value, triggers: &[String]) -> Result<Part, ApiError> {
    let mut fields = Fields::of(path, value)?;
    let begin = fields.required_string("begin")?;
    if !triggers.iter().any(|trigger| begin.starts_with(trigger.as_str())) {
        let path = fields.path("begin");
        return Err(ApiError::invalid_value(&path, format!("Invalid '{path}': it begins with none of the triggers.")));
    }
    let end = fields.required_string("end")?;
    let path = fields.path("schema");
    let schema = match fields.value("schema") {
        None => return Err(ApiError::missing(&path)),
        Some(schema @ Value::Object(_)) => schema.to_string(),
        Some(other) => return Err(ApiError::invalid_type(&path, "an object", kind(other))),
    };
    nothing_else(&fields)?;
    let mut parts = vec![Part::Text(begin.to_owned()), Part::Json { path, schema }];
    if !end.is_empty() {
        parts.push(Part::Text(end.to_owned()));
    }
    Ok(Part::Sequence(parts))
}

/// A list that is there and has something in it.
fn items<'a>(tag: &mut Fields<'a>, name: &'static str) -> Result<&'a [Value], ApiError> {
    let path = tag.path(name);
    let items = tag.array(name)?.ok_or_else(|| ApiError::missing(&path))?;
    match items.len() {
        0 => Err(ApiError::empty_array(&path)),
        1..=MAX_STRUCTURES => Ok(items),
        more => Err(ApiError::array_too_long(&path, MAX_STRUCTURES, more)),
    }
}
