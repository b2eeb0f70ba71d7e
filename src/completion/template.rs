//! A model's chat template: Jinja, as `transformers` renders it.

use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior};
use serde::Serialize;
use thiserror::Error;
use time::OffsetDateTime;

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
    pub(super) tools: Option<()>,
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
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", |format: &str| strftime::format(format, OffsetDateTime::now_utc()));
        environment.add_template_owned(NAME, without_generation_tags(source)).map_err(broken)?;
        Ok(Self { environment, source: source.into() })
    }

    pub(super) fn source(&self) -> &str {
        &self.source
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
    // Python's other arguments change nothing that a prompt should depend on.
    for name in ["ensure_ascii", "sort_keys", "separators"] {
        let _: Option<Value> = options.get(name)?;
    }
    options.assert_all_used()?;
    let mut json = Vec::new();
    let written = match indent {
        Some(width) => {
            let indent = " ".repeat(width.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, formatter))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, PythonFormatter)),
    };
    let failed = |_| Error::new(ErrorKind::BadSerialization, "tojson");
    written.map_err(failed)?;
    String::from_utf8(json).map_err(|_| Error::new(ErrorKind::BadSerialization, "tojson"))
}

/// A space behind each comma and colon.
struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}
