use std::sync::Arc;

/// The models that there are for whoever asks: all that the server has, or these of them. Others are as if they did not exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedModels(Option<Arc<[String]>>);

impl AllowedModels {
    /// These alone; all if there are none.
    #[must_use]
    pub fn these(names: Vec<String>) -> Self {
        Self((!names.is_empty()).then(|| names.into()))
    }

    #[must_use]
    pub fn contain(&self, model: &str) -> bool {
        self.0.as_ref().is_none_or(|names| names.iter().any(|name| name == model))
    }

    /// The names, if not all are allowed.
    #[must_use]
    pub fn names(&self) -> Option<&[String]> {
        self.0.as_deref()
    }

    /// As the database has them: a line for each, which no name has a break in; `None` is all.
    #[must_use]
    pub fn to_lines(&self) -> Option<String> {
        self.names().map(|names| names.join("\n"))
    }

    #[must_use]
    pub fn from_lines(lines: Option<&str>) -> Self {
        Self(lines.map(|lines| lines.lines().map(str::to_owned).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kept_as_they_are_and_none_of_them_is_all() {
        let some = AllowedModels::these(vec!["org/a".to_owned(), "b, c".to_owned()]);
        assert_eq!(AllowedModels::from_lines(some.to_lines().as_deref()), some);
        assert!(some.contain("b, c") && some.contain("org/a") && !some.contain("b"));
        let all = AllowedModels::these(Vec::new());
        assert_eq!((all.to_lines(), &all), (None, &AllowedModels::default()));
        assert!(all.contain("anything"));
        assert!(!AllowedModels::from_lines(Some("")).contain("anything"), "what is stored is never taken for all");
    }
}
