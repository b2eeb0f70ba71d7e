use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use subtle::ConstantTimeEq;

use super::caller::{Caller, Meters};
use super::failures::Failures;
use super::key::{KeyText, hash};
use super::scope::Scopes;
use crate::clock::Clock;
use crate::openai::error::ApiError;
use crate::store::{ApiKey, Store, StoreError};

/// A key is looked up again after this long: what `tandem keys` does takes effect at most so much later.
const FRESH: Duration = Duration::from_secs(2);

/// Who may use the server. Clones share what they know.
#[derive(Clone, Debug)]
pub struct Access {
    /// `None` where nobody needs a key.
    keyring: Option<Arc<Keyring>>,
}

#[derive(Debug)]
struct Keyring {
    store: Store,
    clock: Clock,
    /// Whether there are keys. Once so, always so: a server that asks for keys does not stop to while it runs.
    needed: AtomicBool,
    /// When it was last seen that there are none.
    looked: Mutex<Option<Instant>>,
    /// Keys that were used, by their ids.
    keys: RwLock<HashMap<String, Known>>,
    failures: Failures,
}

#[derive(Clone, Debug)]
struct Known {
    key: Arc<ApiKey>,
    /// Outlives the row that it was made for: what was used stays used.
    meters: Arc<Meters>,
    read: Instant,
}

impl Access {
    /// Everyone may do everything.
    #[must_use]
    pub fn open() -> Self {
        Self { keyring: None }
    }

    /// Keys are asked for as soon as the store has one.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn by_keys(store: Store) -> Result<Self, StoreError> {
        let keyring = Keyring {
            needed: AtomicBool::new(store.has_api_keys().await?),
            store,
            clock: Clock::system(),
            looked: Mutex::new(None),
            keys: RwLock::default(),
            failures: Failures::default(),
        };
        Ok(Self { keyring: Some(Arc::new(keyring)) })
    }

    /// Whether no key is looked at, even if there are any.
    #[must_use]
    pub fn asks_nobody(&self) -> bool {
        self.keyring.is_none()
    }

    /// Whether a request needs a key, as far as was seen.
    #[must_use]
    pub fn needs_keys(&self) -> bool {
        self.keyring.as_ref().is_some_and(|keyring| keyring.needed.load(Ordering::Acquire))
    }

    /// Who a request comes from. `authorization` is the values of its headers of that name; `address` is its other end.
    ///
    /// # Errors
    /// 401 with what is wrong with the key, 429 when the address has tried too many wrong ones. Those of the store come through `unread`.
    pub async fn caller(
        &self,
        authorization: &[&[u8]],
        address: Option<IpAddr>,
        unread: impl Fn(StoreError) -> ApiError,
    ) -> Result<Caller, ApiError> {
        let Some(keyring) = &self.keyring else { return Ok(Caller::anyone()) };
        if !keyring.are_needed().await.map_err(&unread)? {
            return Ok(Caller::anyone());
        }
        let presented = presented(authorization)?;
        let checked = match KeyText::parse(presented) {
            Some(key) => keyring.check(&key, presented, &unread).await?,
            None => Err(ApiError::invalid_api_key(presented)),
        };
        // Counted after the look at the key: a good one is taken from wherever it comes.
        if let (Err(_), Some(address)) = (&checked, address)
            && let Err(wait) = keyring.failures.note(address, Instant::now())
        {
            return Err(ApiError::too_many_failed_auth(wait));
        }
        checked
    }
}

impl Keyring {
    async fn are_needed(&self) -> Result<bool, StoreError> {
        if self.needed.load(Ordering::Acquire) {
            return Ok(true);
        }
        let now = Instant::now();
        {
            let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
            if looked.is_some_and(|at| now.duration_since(at) < FRESH) {
                return Ok(false);
            }
            *looked = Some(now);
        }
        let needed = self.store.has_api_keys().await?;
        if needed {
            tracing::info!("there are API keys now: requests need one from here on");
            self.needed.store(true, Ordering::Release);
        }
        Ok(needed)
    }

