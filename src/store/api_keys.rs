use std::path::Path;

use sea_orm::ActiveValue::{NotSet, Set};
use sea_orm::entity::prelude::*;
use sea_orm::{ActiveModelTrait, ConnectionTrait, DatabaseConnection, QueryOrder};
use tandem_migrations::{Migrator, MigratorTrait};

use super::lock::DirLock;
use super::{Store, StoreError, Tenant, check_version, connect, create_dir, migrations, statement};
use crate::openai::AllowedModels;

/// A row of `api_keys`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "api_keys")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub name: String,
    pub tenant: String,
    /// SHA-256 of the whole key.
    pub digest: Vec<u8>,
    /// Words with spaces between them.
    pub scopes: String,
    pub max_requests_per_minute: Option<i64>,
    pub max_tokens_per_minute: Option<i64>,
    pub max_concurrent: Option<i64>,
    pub created_at: i64,
    pub expires_at: Option<i64>,
    pub revoked_at: Option<i64>,
    /// To the minute.
    pub last_used_at: Option<i64>,
    /// Names of models, a line for each; `None` is all.
    pub models: Option<String>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

pub use Model as ApiKey;

impl Model {
    pub fn tenant(&self) -> Tenant {
        Tenant::stored(&self.tenant)
    }

    pub fn models(&self) -> AllowedModels {
        AllowedModels::from_lines(self.models.as_deref())
    }
}

/// A key as it begins.
#[derive(Clone, Debug)]
pub struct NewApiKey {
    pub id: String,
    pub name: String,
    pub tenant: Tenant,
    pub digest: [u8; 32],
    pub scopes: String,
    pub max_requests_per_minute: Option<u32>,
    pub max_tokens_per_minute: Option<u32>,
    pub max_concurrent: Option<u32>,
    pub models: AllowedModels,
    pub created_at: i64,
    pub expires_at: Option<i64>,
}

/// The keys of a data directory that may be in a server's hands: `tandem keys` works beside it, and the server notices.
#[derive(Debug)]
pub struct ApiKeys {
    connection: DatabaseConnection,
    /// Ours while no server runs.
    _lock: Option<DirLock>,
}

impl ApiKeys {
    /// Opens the keys, creating the database if there is none.
    ///
    /// # Errors
    /// `Locked` if the server that has the directory is of a version that knows no keys; else when it cannot be read or written.
    pub async fn open(dir: &Path) -> Result<Self, StoreError> {
        create_dir(dir).await?;
        let lock = match DirLock::take(dir) {
            Ok(lock) => Some(lock),
            Err(StoreError::Locked { pid }) => {
                // The schema is its owner's to change.
                if migrations(dir).await?.iter().any(|(_, applied)| !applied) {
                    return Err(StoreError::Locked { pid });
                }
                None
            }
            Err(error) => return Err(error),
        };
        let connection = connect(&dir.join("tandem.db"), 1, false).await?;
        check_version(&connection).await?;
        if lock.is_some() {
            Migrator::up(&connection, None).await?;
        }
        Ok(Self { connection, _lock: lock })
    }

    /// As [`open`](Self::open), but `None` where there is no database.
    ///
    /// # Errors
    /// As `open`.
    pub async fn open_existing(dir: &Path) -> Result<Option<Self>, StoreError> {
        if fs_err::tokio::try_exists(dir.join("tandem.db")).await? { Self::open(dir).await.map(Some) } else { Ok(None) }
    }

    pub async fn add(&self, key: NewApiKey) -> Result<ApiKey, StoreError> {
        let row = ActiveModel {
            id: Set(key.id),
            name: Set(key.name),
            tenant: Set(key.tenant.as_str().to_owned()),
            digest: Set(key.digest.to_vec()),
            scopes: Set(key.scopes),
            max_requests_per_minute: Set(key.max_requests_per_minute.map(i64::from)),
            max_tokens_per_minute: Set(key.max_tokens_per_minute.map(i64::from)),
            max_concurrent: Set(key.max_concurrent.map(i64::from)),
            created_at: Set(key.created_at),
            expires_at: Set(key.expires_at),
            revoked_at: NotSet,
            last_used_at: NotSet,
            models: Set(key.models.to_lines()),
        };
        Ok(row.insert(&self.connection).await?)
    }

    /// Every key there ever was, oldest first.
    pub async fn all(&self) -> Result<Vec<ApiKey>, StoreError> {
        let by_age = Entity::find().order_by_asc(Column::CreatedAt).order_by_asc(Column::Id);
        Ok(by_age.all(&self.connection).await?)
    }

    /// Revokes a key, once: a second time changes nothing. `NotFound` if there is no such key.
    pub async fn revoke(&self, id: &str, now: i64) -> Result<(), StoreError> {
        let sql = "UPDATE api_keys SET revoked_at = COALESCE(revoked_at, ?) WHERE id = ?";
        let changed = self.connection.execute_raw(statement(sql, [now.into(), id.into()])).await?;
        if changed.rows_affected() == 0 { Err(StoreError::NotFound) } else { Ok(()) }
    }
}

impl Store {
    pub async fn api_key(&self, id: &str) -> Result<Option<ApiKey>, StoreError> {
        Ok(Entity::find_by_id(id).one(self.readers()).await?)
    }

    /// Whether a key was ever made, revoked or not: who has once asked for keys does not fall back to none.
    pub async fn has_api_keys(&self) -> Result<bool, StoreError> {
        any_key(self.readers()).await
    }

    /// Notes that a key was used.
    pub async fn touch_api_key(&self, id: &str, now: i64) -> Result<(), StoreError> {
        let sql = "UPDATE api_keys SET last_used_at = ? WHERE id = ?";
        let tx = self.begin().await?;
        tx.execute_raw(statement(sql, [now.into(), id.into()])).await?;
        Ok(tx.commit().await?)
    }
}

/// Whether a data directory has keys, before it is taken; changes nothing.
pub async fn has_api_keys(dir: &Path) -> Result<bool, StoreError> {
    let path = dir.join("tandem.db");
    if !fs_err::tokio::try_exists(&path).await? {
        return Ok(false);
    }
    let connection = connect(&path, 1, true).await?;
    let table = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'api_keys'";
    let known = connection.query_one_raw(statement(table, [])).await?.is_some();
    Ok(known && any_key(&connection).await?)
}

async fn any_key(connection: &DatabaseConnection) -> Result<bool, StoreError> {
    Ok(connection.query_one_raw(statement("SELECT 1 FROM api_keys LIMIT 1", [])).await?.is_some())
}
