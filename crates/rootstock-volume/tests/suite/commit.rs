//! Versions as disks, volumes over them, and volumes that become versions.

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use proptest::prelude::*;
use rootstock_core::{CHUNK_BYTES, ChunkId};
use rootstock_image::{
    grid::{Grid, RegionKind},
    inspect::FreeSpace,
    manifest::{Manifest, ManifestBuilder},
};
use rootstock_store::{ChunkStore, StoreOptions, disk::SimDisk, objects::MemoryObjects};
use rootstock_volume::{
    BlockDevice, BlockError, ChunkCache, CommitError, CommitOptions, CommitProgress, CommitReport,
    OverlayOptions, Segments, VersionDisk, Volume, commit,
};

use crate::bench_disk::{BLOCK, pattern, read, read_all};

const CHUNK: usize = CHUNK_BYTES as usize;

fn store() -> ChunkStore {
    let objects = Arc::new(MemoryObjects::new());
    ChunkStore::open(objects, StoreOptions::default()).expect("a store")
}

/// The version that an import of these bytes makes.
fn import(store: &ChunkStore, grid: &Grid, bytes: &[u8]) -> Manifest {
    let mut builder = ManifestBuilder::new(grid.clone());
    for span in grid.spans() {
        let chunk = &bytes[span.start_bytes as usize..span.end_bytes() as usize];
        builder.set(span.index, store.put_raw(chunk).expect("stored"));
    }
    let manifest = builder.finish(|_, page| store.put_raw(page).map(|_| ()));
    store.flush().expect("flushed");
    manifest.expect("a manifest")
}

fn version(store: &ChunkStore, manifest: Manifest) -> Arc<VersionDisk> {
    let cache = ChunkCache::new(store.clone(), 64 << 20);
    Arc::new(VersionDisk::new(manifest, Arc::new(cache)))
}

fn volume_over(version: &Arc<VersionDisk>) -> Volume {
    Volume::create(
        Arc::new(SimDisk::new()),
        "v",
        Arc::clone(version).into_base(),
        version.size_bytes(),
        OverlayOptions::default(),
    )
    .expect("a volume")
}

fn commit_all(
    volume: &Volume,
    parent: &VersionDisk,
) -> Result<(Manifest, CommitReport), CommitError> {
    let options = CommitOptions {
        free_space: FreeSpace::Drop,
        threads: 2,
    };
    let last = AtomicU64::new(0);
    let total = AtomicU64::new(0);
    let view = volume.snapshot_view().expect("a view");
    let done = commit(&view, parent, options, &|progress| {
        last.fetch_max(progress.done_bytes, Ordering::SeqCst);
        total.store(progress.total_bytes, Ordering::SeqCst);
        ControlFlow::Continue(())
    });
    assert_eq!(last.into_inner(), total.into_inner());
    done
}

/// Six chunks and a bit: data, zeros, data.
fn image() -> Vec<u8> {
    let mut bytes = pattern(3, 6 * CHUNK + 3 * BLOCK + 512);
    bytes[2 * CHUNK..4 * CHUNK].fill(0);
    bytes
}

fn imported() -> (ChunkStore, Vec<u8>, Arc<VersionDisk>) {
    let (store, bytes) = (store(), image());
    let grid = Grid::whole(bytes.len() as u64).expect("a grid");
    let manifest = import(&store, &grid, &bytes);
    let disk = version(&store, manifest);
    (store, bytes, disk)
}

#[test]
fn a_version_is_read_lazily_and_without_copies() {
    let (_, bytes, disk) = imported();
    let mut out = Segments::new();
    assert!(
        !disk
            .try_read(0, 10, &mut out)
            .expect("nothing is cached yet")
    );
    assert!(out.is_empty());
    assert_eq!(read_all(&*disk), bytes);
    assert!(
        disk.try_read(0, bytes.len() as u32, &mut out)
            .expect("all is cached")
    );
    // Two chunks, a run of zeros, two chunks and the short one.
    assert_eq!(out.iter().count(), 6);
    assert_eq!(out.to_vec(), bytes);
    let again = |out: &mut Segments| {
        out.clear();
        disk.try_read(100, 10, out).expect("cached");
        let mut place = None;
        out.for_each_slice(|slice| place = Some(slice.as_ptr()));
        place
    };
    assert_eq!(
        again(&mut out),
        again(&mut out),
        "the cache's own bytes are handed out"
    );
    let status = disk
        .status(BLOCK as u64, bytes.len() as u64 - BLOCK as u64, 10)
        .expect("status");
    let lens: Vec<_> = status
        .iter()
        .map(|e| (e.len_bytes as usize, e.zero))
        .collect();
    let (head, tail) = (2 * CHUNK - BLOCK, bytes.len() - 4 * CHUNK);
    assert_eq!(lens, [(head, false), (2 * CHUNK, true), (tail, false)]);
    assert_eq!(
        disk.status(0, bytes.len() as u64, 2).expect("status").len(),
        2
    );
    assert!(matches!(disk.write(0, b"x"), Err(BlockError::ReadOnly)));
    let beyond = disk.read(bytes.len() as u64 - 1, 2, &mut out);
    assert!(matches!(beyond, Err(BlockError::OutOfRange { .. })));
}