    /// The inner error is what is wrong with the key, the outer that it could not be looked up.
    async fn check(
        &self,
        text: &KeyText,
        presented: &str,
        unread: &impl Fn(StoreError) -> ApiError,
    ) -> Result<Result<Caller, ApiError>, ApiError> {
        let known = self.known(text.id()).await.map_err(unread)?;
        // The same work is done for an id that does not exist.
        let digest = known.as_ref().map_or(&[0; 32][..], |known| &known.key.digest);
        let same = bool::from(hash(text)[..].ct_eq(digest));
        let Some(Known { key, meters, read: _ }) = known.filter(|_| same) else {
            return Ok(Err(ApiError::invalid_api_key(presented)));
        };
        let now = self.clock.seconds();
        if key.revoked_at.is_some() {
            return Ok(Err(ApiError::revoked_api_key()));
        }
        if key.expires_at.is_some_and(|at| at <= now) {
            return Ok(Err(ApiError::expired_api_key()));
        }
        let scopes = key.scopes.parse::<Scopes>().map_err(|_| {
            unread(StoreError::Corrupt(format!("API key {} has scopes that this version does not know", key.id)))
        })?;
        self.note_use(&key.id, &meters, now);
        Ok(Ok(Caller { tenant: key.tenant(), scopes, models: key.models(), meters: Some(meters) }))
    }

    async fn known(&self, id: &str) -> Result<Option<Known>, StoreError> {
        let known = self.keys.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
        if let Some(known) = &known
            && known.read.elapsed() < FRESH
        {
            return Ok(Some(known.clone()));
        }
        let read = Instant::now();
        let Some(key) = self.store.api_key(id).await? else { return Ok(None) };
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        // Another request may have been first; there is one set of meters for a key.
        let meters = keys.get(id).map_or_else(|| Arc::new(Meters::new(&key)), |known| Arc::clone(&known.meters));
        let known = Known { key: Arc::new(key), meters, read };
        keys.insert(id.to_owned(), known.clone());
        Ok(Some(known))
    }

    /// Once a minute for each key, beside the request.
    fn note_use(&self, id: &str, meters: &Meters, now: i64) {
        if meters.noted.swap(now / 60, Ordering::AcqRel) == now / 60 {
            return;
        }
        let (store, id) = (self.store.clone(), id.to_owned());
        tokio::spawn(async move {
            if let Err(error) = store.touch_api_key(&id, now - now % 60).await {
                tracing::warn!(key.id = %id, error = ?error, "could not note the use of an API key");
            }
        });
    }
}

