//! An installation that is cut at every write leaves a disk that boots whole or not at all.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;

use rootstock_core::CHUNK_BYTES;
use rootstock_image::grid::Region;
use rootstock_store::disk::{Disk, Fault, SimDisk};

use super::*;
use crate::install::mark::Mark;

const FILE: &str = "disk";
const MIB: u64 = 1 << 20;
/// Where the images' partition begins and how long it is.
const PARTITION: (u64, u64) = (MIB, 5 * CHUNK_BYTES + 1024);
/// What identity changes of the partition, as a file system would.
const OWN_AT: u64 = PARTITION.0 + 2 * CHUNK_BYTES + 4096;
const OWN: &[u8; 512] = &[0xee; 512];

/// An image, and what was fetched of it.
struct Image {
    bytes: Vec<u8>,
    grid: Grid,
    by_id: HashMap<ChunkId, Bytes>,
    fetched: AtomicU64,
    written_bytes: AtomicU64,
    there_bytes: AtomicU64,
}

impl Source for Image {
    fn chunk_at(&self, span: ChunkSpan) -> Result<ChunkId, BlockError> {
        let raw = self.raw(span);
        Ok(if is_zero(raw) {
            ChunkId::ZERO
        } else {
            ChunkId::of(raw)
        })
    }

    fn wait_turn(&self, _: usize) {}

