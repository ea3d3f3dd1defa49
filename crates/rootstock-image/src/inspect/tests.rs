//! Tables and file systems made by hand: small ones, odd ones, hostile ones.
//!
//! What real tools make is tested end to end, with those tools.

use proptest::prelude::*;
use rootstock_core::{ByteRange, units::CHUNK_BYTES};

use super::*;

mod foreign;
mod images;
mod others;
mod volumes;

use images::{Disk, GptCopy, ext2, fat12, fat16, swap};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn look(disk: &[u8]) -> DiskReport {
    let report = inspect(&disk.to_vec(), FreeSpace::Drop).expect("memory has no errors");
    // Whatever was found: the grid covers the disk, and what is free is in a
    // partition that is not kept whole.
    assert_eq!(report.grid.disk_bytes(), disk.len() as u64);
    for range in report.free.iter() {
        assert!(report.partitions.iter().any(|partition| {
            let whole = ByteRange::new(partition.start_bytes, partition.len_bytes);
            let fs = partition.fs.as_ref();
            whole.intersection(range) == Some(range)
                && fs.is_some_and(|fs| fs.kept_whole_because.is_none())
        }));
    }
    report
}

/// The regions, short: kind, start and length in KiB.
fn regions(report: &DiskReport) -> Vec<(RegionKind, u64, u64)> {
    let short = |region: &Region| {
        let (start, len) = (region.start_bytes / KIB, region.len_bytes / KIB);
        (region.kind, start, len)
    };
    report.grid.regions().iter().map(short).collect()
}

fn whole(report: &DiskReport) -> bool {
    report.grid.regions().len() == 1 && report.grid.regions()[0].kind == RegionKind::Whole
}

fn why(report: &DiskReport) -> &str {
    let fs = report.partitions[0].fs.as_ref().expect("a file system");
    fs.kept_whole_because.as_deref().unwrap_or("not kept")
}

use RegionKind::{Gap, Partition, PartitionTable};

#[test]
fn nothing_known() {
    for len in [1, 511, 512, 1024, 4096, 70_000, 300_000] {
        for fill in [0, 0xff] {
            let report = look(&vec![fill; len]);
            assert!(whole(&report) && report.free.is_empty());
            assert_eq!((report.table, report.partitions), (TableKind::None, vec![]));
        }
    }
    assert!(inspect(&Vec::new(), FreeSpace::Drop).is_err());
}

#[test]
fn mbr_with_logical_partitions() {
    let mut disk = Disk::new(16 * MIB);
    disk.mbr(0, 0, 0x83, 2048, 2048);
    disk.mbr(0, 1, 0x05, 8192, 16384);
    // Two logical partitions of 1 MiB, 1 MiB after their records.
    disk.mbr(8192, 0, 0x82, 2048, 2048);
    disk.mbr(8192, 1, 0x05, 4096, 8192);
    disk.mbr(8192 + 4096, 0, 0x83, 2048, 2048);
    disk.put(5 * MIB, &swap(256));
    let report = look(&disk.bytes);
    assert_eq!(report.table, TableKind::Mbr);
    let numbers: Vec<_> = report
        .partitions
        .iter()
        .map(|p| (p.number, p.start_bytes / MIB))
        .collect();
    assert_eq!(numbers, [(1, 1), (5, 5), (6, 7)]);
    let expected = [
        (PartitionTable, 0, 1024),
        (Partition, 1024, 1024),
        (Gap, 2048, 3072),
        (Partition, 5120, 1024),
        (Gap, 6144, 1024),
        (Partition, 7168, 1024),
        (Gap, 8192, 8192),
    ];
    assert_eq!(regions(&report), expected);
    let free: Vec<_> = report.free.iter().collect();
    assert_eq!(free, [ByteRange::new(5 * MIB + 4096, MIB - 4096)]);
    assert_eq!(report.partitions[1].type_name, "Linux swap");
}

