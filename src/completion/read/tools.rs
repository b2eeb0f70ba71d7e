use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::fields::{Fields, kind};
use super::text::without_nul;
use crate::openai::error::ApiError;

const MAX_TOOLS: usize = 128;
const MAX_NAME_CHARS: usize = 64;

/// The functions that the model may call, and whether it has to.
#[derive(Clone, Debug)]
pub(in crate::completion) struct Tools {
    /// At least one.
    pub(in crate::completion) list: Vec<Tool>,
    pub(in crate::completion) choice: ToolChoice,
    /// Whether there may be several calls in one answer.
    pub(in crate::completion) parallel: bool,
    /// The request and its answer are in the deprecated form: `functions` and `function_call`.
    pub(in crate::completion) deprecated: bool,
}

/// A function.
#[derive(Clone, Debug)]
pub(in crate::completion) struct Tool {
    pub(in crate::completion) name: String,
    pub(in crate::completion) description: Option<String>,
    /// A JSON Schema of an object.
    pub(in crate::completion) parameters: Map<String, Value>,
    /// Where the client finds the parameters.
    pub(in crate::completion) path: String,
    /// Calls are to follow the schema also where the model itself decides to call.
    pub(in crate::completion) strict: bool,
}

/// Whether the model calls a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::completion) enum ToolChoice {
    Auto,
    Required,
    /// This one, by its place in the list.
    Named(usize),
}

impl Tools {
    /// The request's field that has them.
    pub(in crate::completion) fn field(&self) -> &'static str {
        if self.deprecated { "functions" } else { "tools" }
    }

    /// Whether calls, if the model makes any, have to follow their schemas.
    pub(in crate::completion) fn is_constrained(&self) -> bool {
        self.choice != ToolChoice::Auto || self.list.iter().any(|tool| tool.strict)
    }
}

impl Tool {
    /// As templates expect it.
    pub(in crate::completion) fn value(&self) -> Value {
        let mut function = Map::new();
        function.insert("name".to_owned(), self.name.clone().into());
        if let Some(description) = &self.description {
            function.insert("description".to_owned(), description.clone().into());
        }
        function.insert("parameters".to_owned(), Value::Object(self.parameters.clone()));
        json!({ "type": "function", "function": function })
    }
}

/// Reads `tools`, `tool_choice` and `parallel_tool_calls`, or their deprecated forms. None when the model shall not call anything.
pub(in crate::completion) fn tools(fields: &mut Fields<'_>) -> Result<Option<Tools>, ApiError> {
    let listed = fields.array("tools")?;
    let functions = fields.array("functions")?;
    let parallel = fields.boolean("parallel_tool_calls")?.unwrap_or(true);
    let (name, items) = match (listed, functions) {
        (Some(_), Some(_)) => {
            let text = "Invalid 'functions': it cannot be used together with 'tools'.";
            return Err(ApiError::invalid_value("functions", text));
        }
        (None, Some(items)) => ("functions", items),
        (Some(items), None) => ("tools", items),
        (None, None) => return without_tools(fields),
    };
    if items.is_empty() {
        return Err(ApiError::empty_array(name));
    }
    if items.len() > MAX_TOOLS {
        return Err(ApiError::array_too_long(name, MAX_TOOLS, items.len()));
    }
    let deprecated = name == "functions";
    let read = |(at, item): (usize, &Value)| {
        let fields = Fields::of(format!("{name}[{at}]"), item)?;
        if deprecated { function(fields) } else { tool(fields) }
    };
    let mut list = items.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?;
    let mut names = HashSet::new();
    if let Some(at) = list.iter().position(|tool| !names.insert(tool.name.as_str())) {
        let path = format!("{name}[{at}]{}.name", if deprecated { "" } else { ".function" });
        let text = format!("Invalid '{path}': there is another function of the name '{}'.", list[at].name);
        return Err(ApiError::invalid_value(&path, text));
    }
    let other = if deprecated { "tool_choice" } else { "function_call" };
    if fields.value(other).is_some() {
        let text = format!("Invalid '{other}': it cannot be used together with '{name}'.");
        return Err(ApiError::invalid_value(other, text));
    }
    let choice = if deprecated { function_call(fields, &list)? } else { tool_choice(fields, &mut list)? };
    let parallel = parallel && !deprecated && !matches!(choice, Some(ToolChoice::Named(_)));
    Ok(choice.map(|choice| Tools { list, choice, parallel, deprecated }))
}

/// A choice needs something to choose from.
fn without_tools(fields: &mut Fields<'_>) -> Result<Option<Tools>, ApiError> {
    for (choice, list) in [("tool_choice", "tools"), ("function_call", "functions")] {
        match fields.value(choice) {
            None => {}
            Some(Value::String(text)) if text == "none" => {}
            Some(_) => {
                let text =
                    format!("Invalid value for '{choice}': '{choice}' is only allowed when '{list}' are specified.");
                return Err(ApiError::invalid_value(choice, text));
            }
        }
    }
    Ok(None)
}

fn tool(mut fields: Fields<'_>) -> Result<Tool, ApiError> {
    if fields.one_of("type", &["function"])?.is_none() {
        return Err(ApiError::missing(&fields.path("type")));
    }
    let described = fields.object("function")?.ok_or_else(|| ApiError::missing(&fields.path("function")))?;
    function(described)
}

