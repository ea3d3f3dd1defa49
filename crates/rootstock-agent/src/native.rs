//! The root at the disk's own speed: the kernel reads what is there without the agent.
//!
//! The root's file system lies on a snapshot: what it writes goes to memory and then,
//! encrypted, to a part of the machine's disk that is set aside for it, and is gone
//! with its key when the machine is off. What it reads comes from a device that is
//! the agent's at first; stretch by stretch, as chunks get to the disk, it becomes
//! the disk's own. A snapshot and not a stack of file systems: programs see the file
//! system of the image, and a large file is not copied when a byte of it changes.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rootstock_core::{BLOCK_BYTES, ByteRange, ChunkId};
use rootstock_image::grid::{ChunkSpan, Grid};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::console;
use crate::mapper::{DeviceNumber, Key, Kind, Mapped, Mapper, SECTOR_BYTES, Target};
use crate::overlay::{self, zram};
use crate::room::{Superblock, Usage, Views, Warden};
use crate::stats::Stats;
use crate::switch;
use crate::tiers::attach::Ground;

mod faults;
mod map;

use faults::Faults;
use map::{Map, Place};

/// How often it looks for faults, and at the room that is left.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often it looks whether more of the version is on the disk.
const MAP_EVERY: Duration = Duration::from_secs(5);
/// There is a new table when all is there, or this part of it since the last one.
const PART: u64 = 4;
/// The most stretches of a table: some MB of the kernel's memory.
const STRETCHES_MAX: usize = 32_768;
const BLOCK_SECTORS: u64 = BLOCK_BYTES / SECTOR_BYTES;
/// As long as any device may be.
const HOLD_SECTORS: u64 = BLOCK_SECTORS;
/// So much of the room is used when nothing more may be written.
const LAST_PERCENT: u8 = 98;

/// What is below the root's file system.
pub(crate) struct Parts {
    /// The machine's own disk.
    pub(crate) ground: Ground,
    /// The number of the root's partition; 0 is the whole disk.
    pub(crate) partition: u32,
    /// How the version is cut into chunks.
    pub(crate) grid: Grid,
    /// Which chunk is at a place.
    pub(crate) chunk_at: Box<dyn Fn(ChunkSpan) -> Option<ChunkId> + Send>,
    /// What writes may take of memory.
    pub(crate) memory_bytes_max: u64,
    /// What this boot reads is recorded there.
    pub(crate) stats: Arc<Stats>,
    /// Whether reads wait for the network.
    pub(crate) is_busy: Box<dyn Fn() -> bool + Send>,
}

/// The kernel's devices below the root.
pub(crate) struct Native {
    mapper: Mapper,
    /// What is read.
    base: Mapped,
    /// What is mounted.
    root: Mapped,
    /// The partition that the agent serves.
    agent: DeviceNumber,
    partition: ByteRange,
    native_bytes: AtomicU64,
    usage: Mutex<Usage>,
    room_bytes: u64,
    /// What the kernel counts of the root's device and of the agent's, open from
    /// before the first stage's paths go away.
    counts: [fs::File; 2],
}

impl Native {
    /// Puts the kernel's devices between the agent's and the root's file system.
    ///
    /// # Errors
    /// When the kernel or the disk is none of those that this is for; then the agent's
    /// device is the root, as on a machine without a disk.
    pub(crate) fn start(parts: Parts) -> io::Result<Arc<Self>> {
        let claim = Arc::clone(&parts.ground.claim);
        let started = Self::build(parts);
        if started.is_err() {
            claim.take_back();
        }
        started
    }

