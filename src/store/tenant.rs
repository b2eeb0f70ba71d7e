use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use sha2::{Digest, Sha256};

/// Whose a file or a batch is. One never sees what belongs to another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tenant(Arc<str>);

/// A text that cannot be a tenant's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a tenant's name has 1 to 64 letters, digits, '.', '_' and '-'")]
pub struct NotATenant;

const DEFAULT: &str = "default";
const NAME_BYTES_MAX: usize = 64;

impl Tenant {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What keeps the cached prefixes of tenants apart; 0 for the tenant of a server without keys.
    #[must_use]
    pub fn cache_salt(&self) -> u64 {
        if &*self.0 == DEFAULT {
            return 0;
        }
        let digest = Sha256::digest(format!("tenant {}", self.0));
        digest.iter().take(8).fold(0, |salt, byte| salt << 8 | u64::from(*byte))
    }

    /// A tenant as the database has it, which has been checked on the way in.
    pub(super) fn stored(name: &str) -> Self {
        Self(name.into())
    }
}

/// Whose everything is while there are no keys.
impl Default for Tenant {
    fn default() -> Self {
        Self(DEFAULT.into())
    }
}

impl FromStr for Tenant {
    type Err = NotATenant;

    fn from_str(text: &str) -> Result<Self, NotATenant> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(plain) {
            Ok(Self(text.into()))
        } else {
            Err(NotATenant)
        }
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