    fn fetch(
        &self,
        ids: &[ChunkId],
        each: &mut dyn FnMut(ChunkId, Bytes) -> io::Result<()>,
    ) -> Result<io::Result<()>, ReadError> {
        for id in ids {
            self.fetched.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = each(*id, self.by_id[id].clone()) {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }

    fn is_there(&self, bytes: u64, written_bytes: u64) {
        self.there_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.written_bytes
            .fetch_add(written_bytes, Ordering::Relaxed);
    }
}

impl Image {
    fn raw(&self, span: ChunkSpan) -> &[u8] {
        &self.bytes[span.start_bytes as usize..span.end_bytes() as usize]
    }

    /// One with these chunks in its partition, the last of them short; 0 is zeros.
    fn new(table: Table, chunks: [u8; 6]) -> Self {
        let mut bytes = vec![0; (PARTITION.0 + PARTITION.1) as usize];
        let mut regions = vec![
            region(0, MIB, RegionKind::PartitionTable),
            region(PARTITION.0, PARTITION.1, RegionKind::Partition),
        ];
        for (at, byte) in chunks.into_iter().enumerate() {
            let from = (PARTITION.0 + at as u64 * CHUNK_BYTES) as usize;
            let to = bytes.len().min(from + CHUNK_BYTES as usize);
            bytes[from..to].fill(byte);
        }
        bytes[..440].fill(0xb0 + chunks[0]);
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        // More of the boot loader, in another chunk than the record.
        bytes[300_000..301_000].fill(0xb1);
        if table == Table::Gpt {
            let end = bytes.len() as u64;
            bytes.resize(bytes.len() + 33 * 512, 0);
            regions.push(region(end, 33 * 512, RegionKind::PartitionTable));
            gpt(&mut bytes);
        }
        let grid = Grid::new(bytes.len() as u64, regions).expect("a grid");
        let mut image = Self {
            bytes,
            by_id: HashMap::new(),
            fetched: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            there_bytes: AtomicU64::new(0),
            grid,
        };
        let raws = image.grid.spans().map(|span| image.raw(span).to_vec());
        let by_id = raws.map(|raw| (ChunkId::of(&raw), Bytes::from(raw)));
        image.by_id = by_id.collect();
        image
    }

    /// What a whole installation has at its front and end.
    fn ends(&self, disk_bytes: u64) -> (Vec<u8>, Option<GrownGpt>) {
        let mut gpt = grown_gpt(&self.bytes[..MIB as usize], disk_bytes).expect("fits");
        let mut front = match &mut gpt {
            Some(gpt) => std::mem::take(&mut gpt.front),
            None => self.bytes[..MIB as usize].to_vec(),
        };
        let mark = Mark {
            table: mark::table_of(&front),
            ..mark()
        };
        let block = mark.encode().expect("has room");
        front[mark::AT_BYTES as usize..].copy_from_slice(&block);
        (front, gpt)
    }

    /// Whether all of it is on the disk.
    fn is_whole_on(&self, disk: &[u8]) -> bool {
        let (front, gpt) = self.ends(disk.len() as u64);
        let (start, end) = (PARTITION.0 as usize, (PARTITION.0 + PARTITION.1) as usize);
        let mut partition = self.bytes[start..end].to_vec();
        let own = (OWN_AT - PARTITION.0) as usize;
        partition[own..own + OWN.len()].copy_from_slice(OWN);
        let has_tail = gpt.is_none_or(|gpt| disk[gpt.tail_at_bytes as usize..] == gpt.tail);
        disk.starts_with(&front) && disk[start..end] == partition && has_tail
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Table {
    Mbr,
    Gpt,
}

fn region(start_bytes: u64, len_bytes: u64, kind: RegionKind) -> Region {
    Region {
        start_bytes,
        len_bytes,
        kind,
    }
}

/// Writes a first copy of a GPT of 128 entries, of which there is one.
fn gpt(bytes: &mut [u8]) {
    let mut entries = vec![0; 128 * 128];
    entries[..32].fill(7);
    entries[32..40].copy_from_slice(&(PARTITION.0 / 512).to_le_bytes());
    let last = (PARTITION.0 + PARTITION.1) / 512 - 1;
    entries[40..48].copy_from_slice(&last.to_le_bytes());
    let mut header = [0; 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[10] = 1;
    header[12] = 92;
    header[24] = 1;
    header[32..40].copy_from_slice(&(bytes.len() as u64 / 512 - 1).to_le_bytes());
    header[72] = 2;
    header[80] = 128;
    header[84] = 128;
    header[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
    let sum = crc32(&header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    bytes[450] = 0xee;
    bytes[512..604].copy_from_slice(&header);
    bytes[1024..1024 + entries.len()].copy_from_slice(&entries);
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
    let byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc));
    !bytes.iter().fold(!0, byte)
}

fn mark() -> Mark {
    Mark {
        site: "site".to_owned(),
        node: "n1".to_owned(),
        table: None,
    }
}

fn empty(len_bytes: u64) -> SimDisk {
    let disk = SimDisk::new();
    let file = disk.create(FILE).expect("made");
    file.set_len(len_bytes)
        .and_then(|()| file.sync_data())
        .and_then(|()| disk.sync_dir(""))
        .expect("made");
    disk.crash(0)
}

fn bytes_of(disk: &SimDisk) -> Vec<u8> {
    let file = disk.open(FILE).expect("there");
    let mut bytes = vec![0; file.len().expect("known") as usize];
    file.read_at(0, &mut bytes).expect("read");
    bytes
}

fn install(disk: &SimDisk, image: &Image) -> Result<(), LayoutError> {
    let file = disk.open(FILE).map_err(reading)?;
    let layout = Layout::prepare(&*file, &image.grid, image, &mark())?;
    assert!(layout.is_marked());
    layout.begin()?;
    layout.fill(1)?;
    file.write_at(OWN_AT, OWN).map_err(writing)?;
    layout.finish()
}

fn is_bootable(disk: &[u8]) -> bool {
    disk[510..512] == [0x55, 0xaa]
}

/// Cuts the installation of `image` on `start` at every write, in several ways each;
/// a disk that boots then must be whole, of `before` or of this image.
fn cut_everywhere(start: &SimDisk, before: Option<&Image>, image: &Image) {
    let whole = start.crash(0);
    install(&whole, image).expect("installed");
    assert!(is_bootable(&bytes_of(&whole)) && image.is_whole_on(&bytes_of(&whole)));
    let mut is_unbootable_once = false;
    for nth in 0..whole.operations() {
        let disk = start.crash(0);
        disk.fail_at(nth, Fault::PowerCut);
        install(&disk, image).expect_err("no power");
        for seed in 0..6 {
            let after = disk.crash(seed);
            let bytes = bytes_of(&after);
            let is_whole = image.is_whole_on(&bytes)
                || before.is_some_and(|before| before.is_whole_on(&bytes));
            assert!(
                is_whole || !is_bootable(&bytes),
                "cut {nth}, seed {seed}: it boots with a part of an image"
            );
            is_unbootable_once |= !is_bootable(&bytes);
            install(&after, image).expect("goes on");
            assert!(image.is_whole_on(&bytes_of(&after)), "cut {nth}");
        }
    }
    assert!(is_unbootable_once, "nothing was cut");
}

#[test]
fn a_cut_leaves_a_disk_that_boots_whole_or_not_at_all() {
    for table in [Table::Mbr, Table::Gpt] {
        let first = Image::new(table, [1, 2, 3, 0, 5, 6]);
        let second = Image::new(table, [1, 2, 9, 7, 0, 6]);
        // Longer than the image, and as long as it.
        for more in [40 * 512, 0] {
            let disk = empty(first.bytes.len() as u64 + more);
            cut_everywhere(&disk, None, &first);
            install(&disk, &first).expect("installed");
            cut_everywhere(&disk.crash(0), Some(&first), &second);
        }
    }
}

#[test]
fn a_fault_of_the_disk_is_no_end() {
    let image = Image::new(Table::Gpt, [1, 2, 3, 0, 5, 6]);
    let start = empty(image.bytes.len() as u64 + 4096);
    let whole = start.crash(0);
    install(&whole, &image).expect("installed");
    for nth in 0..whole.operations() {
        let disk = start.crash(0);
        disk.fail_at(nth, Fault::Io);
        let error = install(&disk, &image).expect_err("the disk fails");
        assert_eq!(error.to_string(), "the disk cannot be written");
        let bytes = bytes_of(&disk.crash(0));
        assert!(image.is_whole_on(&bytes) || !is_bootable(&bytes), "{nth}");
    }
}

#[test]
fn only_what_differs_is_fetched_and_written() {
    let first = Image::new(Table::Gpt, [1, 2, 3, 0, 5, 6]);
    let disk = empty(first.bytes.len() as u64 + MIB);
    install(&disk, &first).expect("installed");
    let count = |image: &Image| {
        (
            image.fetched.swap(0, Ordering::Relaxed),
            image.written_bytes.swap(0, Ordering::Relaxed),
            image.there_bytes.swap(0, Ordering::Relaxed),
        )
    };
    let all = first.bytes.len() as u64;
    // Two chunks of the front, and those of the partition that are not zeros.
    let short = PARTITION.1 % CHUNK_BYTES;
    assert_eq!(count(&first), (7, 4 * CHUNK_BYTES + short, all));
    // The same again: the front, and what identity changed.
    install(&disk, &first).expect("installed");
    assert_eq!(count(&first), (3, CHUNK_BYTES, all));
    let second = Image::new(Table::Gpt, [1, 2, 3, 8, 0, 6]);
    install(&disk, &second).expect("installed");
    assert_eq!(count(&second), (4, 3 * CHUNK_BYTES, all));
}

#[test]
fn images_that_cannot_be_installed_are_said() {
    let image = Image::new(Table::Mbr, [1; 6]);
    let disk = empty(image.bytes.len() as u64 - 512);
    let error = install(&disk, &image).expect_err("too small").to_string();
    assert!(error.contains("take a larger disk"), "{error}");
    let disk = empty(image.bytes.len() as u64 + MIB);
    let whole = Image {
        grid: Grid::whole(image.bytes.len() as u64).expect("a grid"),
        ..image
    };
    let error = install(&disk, &whole).expect_err("no table").to_string();
    assert!(error.contains("no partition table"), "{error}");
    assert!(is_zero(&bytes_of(&disk)));
    let mut broken = Image::new(Table::Gpt, [1; 6]);
    broken.bytes[512 + 32] ^= 1;
    let raw = broken.raw(broken.grid.span(0)).to_vec();
    broken.by_id.insert(ChunkId::of(&raw), Bytes::from(raw));
    let error = install(&disk, &broken).expect_err("damaged").to_string();
    assert!(error.contains("GPT is damaged"), "{error}");
}
