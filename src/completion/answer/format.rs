//! How model families write calls of tools. A family is known by its chat template.

use tandem_core::Vocab;
use tandem_engine::{GrammarSpec, Part};

use super::written;
use crate::completion::read::{Tool, ToolChoice, Tools};

/// A way to write calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::completion) enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes, Qwen, Granite 4 and many others.
    Hermes,
    /// `<tool_call><function=NAME><parameter=NAME>VALUE</parameter></function></tool_call>`
    Qwen3Coder,
    /// `{"name": …, "parameters": {…}}` as the whole answer, perhaps behind `<|python_tag|>`.
    Llama3,
    /// `[TOOL_CALLS][{"name": …, "arguments": {…}}]`
    Mistral,
    /// `[TOOL_CALLS]NAME[ARGS]{…}`
    MistralNamed,
    /// `DeepSeek` V3 and R1, with JSON in a fence.
    DeepSeek,
    /// `DeepSeek` V3.1.
    DeepSeekNamed,
    /// `<|tool_call|>[{"name": …, "arguments": {…}}]`: Granite 3.
    Granite,
    /// The same with `<|/tool_call|>` at the end: Phi-4-mini.
    Phi4,
    /// `functools[{"name": …, "arguments": {…}}]`
    Functools,
    /// `Action:` and a fence of JSON.
    CommandR,
    /// `<|START_ACTION|>[{"tool_name": …, "parameters": {…}}]<|END_ACTION|>`
    CommandR7b,
    /// `{"name": …, "arguments": {…}}` as the whole answer: for models that were not told of a form of their own.
    Json,
}

/// What a reader of calls looks for.
#[derive(Debug)]
pub(super) struct Syntax {
    /// Begin a call, or a list of calls.
    pub(super) openers: &'static [&'static str],
    /// Stand right behind calls and mean nothing more.
    pub(super) closers: &'static [&'static str],
    /// Mean nothing wherever they stand.
    pub(super) noise: &'static [&'static str],
    /// The answer may be a call without an opener.
    pub(super) bare: bool,
    /// Finds the name in what stands between the opener and the arguments.
    pub(super) header: Option<fn(&str) -> Option<&str>>,
}

/// How calls are written: every text begins with what the reader looks for.
#[derive(Debug)]
struct Layout {
    /// Once, in front of all calls.
    open: &'static str,
    /// In front of the arguments; `NAME` stands for the function's.
    before: &'static str,
    after: &'static str,
    separator: &'static str,
    close: &'static str,
}

const CALLS_BEGIN: &str = "<｜tool▁calls▁begin｜>";
const CALLS_END: &str = "<｜tool▁calls▁end｜>";
const CALL_BEGIN: &str = "<｜tool▁call▁begin｜>";
const CALL_END: &str = "<｜tool▁call▁end｜>";
const SEPARATOR: &str = "<｜tool▁sep｜>";

impl ToolFormat {
    /// The format of the models that a chat template is for.
    pub(in crate::completion) fn of(template: &str) -> Self {
        let has = |text: &str| template.contains(text);
        match () {
            () if has("<function=") && has("<parameter=") => Self::Qwen3Coder,
            () if has("[TOOL_CALLS]") && has("[ARGS]") => Self::MistralNamed,
            () if has("[TOOL_CALLS]") => Self::Mistral,
            () if has(CALL_BEGIN) && has("```json") => Self::DeepSeek,
            () if has(CALL_BEGIN) => Self::DeepSeekNamed,
            () if has("<|START_ACTION|>") => Self::CommandR7b,
            () if has("Action:") && has("tool_name") => Self::CommandR,
            () if has("functools") => Self::Functools,
            () if has("<|tool_call|>") && has("<|/tool_call|>") => Self::Phi4,
            () if has("<|tool_call|>") => Self::Granite,
            () if has("<tool_call>") => Self::Hermes,
            () if has("<|python_tag|>") || has("Environment: ipython") => Self::Llama3,
            () => Self::Json,
        }
    }

    /// Whether ids of calls are nine letters and digits, which templates of Mistral's insist on.
    pub(in crate::completion) fn has_short_ids(self) -> bool {
        matches!(self, Self::Mistral | Self::MistralNamed)
    }

