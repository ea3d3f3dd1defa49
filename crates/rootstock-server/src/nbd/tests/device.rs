//! A device whose reads wait at a gate, fail or panic, by their place.

use std::sync::{Condvar, Mutex};

use rootstock_volume::{BlockDevice, BlockError, Segments, StatusExtent, Zero};

use super::{MemoryDevice, Temperature};

/// Reads from here wait until the gate is open.
pub(crate) const GATE_OFFSET: u64 = 1 << 20;
/// Reads from here find damage.
pub(crate) const BAD_OFFSET: u64 = 2 << 20;
/// Reads from here meet a bug.
pub(crate) const PANIC_OFFSET: u64 = 3 << 20;

pub(crate) struct Gated {
    memory: MemoryDevice,
    gate: Mutex<Gate>,
    changed: Condvar,
}

#[derive(Default)]
struct Gate {
    open: bool,
    visitors: usize,
    /// Offset and length of each prefetch, in bytes.
    fetched: Vec<(u64, u64)>,
}

impl Gated {
    pub(crate) fn new(size_bytes: u64) -> Self {
        Self {
            memory: MemoryDevice::new(size_bytes, Temperature::Warm),
            gate: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn open_gate(&self) {
        self.gate.lock().unwrap().open = true;
        self.changed.notify_all();
    }

    pub(crate) fn visitors(&self) -> usize {
        self.gate.lock().unwrap().visitors
    }

    /// Waits for this many prefetches and returns them, sorted.
    pub(crate) fn wait_for_fetches(&self, count: usize) -> Vec<(u64, u64)> {
        let gate = self.gate.lock().unwrap();
        let gate = self
            .changed
            .wait_while(gate, |gate| gate.fetched.len() < count)
            .unwrap();
        let mut fetched = gate.fetched.clone();
        fetched.sort_unstable();
        fetched
    }

    pub(crate) fn wait_for_visitors(&self, count: usize) {
        let gate = self.gate.lock().unwrap();
        let waited = self
            .changed
            .wait_while(gate, |gate| gate.visitors < count)
            .unwrap();
        drop(waited);
    }
}

impl BlockDevice for Gated {
    fn size_bytes(&self) -> u64 {
        self.memory.size_bytes()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(
        &self,
        offset_bytes: u64,
        len_bytes: u32,
        out: &mut Segments,
    ) -> Result<(), BlockError> {
        match offset_bytes {
            GATE_OFFSET => {
                let mut gate = self.gate.lock().unwrap();
                gate.visitors += 1;
                self.changed.notify_all();
                let gate = self.changed.wait_while(gate, |gate| !gate.open).unwrap();
                drop(gate);
            }
            BAD_OFFSET => {
                let what = "bit rot".to_owned();
                return Err(BlockError::Damaged { offset_bytes, what });
            }
            PANIC_OFFSET => panic!("a bug in the device, as this test wants it"),
            _ => {}
        }
        self.memory.read(offset_bytes, len_bytes, out)
    }

    fn try_read(
        &self,
        offset_bytes: u64,
        len_bytes: u32,
        out: &mut Segments,
    ) -> Result<bool, BlockError> {
        if offset_bytes < GATE_OFFSET {
            return self.memory.try_read(offset_bytes, len_bytes, out);
        }
        Ok(false)
    }

    fn write(&self, offset_bytes: u64, data: &[u8]) -> Result<(), BlockError> {
        self.memory.write(offset_bytes, data)
    }

    fn write_zeroes(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        zero: Zero,
    ) -> Result<(), BlockError> {
        self.memory.write_zeroes(offset_bytes, len_bytes, zero)
    }

    fn discard(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), BlockError> {
        self.memory.discard(offset_bytes, len_bytes)
    }

    fn flush(&self) -> Result<(), BlockError> {
        self.memory.flush()
    }

    fn status(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        extents_max: usize,
    ) -> Result<Vec<StatusExtent>, BlockError> {
        self.memory.status(offset_bytes, len_bytes, extents_max)
    }

    fn prefetch(&self, offset_bytes: u64, len_bytes: u64) {
        let mut gate = self.gate.lock().unwrap();
        gate.fetched.push((offset_bytes, len_bytes));
        self.changed.notify_all();
    }
}
