//! The data directory: one daemon at a time, one format, the site's keys.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use ed25519_dalek::{
    SigningKey,
    pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, spki::der::pem::LineEnding},
};
use rustix::fs::FlockOperation;

/// The format of data directories that this release writes.
pub(crate) const FORMAT_VERSION: u32 = 1;

const FORMAT_NAME: &str = "rootstock-data";

/// Why a data directory cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another daemon has it.
    #[error(
        "another daemon{} is using {}: stop it, or start this one with another --data",
        pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(),
        path.display()
    )]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The other daemon's process, if it could be read.
        pid: Option<u32>,
    },
    /// A newer release wrote it.
    #[error(
        "{} has data format {found}, and this release knows up to {FORMAT_VERSION}: start the newer release of Rootstock that wrote it",
        path.display()
    )]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// There is something else in it.
    #[error("{} is not a data directory of Rootstock and not empty: choose another --data", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// The file with the format is damaged.
    #[error("{} does not say which data format this is: restore it from a backup", path.display())]
    Marker {
        /// The file.
        path: PathBuf,
    },
    /// The site's key is damaged.
    #[error("the site's key {} cannot be read: restore it from a backup", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ed25519_dalek::pkcs8::Error,
    },
    /// The system refused.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A data directory that this process has to itself.
#[derive(Debug)]
pub(crate) struct DataDir {
    root: PathBuf,
    /// Held, not read: the lock goes with it.
    _lock: File,
}

impl DataDir {
    /// Takes the directory, making it when there is none.
    pub(crate) fn open(root: &Path) -> Result<Self, DataDirError> {
        make_dir(root)?;
        let root = root.canonicalize().map_err(failed("find", root))?;
        refuse_foreign(&root)?;
        let lock = lock(&root)?;
        check_format(&root)?;
        for dir in ["store", "volumes", "keys"] {
            make_dir(&root.join(dir))?;
        }
        Ok(Self { root, _lock: lock })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn catalog(&self) -> PathBuf {
        self.root.join("catalog.sqlite")
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.root.join("store")
    }

    pub(crate) fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    pub(crate) fn keys(&self) -> PathBuf {
        self.root.join("keys")
    }

    /// The site's key pair, made at first start.
    pub(crate) fn site_key(&self) -> Result<SigningKey, DataDirError> {
        let path = self.keys().join("site.pem");
        match fs::read_to_string(&path) {
            Ok(pem) => SigningKey::from_pkcs8_pem(&pem)
                .map_err(|source| DataDirError::Key { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => make_key(&path),
            Err(source) => Err(failed("read", &path)(source)),
        }
    }
}

fn make_key(path: &Path) -> Result<SigningKey, DataDirError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)
        .map_err(|error| failed("draw random numbers for", path)(io::Error::other(error)))?;
    let key = SigningKey::from_bytes(&seed);
    let pem = key
        .to_pkcs8_pem(LineEnding::LF)
        .map_err(|source| DataDirError::Key {
            path: path.to_owned(),
            source,
        })?;
    write_secret(path, pem.as_bytes()).map_err(failed("write", path))?;
    Ok(key)
}

/// Writes a file that only this user may read, so that after a crash it is whole
/// or not there.
pub(crate) fn write_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("new");
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    sync_parent(path)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn make_dir(path: &Path) -> Result<(), DataDirError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(path)
        .map_err(failed("make the directory", path))
}

/// Refuses a directory with something in it that Rootstock did not put there,
/// before a file is made in it.
fn refuse_foreign(root: &Path) -> Result<(), DataDirError> {
    if root.join("format").exists() {
        return Ok(());
    }
    let entries = fs::read_dir(root).map_err(failed("read", root))?;
    for entry in entries {
        let name = entry.map_err(failed("read", root))?.file_name();
        // What a first start leaves that was cut short.
        if !["lock", "format.new", "lost+found"]
            .iter()
            .any(|own| name == *own)
        {
            return Err(DataDirError::Foreign {
                path: root.to_owned(),
            });
        }
    }
    Ok(())
}

fn lock(root: &Path) -> Result<File, DataDirError> {
    let path = root.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o640)
        .open(&path)
        .map_err(failed("open", &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            // A name that cannot be read does not make it less locked.
            let _ = (&file).take(32).read_to_string(&mut text);
            return Err(DataDirError::Locked {
                path: root.to_owned(),
                pid: text.trim().parse().ok(),
            });
        }
        Err(error) => return Err(failed("lock", &path)(error.into())),
    }
    let pid = format!("{}\n", std::process::id());
    file.set_len(0)
        .and_then(|()| file.write_all(pid.as_bytes()))
        .map_err(failed("write", &path))?;
    Ok(file)
}

fn check_format(root: &Path) -> Result<(), DataDirError> {
    let path = root.join("format");
    match fs::read_to_string(&path) {
        Ok(text) => {
            let found = text
                .strip_prefix(FORMAT_NAME)
                .and_then(|version| version.trim().parse::<u32>().ok())
                .filter(|version| *version > 0);
            match found {
                None => Err(DataDirError::Marker { path }),
                Some(found) if found > FORMAT_VERSION => Err(DataDirError::Newer {
                    path: root.to_owned(),
                    found,
                }),
                Some(_) => Ok(()),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = format!("{FORMAT_NAME} {FORMAT_VERSION}\n");
            write_secret(&path, text.as_bytes()).map_err(failed("write", &path))
        }
        Err(source) => Err(failed("read", &path)(source)),
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |source| DataDirError::Io {
        doing,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_directory_serves_one_daemon_at_a_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("data");
        let first = DataDir::open(&root).expect("opens");
        let error = DataDir::open(&root).expect_err("is locked");
        let pid = std::process::id();
        assert!(matches!(error, DataDirError::Locked { pid: Some(found), .. } if found == pid));
        assert!(error.to_string().contains(&format!("(process {pid})")));
        drop(first);
        DataDir::open(&root).expect("is free again");
    }

    #[test]
    fn the_site_key_is_made_once_and_kept_secret() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = DataDir::open(dir.path()).expect("opens");
        let key = data.site_key().expect("is made");
        assert_eq!(data.site_key().expect("is read"), key);
        let path = data.keys().join("site.pem");
        let mode = fs::metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(&path, "nonsense").expect("writes");
        assert!(matches!(data.site_key(), Err(DataDirError::Key { .. })));
    }

    #[test]
    fn newer_foreign_and_damaged_directories_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let format = dir.path().join("format");
        for (text, expected) in [
            ("rootstock-data 2\n", "start the newer release"),
            ("rootstock-data x\n", "restore it from a backup"),
            ("", "restore it from a backup"),
        ] {
            fs::write(&format, text).expect("writes");
            let error = DataDir::open(dir.path()).expect_err(text).to_string();
            assert!(error.contains(expected), "{error}");
        }
        let other = tempfile::tempdir().expect("a directory");
        fs::write(other.path().join("thesis.txt"), "…").expect("writes");
        let error = DataDir::open(other.path()).expect_err("is foreign");
        assert!(matches!(error, DataDirError::Foreign { .. }), "{error}");
        assert_eq!(fs::read_dir(other.path()).expect("reads").count(), 1);
    }
}
