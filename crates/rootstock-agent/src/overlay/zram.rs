//! Slots in a zram device: the kernel compresses them.
//!
//! The device is one of our own, made by `hot_add`, so that the image's own use
//! of `zram0` as swap finds it free. `Documentation/admin-guide/blockdev/zram.rst`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use rootstock_core::BLOCK_BYTES;
use rustix::fs::{FallocateFlags, fallocate};

use super::{BLOCK, SlotStore};

/// Slots of zram hold this many times what they may take of memory: text and
/// programs compress to a third, and a device is never larger than that.
const RATIO: u64 = 3;

/// Compression, best first; a kernel has some of them.
const ALGORITHMS: [&str; 3] = ["zstd", "lz4", "lzo-rle"];

/// An open zram device.
pub(crate) struct ZramSlots {
    device: File,
    /// `mm_stat`, kept open: the paths of this process vanish at `switch_root`.
    statistics: File,
}

/// A zram device and how many slots it has.
pub(crate) struct Zram {
    /// Where slots go.
    pub(crate) slots: ZramSlots,
    /// How many there are.
    pub(crate) slots_max: u32,
}

/// A zram device that was made.
pub(crate) struct ZramDevice {
    /// Its path.
    pub(crate) path: String,
    /// Where the kernel tells about it.
    settings: PathBuf,
}

/// A new device of this length, which takes at most `memory_bytes_max`.
///
/// # Errors
/// When the kernel has no zram, or refuses the settings.
pub(crate) fn make(len_bytes: u64, memory_bytes_max: Option<u64>) -> io::Result<ZramDevice> {
    let number = fs::read_to_string("/sys/class/zram-control/hot_add")?;
    let number = number.trim();
    let settings = PathBuf::from(format!("/sys/block/zram{number}"));
    let set = |name: &str, value: &str| fs::write(settings.join(name), value);
    for algorithm in ALGORITHMS {
        if set("comp_algorithm", algorithm).is_ok() {
            break;
        }
    }
    set("disksize", &len_bytes.to_string())?;
    if let Some(bytes_max) = memory_bytes_max {
        set("mem_limit", &bytes_max.to_string())?;
    }
    let path = format!("/dev/zram{number}");
    Ok(ZramDevice { path, settings })
}

impl ZramSlots {
    /// A new device that takes at most `bytes_max` of memory.
    ///
    /// # Errors
    /// When the kernel has no zram, or refuses the settings.
    pub(crate) fn create(bytes_max: u64) -> io::Result<Zram> {
        let slots_max = (bytes_max.saturating_mul(RATIO) / BLOCK_BYTES).min(u64::from(u32::MAX));
        let made = make(slots_max * BLOCK_BYTES, Some(bytes_max))?;
        // Past the page cache, which would keep each block once more.
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(&made.path)?;
        let statistics = File::open(made.settings.join("mm_stat"))?;
        Ok(Zram {
            slots: Self { device, statistics },
            slots_max: slots_max as u32,
        })
    }
}

impl SlotStore for ZramSlots {
    fn read(&self, slot: u32, out: &mut [u8]) -> io::Result<()> {
        let mut buffer = Aligned::new(out.len());
        self.device.read_exact_at(buffer.bytes(), at(slot))?;
        out.copy_from_slice(buffer.bytes());
        Ok(())
    }

    fn write(&mut self, slot: u32, data: &[u8]) -> io::Result<()> {
        let mut buffer = Aligned::new(data.len());
        buffer.bytes().copy_from_slice(data);
        match self.device.write_all_at(buffer.bytes(), at(slot)) {
            Ok(()) => Ok(()),
            // Past mem_limit the device says that it has no memory, or just fails.
            Err(_) => Err(io::ErrorKind::StorageFull.into()),
        }
    }

    fn release(&mut self, slot: u32) {
        // What is not punched out is overwritten when the slot is used again.
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let _ = fallocate(&self.device, flags, at(slot), BLOCK_BYTES);
    }

    fn used_bytes(&self) -> Option<u64> {
        let mut text = [0; 256];
        let len = self.statistics.read_at(&mut text, 0).ok()?;
        memory_used(std::str::from_utf8(&text[..len]).ok()?)
    }
}

fn at(slot: u32) -> u64 {
    u64::from(slot) * BLOCK_BYTES
}

/// The third number of `mm_stat`: memory taken, with the allocator's losses.
fn memory_used(statistics: &str) -> Option<u64> {
    statistics.split_ascii_whitespace().nth(2)?.parse().ok()
}

/// Memory at a page's start, as `O_DIRECT` wants it.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let memory = vec![0_u8; len + BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        Self { memory, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_read_by_place() {
        let line =
            "   40960    12345    20480        0    24576        2        0        0        1\n";
        assert_eq!(memory_used(line), Some(20_480));
        assert_eq!(memory_used("1 2"), None);
    }

    #[test]
    fn buffers_begin_at_a_page() {
        for len in [BLOCK, 3 * BLOCK] {
            let mut buffer = Aligned::new(len);
            assert_eq!(buffer.bytes().as_ptr() as usize % BLOCK, 0);
            assert_eq!(buffer.bytes().len(), len);
        }
    }
}
