//! `rootstock-agent cache create|show`: what an administrator runs on a machine.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rootstock_cache::{Cache, FormatError, Label, OpenError};
use rootstock_core::units::{HumanBytes, SizeError, is_zero, parse_size_bytes};
use rootstock_core::{BLOCK_BYTES, ByteRange};
use rootstock_image::inspect;
use rootstock_image::layout::TooSmall;
use rootstock_store::disk::DiskFile;
use rustix::rand::{GetRandomFlags, getrandom};

use super::device::{Blocks, Device};
use super::find;
use super::part::Part;
use crate::console;

mod start;

/// What is looked at at each end of a disk: file systems, tables and members of
/// arrays all have something there.
const LOOK_BYTES: u64 = 1 << 20;

/// What of a disk is for the machine's writes, of which disks, and how much at most.
const WRITES_PART: u64 = 4;
const WRITES_DISK_BYTES_MIN: u64 = 16 << 30;
const WRITES_BYTES_MAX: u64 = 32 << 30;

/// What is lost at the beginning and the end of that part.
const LOST_BYTES: u64 = 2 << 20;

/// How the command is used.
pub(crate) const USAGE: &str = "\
usage: rootstock-agent cache create [--boot] [--writes SIZE] DEVICE [DEVICE]
       rootstock-agent cache show DEVICE

create  prepares a disk or partition, such as /dev/sda3, on which this machine
        then keeps the chunks of its images. What the disk holds is lost: one
        that holds anything is refused unless its exact name is given twice.
        One that is in use is refused always. `cache = auto`, the setting that
        nodes have unless told otherwise, takes it from the next boot on.
        --writes sets a part aside for what the machine writes while it runs,
        such as 20G or 0: it goes there once memory's share is full, encrypted,
        and is lost at power-off. Without it that is a quarter of the disk, up
        to 32 GiB; nothing of a disk under 16 GiB.
        --boot takes a whole disk, such as /dev/sda, and divides it, so that
        the machine also starts from it when no server answers.
show    tells what a prepared disk holds.";

/// Why a disk was not prepared.
#[derive(Debug, thiserror::Error)]
enum PrepareError {
    #[error("{device} cannot be opened{}", in_use(source))]
    Open {
        device: String,
        #[source]
        source: io::Error,
    },
    #[error("{device} is neither a disk nor a partition: name one, such as /dev/sda3")]
    NotADisk { device: String },
    #[error(
        "{device} holds {found}, which would be lost; to erase it, give its name twice:\n    \
         rootstock-agent cache create {device} {device}"
    )]
    HoldsData { device: String, found: String },
    #[error("--writes {text} is not a size")]
    Size {
        text: String,
        #[source]
        source: SizeError,
    },
    #[error("the second name is {second}, not {device}: nothing was done")]
    OtherName { device: String, second: String },
    #[error("{device} cannot be read")]
    Read {
        device: String,
        #[source]
        source: io::Error,
    },
    #[error("{device} was not prepared")]
    Format {
        device: String,
        #[source]
        source: FormatError,
    },
    #[error("{device} is not a whole disk: --boot divides one, such as /dev/sda")]
    NotWhole { device: String },
    #[error("{device} has sectors of {sector_bytes} B: only those of 512 B can be started from")]
    Sectors { device: String, sector_bytes: u64 },
    #[error("{device} is too small")]
    TooSmall {
        device: String,
        #[source]
        source: TooSmall,
    },
    #[error("{device} was not divided")]
    Divide {
        device: String,
        #[source]
        source: io::Error,
    },
    #[error("{device} cannot be shown")]
    Show {
        device: String,
        #[source]
        source: OpenError,
    },
}

fn in_use(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::ResourceBusy => {
            ": it is mounted, swapped to, part of something, or a cache in use"
        }
        _ => "",
    }
}

/// Runs the command; what it says, or why it did not.
pub(crate) fn run(words: &[String]) -> Result<String, String> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match &words[..] {
        ["create", words @ ..] => match Create::parse(words) {
            Some(words) => create(&words),
            None => return Err(USAGE.to_owned()),
        },
        ["show", device] => show(device),
        _ => return Err(USAGE.to_owned()),
    };
    result.map_err(|error| console::chain(&error))
}

/// What a disk is used for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Chunks alone.
    Cache,
    /// The machine starts from it, too.
    Start,
}

/// What `cache create` was told.
struct Create<'a> {
    device: &'a str,
    second: Option<&'a str>,
    writes: Option<&'a str>,
    used_as: Use,
}

