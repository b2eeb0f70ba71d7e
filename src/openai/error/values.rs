use super::{ApiError, shortened};

/// The shape of a body or of a value in it.
impl ApiError {
    #[must_use]
    pub fn invalid_json(line: usize, column: usize) -> Self {
        let message = format!("We could not parse the JSON body of your request. (line {line} column {column})");
        Self::request(400, "invalid_json", None, message)
    }

    #[must_use]
    pub fn not_an_object() -> Self {
        Self::request(400, "invalid_type", None, "Expected an object.")
    }

    #[must_use]
    pub fn duplicate_field(name: &str) -> Self {
        Self::invalid("duplicate_field", name, format!("Duplicate field: '{name}'."))
    }

    #[must_use]
    pub fn missing(param: &str) -> Self {
        Self::invalid("missing_required_parameter", param, format!("Missing required parameter: '{param}'."))
    }

    /// `expected` and `got` with their articles: "an integer", "a string".
    #[must_use]
    pub fn invalid_type(param: &str, expected: &str, got: &str) -> Self {
        let message = format!("Invalid type for '{param}': expected {expected}, but got {got} instead.");
        Self::invalid("invalid_type", param, message)
    }

    #[must_use]
    pub fn invalid_value(param: &str, message: impl Into<String>) -> Self {
        Self::invalid("invalid_value", param, message)
    }

    #[must_use]
    pub fn not_one_of(param: &str, got: &str, supported: &[&str]) -> Self {
        let got = shortened(got);
        let message = format!("Invalid value: '{got}'. Supported values are: {}.", listed(supported));
        Self::invalid("invalid_value", param, message)
    }

    #[must_use]
    pub fn nul_character(param: &str) -> Self {
        Self::invalid("invalid_value", param, format!("Invalid '{param}': NUL characters are not allowed."))
    }

    #[must_use]
    pub fn empty_array(param: &str) -> Self {
        let message = format!(
            "Invalid '{param}': empty array. Expected an array with minimum length 1, but got an empty array instead."
        );
        Self::invalid("empty_array", param, message)
    }

    #[must_use]
    pub fn empty_string(param: &str) -> Self {
        let message = format!(
            "Invalid '{param}': empty string. Expected a string with minimum length 1, but got an empty string instead."
        );
        Self::invalid("empty_string", param, message)
    }

    #[must_use]
    pub fn array_too_long(param: &str, max: usize, got: usize) -> Self {
        let message = format!(
            "Invalid '{param}': array too long. Expected an array with maximum length {max}, but got an array with length {got} instead."
        );
        Self::invalid("array_above_max_length", param, message)
    }

    #[must_use]
    pub fn string_too_long(param: &str, max: usize, got: usize) -> Self {
        let message = format!(
            "Invalid '{param}': string too long. Expected a string with maximum length {max}, but got a string with length {got} instead."
        );
        Self::invalid("string_above_max_length", param, message)
    }

    #[must_use]
    pub fn object_too_large(param: &str, max: usize, got: usize) -> Self {
        let message = format!(
            "Invalid '{param}': too many properties. Expected an object with at most {max} properties, but got an object with {got} properties instead."
        );
        Self::invalid("object_above_max_properties", param, message)
    }

    #[must_use]
    pub fn integer_below(param: &str, min: i64, got: &str) -> Self {
        let message = format!(
            "Invalid '{param}': integer below minimum value. Expected a value >= {min}, but got {got} instead."
        );
        Self::invalid("integer_below_min_value", param, message)
    }

    #[must_use]
    pub fn integer_above(param: &str, max: i64, got: &str) -> Self {
        let message = format!(
            "Invalid '{param}': integer above maximum value. Expected a value <= {max}, but got {got} instead."
        );
        Self::invalid("integer_above_max_value", param, message)
    }

    #[must_use]
    pub fn decimal_below(param: &str, bound: &str, got: f64) -> Self {
        let message =
            format!("Invalid '{param}': decimal below minimum value. Expected a value {bound}, but got {got} instead.");
        Self::invalid("decimal_below_min_value", param, message)
    }

    #[must_use]
    pub fn decimal_above(param: &str, max: f64, got: f64) -> Self {
        let message = format!(
            "Invalid '{param}': decimal above maximum value. Expected a value <= {max}, but got {got} instead."
        );
        Self::invalid("decimal_above_max_value", param, message)
    }

    #[must_use]
    pub fn unknown_parameter(name: &str) -> Self {
        let name = shortened(name);
        Self::invalid("unknown_parameter", name.clone(), format!("Unknown parameter: '{name}'."))
    }

    #[must_use]
    pub fn unsupported_parameter(name: &str) -> Self {
        let name = shortened(name);
        Self::invalid("unsupported_parameter", name.clone(), format!("Unsupported parameter: '{name}'."))
    }

    #[must_use]
    pub fn unsupported_value(param: &str, message: impl Into<String>) -> Self {
        Self::invalid("unsupported_value", param, message)
    }
}

/// `'a', 'b', and 'c'`.
fn listed(values: &[&str]) -> String {
    let quoted: Vec<String> = values.iter().map(|value| format!("'{value}'")).collect();
    match quoted.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        [one, other] => format!("{one} and {other}"),
        [head @ .., last] => format!("{}, and {last}", head.join(", ")),
    }
}
