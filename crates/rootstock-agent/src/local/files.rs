//! The files of a start partition, written so that what a boot loader finds is whole at any moment.
//!
//! FAT has no journal. What is written waits in memory until [`StartFiles::commit`],
//! and everything that matters is ordered by that: a file's bytes and clusters are
//! on the disk before its directory entry tells of them, nothing that is named
//! changes, and what names the rest is one sector that is written in its place.
//! Whatever a power cut leaves beside that is swept away by the next one who writes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::rc::Rc;

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use rootstock_core::{ByteRange, Digest};
use rootstock_store::disk::DiskFile;

/// The directory of everything that is kept, in the root.
pub(crate) const KEPT: &str = "BOOT";
/// Where UEFI looks for a boot loader (UEFI 2.10, section 3.5.1.1), and where all of
/// our own configuration is, too: its entries lie in one sector.
pub(crate) const LOADERS: &str = "EFI/BOOT";
/// The file of one sector that says what is started. In [`KEPT`].
pub(crate) const FIRST: &str = "FIRST.CFG";

/// What is read and written at once, and what offsets are multiples of.
const PAGE_BYTES: usize = 4096;
/// Pages in memory that need not be written, at most.
const PAGES_CLEAN_MAX: usize = 2048;
/// So much of a new file waits in memory, at most.
const WAITING_BYTES_MAX: u64 = 4 << 20;
/// The unit that a disk writes whole, or not.
pub(crate) const SECTOR_BYTES: usize = 512;
/// Files that [`KEPT`] has room for from the beginning: a directory that grew while
/// the power goes may end in whatever was there.
const ENTRIES: usize = 48;

/// Names that only exist while a file is put into another's place.
const NEW: &str = "NEW.TMP";
const OLD: &str = "OLD.TMP";

/// An open start partition. One at a time writes to it.
pub(crate) struct StartFiles<'a> {
    pages: Rc<Pages<'a>>,
    fs: FileSystem<Stream<'a>>,
}

