use std::fmt::Write as _;

use super::Resolved;

/// Words in a key's last part that make its value a secret.
const SECRET: [&str; 4] = ["key", "token", "password", "secret"];

impl Resolved {
    /// The resolved settings as TOML, each value with the layer it came from; secrets are masked.
    #[must_use]
    pub fn show(&self) -> String {
        let mut text = format!("# profile {}\n", self.profile);
        for note in &self.notes {
            let _ = writeln!(text, "# {note}");
        }
        let mut section = None;
        for (path, leaf) in &self.leaves {
            let (key, parents) = path.split_last().map_or(("", &path[..]), |(key, parents)| (key.as_str(), parents));
            if section != Some(parents) {
                let name: Vec<_> = parents.iter().map(|part| quoted(part)).collect();
                let _ = write!(text, "\n[{}]\n", name.join("."));
                section = Some(parents);
            }
            let value = if is_secret(key) && !is_path(path) { "\"***\"".to_owned() } else { value_text(&leaf.value) };
            let _ = writeln!(text, "{} = {value}  # {}", quoted(key), self.origin(leaf));
        }
        text
    }
}

/// Whether a key names a secret: `api_key` does, `kv_tokens` and `max_step_tokens` count tokens.
fn is_secret(key: &str) -> bool {
    SECRET.iter().any(|word| key == *word || key.ends_with(&format!("_{word}")))
}

/// The key of a certificate is named by its file.
fn is_path(path: &[String]) -> bool {
    path == ["server", "tls", "key"]
}

fn value_text(value: &config::Value) -> String {
    if let config::ValueKind::String(text) = &value.kind { format!("{text:?}") } else { value.kind.to_string() }
}

fn quoted(part: &str) -> String {
    let bare = !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    if bare { part.to_owned() } else { format!("{part:?}") }
}
