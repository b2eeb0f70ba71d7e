//! Bytes to a JSON object, refusing what `serde_json` alone lets pass: a key given twice, of which filters and servers may see different ones.

use std::cell::RefCell;
use std::fmt;

use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::openai::error::ApiError;

/// Parses a request body.
///
/// # Errors
/// `invalid_json` with the place, `duplicate_field` with the key, `invalid_type` when it is not an object.
pub(crate) fn object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let duplicate = RefCell::new(None);
    let mut json = serde_json::Deserializer::from_slice(body);
    let parsed = Strict { duplicate: &duplicate }.deserialize(&mut json).and_then(|value| json.end().map(|()| value));
    match parsed {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(ApiError::not_an_object()),
        Err(error) => Err(match duplicate.into_inner() {
            Some(key) => ApiError::duplicate_field(&key),
            None => ApiError::invalid_json(error.line(), error.column()),
        }),
    }
}

/// Builds a [`Value`] and stops at the first key that an object has twice.
#[derive(Clone, Copy)]
struct Strict<'a> {
    duplicate: &'a RefCell<Option<String>>,
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                self.duplicate.replace(Some(key));
                return Err(de::Error::custom("duplicate field"));
            }
            let value = entries.next_value_seed(self)?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_read_as_serde_json_reads_them() {
        let body = r#"{"a":[1,-2,2.5,1e3,true,null],"b":{"c":"\u00e9\n"},"d":18446744073709551615}"#;
        let expected: Map<String, Value> = serde_json::from_str(body).unwrap();
        assert_eq!(object(body.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn what_is_not_json_is_refused_with_its_place() {
        for body in ["", "{", "{}x", "\u{feff}{}", r#"{"a":1e400}"#, r#"{"a":NaN}"#, r#"{"a":"\ud800"}"#] {
            let error = object(body.as_bytes()).unwrap_err();
            assert_eq!((error.status, error.body.code), (400, Some("invalid_json")), "{body:?}");
        }
        let error = object(b"{\n  \"a\": ]}").unwrap_err();
        assert!(error.body.message.ends_with("(line 2 column 8)"), "{}", error.body.message);
        let deep = "[".repeat(200) + &"]".repeat(200);
        assert_eq!(object(deep.as_bytes()).unwrap_err().body.code, Some("invalid_json"));
    }

    #[test]
    fn a_key_given_twice_is_refused_by_name_at_any_depth() {
        for (body, key) in [(r#"{"model":"a","model":"b"}"#, "model"), (r#"{"a":[{"x":1,"x":1}]}"#, "x")] {
            let error = object(body.as_bytes()).unwrap_err();
            assert_eq!((error.body.code, error.body.param.as_deref()), (Some("duplicate_field"), Some(key)));
        }
    }

    #[test]
    fn only_objects_are_bodies() {
        for body in ["[]", "\"x\"", "1", "null"] {
            assert_eq!(object(body.as_bytes()).unwrap_err().body.code, Some("invalid_type"), "{body}");
        }
    }
}