    fn build(parts: Parts) -> io::Result<Arc<Self>> {
        let mapper = Mapper::open()?;
        let name = switch::partition_name(parts.partition);
        let partition = switch::partition_range(parts.partition)?;
        let agent_device = format!("/dev/{name}");
        let agent = DeviceNumber::of_path(&agent_device)?;
        let superblock = Superblock::of(&agent_device)?
            .ok_or_else(|| io::Error::other("the root is not ext4"))?;
        // Compressed memory has sectors of as much, and so has what lies above it.
        if superblock.block_bytes < BLOCK_BYTES {
            let block = superblock.block_bytes;
            return Err(io::Error::other(format!(
                "its file system has blocks of {block} B"
            )));
        }
        let disk = parts.ground.claim.number();
        // The file system was mounted for sectors of this length.
        let disk_name = parts.ground.device.trim_start_matches("/dev/");
        let block = logical_block_bytes(disk_name);
        if block != SECTOR_BYTES {
            return Err(io::Error::other(format!(
                "its disk has sectors of {block} B"
            )));
        }
        let views = Views::open()?;
        let faults = Faults::of(&parts.ground.device)?;

        let mut made = Made {
            mapper: &mapper,
            devices: Vec::new(),
        };
        // From here on the device mapper holds the disk, and refuses everybody else:
        // this device is there for nothing else.
        parts.ground.claim.give_up();
        let hold = Target {
            sectors: HOLD_SECTORS,
            kind: Kind::Linear {
                device: disk,
                start_sectors: 0,
            },
        };
        made.create("rootstock-disk", &[hold])?;
        let writes = writes_table(&mut made, &parts)?;
        let room_bytes = length(&writes);
        let writes = made.create("rootstock-writes", &writes)?;
        let base = Map::of_agent(partition.len).table(agent, disk);
        let base = made.create("rootstock-base", &base)?;
        let snapshot = Target {
            sectors: partition.len / BLOCK_BYTES * BLOCK_SECTORS,
            kind: Kind::Snapshot {
                origin: base.number,
                writes: writes.number,
            },
        };
        let root = made.create("rootstock-root", &[snapshot])?;
        let count = |name: &str| fs::File::open(format!("/sys/class/block/{name}/stat"));
        let counts = [count(&root.kernel_name())?, count(&name)?];
        let devices = std::mem::take(&mut made.devices);
        drop(made);
        let native = Arc::new(Self {
            mapper,
            base,
            root,
            agent,
            partition,
            native_bytes: AtomicU64::new(0),
            usage: Mutex::default(),
            room_bytes,
            counts,
        });
        let watch = Watch {
            native: Arc::clone(&native),
            parts,
            disk,
            mapped: Map::of_agent(partition.len),
            mapped_bytes: 0,
            faults,
            lost: None,
        };
        let device = (native.root.number, native.root.kernel_name());
        let room = RoomWatch {
            native: Arc::clone(&native),
            warden: Warden::new(views, device, superblock),
        };
        let start = |name: &str, run: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name(name.to_owned()).spawn(run)
        };
        let started = start("native", Box::new(move || watch.run()))
            .and_then(|_| start("room", Box::new(move || room.run())));
        if let Err(error) = started {
            drop(Made {
                mapper: &native.mapper,
                devices,
            });
            return Err(error);
        }
        Ok(native)
    }

    /// The device of the root's file system.
    pub(crate) fn device(&self) -> String {
        format!("/dev/{}", self.root.kernel_name())
    }

    /// Bytes of the root that the kernel reads without the agent.
    pub(crate) fn native_bytes(&self) -> u64 {
        self.native_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that were read so far without the agent.
    pub(crate) fn read_bytes(&self) -> u64 {
        let [root, agent] = self.counts.each_ref().map(|count| {
            let mut text = [0; 256];
            let len = count.read_at(&mut text, 0).unwrap_or(0);
            sectors_read(&String::from_utf8_lossy(&text[..len])).unwrap_or(0)
        });
        root.saturating_sub(agent) * SECTOR_BYTES
    }

    /// How full the room for writes is.
    pub(crate) fn fill(&self) -> overlay::Fill {
        let usage = *self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        usage.fill()
    }

    /// Asks the kernel how full it is.
    fn look(&self) -> io::Result<Usage> {
        let status = self.mapper.status(&self.root)?;
        let used_bytes = used_bytes(&status).ok_or_else(|| {
            io::Error::other(format!("the room for writes is lost: {}", status.trim()))
        })?;
        let usage = Usage {
            used_bytes,
            bytes_max: self.room_bytes,
        };
        *self.usage.lock().unwrap_or_else(PoisonError::into_inner) = usage;
        Ok(usage)
    }
}

/// Devices that go again unless all of them were made.
struct Made<'a> {
    mapper: &'a Mapper,
    devices: Vec<Mapped>,
}

impl Made<'_> {
    fn create(&mut self, name: &str, table: &[Target]) -> io::Result<Mapped> {
        let mapped = self.mapper.create(name, table)?;
        self.devices.push(mapped.clone());
        Ok(mapped)
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        for mapped in self.devices.iter().rev() {
            self.mapper.remove(mapped);
        }
    }
}

