//! Objects as files of a local disk, whole and durable or not there.

use std::{
    collections::HashSet,
    io,
    io::IoSlice,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use quick_cache::sync::Cache;

use super::{ObjectInfo, Objects, check_key};
use crate::{
    disk::{Disk, DiskFile},
    recycle::Recycler,
};

/// Files kept open for reading, at most: a daemon has 1,024 descriptors unless
/// its unit says otherwise, and connections need most of them.
pub const FILES_OPEN_MAX: usize = 256;

/// Where objects are while they are written. No key has a dot.
const INCOMING: &str = "incoming.tmp";

/// A directory of a [`Disk`], one file per object.
///
/// An object is written under a temporary name, synced, renamed, and its
/// directory synced. What a crash left under temporary names is removed by
/// [`DirectoryObjects::new`].
pub struct DirectoryObjects {
    disk: Arc<dyn Disk>,
    dir: String,
    next_incoming: AtomicU64,
    /// Directories known to be there, and durable.
    known_dirs: Mutex<HashSet<String>>,
    open_files: Cache<String, Arc<dyn DiskFile>>,
    /// Held while a name and its open file must agree.
    naming: Mutex<()>,
    recycler: Recycler,
}

impl DirectoryObjects {
    /// The objects in `dir`, which is made (in an existing parent) if need be.
    /// An empty `dir` is the disk's root. One process at a time may do this.
    ///
    /// # Errors
    /// The disk's.
    pub fn new(disk: Arc<dyn Disk>, dir: &str) -> io::Result<Self> {
        let objects = Self {
            disk,
            dir: dir.to_owned(),
            next_incoming: AtomicU64::new(0),
            known_dirs: Mutex::default(),
            open_files: Cache::new(FILES_OPEN_MAX),
            naming: Mutex::default(),
            recycler: Recycler::default(),
        };
        if !dir.is_empty() {
            objects.make_dir(dir)?;
        }
        let incoming = objects.path(INCOMING);
        objects.make_dir(&incoming)?;
        for name in objects.disk.list(&incoming)? {
            objects.disk.remove(&join(&incoming, &name))?;
        }
        Ok(objects)
    }

    fn path(&self, key: &str) -> String {
        join(&self.dir, key)
    }

    fn known_dirs(&self) -> MutexGuard<'_, HashSet<String>> {
        self.known_dirs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn make_dir(&self, path: &str) -> io::Result<()> {
        if self.known_dirs().contains(path) {
            return Ok(());
        }
        self.disk.create_dir(path)?;
        self.disk.sync_dir(parent(path))?;
        self.known_dirs().insert(path.to_owned());
        Ok(())
    }

    /// Makes the directories between `dir` and the object.
    fn make_dirs_of(&self, key: &str) -> io::Result<()> {
        for (at, _) in key.match_indices('/') {
            self.make_dir(&self.path(&key[..at]))?;
        }
        Ok(())
    }

    fn write_incoming(&self, incoming: &str, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let file = self.disk.create(incoming)?;
        file.write_vectored_at(0, parts)?;
        file.sync_data()
    }

    fn name(&self, key: &str, incoming: &str, path: &str) -> io::Result<()> {
        let _naming = self.naming();
        self.disk.rename(incoming, path)?;
        self.open_files.remove(key);
        Ok(())
    }

    fn naming(&self) -> MutexGuard<'_, ()> {
        self.naming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, key: &str) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(file) = self.open_files.get(key) {
            return Ok(file);
        }
        check_key(key)?;
        let _naming = self.naming();
        let file: Arc<dyn DiskFile> = self.disk.open(&self.path(key))?.into();
        self.open_files.insert(key.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    /// Adds the objects below `at` (a key's beginning, or empty).
    fn walk(&self, at: &str, prefix: &str, found: &mut Vec<ObjectInfo>) -> io::Result<()> {
        for name in self.disk.list(&self.path(at))? {
            if at.is_empty() && name.strip_suffix('/') == Some(INCOMING) {
                continue;
            }
            let key = join(at, name.trim_end_matches('/'));
            if name.ends_with('/') {
                let below = format!("{key}/");
                if below.starts_with(prefix) || prefix.starts_with(&below) {
                    self.walk(&key, prefix, found)?;
                }
            } else if key.starts_with(prefix) && check_key(&key).is_ok() {
                let len_bytes = self.disk.open(&self.path(&key))?.len()?;
                found.push(ObjectInfo { key, len_bytes });
            }
        }
        Ok(())
    }
}

impl Objects for DirectoryObjects {
    fn put(&self, key: &str, parts: &[IoSlice<'_>]) -> io::Result<()> {
        check_key(key)?;
        self.make_dirs_of(key)?;
        let number = self.next_incoming.fetch_add(1, Ordering::Relaxed);
        let incoming = self.path(&format!("{INCOMING}/{number}"));
        let path = self.path(key);
        let written = self
            .write_incoming(&incoming, parts)
            .and_then(|()| self.name(key, &incoming, &path));
        if let Err(error) = written {
            // Its space is wanted back now; the next start tries again.
            let _ = self.disk.remove(&incoming);
            return Err(error);
        }
        self.disk.sync_dir(parent(&path))
    }

    fn get_range(&self, key: &str, offset_bytes: u64, len_bytes: usize) -> io::Result<Bytes> {
        let mut buffer = self.recycler.buffer(len_bytes);
        self.file(key)?.read_at(offset_bytes, &mut buffer)?;
        Ok(buffer.freeze())
    }

    fn size(&self, key: &str) -> io::Result<u64> {
        self.file(key)?.len()
    }

    fn list(&self, prefix: &str) -> io::Result<Vec<ObjectInfo>> {
        let mut found = Vec::new();
        self.walk("", prefix, &mut found)?;
        found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    fn delete(&self, key: &str) -> io::Result<()> {
        check_key(key)?;
        let _naming = self.naming();
        self.open_files.remove(key);
        match self.disk.remove(&self.path(key)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    fn forget_cached(&self, key: &str) {
        if let Ok(file) = self.file(key)
            && let Some(fd) = file.raw_fd()
        {
            let _ = rustix::fs::fadvise(fd, 0, None, rustix::fs::Advice::DontNeed);
        }
    }
}

fn join(dir: &str, name: &str) -> String {
    match (dir, name) {
        ("", only) | (only, "") => only.to_owned(),
        _ => format!("{dir}/{name}"),
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}
