use std::collections::HashSet;

use serde_json::{Map, Value};

use super::format::{self, Format};
use super::{GrammarError, MAX_NESTING, pattern};

type Result<T> = std::result::Result<T, GrammarError>;

/// Items or properties that a schema may count up to.
const MAX_ITEMS: u64 = 10_000;
/// Characters that a schema may count up to: each is a state of the lexer.
const MAX_LENGTH: u64 = 10_000;

const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];
/// Say something about the schema or to a person, and nothing about what is valid.
const ANNOTATIONS: [&str; 14] = [
    "$schema",
    "$comment",
    "$anchor",
    "title",
    "description",
    "default",
    "example",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "contentMediaType",
    "contentEncoding",
    "discriminator",
];

/// Reads a JSON Schema and returns it with nothing in it but keywords that are enforced.
///
/// Annotations are left out, so that no reference can lead into them; a keyword that is not known here is refused, whether or not the
/// grammar compiler would pass over it. References lead to a schema of the same document.
///
/// With `closed`, objects whose schema names properties, and does not say whether there may be more, have no more.
///
/// # Errors
/// When it is not a schema, says what cannot be enforced, or is too large.
pub(super) fn checked(source: &str, closed: bool) -> Result<Value> {
    let value: Value = serde_json::from_str(source).map_err(|error| {
        // The parser's own bound is past ours.
        if error.to_string().starts_with("recursion limit") {
            return GrammarError::TooComplex;
        }
        GrammarError::invalid("", "This is not JSON.")
    })?;
    let mut reader = Reader { closed, ..Reader::default() };
    let schema = reader.schema(&value, Place::default())?;
    for (place, pointer) in &reader.references {
        if !reader.schemas.contains(pointer) {
            return Err(GrammarError::invalid(place, "This $ref leads to no schema."));
        }
    }
    match schema {
        Value::Bool(true) => Ok(Value::Object(Map::new())),
        Value::Bool(false) => Err(GrammarError::invalid("", "Nothing satisfies the schema.")),
        schema => Ok(schema),
    }
}

/// Where in the schema: as a client reads it, and as a reference names it.
#[derive(Clone, Default)]
struct Place {
    path: String,
    pointer: String,
    depth: usize,
}

impl Place {
    fn key(&self, key: &str) -> Self {
        let dot = if self.path.is_empty() { "" } else { "." };
        self.deeper(format!("{}{dot}{key}", self.path), key)
    }

    fn index(&self, at: usize) -> Self {
        self.deeper(format!("{}[{at}]", self.path), &at.to_string())
    }

    fn deeper(&self, path: String, step: &str) -> Self {
        let step = step.replace('~', "~0").replace('/', "~1");
        Self { path, pointer: format!("{}/{step}", self.pointer), depth: self.depth + 1 }
    }

    fn invalid<T>(&self, reason: &str) -> Result<T> {
        Err(GrammarError::invalid(&self.path, reason))
    }
}

#[derive(Default)]
struct Reader {
    /// Pointers to every schema of the document.
    schemas: HashSet<String>,
    /// Where a reference is, and the pointer that it holds.
    references: Vec<(String, String)>,
    closed: bool,
}

impl Reader {
    fn schema(&mut self, value: &Value, place: Place) -> Result<Value> {
        if place.depth > MAX_NESTING {
            return Err(GrammarError::TooComplex);
        }
        let map = match value {
            Value::Object(map) => map,
            Value::Bool(_) => {
                self.schemas.insert(place.pointer);
                return Ok(value.clone());
            }
            _ => return place.invalid("A schema is an object or a boolean."),
        };
        let mut kept = Map::new();
        for (keyword, value) in map {
            if let Some(value) = self.keyword(keyword, value, &place)? {
                kept.insert(keyword.clone(), value);
            }
        }
        // With either of these, tuples are written as in older drafts and `prefixItems` would be passed over.
        if kept.contains_key("prefixItems")
            && (kept.contains_key("additionalItems") || kept.get("items").is_some_and(Value::is_array))
        {
            return place.invalid("'prefixItems' cannot be combined with the tuples of older drafts.");
        }
        countable(&kept, &place)?;
        write_out_format(&mut kept);
        let names_properties = kept.contains_key("properties") || kept.contains_key("patternProperties");
        if self.closed && names_properties && !kept.contains_key("additionalProperties") {
            kept.insert("additionalProperties".to_owned(), false.into());
        }
        self.schemas.insert(place.pointer);
        Ok(Value::Object(kept))
    }

