use std::{
    env,
    path::{Path, PathBuf},
};

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// A file or directory.
    Path(PathBuf),
    /// A repository of the Hugging Face hub, looked for in the local cache: `hf:org/repo[@revision][:file]`.
    Hub { repo: String, revision: Option<String>, file: Option<String> },
}

impl ModelSource {
    /// Reads a `SPEC`; the error is the reason alone.
    pub(super) fn parse(spec: &str) -> Result<Self, String> {
        let Some(rest) = spec.strip_prefix("hf:") else {
            return match spec {
                "" => Err("is empty".to_owned()),
                path => Ok(Self::Path(PathBuf::from(path))),
            };
        };
        let (rest, file) = split(rest, ':');
        let (repo, revision) = split(rest, '@');
        let part = |text: &str| {
            !text.is_empty()
                && !text.contains("..")
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let well_formed = repo.split_once('/').is_some_and(|(org, name)| part(org) && part(name))
            && revision.is_none_or(part)
            && file.is_none_or(|file| file.split('/').all(part));
        if !well_formed {
            return Err(format!("'{spec}' is not of the form hf:org/repo[@revision][:file]"));
        }
        let own = |text: Option<&str>| text.map(str::to_owned);
        Ok(Self::Hub { repo: repo.to_owned(), revision: own(revision), file: own(file) })
    }

    /// The file or directory on this machine.
    ///
    /// # Errors
    /// When a hub repository is not in the local cache; the text is for the operator.
    pub fn resolve(&self) -> Result<PathBuf, String> {
        match self {
            Self::Path(path) => Ok(path.clone()),
            Self::Hub { repo, revision, file } => resolve_in(&hub_cache(), repo, revision.as_deref(), file.as_deref()),
        }
    }
}

/// The name under which a model is served when only its `SPEC` is given.
pub(super) fn default_name(spec: &str) -> String {
    match ModelSource::parse(spec) {
        Ok(ModelSource::Hub { repo, .. }) => repo,
        Ok(ModelSource::Path(path)) => {
            let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
            name.map_or_else(|| spec.to_owned(), |name| name.to_string_lossy().into_owned())
        }
        Err(_) => spec.to_owned(),
    }
}

/// Where the Hugging Face tools keep what they fetched, by the variables that they honour themselves.
fn hub_cache() -> PathBuf {
    let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("HF_HUB_CACHE")
        .or_else(|| variable("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .unwrap_or_else(|| variable("HOME").unwrap_or_default().join(".cache/huggingface/hub"))
}

fn resolve_in(cache: &Path, repo: &str, revision: Option<&str>, file: Option<&str>) -> Result<PathBuf, String> {
    let revision = revision.unwrap_or("main");
    let folder = cache.join(format!("models--{}", repo.replace('/', "--")));
    let commit = fs_err::read_to_string(folder.join("refs").join(revision)).ok();
    let snapshot = folder.join("snapshots").join(commit.as_deref().map_or(revision, str::trim));
    let path = file.map_or_else(|| snapshot.clone(), |file| snapshot.join(file));
    if path.exists() {
        return Ok(path);
    }
    let what = file.map_or_else(String::new, |file| format!(" {file}"));
    Err(format!(
        "{repo}@{revision} is not in the local cache {}: fetch it first, for example with: hf download {repo}{what} --revision {revision}",
        cache.display()
    ))
}

fn split(text: &str, at: char) -> (&str, Option<&str>) {
    text.split_once(at).map_or((text, None), |(before, after)| (before, Some(after)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_spec_has_four_parts() {
        let source = ModelSource::parse("hf:org/repo@v1:sub/model.gguf").unwrap();
        let ModelSource::Hub { repo, revision, file } = source else { panic!("{source:?}") };
        assert_eq!(
            (repo.as_str(), revision.as_deref(), file.as_deref()),
            ("org/repo", Some("v1"), Some("sub/model.gguf"))
        );
    }

    #[test]
    fn a_spec_cannot_climb_out_of_the_cache() {
        for spec in [
            "hf:",
            "hf:repo",
            "hf:../repo",
            "hf:a/..",
            "hf:a/b:../../x",
            "hf:a/b@../x",
            "hf:a/b/c",
            "hf:a/b:/etc/passwd",
        ] {
            assert!(ModelSource::parse(spec).is_err(), "{spec}");
        }
    }

    #[test]
    fn a_repository_is_found_where_the_hub_tools_put_it() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("models--org--repo");
        fs_err::create_dir_all(folder.join("refs")).unwrap();
        fs_err::create_dir_all(folder.join("snapshots/abc")).unwrap();
        fs_err::write(folder.join("refs/main"), "abc").unwrap();
        let found = resolve_in(cache.path(), "org/repo", None, None).unwrap();
        assert_eq!(found, folder.join("snapshots/abc"));
        let missing = resolve_in(cache.path(), "org/repo", None, Some("m.gguf")).unwrap_err();
        assert!(missing.contains("hf download org/repo m.gguf"), "{missing}");
    }
}
