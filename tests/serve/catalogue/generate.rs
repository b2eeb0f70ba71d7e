//! What the table writes for texts that are too long to be written.

use std::collections::BTreeMap;

/// Replaces `<<TEXT * N>>` by N times the text, `<<TEXT ,* N>>` by N times the text with commas between, and `#` in it by its number; and then
/// `${NAME}` by what has that name.
pub(super) fn generate(text: &str, names: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("<<") {
        let (inside, behind) = behind.split_once(">>").expect("a generator has an end");
        let (text, count) = inside.rsplit_once("* ").expect("a generator has a count");
        let count: usize = count.parse().expect("a count is a number");
        let (text, comma) = match text.strip_suffix(',') {
            Some(text) => (text, ","),
            None => (text, ""),
        };
        let text = text.strip_suffix(' ').unwrap_or(text);
        out.push_str(before);
        for at in 0..count {
            out.push_str(if at == 0 { "" } else { comma });
            match text.contains('#') {
                true => out.push_str(&text.replace('#', &at.to_string())),
                false => out.push_str(text),
            }
        }
        rest = behind;
    }
    out.push_str(rest);
    for (name, value) in names {
        out = out.replace(&format!("${{{name}}}"), value);
    }
    assert!(!out.contains("${"), "a name that nothing has: {text}");
    out
}

#[test]
fn texts_are_repeated_and_names_filled_in() {
    let names = BTreeMap::from([("file.ok".to_owned(), "file-1".to_owned())]);
    assert_eq!(
        generate(r#"{"a": [<<"x#" ,* 3>>], "b": "<<xy * 2>>"}"#, &names),
        r#"{"a": ["x0","x1","x2"], "b": "xyxy"}"#
    );
    assert_eq!(generate("/v1/files/${file.ok}", &names), "/v1/files/file-1");
}
