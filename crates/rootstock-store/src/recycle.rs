//! Memory of frames and chunks, used again: fresh pages cost as much as reading them.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use rootstock_core::units::CHUNK_BYTES;

use crate::pack::RECORD_BYTES;

/// The length of a buffer that is kept: a chunk, or the largest record of a pack.
const KEPT_BYTES: usize = CHUNK_BYTES as usize + RECORD_BYTES;

/// Shorter buffers are the allocator's own business: it has them without asking
/// the kernel.
const SHORT_BYTES: usize = 32 << 10;

/// Buffers that wait to be used again, at most: 8 MiB.
const WAITING_MAX: usize = 32;

/// Gives out buffers, and takes them back once nobody holds their bytes.
#[derive(Clone, Default)]
pub(crate) struct Recycler(Arc<Mutex<Vec<Box<[u8]>>>>);

impl Recycler {
    /// A buffer of this length. What is in it is anything.
    pub(crate) fn buffer(&self, len_bytes: usize) -> Buffer {
        if !(SHORT_BYTES..=KEPT_BYTES).contains(&len_bytes) {
            return Buffer {
                memory: vec![0; len_bytes].into(),
                len_bytes,
                home: None,
            };
        }
        let waiting = self.waiting().pop();
        Buffer {
            memory: waiting.unwrap_or_else(|| vec![0; KEPT_BYTES].into()),
            len_bytes,
            home: Some(self.clone()),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Box<[u8]>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes to be filled, and then read by many.
pub(crate) struct Buffer {
    memory: Box<[u8]>,
    len_bytes: usize,
    /// Where the memory goes afterwards; nowhere when it is not of the kept length.
    home: Option<Recycler>,
}

impl Buffer {
    /// Nothing changes the bytes any more.
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[..self.len_bytes]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.len_bytes]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(home) = self.home.take() else {
            return;
        };
        let memory = std::mem::take(&mut self.memory);
        let mut waiting = home.waiting();
        if waiting.len() < WAITING_MAX {
            waiting.push(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_when_the_last_reader_is_gone() {
        let recycler = Recycler::default();
        let mut buffer = recycler.buffer(SHORT_BYTES);
        buffer.fill(7);
        let memory = buffer.as_ptr();
        let bytes = buffer.freeze();
        let part = bytes.slice(3..5);
        drop(bytes);
        assert!(recycler.waiting().is_empty());
        assert_eq!(part, [7, 7].as_slice());
        drop(part);
        assert_eq!(recycler.waiting().len(), 1);
        let again = recycler.buffer(KEPT_BYTES);
        assert_eq!((again.len(), again.as_ptr()), (KEPT_BYTES, memory));
    }

    #[test]
    fn what_waits_is_bounded() {
        let recycler = Recycler::default();
        let many: Vec<_> = (0..=WAITING_MAX)
            .map(|_| recycler.buffer(KEPT_BYTES))
            .collect();
        let odd = [0, 1, KEPT_BYTES + 1].map(|len| recycler.buffer(len));
        assert_eq!(odd.each_ref().map(|odd| odd.len()), [0, 1, KEPT_BYTES + 1]);
        drop((many, odd));
        assert_eq!(recycler.waiting().len(), WAITING_MAX);
    }
}
