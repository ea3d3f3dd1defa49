//! First stages as files: `DATA/boot/KEY/{kernel,initrd,stage.json}`.
//!
//! A stage is written into a directory of another name, synced, and renamed, so
//! that it is there whole or not at all. It is checked when it is opened for the
//! first time after a start; what does not fit is made again.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rootstock_api::boot::RootPlace;
use rootstock_core::Digest;
use serde::{Deserialize, Serialize};

use super::{FirstStageError, make::Made, random_name};
use crate::boot::{body::Content, stage::Stage};

/// The format of what is kept, and of the archive in it.
pub(super) const FORMAT: u32 = 1;

/// The most stages that are kept; each open one takes two descriptors.
const STAGES_MAX: usize = 256;

/// How the names of unfinished stages begin.
const UNFINISHED: &str = "making-";

const KERNEL: &str = "kernel";
const INITRD: &str = "initrd";
const STAGE: &str = "stage.json";

/// Stages on the disk.
pub(super) struct Cache {
    dir: PathBuf,
    bytes_max: u64,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    stages: HashMap<String, Entry>,
    /// Counts uses, for the order of removal.
    clock: u64,
}

struct Entry {
    bytes: u64,
    initrd_bytes: u64,
    used: u64,
    /// Once it was opened. Its files stay readable when they are removed.
    open: Option<Arc<Stage>>,
}

/// `stage.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StageFile {
    format: u32,
    kernel_version: String,
    root: RootPlace,
    arguments: Vec<String>,
    kernel: FileMark,
    initrd: FileMark,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileMark {
    len_bytes: u64,
    digest: Digest,
}

impl FileMark {
    fn of(bytes: &[u8]) -> Self {
        Self {
            len_bytes: bytes.len() as u64,
            digest: Digest::of(bytes),
        }
    }
}

