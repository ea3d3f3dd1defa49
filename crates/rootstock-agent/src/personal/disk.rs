//! A personal machine's writes on its own disk: a volume for each version, in files of
//! the file system that outlives boots.
//!
//! It is the same as those of the server (docs/formats/overlay.md), so that a power cut
//! leaves what was flushed, and a view of it can be read while the machine runs on.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rootstock_api::personal::{OtherWrites, PersonalOrder};
use rootstock_core::{Digest, ImageName, VersionNumber};
use rootstock_store::disk::{Disk, RealDisk};
use rootstock_volume::{Base, OpenError, OverlayOptions, Volume};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::mount::{MountFlags, mount};

use crate::console;
use crate::keep::{self, KeepError};
use crate::mapper::DeviceNumber;
use crate::room::{Superblock, Usage, Views, Warden};
use crate::switch;

/// Where the file system is mounted: in the first stage's own directory, which nobody
/// in the image sees, and no init takes away before the root is at rest.
const MOUNT: &str = "/personal";
/// The directory there. No path that is kept has such a name.
const DIRECTORY: &str = "%personal";
/// What is left to the volumes' logs.
pub(crate) const SPARE_BYTES: u64 = 64 << 20;
/// How often it looks at the room that is left.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Digits of a manifest's id in a name.
const DIGEST_DIGITS: usize = 16;
/// Unflushed data: what it replaces is free again after a flush alone, and has its room
/// in the spare until then.
const CHECKPOINT_BYTES: u64 = SPARE_BYTES / 4;
/// What `st_blocks` counts in (`inode(7)`).
const STAT_BLOCK_BYTES: u64 = 512;
/// The name of a volume's blocks.
const DATA: &str = "data";

/// Why writes cannot be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PersonalError {
    /// No file system is there for them.
    #[error(transparent)]
    Keep(#[from] KeepError),
    /// It cannot be mounted.
    #[error("{device} cannot be mounted as {kind}: is it ext4, and whole (fsck {device})?")]
    Mount {
        /// The device.
        device: String,
        /// What its superblock says.
        kind: &'static str,
        #[source]
        source: io::Error,
    },
    /// Its files cannot be used.
    #[error("{device} cannot be used")]
    Files {
        /// The device.
        device: String,
        #[source]
        source: io::Error,
    },
    /// What was written is not whole.
    #[error("what was written over {version} is not to be had; `rootstock node reset` drops it")]
    Open {
        /// The version.
        version: String,
        #[source]
        source: Box<OpenError>,
    },
}

/// What runs.
#[derive(Debug, Clone)]
pub(crate) struct Runs {
    /// The image.
    pub(crate) image: ImageName,
    /// Its version.
    pub(crate) version: VersionNumber,
    /// The manifest's id.
    pub(crate) manifest: Digest,
}

/// The writes of this machine over the version that runs.
pub(crate) struct Writes {
    /// They and the version, as one disk.
    pub(crate) volume: Arc<Volume>,
    /// Their directory.
    files: OwnedFd,
}

impl Writes {
    /// Those of earlier boots, or none yet. What the order drops is dropped.
    ///
    /// # Errors
    /// [`PersonalError`]; nothing that was written is lost.
    pub(crate) fn open(
        order: &PersonalOrder,
        runs: &Runs,
        base: Base,
    ) -> Result<Self, PersonalError> {
        let (device, kind) = keep::labelled()?;
        mount_at(&device, kind).map_err(|source| PersonalError::Mount {
            device: device.clone(),
            kind,
            source,
        })?;
        let writes = Self::at(Path::new(MOUNT), &device, order, runs, base)?;
        console::info(format_args!("what this machine writes is kept on {device}"));
        Ok(writes)
    }

