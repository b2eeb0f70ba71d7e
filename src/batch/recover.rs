use crate::store::{Store, StoreError};

/// Puts in order what an earlier process left, before anything runs. Each step may be repeated after a crash within it; the rest of
/// recovery is the runner's daily work, since it acts on what the database says.
pub(super) async fn recover(store: &Store) -> Result<(), StoreError> {
    let voided = store.void_dead_leases().await?;
    if voided > 0 {
        tracing::warn!(lines = voided, "an earlier process died with lines in its hands; each is run alone now");
    }
    let live = store.live_batches().await?;
    for batch in &live {
        if store.recount(&batch.id).await? {
            tracing::error!(batch.id = %batch.id, "the counters of a batch did not match its lines and were repaired");
        }
    }
    let removed = store.collect_garbage().await?;
    tracing::info!(batches = live.len(), lines = voided, blobs_removed = removed, "recovered the batches");
    Ok(())
}
