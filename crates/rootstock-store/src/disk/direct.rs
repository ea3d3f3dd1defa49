//! Large writes past the page cache.
//!
//! A pack is written once, synced at once, and read in pieces much later. Through
//! the page cache that costs a page to be found, cleared and filled for each 4 KiB:
//! 2.5 s of processor time for 1.7 GB where this was measured, against 0.3 s here.

use std::{
    fs,
    io::{self, IoSlice},
    os::unix::fs::FileExt as _,
};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// Shorter writes go through the page cache, in bytes.
const WRITE_BYTES_MIN: usize = 4 << 20;

/// What is written at once, in bytes.
const BUFFER_BYTES: usize = 1 << 20;

/// What offsets, lengths and addresses have to be multiples of: enough for every
/// disk whose sectors are not larger than a page.
const ALIGN_BYTES: usize = 4096;

/// Writes as much as can be written so, and answers how many bytes that was: none
/// where the write is short or the file system cannot do it.
pub(super) fn write(
    file: &fs::File,
    offset_bytes: u64,
    parts: &[IoSlice<'_>],
    len_bytes: usize,
) -> io::Result<usize> {
    if len_bytes < WRITE_BYTES_MIN || !offset_bytes.is_multiple_of(ALIGN_BYTES as u64) {
        return Ok(0);
    }
    let flags = fcntl_getfl(file)?;
    if fcntl_setfl(file, flags | OFlags::DIRECT).is_err() {
        return Ok(0);
    }
    let first = parts.iter().find(|part| !part.is_empty());
    let first = first.map_or(&[][..], |part| part);
    let written = if first.len() >= WRITE_BYTES_MIN && is_aligned(first) {
        write_straight(file, offset_bytes, first)
    } else {
        let whole_bytes = len_bytes - len_bytes % ALIGN_BYTES;
        write_gathered(file, offset_bytes, parts, whole_bytes)
    };
    // The rest of the file's life is in the page cache.
    fcntl_setfl(file, flags)?;
    written
}

fn is_aligned(bytes: &[u8]) -> bool {
    bytes.as_ptr().align_offset(ALIGN_BYTES) == 0
}

/// Writes from where the bytes are, as many as make whole pages.
fn write_straight(file: &fs::File, offset_bytes: u64, bytes: &[u8]) -> io::Result<usize> {
    let whole = &bytes[..bytes.len() - bytes.len() % ALIGN_BYTES];
    match file.write_all_at(whole, offset_bytes) {
        Err(error) if error.raw_os_error() == Some(EINVAL) => Ok(0),
        result => result.map(|()| whole.len()),
    }
}

/// Writes by way of aligned memory.
fn write_gathered(
    file: &fs::File,
    offset_bytes: u64,
    parts: &[IoSlice<'_>],
    len_bytes: usize,
) -> io::Result<usize> {
    let mut memory = vec![0; BUFFER_BYTES + ALIGN_BYTES];
    let start = memory.as_ptr().align_offset(ALIGN_BYTES);
    let buffer = &mut memory[start..start + BUFFER_BYTES];
    let mut parts = parts.iter();
    let mut part: &[u8] = &[];
    let mut written = 0;
    while written < len_bytes {
        let piece = &mut buffer[..BUFFER_BYTES.min(len_bytes - written)];
        let mut filled = 0;
        while filled < piece.len() {
            if part.is_empty() {
                let Some(next) = parts.next() else {
                    return Err(io::ErrorKind::InvalidInput.into());
                };
                part = next;
                continue;
            }
            let (now, later) = part.split_at(part.len().min(piece.len() - filled));
            piece[filled..filled + now.len()].copy_from_slice(now);
            filled += now.len();
            part = later;
        }
        match file.write_all_at(piece, offset_bytes + written as u64) {
            // Some file systems take the flag and refuse the write.
            Err(error) if error.raw_os_error() == Some(EINVAL) => return Ok(written),
            result => result?,
        }
        written += piece.len();
    }
    Ok(written)
}

const EINVAL: i32 = rustix::io::Errno::INVAL.raw_os_error();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_bytes_are_written_from_where_they_are() {
        let dir = tempfile::tempdir().expect("a directory");
        let bytes: Vec<u8> = (0_u32..2_000_000).flat_map(u32::to_le_bytes).collect();
        let start = bytes.as_ptr().align_offset(ALIGN_BYTES);
        for (skip, len) in [(0, 5_000_001), (0, WRITE_BYTES_MIN), (1, 5 << 20)] {
            let path = dir.path().join(format!("{skip}-{len}"));
            let file = fs::File::create_new(&path).expect("a file");
            let first = &bytes[start + skip..start + skip + len];
            let parts = [IoSlice::new(&[]), IoSlice::new(first), IoSlice::new(b"end")];
            let direct = write(&file, 0, &parts, len + 3).expect("writes");
            let whole = len - len % ALIGN_BYTES;
            assert!(direct == 0 || direct == whole, "{direct} of {len}");
            assert!(fs::read(path).expect("reads") == first[..direct], "{len}");
        }
    }

    #[test]
    fn large_writes_hold_what_they_were_given() {
        let dir = tempfile::tempdir().expect("a directory");
        let bytes: Vec<u8> = (0_u32..2_000_000).flat_map(u32::to_le_bytes).collect();
        for (len, cut) in [(5 << 20, 4096), (5_000_001, 77), (WRITE_BYTES_MIN, 1 << 20)] {
            let path = dir.path().join(format!("{len}"));
            let file = fs::File::create_new(path.clone()).expect("a file");
            let parts: Vec<IoSlice<'_>> = bytes[..len].chunks(cut).map(IoSlice::new).collect();
            let direct = write(&file, 0, &parts, len).expect("writes");
            assert!(
                direct == 0 || direct == len - len % ALIGN_BYTES,
                "{direct} of {len}"
            );
            let back = fs::read(path).expect("reads");
            assert!(back == bytes[..direct], "{len}");
        }
    }
}
