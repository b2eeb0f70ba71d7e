//! A call as a JSON object, `{"name": …, "arguments": {…}}`, read as it comes.

/// Where a JSON value ends that is an object, an array or a string.
#[derive(Clone, Debug, Default)]
pub(super) struct Extent {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Extent {
    /// Takes the next character; true when the value is complete with it.
    pub(super) fn push(&mut self, c: char) -> bool {
        if self.in_string {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => {
                    self.in_string = false;
                    return self.depth == 0;
                }
                _ => {}
            }
            return false;
        }
        match c {
            '"' => self.in_string = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

/// What a character made known.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    Name(String),
    /// More of the arguments' JSON.
    Arguments(String),
}

/// Whether the object goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    More,
    /// The character was its last.
    Done,
    /// It had ended before the character, without its last brace.
    DoneBefore,
    /// This is no object of a call.
    Broken,
}

/// Behind the opening brace.
#[derive(Debug)]
pub(super) struct ObjectReader {
    at: At,
    /// Braces of an inner object that holds the call: `{"type": "function", "function": {…}}`.
    inner: usize,
    size: usize,
}

#[derive(Debug)]
enum At {
    Key,
    InKey {
        raw: String,
        extent: Extent,
    },
    Colon(Key),
    Value(Key),
    /// The arguments, told as they come.
    Arguments(Extent),
    /// A value that is looked at when it is whole.
    Kept {
        key: Key,
        raw: String,
        extent: Option<Extent>,
    },
    After,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Name,
    Arguments,
    Function,
    Other,
}

/// Of everything that is not arguments: more is no call.
const MAX_BYTES: usize = 16 << 10;

impl ObjectReader {
    pub(super) fn new() -> Self {
        Self { at: At::Key, inner: 0, size: 0 }
    }

    pub(super) fn push(&mut self, c: char) -> (Found, Progress) {
        if !matches!(self.at, At::Arguments(_)) {
            self.size += c.len_utf8();
            if self.size > MAX_BYTES {
                return (Found::Nothing, Progress::Broken);
            }
        }
        match &mut self.at {
            At::Key => match c {
                '"' => {
                    let mut extent = Extent::default();
                    extent.push(c);
                    self.at = At::InKey { raw: c.to_string(), extent };
                }
                '}' => return self.close(),
                c if c.is_whitespace() => {}
                _ => return (Found::Nothing, Progress::Broken),
            },
            At::InKey { raw, extent } => {
                raw.push(c);
                if extent.push(c) {
                    self.at = At::Colon(key(&unquoted(raw).unwrap_or_default()));
                }
            }
            At::Colon(key) => match c {
                ':' => self.at = At::Value(*key),
                c if c.is_whitespace() => {}
                _ => return (Found::Nothing, Progress::Broken),
            },
            At::Value(_) if c.is_whitespace() => {}
            At::Value(key) => {
                let key = *key;
                return self.value(key, c);
            }
            At::Arguments(extent) => {
                if extent.push(c) {
                    self.at = At::After;
                }
                return (Found::Arguments(c.to_string()), Progress::More);
            }
            At::Kept { key, raw, extent: Some(extent) } => {
                raw.push(c);
                if extent.push(c) {
                    let found = found(*key, raw);
                    self.at = At::After;
                    return (found, Progress::More);
                }
            }
            At::Kept { key, raw, extent: None } => {
                if !matches!(c, ',' | '}' | ']') && !c.is_whitespace() {
                    raw.push(c);
                    return (Found::Nothing, Progress::More);
                }
                let found = found(*key, raw);
                self.at = At::After;
                return (found, self.push(c).1);
            }
            At::After => match c {
                ',' => self.at = At::Key,
                '}' => return self.close(),
                c if c.is_whitespace() => {}
                _ => return (Found::Nothing, Progress::DoneBefore),
            },
        }
        (Found::Nothing, Progress::More)
    }

    /// The first character of a value.
    fn value(&mut self, key: Key, c: char) -> (Found, Progress) {
        let mut extent = Extent::default();
        extent.push(c);
        match (key, c) {
            (_, ',' | ':' | '}' | ']') => return (Found::Nothing, Progress::Broken),
            (Key::Function, '{') => {
                self.inner += 1;
                self.at = At::Key;
            }
            (Key::Arguments, '{' | '[') => {
                self.at = At::Arguments(extent);
                return (Found::Arguments(c.to_string()), Progress::More);
            }
            (_, '{' | '[' | '"') => self.at = At::Kept { key, raw: c.to_string(), extent: Some(extent) },
            _ => self.at = At::Kept { key, raw: c.to_string(), extent: None },
        }
        (Found::Nothing, Progress::More)
    }

    fn close(&mut self) -> (Found, Progress) {
        if self.inner == 0 {
            return (Found::Nothing, Progress::Done);
        }
        self.inner -= 1;
        self.at = At::After;
        (Found::Nothing, Progress::More)
    }
}

fn key(name: &str) -> Key {
    match name {
        "name" | "tool_name" => Key::Name,
        "arguments" | "parameters" => Key::Arguments,
        "function" => Key::Function,
        _ => Key::Other,
    }
}

/// What a whole value says.
fn found(key: Key, raw: &str) -> Found {
    match key {
        Key::Name | Key::Function => unquoted(raw).map_or(Found::Nothing, Found::Name),
        // Some models write the arguments as a string with JSON in it, as OpenAI's API has them.
        Key::Arguments => match unquoted(raw) {
            Some(text) => Found::Arguments(text),
            None if raw == "null" => Found::Arguments("{}".to_owned()),
            None => Found::Arguments(raw.to_owned()),
        },
        Key::Other => Found::Nothing,
    }
}

fn unquoted(raw: &str) -> Option<String> {
    serde_json::from_str(raw).ok()
}
