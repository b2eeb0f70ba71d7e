//! The database schema, one migration per noun. Forward only: a newer schema is never undone, and a database that a newer version has
//! migrated is refused.

#![expect(
    elided_lifetimes_in_paths,
    reason = "the trait's signature, as async_trait expands it, takes no named lifetime"
)]

use sea_orm_migration::prelude::{MigrationTrait, async_trait};

mod m20261101_000001_create_files;
mod m20261101_000002_create_batches;
mod m20261101_000003_create_instances;
mod m20261124_000004_create_api_keys;
mod m20261124_000005_steer_batches;
mod m20261124_000006_order_lines;
mod m20261124_000007_allow_models;
mod m20261129_000008_rank_batches;
mod m20261129_000009_count_repeats;

pub use sea_orm_migration::MigratorTrait;

/// Brings a database to the schema of this version.
#[derive(Debug)]
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261101_000001_create_files::Migration),
            Box::new(m20261101_000002_create_batches::Migration),
            Box::new(m20261101_000003_create_instances::Migration),
            Box::new(m20261124_000004_create_api_keys::Migration),
            Box::new(m20261124_000005_steer_batches::Migration),
            Box::new(m20261124_000006_order_lines::Migration),
            Box::new(m20261124_000007_allow_models::Migration),
            Box::new(m20261129_000008_rank_batches::Migration),
            Box::new(m20261129_000009_count_repeats::Migration),
        ]
    }
}
