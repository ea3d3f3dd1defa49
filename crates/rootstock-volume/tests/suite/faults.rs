//! A full disk, a failing one, one that rots, and what opening refuses.

use std::sync::Arc;

use rootstock_core::Digest;
use rootstock_store::disk::{Disk, Fault, RealDisk, SimDisk};
use rootstock_volume::{
    Base, BlockDevice, BlockError, OpenError, OverlayOptions, ResizeError, Segments, Volume, Zero,
};

use crate::bench_disk::{BLOCK, Setup, arc, base_of, pattern, read, read_all};

fn setup() -> Setup {
    Setup {
        base: pattern(1, 64 * BLOCK),
        size_bytes: 64 * BLOCK as u64,
        options: OverlayOptions::default(),
    }
}

#[test]
fn a_full_disk_loses_nothing() {
    let setup = setup();
    let disk = SimDisk::new();
    let volume = setup.create(Arc::new(disk.clone())).expect("a volume");
    volume.write(0, &pattern(2, 8 * BLOCK)).expect("written");
    volume.flush().expect("flushed");
    volume.write(0, &pattern(3, 2 * BLOCK)).expect("written");
    disk.set_capacity_bytes(Some(disk.used_bytes()));
    let before = read_all(&volume);
    let error = volume.write(20 * BLOCK as u64, &pattern(4, 8 * BLOCK));
    assert!(
        matches!(error, Err(BlockError::NoSpace { .. })),
        "{error:?}"
    );
    let error = volume.flush();
    assert!(
        matches!(error, Err(BlockError::NoSpace { .. })),
        "{error:?}"
    );
    assert_eq!(read_all(&volume), before);
    // What frees slots makes room for other writes without any more space.
    volume
        .discard(0, BLOCK as u64)
        .expect("discarding needs none");
    disk.set_capacity_bytes(None);
    volume.flush().expect("there is space again");
    let after = read_all(&volume);
    assert_eq!(after[BLOCK..], before[BLOCK..]);
    drop(volume);
    let volume = setup.open(&arc(disk.crash(1))).expect("opens");
    assert_eq!(read_all(&volume), after);
}

#[test]
fn a_failed_sync_is_not_believed_the_second_time() {
    // The simulated disk, as kernels do, forgets some of what a failed sync should
    // have written, and says that all is well when asked again.
    for seed in 0..20 {
        // The first one begins the notes of recent writes, which are no part of it.
        for operation in 1..4 {
            let setup = setup();
            let disk = SimDisk::new();
            let volume = setup.create(Arc::new(disk.clone())).expect("a volume");
            volume.write(0, &pattern(2, 30 * BLOCK)).expect("written");
            disk.fail_at(disk.operations() + operation, Fault::Io);
            assert!(matches!(volume.flush(), Err(BlockError::Io { .. })));
            volume
                .write(5 * BLOCK as u64, &pattern(seed, BLOCK))
                .expect("written");
            let expected = read_all(&volume);
            volume.flush().expect("the disk is well again");
            let reopened = setup.open(&arc(disk.crash(seed))).expect("opens");
            assert!(read_all(&reopened) == expected, "seed {seed}");
        }
    }
}

#[test]
fn rot_is_named_and_never_served() {
    let setup = setup();
    let disk = SimDisk::new();
    let volume = setup.create(Arc::new(disk.clone())).expect("a volume");
    let data = pattern(2, 4 * BLOCK);
    volume.write(8 * BLOCK as u64, &data).expect("written");
    volume.flush().expect("flushed");
    disk.flip_bit("v/data", 8 * (2 * BLOCK as u64 + 77))
        .expect("a bit");
    let mut out = Segments::new();
    let error = volume.read(8 * BLOCK as u64, 4 * BLOCK as u32, &mut out);
    match error {
        Err(BlockError::Damaged { offset_bytes, .. }) => {
            assert_eq!(offset_bytes, 10 * BLOCK as u64);
        }
        other => panic!("{other:?}"),
    }
    assert!(out.is_empty());
    // A write to a part of the block would hide the damage under a new checksum.
    assert!(volume.write(10 * BLOCK as u64 + 5, b"x").is_err());
    assert_eq!(
        read(&volume, 8 * BLOCK as u64, 2 * BLOCK),
        data[..2 * BLOCK]
    );
    volume
        .write(10 * BLOCK as u64, &data[..BLOCK])
        .expect("a whole block mends it");
    assert_eq!(read(&volume, 10 * BLOCK as u64, BLOCK), data[..BLOCK]);
}