impl Cache {
    /// The stages below `dir`, which is made; what was not finished goes.
    pub(super) fn open(dir: PathBuf, bytes_max: u64) -> Result<Self, FirstStageError> {
        let unusable = |source| failed("use", &dir, source);
        fs::create_dir_all(&dir).map_err(unusable)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir).map_err(unusable)? {
            let entry = entry.map_err(unusable)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let stage = entry.path().join(STAGE);
            if name.starts_with(UNFINISHED) {
                remove(&entry.path());
            } else if let Ok(modified) = fs::metadata(&stage).and_then(|file| file.modified()) {
                found.push((modified, name));
            }
        }
        found.sort();
        let mut kept = Kept::default();
        for (_, name) in found {
            let sizes = [KERNEL, INITRD].map(|file| len_of(&dir.join(&name).join(file)));
            kept.clock += 1;
            let entry = Entry {
                bytes: sizes.iter().sum(),
                initrd_bytes: sizes[1],
                used: kept.clock,
                open: None,
            };
            kept.stages.insert(name, entry);
        }
        let cache = Self {
            dir,
            bytes_max,
            kept: Mutex::new(kept),
        };
        cache.make_room(0, "");
        Ok(cache)
    }

    /// A stage that is there, whole.
    pub(super) fn get(&self, key: Digest) -> Option<Arc<Stage>> {
        let name = key.to_string();
        {
            let mut kept = self.kept();
            kept.clock += 1;
            let clock = kept.clock;
            let entry = kept.stages.get_mut(&name)?;
            entry.used = clock;
            if let Some(stage) = &entry.open {
                return Some(Arc::clone(stage));
            }
        }
        let dir = self.dir.join(&name);
        match load(&dir) {
            Ok(stage) => {
                let stage = Arc::new(stage);
                // The order of use outlasts a restart, roughly.
                let now = File::open(dir.join(STAGE))
                    .and_then(|file| file.set_modified(std::time::SystemTime::now()));
                if let Err(error) = now {
                    tracing::debug!(%error, "a first stage's use was not noted");
                }
                if let Some(entry) = self.kept().stages.get_mut(&name) {
                    entry.open = Some(Arc::clone(&stage));
                }
                Some(stage)
            }
            Err(error) => {
                tracing::warn!(stage = %dir.display(), %error, "first stage is made again");
                self.kept().stages.remove(&name);
                remove(&dir);
                None
            }
        }
    }

    /// How long the initrd of a stage is, when it is there.
    pub(super) fn initrd_bytes(&self, key: Digest) -> Option<u64> {
        let kept = self.kept();
        kept.stages
            .get(&key.to_string())
            .map(|entry| entry.initrd_bytes)
    }

    /// Keeps a stage, durably, in the place of those that were not used longest.
    pub(super) fn put(&self, key: Digest, made: &Made) -> Result<Arc<Stage>, FirstStageError> {
        let name = key.to_string();
        let bytes = (made.kernel.len() + made.initrd.len()) as u64;
        self.make_room(bytes, &name);
        let random = random_name().map_err(|source| failed("name a part of", &self.dir, source))?;
        let unfinished = self.dir.join(format!("{UNFINISHED}{random}"));
        let to = self.dir.join(&name);
        let stored = store(&unfinished, made).and_then(|()| {
            remove(&to);
            fs::rename(&unfinished, &to)?;
            File::open(&self.dir)?.sync_all()
        });
        let opened = stored.and_then(|()| load(&to));
        let stage = Arc::new(opened.map_err(|source| {
            remove(&unfinished);
            failed("write", &to, source)
        })?);
        let mut kept = self.kept();
        kept.clock += 1;
        let entry = Entry {
            bytes,
            initrd_bytes: made.initrd.len() as u64,
            used: kept.clock,
            open: Some(Arc::clone(&stage)),
        };
        kept.stages.insert(name, entry);
        Ok(stage)
    }

    /// Removes what was not used longest until `more` bytes fit in.
    fn make_room(&self, more: u64, but: &str) {
        let mut kept = self.kept();
        loop {
            let bytes: u64 = kept.stages.values().map(|entry| entry.bytes).sum();
            if bytes.saturating_add(more) <= self.bytes_max && kept.stages.len() < STAGES_MAX {
                return;
            }
            let others = kept.stages.iter().filter(|(name, _)| *name != but);
            let Some(name) = others
                .min_by_key(|(_, entry)| entry.used)
                .map(|(name, _)| name.clone())
            else {
                return;
            };
            kept.stages.remove(&name);
            remove(&self.dir.join(name));
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn store(dir: &Path, made: &Made) -> io::Result<()> {
    let file = StageFile {
        format: FORMAT,
        kernel_version: made.kernel_version.clone(),
        root: made.root.clone(),
        arguments: made.arguments.clone(),
        kernel: FileMark::of(&made.kernel),
        initrd: FileMark::of(&made.initrd),
    };
    let document = serde_json::to_vec_pretty(&file)?;
    fs::create_dir(dir)?;
    for (name, bytes) in [
        (KERNEL, &made.kernel),
        (INITRD, &made.initrd),
        (STAGE, &document),
    ] {
        let mut file = File::create_new(dir.join(name))?;
        file.write_all(bytes)?;
        file.sync_all()?;
    }
    File::open(dir)?.sync_all()
}

/// Opens a stage and checks every byte of it.
fn load(dir: &Path) -> io::Result<Stage> {
    let stage: StageFile = serde_json::from_slice(&fs::read(dir.join(STAGE))?)?;
    if stage.format != FORMAT {
        return Err(io::Error::other("it has another format"));
    }
    let open = |name: &str, mark: &FileMark| {
        let path = dir.join(name);
        let content = Content::open(&path)?;
        if len_of(&path) != mark.len_bytes || FileMark::of(&fs::read(&path)?) != *mark {
            return Err(io::Error::other(format!("its {name} is damaged")));
        }
        Ok(content)
    };
    Ok(Stage {
        kernel: open(KERNEL, &stage.kernel)?,
        initrd: open(INITRD, &stage.initrd)?,
        kernel_version: stage.kernel_version,
        root: stage.root,
        arguments: stage.arguments,
    })
}

fn len_of(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

fn remove(dir: &Path) {
    if let Err(error) = fs::remove_dir_all(dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(stage = %dir.display(), %error, "first stage not removed");
    }
}

fn failed(doing: &'static str, path: &Path, source: io::Error) -> FirstStageError {
    FirstStageError::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(kernel: &str, initrd_bytes: usize) -> Made {
        Made {
            kernel: kernel.as_bytes().to_vec(),
            initrd: vec![7; initrd_bytes],
            kernel_version: "6.1".to_owned(),
            root: RootPlace {
                partition: 1,
                fs: "ext4".to_owned(),
                options: String::new(),
                init: "/sbin/init".to_owned(),
            },
            arguments: vec!["quiet".to_owned()],
            module_count: 0,
            firmware_count: 0,
            firmware_left_out: Vec::new(),
        }
    }

    fn key(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    #[test]
    fn a_stage_outlives_a_restart_and_damage_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Cache::open(dir.path().to_owned(), 1 << 20).unwrap();
        let stage = open().put(key("a"), &made("kernel", 100)).unwrap();
        assert_eq!(stage.initrd.len_bytes(), 100);
        fs::create_dir(dir.path().join("making-1")).unwrap();
        let cache = open();
        assert!(!dir.path().join("making-1").exists());
        assert_eq!(cache.initrd_bytes(key("a")), Some(100));
        let again = cache.get(key("a")).unwrap();
        assert_eq!(
            (again.kernel_version.as_str(), &again.root),
            ("6.1", &stage.root)
        );
        assert!(cache.get(key("b")).is_none());
        let initrd = dir.path().join(key("a").to_string()).join(INITRD);
        fs::write(initrd, vec![8; 100]).unwrap();
        let cache = open();
        assert!(cache.get(key("a")).is_none());
        assert_eq!(cache.initrd_bytes(key("a")), None);
    }

    #[test]
    fn what_was_not_used_longest_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().to_owned(), 300).unwrap();
        for name in ["a", "b"] {
            cache.put(key(name), &made("", 100)).unwrap();
        }
        let held = cache.get(key("a")).unwrap();
        cache.put(key("c"), &made("", 150)).unwrap();
        assert!(cache.get(key("b")).is_none());
        assert!(cache.get(key("a")).is_some());
        cache.put(key("d"), &made("", 290)).unwrap();
        assert!(cache.get(key("a")).is_none() && cache.get(key("c")).is_none());
        // Whoever was being sent it still gets it.
        assert_eq!(held.initrd.len_bytes(), 100);
    }
}
