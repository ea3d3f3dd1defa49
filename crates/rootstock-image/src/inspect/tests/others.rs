//! XFS, Btrfs and NTFS: what is free, what is refused, and damage of all kinds.

use proptest::prelude::*;
use rootstock_core::ByteRange;

use super::{
    super::{FreeSpace, inspect},
    foreign::{
        BTRFS_FREE_BYTES, BTRFS_HEAD, NTFS_ASLEEP, NTFS_FREE_CLUSTERS, NTFS_LOG, XFS_FREE_BLOCKS,
        XFS_LOG, btrfs, mend, ntfs, ntfs_in_parts, ntfs_record, ntfs_with_file, xfs,
    },
    look, why,
};

/// What is free in a file system of this kind, in bytes.
fn free_bytes(image: &[u8], kind: &str) -> u64 {
    let report = look(image);
    assert_eq!(why(&report), "not kept");
    let fs = report.partitions[0].fs.clone().expect("a file system");
    assert_eq!(
        (fs.kind.as_str(), fs.label.as_deref()),
        (kind, Some("tiny"))
    );
    let free = report.free.total_bytes();
    assert_eq!(fs.free_bytes, Some(free));
    assert_eq!(report.free.range_count() > 0, free > 0);
    free
}

/// With these bytes in another place, and checksums that are right.
fn refused(image: &[u8], at: usize, bytes: &[u8], reason: &str) {
    let mut image = image.to_vec();
    image[at..at + bytes.len()].copy_from_slice(bytes);
    mend(&mut image);
    let report = look(&image);
    assert!(
        report.free.is_empty() && why(&report).contains(reason),
        "{reason}: {}",
        why(&report)
    );
}

/// The same, but for checksums.
fn unsealed(image: &[u8], at: usize, reason: &str) {
    let mut image = image.to_vec();
    image[at] ^= 1;
    let report = look(&image);
    assert!(
        report.free.is_empty() && why(&report).contains(reason),
        "{}",
        why(&report)
    );
}

#[test]
fn xfs_groups() {
    let image = xfs();
    assert_eq!(free_bytes(&image, "xfs"), XFS_FREE_BLOCKS * 1024);
    let report = look(&image);
    let blocks: Vec<_> = report
        .free
        .iter()
        .map(|r| (r.start / 1024, r.len / 1024))
        .collect();
    assert_eq!(blocks, [(30, 20), (52, 5), (80, 30), (168, 60)]);

    for (at, reason) in [
        (110, "superblock has a wrong checksum"),
        (512 + 100, "wrong header"),
        (3 * 512 + 100, "wrong free list"),
        (8 * 1024 + 900, "wrong tree"),
        (9 * 1024 + 900, "wrong tree"),
    ] {
        unsealed(&image, at, reason);
    }
    refused(&image, 120, &[11], "impossible sizes");
    refused(&image, 87, &[60], "impossible allocation groups");
    refused(&image, 88, &[1], "impossible allocation groups");
    refused(&image, 101, &[0xa6], "version 6");
    refused(&image, 216, &[0, 0, 2], "incompat 0x200");
    refused(&image, 216, &[0, 0, 0, 0x11], "asks for a repair");
    refused(&image, 212, &[0, 0, 0, 0x10], "ro_compat 0x10");
    refused(&image, 223, &[1], "log_incompat 0x1");
    refused(&image, 23, &[1], "realtime");
    refused(&image, 55, &[0], "another device");
    refused(&image, 99, &[200], "log lies outside");
    refused(&image, 151, &[9], "count different free space");
    let mut short = image.clone();
    short.truncate(200 * 1024);
    refused(&short, 0, b"X", "longer than its partition");
    // Free extents and what must not be in them: the log, the free list, the
    // leaf itself, another order, another count.
    let leaf = 4 * 1024 + 56;
    refused(&image, leaf, &[0, 0, 0, 18], "metadata in free blocks");
    refused(&image, 3 * 512 + 39, &[31], "metadata in free blocks");
    refused(&image, leaf + 8, &[0, 0, 0, 40], "impossible free extents");
    refused(&image, leaf + 15, &[6], "another count");
    refused(&image, 9 * 1024 + 59, &[120], "impossible free extents");
    // A leaf that leads to itself, and one that is another group's.
    refused(&image, 9 * 1024 + 12, &[0, 0, 0, 4], "wrong tree");
    refused(&image, 4 * 1024 + 51, &[1], "wrong tree");
    refused(&image, 512 + 31, &[10], "wrong header");
    refused(&image, 512 + 19, &[200], "metadata outside");
}

