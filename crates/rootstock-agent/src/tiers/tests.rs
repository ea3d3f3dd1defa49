//! A machine whose disk fails in every way: its user goes on.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::sync::{Condvar, Mutex};

use rootstock_cache::{Cache, Label};
use rootstock_core::{ByteRange, CHUNK_BYTES};
use rootstock_image::frame::Encoder;
use rootstock_image::grid::Grid;
use rootstock_image::manifest::{ManifestBuilder, PageSource};
use rootstock_store::disk::DiskFile;
use rootstock_swarm::Class;

use super::keeper::Patience;
use super::plan::Plan;
use super::*;
use crate::disk::device::Device;
use crate::remote::Answer;
use crate::service::CallError;
use crate::testing::record;

/// Enough for any disk to be given up.
const READS: u8 = 12;
const DISK_BYTES: u64 = 16 << 20;
const PATIENCE: Patience = Patience {
    read: Duration::from_millis(200),
    hung: Duration::from_millis(400),
};

/// What a disk does to who uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ill {
    No,
    /// Reads fail.
    Reads,
    /// Reads give other bytes.
    Garbage,
    /// Reads take for ever, until it is well again.
    Slow,
    /// Writes fail.
    Writes,
}

struct Patient {
    device: Device,
    health: Arc<(Mutex<Ill>, Condvar)>,
}

impl Patient {
    fn ill(&self) -> Ill {
        *self.health.0.lock().expect("no panic")
    }
}