impl<'a> Create<'a> {
    fn parse(mut words: &[&'a str]) -> Option<Self> {
        let (mut writes, mut used_as) = (None, Use::Cache);
        loop {
            words = match words {
                ["--boot", rest @ ..] if used_as == Use::Cache => {
                    used_as = Use::Start;
                    rest
                }
                ["--writes", size, rest @ ..] if writes.is_none() => {
                    writes = Some(*size);
                    rest
                }
                _ => break,
            };
        }
        let (device, second) = match words {
            [device] => (*device, None),
            [device, second] => (*device, Some(*second)),
            _ => return None,
        };
        (!device.starts_with("--")).then_some(Self {
            device,
            second,
            writes,
            used_as,
        })
    }
}

fn create(words: &Create<'_>) -> Result<String, PrepareError> {
    let Create {
        device,
        second,
        writes,
        used_as,
    } = *words;
    let writes = writes.map(|text| {
        let size = parse_size_bytes(text);
        size.map_err(|source| PrepareError::Size {
            text: text.to_owned(),
            source,
        })
    });
    let writes = writes.transpose()?;
    if let Some(second) = second
        && second != device
    {
        return Err(PrepareError::OtherName {
            device: device.to_owned(),
            second: second.to_owned(),
        });
    }
    let disk = open(device)?;
    let read = |source| PrepareError::Read {
        device: device.to_owned(),
        source,
    };
    if second.is_none()
        && let Some(found) = holds(&disk).map_err(read)?
    {
        return Err(PrepareError::HoldsData {
            device: device.to_owned(),
            found,
        });
    }
    let mut id = [0; 16];
    getrandom(&mut id, GetRandomFlags::empty()).map_err(|error| read(error.into()))?;
    let format = |source| PrepareError::Format {
        device: device.to_owned(),
        source,
    };
    let layout = match used_as {
        Use::Cache => None,
        Use::Start => Some(start::divide(&disk, device)?),
    };
    let disk_bytes = disk.len().map_err(read)?;
    let part = layout.map_or(ByteRange::new(0, disk_bytes), |layout| layout.cache);
    let part = Part {
        disk: &disk,
        range: part,
    };
    let len_bytes = part.range.len;
    let writes = writes.unwrap_or_else(|| writes_share(len_bytes));
    let aside = match writes {
        0 => 0,
        some => some.saturating_add(LOST_BYTES),
    };
    let label = Label::for_disk(id, len_bytes.saturating_sub(aside))
        .map_err(|error| format(FormatError::Label(error)))?;
    Cache::format(&part, &label).map_err(format)?;
    if let Some(layout) = layout {
        // Last: a disk that was not finished is none of ours.
        start::finish(&disk, device, &layout)?;
    }
    let room = HumanBytes(label.slot_count * u64::from(label.slot_bytes));
    let writes = match find::spare(&label, len_bytes) {
        Some(spare) => format!(" and {} for writes", HumanBytes(spare.len)),
        None => String::new(),
    };
    let (what, then) = match used_as {
        Use::Cache => ("is", ""),
        Use::Start => (
            "has",
            ", and starts from it when no server answers, once its image is complete there",
        ),
    };
    Ok(format!(
        "{device} {what} a cache with room for {room} of chunks{writes}; this machine uses it \
         from its next boot on{then}"
    ))
}

/// What of a disk is for the machine's writes unless somebody says otherwise.
fn writes_share(disk_bytes: u64) -> u64 {
    if disk_bytes < WRITES_DISK_BYTES_MIN {
        return 0;
    }
    (disk_bytes / WRITES_PART).min(WRITES_BYTES_MAX)
}

fn open(device: &str) -> Result<Device, PrepareError> {
    let error = |source| PrepareError::Open {
        device: device.to_owned(),
        source,
    };
    let kind = fs::metadata(device).map_err(error)?.file_type();
    if !kind.is_block_device() && !kind.is_file() {
        return Err(PrepareError::NotADisk {
            device: device.to_owned(),
        });
    }
    Device::open(Path::new(device)).map_err(error)
}

/// What a disk holds, as far as its two ends tell; nothing when both are zeros.
pub(crate) fn holds(disk: &Device) -> io::Result<Option<String>> {
    let len_bytes = disk.len()?;
    let part = LOOK_BYTES.min(len_bytes) / BLOCK_BYTES * BLOCK_BYTES;
    let mut bytes = vec![0; part as usize];
    let last = (len_bytes - part) / BLOCK_BYTES * BLOCK_BYTES;
    let mut is_empty = true;
    for at in [0, last] {
        disk.read_at(at, &mut bytes)?;
        is_empty &= is_zero(&bytes);
    }
    if is_empty {
        return Ok(None);
    }
    if Cache::label_of(disk).is_ok() {
        return Ok(Some("a cache".to_owned()));
    }
    Ok(Some(recognised(disk).unwrap_or_else(|| {
        "data of a kind that is not known here".to_owned()
    })))
}

/// What people would call it.
fn recognised(disk: &Device) -> Option<String> {
    let partitions = inspect::partitions(&Blocks(disk)).ok()?;
    let systems: Vec<&str> = partitions
        .iter()
        .filter_map(|partition| Some(partition.fs.as_ref()?.kind.as_str()))
        .collect();
    let is_whole = partitions.iter().any(|partition| partition.number == 0);
    match (is_whole, &systems[..]) {
        (true, []) => None,
        (true, _) => Some(systems.join(", ")),
        (false, []) => Some(format!("{} partitions", partitions.len())),
        (false, _) => {
            let (count, systems) = (partitions.len(), systems.join(", "));
            Some(format!("{count} partitions ({systems})"))
        }
    }
}

fn show(device: &str) -> Result<String, PrepareError> {
    let disk = open(device)?;
    let cache = Cache::open(Box::new(disk)).map_err(|source| PrepareError::Show {
        device: device.to_owned(),
        source,
    })?;
    let usage = cache.usage();
    let bytes = |slots: u64| HumanBytes(slots * u64::from(usage.slot_bytes));
    Ok(format!(
        "{device}: {} of {} hold chunks",
        bytes(usage.slots_used),
        bytes(usage.slots_max)
    ))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use rootstock_image::layout::Layout;

    use super::*;
    use crate::local::files::StartFiles;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_disk_to_start_from_has_three_parts() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("disk");
        let device = path.to_str().expect("text");
        let file = File::create_new(&path).expect("a disk");
        let small = run(&words(&["create", "--boot", device])).expect_err("too small");
        assert!(
            small.contains("too small") && small.contains("at least"),
            "{small}"
        );
        let bytes = 200 << 20;
        file.set_len(bytes).expect("long");
        let made = run(&words(&["create", "--boot", "--writes", "64M", device])).expect("taken");
        assert!(
            made.contains("has a cache") && made.contains("for writes"),
            "{made}"
        );
        let disk = Device::open(&path).expect("opens");
        let layout = Layout::read(&Blocks(&disk)).expect("read").expect("is one");
        let part = Part {
            disk: &disk,
            range: layout.cache,
        };
        assert!(Cache::label_of(&part).is_ok());
        let files = StartFiles::open(&disk, layout.start).expect("a file system");
        assert_eq!(files.names("BOOT").expect("read"), ["FIRST.CFG"]);
        drop(files);
        drop(disk);
        let refused = run(&words(&["create", "--boot", device])).expect_err("it holds data");
        assert!(refused.contains("3 partitions"), "{refused}");
        run(&words(&["create", "--boot", device, device])).expect("named twice");
        for wrong in [
            &["create", "--boot"][..],
            &["create", "--boot", "--boot", device],
        ] {
            assert!(run(&words(wrong)).expect_err("wrong").contains("usage"));
        }
    }

