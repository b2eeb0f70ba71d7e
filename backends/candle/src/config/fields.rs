use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Typed access to a JSON object, with errors that name the field.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    pub(crate) fn new(object: &'a Map<String, Value>) -> Self {
        Self(object)
    }

    /// The field, `None` when it is missing or null.
    pub(crate) fn optional<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, String> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(value).map(Some).map_err(|error| format!("invalid config: {name}: {error}")),
        }
    }

    pub(crate) fn required<T: DeserializeOwned>(&self, name: &str) -> Result<T, String> {
        self.optional(name)?.ok_or_else(|| missing(name))
    }

    /// A field that means something else when it is null (`None`) than when it is not there (`absent`).
    pub(crate) fn nullable<T>(
        &self,
        name: &str,
        absent: Option<T>,
        read: impl FnOnce(&Self, &str) -> Result<T, String>,
    ) -> Result<Option<T>, String> {
        match self.0.get(name) {
            None => Ok(absent),
            Some(Value::Null) => Ok(None),
            Some(_) => read(self, name).map(Some),
        }
    }

    /// An object inside of this one, `None` when it is missing, null or empty.
    pub(crate) fn object(&self, name: &str) -> Result<Option<Self>, String> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Self(object)).filter(|object| !object.0.is_empty())),
            Some(other) => Err(format!("invalid config: {name}: {other} is not an object")),
        }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| !value.is_null())
    }

    pub(crate) fn flag(&self, name: &str) -> Result<bool, String> {
        Ok(self.optional(name)?.unwrap_or(false))
    }

    pub(crate) fn size(&self, name: &str, max: usize) -> Result<usize, String> {
        self.optional_size(name, max)?.ok_or_else(|| missing(name))
    }

    pub(crate) fn optional_size(&self, name: &str, max: usize) -> Result<Option<usize>, String> {
        match self.optional::<usize>(name)? {
            Some(size) if !(1..=max).contains(&size) => {
                Err(format!("invalid config: {name}: {size} is not in 1..={max}"))
            }
            other => Ok(other),
        }
    }

    pub(crate) fn positive(&self, name: &str) -> Result<f64, String> {
        self.optional_positive(name)?.ok_or_else(|| missing(name))
    }

    pub(crate) fn optional_positive(&self, name: &str) -> Result<Option<f64>, String> {
        match self.optional::<f64>(name)? {
            Some(number) if !(number.is_finite() && number > 0.0) => {
                Err(format!("invalid config: {name}: {number} is not positive"))
            }
            other => Ok(other),
        }
    }
}

fn missing(name: &str) -> String {
    format!("invalid config: {name}: missing")
}
