//! A disk that keeps what it was told to keep, and of the rest whatever it likes.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use rand::Rng;

use super::trace::{Call, Event};

/// The files of a directory as a process sees them, and what of them a power cut leaves for certain: bytes that were synced, under names
/// whose directories were synced. That is all that POSIX promises; most file systems keep more.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    root: String,
    files: Vec<File>,
    seen: BTreeMap<String, Entry>,
    kept: BTreeMap<String, Entry>,
    /// Where descriptors stand that are written to without saying where.
    offsets: HashMap<u32, usize>,
    /// What a sync that has begun will have kept when it is done, by thread.
    syncing: HashMap<u32, Syncing>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Folder,
    /// Its place in `files`.
    File(usize),
}

#[derive(Clone, Debug, Default)]
struct File {
    kept: Vec<u8>,
    /// Changes that were synced, and with it are part of `kept`.
    synced: usize,
    pending: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Bytes { at: usize, bytes: Vec<u8> },
    Length(usize),
}

#[derive(Clone, Debug)]
enum Syncing {
    /// As many changes.
    File(usize, usize),
    Folder(String, Vec<(String, Entry)>),
}

impl Disk {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_str().unwrap().to_owned(), ..Self::default() }
    }

    /// Whether the event was one of this directory.
    pub(super) fn apply(&mut self, event: &Event) -> bool {
        match event {
            Event::Begun(thread, call) => match call.name.as_str() {
                "fsync" | "fdatasync" => self.begin_sync(*thread, call),
                _ => false,
            },
            Event::Done(thread, call, result) => self.done(*thread, call, *result),
        }
    }

    fn begin_sync(&mut self, thread: u32, call: &Call) -> bool {
        let Some(path) = call.paths.first().and_then(|path| self.inside(path)) else { return false };
        let syncing = match self.seen.get(&path) {
            Some(Entry::File(file)) => Syncing::File(*file, self.files[*file].synced + self.files[*file].pending.len()),
            Some(Entry::Folder) | None => {
                let children = self.seen.iter().filter(|(name, _)| parent(name) == path);
                Syncing::Folder(path.clone(), children.map(|(name, entry)| (name.clone(), *entry)).collect())
            }
        };
        self.syncing.insert(thread, syncing);
        true
    }

    fn done(&mut self, thread: u32, call: &Call, result: i64) -> bool {
        let named: Vec<String> = call.strings.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        let named: Vec<String> = named.iter().filter_map(|name| self.inside(name)).collect();
        let open = call.paths.first().and_then(|path| self.inside(path));
        let file = open.as_ref().and_then(|path| match self.seen.get(path) {
            Some(Entry::File(file)) => Some(*file),
            Some(Entry::Folder) | None => None,
        });
        match (call.name.as_str(), &named[..], file) {
            ("openat", [path], _) => {
                self.offsets.insert(result as u32, 0);
                let is_new = !self.seen.contains_key(path);
                if is_new && call.rest.contains("O_CREAT") {
                    self.seen.insert(path.clone(), Entry::File(self.files.len()));
                    self.files.push(File::default());
                }
                if let (true, Some(Entry::File(file))) = (call.rest.contains("O_TRUNC"), self.seen.get(path)) {
                    self.files[*file].pending.push(Change::Length(0));
                }
            }
            ("mkdir" | "mkdirat", [path], _) => drop(self.seen.insert(path.clone(), Entry::Folder)),
            ("rename" | "renameat" | "renameat2", [from, to], _) => {
                if let Some(entry) = self.seen.remove(from) {
                    self.seen.insert(to.clone(), entry);
                }
            }
            ("unlink" | "unlinkat" | "rmdir", [path], _) => drop(self.seen.remove(path)),
            ("lseek", _, Some(_)) => drop(self.offsets.insert(call.fd.unwrap(), result as usize)),
            ("write", _, Some(file)) => {
                let at = self.offsets.entry(call.fd.unwrap()).or_default();
                let bytes = call.strings[0][..result as usize].to_vec();
                self.files[file].pending.push(Change::Bytes { at: *at, bytes });
                *at += result as usize;
            }
            ("pwrite64", _, Some(file)) => {
                let bytes = call.strings[0][..result as usize].to_vec();
                self.files[file].pending.push(Change::Bytes { at: call.last_number().unwrap(), bytes });
            }
            ("ftruncate", _, Some(file)) => {
                self.files[file].pending.push(Change::Length(call.last_number().unwrap()));
            }
            ("fsync" | "fdatasync", ..) => return self.end_sync(thread),
            _ => return false,
        }
        true
    }

    fn end_sync(&mut self, thread: u32) -> bool {
        match self.syncing.remove(&thread) {
            None => return false,
            Some(Syncing::File(file, changes)) => {
                let File { kept, synced, pending } = &mut self.files[file];
                let now = changes.saturating_sub(*synced);
                pending.drain(..now).for_each(|change| change.apply(kept));
                *synced += now;
            }
            Some(Syncing::Folder(path, children)) => {
                self.kept.retain(|name, _| parent(name) != path);
                self.kept.extend(children);
            }
        }
        true
    }

    /// What is there after a power cut, written to a new directory. Without `luck` nothing is that need not be; with it each name and each
    /// change that was not synced is there or not, the sectors of a write one by one.
    pub(super) fn after_a_power_cut(&self, to: &Path, mut luck: Option<&mut impl Rng>) {
        let mut names = self.kept.clone();
        if let Some(luck) = luck.as_deref_mut() {
            let changed = |name: &&String| self.kept.get(*name) != self.seen.get(*name);
            let all: Vec<&String> = self.seen.keys().chain(self.kept.keys()).filter(changed).collect();
            for name in all.into_iter().filter(|_| luck.random()) {
                match self.seen.get(name) {
                    Some(entry) => drop(names.insert(name.clone(), *entry)),
                    None => drop(names.remove(name)),
                }
            }
        }
        for (name, entry) in names.iter().filter(|(name, _)| !name.ends_with("-shm")) {
            let path = to.join(name);
            // A name in a folder that is gone is gone too.
            if !path.parent().unwrap().is_dir() {
                continue;
            }
            match entry {
                Entry::Folder => fs_err::create_dir(path).unwrap(),
                Entry::File(file) => {
                    let File { kept, pending, .. } = &self.files[*file];
                    let mut bytes = kept.clone();
                    if let Some(luck) = luck.as_deref_mut() {
                        pending.iter().for_each(|change| change.apply_in_part(&mut bytes, luck));
                    }
                    fs_err::write(path, bytes).unwrap();
                }
            }
        }
    }

    /// A path below the directory; the directory itself is "".
    fn inside(&self, path: &str) -> Option<String> {
        let rest = path.strip_prefix(&self.root)?;
        Some(rest.trim_start_matches('/').to_owned())
    }
}