    #[test]
    fn what_holds_data_is_refused_until_it_is_named_twice() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("disk");
        let device = path.to_str().expect("text");
        let file = File::create_new(&path).expect("a disk");
        file.set_len(32 << 20).expect("long");
        let made = run(&words(&["create", device])).expect("an empty disk is taken");
        assert!(made.contains("room for 3"), "{made}");
        assert!(
            run(&words(&["show", device]))
                .expect("a cache")
                .contains("0 B of 3")
        );
        let again = run(&words(&["create", device])).expect_err("it is a cache");
        assert!(
            again.contains("holds a cache") && again.contains("twice"),
            "{again}"
        );
        run(&words(&["create", device, device])).expect("named twice");
        let other = run(&words(&["create", device, "/dev/sda"])).expect_err("another");
        assert!(other.contains("nothing was done"), "{other}");

        // An ext file system, by its magic; and bytes that nobody knows, at the end.
        for (at, bytes, expected) in [
            (1080, &[0x53, 0xef][..], "ext"),
            ((32 << 20) - 9, b"x", "not known"),
        ] {
            file.set_len(0)
                .and_then(|()| file.set_len(32 << 20))
                .expect("empty");
            file.write_all_at(bytes, at).expect("written");
            let refused = run(&words(&["create", device])).expect_err("it holds data");
            assert!(refused.contains(expected), "{refused}");
        }
        file.set_len(4096).expect("cut");
        assert!(
            run(&words(&["create", device, device])).is_err(),
            "too small"
        );
        assert!(
            run(&words(&["create", "/dev/null"]))
                .expect_err("no disk")
                .contains("neither")
        );
        assert!(
            run(&words(&["create"]))
                .expect_err("no name")
                .contains("usage")
        );
    }
}
