//! Which version has which port: kept, because clients come back to it.

use std::{
    collections::BTreeMap,
    fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use rootstock_api::nfs::NfsRoot;
use serde::{Deserialize, Serialize};

/// The format of the file.
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Kept {
    format: u32,
    ports: Vec<(NfsRoot, u16)>,
}

/// The ports of versions, also of those that were exported before.
pub(crate) struct Ports {
    path: PathBuf,
    range: RangeInclusive<u16>,
    ports: BTreeMap<NfsRoot, u16>,
}

impl Ports {
    /// Reads what was kept in a directory.
    pub(crate) fn open(directory: &Path, range: RangeInclusive<u16>) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let path = directory.join("ports.json");
        let kept = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<Kept>(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Kept {
                format: FORMAT,
                ports: Vec::new(),
            },
            Err(error) => return Err(error),
        };
        if kept.format != FORMAT {
            let what = format!("{} is of another release: delete it", path.display());
            return Err(io::Error::other(what));
        }
        let ports = kept
            .ports
            .into_iter()
            .filter(|(_, port)| range.contains(port));
        Ok(Self {
            ports: ports.collect(),
            path,
            range,
        })
    }

    /// The port of a version: the one that it had, or one that nobody had, or that of a
    /// version that is not among `running`. None when all are in use.
    pub(crate) fn of(
        &mut self,
        root: &NfsRoot,
        is_running: impl Fn(&NfsRoot) -> bool,
    ) -> io::Result<Option<u16>> {
        if let Some(port) = self.ports.get(root) {
            return Ok(Some(*port));
        }
        let holder = |port: u16| self.ports.iter().find(|(_, held)| **held == port);
        let fresh = self.range.clone().find(|port| holder(*port).is_none());
        let port = fresh.or_else(|| {
            let idle = |port: &u16| holder(*port).is_some_and(|(root, _)| !is_running(root));
            self.range.clone().find(idle)
        });
        let Some(port) = port else { return Ok(None) };
        self.ports.retain(|_, held| *held != port);
        self.ports.insert(root.clone(), port);
        self.write()?;
        Ok(Some(port))
    }

    fn write(&self) -> io::Result<()> {
        let kept = Kept {
            format: FORMAT,
            ports: self.ports.clone().into_iter().collect(),
        };
        let fresh = self.path.with_extension("new");
        fs::write(&fresh, serde_json::to_vec(&kept)?)?;
        fs::File::open(&fresh)?.sync_all()?;
        fs::rename(fresh, &self.path)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use rootstock_core::{Digest, VersionNumber};

    use super::*;

    pub(crate) fn root(version: u32) -> NfsRoot {
        NfsRoot {
            image: "lab".parse().unwrap(),
            version: VersionNumber(version),
            manifest: Digest::of(&version.to_le_bytes()),
            partition: 1,
            fs: "ext4".to_owned(),
            options: String::new(),
        }
    }

    #[test]
    fn a_version_keeps_its_port_and_old_ones_give_theirs() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Ports::open(dir.path(), 2049..=2050).unwrap();
        let mut ports = open();
        let none = |_: &NfsRoot| false;
        assert_eq!(ports.of(&root(1), none).unwrap(), Some(2049));
        assert_eq!(ports.of(&root(2), none).unwrap(), Some(2050));
        let mut ports = open();
        assert_eq!(ports.of(&root(2), none).unwrap(), Some(2050));
        let first_runs = |one: &NfsRoot| *one == root(1);
        assert_eq!(ports.of(&root(3), first_runs).unwrap(), Some(2050));
        assert_eq!(ports.of(&root(2), |_| true).unwrap(), None);
        assert_eq!(open().of(&root(1), none).unwrap(), Some(2049));
        fs::write(dir.path().join("ports.json"), "{").unwrap();
        assert!(Ports::open(dir.path(), 2049..=2050).is_err());
    }
}
