//! The bytes received and not yet understood.

/// A window of received bytes over one allocation of a fixed size.
///
/// When it runs empty it starts again at the front, so a connection with small
/// requests touches only the first pages of its buffer.
#[derive(Debug)]
pub struct InputBuffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl InputBuffer {
    /// A buffer for `capacity_bytes`.
    ///
    /// # Panics
    /// When it could not hold an option or a write's piece: see
    /// [`InputBuffer::CAPACITY_BYTES_MIN`].
    #[must_use]
    pub fn new(capacity_bytes: usize) -> Self {
        assert!(
            capacity_bytes >= Self::CAPACITY_BYTES_MIN,
            "an input buffer holds at least one option"
        );
        Self {
            bytes: vec![0; capacity_bytes].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    /// The least capacity: an option's header and its data, or a request's
    /// header and two blocks of a write.
    pub const CAPACITY_BYTES_MIN: usize = crate::negotiation::OPTION_BYTES_MAX + 64;

    /// Where the next received bytes go: never empty unless a whole buffer
    /// waits to be understood.
    pub fn spare(&mut self) -> &mut [u8] {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.start > 0 && self.end * 2 > self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.bytes[self.end..]
    }

    /// Says that the first `len` bytes of [`InputBuffer::spare`] were filled.
    ///
    /// # Panics
    /// When more is claimed than there was room for.
    pub fn filled(&mut self, len: usize) {
        assert!(len <= self.bytes.len() - self.end, "more than the room");
        self.end += len;
    }

    /// What was received and not yet consumed.
    #[must_use]
    pub fn available(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// How much [`InputBuffer::available`] holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether all was understood.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// How many bytes there can be at once.
    #[must_use]
    pub fn capacity_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Copies in as much as there is room for; returns how much that was.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let room = self.spare();
        let len = room.len().min(bytes.len());
        room[..len].copy_from_slice(&bytes[..len]);
        self.filled(len);
        len
    }

    /// Takes `len` bytes off the front.
    ///
    /// # Panics
    /// When there are not that many.
    pub fn take(&mut self, len: usize) -> &[u8] {
        assert!(len <= self.len(), "more than was received");
        let from = self.start;
        self.start += len;
        &self.bytes[from..from + len]
    }

    /// The first `N` bytes, if that many were received; they stay.
    pub(crate) fn peek<const N: usize>(&self) -> Option<&[u8; N]> {
        self.available().first_chunk()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn is_a_queue_of_bytes(steps in prop::collection::vec((any::<bool>(), 0_usize..30_000), 0..60)) {
            let mut buffer = InputBuffer::new(InputBuffer::CAPACITY_BYTES_MIN);
            let mut model = std::collections::VecDeque::new();
            let mut next = 0_u8;
            for (push, len) in steps {
                if push {
                    let bytes: Vec<u8> = (0..len).map(|_| { next = next.wrapping_add(7); next }).collect();
                    let taken = buffer.push(&bytes);
                    // Room is short only when more than half is in use.
                    prop_assert!(taken == len || buffer.len() * 2 >= buffer.capacity_bytes());
                    model.extend(&bytes[..taken]);
                } else {
                    let len = len.min(buffer.len());
                    let expected: Vec<u8> = model.drain(..len).collect();
                    prop_assert_eq!(buffer.take(len), &expected[..]);
                }
                prop_assert_eq!(buffer.len(), model.len());
            }
        }
    }
}