/// The key that a request presents, whatever it looks like.
fn presented<'a>(authorization: &[&'a [u8]]) -> Result<&'a str, ApiError> {
    let [value] = authorization else {
        return Err(if authorization.is_empty() { ApiError::missing_api_key() } else { ApiError::invalid_api_key("") });
    };
    let Ok(value) = std::str::from_utf8(value) else { return Err(ApiError::invalid_api_key("")) };
    match value.trim().split_once(' ') {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => Ok(key.trim()),
        _ => Err(ApiError::missing_api_key()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Scope;
    use crate::openai::AllowedModels;
    use crate::store::{ApiKeys, NewApiKey, Tenant};

    async fn add(dir: &std::path::Path, change: impl FnOnce(&mut NewApiKey)) -> KeyText {
        let text = KeyText::generate("test").unwrap();
        let mut new = NewApiKey {
            id: text.id().to_owned(),
            name: "a".to_owned(),
            tenant: Tenant::default(),
            digest: hash(&text),
            scopes: "inference".to_owned(),
            max_requests_per_minute: None,
            max_tokens_per_minute: None,
            max_concurrent: None,
            models: AllowedModels::default(),
            created_at: 0,
            expires_at: None,
        };
        change(&mut new);
        ApiKeys::open(dir).await.unwrap().add(new).await.unwrap();
        text
    }

    async fn ask(access: &Access, header: &str) -> Result<Caller, ApiError> {
        let unread = |error: StoreError| panic!("{error:?}");
        access.caller(&[header.as_bytes()], None, unread).await
    }

    fn code(result: &Result<Caller, ApiError>) -> &'static str {
        result.as_ref().map_or_else(|error| error.body.code.unwrap(), |_| "ok")
    }

    #[tokio::test]
    async fn a_key_is_good_until_it_is_revoked_or_its_time_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let access = Access::by_keys(store.clone()).await.unwrap();
        assert_eq!(code(&ask(&access, "").await), "ok", "without keys nobody needs one");
        let key = add(dir.path(), |_| {}).await;
        let old = add(dir.path(), |new| new.expires_at = Some(1)).await;
        // A server that looks anew.
        let access = Access::by_keys(store.clone()).await.unwrap();
        let caller = ask(&access, &format!("bearer  {}", key.reveal())).await.unwrap();
        assert!(caller.may(Scope::Inference) && !caller.may(Scope::Admin));
        assert_eq!(code(&ask(&access, "").await), "missing_api_key");
        assert_eq!(code(&ask(&access, "Basic eDp5").await), "missing_api_key");
        assert_eq!(code(&ask(&access, "Bearer sk-1234567890abcd").await), "invalid_api_key");
        assert_eq!(
            code(&ask(&access, &format!("Bearer {}", KeyText::generate("test").unwrap().reveal())).await),
            "invalid_api_key"
        );
        assert_eq!(code(&ask(&access, &format!("Bearer {}", old.reveal())).await), "expired_api_key");
        let two = [key.reveal().as_bytes(), key.reveal().as_bytes()];
        let unread = |error: StoreError| panic!("{error:?}");
        assert_eq!(code(&access.caller(&two, None, unread).await), "invalid_api_key");

        ApiKeys::open(dir.path()).await.unwrap().revoke(key.id(), 5).await.unwrap();
        let access = Access::by_keys(store).await.unwrap();
        assert_eq!(code(&ask(&access, &format!("Bearer {}", key.reveal())).await), "revoked_api_key");
    }

    #[tokio::test]
    async fn the_use_of_a_key_is_noted_to_the_minute() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let key = add(dir.path(), |_| {}).await;
        let access = Access::by_keys(store.clone()).await.unwrap();
        ask(&access, &format!("Bearer {}", key.reveal())).await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(used) = store.api_key(key.id()).await.unwrap().unwrap().last_used_at {
                assert!(used > 0 && used % 60 == 0);
                break;
            }
            assert!(Instant::now() < deadline, "never noted");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_key_s_limits_hold_for_all_its_requests_together() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let key = add(dir.path(), |new| {
            (new.max_requests_per_minute, new.max_tokens_per_minute, new.max_concurrent) = (Some(3), Some(10), Some(2));
        })
        .await;
        let access = Access::by_keys(store).await.unwrap();
        let header = format!("Bearer {}", key.reveal());
        let caller = ask(&access, &header).await.unwrap();
        let running = caller.begin(true).unwrap();
        let other = ask(&access, &header).await.unwrap();
        let second = other.begin(false).unwrap();
        let refused = caller.begin(false).unwrap_err();
        assert_eq!((refused.status, refused.body.kind), (429, "requests"), "two run");
        drop((running, second));
        other.charge(11);
        let refused = caller.begin(true).unwrap_err();
        assert_eq!((refused.status, refused.body.kind, refused.retry_after), (429, "tokens", Some(12)));
        drop(caller.begin(false).unwrap());
        let refused = caller.begin(false).unwrap_err();
        assert_eq!((refused.status, refused.body.code), (429, Some("rate_limit_exceeded")), "three were begun");
        assert_eq!(caller.rate_limits().iter().map(|limit| limit.remaining).collect::<Vec<_>>(), [0, 0]);
    }
}
