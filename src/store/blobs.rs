use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fs_err::os::unix::fs::OpenOptionsExt as _;
use fs_err::tokio as fs;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use super::{StoreError, ids};
use crate::failpoint::failpoint;

/// Immutable byte strings on disk. A blob appears under its key complete and synced, or not at all.
///
/// Keys are ours and random: no text of a client ever becomes part of a path.
#[derive(Clone, Debug)]
pub struct Blobs {
    dir: Arc<Path>,
}

/// A blob that was written and synced.
#[derive(Clone, Debug)]
pub struct Blob {
    pub key: String,
    pub bytes: u64,
    /// Lower-case hex.
    pub sha256: String,
}

impl Blobs {
    pub(super) async fn open(dir: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(dir.join("tmp")).await?;
        fs::create_dir_all(dir.join("blobs")).await?;
        Ok(Self { dir: Arc::from(dir) })
    }

    /// Bytes that are free on the disk for whoever runs the server.
    pub async fn free_bytes(&self) -> Result<u64, StoreError> {
        let dir = Arc::clone(&self.dir);
        let stat =
            tokio::task::spawn_blocking(move || rustix::fs::statvfs(&*dir)).await.map_err(std::io::Error::other)?;
        let stat = stat.map_err(std::io::Error::from)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Starts a blob; it exists once [`BlobWriter::finish`] has returned.
    pub async fn create(&self) -> Result<BlobWriter, StoreError> {
        let key = ids::new_blob_key();
        let path = self.dir.join("tmp").join(format!("{key}.part"));
        // Together with who removes it: whoever asked may be gone by the time that it is there.
        let (part, file) =
            tokio::task::spawn_blocking(|| Part::create(path)).await.map_err(std::io::Error::other)??;
        let file = tokio::io::BufWriter::with_capacity(256 * 1024, fs::File::from_std(file));
        Ok(BlobWriter { blobs: self.clone(), key, part, file, hash: Sha256::new(), bytes: 0 })
    }

    /// Writes a whole blob.
    pub async fn put(&self, bytes: &[u8]) -> Result<Blob, StoreError> {
        let mut writer = self.create().await?;
        writer.write(bytes).await?;
        writer.finish().await
    }

    pub async fn open_blob(&self, key: &str) -> Result<fs::File, StoreError> {
        match fs::File::open(self.path(key)).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(missing(key)),
            opened => Ok(opened?),
        }
    }

    /// A whole blob, for those that are known to be small.
    pub async fn read(&self, key: &str) -> Result<Vec<u8>, StoreError> {
        match fs::read(self.path(key)).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(missing(key)),
            read => Ok(read?),
        }
    }

    /// Removing what is not there is no error: a repeated removal has the same end.
    pub(super) async fn remove(&self, key: &str) -> Result<(), StoreError> {
        match fs::remove_file(self.path(key)).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Removes unfinished blobs and those that `referenced` does not name. Only safe while nothing writes.
    pub(super) async fn collect_garbage(&self, referenced: &HashSet<String>) -> Result<usize, StoreError> {
        let mut removed = 0;
        let mut parts = fs::read_dir(self.dir.join("tmp")).await?;
        while let Some(entry) = parts.next_entry().await? {
            fs::remove_file(entry.path()).await?;
            removed += 1;
        }
        let mut folders = fs::read_dir(self.dir.join("blobs")).await?;
        while let Some(folder) = folders.next_entry().await? {
            let mut blobs = fs::read_dir(folder.path()).await?;
            while let Some(entry) = blobs.next_entry().await? {
                if !entry.file_name().to_str().is_some_and(|key| referenced.contains(key)) {
                    fs::remove_file(entry.path()).await?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    fn folder(&self, key: &str) -> PathBuf {
        self.dir.join("blobs").join(key.get(..2).unwrap_or("__"))
    }

    fn path(&self, key: &str) -> PathBuf {
        self.folder(key).join(key)
    }
}

fn missing(key: &str) -> StoreError {
    StoreError::Corrupt(format!("blob {key} is missing"))
}

/// A blob under construction. Dropped unfinished, it leaves nothing.
#[derive(Debug)]
pub struct BlobWriter {
    blobs: Blobs,
    key: String,
    part: Part,
    file: tokio::io::BufWriter<fs::File>,
    hash: Sha256,
    bytes: u64,
}

impl BlobWriter {
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes).await?;
        failpoint("blob.half");
        Ok(())
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Syncs the bytes, then the name: after this a power cut does not lose the blob.
    pub async fn finish(mut self) -> Result<Blob, StoreError> {
        self.file.flush().await?;
        self.file.get_ref().sync_data().await?;
        failpoint("blob.synced");
        let folder = self.blobs.folder(&self.key);
        if !fs::try_exists(&folder).await? {
            fs::create_dir_all(&folder).await?;
            sync_dir(self.blobs.dir.join("blobs")).await?;
        }
        if let Some(path) = &self.part.path {
            fs::rename(path, self.blobs.path(&self.key)).await?;
        }
        self.part.path = None;
        failpoint("blob.renamed");
        sync_dir(folder).await?;
        let hash = std::mem::take(&mut self.hash).finalize();
        Ok(Blob { key: std::mem::take(&mut self.key), bytes: self.bytes, sha256: hex(&hash) })
    }
}

/// A file that is removed when this is dropped, unless its path is taken away.
#[derive(Debug)]
struct Part {
    path: Option<PathBuf>,
}

impl Part {
    fn create(path: PathBuf) -> std::io::Result<(Self, fs_err::File)> {
        let file = fs_err::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok((Self { path: Some(path) }, file))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(path) = self.path.take()
            && let Err(error) = fs_err::remove_file(&path)
        {
            tracing::warn!(error = %error, "an unfinished upload was left behind; the next start removes it");
        }
    }
}

async fn sync_dir(dir: PathBuf) -> Result<(), StoreError> {
    Ok(fs::File::open(dir).await?.sync_all().await?)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
