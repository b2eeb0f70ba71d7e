//! A JSON object, field by field: types and ranges are checked with OpenAI's codes, and every error names the path of its field.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::openai::error::ApiError;

type Result<T> = std::result::Result<T, ApiError>;

/// Reads an object and remembers which of its fields were asked for. Null means absent.
#[derive(Debug)]
pub(in crate::completion) struct Fields<'a> {
    path: String,
    map: &'a Map<String, Value>,
    read: HashSet<&'static str>,
}

impl<'a> Fields<'a> {
    /// The object at `path`, which is empty for the body itself.
    pub(in crate::completion) fn new(path: impl Into<String>, map: &'a Map<String, Value>) -> Self {
        Self { path: path.into(), map, read: HashSet::new() }
    }

    /// The value at `path`, which has to be an object.
    pub(in crate::completion) fn of(path: impl Into<String>, value: &'a Value) -> Result<Self> {
        let path = path.into();
        let Value::Object(map) = value else { return Err(ApiError::invalid_type(&path, "an object", kind(value))) };
        Ok(Self::new(path, map))
    }

    /// How errors name a field of this object.
    pub(in crate::completion) fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Fields that nothing asked for.
    pub(in crate::completion) fn unread(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.map
            .iter()
            .filter(|(name, _)| !self.read.contains(name.as_str()))
            .map(|(name, value)| (name.as_str(), value))
    }

    /// Whether the field is there, be it null.
    pub(in crate::completion) fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    pub(in crate::completion) fn value(&mut self, name: &'static str) -> Option<&'a Value> {
        #[cfg(test)]
        super::asked::note(&self.path(name));
        self.read.insert(name);
        self.map.get(name).filter(|value| !value.is_null())
    }

    pub(in crate::completion) fn string(&mut self, name: &'static str) -> Result<Option<&'a str>> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, "a string", other)),
        }
    }

    pub(in crate::completion) fn required_string(&mut self, name: &'static str) -> Result<&'a str> {
        self.string(name)?.ok_or_else(|| ApiError::missing(&self.path(name)))
    }

    pub(in crate::completion) fn boolean(&mut self, name: &'static str) -> Result<Option<bool>> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(self.wrong(name, "a boolean", other)),
        }
    }

    /// An integer within the range. One that no `i64` holds is above or below any.
    pub(in crate::completion) fn integer(
        &mut self,
        name: &'static str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let path = self.path(name);
        integer(&path, value, range).map(Some)
    }

    /// An integer of 1 to `max`, which fits its type.
    pub(in crate::completion) fn count(&mut self, name: &'static str, max: u32) -> Result<Option<u32>> {
        Ok(self.integer(name, 1..=i64::from(max))?.map(|value| value as u32))
    }

    /// A number of the range.
    pub(in crate::completion) fn number(
        &mut self,
        name: &'static str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f32>> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let Some(number) = value.as_f64() else { return Err(self.wrong(name, "a decimal", value)) };
        if number < *range.start() {
            return Err(ApiError::decimal_below(&self.path(name), &format!(">= {}", range.start()), number));
        }
        if number > *range.end() {
            return Err(ApiError::decimal_above(&self.path(name), *range.end(), number));
        }
        Ok(Some(number as f32))
    }

    pub(in crate::completion) fn array(&mut self, name: &'static str) -> Result<Option<&'a [Value]>> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(self.wrong(name, "an array", other)),
        }
    }

    pub(in crate::completion) fn object(&mut self, name: &'static str) -> Result<Option<Self>> {
        match self.value(name) {
            None => Ok(None),
            Some(value) => Fields::of(self.path(name), value).map(Some),
        }
    }

    /// The entries of an object whose keys are the client's own.
    pub(in crate::completion) fn entries(&mut self, name: &'static str) -> Result<Option<&'a Map<String, Value>>> {
        Ok(self.object(name)?.map(|fields| fields.map))
    }

    pub(in crate::completion) fn one_of(
        &mut self,
        name: &'static str,
        supported: &[&'static str],
    ) -> Result<Option<&'a str>> {
        let Some(text) = self.string(name)? else { return Ok(None) };
        if supported.contains(&text) {
            return Ok(Some(text));
        }
        Err(ApiError::not_one_of(&self.path(name), text, supported))
    }

    fn wrong(&self, name: &str, expected: &str, got: &Value) -> ApiError {
        ApiError::invalid_type(&self.path(name), expected, kind(got))
    }
}

/// The value at `path`, which has to be an integer within the range.
pub(crate) fn integer(path: &str, value: &Value, range: RangeInclusive<i64>) -> Result<i64> {
    let wrong = || ApiError::invalid_type(path, "an integer", kind(value));
    let Value::Number(number) = value else { return Err(wrong()) };
    let Some(integer) = number.as_i64() else {
        // An integer of more than 64 bits reaches us as a decimal without a fraction.
        let past_the_end = number.is_u64() || number.as_f64().is_some_and(|n| n.abs() >= i64::MAX as f64);
        return Err(match number.as_f64() {
            Some(n) if past_the_end && n > 0.0 => ApiError::integer_above(path, *range.end(), &number.to_string()),
            Some(_) if past_the_end => ApiError::integer_below(path, *range.start(), &number.to_string()),
            _ => wrong(),
        });
    };
    if integer < *range.start() {
        return Err(ApiError::integer_below(path, *range.start(), &number.to_string()));
    }
    if integer > *range.end() {
        return Err(ApiError::integer_above(path, *range.end(), &number.to_string()));
    }
    Ok(integer)
}

/// What a value is, with its article.
pub(in crate::completion) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a decimal number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(json: &str) -> Map<String, Value> {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn errors_name_the_path_and_the_kind() {
        let body = map(r#"{"n":"1","x":1.0,"big":9223372036854775808,"t":1e308,"o":{"s":[]}}"#);
        let mut fields = Fields::new("", &body);
        let message = |result: Result<Option<i64>>| result.unwrap_err().body.message;
        assert_eq!(
            message(fields.integer("n", 1..=8)),
            "Invalid type for 'n': expected an integer, but got a string instead."
        );
        assert_eq!(
            message(fields.integer("x", 1..=8)),
            "Invalid type for 'x': expected an integer, but got a decimal number instead."
        );
        assert_eq!(
            message(fields.integer("big", 1..=8)),
            "Invalid 'big': integer above maximum value. Expected a value <= 8, but got 9223372036854775808 instead."
        );
        assert_eq!(fields.number("t", 0.0..=2.0).unwrap_err().body.code, Some("decimal_above_max_value"));
        let mut inner = fields.object("o").unwrap().unwrap();
        assert_eq!(inner.string("s").unwrap_err().body.param.as_deref(), Some("o.s"));
    }

    #[test]
    fn null_is_absent_and_unread_fields_are_known() {
        let body = map(r#"{"a":null,"b":1,"c":2}"#);
        let mut fields = Fields::new("", &body);
        assert_eq!(fields.integer("a", 0..=1).unwrap(), None);
        assert_eq!(fields.integer("b", 0..=1).unwrap(), Some(1));
        assert_eq!(fields.unread().map(|(name, _)| name).collect::<Vec<_>>(), ["c"]);
    }
}