impl Change {
    const SECTOR: usize = 512;

    fn apply(self, file: &mut Vec<u8>) {
        match self {
            Self::Length(length) => file.resize(length, 0),
            Self::Bytes { at, bytes } => put(file, at, &bytes),
        }
    }

    fn apply_in_part(&self, file: &mut Vec<u8>, luck: &mut impl Rng) {
        match self {
            Self::Length(length) if luck.random() => file.resize(*length, 0),
            Self::Length(_) => {}
            Self::Bytes { at, bytes } => {
                for (sector, bytes) in bytes.chunks(Self::SECTOR).enumerate().filter(|_| luck.random()) {
                    put(file, at + sector * Self::SECTOR, bytes);
                }
            }
        }
    }
}

fn put(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[at..end].copy_from_slice(bytes);
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

mod tests {
    use std::path::PathBuf;

    use super::*;

    fn done(disk: &mut Disk, name: &str, path: &str, strings: &[&[u8]], rest: &str, result: i64) {
        let call = Call {
            name: name.to_owned(),
            fd: Some(3),
            paths: vec![format!("/d/{path}")],
            strings: strings.iter().map(|bytes| bytes.to_vec()).collect(),
            rest: rest.to_owned(),
        };
        disk.apply(&Event::Begun(1, call.clone()));
        disk.apply(&Event::Done(1, call, result));
    }

    fn left(disk: &Disk) -> BTreeMap<PathBuf, Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        disk.after_a_power_cut(dir.path(), None::<&mut rand::rngs::StdRng>);
        let entries = fs_err::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap());
        entries.map(|entry| (entry.file_name().into(), fs_err::read(entry.path()).unwrap())).collect()
    }

    #[test]
    fn what_is_left_is_what_was_synced_under_names_that_were() {
        let mut disk = Disk::new(Path::new("/d"));
        done(&mut disk, "openat", "", &[b"/d/a"], "O_CREAT", 3);
        done(&mut disk, "write", "a", &[b"hello"], "3, , 5", 5);
        done(&mut disk, "fdatasync", "a", &[], "3", 0);
        assert!(left(&disk).is_empty(), "it has no name");
        done(&mut disk, "fsync", "", &[], "3", 0);
        done(&mut disk, "pwrite64", "a", &[b"J"], "3, , 1, 0", 1);
        done(&mut disk, "ftruncate", "a", &[], "3, 2", 0);
        assert_eq!(left(&disk), BTreeMap::from([("a".into(), b"hello".to_vec())]));
        done(&mut disk, "rename", "", &[b"/d/a", b"/d/b"], "", 0);
        done(&mut disk, "fsync", "b", &[], "3", 0);
        assert_eq!(left(&disk), BTreeMap::from([("a".into(), b"Je".to_vec())]));
        done(&mut disk, "fsync", "", &[], "3", 0);
        assert_eq!(left(&disk), BTreeMap::from([("b".into(), b"Je".to_vec())]));
        done(&mut disk, "unlink", "", &[b"/d/b"], "", 0);
        assert_eq!(left(&disk).len(), 1, "a file that was deleted may be back");
    }
}
