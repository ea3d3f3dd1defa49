//! A small cache on a simulated disk.

use rootstock_cache::{Cache, Label, OpenError, Put};
use rootstock_core::ChunkId;
use rootstock_store::disk::{Disk, SimDisk};

/// The cache's file.
pub(crate) const FILE: &str = "cache";
/// A slot: the smallest, so that scripts are quick.
pub(crate) const SLOT: usize = 4096;
/// The id of these caches.
const ID: [u8; 16] = [5; 16];

/// A disk with a prepared cache of `slots`, and the changes that this took.
pub(crate) fn prepared(slots: u64) -> SimDisk {
    let disk = SimDisk::new();
    let file = disk.create(FILE).expect("a new file");
    let label = label(slots);
    file.set_len(label.end_bytes()).expect("room");
    Cache::format(&*file, &label).expect("prepared");
    disk.sync_dir("").expect("kept");
    disk.crash(0)
}

/// The label of a cache with this many slots.
pub(crate) fn label(slots: u64) -> Label {
    let one = Label::with_slots(ID, 4 << 20, SLOT as u32).expect("room");
    Label {
        slot_count: slots,
        ..one
    }
}

/// Opens what is on a disk.
pub(crate) fn open(disk: &SimDisk) -> Result<Cache, OpenError> {
    Cache::open(disk.open(FILE).map_err(OpenError::Io)?)
}

/// The bytes of chunk `number`: 1 to a slot's length of them.
pub(crate) fn chunk(number: u32) -> Vec<u8> {
    let len = if number.is_multiple_of(3) {
        1 + number as usize * 37 % SLOT
    } else {
        SLOT
    };
    let bytes = number.to_le_bytes();
    (0..len)
        .map(|at| bytes[at % 4] ^ (at / 512) as u8)
        .collect()
}

/// The id of chunk `number`.
pub(crate) fn id(number: u32) -> ChunkId {
    ChunkId::of(&chunk(number))
}

/// Puts chunk `number` near its own place.
pub(crate) fn put(cache: &Cache, number: u32) -> Put {
    cache.put(id(number), &chunk(number), number).expect("put")
}

/// What a disk has in a place, by nobody's leave but the disk's.
pub(crate) fn bytes(disk: &SimDisk, start_bytes: u64, len_bytes: u32) -> Vec<u8> {
    let mut bytes = vec![0; len_bytes as usize];
    let file = disk.open(FILE).expect("the file");
    file.read_at(start_bytes, &mut bytes).expect("readable");
    bytes
}
