use std::fmt;
use std::str::FromStr;

/// What a key may be good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Inference,
    FilesRead,
    FilesWrite,
    BatchesRead,
    BatchesWrite,
    /// What is of the server and not of a tenant.
    Admin,
}

impl Scope {
    const ALL: [Self; 6] =
        [Self::Inference, Self::FilesRead, Self::FilesWrite, Self::BatchesRead, Self::BatchesWrite, Self::Admin];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Inference => "inference",
            Self::FilesRead => "files:read",
            Self::FilesWrite => "files:write",
            Self::BatchesRead => "batches:read",
            Self::BatchesWrite => "batches:write",
            Self::Admin => "admin",
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// What a key is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scopes(u8);

/// A word that names no scope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no scope: one of inference, files, files:read, files:write, batches, batches:read, batches:write, admin"
)]
pub struct NotAScope(String);

impl Scopes {
    /// Of a caller that needs no key.
    #[must_use]
    pub fn all() -> Self {
        Self(Scope::ALL.into_iter().fold(0, |bits, scope| bits | scope.bit()))
    }

    #[must_use]
    pub fn contain(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }
}

/// Names with commas or spaces between them; `files` and `batches` are both of theirs.
impl FromStr for Scopes {
    type Err = NotAScope;

    fn from_str(text: &str) -> Result<Self, NotAScope> {
        let mut bits = 0;
        for word in text.split([',', ' ']).filter(|word| !word.is_empty()) {
            let named: Vec<Scope> = Scope::ALL
                .into_iter()
                .filter(|scope| {
                    scope.name() == word || scope.name().split_once(':').is_some_and(|(what, _)| what == word)
                })
                .collect();
            if named.is_empty() {
                return Err(NotAScope(word.chars().take(40).collect()));
            }
            bits = named.iter().fold(bits, |bits, scope| bits | scope.bit());
        }
        if bits == 0 { Err(NotAScope(String::new())) } else { Ok(Self(bits)) }
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = Scope::ALL.into_iter().filter(|scope| self.contain(*scope)).map(Scope::name).collect();
        f.write_str(&names.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_read_as_they_are_written() {
        let scopes: Scopes = "files,inference".parse().unwrap();
        assert_eq!(scopes.to_string(), "inference files:read files:write");
        assert_eq!(scopes.to_string().parse(), Ok(scopes));
        assert!(scopes.contain(Scope::FilesWrite) && !scopes.contain(Scope::BatchesRead));
        assert_eq!("batches:read".parse::<Scopes>().unwrap().to_string(), "batches:read");
        assert!(Scopes::all().contain(Scope::Admin));
        for wrong in ["", " ", "root", "files:", "files:delete", "inference,root"] {
            assert!(wrong.parse::<Scopes>().is_err(), "{wrong}");
        }
    }
}