/// Where writes go: memory first, then what the disk has set aside.
fn writes_table(made: &mut Made<'_>, parts: &Parts) -> io::Result<Vec<Target>> {
    let sectors = parts.memory_bytes_max / BLOCK_BYTES * BLOCK_SECTORS;
    let memory = zram::make(sectors * SECTOR_BYTES, None)?;
    let mut table = vec![Target {
        sectors,
        kind: Kind::Linear {
            device: DeviceNumber::of_path(&memory.path)?,
            start_sectors: 0,
        },
    }];
    if let Some(spare) = parts.ground.spare {
        match encrypted(made, parts.ground.claim.number(), spare) {
            Ok(target) => table.push(target),
            Err(error) => console::warn(format_args!(
                "writes stay in memory: {} cannot be written encrypted: {error}",
                parts.ground.device
            )),
        }
    }
    Ok(table)
}

/// A part of a disk, encrypted by a key that nobody else ever has.
fn encrypted(made: &mut Made<'_>, disk: DeviceNumber, spare: ByteRange) -> io::Result<Target> {
    let mut key = Key([0; 64]);
    getrandom(&mut key.0, GetRandomFlags::empty())?;
    let sectors = spare.len / BLOCK_BYTES * BLOCK_SECTORS;
    let crypt = Target {
        sectors,
        kind: Kind::Crypt {
            device: disk,
            start_sectors: spare.start / SECTOR_BYTES,
            key,
        },
    };
    let device = made.create("rootstock-spare", &[crypt])?.number;
    Ok(Target {
        sectors,
        kind: Kind::Linear {
            device,
            start_sectors: 0,
        },
    })
}

fn length(table: &[Target]) -> u64 {
    table
        .iter()
        .map(|target| target.sectors * SECTOR_BYTES)
        .sum()
}

/// The length of a disk's sectors; a partition has those of its disk.
fn logical_block_bytes(name: &str) -> u64 {
    let paths = [
        format!("/sys/class/block/{name}/queue/logical_block_size"),
        format!("/sys/class/block/{name}/../queue/logical_block_size"),
    ];
    let texts = paths
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok());
    texts
        .filter_map(|text| text.trim().parse().ok())
        .next()
        .unwrap_or(0)
}

/// `used/all metadata`, in sectors, of a snapshot's status.
fn used_bytes(status: &str) -> Option<u64> {
    let (used, _) = status.trim().split_once('/')?;
    Some(used.parse::<u64>().ok()? * SECTOR_BYTES)
}

/// The third number of `Documentation/block/stat.rst`.
fn sectors_read(statistics: &str) -> Option<u64> {
    statistics.split_ascii_whitespace().nth(2)?.parse().ok()
}

/// What goes on while the machine runs.
struct Watch {
    native: Arc<Native>,
    parts: Parts,
    disk: DeviceNumber,
    /// What the kernel's table was made of, and the bytes of chunks in it.
    mapped: Map,
    mapped_bytes: u64,
    faults: Faults,
    /// Why the disk is to be read through the agent, until it is.
    lost: Option<String>,
}

/// What keeps the writers within their room, whatever else waits.
struct RoomWatch {
    native: Arc<Native>,
    warden: Warden,
}

impl Watch {
    fn run(mut self) {
        let mut next_map = Some(Instant::now() + MAP_EVERY);
        loop {
            thread::sleep(LOOK_EVERY);
            if let Some(why) = self.lost.take().or_else(|| self.trouble()) {
                self.give_back(why);
                next_map = None;
            }
            if next_map.is_some_and(|at| at <= Instant::now()) {
                let done = self.map();
                next_map = (!done).then(|| Instant::now() + MAP_EVERY);
            }
        }
    }

    /// Why the disk is not to be read past the agent.
    fn trouble(&mut self) -> Option<String> {
        if self.native.native_bytes() == 0 {
            return None;
        }
        let keeper = &self.parts.ground.keeper;
        if !keeper.is_on() {
            return Some("it is not used any more".to_owned());
        }
        if keeper.cache().has_lost_pinned() {
            return Some("what the agent read of it was not right".to_owned());
        }
        self.faults.next()
    }

