//! A call as Qwen3-Coder writes it: `<function=NAME>`, a `<parameter=NAME>` for each argument with its plain value, and their ends.

use serde_json::{Map, Value};

use super::object::Progress;

const FUNCTION: &str = "<function=";
const END_OF_FUNCTION: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const END_OF_PARAMETER: &str = "</parameter>";
/// Of a tag: more is none.
const MAX_TAG_BYTES: usize = 512;

/// What a character made known.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FoundTag {
    Nothing,
    Name(String),
    /// An argument and its text.
    Parameter {
        name: String,
        text: String,
        is_first: bool,
    },
}

/// In a call, from the first bracket on.
#[derive(Debug)]
pub(super) struct FunctionReader {
    at: At,
    text: String,
    parameters: usize,
}

#[derive(Debug)]
enum At {
    Function,
    Tag,
    Value { name: String },
}

impl FunctionReader {
    pub(super) fn new() -> Self {
        Self { at: At::Function, text: String::new(), parameters: 0 }
    }

    pub(super) fn push(&mut self, c: char) -> (FoundTag, Progress) {
        self.text.push(c);
        if let At::Value { name } = &mut self.at {
            let Some(value) = self.text.strip_suffix(END_OF_PARAMETER) else {
                return (FoundTag::Nothing, Progress::More);
            };
            let value = value.strip_prefix('\n').unwrap_or(value);
            let value = value.strip_suffix('\n').unwrap_or(value).to_owned();
            let name = std::mem::take(name);
            self.at = At::Tag;
            self.text.clear();
            self.parameters += 1;
            let is_first = self.parameters == 1;
            return (FoundTag::Parameter { name, text: value, is_first }, Progress::More);
        }
        let tag = self.text.trim_start();
        let prefix = match self.at {
            At::Function => FUNCTION,
            At::Tag | At::Value { .. } => PARAMETER,
        };
        if let Some(name) = tag.strip_prefix(prefix).and_then(|rest| rest.strip_suffix('>')) {
            let name = name.trim().to_owned();
            self.text.clear();
            return match self.at {
                At::Function => {
                    self.at = At::Tag;
                    (FoundTag::Name(name), Progress::More)
                }
                At::Tag | At::Value { .. } => {
                    self.at = At::Value { name };
                    (FoundTag::Nothing, Progress::More)
                }
            };
        }
        if matches!(self.at, At::Tag) && tag == END_OF_FUNCTION {
            return (FoundTag::Nothing, Progress::Done);
        }
        let goes_on = prefix.starts_with(tag)
            || (tag.starts_with(prefix) && tag.len() <= MAX_TAG_BYTES)
            || (matches!(self.at, At::Tag) && END_OF_FUNCTION.starts_with(tag));
        (FoundTag::Nothing, if goes_on { Progress::More } else { Progress::Broken })
    }
}

/// The JSON of a plain value, by what the function's schema says of the parameter.
pub(super) fn value(parameters: Option<&Map<String, Value>>, name: &str, text: &str) -> String {
    let schema = parameters.and_then(|schema| schema.get("properties")).and_then(|all| all.get(name));
    let kind = schema.and_then(|schema| schema.get("type")).and_then(Value::as_str);
    let plain = text.trim();
    let json = match kind {
        Some("string") => None,
        Some("boolean") if plain.eq_ignore_ascii_case("true") => Some("true".to_owned()),
        Some("boolean") if plain.eq_ignore_ascii_case("false") => Some("false".to_owned()),
        _ if plain == "None" => Some("null".to_owned()),
        _ => serde_json::from_str::<Value>(plain).is_ok().then(|| plain.to_owned()),
    };
    json.unwrap_or_else(|| Value::from(text).to_string())
}
