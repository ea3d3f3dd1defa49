//! Where the system of an image is: its root, and its `/boot` where that is apart.

use super::root_fs::{FileKind, FsError, JoinedFs, RootFs, text_of};
use crate::inspect::PartitionReport;

/// The largest fstab, in bytes.
const FSTAB_BYTES_MAX: u64 = 256 << 10;

/// One of these is in a root.
const RELEASES: [&str; 2] = ["/etc/os-release", "/usr/lib/os-release"];
/// What the kernel or a boot loader may start, in the order of preference; the
/// first is what everybody expects.
const INITS: [&str; 5] = [
    "/sbin/init",
    "/usr/sbin/init",
    "/lib/systemd/systemd",
    "/usr/lib/systemd/systemd",
    "/etc/init",
];
/// Options of fstab's line for `/` that decide what the root is.
const OPTIONS: [&str; 2] = ["subvol=", "subvolid="];

/// Opens the file systems of a disk.
pub trait OpenFs {
    /// The trees that a partition may have a root in: one, or several where it
    /// has subvolumes; none for what holds no files of Linux.
    ///
    /// # Errors
    /// When it may hold a root and cannot be looked into.
    fn open(&self, partition: &PartitionReport) -> Result<Vec<Opened>, OpenFsError>;
}

/// A tree of files in a partition.
pub struct Opened {
    /// The tree.
    pub fs: Box<dyn RootFs>,
    /// The kernel's name of the file system.
    pub kind: &'static str,
    /// The options that mount this tree, such as `subvol=@`; empty for the only one.
    pub options: String,
}

/// Why a partition cannot be looked into.
#[derive(Debug, thiserror::Error)]
pub enum OpenFsError {
    /// This daemon cannot; the text says what to do.
    #[error("{0}")]
    Unsupported(String),
    /// It is damaged or cannot be read.
    #[error("its file system cannot be read")]
    Fs(#[from] FsError),
}

/// The system of an image.
pub struct System {
    /// The partition of its root; 0 is the whole disk.
    pub partition: u32,
    /// The kernel's name of the root's file system.
    pub fs_kind: &'static str,
    /// Options to mount it with.
    pub options: String,
    /// What runs first.
    pub init: String,
    /// Its files.
    pub fs: JoinedFs,
}

/// Why an image has no system that boots.
#[derive(Debug, thiserror::Error)]
pub enum SystemError {
    /// Nothing on the disk is a root.
    #[error("the image has no Linux root file system{}", seen_of(seen))]
    None {
        /// What was seen instead, by partition.
        seen: Vec<String>,
    },
    /// Several partitions have one.
    #[error(
        "partitions {} each have a Linux root: say which one boots with the setting `root`",
        numbers_of(partitions)
    )]
    Several {
        /// Their numbers.
        partitions: Vec<u32>,
    },
    /// The one that is asked for has none.
    #[error("partition {partition} has no Linux root file system{}", seen_of(seen))]
    NotThere {
        /// Its number.
        partition: u32,
        /// What was seen in it.
        seen: Vec<String>,
    },
    /// The disk cannot be read.
    #[error("the image cannot be read")]
    Fs(#[from] FsError),
}

/// Finds the root of a disk, in the partition that is asked for or in any.
///
/// # Errors
/// When there is none or more than one; the error says what was seen.
pub fn find_system(
    partitions: &[PartitionReport],
    opener: &dyn OpenFs,
    wanted: Option<u32>,
) -> Result<System, SystemError> {
    let mut search = Search::default();
    for partition in partitions {
        search.look(partition, opener, wanted)?;
    }
    let Search {
        mut roots,
        boots,
        seen,
    } = search;
    let numbers: Vec<u32> = roots.iter().map(|root| root.partition).collect();
    let root = match (roots.pop(), wanted) {
        (Some(_), _) if !roots.is_empty() => {
            return Err(SystemError::Several {
                partitions: numbers,
            });
        }
        (Some(root), _) => root,
        (None, Some(partition)) => return Err(SystemError::NotThere { partition, seen }),
        (None, None) => return Err(SystemError::None { seen }),
    };
    root.into_system(boots)
}

#[derive(Default)]
struct Search {
    roots: Vec<Root>,
    /// File systems with kernels that are no roots.
    boots: Vec<Box<dyn RootFs>>,
    seen: Vec<String>,
}

struct Root {
    partition: u32,
    opened: Opened,
}

