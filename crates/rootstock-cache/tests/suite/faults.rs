//! Disks that fail, rot, or are something else.

use rootstock_cache::{Cache, LABEL_BYTES, LabelError, OpenError, Put, PutError, STATE_BYTES_MAX};
use rootstock_core::ChunkId;
use rootstock_store::disk::{Disk, Fault};

use crate::bench::{FILE, SLOT, bytes, chunk, id, label, open, prepared, put};

#[test]
fn a_rotten_chunk_is_forgotten_and_never_served() {
    let disk = prepared(130);
    let cache = open(&disk).expect("opens");
    for number in 0..40 {
        put(&cache, number);
    }
    cache.checkpoint().expect("kept");
    let extent = cache.pin(id(20)).expect("kept");
    disk.flip_bit(FILE, (extent.start_bytes + 100) * 8)
        .expect("inside");
    assert!(!cache.has_lost_pinned());
    assert_eq!(cache.read(id(20)).expect("the disk works"), None);
    assert!(cache.has_lost_pinned(), "others read it past the cache");
    assert!(!cache.has(id(20)));
    assert_eq!(
        cache.read(id(21)).expect("reads").expect("there"),
        chunk(21)
    );
    // It can be put again at once, elsewhere.
    assert!(matches!(put(&cache, 20), Put::Stored { .. }));
    assert_eq!(
        cache.read(id(20)).expect("reads").expect("there"),
        chunk(20)
    );
}

#[test]
fn a_rotten_page_of_the_table_falls_back_to_what_is_checked() {
    let disk = prepared(130);
    let cache = open(&disk).expect("opens");
    put(&cache, 1);
    cache.checkpoint().expect("kept");
    // Slot 1 is given to another chunk; the older copy of the page names the first.
    cache.set_needed([]);
    cache.make_room(1).expect("forgets");
    cache.put(id(2), &chunk(2), 1).expect("put");
    cache.checkpoint().expect("kept");
    cache.checkpoint().expect("nothing to do");
    drop(cache);
    let table = label(130).end_bytes() - 130 * SLOT as u64 - (1 << 20);
    let mut rotten = 0;
    for copy in 0..2 {
        let disk = disk.crash(0);
        // Both copies lie together, before the slots: damage one.
        let at = (0..(1 << 20) / 4096)
            .map(|page| table + page * 4096)
            .filter(|at| bytes(&disk, *at, 4) == b"RSTP")
            .nth(copy)
            .expect("a page");
        disk.flip_bit(FILE, (at + 200) * 8).expect("inside");
        let cache = open(&disk).expect("opens");
        for number in [1, 2] {
            assert_eq!(cache.pin(id(number)), None, "nothing is relied on");
            let read = cache.read(id(number)).expect("the disk works");
            assert!(read.is_none_or(|raw| raw == chunk(number)));
        }
        rotten += 1;
    }
    assert_eq!(rotten, 2);
}

#[test]
fn a_failed_checkpoint_is_the_last_and_reads_go_on() {
    let disk = prepared(130);
    for nth in 0..3 {
        let disk = disk.crash(0);
        let cache = open(&disk).expect("opens");
        put(&cache, 3);
        cache.checkpoint().expect("kept");
        put(&cache, 4);
        disk.fail_at(disk.operations() + nth, Fault::Io);
        cache.checkpoint().expect_err("the disk failed");
        cache.checkpoint().expect_err("not tried again");
        let error = cache.put(id(5), &chunk(5), 5).expect_err("only read");
        assert!(matches!(error, PutError::Disk(_)));
        cache.set_state(b"more").expect_err("only read");
        assert_eq!(cache.read(id(3)).expect("reads").expect("there"), chunk(3));
        let after = open(&disk.crash(nth)).expect("opens");
        assert_eq!(after.read(id(3)).expect("reads").expect("there"), chunk(3));
    }
}

#[test]
fn a_slot_that_cannot_be_written_is_left_alone() {
    let disk = prepared(130);
    let cache = open(&disk).expect("opens");
    disk.fail_next(Fault::Io);
    cache.put(id(9), &chunk(9), 9).expect_err("the disk failed");
    assert!(!cache.has(id(9)));
    assert_eq!(cache.usage().slots_broken, 1);
    let Put::Stored { slot } = put(&cache, 9) else {
        panic!("there is room");
    };
    assert_ne!(slot, 9);
}

#[test]
fn what_is_no_chunk_is_not_put() {
    let cache = open(&prepared(130)).expect("opens");
    for raw in [&[][..], &[1; SLOT + 1]] {
        let error = cache.put(ChunkId::of(raw), raw, 0).expect_err("refused");
        assert!(matches!(error, PutError::Length { .. }));
    }
    cache
        .put(ChunkId::ZERO, &[0; SLOT], 0)
        .expect_err("refused");
}

#[test]
fn whatever_else_uses_the_disk_ends_the_cache() {
    let disk = prepared(130);
    // A partition table, LVM, ext4, bcache or md, ZFS, Btrfs.
    for at in [510, 512, 1080, 4096, 16384, 65600] {
        let disk = disk.crash(0);
        let file = disk.open(FILE).expect("the file");
        file.write_at(at, b"theirs").expect("written");
        let error = open(&disk).err().expect("no cache");
        let expected = matches!(error, OpenError::Label(LabelError::Damaged));
        assert!(expected, "{at}: {error}");
    }
    let file = disk.open(FILE).expect("the file");
    file.set_len(label(130).end_bytes() - 1).expect("cut");
    assert!(matches!(open(&disk), Err(OpenError::Short { .. })));
    file.set_len(LABEL_BYTES as u64 - 1).expect("cut");
    assert!(matches!(
        open(&disk),
        Err(OpenError::Label(LabelError::Magic))
    ));
    assert!(Cache::format(&*file, &label(130)).is_err());
}

#[test]
fn the_longest_state_fits() {
    let disk = prepared(130);
    let cache = open(&disk).expect("opens");
    let document = vec![7; STATE_BYTES_MAX];
    cache.set_state(&document).expect("kept");
    assert_eq!(open(&disk.crash(1)).expect("opens").state(), document);
}