    pub(super) fn syntax(self) -> &'static Syntax {
        match self {
            Self::Hermes | Self::Qwen3Coder => &Syntax {
                openers: &["<tool_call>", "<function="],
                closers: &["</tool_call>"],
                noise: &[],
                bare: false,
                header: None,
            },
            Self::Llama3 => {
                &Syntax { openers: &["<|python_tag|>"], closers: &["<|eom_id|>"], noise: &[], bare: true, header: None }
            }
            Self::Mistral | Self::MistralNamed => &Syntax {
                openers: &["[TOOL_CALLS]"],
                closers: &[],
                noise: &[],
                bare: false,
                header: Some(name_before_args),
            },
            Self::DeepSeek | Self::DeepSeekNamed => &Syntax {
                openers: &[CALL_BEGIN],
                closers: &["```", CALL_END],
                noise: &[CALLS_BEGIN, CALLS_END],
                bare: false,
                header: Some(name_at_separator),
            },
            Self::Granite | Self::Phi4 => &Syntax {
                openers: &["<|tool_call|>", "<tool_call>"],
                closers: &["<|/tool_call|>", "</tool_call>"],
                noise: &[],
                bare: false,
                header: None,
            },
            Self::Functools => &Syntax { openers: &["functools"], closers: &[], noise: &[], bare: false, header: None },
            Self::CommandR => &Syntax {
                openers: &["Action: ```json", "Action:```json", "Action:\n```json"],
                closers: &["```"],
                noise: &[],
                bare: false,
                header: None,
            },
            Self::CommandR7b => &Syntax {
                openers: &["<|START_ACTION|>"],
                closers: &["<|END_ACTION|>"],
                noise: &["<|START_RESPONSE|>", "<|END_RESPONSE|>"],
                bare: false,
                header: None,
            },
            Self::Json => {
                &Syntax { openers: &["<tool_call>"], closers: &["</tool_call>"], noise: &[], bare: true, header: None }
            }
        }
    }

    /// The control tokens that a reader of calls has to see.
    pub(in crate::completion) fn markers(self) -> impl Iterator<Item = &'static str> {
        let syntax = self.syntax();
        let inner = [SEPARATOR, "[ARGS]", "[CALL_ID]"];
        [syntax.openers, syntax.closers, syntax.noise].into_iter().flatten().copied().chain(inner)
    }

    /// A JSON form is what constrained calls of Qwen3-Coder have too: the plain values of its own form have no schema.
    fn layout(self) -> &'static Layout {
        const fn list(open: &'static str, close: &'static str) -> Layout {
            Layout { open, before: r#"{"name": "NAME", "arguments": "#, after: "}", separator: ", ", close }
        }
        match self {
            Self::Hermes | Self::Qwen3Coder => &Layout {
                open: "",
                before: "<tool_call>\n{\"name\": \"NAME\", \"arguments\": ",
                after: "}\n</tool_call>",
                separator: "\n",
                close: "",
            },
            Self::Llama3 => &Layout {
                open: "",
                before: r#"{"name": "NAME", "parameters": "#,
                after: "}",
                separator: "; ",
                close: "",
            },
            Self::Mistral => &const { list("[TOOL_CALLS][", "]") },
            Self::MistralNamed => {
                &Layout { open: "", before: "[TOOL_CALLS]NAME[ARGS]", after: "", separator: "", close: "" }
            }
            Self::DeepSeek => &Layout {
                open: CALLS_BEGIN,
                before: "<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\n",
                after: "\n```<｜tool▁call▁end｜>",
                separator: "\n",
                close: CALLS_END,
            },
            Self::DeepSeekNamed => &Layout {
                open: CALLS_BEGIN,
                before: "<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>",
                after: CALL_END,
                separator: "",
                close: CALLS_END,
            },
            Self::Granite => &const { list("<|tool_call|>[", "]") },
            Self::Phi4 => &const { list("<|tool_call|>[", "]<|/tool_call|>") },
            Self::Functools => &const { list("functools[", "]") },
            Self::CommandR => &Layout {
                open: "Action: ```json\n[\n",
                before: "    {\n        \"tool_name\": \"NAME\",\n        \"parameters\": ",
                after: "\n    }",
                separator: ",\n",
                close: "\n]```",
            },
            Self::CommandR7b => &Layout {
                open: "<|START_ACTION|>[\n",
                before: r#"    {"tool_call_id": "0", "tool_name": "NAME", "parameters": "#,
                after: "}",
                separator: ",\n",
                close: "\n]<|END_ACTION|>",
            },
            Self::Json => &Layout {
                open: "",
                before: r#"{"name": "NAME", "arguments": "#,
                after: "}",
                separator: "; ",
                close: "",
            },
        }
    }

    /// What an answer has to look like so that its calls are as the request wants them; none where it may be anything. An answer that is no
    /// call is `text`.
    pub(in crate::completion) fn constraint(self, tools: &Tools, text: Option<Part>, vocab: &Vocab) -> Option<Part> {
        let layout = self.layout();
        match tools.choice {
            ToolChoice::Named(at) => {
                let calls = layout.calls(std::slice::from_ref(&tools.list[at]), false, false, vocab, "");
                Some(Part::Sequence(calls))
            }
            ToolChoice::Required => Some(Part::Sequence(layout.calls(&tools.list, false, tools.parallel, vocab, ""))),
            ToolChoice::Auto if let Some(text) = text => {
                let calls = layout.calls(&tools.list, true, tools.parallel, vocab, "");
                Some(Part::Choice(vec![Part::Sequence(calls), text]))
            }
            ToolChoice::Auto if tools.list.iter().any(|tool| tool.strict) => Some(self.triggered(tools, vocab)),
            ToolChoice::Auto => None,
        }
    }

    /// Free text, in which what begins a call begins what is constrained.
    fn triggered(self, tools: &Tools, vocab: &Vocab) -> Part {
        let layout = self.layout();
        let free = |without: &[&str]| Part::Free { without: without.iter().map(|text| (*text).to_owned()).collect() };
        if self.syntax().bare {
            let calls = Part::Sequence(layout.calls(&tools.list, true, tools.parallel, vocab, ""));
            // Anything that is not the beginning of an object.
            let text = GrammarSpec::Regex(r"(?s:\s*([^{\s].*)?)".to_owned());
            let text = Part::Grammar { path: String::new(), spec: Box::new(text) };
            return Part::Choice(vec![calls, text]);
        }
        let trigger = match layout.open {
            "" => self.syntax().openers[0],
            open => self
                .syntax()
                .noise
                .iter()
                .chain(self.syntax().openers)
                .find(|text| open.starts_with(**text))
                .unwrap_or(&open),
        };
        // Where each call has the trigger, the next one is found in the text behind it.
        let has_own_trigger = layout.open.is_empty();
        let call = layout.calls(&tools.list, true, tools.parallel && !has_own_trigger, vocab, trigger);
        let call = |begin: Vec<Part>| Part::Sequence(begin.into_iter().chain(call).collect());
        let control = vocab.specials().iter().find(|special| special.text == trigger);
        let (call, rest) = match control {
            Some(special) => (call(vec![free(&[]), Part::Control(special.id)]), free(&[])),
            None => (call(vec![Part::Until(trigger.to_owned())]), free(&[trigger])),
        };
        match tools.parallel && has_own_trigger {
            true => Part::Sequence(vec![Part::Repeated(Box::new(call)), rest]),
            false => Part::Choice(vec![call, rest]),
        }
    }
}