impl DiskFile for Patient {
    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        let (ill, changed) = &*self.health;
        let waits = changed.wait_while(ill.lock().expect("no panic"), |ill| *ill == Ill::Slow);
        drop(waits);
        self.device.read_at(offset_bytes, buffer)?;
        match self.ill() {
            Ill::Reads => Err(io::Error::other("a bad sector")),
            Ill::Garbage => {
                buffer[0] ^= 1;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn write_at(&self, offset_bytes: u64, data: &[u8]) -> io::Result<()> {
        match self.ill() {
            Ill::Writes => Err(io::Error::other("a bad sector")),
            _ => self.device.write_at(offset_bytes, data),
        }
    }

    fn write_vectored_at(&self, offset_bytes: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        self.device.write_vectored_at(offset_bytes, parts)
    }

    fn len(&self) -> io::Result<u64> {
        self.device.len()
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.device.set_len(len_bytes)
    }

    fn punch(&self, range: ByteRange) -> io::Result<()> {
        self.device.punch(range)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.device.sync_data()
    }

    fn raw_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// A server that has all chunks, until it goes away.
struct Server {
    records: HashMap<ChunkId, Vec<u8>>,
    is_away: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
}

impl Fetch for Server {
    fn fetch(&self, _: usize, ids: &[ChunkId], _: Class) -> Result<Answer, CallError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if self.is_away.load(Ordering::Relaxed) {
            return Err(CallError::Refused {
                url: "u".to_owned(),
                status: 503,
                reason: String::new(),
            });
        }
        let records = ids.iter().filter_map(|id| self.records.get(id));
        Ok(Answer::Records(records.flatten().copied().collect()))
    }

    fn servers(&self) -> usize {
        1
    }
}

struct Machine {
    tiers: Arc<Tiers<Server>>,
    keeper: Arc<Keeper>,
    health: Arc<(Mutex<Ill>, Condvar)>,
    is_away: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    directory: tempfile::TempDir,
}

fn raw(number: u8) -> Vec<u8> {
    vec![number + 1; CHUNK_BYTES as usize]
}

fn id(number: u8) -> ChunkId {
    ChunkId::of(&raw(number))
}

/// No page is needed of a version of one chunk.
struct NoPages;

impl PageSource for NoPages {
    type Error = io::Error;
    type Bytes = Vec<u8>;

    fn page(&self, _: ChunkId) -> Result<Vec<u8>, io::Error> {
        Err(io::ErrorKind::NotFound.into())
    }
}

impl Machine {
    /// A machine with an empty cache of `disk_bytes`.
    fn new(disk_bytes: u64) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("disk");
        File::create(&path)
            .and_then(|file| file.set_len(disk_bytes))
            .expect("a disk");
        let device = Device::open(&path).expect("opens");
        let label = Label::for_disk([1; 16], disk_bytes).expect("room");
        Cache::format(&device, &label).expect("prepared");
        let health = Arc::new((Mutex::new(Ill::No), Condvar::new()));
        let patient = Patient {
            device,
            health: Arc::clone(&health),
        };
        let cache = Cache::open(Box::new(patient)).expect("opens");
        let keeper = Keeper::start("/dev/sdz".to_owned(), cache, PATIENCE).expect("starts");
        let grid = Grid::whole(CHUNK_BYTES).expect("a grid");
        let mut builder = ManifestBuilder::new(grid);
        builder.set(0, id(0));
        let manifest = builder.finish(|_, _| Ok::<(), io::Error>(()));
        let plan = Plan::walk(&manifest.expect("built"), &NoPages);
        keeper.set_plan(plan.expect("no pages"));

        let mut encoder = Encoder::new();
        let records = (0..64).map(|number| (id(number), record(&mut encoder, &raw(number))));
        let (is_away, asked) = (Arc::default(), Arc::default());
        let server = Server {
            records: records.collect(),
            is_away: Arc::clone(&is_away),
            asked: Arc::clone(&asked),
        };
        let stats = Arc::new(Stats::default());
        let tiers = Tiers::new(Remote::new(server, Arc::clone(&stats)), stats);
        tiers.attach(Arc::clone(&keeper));
        Self {
            tiers,
            keeper,
            health,
            is_away,
            asked,
            directory,
        }
    }

    fn read(&self, number: u8) {
        let read = self.tiers.read(id(number)).expect("somebody has it");
        assert_eq!(read, raw(number), "chunk {number}");
    }

    fn read_at_once(&self, numbers: std::ops::Range<u8>) {
        thread::scope(|scope| {
            for number in numbers {
                scope.spawn(move || self.read(number));
            }
        });
    }

    /// Has the first chunks on the disk, written.
    fn fill(&self, count: u8) {
        for number in 0..count {
            self.keeper.store(id(number), raw(number).into());
        }
        while (0..count).any(|number| !self.keeper.cache().has(id(number))) {
            thread::yield_now();
        }
    }

    fn set(&self, ill: Ill) {
        *self.health.0.lock().expect("no panic") = ill;
        self.health.1.notify_all();
    }

    fn off(&self) -> Option<String> {
        self.keeper.report().off
    }
}

#[test]
fn what_was_fetched_is_kept_and_not_fetched_again() {
    let machine = Machine::new(DISK_BYTES);
    machine.read(5);
    while !machine.keeper.cache().has(id(5)) {
        thread::yield_now();
    }
    machine.is_away.store(true, Ordering::Relaxed);
    machine.read(5);
    assert_eq!(machine.asked.load(Ordering::Relaxed), 1);
    assert_eq!(machine.off(), None);
}

#[test]
fn a_disk_that_fails_or_lies_is_given_up() {
    for ill in [Ill::Reads, Ill::Garbage] {
        let machine = Machine::new(DISK_BYTES);
        machine.fill(READS);
        machine.set(ill);
        for number in 0..READS {
            machine.read(number);
        }
        let off = machine.off().expect("given up");
        assert!(off.contains("read") || off.contains("other bytes"), "{off}");
        machine.set(Ill::No);
        machine.read(0);
        assert!(!machine.keeper.has(id(0)), "it is not asked again");
    }
}

#[test]
fn a_disk_that_cannot_be_written_is_given_up() {
    let machine = Machine::new(DISK_BYTES);
    machine.set(Ill::Writes);
    for number in 0..READS {
        machine.read(number);
    }
    while machine.off().is_none() {
        thread::yield_now();
    }
    machine.read(3);
}

#[test]
fn the_network_is_quicker_than_a_disk_that_hangs() {
    let machine = Machine::new(DISK_BYTES);
    machine.fill(READS);
    machine.set(Ill::Slow);
    machine.read_at_once(0..READS);
    assert_eq!(machine.off(), None, "it may be turning up to speed");
    let off = loop {
        machine.read_at_once(0..READS);
        if let Some(off) = machine.off() {
            break off;
        }
    };
    assert!(off.contains("in time"), "{off}");
    machine.set(Ill::No);
}

#[test]
fn a_disk_that_took_a_moment_is_used_on() {
    let machine = Machine::new(DISK_BYTES);
    machine.fill(READS);
    machine.set(Ill::Slow);
    machine.read_at_once(0..READS);
    machine.set(Ill::No);
    let asked = || machine.asked.load(Ordering::Relaxed);
    // It is raced until it was quick once; then it is asked alone.
    loop {
        let before = asked();
        machine.read(0);
        if asked() == before {
            break;
        }
    }
    assert_eq!(machine.off(), None);
}

#[test]
fn what_is_settled_outlasts_a_power_cut() {
    let machine = Machine::new(DISK_BYTES);
    for number in 0..READS {
        machine.keeper.store(id(number), raw(number).into());
    }
    assert!(machine.keeper.settle());
    // What the disk has at this moment, as another would find it.
    let disk = Device::open(&machine.directory.path().join("disk")).expect("opens");
    let cache = Cache::open(Box::new(disk)).expect("opens");
    assert!((0..READS).all(|number| cache.has(id(number))));
    machine.set(Ill::Writes);
    machine.keeper.store(id(READS), raw(READS).into());
    while machine.off().is_none() {
        machine.keeper.store(id(READS), raw(READS).into());
        machine.keeper.settle();
    }
    assert!(!machine.keeper.settle(), "nothing is kept any more");
}

#[test]
fn a_slow_disk_is_better_than_no_server() {
    let machine = Machine::new(DISK_BYTES);
    machine.fill(2);
    machine.is_away.store(true, Ordering::Relaxed);
    machine.set(Ill::Slow);
    thread::scope(|scope| {
        let reader = scope.spawn(|| machine.read(1));
        // The server is tried once the disk is late; then the disk answers.
        while machine.asked.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        machine.set(Ill::No);
        reader.join().expect("the disk's answer counts");
    });
    assert_eq!(machine.off(), None);
}

#[test]
fn a_late_disk_that_fails_leaves_the_network_without_a_racer_too() {
    for races in [0, RACES_MAX] {
        let machine = Machine::new(DISK_BYTES);
        machine.fill(1);
        machine.tiers.races.store(races, Ordering::Relaxed);
        machine.set(Ill::Slow);
        let Local::Late(late) = machine.keeper.read(id(0)) else {
            panic!("it hangs");
        };
        machine.set(Ill::Reads);
        let read = machine.tiers.race(&machine.keeper, id(0), late);
        assert_eq!(read.expect("the server has it"), raw(0));
    }
}

#[test]
fn a_full_disk_keeps_what_it_has() {
    // Room for a dozen chunks.
    let machine = Machine::new(5 << 20);
    for number in 0..40 {
        machine.read(number);
    }
    while machine.keeper.report().used_bytes < machine.keeper.report().bytes_max {
        thread::yield_now();
    }
    assert_eq!(machine.off(), None);
    machine.read(0);
}