#[test]
fn hostile_mbrs_end_as_one_region_or_lose_an_entry() {
    let with = |entries: &[(u64, usize, u8, u32, u32)]| {
        let mut disk = Disk::new(16 * MIB);
        disk.put(4 * MIB, &swap(256));
        for (sector, slot, kind, start, len) in entries {
            disk.mbr(*sector, *slot, *kind, *start, *len);
        }
        look(&disk.bytes)
    };
    // Overlaps, in both orders.
    for second in [8192 - 1, 8192 + 1, 8192, 4096] {
        let report = with(&[(0, 0, 0x82, 8192, 2048), (0, 1, 0x83, second, 4097)]);
        assert!(whole(&report) && report.free.is_empty() && report.notes.len() == 1);
    }
    // Past the end: the others count.
    let report = with(&[(0, 0, 0x82, 8192, 2048), (0, 1, 0x83, 30_000, 9_000)]);
    assert_eq!(report.partitions.len(), 1);
    assert!(!report.free.is_empty() && report.notes.len() == 1);
    // Nothing but an entry past the end: nothing is certain.
    let report = with(&[(0, 0, 0x83, u32::MAX, u32::MAX)]);
    assert!(whole(&report) && report.notes.len() == 2);
    // Over the table.
    let report = with(&[(0, 0, 0x82, 8192, 2048), (0, 1, 0x83, 0, 100)]);
    assert!(whole(&report) && report.free.is_empty());
    // A chain that bites its tail, and one that leaves its partition.
    for next in [0, 4096, 1_000_000] {
        let report = with(&[
            (0, 0, 0x05, 2048, 16384),
            (2048, 0, 0x82, 8192 - 2048, 2048),
            (2048, 1, 0x05, next, 10),
            (2048 + 4096, 1, 0x05, 0, 10),
        ]);
        assert_eq!(report.partitions.len(), 1, "{next}");
        assert_eq!((report.notes.len(), report.free.is_empty()), (1, false));
    }
    // A record of the chain inside a partition whose free space it would be.
    let report = with(&[
        (0, 0, 0x05, 2048, 16384),
        (2048, 0, 0x82, 8192 - 2048, 2048),
        (2048, 1, 0x05, 8192 + 100 - 2048, 10),
        (8192 + 100, 0, 0x83, 8192, 10),
    ]);
    assert!(whole(&report) && report.free.is_empty());
}

#[test]
fn mbr_of_a_disk_with_long_sectors() {
    let mut disk = Disk::new(16 * MIB);
    disk.mbr(0, 0, 0x82, 256, 256);
    disk.put(MIB, &swap(256));
    let report = look(&disk.bytes);
    assert_eq!(report.partitions[0].start_bytes, MIB);
    assert_eq!(report.free.total_bytes(), MIB - 4096);
}

#[test]
fn gpt_with_both_sector_sizes() {
    for sector in [512, 4096] {
        let mut disk = Disk::new(16 * MIB);
        let first = MIB / sector;
        disk.gpt(
            sector,
            &[
                (first, 2 * first - 1, "root"),
                (4 * first, 8 * first - 1, "später"),
            ],
        );
        disk.put(4 * MIB, &swap(1024));
        let report = look(&disk.bytes);
        assert_eq!(
            (report.table, report.notes.as_slice()),
            (TableKind::Gpt, &[][..])
        );
        let table_bytes = 16 * KIB + sector;
        assert_eq!(
            report.grid.regions().last().map(|r| (r.kind, r.len_bytes)),
            Some((PartitionTable, table_bytes))
        );
        let kinds: Vec<_> = report.grid.regions().iter().map(|r| r.kind).collect();
        assert_eq!(
            kinds,
            [
                PartitionTable,
                Partition,
                Gap,
                Partition,
                Gap,
                PartitionTable
            ]
        );
        assert_eq!(report.partitions[1].name.as_deref(), Some("später"));
        assert_eq!(report.free.total_bytes(), 4 * MIB - 4096);
    }
}

#[test]
fn a_damaged_gpt_falls_back_to_its_copy() {
    for sector in [512, 4096] {
        let mut disk = Disk::new(16 * MIB);
        let first = MIB / sector;
        disk.gpt(sector, &[(first, 2 * first - 1, "root")]);
        let clean = look(&disk.bytes);
        for part in ["header", "entries"] {
            let damaged = disk.with_damage(sector, GptCopy::Primary, part);
            let report = look(&damaged.bytes);
            assert_eq!(report.partitions, clean.partitions, "{sector} {part}");
            assert_eq!(report.grid, clean.grid);
            assert_eq!(report.notes.len(), 1);
            // The second copy alone is not missed, but noted.
            let damaged = disk.with_damage(sector, GptCopy::Backup, part);
            let report = look(&damaged.bytes);
            assert_eq!(report.partitions, clean.partitions);
            assert_eq!(report.notes.len(), 1);
            // Without both there is no cutting, and nothing is free.
            let damaged = damaged.with_damage(sector, GptCopy::Primary, part);
            let report = look(&damaged.bytes);
            assert!(whole(&report) && report.partitions.is_empty());
        }
    }
}