    /// As [`Writes::open`], of a file system that is mounted.
    fn at(
        mounted: &Path,
        device: &str,
        order: &PersonalOrder,
        runs: &Runs,
        base: Base,
    ) -> Result<Self, PersonalError> {
        let failed = |source| PersonalError::Files {
            device: device.to_owned(),
            source,
        };
        let root = mounted.join(DIRECTORY);
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(&root).map_err(failed)?);
        let plan = Plan::of(&disk.list("").map_err(failed)?, order, runs);
        for name in &plan.drop {
            Volume::delete(&*disk, name).map_err(failed)?;
            console::info(format_args!("what was written as {name} is dropped"));
        }
        let options = OverlayOptions {
            checkpoint_bytes: CHECKPOINT_BYTES,
            ..OverlayOptions::default()
        };
        let size_bytes = base.device.size_bytes();
        // One whose making was interrupted has no block yet. What has blocks and cannot be
        // opened is not to be made anew.
        let has_blocks = plan.is_there
            && disk
                .open(&format!("{}/{DATA}", plan.open))
                .and_then(|data| data.len())
                .is_ok_and(|len| len > 0);
        let open = || Volume::open(&disk, &plan.open, base.clone(), options);
        let opened = match plan.is_there.then(open) {
            Some(Err(OpenError::NotAVolume { .. })) if !has_blocks => None,
            opened => opened,
        };
        let opened = opened.unwrap_or_else(|| {
            Volume::create(Arc::clone(&disk), &plan.open, base, size_bytes, options)
        });
        let volume = opened.map_err(|source| PersonalError::Open {
            version: format!("{}:{}", runs.image, runs.version),
            source: Box::new(source),
        })?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let files = rustix::fs::open(root.join(&plan.open), flags, Mode::empty());
        Ok(Self {
            volume: Arc::new(volume),
            files: files.map_err(|error| failed(error.into()))?,
        })
    }

    /// How much of the room for writes is used.
    pub(crate) fn usage(&self) -> Usage {
        let used_bytes = self.volume.used_bytes();
        // Room that is free inside the file is written to first.
        let in_file_bytes = rustix::fs::statat(&self.files, DATA, AtFlags::empty())
            .map_or(0, |facts| facts.st_blocks.unsigned_abs() * STAT_BLOCK_BYTES);
        Usage {
            used_bytes,
            bytes_max: used_bytes.max(in_file_bytes)
                + self.free_bytes().saturating_sub(SPARE_BYTES),
        }
    }

    /// What the file system has left.
    pub(crate) fn free_bytes(&self) -> u64 {
        rustix::fs::fstatvfs(&self.files)
            .map_or(0, |facts| facts.f_bavail.saturating_mul(facts.f_frsize))
    }
}

/// Has the root's writers told in time when that room ends, if its file system is one
/// that can be told. The root's partition is that of the agent's own device.
///
/// # Errors
/// When the device does not appear, or the system has no thread to give.
pub(crate) fn watch(writes: Arc<Writes>, partition: u32) -> io::Result<()> {
    let name = switch::partition_name(partition);
    let device = format!("/dev/{name}");
    switch::wait_for_partition(&device)?;
    let Some(superblock) = Superblock::of(&device)? else {
        return Ok(());
    };
    let device = (DeviceNumber::of_path(&device)?, name);
    let mut warden = Warden::new(Views::open()?, device, superblock);
    let thread = thread::Builder::new().name("room".to_owned());
    thread.spawn(move || {
        loop {
            warden.keep(writes.usage());
            thread::sleep(LOOK_EVERY);
        }
    })?;
    Ok(())
}

fn mount_at(device: &str, kind: &str) -> io::Result<()> {
    fs::create_dir_all(MOUNT)?;
    Ok(mount(device, MOUNT, kind, MountFlags::NOATIME, c"")?)
}

/// What is done with the directories that are there.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// The one that is opened, or made.
    open: String,
    is_there: bool,
    /// Those that go.
    drop: Vec<String>,
}

impl Plan {
    fn of(names: &[String], order: &PersonalOrder, runs: &Runs) -> Self {
        let digest = &runs.manifest.to_string()[..DIGEST_DIGITS];
        let there = names.iter().filter_map(|name| Name::parse(name));
        let (own, others): (Vec<_>, Vec<_>) = there.partition(|name| name.digest == digest);
        let newest = own.iter().map(|name| name.resets).max();
        // A server that has forgotten its resets has nobody's writes dropped.
        let resets = newest.filter(|newest| *newest >= order.resets);
        let open = resets.unwrap_or(order.resets);
        let is_over = |name: &&Name<'_>| name.resets < open;
        let mut drop: Vec<String> = own.iter().filter(is_over).map(Name::text).collect();
        match order.others {
            OtherWrites::Keep => {
                // Those that an administrator had dropped while another version ran.
                let is_over = |name: &&Name<'_>| name.resets < order.resets;
                drop.extend(others.iter().filter(is_over).map(Name::text));
            }
            OtherWrites::Drop => drop.extend(others.iter().map(Name::text)),
        }
        let version = format!("{}-{}", runs.image, runs.version);
        let same = own.iter().find(|name| name.resets == open);
        Self {
            is_there: same.is_some(),
            open: same.map_or_else(|| format!("{version}-{digest}-{open}"), Name::text),
            drop,
        }
    }
}

/// A directory's name: image, version, the manifest's id, and the number of the reset
/// that it was made after.
#[derive(Debug, Clone, Copy)]
struct Name<'a> {
    text: &'a str,
    digest: &'a str,
    resets: u32,
}

impl<'a> Name<'a> {
    fn parse(entry: &'a str) -> Option<Self> {
        let text = entry.strip_suffix('/')?;
        let (rest, resets) = text.rsplit_once('-')?;
        let (_, digest) = rest.rsplit_once('-')?;
        let is_digest =
            digest.len() == DIGEST_DIGITS && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
        Some(Self {
            text,
            digest: is_digest.then_some(digest)?,
            resets: resets.parse().ok()?,
        })
    }

