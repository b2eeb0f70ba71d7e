use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::{
    report::BadLine,
    request::{Conversation, Expect, Request},
};
use crate::openai::Endpoint;

/// A batch file as a workload: one conversation of one request for each line.
#[derive(Debug)]
pub(super) struct Lines {
    pub(super) conversations: Vec<Conversation>,
    /// Lines that are no requests.
    pub(super) bad: Vec<BadLine>,
}

const BOM: &str = "\u{feff}";

/// Reads a file of the Batch API. The models that its lines name are replaced by those of the targets.
///
/// # Errors
/// When it cannot be read.
pub(super) fn read(path: &Path, most: Option<usize>) -> std::io::Result<Lines> {
    let bytes = fs_err::read(path)?;
    let mut lines = Lines { conversations: Vec::new(), bad: Vec::new() };
    for (number, line) in std::iter::zip(1.., bytes.split(|byte| *byte == b'\n')) {
        if most.is_some_and(|most| lines.conversations.len() >= most) {
            break;
        }
        let request = match std::str::from_utf8(line) {
            Ok(text) => match text.trim_start_matches(BOM).trim() {
                "" => continue,
                text => request(text),
            },
            Err(_) => Err("is not UTF-8".to_owned()),
        };
        match request {
            Ok(request) => lines.conversations.push(vec![request]),
            Err(reason) => lines.bad.push(BadLine { line: number, reason }),
        }
    }
    Ok(lines)
}

fn request(line: &str) -> Result<Request, String> {
    #[derive(Deserialize)]
    struct Line {
        url: String,
        body: Value,
    }
    let Line { url, body } = serde_json::from_str(line).map_err(|error| format!("is no line of a batch: {error}"))?;
    let not_measured = || format!("asks for {url:?}, which is not measured");
    let endpoint = Endpoint::from_path(&url).ok_or_else(not_measured)?;
    if !body.is_object() {
        return Err("has a body that is no object".to_owned());
    }
    let expect = match (endpoint, &body["input"]) {
        (Endpoint::Embeddings, Value::Array(inputs)) if inputs.iter().all(|input| !input.is_number()) => {
            Expect::Vectors(inputs.len())
        }
        (Endpoint::Embeddings, _) => Expect::Vectors(1),
        (Endpoint::Rerank, _) => return Err(not_measured()),
        (Endpoint::ChatCompletions | Endpoint::Completions, _) => Expect::Whole,
    };
    Ok(Request { endpoint, body, expect })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_lines_are_named_and_the_others_kept() {
        let good =
            r#"{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"x","messages":[]}}"#;
        let vectors = r#"{"custom_id":"b","url":"/v1/embeddings","body":{"input":["x","y"]}}"#;
        let text =
            [good, "", "{", r#"{"url":"/v1/images","body":{}}"#, r#"{"url":"/v1/completions","body":[]}"#, vectors];
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), text.join("\n")).unwrap();
        let Lines { conversations, bad } = read(file.path(), None).unwrap();
        assert_eq!(conversations.len(), 2);
        assert_eq!(conversations[1][0].expect, Expect::Vectors(2));
        assert_eq!(bad.iter().map(|bad| bad.line).collect::<Vec<_>>(), [3, 4, 5]);
        assert!(bad[1].reason.contains("/v1/images"), "{bad:?}");
        assert_eq!(read(file.path(), Some(1)).unwrap().conversations.len(), 1);
    }
}