#[test]
fn xfs_logs() {
    let image = xfs();
    let last = XFS_LOG + 15 * 512;
    // No unmount; other operations with it; a record that goes on; none at all.
    refused(&image, XFS_LOG + 9, &[0], "was not unmounted");
    refused(&image, last + 43, &[2], "was not unmounted");
    refused(&image, last + 14, &[4, 0], "was not unmounted");
    refused(&image, last, &[0, 0, 0, 3], "was not unmounted");
    // Cycles that are not one after the other, and a log that was never written.
    refused(&image, XFS_LOG, &[0, 0, 0, 9], "cannot be understood");
    refused(&image, XFS_LOG, &[0, 0, 0, 0], "cannot be understood");
    // More of the newest cycle after it.
    refused(&image, XFS_LOG + 512, &[0, 0, 0, 4], "was not unmounted");
}

#[test]
fn btrfs_chunks_and_extents() {
    for group_tree in [false, true] {
        let image = btrfs(group_tree);
        assert_eq!(free_bytes(&image, "btrfs"), BTRFS_FREE_BYTES);
        let report = look(&image);
        let first = report.free.iter().next();
        assert_eq!(first, Some(ByteRange::new(0x10_1000, 0xf000)));
    }
    let image = btrfs(false);
    let head = BTRFS_HEAD;
    unsealed(&image, head + 1000, "superblock has a wrong checksum");
    unsealed(&image, 0x10_0000 + 3000, "trees are damaged");
    unsealed(&image, 0x18_0000 + 500, "trees are damaged");
    refused(&image, head + 48, &[1], "wrong checksum or place");
    refused(&image, head + 57, &[0, 0, 0, 1], "flags 0x100000000");
    refused(&image, head + 96, &[1], "log to be replayed");
    refused(&image, head + 136, &[2], "2 devices");
    refused(&image, head + 189, &[0x13], "incompat 0x1000");
    refused(&image, head + 180, &[0x13], "compat_ro 0x10");
    refused(&image, head + 180, &[0xb], "lacks a tree");
    refused(&image, head + 196, &[2], "only CRC-32C");
    refused(&image, head + 150, &[1], "impossible sizes");
    refused(&image, head + 212, &[1], "longer than its partition");
    refused(&image, head + 121, &[0], "block groups count other extents");
    refused(&image, head + 73, &[1], "trees are damaged");
    // A profile of more devices, and chunks on top of each other.
    let chunk = 0x10_0000 + 0x1000 - 112 - 80;
    refused(&image, chunk + 24, &[0x15], "profile 0x10");
    refused(&image, chunk + 48 + 8 + 2, &[0x10], "chunks overlap");
    refused(&image, chunk + 48, &[2], "impossible chunks");
    // Extents over another, out of their chunk, and of an unknown kind.
    let high = 0x18_3000 + 101;
    let last = high + 25 * 6;
    assert_eq!(image[last + 8], 178);
    refused(&image, last + 8, &[200], "unknown type 200");
    refused(&image, last + 8, &[169], "impossible extents");
    refused(&image, last - 25 + 9 + 2, &[9], "outside of its chunks");
    refused(&image, last - 25 + 10, &[0x30], "count other extents");
    refused(&image, high, &[1], "trees are damaged");
}

#[test]
fn ntfs_clusters() {
    let image = ntfs();
    assert_eq!(free_bytes(&image, "ntfs"), NTFS_FREE_CLUSTERS * 1024);
    let report = look(&image);
    let uuid = report.partitions[0]
        .fs
        .as_ref()
        .and_then(|fs| fs.uuid.clone());
    assert_eq!(uuid.as_deref(), Some("123456789ABCDEF0"));
    // The copy of the boot sector, after the last cluster.
    assert_eq!(
        report.free.iter().last().map(|range| range.end()),
        Some(256 * 1024)
    );

    refused(&image, 13, &[3], "impossible sizes");
    refused(&image, 64, &[0xe8], "impossible sizes");
    refused(&image, 44, &[1], "longer than its partition");
    refused(&image, 57, &[1], "does not have");
    for record in [0, 2, 3, 5, 6, 8] {
        refused(&image, ntfs_record(record) + 510, &[6], "is damaged");
        refused(&image, ntfs_record(record) + 22, &[0], "is damaged");
    }
    refused(&image, ntfs_record(1) + 40, &[6], "copy of it differ");
    // $Volume: its flags are in the second attribute.
    let flags = ntfs_record(3) + 56 + 32 + 24 + 10;
    let mirror_flags = 103 * 1024 + flags - ntfs_record(3);
    let volume = |flag: u8, major: u8, reason: &str| {
        let mut image = image.clone();
        for at in [flags, mirror_flags] {
            image[at] = flag;
            image[at - 2] = major;
        }
        refused(&image, 0, &[0xeb], reason);
    };
    volume(1, 3, "dirty");
    volume(0, 4, "version 4.1");
    refused(&image, NTFS_LOG, &[0], "log cannot be understood");
    // $Bitmap: in clusters that are free, past the end, too short, compressed.
    let bitmap = ntfs_record(6) + 56;
    refused(&image, 60 * 1024 + 7, &[0], "in free clusters");
    refused(
        &image,
        bitmap + 66,
        &[0xff],
        "clusters that it does not have",
    );
    refused(&image, bitmap + 48, &[31], "shorter than its clusters");
    refused(&image, bitmap + 12, &[1], "compressed");
    refused(&image, bitmap + 8, &[0], "no $Bitmap in clusters");
    refused(&image, bitmap + 4, &[0], "damaged");
    refused(&image, NTFS_ASLEEP, b"hibr", "hibernated");
    refused(&image, NTFS_ASLEEP + 4000, &[1], "hibernated");
    refused(&image, ntfs_record(8) + 56 + 49, &[1], "cannot be told");
    let mut awake = image.clone();
    awake[NTFS_ASLEEP..NTFS_ASLEEP + 4].copy_from_slice(b"wake");
    assert_eq!(free_bytes(&awake, "ntfs"), NTFS_FREE_CLUSTERS * 1024);
}