#[test]
fn prefetching_makes_reads_immediate() {
    let (_, bytes, disk) = imported();
    let volume = volume_over(&disk);
    volume.write(0, b"own").expect("written");
    volume.prefetch(0, bytes.len() as u64);
    let mut out = Segments::new();
    assert!(
        volume
            .try_read(0, bytes.len() as u32, &mut out)
            .expect("all is cached")
    );
    assert_eq!(out.to_vec()[..4], [b'o', b'w', b'n', bytes[3]]);
}

#[test]
fn a_missing_chunk_is_named_and_not_served() {
    let store = store();
    let mut builder = ManifestBuilder::new(Grid::whole(3 * CHUNK_BYTES).expect("a grid"));
    builder.set(1, ChunkId::of(b"never stored"));
    let manifest = builder.finish(|_, page| store.put_raw(page).map(|_| ()));
    let disk = version(&store, manifest.expect("a manifest"));
    let mut out = Segments::new();
    match disk.read(CHUNK_BYTES - 5, 10, &mut out) {
        Err(BlockError::Damaged { offset_bytes, .. }) => assert_eq!(offset_bytes, CHUNK_BYTES),
        other => panic!("{other:?}"),
    }
    assert!(out.is_empty());
    assert_eq!(read(&*disk, 0, CHUNK), vec![0; CHUNK]);
}

#[test]
fn a_commit_stores_what_changed() {
    let (store, mut bytes, disk) = imported();
    let volume = volume_over(&disk);
    let (same, report) = commit_all(&volume, &disk).expect("committed");
    assert_eq!(same.id(), disk.id(), "nothing written, nothing new");
    assert_eq!(report.chunks_read, 0);

    let new = pattern(8, 3 * BLOCK + 17);
    let place = 5 * CHUNK - BLOCK + 100;
    volume.write(place as u64, &new).expect("written");
    bytes[place..place + new.len()].copy_from_slice(&new);
    // Zeros where there was data, and data in the short last chunk.
    volume.discard(0, CHUNK as u64).expect("discarded");
    bytes[..CHUNK].fill(0);
    let end = bytes.len();
    volume.write(end as u64 - 7, b"the end").expect("written");
    bytes[end - 7..].copy_from_slice(b"the end");
    let view = volume.snapshot_view().expect("a view");
    volume.write(CHUNK as u64, b"too late").expect("written");
    let (manifest, report) = commit(
        &view,
        &disk,
        CommitOptions {
            free_space: FreeSpace::Keep,
            threads: 3,
        },
        &|_| ControlFlow::Continue(()),
    )
    .expect("committed");
    assert_eq!((report.chunks_read, report.stored.chunks), (4, 3));
    assert_eq!(
        report.stored.raw_bytes as usize,
        2 * CHUNK + 3 * BLOCK + 512
    );
    assert!(report.stored.frame_bytes > 0 && !report.regions_changed);
    assert!(read_all(&*version(&store, manifest.clone())) == bytes);
    let imported_anew = import(&store, &Grid::whole(end as u64).expect("a grid"), &bytes);
    assert_eq!(
        manifest.id(),
        imported_anew.id(),
        "as if it had been imported"
    );
}

#[test]
fn a_grown_disk_keeps_the_chunks_it_had() {
    let (store, mut bytes, disk) = imported();
    let volume = volume_over(&disk);
    volume
        .resize(bytes.len() as u64 + 3 * CHUNK_BYTES)
        .expect("grown");
    bytes.resize(bytes.len() + 3 * CHUNK, 0);
    let last = bytes.len() - 4;
    volume.write(last as u64, b"last").expect("written");
    bytes[last..].copy_from_slice(b"last");
    let (manifest, report) = commit_all(&volume, &disk).expect("committed");
    assert!(report.regions_changed);
    // The short chunk that became whole, and the new end; not the zeros between.
    assert_eq!(report.chunks_read, 2);
    assert!(read_all(&*version(&store, manifest)) == bytes);
}

