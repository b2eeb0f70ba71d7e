use tandem_core::TokenId;
use xxhash_rust::xxh3::{Xxh3, xxh3_128_with_seed};

use super::Salt;

/// Hash of a block's tokens and of the key before it. 128 bits, and begun with a seed that clients do not know: a collision would answer
/// with somebody else's context.
pub(super) type Key = u128;

/// The keys of a sequence's full blocks, in order: each block is hashed once, however often room is asked for.
#[derive(Debug, Default)]
pub(crate) struct Keys(Vec<Key>);

impl Keys {
    /// The keys of the full blocks of `tokens`, which must be those that were hashed before and more. `root` stands before the first.
    pub(super) fn of(&mut self, tokens: &[TokenId], block_size: usize, root: Key) -> &[Key] {
        let full = tokens.len() / block_size;
        for chunk in tokens.chunks_exact(block_size).skip(self.0.len()) {
            let key = key_after(self.0.last().copied().unwrap_or(root), chunk);
            self.0.push(key);
        }
        &self.0[..full]
    }
}

/// What stands before the first block of sequences with this salt.
pub(super) fn root(seed: u64, salt: Salt) -> Key {
    let Salt { cache, adapter, alone } = salt;
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&cache.to_le_bytes());
    // Both count from 1 here, so that the first is not none.
    bytes[16..].copy_from_slice(&alone.map_or(0, |sequence| sequence + 1).to_le_bytes());
    bytes[8..16].copy_from_slice(&adapter.map_or(0, |adapter| u64::from(adapter.0) + 1).to_le_bytes());
    xxh3_128_with_seed(&bytes, seed)
}

fn key_after(before: Key, tokens: &[TokenId]) -> Key {
    let mut hasher = Xxh3::new();
    hasher.update(&before.to_le_bytes());
    let mut bytes = [0; 256];
    for run in tokens.chunks(bytes.len() / 4) {
        for (bytes, token) in bytes.chunks_exact_mut(4).zip(run) {
            bytes.copy_from_slice(&token.to_le_bytes());
        }
        hasher.update(&bytes[..run.len() * 4]);
    }
    hasher.digest128()
}