#[test]
fn a_gpt_goes_to_a_longer_disk() {
    let mut image = Disk::new(16 * MIB);
    image.gpt(512, &[(2048, 8191, "EFI"), (8192, 24_575, "root")]);
    let before = partitions(&image.bytes).expect("read");
    let mut disk = Disk::new(48 * MIB + 1536);
    let front = &image.bytes[..MIB as usize];
    let grown = grown_gpt(front, disk.bytes.len() as u64);
    let grown = grown.expect("fits").expect("is a GPT");
    disk.put(0, &grown.front);
    disk.put(grown.tail_at_bytes, &grown.tail);
    let end = grown.tail_at_bytes + grown.tail.len() as u64;
    assert_eq!(end, disk.bytes.len() as u64);
    let report = inspect(&disk.bytes, FreeSpace::Keep).expect("read");
    assert_eq!(report.notes, Vec::<String>::new());
    assert_eq!(report.partitions, before);
    // Either copy holds alone, and the same again changes nothing.
    let alone = disk.with_damage(512, GptCopy::Primary, "header");
    assert_eq!(partitions(&alone.bytes).expect("read"), before);
    let again = grown_gpt(&grown.front, disk.bytes.len() as u64);
    assert_eq!(again.expect("fits"), Some(grown));

    let damaged = image.with_damage(512, GptCopy::Primary, "header");
    let front = &damaged.bytes[..MIB as usize];
    assert_eq!(grown_gpt(front, 48 * MIB), Err(GrowError::Damaged));
    let front = &image.bytes[..MIB as usize];
    let small = GrowError::TooSmall { disk_bytes: 20_000 };
    assert_eq!(grown_gpt(front, 20_000), Err(small));
    for front in [&[][..], &[0; 600], &Disk::new(MIB).bytes] {
        assert_eq!(grown_gpt(front, 48 * MIB), Ok(None));
    }
}

#[test]
fn hostile_gpts() {
    let with = |entries: &[(u64, u64, &str)]| {
        let mut disk = Disk::new(16 * MIB);
        disk.put(4 * MIB, &swap(256));
        disk.gpt(512, entries);
        look(&disk.bytes)
    };
    // Overlaps, over the first copy, over the second copy.
    for bad in [(9000, 9100), (3, 40), (32_760, 32_767)] {
        let report = with(&[(8192, 10_239, "swap"), (bad.0, bad.1, "bad")]);
        assert!(whole(&report) && report.free.is_empty(), "{bad:?}");
        assert_eq!(report.partitions.len(), 2);
    }
    // Past the end, backwards, and the largest numbers.
    for bad in [
        (32_000, 33_000),
        (20_000, 19_999),
        (0, u64::MAX),
        (u64::MAX, u64::MAX),
        (1 << 60, 1 << 61),
    ] {
        let report = with(&[(8192, 10_239, "swap"), (bad.0, bad.1, "bad")]);
        assert_eq!(report.partitions.len(), 1, "{bad:?}");
        assert_eq!(report.notes.len(), 1);
        assert_eq!(report.free.total_bytes(), MIB - 4096);
    }
}

#[test]
fn a_missing_end_is_told() {
    let mut mbr = Disk::new(16 * MIB);
    mbr.mbr(0, 0, 0x83, 2048, 8192);
    mbr.mbr(0, 1, 0x83, 10_240, 22_528);
    let mut logical = Disk::new(16 * MIB);
    logical.mbr(0, 0, 0x05, 2048, 30_720);
    logical.mbr(2048, 0, 0x83, 2048, 28_672);
    let mut gpt = Disk::new(16 * MIB);
    gpt.gpt(512, &[(8192, 10_239, "root")]);
    let mut long = Disk::new(16 * MIB);
    long.gpt(4096, &[(1024, 1279, "root")]);
    for (name, disk) in [
        ("mbr", mbr),
        ("logical", logical),
        ("gpt", gpt),
        ("4096", long),
    ] {
        assert_eq!(look(&disk.bytes).table_says_bytes, None, "{name}");
        for len in [16 * MIB - 512, 9 * MIB] {
            let report = look(&disk.bytes[..len as usize]);
            assert_eq!(report.table_says_bytes, Some(16 * MIB), "{name} {len}");
        }
        // More than there has to be is no sign of anything.
        let more = [disk.bytes.as_slice(), &[0; 4096]].concat();
        assert_eq!(look(&more).table_says_bytes, None, "{name}");
    }
    assert_eq!(look(&swap(64)).table_says_bytes, None);
}