#[test]
fn rot_in_the_log_is_told_from_a_torn_end() {
    let setup = setup();
    let disk = SimDisk::new();
    let volume = setup.create(Arc::new(disk.clone())).expect("a volume");
    let log = "v/map-0000000000000001";
    let first_end = disk.open(log).expect("the log").len().expect("its length");
    for seed in 0..3 {
        volume
            .write(seed * BLOCK as u64, &pattern(seed, BLOCK))
            .expect("written");
        volume.flush().expect("flushed");
    }
    drop(volume);
    for (at, expected) in [
        (3, "header"),
        (100, "full map"),
        (first_end + 50, "follows it"),
    ] {
        let damaged = disk.crash(0);
        damaged.flip_bit(log, at * 8).expect("a bit");
        match setup.open(&arc(damaged)) {
            Err(OpenError::Damaged { what, .. }) => assert!(what.contains(expected), "{what}"),
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("a damaged log was believed at byte {at}"),
        }
    }
}

#[test]
fn a_data_file_that_ends_too_early_is_refused_at_open() {
    let setup = setup();
    let disk = SimDisk::new();
    let volume = setup.create(Arc::new(disk.clone())).expect("a volume");
    volume.write(0, &pattern(2, 4 * BLOCK)).expect("written");
    volume.flush().expect("flushed");
    drop(volume);
    assert!(setup.open(&arc(disk.crash(0))).is_ok());
    let cut = disk.crash(0);
    let data = cut.open("v/data").expect("the data");
    data.set_len(3 * BLOCK as u64).expect("cut");
    match setup.open(&arc(cut)) {
        Err(OpenError::Damaged { offset_bytes, .. }) => {
            assert_eq!(offset_bytes, 3 * BLOCK as u64);
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("a block that is not there was believed"),
    }
}

#[test]
fn space_is_given_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(dir.path()).expect("a disk"));
    let setup = Setup {
        base: pattern(1, BLOCK),
        size_bytes: 1 << 30,
        options: OverlayOptions::default(),
    };
    let volume = setup.create(disk.clone()).expect("a volume");
    let data = pattern(2, 4 << 20);
    volume.write(0, &data).expect("written");
    volume.flush().expect("flushed");
    assert_eq!(read(&volume, 0, data.len()), data);
    assert_eq!(volume.stats().used_bytes, 4 << 20);
    let view = volume.snapshot_view().expect("a view");
    volume.discard(0, 2 << 20).expect("discarded");
    volume
        .write_zeroes(2 << 20, 1 << 20, Zero::MayPunch)
        .expect("zeroed");
    volume.flush().expect("flushed");
    assert_eq!(volume.stats().used_bytes, 4 << 20, "the view holds it");
    assert_eq!(read(&view, 0, data.len()), data);
    drop(view);
    assert_eq!(volume.stats().used_bytes, 1 << 20);
    let allocated = || {
        use std::os::unix::fs::MetadataExt;
        let file = std::fs::metadata(dir.path().join("v/data")).expect("the data file");
        file.blocks() * 512
    };
    assert!(
        allocated() <= 1 << 20,
        "{} B are still allocated",
        allocated()
    );
    // Overwriting between flushes does not make the file longer.
    for seed in 0..20 {
        volume
            .write(3 << 20, &pattern(seed, 1 << 20))
            .expect("written");
    }
    assert!(volume.stats().used_bytes <= 3 << 20);
    volume.reset().expect("reset");
    assert_eq!(volume.stats().used_bytes, 0);
    assert_eq!(read(&volume, 0, BLOCK), setup.base);
    drop(volume);
    assert_eq!(
        read(&setup.open(&disk).expect("opens"), 0, BLOCK),
        setup.base
    );
    Volume::delete(&*disk, "v").expect("deleted");
    Volume::delete(&*disk, "v").expect("deleting again does no harm");
    assert!(matches!(
        setup.open(&disk),
        Err(OpenError::Io { .. } | OpenError::NotAVolume { .. })
    ));
}

#[test]
fn snapshots_and_ephemeral_volumes_on_a_real_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(dir.path()).expect("a disk"));
    let setup = setup();
    let volume = setup.create(disk.clone()).expect("a volume");
    volume
        .write(4096 * 3 + 5, &pattern(2, 50_000))
        .expect("written");
    volume.discard(0, 8192).expect("discarded");
    let view = volume.snapshot_view().expect("a view");
    let expected = read_all(&view);
    volume.write(0, &pattern(9, 60_000)).expect("written");
    view.copy_to(disk.clone(), "copy", setup.options)
        .expect("copied");
    let copy = Volume::open(&disk, "copy", base_of(&setup.base), setup.options);
    let copy = copy.expect("opens");
    assert_eq!(read_all(&copy), expected);
    copy.write(0, b"its own").expect("written");
    assert_eq!(read_all(&view), expected);
    assert!(matches!(
        view.copy_to(disk.clone(), "copy", setup.options),
        Err(OpenError::Exists { .. })
    ));

    let ephemeral = Volume::create_ephemeral(
        &*disk,
        "gone",
        base_of(&setup.base),
        setup.size_bytes,
        setup.options,
    );
    let ephemeral = ephemeral.expect("an ephemeral volume");
    ephemeral.write(100, &pattern(3, 70_000)).expect("written");
    ephemeral.flush().expect("flushed");
    ephemeral.write(200, &pattern(4, 70_000)).expect("written");
    assert_eq!(read(&ephemeral, 200, 70_000), pattern(4, 70_000));
    let view = ephemeral.snapshot_view().expect("a view");
    ephemeral.reset().expect("reset");
    assert_eq!(read_all(&ephemeral), setup.first());
    assert_eq!(read(&view, 200, 70_000), pattern(4, 70_000));
    assert!(disk.list("gone").expect("a directory").is_empty());
}