    /// All of it is the agent's again, which has the network, too.
    fn give_back(&mut self, why: String) {
        let native = &self.native;
        let table = Map::of_agent(native.partition.len).table(native.agent, self.disk);
        let device = &self.parts.ground.device;
        match native.mapper.replace(&native.base, &table) {
            Ok(()) => {
                native.native_bytes.store(0, Ordering::Relaxed);
                console::error(format_args!(
                    "{device} is read through the agent again: {why}; look at the disk \
                     (smartctl -a {device})"
                ));
            }
            // Tried again, for as long as the machine runs.
            Err(_) => self.lost = Some(why),
        }
    }

    /// Has the kernel read what is on the disk by now; whether that is all.
    fn map(&mut self) -> bool {
        let keeper = &self.parts.ground.keeper;
        let Some(plan) = keeper.plan() else {
            return false;
        };
        let cache = keeper.cache();
        let is_here = |chunk| keeper.is_on() && cache.has(chunk) && !cache.is_unseen(chunk);
        let here = plan.chunks().iter().filter(|one| is_here(one.chunk));
        let here: u64 = here.map(|one| u64::from(one.len_bytes)).sum();
        let is_complete = here == plan.bytes();
        let native = &self.native;
        // What the boot reads is to be seen. And a table is not changed while a read
        // waits for the network: all others would wait for it.
        let is_worth = is_complete || here.saturating_sub(self.mapped_bytes) >= plan.bytes() / PART;
        if !is_worth || self.parts.stats.trace.is_on() || (self.parts.is_busy)() {
            return false;
        }
        let map = self.stretches();
        let is_same = std::mem::replace(&mut self.mapped_bytes, here) == here;
        if map == self.mapped {
            // The last of it is on the disk for good a little later.
            return is_complete && is_same;
        }
        let native_bytes = map.native_bytes();
        let table = map.table(native.agent, self.disk);
        self.mapped = map;
        let count = table.len();
        match native.mapper.replace(&native.base, &table) {
            Ok(()) => {
                native.native_bytes.store(native_bytes, Ordering::Relaxed);
                let percent = native_bytes * 100 / native.partition.len.max(1);
                console::info(format_args!(
                    "{percent} % of the root are read from {} without the agent ({count} stretches)",
                    self.parts.ground.device
                ));
                is_complete && native_bytes == native.partition.len
            }
            Err(error) => {
                console::info(format_args!(
                    "the kernel does not read the root itself: {error}"
                ));
                true
            }
        }
    }

    /// The root's partition, chunk by chunk.
    fn stretches(&self) -> Map {
        let (grid, partition) = (&self.parts.grid, self.native.partition);
        let cache = self.parts.ground.keeper.cache();
        let mut map = Map::default();
        let mut next = partition.start;
        while next < partition.end() {
            let span = grid.at(next);
            let end = span.end_bytes().min(partition.end());
            let inside = next - span.start_bytes;
            let place = match (self.parts.chunk_at)(span) {
                Some(chunk) if chunk.is_zero() => Place::Zero,
                Some(chunk) => match cache.pin(chunk) {
                    Some(extent) if extent.len_bytes == span.len_bytes => {
                        Place::Disk(extent.start_bytes + inside)
                    }
                    _ => Place::Agent,
                },
                None => Place::Agent,
            };
            map.push(end - next, place);
            next = end;
        }
        map.limited(STRETCHES_MAX)
    }
}

impl RoomWatch {
    fn run(mut self) {
        while !self.look() {
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Keeps the writers within their room; whether that is over.
    fn look(&mut self) -> bool {
        let usage = match self.native.look() {
            Ok(usage) => usage,
            Err(error) => {
                console::error(error);
                return true;
            }
        };
        self.warden.keep(usage);
        if usage.percent() >= LAST_PERCENT {
            console::error(
                "the room for this machine's writes is used up: its file systems are read-only \
                 from now on; reboot it",
            );
            // `u`: "remount all mounted filesystems read-only" (sysrq.rst).
            if let Err(error) = self.warden.views().trigger(b"u") {
                console::error(error);
            }
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshots_status_tells_what_is_used() {
        assert_eq!(used_bytes("16/8192 16"), Some(8192));
        assert_eq!(used_bytes("Invalid"), None);
        assert_eq!(used_bytes("Overflow"), None);
        assert_eq!(sectors_read("  9  0  640 12 1 2 3\n"), Some(640));
    }
}
