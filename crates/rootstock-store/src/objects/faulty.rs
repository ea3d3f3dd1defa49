//! Objects that fail, rot, shrink and vanish on request: for tests.

use std::{
    collections::{HashMap, VecDeque},
    io,
    io::IoSlice,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use super::{ObjectInfo, Objects};

/// Another back end's objects, with faults.
pub struct FaultyObjects {
    inner: Arc<dyn Objects>,
    faults: Mutex<Faults>,
}

#[derive(Default)]
struct Faults {
    puts: VecDeque<Option<io::ErrorKind>>,
    gets: VecDeque<Option<io::ErrorKind>>,
    flipped_bits: HashMap<String, Vec<u64>>,
    cut_bytes: HashMap<String, u64>,
    gets_done: u64,
}

impl FaultyObjects {
    /// `inner`, without faults yet.
    #[must_use]
    pub fn new(inner: Arc<dyn Objects>) -> Self {
        Self {
            inner,
            faults: Mutex::default(),
        }
    }

    /// After `skip` more good ones, one put fails with this kind of error.
    pub fn fail_put(&self, skip: usize, kind: io::ErrorKind) {
        let mut faults = self.lock();
        faults.puts.extend(std::iter::repeat_n(None, skip));
        faults.puts.push_back(Some(kind));
    }

    /// After `skip` more good ones, one read fails with this kind of error.
    pub fn fail_get(&self, skip: usize, kind: io::ErrorKind) {
        let mut faults = self.lock();
        faults.gets.extend(std::iter::repeat_n(None, skip));
        faults.gets.push_back(Some(kind));
    }

    /// From now on, this bit of the object reads as its opposite.
    pub fn flip_bit(&self, key: &str, bit: u64) {
        let mut faults = self.lock();
        faults
            .flipped_bits
            .entry(key.to_owned())
            .or_default()
            .push(bit);
    }

    /// From now on, the object seems to end after this many bytes.
    pub fn cut(&self, key: &str, len_bytes: u64) {
        self.lock().cut_bytes.insert(key.to_owned(), len_bytes);
    }

    /// Makes all objects whole again.
    pub fn mend(&self) {
        *self.lock() = Faults::default();
    }

    /// How many reads were asked for.
    #[must_use]
    pub fn gets_done(&self) -> u64 {
        self.lock().gets_done
    }

    fn lock(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Objects for FaultyObjects {
    fn put(&self, key: &str, parts: &[IoSlice<'_>]) -> io::Result<()> {
        if let Some(Some(kind)) = self.lock().puts.pop_front() {
            return Err(kind.into());
        }
        self.inner.put(key, parts)?;
        // What is written anew is whole.
        let mut faults = self.lock();
        faults.flipped_bits.remove(key);
        faults.cut_bytes.remove(key);
        Ok(())
    }

    fn get_range(&self, key: &str, offset_bytes: u64, len_bytes: usize) -> io::Result<Bytes> {
        {
            let mut faults = self.lock();
            faults.gets_done += 1;
            if let Some(Some(kind)) = faults.gets.pop_front() {
                return Err(kind.into());
            }
        }
        let end = offset_bytes + len_bytes as u64;
        if end > self.size(key)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let bytes = self.inner.get_range(key, offset_bytes, len_bytes)?;
        let mut bytes = Vec::from(bytes);
        for bit in self.lock().flipped_bits.get(key).into_iter().flatten() {
            let at = bit / 8;
            if (offset_bytes..end).contains(&at) {
                bytes[(at - offset_bytes) as usize] ^= 1 << (bit % 8);
            }
        }
        Ok(bytes.into())
    }

    fn size(&self, key: &str) -> io::Result<u64> {
        let size = self.inner.size(key)?;
        Ok(match self.lock().cut_bytes.get(key) {
            Some(cut) => size.min(*cut),
            None => size,
        })
    }

    fn list(&self, prefix: &str) -> io::Result<Vec<ObjectInfo>> {
        let mut listed = self.inner.list(prefix)?;
        for object in &mut listed {
            if let Some(cut) = self.lock().cut_bytes.get(&object.key) {
                object.len_bytes = object.len_bytes.min(*cut);
            }
        }
        Ok(listed)
    }

    fn delete(&self, key: &str) -> io::Result<()> {
        self.inner.delete(key)
    }
}
