//! A raw disk in a file, in a part of a file, or on a block device.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use rootstock_client::push::{Changed, Source};
use rootstock_core::ByteRange;
use rootstock_image::ReadAt;
use rustix::{fs::SeekFrom, io::Errno};

/// An open file and the part of it that is the disk.
pub(crate) struct FileDisk {
    file: File,
    path: PathBuf,
    part: ByteRange,
    begin: State,
    writes: Writes,
}

/// What becomes of a source that is written to while it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writes {
    /// The import fails: its parts would not fit together.
    Refuse,
    /// The administrator knows, and takes what comes.
    Allow,
}

/// What shows that a file or device was written to.
#[derive(Debug, PartialEq, Eq)]
struct State {
    len_bytes: u64,
    mark: Mark,
}

/// What is another after a write.
#[derive(Debug, PartialEq, Eq)]
enum Mark {
    /// A file's time, in seconds and nanoseconds.
    Modified(i64, i64),
    /// Sectors written to a device since it appeared.
    WrittenSectors(u64),
    /// The kernel does not tell of this device.
    Unknown,
}

impl FileDisk {
    /// The whole of an open file or device.
    pub(crate) fn whole(file: File, path: &Path, writes: Writes) -> io::Result<Self> {
        let len_bytes = State::of(&file)?.len_bytes;
        Self::part(file, path, ByteRange::new(0, len_bytes), writes)
    }

    /// A part of an open file.
    pub(crate) fn part(
        file: File,
        path: &Path,
        part: ByteRange,
        writes: Writes,
    ) -> io::Result<Self> {
        let begin = State::of(&file)?;
        if begin.mark == Mark::Unknown && writes == Writes::Refuse {
            // Said before long work, not after it.
            let why = "/sys/dev/block does not tell whether it is written to: \
                       say --allow-changes if nobody does";
            return Err(io::Error::other(why));
        }
        Ok(Self {
            begin,
            path: path.to_owned(),
            file,
            part,
            writes,
        })
    }

    /// The open file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// The part of the file that is the disk.
    pub(crate) fn range(&self) -> ByteRange {
        self.part
    }
}

impl ReadAt for FileDisk {
    fn read_exact_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        // The last sector of a file that is not whole sectors reads as zeros.
        let rest = self.part.len.saturating_sub(offset_bytes);
        if offset_bytes + buffer.len() as u64 > self.len_bytes() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let len = buffer
            .len()
            .min(usize::try_from(rest).unwrap_or(usize::MAX));
        self.file
            .read_exact_at(&mut buffer[..len], self.part.start + offset_bytes)?;
        buffer[len..].fill(0);
        Ok(())
    }

    fn len_bytes(&self) -> u64 {
        self.part.len.next_multiple_of(rootstock_core::SECTOR_BYTES)
    }
}

impl Source for FileDisk {
    fn next_data(&self, from_bytes: u64) -> io::Result<Option<ByteRange>> {
        let (start, end) = (self.part.start + from_bytes, self.part.end());
        if start >= end {
            return Ok(None);
        }
        let data = match rustix::fs::seek(&self.file, SeekFrom::Data(start)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return Ok(None),
            // Devices and some file systems cannot tell: then all is data.
            Err(_) => return Ok(Some(ByteRange::new(from_bytes, end - start))),
        };
        if data >= end {
            return Ok(None);
        }
        let hole = rustix::fs::seek(&self.file, SeekFrom::Hole(data))
            .unwrap_or(end)
            .min(end);
        Ok(Some(ByteRange::new(
            data - self.part.start,
            hole.saturating_sub(data),
        )))
    }

    fn check_unchanged(&self) -> Result<(), Changed> {
        let how = match State::of(&self.file) {
            Ok(now) if now.len_bytes != self.begin.len_bytes => format!(
                "it had {} bytes at the beginning and has {} now",
                self.begin.len_bytes, now.len_bytes
            ),
            Ok(now) if now != self.begin && self.writes == Writes::Refuse => {
                "it was written to meanwhile".to_owned()
            }
            Ok(_) => return Ok(()),
            Err(error) => format!("it can no longer be asked: {error}"),
        };
        Err(Changed {
            source_name: self.path.display().to_string(),
            how,
        })
    }
}

impl State {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if metadata.file_type().is_block_device() {
            let written = written_sectors(metadata.rdev());
            return Ok(Self {
                len_bytes: rustix::fs::seek(file, SeekFrom::End(0))?,
                mark: written.map_or(Mark::Unknown, Mark::WrittenSectors),
            });
        }
        Ok(Self {
            len_bytes: metadata.len(),
            mark: Mark::Modified(metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

/// Sectors written, the seventh field of the kernel's `stat` of a block device.
fn written_sectors(device: u64) -> Option<u64> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let stat = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    stat.split_whitespace().nth(6)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn disk(bytes: &[u8]) -> (tempfile::NamedTempFile, FileDisk) {
        let mut named = tempfile::NamedTempFile::new().expect("temp file");
        named.write_all(bytes).expect("writes");
        let file = File::open(named.path()).expect("opens");
        let disk = FileDisk::whole(file, named.path(), Writes::Refuse).expect("is a file");
        (named, disk)
    }

    #[test]
    fn the_last_sector_is_filled_with_zeros() {
        let (_named, disk) = disk(&[7; 700]);
        assert_eq!(disk.len_bytes(), 1024);
        let mut buffer = [1; 400];
        disk.read_exact_at(624, &mut buffer).expect("reads");
        assert_eq!(buffer[..76], [7; 76]);
        assert_eq!(buffer[76..], [0; 324]);
        assert!(disk.read_exact_at(1000, &mut buffer).is_err());
    }

    #[test]
    fn holes_are_told_from_data() {
        let (named, _) = disk(b"");
        named.as_file().set_len(8 << 20).expect("grows");
        named
            .as_file()
            .write_all_at(&[1; 4096], 4 << 20)
            .expect("writes");
        let file = File::open(named.path()).expect("opens");
        let disk = FileDisk::whole(file, named.path(), Writes::Refuse).expect("is a file");
        let first = disk.next_data(0).expect("asks").expect("has data");
        assert!(first.start <= 4 << 20 && first.end() >= (4 << 20) + 4096);
        assert_eq!(disk.next_data(8 << 20).expect("asks"), None);
    }

    #[test]
    fn a_change_is_noticed() {
        let (named, disk) = disk(&[7; 4096]);
        assert!(disk.check_unchanged().is_ok());
        named.as_file().set_len(512).expect("shrinks");
        let changed = disk.check_unchanged().expect_err("changed");
        assert_eq!(
            changed.how,
            "it had 4096 bytes at the beginning and has 512 now"
        );
    }
}