#[test]
fn swap_keeps_its_header_and_a_sleeping_system() {
    let report = look(&swap(64));
    let free: Vec<_> = report.free.iter().collect();
    assert_eq!(free, [ByteRange::new(4096, 63 * 4096)]);
    let fs = report.partitions[0].fs.clone().expect("swap");
    assert_eq!(
        (fs.kind.as_str(), fs.label.as_deref()),
        ("swap", Some("sleepy"))
    );

    let mut asleep = swap(64);
    asleep[4086..4096].copy_from_slice(b"S1SUSPEND\0");
    let report = look(&asleep);
    assert_eq!(
        (why(&report), report.free.is_empty()),
        ("a hibernated system is in it", true)
    );

    let mut short = swap(64);
    short.truncate(60 * 4096);
    let report = look(&short);
    assert!(report.free.is_empty() && why(&report).contains("64 pages"));

    let kept = inspect(&swap(64), FreeSpace::Keep).expect("reads");
    assert!(kept.free.is_empty());
    assert_eq!(
        kept.partitions[0].fs.as_ref().and_then(|fs| fs.free_bytes),
        Some(63 * 4096)
    );
}

#[test]
fn fat_clusters() {
    for (disk, kind, cluster, clusters) in [
        (fat12(), "fat12", 512, 2000),
        (fat16(), "fat16", 2048, 5000),
    ] {
        let report = look(&disk.bytes);
        assert_eq!(why(&report), "not kept");
        let fs = report.partitions[0].fs.clone().expect("fat");
        assert_eq!(
            (fs.kind.as_str(), fs.uuid.as_deref()),
            (kind, Some("1234-ABCD"))
        );
        // Clusters 2, 3 and 10 are in use.
        assert_eq!(fs.free_bytes, Some((clusters - 3) * cluster));
        assert_eq!(report.free.range_count(), 2);
        assert_eq!(report.free.total_bytes(), (clusters - 3) * cluster);

        let refuses = |change: &dyn Fn(&mut Disk), reason: &str| {
            let mut disk = disk.clone();
            change(&mut disk);
            let report = look(&disk.bytes);
            assert!(
                report.free.is_empty() && why(&report).contains(reason),
                "{}",
                why(&report)
            );
        };
        refuses(&|disk| disk.bytes[37] |= 1, "in use");
        refuses(&|disk| disk.bytes[512 + 100] ^= 1, "differ");
        refuses(
            &|disk| disk.bytes.truncate(600 * 1024),
            "longer than its partition",
        );
        if kind == "fat16" {
            refuses(&|disk| disk.both_fats(3, 0x7f), "not unmounted");
            refuses(&|disk| disk.both_fats(3, 0xbf), "disk errors");
        }
    }
}

#[test]
fn ext_groups() {
    let disk = ext2();
    let report = look(&disk);
    assert_eq!(why(&report), "not kept");
    let fs = report.partitions[0].fs.clone().expect("ext2");
    assert_eq!(
        (fs.kind.as_str(), fs.label.as_deref()),
        ("ext2", Some("tiny"))
    );
    assert_eq!(fs.free_bytes, Some(images::EXT_FREE_BLOCKS * KIB));
    assert_eq!(report.free.total_bytes(), images::EXT_FREE_BLOCKS * KIB);
    assert!(!report.free.contains(ByteRange::new(0, KIB)));

    let refuses = |at: usize, bytes: &[u8], reason: &str| {
        let mut disk = disk.clone();
        disk[at..at + bytes.len()].copy_from_slice(bytes);
        let report = look(&disk);
        assert!(
            report.free.is_empty() && why(&report).contains(reason),
            "{reason}: {}",
            why(&report)
        );
    };
    let sb = 1024;
    refuses(sb + 58, &[0, 0], "in use");
    refuses(sb + 58, &[3, 0], "errors were found");
    refuses(sb + 96, &[4, 0, 0, 0], "journal has to be replayed");
    refuses(
        sb + 96,
        &[0, 0, 0, 0x80],
        "features unknown here (incompat 0x80000000)",
    );
    refuses(
        sb + 100,
        &[0, 0, 0, 0x80],
        "features unknown here (ro_compat 0x80000000)",
    );
    refuses(sb + 24, &[60, 0, 0, 0], "impossible sizes");
    refuses(sb + 32, &[0, 0, 0, 0], "impossible block groups");
    refuses(sb + 4, &[0xff, 0xff, 0, 0], "longer than its partition");
    // The count of free blocks, and the places of the bitmap and the inodes.
    refuses(2048 + 12, &[1, 0], "counts 1 free");
    refuses(2048, &[0xff, 0xff, 0, 0], "outside the file system");
    refuses(2048 + 8, &[0xff, 3, 0, 0], "outside the file system");
    refuses(3 * 1024, &[0x0f], "metadata in free blocks");
}