    /// What is kept of a keyword's value; nothing of an annotation's.
    fn keyword(&mut self, keyword: &str, value: &Value, place: &Place) -> Result<Option<Value>> {
        let here = place.key(keyword);
        match keyword {
            "$id" | "id" if place.depth == 0 => return Ok(None),
            // Options of the grammar compiler are ours to set.
            "x-guidance" => return here.invalid("Unsupported keyword."),
            _ if ANNOTATIONS.contains(&keyword) || keyword.starts_with("x-") => return Ok(None),
            "$defs" | "definitions" | "properties" | "patternProperties" => {
                let Value::Object(map) = value else { return here.invalid("Expected an object.") };
                let mut kept = Map::new();
                for (name, value) in map {
                    let there = here.key(name);
                    let name = match keyword {
                        "patternProperties" => pattern::from_ecma(name).or_else(|reason| there.invalid(reason))?,
                        _ => name.clone(),
                    };
                    if kept.insert(name, self.schema(value, there.clone())?).is_some() {
                        return there.invalid("Patterns must not match the same name.");
                    }
                }
                return Ok(Some(Value::Object(kept)));
            }
            "items" if value.is_array() => return self.schemas(value, &here),
            "anyOf" | "oneOf" | "allOf" | "prefixItems" => return self.schemas(value, &here),
            "items" | "additionalItems" | "additionalProperties" => return self.schema(value, here).map(Some),
            "$ref" => self.reference(value, &here)?,
            "type" => types(value, &here)?,
            "enum" | "const" => values(keyword, value, &here)?,
            "required" => {
                if !value.as_array().is_some_and(|names| names.iter().all(Value::is_string)) {
                    return here.invalid("Expected an array of strings.");
                }
            }
            "minItems" | "maxItems" | "minProperties" | "maxProperties" => count(value, MAX_ITEMS, &here)?,
            "minLength" | "maxLength" => count(value, MAX_LENGTH, &here)?,
            "minimum" | "maximum" if value.is_number() => {}
            "exclusiveMinimum" | "exclusiveMaximum" if value.is_number() || value.is_boolean() => {}
            "multipleOf" if value.as_f64().is_some_and(|step| step > 0.0) => {}
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => {
                return here.invalid("Expected a number.");
            }
            "multipleOf" => return here.invalid("Expected a number above 0."),
            "pattern" => {
                let Value::String(text) = value else { return here.invalid("Expected a string.") };
                return pattern::from_ecma(text).or_else(|reason| here.invalid(reason)).map(|text| Some(text.into()));
            }
            "format" => {
                if value.as_str().and_then(format::named).is_none() {
                    return here.invalid("Unsupported format.");
                }
            }
            _ => return here.invalid("Unsupported keyword."),
        }
        Ok(Some(value.clone()))
    }

    fn schemas(&mut self, value: &Value, place: &Place) -> Result<Option<Value>> {
        match value {
            Value::Array(items) if !items.is_empty() => {
                let kept = items.iter().enumerate().map(|(at, item)| self.schema(item, place.index(at)));
                kept.collect::<Result<_>>().map(Value::Array).map(Some)
            }
            _ => place.invalid("Expected an array of one or more schemas."),
        }
    }

    fn reference(&mut self, value: &Value, place: &Place) -> Result<()> {
        let Value::String(reference) = value else { return place.invalid("Expected a string.") };
        let Some(fragment) = reference.strip_prefix('#') else {
            return place.invalid("Remote $ref is not supported.");
        };
        if !fragment.is_empty() && !fragment.starts_with('/') {
            return place.invalid("Only '#' and '#/…' are supported as $ref.");
        }
        let Some(pointer) = percent_decoded(fragment) else { return place.invalid("This $ref leads to no schema.") };
        self.references.push((place.path.clone(), pointer));
        Ok(())
    }
}

/// A text may say a name twice, which counts once, and nothing keeps it from that. So names that have to be there are counted, and one more.
fn countable(kept: &Map<String, Value>, place: &Place) -> Result<()> {
    let required = kept.get("required").and_then(Value::as_array);
    let required: HashSet<_> = required.into_iter().flatten().filter_map(Value::as_str).collect();
    match kept.get("minProperties").and_then(Value::as_u64) {
        Some(least) if least > required.len() as u64 + 1 => {
            place.key("minProperties").invalid("'minProperties' is supported up to one more than 'required' has names.")
        }
        _ => Ok(()),
    }
}

/// Makes a pattern of a format that has one.
fn write_out_format(kept: &mut Map<String, Value>) {
    let format = kept.get("format").and_then(Value::as_str).and_then(format::named);
    let Some(Format::Pattern(pattern)) = format else { return };
    kept.remove("format");
    if kept.contains_key("pattern") {
        let further = Map::from_iter([("pattern".to_owned(), pattern.into())]);
        let all = kept.entry("allOf").or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(all) = all {
            all.push(Value::Object(further));
        }
    } else {
        kept.insert("pattern".to_owned(), pattern.into());
    }
}

fn types(value: &Value, place: &Place) -> Result<()> {
    let known = |value: &Value| value.as_str().is_some_and(|name| TYPES.contains(&name));
    match value {
        Value::Array(names) if !names.is_empty() && names.iter().all(known) => Ok(()),
        name if known(name) => Ok(()),
        _ => place.invalid("Unknown type."),
    }
}

fn values(keyword: &str, value: &Value, place: &Place) -> Result<()> {
    if keyword == "enum" && value.as_array().is_none_or(Vec::is_empty) {
        return place.invalid("Expected an array of one or more values.");
    }
    if place.depth + nesting(value) > MAX_NESTING { Err(GrammarError::TooComplex) } else { Ok(()) }
}

/// Recurses no deeper than the JSON parser did.
fn nesting(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(nesting).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(nesting).max().unwrap_or(0),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

fn count(value: &Value, max: u64, place: &Place) -> Result<()> {
    match value {
        Value::Number(number) if number.as_u64().is_some_and(|count| count <= max) => Ok(()),
        Value::Number(number) if number.as_f64().is_some_and(|count| count > max as f64) => {
            Err(GrammarError::TooComplex)
        }
        _ => place.invalid("Expected a whole number, 0 or more."),
    }
}

/// Undoes the encoding of a URI's fragment (RFC 3986, 2.1).
fn percent_decoded(fragment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(fragment.len());
    let mut rest = fragment.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
            let (high, low) = (digit(rest.next())?, digit(rest.next())?);
            bytes.push((high * 16 + low) as u8);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}
