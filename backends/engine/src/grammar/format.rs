/// How strings of a format are told from others.
pub(super) enum Format {
    /// By the grammar compiler's own expression.
    Compiler,
    /// By this regular expression, which matches nothing that is not of the format.
    Pattern(String),
}

/// The formats that are enforced, which are those that the grammar compiler knows.
///
/// Where its own expression lets something through that a validator refuses, there is another, which may leave out what is valid and of no
/// use: the year 0, leap seconds, fractions below a nanosecond, mailboxes at a bare host or an address, and names and numbers longer than
/// those in use, in which a weak model finds no end.
pub(super) fn named(name: &str) -> Option<Format> {
    let pattern = match name {
        "date" => format!("^(?:{DATE})$"),
        "time" => format!("^{TIME}$"),
        "date-time" => format!("^(?:{DATE})[Tt]{TIME}$"),
        "email" => format!("^(?:{})@{}$", mailbox(), domain()),
        "hostname" => format!("^(?:{})$", hostname()),
        "duration" => duration(),
        "ipv4" | "ipv6" | "uuid" | "uri" => return Some(Format::Compiler),
        _ => return None,
    };
    Some(Format::Pattern(pattern))
}

/// Days that there are: 29 February in leap years alone.
const DATE: &str = concat!(
    "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])-",
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))",
    "|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29",
);
const TIME: &str = concat!(
    "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?",
    "(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])",
);

/// Units one after the other, none left out between two.
fn duration() -> String {
    let units = |[first, second, third]: [&str; 3]| {
        let number = "[0-9]{1,9}";
        let rest = format!("{number}{second}(?:{number}{third})?");
        format!("(?:{number}{first}(?:{rest})?|{rest}|{number}{third})")
    };
    let (date, time) = (units(["Y", "M", "D"]), units(["H", "M", "S"]));
    format!("^P(?:{date}(?:T{time})?|T{time}|[0-9]{{1,9}}W)$")
}

/// What stands before the `@`, of 64 characters at most.
fn mailbox() -> String {
    let word = |most: u32| format!("[a-zA-Z0-9!#$%&'*+/=?^_`{{|}}~-]{{1,{most}}}");
    format!("{}|{}(?:\\.{}){{1,2}}|{}(?:\\.{}){{3,5}}", word(64), word(20), word(20), word(10), word(9))
}

/// A hostname with a dot in it whose last part begins with a letter, as those of mailboxes are.
fn domain() -> String {
    format!("(?:{}\\.){{1,4}}[a-zA-Z][a-zA-Z0-9-]{{0,22}}[a-zA-Z0-9]", label(32))
}

/// Of 253 characters at most.
fn hostname() -> String {
    format!("{}(?:\\.{}){{0,3}}|{}(?:\\.{}){{4,8}}", label(62), label(62), label(27), label(27))
}

/// A part of a hostname.
fn label(most: u32) -> String {
    format!("[a-zA-Z0-9](?:[a-zA-Z0-9-]{{0,{}}}[a-zA-Z0-9])?", most - 2)
}
