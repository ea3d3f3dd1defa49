//! LVM and md: what is free in volumes, what is refused, and damage of all kinds.

use proptest::prelude::*;

use super::{
    super::{FreeSpace, checksum::crc_lvm, inspect},
    images::{ext2, swap},
    look, why,
};

/// Where the extents begin, and how long one is.
const DATA: usize = 64 << 10;
const EXTENT: usize = 128 << 10;
const EXTENTS: usize = 24;

/// The only metadata area, and its header's length.
const AREA: usize = 4096;
const HEAD: usize = 512;

const UUID: &str = "0123456789abcdefghijklmnopqrstuv";

/// A group: `home` in two pieces that are not in its order, `swap` in one.
fn description() -> String {
    let segment = |at: usize, start: usize, count: usize, place: usize| {
        format!(
            "segment{at} {{ start_extent = {start} extent_count = {count} type = \"striped\" \
             stripe_count = 1 # linear\n stripes = [ \"pv0\", {place} ] }}\n"
        )
    };
    let volume = |name: &str, segments: &[String]| {
        format!(
            "{name} {{ id = \"x\" status = [\"READ\", \"WRITE\", \"VISIBLE\"] flags = []\n\
             segment_count = {}\n{} }}\n",
            segments.len(),
            segments.concat()
        )
    };
    let home = volume("home", &[segment(1, 0, 2, 10), segment(2, 2, 6, 2)]);
    let swap = volume("swap", &[segment(1, 0, 4, 16)]);
    format!(
        "lab {{ id = \"g\" seqno = 3 format = \"lvm2\" # informational\n\
         status = [\"RESIZEABLE\", \"READ\", \"WRITE\"] flags = []\n\
         extent_size = 256 max_lv = 0 max_pv = 0 metadata_copies = 0\n\
         physical_volumes {{ pv0 {{\n\
         id = \"012345-6789-abcd-efgh-ijkl-mnop-qrstuv\" device = \"/dev/sda\"\n\
         status = [\"ALLOCATABLE\"] flags = [] dev_size = 6272 pe_start = 128 pe_count = {EXTENTS} }} }}\n\
         logical_volumes {{ {home} {swap} }} }}\n\
         contents = \"Text Format Volume Group\"\nversion = 1\ndescription = \"\"\n\0"
    )
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A physical volume with a description that begins here in its ring.
fn physical(text: &str, start: usize) -> Vec<u8> {
    let mut image = vec![0; DATA + EXTENTS * EXTENT];
    let label = 512;
    put(&mut image, label, b"LABELONE\x01");
    put(&mut image, label + 20, &32_u32.to_le_bytes());
    put(&mut image, label + 24, b"LVM2 001");
    put(&mut image, label + 32, UUID.as_bytes());
    let len = image.len() as u64;
    let numbers = [
        len,
        DATA as u64,
        0,
        0,
        0,
        AREA as u64,
        (DATA - AREA) as u64,
        0,
        0,
        2 | 1 << 32,
    ];
    for (at, number) in numbers.iter().enumerate() {
        put(&mut image, label + 64 + at * 8, &number.to_le_bytes());
    }
    put(&mut image, AREA + 4, b" LVM2 x[5A%r0N*>\x01");
    let numbers = [AREA, DATA - AREA, start, text.len()];
    for (at, number) in numbers.iter().enumerate() {
        put(
            &mut image,
            AREA + 24 + at * 8,
            &(*number as u64).to_le_bytes(),
        );
    }
    for (at, byte) in text.bytes().enumerate() {
        let place = start + at;
        let ring = DATA - AREA;
        let place = if place < ring {
            place
        } else {
            place - ring + HEAD
        };
        image[AREA + place] = byte;
    }
    put(
        &mut image,
        AREA + 56,
        &crc_lvm(text.as_bytes()).to_le_bytes(),
    );
    mend(&mut image);
    image
}

/// Sets the checksums of the label and of the area's header right.
fn mend(image: &mut [u8]) {
    let sum = crc_lvm(&image[512 + 20..1024]);
    put(image, 512 + 16, &sum.to_le_bytes());
    let sum = crc_lvm(&image[AREA + 4..AREA + HEAD]);
    put(image, AREA, &sum.to_le_bytes());
}

/// The same with file systems in the volumes.
fn filled(text: &str) -> Vec<u8> {
    let mut image = physical(text, HEAD);
    let extent = |at: usize| DATA + at * EXTENT;
    let home = ext2();
    let (first, rest) = home.split_at(2 * EXTENT);
    put(&mut image, extent(10), first);
    put(&mut image, extent(2), &rest[..rest.len().min(6 * EXTENT)]);
    put(&mut image, extent(16), &swap(128));
    image
}

fn refused(text: &str, reason: &str) {
    let report = look(&physical(text, HEAD));
    assert!(
        report.free.is_empty() && why(&report).contains(reason),
        "{reason}: {}",
        why(&report)
    );
}

#[test]
fn logical_volumes() {
    assert!(ext2().len() <= 8 * EXTENT);
    let image = filled(&description());
    let report = look(&image);
    let fs = report.partitions[0].fs.clone().expect("a physical volume");
    assert_eq!(fs.kept_whole_because, None);
    assert_eq!(fs.label.as_deref(), Some("lab"));
    assert_eq!(
        fs.uuid.as_deref(),
        Some("012345-6789-abcd-efgh-ijkl-mnop-qrstuv")
    );
    let names: Vec<_> = fs
        .volumes
        .iter()
        .map(|volume| {
            let kind = volume.fs.as_ref().map(|fs| fs.kind.as_str());
            (volume.name.as_str(), volume.len_bytes, kind)
        })
        .collect();
    let extent = EXTENT as u64;
    assert_eq!(
        names,
        [
            ("home", 8 * extent, Some("ext2")),
            ("swap", 4 * extent, Some("swap"))
        ]
    );
    assert_eq!(fs.free_bytes, Some(12 * extent));
    // What is free in the volume alone is free on the disk, piece by piece.
    let alone = look(&ext2());
    let mut expected = vec![false; image.len()];
    for range in alone.free.iter() {
        for byte in range.start as usize..range.end() as usize {
            let (piece, at) = (byte / EXTENT, byte % EXTENT);
            let piece = if piece < 2 { 10 + piece } else { piece };
            expected[DATA + piece * EXTENT + at] = true;
        }
    }
    for extent in [0, 1, 8, 9, 12, 13, 14, 15, 20, 21, 22, 23] {
        expected[DATA + extent * EXTENT..][..EXTENT].fill(true);
    }
    expected[DATA + 16 * EXTENT + 4096..DATA + 20 * EXTENT].fill(true);
    let mut found = vec![false; image.len()];
    for range in report.free.iter() {
        found[range.start as usize..range.end() as usize].fill(true);
    }
    assert!(found == expected);
    let kept = inspect(&image, FreeSpace::DropIfMarked).expect("memory has no errors");
    assert!(kept.free.is_empty() && why(&kept).contains("may change while it is read"));
}

#[test]
fn a_description_goes_on_at_the_ring_s_beginning() {
    let text = description();
    let plain = look(&physical(&text, HEAD));
    let rest = text.len() / 2;
    let wrapped = look(&physical(&text, DATA - AREA - rest));
    assert_eq!(why(&wrapped), "not kept");
    assert_eq!(wrapped.partitions, plain.partitions);
}

#[test]
fn what_is_not_plain_is_kept_whole() {
    let text = description();
    for (now, then, reason) in [
        (
            "\"RESIZEABLE\"",
            "\"EXPORTED\"",
            "lab is marked as EXPORTED",
        ),
        ("\"RESIZEABLE\"", "\"CLUSTERED\"", "marked as CLUSTERED"),
        (
            "flags = [] dev_size",
            "flags = [\"MISSING\"] dev_size",
            "marked as MISSING",
        ),
        (
            "max_lv = 0",
            "lock_type = \"sanlock\"",
            "shared between machines",
        ),
        (
            "max_lv = 0",
            "max_ever = 0",
            "\"max_ever\", which is not known",
        ),
        (
            "\"WRITE\", \"VISIBLE\"]",
            "\"WRITE\"]",
            "part of another logical volume",
        ),
        (
            "\"VISIBLE\"]",
            "\"VISIBLE\", \"LOCKED\"]",
            "marked as LOCKED",
        ),
        (
            "type = \"striped\"",
            "type = \"thin-pool\"",
            "home is of the type thin-pool",
        ),
        (
            "type = \"striped\"",
            "type = \"raid1\"",
            "of the type raid1",
        ),
        ("stripe_count = 1", "stripe_count = 2", "home is striped"),
        (
            "\"pv0\", 10",
            "\"pv1\", 10",
            "outside of the physical volume",
        ),
        (
            "\"pv0\", 10",
            "\"pv0\", 23",
            "outside of the physical volume",
        ),
        (
            "\"pv0\", 10",
            "\"pv0\", 18446744073709551615",
            "outside of the physical volume",
        ),
        (
            "\"pv0\", 10",
            "\"pv0\", 3",
            "one extent to two logical volumes",
        ),
        ("\"pv0\", 10", "\"pv0\", -1", "cannot be read"),
        (
            "start_extent = 2",
            "start_extent = 3",
            "segments that do not join",
        ),
        (
            "segment_count = 2",
            "segment_count = 3",
            "counts other segments",
        ),
        (
            "segment_count = 2",
            "segment_count = 1",
            "counts other segments",
        ),
        ("extent_size = 256", "extent_size = 0", "impossible sizes"),
        (
            "extent_size = 256",
            "extent_size = 9223372036854775807",
            "impossible sizes",
        ),
        (
            "pe_count = 24",
            "pe_count = 25",
            "past the end of its partition",
        ),
        (
            "dev_size = 6272",
            "dev_size = 6273",
            "past the end of its partition",
        ),
        ("pe_start = 128", "pe_start = 120", "different beginnings"),
        ("qrstuv\"", "qrstuw\"", "another physical volume"),
        (
            "physical_volumes {",
            "physical_volumes { pv1 { }",
            "2 physical volumes",
        ),
        ("contents = \"Text", "contents = \"Other", "no known format"),
        ("version = 1\n", "version = 2\n", "no known format"),
    ] {
        assert!(text.contains(now), "{now}");
        refused(&text.replacen(now, then, 1), reason);
    }
    let many = text.replacen(
        "logical_volumes {",
        &format!(
            "logical_volumes {{ {}",
            (0..300)
                .map(|at| format!(
                    "v{at} {{ status = [\"VISIBLE\"] segment_count = 1 segment1 {{ start_extent = 0 \
                     extent_count = 1 type = \"linear\" stripe_count = 1 stripes = [\"pv0\", 0] }} }}\n"
                ))
                .collect::<String>()
        ),
        1,
    );
    refused(&many, "one extent to two");
}

#[test]
fn damaged_headers_are_kept_whole() {
    let image = physical(&description(), HEAD);
    let with = |at: usize, bytes: &[u8], mended: bool, reason: &str| {
        let mut image = image.clone();
        put(&mut image, at, bytes);
        if mended {
            mend(&mut image);
        }
        let report = look(&image);
        assert!(
            report.free.is_empty() && why(&report).contains(reason),
            "{reason}: {}",
            why(&report)
        );
    };
    with(1000, &[1], false, "label is damaged");
    with(520, &[2], true, "label is damaged");
    with(0, b"LABELONE", false, "several labels");
    with(512 + 40, b"!", true, "header is damaged");
    with(512 + 88, &[0, 0, 2], true, "several areas of data");
    with(512 + 136, &[9], true, "unknown version 9");
    with(AREA + 100, &[1], false, "metadata area of it is damaged");
    with(AREA + 24, &[1], true, "metadata area of it is damaged");
    with(AREA + 60, &[1], true, "no description of a volume group");
    with(AREA + 64, &[0, 2], true, "was not finished");
    with(AREA + 40, &[1, 0], true, "impossible place");
    with(AREA + 48, &[0; 5], true, "checksum");
    with(AREA + HEAD + 9, b"?", true, "checksum");
}

/// A member of an array of level 1 with this in it, its superblock of this version.
fn array(content: &[u8], minor: u8) -> Vec<u8> {
    let data = if minor == 0 { 0 } else { 64 << 10 };
    let len = (data + content.len() + (64 << 10)).next_multiple_of(4096);
    let start = [len - 16 * 512, 0, 4096][usize::from(minor)];
    let mut image = vec![0; len];
    put(&mut image, data, content);
    put(&mut image, start, &[0xfc, 0x4e, 0x2b, 0xa9, 1]);
    put(&mut image, start + 16, &[7; 16]);
    put(&mut image, start + 32, b"host:lab");
    let sectors = (content.len() / 512) as u64;
    for (at, value) in [
        (72, 1),
        (80, sectors),
        (92, 2),
        (128, (data / 512) as u64),
        (136, sectors),
        (144, (start / 512) as u64),
        (200, 18),
        (208, u64::MAX),
    ] {
        put(&mut image, start + at, &value.to_le_bytes());
    }
    put(&mut image, start + 220, &[128]);
    put(&mut image, start + 256, &[0xff; 256]);
    put(&mut image, start + 256, &[0, 0, 1, 0]);
    mend_array(&mut image, start);
    image
}

fn mend_array(image: &mut [u8], start: usize) {
    put(image, start + 216, &[0; 4]);
    let words = image[start..start + 512].as_chunks::<4>().0;
    let sum: u64 = words
        .iter()
        .map(|word| u64::from(u32::from_le_bytes(*word)))
        .sum();
    let sum = (sum as u32).wrapping_add((sum >> 32) as u32);
    put(image, start + 216, &sum.to_le_bytes());
}

#[test]
fn arrays() {
    let home = ext2();
    let alone = look(&home);
    for minor in 0..3 {
        let report = look(&array(&home, minor));
        assert_eq!(why(&report), "not kept");
        let fs = report.partitions[0].fs.as_ref().expect("an array");
        assert_eq!(
            (fs.kind.as_str(), fs.label.as_deref()),
            ("md raid level 1", Some("host:lab"))
        );
        let inner = fs.volumes[0].fs.as_ref().expect("a file system");
        assert_eq!(Some(inner), alone.partitions[0].fs.as_ref());
        assert_eq!(report.free.total_bytes(), alone.free.total_bytes());
        let data = if minor == 0 { 0 } else { 64 << 10 };
        let moved: Vec<_> = alone.free.iter().map(|r| (r.start + data, r.len)).collect();
        let found: Vec<_> = report.free.iter().map(|r| (r.start, r.len)).collect();
        assert_eq!(found, moved);
    }
}

#[test]
fn arrays_in_doubt_are_kept_whole() {
    let image = array(&ext2(), 2);
    let start = 4096;
    let refused = |at: usize, bytes: &[u8], reason: &str| {
        let mut image = image.clone();
        put(&mut image, start + at, bytes);
        mend_array(&mut image, start);
        let report = look(&image);
        assert!(
            report.free.is_empty() && why(&report).contains(reason),
            "{reason}: {}",
            why(&report)
        );
    };
    refused(72, &[5], "level 5");
    refused(72, &[0xff; 4], "level -1");
    refused(8, &[4], "features 0x4");
    refused(8, &[2], "features 0x2");
    refused(208, &[0; 8], "not in step");
    refused(160, &[5], "a spare");
    refused(160, &[0xff; 4], "a spare");
    refused(256, &[0xfe, 0xff], "a spare");
    refused(256, &[2, 0], "a spare");
    refused(80, &[0xff; 8], "impossible sizes");
    refused(80, &[0xff; 4], "past the end");
    refused(128, &[8], "impossible sizes");
    refused(128, &[0, 9], "past the end of its partition");
    refused(4, &[2], "unknown version");
    refused(144, &[9], "unknown version");
    refused(220, &[0xff; 4], "unknown version");
    let mut damaged = image.clone();
    damaged[start + 60] ^= 1;
    assert!(why(&look(&damaged)).contains("damaged"));
    let mut two = image.clone();
    two[..4].copy_from_slice(&[0xfc, 0x4e, 0x2b, 0xa9]);
    assert!(why(&look(&two)).contains("several superblocks"));
}

#[test]
fn bitmaps_of_arrays() {
    let start = 4096;
    let with = |at: usize, byte: u8| {
        let mut image = array(&ext2(), 2);
        put(&mut image, start + 8, &[1]);
        put(&mut image, start + 96, &[8]);
        mend_array(&mut image, start);
        let bitmap = start + 4096;
        put(&mut image, bitmap, b"bitm\x04\0\0\0");
        put(&mut image, bitmap + 8, &[7; 16]);
        put(&mut image, bitmap + 24, &[18]);
        image[bitmap + at] = byte;
        why(&look(&image)).to_owned()
    };
    assert_eq!(with(24, 18), "not kept");
    assert_eq!(with(24, 19), "not kept");
    for (at, byte) in [(0, 0), (4, 5), (8, 8), (24, 17), (48, 2)] {
        assert!(with(at, byte).contains("bitmap of its array"));
    }
}

#[test]
fn volumes_lie_in_arrays_and_not_without_end() {
    let mut image = filled(&description());
    let free = look(&image).free.total_bytes();
    for layer in 1..=4 {
        image = array(&image, 2);
        let report = look(&image);
        let mut fs = report.partitions[0].fs.as_ref().expect("an array");
        let mut layers = 0;
        while let Some(volume) = fs.volumes.first() {
            fs = volume.fs.as_ref().expect("a file system");
            layers += 1;
        }
        if layer < 3 {
            assert_eq!((layers, fs.kind.as_str()), (layer + 1, "ext2"));
            assert_eq!(report.free.total_bytes(), free);
        } else {
            let why = fs.kept_whole_because.as_deref().expect("kept");
            assert!(why.contains("too many layers"), "{why}");
            assert!(report.free.is_empty());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damage_ends_in_a_report(
        which in 0..4_usize,
        flips in prop::collection::vec((any::<u16>(), any::<u8>()), 1..8),
        mended in any::<bool>(),
        text in prop::collection::vec((any::<prop::sample::Index>(), "[ -~]"), 0..4),
    ) {
        let mut description = description();
        for (at, letter) in text {
            let at = at.index(description.len());
            description.replace_range(at..=at, &letter);
        }
        let mut image = match which {
            0 | 1 => filled(&description),
            _ => array(&filled(&description), which as u8 - 1),
        };
        for (at, byte) in flips {
            let at = usize::from(at) % (AREA + HEAD);
            image[at] = byte;
        }
        if mended && which < 2 {
            mend(&mut image);
        } else if mended {
            mend_array(&mut image, if which == 2 { 0 } else { 4096 });
        }
        look(&image);
    }
}