fn function(mut fields: Fields<'_>) -> Result<Tool, ApiError> {
    let name = name(&mut fields)?.to_owned();
    let description = fields.string("description")?.map(str::to_owned);
    if let Some(text) = &description {
        without_nul(&fields.path("description"), text)?;
    }
    let path = fields.path("parameters");
    let mut parameters = match fields.value("parameters") {
        // Without parameters a function has none.
        None => Map::from_iter([("type".to_owned(), "object".into()), ("properties".to_owned(), json!({}))]),
        Some(Value::Object(schema)) => schema.clone(),
        Some(other) => return Err(ApiError::invalid_type(&path, "an object", kind(other))),
    };
    if parameters.is_empty() {
        parameters.insert("type".to_owned(), "object".into());
        parameters.insert("properties".to_owned(), json!({}));
    }
    match parameters.get("type") {
        None => {}
        Some(Value::String(name)) if name == "object" => {}
        Some(_) => {
            let path = format!("{path}.type");
            let text = format!("Invalid '{path}': the parameters of a function are a schema of type 'object'.");
            return Err(ApiError::invalid_value(&path, text));
        }
    }
    let nul = texts(&Value::Object(parameters.clone())).any(|text| text.contains('\0'));
    if nul {
        return Err(ApiError::nul_character(&path));
    }
    let strict = fields.boolean("strict")?.unwrap_or(false);
    Ok(Tool { name, description, parameters, path, strict })
}

/// A function's name, of the form that all models can write.
fn name<'a>(fields: &mut Fields<'a>) -> Result<&'a str, ApiError> {
    let name = fields.required_string("name")?;
    let plain = |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | '-');
    if name.is_empty() || name.len() > MAX_NAME_CHARS || !name.chars().all(plain) {
        let path = fields.path("name");
        let text = format!("Invalid '{path}': expected 1 to {MAX_NAME_CHARS} letters, digits, underscores or dashes.");
        return Err(ApiError::invalid_value(&path, text));
    }
    Ok(name)
}

/// None for `none`. Where only some tools are allowed, the others are taken from the list.
fn tool_choice(fields: &mut Fields<'_>, list: &mut Vec<Tool>) -> Result<Option<ToolChoice>, ApiError> {
    const FIELD: &str = "tool_choice";
    let mut choice = match fields.value(FIELD) {
        None => return Ok(Some(ToolChoice::Auto)),
        Some(Value::String(word)) => return chosen(FIELD, word, &["none", "auto", "required"]),
        Some(Value::Object(_)) => fields.object(FIELD)?.ok_or_else(|| ApiError::missing(FIELD))?,
        Some(other) => return Err(ApiError::invalid_type(FIELD, "a string or an object", kind(other))),
    };
    match choice.one_of("type", &["function", "allowed_tools"])? {
        None => Err(ApiError::missing(&choice.path("type"))),
        Some("function") => {
            let mut function = choice.object("function")?.ok_or_else(|| ApiError::missing(&choice.path("function")))?;
            named(FIELD, function.required_string("name")?, list).map(|at| Some(ToolChoice::Named(at)))
        }
        Some(_) => {
            let path = choice.path("allowed_tools");
            let mut allowed = choice.object("allowed_tools")?.ok_or_else(|| ApiError::missing(&path))?;
            let mode = allowed.one_of("mode", &["auto", "required"])?;
            let mode = mode.ok_or_else(|| ApiError::missing(&allowed.path("mode")))?;
            let path = allowed.path("tools");
            let items = allowed.array("tools")?.ok_or_else(|| ApiError::missing(&path))?;
            if items.is_empty() {
                return Err(ApiError::empty_array(&path));
            }
            let mut kept = HashSet::new();
            for (at, item) in items.iter().enumerate() {
                let mut item = Fields::of(format!("{path}[{at}]"), item)?;
                if item.one_of("type", &["function"])?.is_none() {
                    return Err(ApiError::missing(&item.path("type")));
                }
                let mut function = item.object("function")?.ok_or_else(|| ApiError::missing(&item.path("function")))?;
                kept.insert(named(FIELD, function.required_string("name")?, list)?);
            }
            let mut at = 0..;
            list.retain(|_| at.next().is_some_and(|at| kept.contains(&at)));
            Ok(Some(if mode == "required" { ToolChoice::Required } else { ToolChoice::Auto }))
        }
    }
}

fn function_call(fields: &mut Fields<'_>, list: &[Tool]) -> Result<Option<ToolChoice>, ApiError> {
    const FIELD: &str = "function_call";
    match fields.value(FIELD) {
        None => Ok(Some(ToolChoice::Auto)),
        Some(Value::String(word)) => chosen(FIELD, word, &["none", "auto"]),
        Some(value) => {
            let mut choice = Fields::of(FIELD, value)?;
            named(FIELD, choice.required_string("name")?, list).map(|at| Some(ToolChoice::Named(at)))
        }
    }
}

fn chosen(field: &str, word: &str, supported: &[&str]) -> Result<Option<ToolChoice>, ApiError> {
    match word {
        _ if !supported.contains(&word) => Err(ApiError::not_one_of(field, word, supported)),
        "none" => Ok(None),
        "required" => Ok(Some(ToolChoice::Required)),
        _ => Ok(Some(ToolChoice::Auto)),
    }
}

fn named(field: &str, name: &str, list: &[Tool]) -> Result<usize, ApiError> {
    list.iter().position(|tool| tool.name == name).ok_or_else(|| ApiError::tool_not_found(field, name))
}

/// All texts of a value: its strings, and the keys of its objects.
pub(in crate::completion) fn texts(value: &Value) -> Box<dyn Iterator<Item = &str> + '_> {
    match value {
        Value::String(text) => Box::new(std::iter::once(text.as_str())),
        Value::Array(items) => Box::new(items.iter().flat_map(texts)),
        Value::Object(map) => {
            Box::new(map.iter().flat_map(|(key, value)| std::iter::once(key.as_str()).chain(texts(value))))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => Box::new(std::iter::empty()),
    }
}
