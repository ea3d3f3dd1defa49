//! Reads little-endian fields one after another.

/// A place in bytes whose length the caller has checked.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next bytes; zeros after the end, so that a forgotten length check
    /// gives a refused field and not a panic.
    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let len = self.rest.len().min(N);
        let (now, rest) = self.rest.split_at(len);
        array[..len].copy_from_slice(now);
        self.rest = rest;
        array
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
}