#[test]
fn a_new_partition_table_makes_a_new_grid() {
    let (store, mut bytes, disk) = imported();
    let volume = volume_over(&disk);
    let mut table = vec![0; 512];
    // One Linux partition from sector 1027 to the end.
    table[446..462].copy_from_slice(&[0, 0, 0, 0, 0x83, 0, 0, 0, 3, 4, 0, 0, 0, 8, 0, 0]);
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    volume.write(0, &table).expect("written");
    bytes[..512].copy_from_slice(&table);
    let (manifest, report) = commit_all(&volume, &disk).expect("committed");
    assert!(report.regions_changed);
    let kinds: Vec<_> = manifest
        .grid()
        .regions()
        .iter()
        .map(|region| region.kind)
        .collect();
    assert!(kinds.contains(&RegionKind::Partition), "{kinds:?}");
    assert!(read_all(&*version(&store, manifest.clone())) == bytes);
    let anew = import(&store, manifest.grid(), &bytes);
    assert_eq!(manifest.id(), anew.id());
}

#[test]
fn free_space_becomes_zeros_in_changed_chunks_only() {
    let (store, bytes, disk) = imported();
    let volume = volume_over(&disk);
    // A swap area: all behind its first page is free.
    let mut header = vec![0; BLOCK];
    header[1024..1028].copy_from_slice(&1_u32.to_le_bytes());
    let pages = (bytes.len() / BLOCK) as u32;
    header[1028..1032].copy_from_slice(&(pages - 1).to_le_bytes());
    header[4086..].copy_from_slice(b"SWAPSPACE2");
    volume.write(0, &header).expect("written");
    volume
        .write(5 * CHUNK as u64, &pattern(4, BLOCK))
        .expect("written");
    let (manifest, report) = commit_all(&volume, &disk).expect("committed");
    assert!(report.disk.free.total_bytes() > 0, "{:?}", report.disk);
    let after = read_all(&*version(&store, manifest));
    assert!(after[..BLOCK] == header);
    assert!(after[BLOCK..CHUNK].iter().all(|byte| *byte == 0));
    assert!(after[CHUNK..5 * CHUNK] == bytes[CHUNK..5 * CHUNK]);
    assert!(after[5 * CHUNK..6 * CHUNK].iter().all(|byte| *byte == 0));
}

#[test]
fn a_commit_can_be_stopped_and_knows_its_parent() {
    let (store, bytes, disk) = imported();
    let volume = volume_over(&disk);
    volume.write(0, &pattern(4, 3 * CHUNK)).expect("written");
    let view = volume.snapshot_view().expect("a view");
    let options = CommitOptions {
        free_space: FreeSpace::Drop,
        threads: 2,
    };
    let stop = |_: CommitProgress| ControlFlow::Break(());
    let stopped = commit(&view, &disk, options, &stop);
    assert!(matches!(stopped, Err(CommitError::Stopped)));
    let other = import(
        &store,
        &Grid::whole(BLOCK as u64).expect("a grid"),
        &bytes[..BLOCK],
    );
    let other = version(&store, other);
    let refused = commit(&view, &other, options, &stop);
    assert!(matches!(refused, Err(CommitError::OtherParent)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// Generations of versions, each a commit of a volume over the one before.
    #[test]
    fn commits_of_commits(generations in prop::collection::vec(
        prop::collection::vec((0..6 * CHUNK, 1..2 * CHUNK, any::<u64>(), 0..4_u8), 1..6), 1..4))
    {
        let (store, mut bytes, mut disk) = imported();
        for writes in generations {
            let volume = volume_over(&disk);
            for (offset, len, seed, kind) in writes {
                let len = len.min(bytes.len() - offset);
                let at = offset..offset + len;
                if kind == 0 {
                    volume.write_zeroes(offset as u64, len as u64, rootstock_volume::Zero::MayPunch).expect("zeroed");
                    bytes[at].fill(0);
                } else {
                    let data = pattern(seed, len);
                    volume.write(offset as u64, &data).expect("written");
                    bytes[at].copy_from_slice(&data);
                }
            }
            prop_assert!(read_all(&volume) == bytes);
            let (manifest, _) = commit_all(&volume, &disk).expect("committed");
            disk = version(&store, manifest);
            prop_assert!(read_all(&*disk) == bytes);
        }
    }
}