#[test]
fn two_signatures_are_one_too_many() {
    let mut disk = ext2();
    disk[4086..4096].copy_from_slice(b"SWAPSPACE2");
    let report = look(&disk);
    assert!(report.free.is_empty() && why(&report).contains("signatures of ext and swap"));
}

#[test]
fn others_are_named_and_kept_whole() {
    let cases: [(usize, &[u8], &str); 6] = [
        (0, b"XFSB", "xfs"),
        (3, b"NTFS    ", "ntfs"),
        (0x10040, b"_BHRfS_M", "btrfs"),
        (0, b"LUKS\xba\xbe", "luks"),
        (0x8001, b"CD001", "iso9660"),
        (
            512,
            b"LABELONE\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0LVM2 001",
            "lvm2 physical volume",
        ),
    ];
    for (at, magic, name) in cases {
        let mut disk = vec![0; 128 * 1024];
        disk[at..at + magic.len()].copy_from_slice(magic);
        let report = look(&disk);
        let fs = report.partitions[0].fs.clone().expect(name);
        assert_eq!(fs.kind, name);
        assert!(report.free.is_empty() && fs.kept_whole_because.is_some());
    }
}

#[test]
fn the_source_s_own_errors_are_errors() {
    struct Broken;
    impl ReadAt for Broken {
        fn read_exact_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Err(io::Error::other("bad sector"))
        }
        fn len_bytes(&self) -> u64 {
            CHUNK_BYTES
        }
    }
    let error = inspect(&Broken, FreeSpace::Drop).expect_err("fails");
    assert_eq!(error.to_string(), "bad sector");
}

#[test]
fn reports_go_through_json() {
    let report = look(&swap(64));
    let text = serde_json::to_string(&report.partitions).expect("writes");
    let back: Vec<PartitionReport> = serde_json::from_str(&text).expect("reads");
    assert_eq!(back, report.partitions);
}

/// One valid disk of each kind.
fn samples() -> Vec<Vec<u8>> {
    let mut mbr = Disk::new(8 * MIB);
    mbr.mbr(0, 0, 0x83, 2048, 2048);
    mbr.mbr(0, 1, 0x05, 8192, 8192);
    mbr.mbr(8192, 0, 0x82, 2048, 2048);
    mbr.put(MIB, &ext2());
    mbr.put(5 * MIB, &swap(256));
    let mut gpt = Disk::new(8 * MIB);
    gpt.gpt(512, &[(2048, 4095, "a"), (8192, 10_239, "b")]);
    gpt.put(MIB, &ext2());
    vec![
        mbr.bytes,
        gpt.bytes,
        ext2(),
        swap(64),
        fat12().bytes,
        fat16().bytes,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damage_ends_in_a_report(sample in 0..6_usize, flips in prop::collection::vec((any::<u16>(), any::<u8>(), 0..3_u8), 1..12), cut in prop::option::of(any::<prop::sample::Index>())) {
        let mut disk = samples().swap_remove(sample);
        for (at, byte, place) in flips {
            // Most of what is parsed is in the first sectors of disk or partition.
            let at = match place {
                0 => usize::from(at) % 4096,
                1 => MIB as usize + usize::from(at) % 8192,
                _ => usize::from(at) * 64,
            };
            let len = disk.len();
            disk[at % len] = byte;
        }
        if let Some(cut) = cut {
            disk.truncate(1 + cut.index(disk.len()));
        }
        look(&disk);
    }
}