impl<'a> StartFiles<'a> {
    /// Makes the file system, empty, with its directories.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn format(disk: &'a dyn DiskFile, range: ByteRange, id: u32) -> io::Result<()> {
        let pages = Rc::new(Pages::new(disk, range));
        let options = FormatVolumeOptions::new()
            .fat_type(FatType::Fat32)
            .volume_id(id)
            .volume_label(*b"ROOTSTOCK  ");
        fatfs::format_volume(Stream::new(&pages), options)?;
        pages.commit()?;
        let files = Self::open(disk, range)?;
        let root = files.fs.root_dir();
        for directory in [KEPT, "EFI", LOADERS, "EFI/DEBIAN", "EFI/UBUNTU"] {
            root.create_dir(directory)?;
        }
        let kept = root.open_dir(KEPT)?;
        let name = |number| format!("{number:08}.TMP");
        for number in 0..ENTRIES {
            kept.create_file(&name(number))?;
        }
        for number in 0..ENTRIES {
            kept.remove(&name(number))?;
        }
        // Where the signed GRUB of a distribution looks.
        for directory in ["EFI/DEBIAN", "EFI/UBUNTU"] {
            let mut file = root.create_file(&format!("{directory}/GRUB.CFG"))?;
            file.write_all(b"configfile /EFI/BOOT/GRUB.CFG\n")?;
        }
        let mut first = kept.create_file(FIRST)?;
        first.write_all(&[b'\n'; SECTOR_BYTES])?;
        drop((first, kept, root));
        files.close()
    }

    /// Opens it.
    ///
    /// # Errors
    /// The disk's, and when there is no FAT.
    pub(crate) fn open(disk: &'a dyn DiskFile, range: ByteRange) -> io::Result<Self> {
        let pages = Rc::new(Pages::new(disk, range));
        let options = FsOptions::new().update_accessed_date(false);
        let fs = FileSystem::new(Stream::new(&pages), options)?;
        Ok(Self { pages, fs })
    }

    /// The names in a directory.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn names(&self, directory: &str) -> io::Result<Vec<String>> {
        let directory = self.fs.root_dir().open_dir(directory)?;
        let mut names = Vec::new();
        for entry in directory.iter().take(ENTRIES) {
            let entry = entry?;
            if entry.is_file() {
                let name = entry.short_file_name_as_bytes();
                names.push(String::from_utf8_lossy(name).into_owned());
            }
        }
        Ok(names)
    }

    /// A file's bytes, if it is there and not longer than this.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn read(&self, path: &str, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
        let file = match self.fs.root_dir().open_file(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(bytes_max + 1).read_to_end(&mut bytes)?;
        Ok((bytes.len() as u64 <= bytes_max).then_some(bytes))
    }

    /// Whether a file is there with these bytes.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn holds(&self, path: &str, len_bytes: u64, digest: Digest) -> io::Result<bool> {
        let mut file = match self.fs.root_dir().open_file(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let mut hasher = Hashing::new(&mut file);
        io::copy(&mut hasher, &mut io::sink())?;
        Ok(hasher.len_bytes == len_bytes && hasher.digest() == digest)
    }

    /// Writes a file that is not there, and sees that it holds what it should. It is
    /// not named by anything yet.
    ///
    /// # Errors
    /// The disk's; `InvalidData` when these are not the bytes that were meant.
    pub(crate) fn put(
        &self,
        path: &str,
        len_bytes: u64,
        digest: Digest,
        bytes: &mut dyn Read,
    ) -> io::Result<()> {
        self.remove(path)?;
        let written = self.write(path, bytes, len_bytes);
        // What is on the disk counts.
        self.pages.forget();
        if written? && self.holds(path, len_bytes, digest)? {
            return Ok(());
        }
        self.remove(path)?;
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{path} did not come whole"),
        ))
    }

    /// Whether the length is right.
    fn write(&self, path: &str, bytes: &mut dyn Read, len_bytes: u64) -> io::Result<bool> {
        let mut bytes = bytes.take(len_bytes + 1);
        let mut file = self.fs.root_dir().create_file(path)?;
        let mut buffer = vec![0; 64 << 10];
        let mut written = 0;
        let mut waiting = 0;
        loop {
            let len = bytes.read(&mut buffer)?;
            if len == 0 {
                break;
            }
            file.write_all(&buffer[..len])?;
            if written == 0 {
                // From here on, whoever finds a part of it can free its clusters.
                self.pages.commit()?;
                file.flush()?;
                self.pages.commit()?;
            }
            written += len as u64;
            waiting += len as u64;
            if waiting > WAITING_BYTES_MAX {
                waiting = 0;
                self.pages.commit()?;
            }
        }
        // Its clusters first, and then how long it is.
        self.pages.commit()?;
        file.flush()?;
        drop(file);
        self.pages.commit()?;
        Ok(written == len_bytes)
    }

    /// Takes a file away, if it is there.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn remove(&self, path: &str) -> io::Result<()> {
        match self.fs.root_dir().remove(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| self.pages.commit()),
        }
    }

    /// Puts a file of [`LOADERS`] into the place of what has its name: one sector
    /// holds both entries.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = |name: &str| format!("{LOADERS}/{name}");
        let (len_bytes, digest) = (bytes.len() as u64, Digest::of(bytes));
        self.remove(&path(OLD))?;
        if self.holds(&path(name), len_bytes, digest)? {
            return Ok(());
        }
        self.put(&path(NEW), len_bytes, digest, &mut &bytes[..])?;
        let directory = self.fs.root_dir().open_dir(LOADERS)?;
        match directory.rename(name, &directory, OLD) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        directory.rename(NEW, &directory, name)?;
        self.pages.commit()?;
        self.remove(&path(OLD))
    }

    /// Overwrites [`FIRST`], which is one sector: it says the new or the old.
    ///
    /// # Errors
    /// The disk's; `InvalidInput` when it is more than a sector.
    pub(crate) fn point(&self, text: &str) -> io::Result<()> {
        let mut sector = text.as_bytes().to_vec();
        if sector.len() > SECTOR_BYTES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sector.resize(SECTOR_BYTES, b'\n');
        let mut file = self.fs.root_dir().open_file(&format!("{KEPT}/{FIRST}"))?;
        if file.seek(SeekFrom::End(0))? != SECTOR_BYTES as u64 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{FIRST} is not one sector"),
            ));
        }
        file.rewind()?;
        file.write_all(&sector)?;
        drop(file);
        self.pages.commit()
    }

    /// Notes on the disk that it was closed in order.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn close(self) -> io::Result<()> {
        self.fs.unmount()?;
        self.pages.commit()
    }
}