#[test]
fn ntfs_attribute_lists() {
    let image = ntfs_in_parts();
    assert_eq!(free_bytes(&image, "ntfs"), NTFS_FREE_CLUSTERS * 1024);
    let entry = ntfs_record(6) + 56 + 24;
    refused(&image, entry + 32, &[0x81], "do not fit together");
    refused(&image, entry + 8, &[1], "record 6 of its $MFT is damaged");
    refused(&image, entry + 16, &[10], "record 6 of its $MFT is damaged");
    refused(&image, entry + 16, &[8], "record 8 of its $MFT is damaged");
    refused(&image, entry + 16, &[200], "shorter than it says");
    refused(
        &image,
        ntfs_record(10) + 56 + 64,
        &[0],
        "do not fit together",
    );
    refused(
        &image,
        ntfs_record(10) + 56 + 65,
        &[1, 255],
        "clusters that it does not have",
    );
}

#[test]
fn ntfs_logs() {
    let page = |number: u8, flags: u8| {
        let mut page = vec![0; 4096];
        page[..8].copy_from_slice(b"RSTR\x1e\0\x09\0");
        page[17] = 16;
        page[24] = 0x40;
        page[28] = 1;
        page[0x40] = number;
        page[0x40 + 14] = flags;
        page
    };
    let log = |first: Vec<u8>, second: Vec<u8>| {
        let mut image = ntfs();
        image[NTFS_LOG..NTFS_LOG + 8192].copy_from_slice(&[first, second].concat());
        why(&look(&image)).to_owned()
    };
    assert_eq!(log(page(4, 2), page(3, 0)), "not kept");
    assert_eq!(log(page(4, 0), page(5, 2)), "not kept");
    for (first, second) in [
        (page(4, 2), page(5, 0)),
        (page(4, 0), page(3, 2)),
        (page(4, 0), page(4, 2)),
    ] {
        assert!(log(first, second).contains("log has changes"));
    }
    let mut fast = page(5, 2);
    fast[28] = 2;
    assert!(log(page(4, 2), fast).contains("as for a fast start"));
    let mut newer = page(5, 2);
    newer[28] = 3;
    assert!(log(page(4, 2), newer).contains("log cannot be understood"));
}

