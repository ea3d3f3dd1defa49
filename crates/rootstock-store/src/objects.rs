//! What packs are kept in: immutable objects under keys, as object storage has.

use std::{
    collections::BTreeMap,
    io,
    io::IoSlice,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use crate::disk::sim::flatten;

mod directory;
mod faulty;

pub use directory::{DirectoryObjects, FILES_OPEN_MAX};
pub use faulty::FaultyObjects;

/// An object's key and length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// The key: parts of `a-z`, `0-9`, `-`, `_`, joined by `/`.
    pub key: String,
    /// The object's length in bytes.
    pub len_bytes: u64,
}

/// Immutable objects under keys. There is no rename and no append, so that
/// object storage can be behind it.
pub trait Objects: Send + Sync {
    /// Stores an object made of these parts: whole or not at all, durable on
    /// return. An object that has the key already is replaced; keys name their
    /// content, so that changes nothing but damage.
    ///
    /// # Errors
    /// `StorageFull`, or the back end's error: the object may be there or not.
    fn put(&self, key: &str, parts: &[IoSlice<'_>]) -> io::Result<()>;

    /// Exactly these bytes of an object.
    ///
    /// # Errors
    /// `NotFound`, `UnexpectedEof` past the end, or the back end's error.
    fn get_range(&self, key: &str, offset_bytes: u64, len_bytes: usize) -> io::Result<Bytes>;

    /// An object's length in bytes.
    ///
    /// # Errors
    /// `NotFound`, or the back end's error.
    fn size(&self, key: &str) -> io::Result<u64>;

    /// All objects whose key begins with `prefix`, sorted by key.
    ///
    /// # Errors
    /// The back end's error.
    fn list(&self, prefix: &str) -> io::Result<Vec<ObjectInfo>>;

    /// Takes an object away; that there is none is no error. After a crash it
    /// may be back, whole.
    ///
    /// # Errors
    /// The back end's error.
    fn delete(&self, key: &str) -> io::Result<()>;

    /// Forgets cached bytes of an object, so that the next read asks the disk
    /// itself. A hint: what cannot be done is skipped.
    fn forget_cached(&self, _key: &str) {}
}

/// Objects in memory: for tests, and for stores that need not last.
#[derive(Default)]
pub struct MemoryObjects {
    objects: Mutex<BTreeMap<String, Bytes>>,
}

impl MemoryObjects {
    /// No objects.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Objects for MemoryObjects {
    fn put(&self, key: &str, parts: &[IoSlice<'_>]) -> io::Result<()> {
        check_key(key)?;
        self.lock().insert(key.to_owned(), flatten(parts).into());
        Ok(())
    }

    fn get_range(&self, key: &str, offset_bytes: u64, len_bytes: usize) -> io::Result<Bytes> {
        let objects = self.lock();
        let object = objects.get(key).ok_or(io::ErrorKind::NotFound)?;
        let start = usize::try_from(offset_bytes).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        match start.checked_add(len_bytes) {
            Some(end) if end <= object.len() => Ok(object.slice(start..end)),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn size(&self, key: &str) -> io::Result<u64> {
        let objects = self.lock();
        let object = objects.get(key).ok_or(io::ErrorKind::NotFound)?;
        Ok(object.len() as u64)
    }

    fn list(&self, prefix: &str) -> io::Result<Vec<ObjectInfo>> {
        let objects = self.lock();
        let listed = objects
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, object)| ObjectInfo {
                key: key.clone(),
                len_bytes: object.len() as u64,
            });
        Ok(listed.collect())
    }

    fn delete(&self, key: &str) -> io::Result<()> {
        self.lock().remove(key);
        Ok(())
    }
}

/// Refuses keys that some back end could not hold.
fn check_key(key: &str) -> io::Result<()> {
    let part_is_good = |part: &str| {
        let good = |c: u8| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
        !part.is_empty() && part.bytes().all(good)
    };
    if key.split('/').all(part_is_good) {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("'{key}' is not an object's key"),
    ))
}
