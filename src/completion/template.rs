//! A model's chat template: Jinja, as `transformers` renders it.

use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior};
use serde::Serialize;
use thiserror::Error;
use time::OffsetDateTime;

use super::answer::{ReasoningFormat, ToolFormat};
use super::strftime;

const NAME: &str = "chat";
/// Instructions that one rendering may take: templates come with models, from anywhere, and may loop for ever.
const FUEL: u64 = 20_000_000;
const MAX_SOURCE_BYTES: usize = 256 * 1024;

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: Arc<str>,
}

/// What a template sees.
#[derive(Debug, Serialize)]
pub(super) struct Context<'a> {
    pub(super) messages: Vec<serde_json::Value>,
    pub(super) add_generation_prompt: bool,
    pub(super) bos_token: &'a str,
    pub(super) eos_token: &'a str,
    pub(super) tools: Option<Vec<serde_json::Value>>,
    pub(super) documents: Option<()>,
    #[serde(flatten)]
    pub(super) variables: serde_json::Map<String, serde_json::Value>,
}

/// Why a template gave no prompt.
#[derive(Debug, Error)]
pub(super) enum TemplateError {
    /// The template called `raise_exception`: the messages are not for this model.
    #[error("{0}")]
    Raised(String),
    /// The template is broken or does not come to an end. Not the client's fault.
    #[error("{0}")]
    Broken(&'static str),
}

impl ChatTemplate {
    pub(super) fn compile(source: &str) -> Result<Self, TemplateError> {
        Self::compile_with_clock(source, OffsetDateTime::now_utc)
    }

    pub(super) fn compile_with_clock(source: &str, now: fn() -> OffsetDateTime) -> Result<Self, TemplateError> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(TemplateError::Broken("the template is too long"));
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(broken)?;
        environment.set_syntax(syntax);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", tojson);
        // As in Python, where nothing comes of None.
        environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", move |format: &str| strftime::format(format, now()));
        environment.add_template_owned(NAME, without_generation_tags(source)).map_err(broken)?;
        Ok(Self { environment, source: source.into() })
    }

    /// How the models that the template is for write calls of tools.
    pub(super) fn tool_format(&self) -> ToolFormat {
        ToolFormat::of(&self.source)
    }

    /// How they write what they say to themselves, if they do.
    pub(super) fn reasoning(&self) -> Option<ReasoningFormat> {
        ReasoningFormat::of(&self.source)
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template has a place for tools. To a model of one that has none they are told in a message.
    pub(super) fn knows_tools(&self) -> bool {
        self.source.contains("tools")
    }

    /// Whether the template has a place for calls of tools, and for what they gave.
    pub(super) fn knows_calls(&self) -> bool {
        self.source.contains("tool_calls")
    }

    /// Whether the template knows the role by name; of roles that it does not know, templates render whatever they like.
    pub(super) fn mentions(&self, role: &str) -> bool {
        self.source.contains(role)
    }

    pub(super) fn render(&self, context: &Context<'_>) -> Result<String, TemplateError> {
        let template = self.environment.get_template(NAME).map_err(broken)?;
        template.render(Value::from(Serde(context))).map_err(broken)
    }
}

/// What [`raise_exception`] was called with, carried through the template engine as an error's source.
#[derive(Debug, Error)]
#[error("raised by the template")]
struct Raised(String);

fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
}

/// Keeps what a client may know; the rest names pieces of the template and of the messages.
#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err asks for")]
fn broken(error: Error) -> TemplateError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return TemplateError::Raised(message.clone());
        }
        source = cause.source();
    }
    tracing::warn!(kind = ?error.kind(), line = error.line(), "a chat template failed");
    TemplateError::Broken(if error.kind() == ErrorKind::OutOfFuel {
        "the template does not come to an end"
    } else {
        "the template failed"
    })
}

/// `{% generation %}` marks what a model is trained on; for rendering it is a block like any other.
fn without_generation_tags(source: &str) -> String {
    let mut source = source.to_owned();
    for open in ["{%", "{%-"] {
        for close in ["%}", "-%}"] {
            source = source
                .replace(&format!("{open} generation {close}"), &format!("{open} if true {close}"))
                .replace(&format!("{open} endgeneration {close}"), &format!("{open} endif {close}"));
        }
    }
    source
}

/// JSON as Python's `json.dumps(…, ensure_ascii=False)` writes it; the built-in filter escapes for HTML.
#[expect(clippy::needless_pass_by_value, reason = "a filter's arguments are its own")]
fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let ensure_ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let failed = |_| Error::new(ErrorKind::BadSerialization, "tojson");
    let mut value = serde_json::to_value(value).map_err(failed)?;
    if sort_keys {
        value.sort_all_objects();
    }
    let mut json = Vec::new();
    let written = match (indent, separators.as_deref()) {
        (Some(width), _) => {
            let indent = " ".repeat(width.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, formatter))
        }
        (None, Some([item, key])) => {
            let formatter = PythonFormatter { item, key };
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, formatter))
        }
        (None, _) => {
            let formatter = PythonFormatter { item: ", ", key: ": " };
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, formatter))
        }
    };
    written.map_err(failed)?;
    let json = String::from_utf8(json).map_err(|_| Error::new(ErrorKind::BadSerialization, "tojson"))?;
    Ok(if ensure_ascii { escaped(&json) } else { json })
}

/// JSON in ASCII. Characters for private use stay, since they may be marks of [`Guard`](super::guard::Guard).
fn escaped(json: &str) -> String {
    let mut ascii = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() || c >= '\u{f0000}' {
            ascii.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            ascii.push_str(&format!("\\u{unit:04x}"));
        }
    }
    ascii
}

/// What stands between items, and between a key and its value.
struct PythonFormatter<'a> {
    item: &'a str,
    key: &'a str,
}

impl serde_json::ser::Formatter for PythonFormatter<'_> {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(self.item.as_bytes()) }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(self.item.as_bytes()) }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(self.key.as_bytes())
    }
}
