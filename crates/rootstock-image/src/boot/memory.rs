//! A root file system made of a table, for tests.

use std::collections::BTreeMap;

use super::root_fs::{FileKind, FsError, RootFs, Stat};

/// Files as a test writes them down: path and contents.
pub(super) type Files<'a> = &'a [(&'a str, &'a [u8])];

/// Files by their absolute paths, and links to directories or files.
#[derive(Debug, Clone, Default)]
pub(super) struct MemoryFs {
    pub(super) files: BTreeMap<String, Vec<u8>>,
    pub(super) links: BTreeMap<String, String>,
}

impl MemoryFs {
    pub(super) fn new(files: Files<'_>) -> Self {
        let mut fs = Self::default();
        for (path, bytes) in files {
            fs.put(path, bytes);
        }
        fs
    }

    pub(super) fn put(&mut self, path: &str, bytes: &[u8]) {
        self.files.insert(path.to_owned(), bytes.to_vec());
    }

    pub(super) fn link(&mut self, path: &str, to: &str) {
        self.links.insert(path.to_owned(), to.to_owned());
    }

    fn resolve(&self, path: &str) -> String {
        let mut path = path.trim_end_matches('/').to_owned();
        for _ in 0..8 {
            let link = self.links.iter().find_map(|(from, to)| {
                let rest = path.strip_prefix(from.as_str())?;
                (rest.is_empty() || rest.starts_with('/')).then(|| format!("{to}{rest}"))
            });
            match link {
                Some(next) => path = next,
                None => break,
            }
        }
        path
    }
}

impl RootFs for MemoryFs {
    fn stat(&self, path: &str) -> Result<Option<Stat>, FsError> {
        let path = self.resolve(path);
        if let Some(bytes) = self.files.get(&path) {
            return Ok(Some(Stat {
                kind: FileKind::File,
                len_bytes: bytes.len() as u64,
            }));
        }
        let inside = format!("{path}/");
        let dir = self.files.keys().any(|file| file.starts_with(&inside));
        Ok(dir.then_some(Stat {
            kind: FileKind::Dir,
            len_bytes: 0,
        }))
    }

    fn read_head(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, FsError> {
        let Some(bytes) = self.files.get(&self.resolve(path)) else {
            let path = path.to_owned();
            return Err(FsError::Missing { path });
        };
        let len = bytes.len().min(bytes_max as usize);
        Ok(bytes[..len].to_vec())
    }

    fn list(&self, dir: &str) -> Result<Vec<String>, FsError> {
        let inside = format!("{}/", self.resolve(dir));
        let files = self.files.keys().chain(self.links.keys());
        let mut names: Vec<_> = files
            .filter_map(|file| file.strip_prefix(&inside))
            .filter_map(|rest| rest.split('/').next())
            .map(ToOwned::to_owned)
            .collect();
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }
}
