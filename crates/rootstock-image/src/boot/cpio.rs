//! The kernel's archive of a first file system: `newc` cpio, written as a stream.
//!
//! The format is the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
//! Equal contents give equal bytes: times and owners are zero.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const CHARACTER: u32 = 0o020_000;

/// An archive that is being written.
pub struct Cpio<W> {
    out: W,
    inode: u32,
    written_bytes: u64,
    directories: BTreeSet<String>,
}

impl<W: Write> Cpio<W> {
    /// An archive written to `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            inode: 0,
            written_bytes: 0,
            directories: BTreeSet::new(),
        }
    }

    /// Adds a file and the directories above it; `path` has no leading slash.
    ///
    /// # Errors
    /// When it cannot be written, or is longer than the format allows.
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        self.parents_of(path)?;
        self.entry(path, REGULAR | permissions, (0, 0), content)
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        self.parents_of(path)?;
        if self.directories.insert(path.to_owned()) {
            self.entry(path, DIRECTORY | 0o755, (0, 0), &[])?;
        }
        Ok(())
    }

    /// Adds a character device of this major and minor number.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn character_device(
        &mut self,
        path: &str,
        permissions: u32,
        number: (u32, u32),
    ) -> io::Result<()> {
        self.parents_of(path)?;
        self.entry(path, CHARACTER | permissions, number, &[])
    }

    /// What was written so far.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Ends the archive and gives back what it was written to.
    ///
    /// # Errors
    /// When the end cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.out)
    }

    fn parents_of(&mut self, path: &str) -> io::Result<()> {
        for (at, _) in path.match_indices('/') {
            let parent = &path[..at];
            if self.directories.insert(parent.to_owned()) {
                self.entry(parent, DIRECTORY | 0o755, (0, 0), &[])?;
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        let too_long = |_| io::Error::from(io::ErrorKind::FileTooLarge);
        let len = u32::try_from(content.len()).map_err(too_long)?;
        let name_len = u32::try_from(name.len() + 1).map_err(too_long)?;
        self.inode += 1;
        let links = if mode & DIRECTORY == 0 { 1 } else { 2 };
        // inode, mode, uid, gid, links, mtime, size, device, device of the node,
        // name with its NUL, checksum (none in this format).
        let fields = [
            self.inode, mode, 0, 0, links, 0, len, 0, 0, device.0, device.1, name_len, 0,
        ];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.pad()?;
        self.put(content)?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written_bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn pad(&mut self) -> io::Result<()> {
        let len = (4 - self.written_bytes % 4) % 4;
        self.put(&[0; 3][..len as usize])
    }
}