#[test]
fn a_disk_that_changes_is_kept_where_use_leaves_no_mark() {
    for image in [xfs(), btrfs(false), ntfs()] {
        let report = inspect(&image, FreeSpace::DropIfMarked).expect("reads");
        assert!(report.free.is_empty() && why(&report).contains("may change"));
    }
    let report = inspect(&super::ext2(), FreeSpace::DropIfMarked).expect("reads");
    assert!(!report.free.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Checksums are set right again, or nothing behind them would be reached.
    #[test]
    fn damage_ends_in_a_report(
        sample in 0..5_usize,
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let (mut image, places): (_, &[(usize, usize)]) = match sample {
            0 => (xfs(), &[(0, 256), (512, 64), (1536, 64), (4096, 100), (8192, 100), (9216, 100), (XFS_LOG, 9000)]),
            1 => (btrfs(false), &[(BTRFS_HEAD, 1024), (0x10_0000, 4096), (0x18_0000, 0x5000)]),
            2 => (btrfs(true), &[(BTRFS_HEAD, 1024), (0x10_0000, 4096), (0x18_0000, 0x5000)]),
            3 => (ntfs_in_parts(), &[(10_240, 200), (13_312, 200), (14_336, 200)]),
            _ => (ntfs(), &[(0, 96), (4096, 200), (6144, 200), (7168, 200), (9216, 300), (10_240, 200), (12_288, 200)]),
        };
        let all: usize = places.iter().map(|(_, len)| len).sum();
        for (at, byte) in flips {
            let mut at = at.index(all);
            let place = places.iter().find(|(_, len)| {
                let here = at < *len;
                at -= if here { 0 } else { *len };
                here
            });
            image[place.map_or(0, |(start, _)| *start) + at] = byte;
        }
        mend(&mut image);
        if let Some(cut) = cut {
            image.truncate(1 + cut.index(image.len()));
        }
        look(&image);
    }
}

#[test]
fn ntfs_records_in_the_place_of_others() {
    let image = ntfs();
    refused(
        &image,
        ntfs_record(6) + 44,
        &[7],
        "record 6 of its $MFT is damaged",
    );
}

#[test]
fn ntfs_shadow_copies() {
    let head = b"\x6b\x87\x08\x38\x76\xc1\x48\x4e\xb7\xae\x04\x04\x6e\x6c\xc7\x52";
    let with = |at: usize, byte: u8| {
        let mut image = ntfs();
        image[0x1e00..0x1e10].copy_from_slice(head);
        image[0x1e00 + at] = byte;
        why(&look(&image)).to_owned()
    };
    assert_eq!(with(16, 1), "not kept");
    // A catalog; shadow copies on another volume.
    for (at, byte) in [(49, 0x40), (85, 1)] {
        assert!(with(at, byte).contains("shadow copies"));
    }
}

#[test]
fn what_lies_under_others_is_kept_whole() {
    let mut xfs = xfs();
    let end = xfs.len().next_multiple_of(1 << 20);
    xfs.resize(end, 0);
    assert!(!look(&xfs).free.is_empty());
    let zfs = 0x00ba_b10c_u64.to_be_bytes();
    for (at, magic, name) in [
        (end - (64 << 10), &[0xa9, 0x2b, 0x4e, 0xfc][..], "md raid"),
        (0x8000, b"JFS1", "jfs"),
        ((128 << 10) + 5 * 1024, &zfs, "zfs"),
    ] {
        let mut image = xfs.clone();
        image[at..at + magic.len()].copy_from_slice(magic);
        let report = look(&image);
        let why = why(&report);
        let expected = format!("signatures of xfs and {name}");
        assert!(report.free.is_empty() && why.contains(&expected), "{why}");
    }
    // What lies under an array of the version 1.0 is the array's own.
    xfs[end - 16 * 512..][..4].copy_from_slice(&[0xfc, 0x4e, 0x2b, 0xa9]);
    let report = look(&xfs);
    assert!(report.free.is_empty() && why(&report).contains("of its array is damaged"));
}

#[test]
fn dynamic_disks_are_kept_whole() {
    let ntfs = ntfs();
    let mut disk = vec![0; (1 << 20) + ntfs.len()];
    disk[1 << 20..].copy_from_slice(&ntfs);
    let sectors = (ntfs.len() / 512) as u32;
    let entry = [
        &[0, 0, 0, 0, 0x07, 0, 0, 0][..],
        &2048_u32.to_le_bytes(),
        &sectors.to_le_bytes(),
    ];
    disk[446..462].copy_from_slice(&entry.concat());
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    assert!(!look(&disk).free.is_empty());
    disk[450] = 0x42;
    let report = look(&disk);
    assert!(report.free.is_empty() && why(&report).contains("dynamic disk"));
}

#[test]
fn ntfs_files_in_free_clusters() {
    // Those of another file, in use.
    assert_eq!(why(&look(&ntfs_with_file(121, 2))), "not kept");
    for (start, len, reason) in [
        (64, 1, "lies in clusters that its $Bitmap has as free"),
        (119, 2, "lies in clusters that its $Bitmap has as free"),
        (200, 1, "record 9 of its $MFT is damaged"),
    ] {
        let image = ntfs_with_file(start, len);
        let report = look(&image);
        assert!(report.free.is_empty());
        assert!(why(&report).contains(reason), "{}", why(&report));
    }
    let image = ntfs_with_file(64, 1);
    let mut unused = image.clone();
    unused[ntfs_record(9) + 22] = 0;
    assert_eq!(why(&look(&unused)), "not kept");
    refused(
        &ntfs(),
        ntfs_record(9),
        b"BAAD",
        "record 9 of its $MFT is damaged",
    );
}