/// Bytes on their way, with their digest.
struct Hashing<'a> {
    from: &'a mut dyn Read,
    hasher: blake3::Hasher,
    len_bytes: u64,
}

impl<'a> Hashing<'a> {
    fn new(from: &'a mut dyn Read) -> Self {
        Self {
            from,
            hasher: blake3::Hasher::new(),
            len_bytes: 0,
        }
    }

    fn digest(&self) -> Digest {
        Digest::from_bytes(*self.hasher.finalize().as_bytes())
    }
}

impl Read for Hashing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.from.read(buffer)?;
        self.hasher.update(&buffer[..len]);
        self.len_bytes += len as u64;
        Ok(len)
    }
}

/// A partition's bytes, as far as they are in memory.
struct Pages<'a> {
    disk: &'a dyn DiskFile,
    range: ByteRange,
    pages: RefCell<BTreeMap<u64, Page>>,
    clean: Cell<usize>,
}

struct Page {
    bytes: Box<[u8]>,
    is_changed: bool,
}

impl<'a> Pages<'a> {
    fn new(disk: &'a dyn DiskFile, range: ByteRange) -> Self {
        Self {
            disk,
            range,
            pages: RefCell::default(),
            clean: Cell::new(0),
        }
    }

    /// Calls with the page that has this byte, and the byte's place in it.
    fn with<T>(&self, at: u64, each: impl FnOnce(&mut Page, usize) -> T) -> io::Result<T> {
        let number = at / PAGE_BYTES as u64;
        let mut pages = self.pages.borrow_mut();
        if !pages.contains_key(&number) {
            if self.clean.get() > PAGES_CLEAN_MAX {
                pages.retain(|_, page| page.is_changed);
                self.clean.set(0);
            }
            let mut bytes = vec![0; PAGE_BYTES].into_boxed_slice();
            let place = self.range.start + number * PAGE_BYTES as u64;
            self.disk.read_at(place, &mut bytes)?;
            self.clean.set(self.clean.get() + 1);
            let is_changed = false;
            pages.insert(number, Page { bytes, is_changed });
        }
        let page = pages.get_mut(&number).ok_or(io::ErrorKind::NotFound)?;
        Ok(each(page, (at % PAGE_BYTES as u64) as usize))
    }

    /// Returns when everything that was changed is on the disk for good.
    fn commit(&self) -> io::Result<()> {
        let mut is_written = false;
        for (number, page) in self.pages.borrow_mut().iter_mut() {
            if page.is_changed {
                let place = self.range.start + number * PAGE_BYTES as u64;
                self.disk.write_at(place, &page.bytes)?;
                page.is_changed = false;
                is_written = true;
            }
        }
        if is_written {
            self.disk.sync_data()?;
        }
        Ok(())
    }

    /// Has what is read from now on come from the disk.
    fn forget(&self) {
        self.pages.borrow_mut().retain(|_, page| page.is_changed);
        self.clean.set(0);
    }
}

/// The partition as a stream, which is what the file system wants.
struct Stream<'a> {
    pages: Rc<Pages<'a>>,
    at: u64,
}

impl<'a> Stream<'a> {
    fn new(pages: &Rc<Pages<'a>>) -> Self {
        Self {
            pages: Rc::clone(pages),
            at: 0,
        }
    }

    /// How much of `len` bytes lies in this page and on the partition.
    fn part(&self, len: usize) -> usize {
        let left = self.pages.range.len.saturating_sub(self.at);
        let in_page = PAGE_BYTES - (self.at % PAGE_BYTES as u64) as usize;
        len.min(in_page).min(left.min(PAGE_BYTES as u64) as usize)
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.part(buffer.len());
        if len > 0 {
            self.pages.with(self.at, |page, at| {
                buffer[..len].copy_from_slice(&page.bytes[at..at + len]);
            })?;
            self.at += len as u64;
        }
        Ok(len)
    }
}

impl Write for Stream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.part(bytes.len());
        if len > 0 {
            self.pages.with(self.at, |page, at| {
                let place = &mut page.bytes[at..at + len];
                if place != &bytes[..len] {
                    place.copy_from_slice(&bytes[..len]);
                    page.is_changed = true;
                }
            })?;
            self.at += len as u64;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        // What is to be on the disk is committed.
        Ok(())
    }
}

impl Seek for Stream<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.pages.range.len.checked_add_signed(by),
        };
        self.at = to.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