    fn text(name: &Self) -> String {
        name.text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use rootstock_volume::{BlockDevice as _, Segments};

    use super::*;
    use crate::testing::PlainDisk;

    fn runs(seed: u8) -> Runs {
        Runs {
            image: "my-lab".parse().expect("a name"),
            version: VersionNumber(u32::from(seed)),
            manifest: Digest::of(&[seed]),
        }
    }

    fn name(seed: u8, resets: u32) -> String {
        let digest = &Digest::of(&[seed]).to_string()[..DIGEST_DIGITS];
        format!("my-lab-{seed}-{digest}-{resets}")
    }

    #[test]
    fn what_is_dropped_is_what_was_told() {
        let order = |resets, others| PersonalOrder { resets, others };
        let (keep, drop) = (OtherWrites::Keep, OtherWrites::Drop);
        for (there, order, open, dropped) in [
            (vec![], order(0, keep), name(1, 0), vec![]),
            (vec![name(1, 0)], order(0, keep), name(1, 0), vec![]),
            (vec![name(2, 0)], order(0, keep), name(1, 0), vec![]),
            (
                vec![name(2, 0)],
                order(0, drop),
                name(1, 0),
                vec![name(2, 0)],
            ),
            // They were reset.
            (
                vec![name(1, 0), name(2, 0), name(3, 1)],
                order(1, keep),
                name(1, 1),
                vec![name(1, 0), name(2, 0)],
            ),
            // The deletion was interrupted.
            (
                vec![name(1, 0), name(1, 1)],
                order(1, keep),
                name(1, 1),
                vec![name(1, 0)],
            ),
            // The server has forgotten how often.
            (vec![name(1, 4)], order(1, keep), name(1, 4), vec![]),
        ] {
            let entries: Vec<String> = there.iter().map(|name| format!("{name}/")).collect();
            let expected = Plan {
                is_there: there.contains(&open),
                open,
                drop: dropped,
            };
            assert_eq!(Plan::of(&entries, &order, &runs(1)), expected, "{there:?}");
        }
    }

    #[test]
    fn what_is_no_name_of_ours_is_left_alone() {
        let good = format!("{}/", name(1, 0));
        assert!(Name::parse(&good).is_some());
        for other in [
            "lost+found/",
            "a-b-c/",
            "data",
            &name(1, 0),
            "x-0123456789abcdef-y/",
            "/",
        ] {
            assert!(Name::parse(other).is_none(), "{other}");
        }
    }

    #[test]
    fn writes_are_there_again_over_their_version() {
        let home = tempfile::tempdir().expect("a directory");
        let order = PersonalOrder::default();
        let runs = runs(1);
        let open = |order| {
            let base = Base {
                device: Arc::new(PlainDisk::noise(1 << 16)),
                id: runs.manifest,
            };
            Writes::at(home.path(), "/dev/x", order, &runs, base).expect("opens")
        };
        let begins = |writes: &Writes| {
            let mut out = Segments::new();
            writes.volume.read(0, 4096, &mut out).expect("reads");
            let mut bytes = vec![0; 4096];
            out.copy_to(&mut bytes);
            bytes
        };
        let writes = open(&order);
        let pristine = begins(&writes);
        writes.volume.write(0, &[7; 4096]).expect("writes");
        writes.volume.flush().expect("flushes");
        let usage = writes.usage();
        assert!(usage.used_bytes >= 4096 && usage.bytes_max > usage.used_bytes);
        drop(writes);
        assert_eq!(begins(&open(&order)), [7; 4096]);
        // What has blocks and lost its map is not thrown away.
        let directory = home.path().join(DIRECTORY).join(name(1, 0));
        let maps = || {
            let names = fs::read_dir(&directory).expect("lists");
            let paths = names.map(|entry| entry.expect("lists").path());
            // Notes of recent writes go without saying.
            let is_recent = |path: &std::path::PathBuf| path.to_string_lossy().contains("/recent-");
            paths
                .filter(|path| !path.ends_with(DATA) && !is_recent(path))
                .collect::<Vec<_>>()
        };
        let lost = maps();
        let aside = home.path().join("aside");
        fs::rename(&lost[0], &aside).expect("is moved");
        let base = || Base {
            device: Arc::new(PlainDisk::noise(1 << 16)),
            id: runs.manifest,
        };
        let refused = Writes::at(home.path(), "/dev/x", &order, &runs, base());
        assert!(matches!(refused, Err(PersonalError::Open { .. })));
        fs::rename(&aside, &lost[0]).expect("is moved");
        assert_eq!(begins(&open(&order)), [7; 4096]);
        let reset = PersonalOrder { resets: 1, ..order };
        assert_eq!(begins(&open(&reset)), pristine);
        assert!(!directory.exists());
    }
}