impl Search {
    fn look(
        &mut self,
        partition: &PartitionReport,
        opener: &dyn OpenFs,
        wanted: Option<u32>,
    ) -> Result<(), FsError> {
        let kind = partition.fs.as_ref().map_or("", |fs| fs.kind.as_str());
        let place = match partition.number {
            0 => "the disk".to_owned(),
            number => format!("partition {number}"),
        };
        let trees = match opener.open(partition) {
            Ok(trees) => trees,
            Err(OpenFsError::Fs(FsError::Io { path, source })) => {
                return Err(FsError::Io { path, source });
            }
            Err(OpenFsError::Fs(error)) => {
                self.seen.push(format!("{place} has {kind}: {error}"));
                return Ok(());
            }
            Err(OpenFsError::Unsupported(why)) => {
                self.seen.push(format!("{place} has {kind}: {why}"));
                return Ok(());
            }
        };
        if trees.is_empty() && !kind.is_empty() {
            let why = unsupported(kind).map_or_else(String::new, |why| format!(": {why}"));
            self.seen.push(format!("{place} has {kind}{why}"));
        }
        for opened in trees {
            let taken = self.roots.last().map(|root| root.partition) == Some(partition.number);
            if is_root(&*opened.fs)? {
                let eligible = wanted.is_none_or(|wanted| wanted == partition.number);
                // The first tree of a partition that is a root is the one.
                if eligible && !taken {
                    self.roots.push(Root {
                        partition: partition.number,
                        opened,
                    });
                }
            } else if has_kernels(&*opened.fs)? {
                self.boots.push(opened.fs);
            } else {
                self.seen
                    .push(format!("{place} has {kind} without a system"));
            }
        }
        Ok(())
    }
}

impl Root {
    fn into_system(self, boots: Vec<Box<dyn RootFs>>) -> Result<System, SystemError> {
        let Self { partition, opened } = self;
        let fs = opened.fs;
        let mut init = INITS[0];
        for candidate in INITS {
            if fs.is_file(candidate)? {
                init = candidate;
                break;
            }
        }
        let options = if opened.options.is_empty() {
            fstab_options(&*fs)?
        } else {
            opened.options
        };
        // Its own /boot counts when there are kernels in it: a partition that is
        // mounted there in the running system hides it.
        let mounted = mounts_boot(&*fs)?;
        let boot = if mounted || !has_names(&*fs, "/boot")? {
            boots.into_iter().next()
        } else {
            None
        };
        Ok(System {
            partition,
            fs_kind: opened.kind,
            options,
            init: init.to_owned(),
            fs: JoinedFs::new(fs, boot),
        })
    }
}

/// What to say of what may hold a root and is not opened.
fn unsupported(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "lvm2 physical volume" => "roots on LVM are not supported yet",
        "luks" => "encrypted roots are not supported",
        "md raid" => "roots on software RAID are not supported",
        "f2fs" | "reiserfs" | "erofs" => "roots of this kind are not supported",
        _ => return None,
    })
}

fn is_root(fs: &dyn RootFs) -> Result<bool, FsError> {
    for release in RELEASES {
        if fs.is_file(release)? {
            return Ok(true);
        }
    }
    for init in INITS {
        let etc = fs.stat("/etc")?;
        if etc.is_some_and(|etc| etc.kind == FileKind::Dir) && fs.is_file(init)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn has_kernels(fs: &dyn RootFs) -> Result<bool, FsError> {
    has_names(fs, "/")
}

fn has_names(fs: &dyn RootFs, dir: &str) -> Result<bool, FsError> {
    let names = fs.list(dir)?;
    Ok(names.iter().any(|name| name.starts_with("vmlinuz")))
}

/// Lines of fstab(5) as place and options.
fn fstab(fs: &dyn RootFs) -> Result<Vec<(String, String)>, FsError> {
    let text = text_of(fs, "/etc/fstab", FSTAB_BYTES_MAX)?.unwrap_or_default();
    let lines = text.lines().map(str::trim_start);
    let entries = lines
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let place = words.nth(1)?.to_owned();
            Some((place, words.nth(1).unwrap_or_default().to_owned()))
        });
    Ok(entries.collect())
}

fn fstab_options(fs: &dyn RootFs) -> Result<String, FsError> {
    let entries = fstab(fs)?;
    let root = entries.iter().find(|(place, _)| place == "/");
    let options = root.map_or("", |(_, options)| options.as_str());
    let kept: Vec<_> = options
        .split(',')
        .filter(|option| OPTIONS.iter().any(|start| option.starts_with(start)))
        .collect();
    Ok(kept.join(","))
}

fn mounts_boot(fs: &dyn RootFs) -> Result<bool, FsError> {
    Ok(fstab(fs)?.iter().any(|(place, _)| place == "/boot"))
}

fn seen_of(seen: &[String]) -> String {
    if seen.is_empty() {
        return ": it has no file system that is known here".to_owned();
    }
    format!(": {}", seen.join("; "))
}

fn numbers_of(partitions: &[u32]) -> String {
    let numbers: Vec<_> = partitions.iter().map(ToString::to_string).collect();
    numbers.join(" and ")
}
