//! A first file system for a guest's kernel, in the kernel's own `newc` cpio format.
//!
//! The format is the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;

/// An initrd being put together, in memory.
#[derive(Default)]
pub struct Initrd {
    bytes: Vec<u8>,
    inode: u32,
    directories: BTreeSet<String>,
}

impl Initrd {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file with its parents; `path` has no leading slash.
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.parents_of(path);
        self.entry(path, REGULAR | permissions, content);
    }

    /// Adds a copy of a file of this machine.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn copy(&mut self, path: &str, permissions: u32, from: &Path) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("read {}", from.display()))?;
        self.file(path, permissions, &content);
        Ok(())
    }

    /// Adds a symbolic link to `target`.
    pub fn link(&mut self, path: &str, target: &str) {
        self.parents_of(path);
        self.entry(path, SYMLINK | 0o777, target.as_bytes());
    }

    /// Adds an empty directory.
    pub fn directory(&mut self, path: &str) {
        self.parents_of(path);
        if self.directories.insert(path.to_owned()) {
            self.entry(path, DIRECTORY | 0o755, &[]);
        }
    }

    /// The whole archive.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn parents_of(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            let parent = &path[..at];
            if self.directories.insert(parent.to_owned()) {
                self.entry(parent, DIRECTORY | 0o755, &[]);
            }
        }
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let fields = [
            self.inode,
            mode,
            0, // owner
            0, // group
            1, // links
            0, // time
            u32::try_from(content.len()).unwrap_or(u32::MAX),
            0, // device, major and minor
            0,
            0, // special file's device
            0,
            u32::try_from(name.len() + 1).unwrap_or(u32::MAX),
            0, // no checksum
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_parents_come_once() {
        let mut initrd = Initrd::new();
        initrd.file("a/b/c", 0o644, b"hello");
        initrd.file("a/b/d", 0o644, b"");
        let bytes = initrd.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches("070701").count(), 5);
        assert!(text.contains("hello"));
        assert!(text.contains("TRAILER!!!"));
    }
}