impl Layout {
    /// One call, or several, without the text `begun` in front of them, which has been written. With `own`, only tools that are strict
    /// have arguments by their schema.
    fn calls(&self, list: &[Tool], own: bool, parallel: bool, vocab: &Vocab, begun: &str) -> Vec<Part> {
        let open = self.open.strip_prefix(begun).unwrap_or(self.open);
        let of_call = if self.open.is_empty() { begun } else { "" };
        let call = |tool: &Tool| {
            let before = self.before.strip_prefix(of_call).unwrap_or(self.before).replace("NAME", &tool.name);
            let schema = if own && !tool.strict { r#"{"type": "object"}"#.to_owned() } else { schema(tool) };
            let mut parts = written(&before, vocab);
            parts.push(Part::Json { path: tool.path.clone(), schema });
            parts.append(&mut written(self.after, vocab));
            Part::Sequence(parts)
        };
        let call = Part::Choice(list.iter().map(call).collect());
        let mut parts = written(open, vocab);
        if parallel {
            let by = Box::new(Part::Sequence(written(self.separator, vocab)));
            parts.push(Part::Separated { part: Box::new(call), by });
        } else {
            parts.push(call);
        }
        parts.append(&mut written(self.close, vocab));
        parts
    }
}

/// The schema of a function's arguments, which are an object whether it says so or not.
fn schema(tool: &Tool) -> String {
    let mut schema = tool.parameters.clone();
    schema.entry("type").or_insert_with(|| "object".into());
    if schema.get("properties").and_then(|all| all.as_object()).is_some_and(serde_json::Map::is_empty) {
        schema.entry("additionalProperties").or_insert(false.into());
    }
    serde_json::Value::Object(schema).to_string()
}

/// `NAME[ARGS]`, `NAME[CALL_ID]ID[ARGS]` or `NAME`.
fn name_before_args(header: &str) -> Option<&str> {
    plain_name(header.split('[').next().unwrap_or_default())
}

/// `NAME` and the separator, or `function`, the separator, `NAME` and a fence.
fn name_at_separator(header: &str) -> Option<&str> {
    let (first, second) = header.split_once(SEPARATOR)?;
    let second = second.trim().trim_end_matches("```json").trim();
    plain_name(if second.is_empty() { first } else { second })
}

fn plain_name(text: &str) -> Option<&str> {
    let name = text.trim();
    (!name.is_empty() && !name.contains(char::is_whitespace)).then_some(name)
}

#[cfg(test)]
impl ToolFormat {
    /// Calls of one function as a model writes them that is held to it.
    pub(super) fn written(self, name: &str, arguments: &[&str]) -> String {
        let Layout { open, before, after, separator, close } = self.layout();
        let calls: Vec<_> =
            arguments.iter().map(|arguments| format!("{}{arguments}{after}", before.replace("NAME", name))).collect();
        format!("{open}{}{close}", calls.join(separator))
    }
}
