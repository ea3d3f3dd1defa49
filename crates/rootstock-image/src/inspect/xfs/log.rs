//! Whether XFS's log has nothing left to be replayed.
//!
//! Section "Journaling Log": each sector begins with the number of the pass over
//! the log that it was written in, its cycle, so the newest is before the first
//! sector of the cycle before. An unmounted file system has a record there that
//! says so and nothing else.

use super::super::{Refusal, kept};
use crate::{
    fields::{be32_at, bytes_at},
    read_at::{ReadAt, Window},
};

const SECTOR_BYTES: u64 = 512;

/// The first bytes of a record's header.
const MAGIC: u32 = 0xfeed_babe;

/// The longest record: 256 KiB, and a header for each 32 KiB of it.
const RECORD_SECTORS_MAX: u64 = 512 + 8;

/// How much of a record one header is for, in bytes.
const HEADER_SPAN_BYTES: u32 = 32 << 10;

/// `oh_flags` of the operation that an unmount writes.
const UNMOUNT: u8 = 0x20;

pub(super) fn check_clean(
    window: &Window<'_>,
    start_bytes: u64,
    len_bytes: u64,
) -> Result<(), Refusal> {
    let log = Log {
        window,
        start_bytes,
        sectors: len_bytes / SECTOR_BYTES,
    };
    if log.sectors < 2 {
        return kept("its log is too short");
    }
    let head = log.head()?;
    if log.ends_with_unmount(head)? {
        return Ok(());
    }
    kept("it is in use, or was not unmounted: mount and unmount it, or run xfs_repair on it")
}

struct Log<'a> {
    window: &'a Window<'a>,
    start_bytes: u64,
    sectors: u64,
}

impl Log<'_> {
    fn sector(&self, number: u64) -> Result<[u8; SECTOR_BYTES as usize], Refusal> {
        let mut bytes = [0; SECTOR_BYTES as usize];
        let place = self.start_bytes + number % self.sectors * SECTOR_BYTES;
        self.window.read_exact_at(place, &mut bytes)?;
        Ok(bytes)
    }

    fn cycle(&self, number: u64) -> Result<u32, Refusal> {
        let bytes = self.sector(number)?;
        let at = if be32_at(&bytes, 0) == MAGIC { 4 } else { 0 };
        Ok(be32_at(&bytes, at))
    }

    /// The sector that is written next. A log whose cycles are not in order is
    /// searched in vain here, and then no unmount is found before the place.
    fn head(&self) -> Result<u64, Refusal> {
        let newest = self.cycle(0)?;
        let (mut same, mut other) = (0, self.sectors - 1);
        let last = self.cycle(other)?;
        if last == newest {
            return Ok(self.sectors);
        }
        if newest == 0 || last != newest - 1 {
            return kept("its log cannot be understood: run xfs_repair on it");
        }
        while same + 1 < other {
            let middle = same + (other - same) / 2;
            if self.cycle(middle)? == newest {
                same = middle;
            } else {
                other = middle;
            }
        }
        Ok(other)
    }

    /// Whether the record before this sector is whole and is an unmount.
    fn ends_with_unmount(&self, head: u64) -> Result<bool, Refusal> {
        for back in 1..=RECORD_SECTORS_MAX.min(self.sectors) {
            let at = head + self.sectors - back;
            let header = self.sector(at)?;
            if be32_at(&header, 0) != MAGIC {
                continue;
            }
            let headers = header_sectors(&header);
            let sectors = u64::from(be32_at(&header, 12)).div_ceil(SECTOR_BYTES);
            if headers + sectors != back || be32_at(&header, 40) != 1 {
                return Ok(false);
            }
            let operation = self.sector(at + headers)?;
            let [flags] = bytes_at(&operation, 9);
            return Ok(flags & UNMOUNT != 0);
        }
        Ok(false)
    }
}

/// A record of the second version has a header for each 32 KiB of the buffer
/// that it was written from.
fn header_sectors(header: &[u8]) -> u64 {
    let (version, buffer_bytes) = (be32_at(header, 8), be32_at(header, 320));
    if version & 2 == 0 {
        return 1;
    }
    buffer_bytes.div_ceil(HEADER_SPAN_BYTES).max(1).into()
}