#[test]
fn what_opening_and_resizing_refuse() {
    let setup = setup();
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let volume = setup.create(Arc::clone(&disk)).expect("a volume");
    assert!(matches!(
        setup.create(Arc::clone(&disk)),
        Err(OpenError::Exists { .. })
    ));
    let error = volume.resize(5).expect_err("shrinking loses data");
    assert!(matches!(error, ResizeError::Shrink { .. }));
    assert!(matches!(
        volume.resize(u64::MAX),
        Err(ResizeError::TooLarge { .. })
    ));
    let mut out = Segments::new();
    let size = volume.size_bytes();
    assert!(matches!(
        volume.read(size, 1, &mut out),
        Err(BlockError::OutOfRange { .. })
    ));
    assert!(matches!(
        volume.write(u64::MAX, b"xx"),
        Err(BlockError::OutOfRange { .. })
    ));
    let view = volume.snapshot_view().expect("a view");
    assert!(matches!(view.write(0, b"x"), Err(BlockError::ReadOnly)));
    drop((view, volume));
    let other = Base {
        id: Digest::of(b"another version"),
        ..base_of(&setup.base)
    };
    let error = Volume::open(&disk, "v", other, setup.options);
    assert!(matches!(error, Err(OpenError::OtherBase { .. })));
    let small = Setup {
        size_bytes: 1,
        ..setup
    };
    assert!(matches!(small.create(disk), Err(OpenError::Size { .. })));
}

#[test]
fn a_huge_volume_is_made_and_discarded_at_once() {
    let setup = Setup {
        base: pattern(1, BLOCK),
        size_bytes: 16 << 40,
        options: OverlayOptions::default(),
    };
    let disk = SimDisk::new();
    let volume = setup.create(Arc::new(disk.clone())).expect("a volume");
    volume.write(8 << 40, b"far out").expect("written");
    volume.discard(0, 16 << 40).expect("discarded");
    volume.flush().expect("flushed");
    assert!(disk.used_bytes() < 20_000, "{} B", disk.used_bytes());
    let status = volume.status(0, 16 << 40, 10).expect("status");
    assert_eq!(status.len(), 1);
    drop(volume);
    let volume = setup.open(&arc(disk)).expect("opens");
    assert_eq!(read(&volume, 0, BLOCK), vec![0; BLOCK]);
}

#[test]
fn what_an_open_believed_stays() {
    // Each operation of a reset fails once, the daemon gives up and is started
    // again, writes over what is free now, and the power goes.
    for operation in 0..8 {
        for seed in 0..10 {
            let setup = setup();
            let disk = SimDisk::new();
            let volume = setup.create(Arc::new(disk.clone())).expect("a volume");
            volume.write(0, &pattern(2, 30 * BLOCK)).expect("written");
            volume.flush().expect("flushed");
            disk.fail_at(disk.operations() + operation, Fault::Io);
            let _ = volume.reset();
            drop(volume);
            let volume = setup.open(&arc(disk.clone())).expect("opens");
            let believed = read_all(&volume);
            volume
                .write(0, &pattern(3, 40 * BLOCK))
                .expect("written, not flushed");
            let reopened = setup.open(&arc(disk.crash(seed))).expect("opens");
            assert!(
                read_all(&reopened) == believed,
                "operation {operation}, seed {seed}"
            );
        }
    }
}

#[test]
fn a_failed_compaction_is_overtaken() {
    for operation in 0..60 {
        let setup = Setup {
            options: OverlayOptions {
                log_bytes_min: 300,
                ..OverlayOptions::default()
            },
            ..setup()
        };
        let disk = SimDisk::new();
        let volume = setup.create(Arc::new(disk.clone())).expect("a volume");
        disk.fail_at(disk.operations() + operation, Fault::Io);
        for block in 0..16 {
            let offset = block % 5 * BLOCK as u64;
            // One of these fails, and the next takes its writes along.
            let _ = volume.write(offset, &pattern(block, BLOCK));
            let _ = volume.flush();
        }
        volume.flush().expect("the disk is well again");
        let expected = read_all(&volume);
        for seed in 0..6 {
            let reopened = setup.open(&arc(disk.crash(seed))).expect("opens");
            assert!(
                read_all(&reopened) == expected,
                "operation {operation}, seed {seed}"
            );
        }
    }
}
