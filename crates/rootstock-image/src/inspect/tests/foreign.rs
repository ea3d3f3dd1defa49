//! Small XFS, Btrfs and NTFS, byte by byte, whose checksums can be set again.

use super::super::checksum::crc32c;

const KIB: usize = 1024;

/// An image under construction.
struct Image(Vec<u8>);

impl Image {
    fn new(len: usize) -> Self {
        Self(vec![0x5a; len])
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn clear(&mut self, at: usize, len: usize) {
        self.0[at..at + len].fill(0);
    }

    fn be(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_be_bytes());
    }

    fn le(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_le_bytes());
    }
}

/// Sets the checksum of a block: all but itself, or all after it.
fn seal(block: &mut [u8], at: usize) {
    block[at..at + 4].fill(0);
    let sum = !crc32c(!0, block);
    block[at..at + 4].copy_from_slice(&sum.to_le_bytes());
}

/// Sets all checksums of an XFS or a Btrfs of the kinds below again.
pub(super) fn mend(image: &mut [u8]) {
    let kinds: [(&[u8], usize, usize); 4] = [
        (b"XFSB", 224, 512),
        (b"XAGF", 216, 512),
        (b"XAFL", 32, 512),
        (b"AB3B", 52, KIB),
    ];
    for start in (0..image.len()).step_by(512) {
        for (magic, at, len) in kinds {
            let block = image.get_mut(start..start + len);
            if let Some(block) = block.filter(|block| block.starts_with(magic)) {
                seal(block, at);
            }
        }
        let block = image.get_mut(start..start + BTRFS_NODE);
        let is_node =
            |block: &&mut [u8]| start.is_multiple_of(BTRFS_NODE) && block[32..48] == [7; 16];
        if let Some(block) = block.filter(is_node) {
            let sum = !crc32c(!0, &block[32..]);
            block[..4].copy_from_slice(&sum.to_le_bytes());
        }
    }
}

/// The blocks of an XFS group, and of its last one.
const XFS_GROUPS: [u32; 2] = [128, 100];
const XFS_BLOCK: usize = KIB;

/// Free blocks of the groups below.
pub(super) const XFS_FREE_BLOCKS: u64 = 20 + 30 + 5 + 60;

/// An XFS of version 5 with two groups: the first has a tree of two leaves and
/// the log, the second a tree of one.
pub(super) fn xfs() -> Vec<u8> {
    let mut image = Image::new((128 + 100) * XFS_BLOCK);
    image.clear(0, 512);
    image.put(0, b"XFSB");
    image.be(4, XFS_BLOCK as u32);
    image.be(12, 128 + 100);
    image.put(32, &[9; 16]);
    image.be(52, 16);
    image.be(84, 128);
    image.be(88, 2);
    image.be(96, 8);
    image.put(100, &[0xb4, 0xa5, 2, 0]);
    image.put(108, b"tiny");
    image.put(120, &[10, 9, 9, 1, 7]);
    // Free blocks, two in each free list, and two blocks of the first tree.
    image.be(148, XFS_FREE_BLOCKS as u32 + 4 + 2);
    image.be(200, 0x8a);
    image.be(216, 1);
    xfs_group(&mut image, 0, (8, 2, 2), 55, 30);
    xfs_tree(&mut image, 0, 8, 1, (!0, !0), &[(30, 4), (80, 9)]);
    let children = 8 * XFS_BLOCK + 56 + (XFS_BLOCK - 56) / 12 * 8;
    image.be(children, 4);
    image.be(children + 4, 9);
    xfs_tree(&mut image, 0, 4, 0, (!0, 9), &[(30, 20), (52, 5)]);
    xfs_tree(&mut image, 0, 9, 0, (4, !0), &[(80, 30)]);
    xfs_group(&mut image, 1, (4, 1, 0), 60, 60);
    xfs_tree(&mut image, 1, 4, 0, (!0, !0), &[(40, 60)]);
    xfs_log(&mut image);
    mend(&mut image.0);
    image.0
}

/// A group's headers: its tree's root, levels and other blocks, what is free.
fn xfs_group(image: &mut Image, group: usize, tree: (u32, u32, u32), free: u32, longest: u32) {
    let agf = group * 128 * XFS_BLOCK + 512;
    image.clear(agf, 3 * 512);
    image.put(agf, b"XAGF");
    let (root, levels, others) = tree;
    let fields = [
        1,
        group as u32,
        XFS_GROUPS[group],
        root,
        5,
        0,
        levels,
        1,
        0,
        0,
        1,
        2,
        free,
        longest,
        others,
    ];
    for (number, value) in fields.into_iter().enumerate() {
        image.be(agf + 4 + number * 4, value);
    }
    image.put(agf + 64, &[9; 16]);
    let agfl = agf + 2 * 512;
    image.put(agfl, b"XAFL");
    image.be(agfl + 4, group as u32);
    image.put(agfl + 8, &[9; 16]);
    image.be(agfl + 36, 6);
    image.be(agfl + 40, 7);
}

/// A block of a tree: its neighbours, and records or keys.
fn xfs_tree(
    image: &mut Image,
    group: usize,
    block: usize,
    level: u8,
    near: (u32, u32),
    records: &[(u32, u32)],
) {
    let at = (group * 128 + block) * XFS_BLOCK;
    image.clear(at, XFS_BLOCK);
    image.put(at, b"AB3B");
    image.put(at + 4, &[0, level, 0, records.len() as u8]);
    image.be(at + 8, near.0);
    image.be(at + 12, near.1);
    image.be(at + 20, (at / 512) as u32);
    image.put(at + 32, &[9; 16]);
    image.be(at + 48, group as u32);
    for (number, (start, len)) in records.iter().enumerate() {
        image.be(at + 56 + number * 8, *start);
        image.be(at + 60 + number * 8, *len);
    }
}

/// Where the log of the XFS begins.
pub(super) const XFS_LOG: usize = 16 * XFS_BLOCK;

/// A log of 16 sectors whose newest record, an unmount, goes over the end: its
/// header is in the last sector of one cycle and the rest in the next one.
fn xfs_log(image: &mut Image) {
    for sector in 0..16 {
        image.clear(XFS_LOG + sector * 512, 512);
        image.be(XFS_LOG + sector * 512, if sector == 0 { 4 } else { 3 });
    }
    let header = XFS_LOG + 15 * 512;
    for (number, value) in [0xfeed_babe, 3, 2, 512].into_iter().enumerate() {
        image.be(header + number * 4, value);
    }
    image.be(header + 40, 1);
    image.be(header + 320, 32 << 10);
    image.put(XFS_LOG + 4, &[0, 0, 0, 8, 0xaa, 0x20]);
}

/// Bytes of a tree block of the Btrfs.
const BTRFS_NODE: usize = 4 * KIB;

const BTRFS_BYTES: usize = 3 * KIB * KIB;

/// Its two chunks: address, length, places. The second begins at half of the
/// device, so that there is free space around it.
const BTRFS_CHUNKS: [(u64, u64, u64, &[u64]); 2] = [
    (0x10_0000, 0x1_0000, 0x22, &[0x10_0000, 0x11_0000]),
    (0x20_0000, 0x8_0000, 0x5, &[0x18_0000]),
];

/// One block of the first chunk is in use, and so are these bytes of the second.
const BTRFS_USED: u64 = 5 * 0x1000 + 0x4000;

/// All of the device but its first megabyte and what is in use.
pub(super) const BTRFS_FREE_BYTES: u64 = 0x20_0000 - 2 * 0x1000 - BTRFS_USED;

/// Where a tree's block lies on the device.
fn btrfs_place(address: u64) -> usize {
    let first = address < 0x20_0000;
    (if first {
        address
    } else {
        address - 0x20_0000 + 0x18_0000
    }) as usize
}

/// A key and an item's data.
type Item = ((u64, u8, u64), Vec<u8>);

/// A Btrfs on one device, its block groups in the tree of extents or in their own.
pub(super) fn btrfs(group_tree: bool) -> Vec<u8> {
    let mut image = Image::new(BTRFS_BYTES);
    let chunk = |number: usize| {
        let (address, len, kind, places) = BTRFS_CHUNKS[number];
        ((256, 228, address), btrfs_chunk(len, kind, places))
    };
    btrfs_leaf(&mut image, 0x10_0000, 3, &[chunk(0), chunk(1)]);
    let root = |tree: u64, place: u64, level: u8| {
        let mut root = vec![0; 439];
        root[160] = 1;
        root[176..184].copy_from_slice(&place.to_le_bytes());
        root[238] = level;
        ((tree, 132, 0), root)
    };
    let mut roots = vec![root(2, 0x20_1000, 1)];
    let group = |number: usize, used: u64| {
        let (address, len, ..) = BTRFS_CHUNKS[number];
        (
            (address, 192, len),
            [used, 256, 5].map(u64::to_le_bytes).concat(),
        )
    };
    let groups = [group(0, 0x1000), group(1, BTRFS_USED)];
    let block = |address: u64| ((address, 169, 0), vec![0; 33]);
    let mut extents = vec![block(0x10_0000)];
    extents.extend((0x20_0000..0x20_5000).step_by(0x1000).map(block));
    extents.push(((0x21_0000, 168, 0x4000), vec![0; 24]));
    extents.push(((0x21_0000, 178, 5), vec![0; 28]));
    if group_tree {
        roots.push(root(11, 0x20_4000, 0));
        btrfs_leaf(&mut image, 0x20_4000, 11, &groups);
    } else {
        extents.extend(groups);
        extents.sort_by_key(|(key, _)| *key);
        btrfs_leaf(&mut image, 0x20_4000, 9, &[]);
    }
    btrfs_leaf(&mut image, 0x20_0000, 1, &roots);
    let (low, high) = extents.split_at(3);
    btrfs_leaf(&mut image, 0x20_2000, 2, low);
    btrfs_leaf(&mut image, 0x20_3000, 2, high);
    btrfs_node(
        &mut image,
        0x20_1000,
        2,
        &[(low[0].0, 0x20_2000), (high[0].0, 0x20_3000)],
    );
    btrfs_superblock(&mut image, group_tree);
    mend(&mut image.0);
    image.0
}

fn btrfs_chunk(len: u64, kind: u64, places: &[u64]) -> Vec<u8> {
    let mut chunk = [len, 2, 0x1_0000, kind].map(u64::to_le_bytes).concat();
    chunk.extend([0; 12]);
    chunk.extend([places.len() as u8, 0, 0, 0]);
    for place in places {
        chunk.extend([1, *place].map(u64::to_le_bytes).concat());
        chunk.extend([8; 16]);
    }
    chunk
}

fn btrfs_header(image: &mut Image, address: u64, tree: u64, count: usize, level: u8) -> usize {
    let at = btrfs_place(address);
    image.clear(at, BTRFS_NODE);
    image.put(at + 32, &[7; 16]);
    image.le(at + 48, address);
    image.le(at + 80, 1);
    image.le(at + 88, tree);
    image.put(at + 96, &[count as u8, 0, 0, 0, level]);
    at + 101
}

fn btrfs_key(image: &mut Image, at: usize, key: (u64, u8, u64)) {
    image.le(at, key.0);
    image.put(at + 8, &[key.1]);
    image.le(at + 9, key.2);
}

fn btrfs_leaf(image: &mut Image, address: u64, tree: u64, items: &[Item]) {
    let start = btrfs_header(image, address, tree, items.len(), 0);
    let mut end = BTRFS_NODE - 101;
    for (number, (key, data)) in items.iter().enumerate() {
        end -= data.len();
        let at = start + number * 25;
        btrfs_key(image, at, *key);
        image.put(at + 17, &(end as u32).to_le_bytes());
        image.put(at + 21, &(data.len() as u32).to_le_bytes());
        image.put(start + end, data);
    }
}

fn btrfs_node(image: &mut Image, address: u64, tree: u64, children: &[((u64, u8, u64), u64)]) {
    let start = btrfs_header(image, address, tree, children.len(), 1);
    for (number, (key, place)) in children.iter().enumerate() {
        let at = start + number * 33;
        btrfs_key(image, at, *key);
        image.le(at + 17, *place);
        image.le(at + 25, 1);
    }
}

/// Where the superblock of the Btrfs is.
pub(super) const BTRFS_HEAD: usize = 64 * KIB;

fn btrfs_superblock(image: &mut Image, group_tree: bool) {
    let head = BTRFS_HEAD;
    image.clear(head, 4 * KIB);
    image.put(head + 32, &[7; 16]);
    image.put(head + 64, b"_BHRfS_M");
    image.put(head + 299, b"tiny");
    let words: [(usize, u64); 14] = [
        (48, head as u64),
        (56, 1),
        (72, 1),
        (80, 0x20_0000),
        (88, 0x10_0000),
        (112, BTRFS_BYTES as u64),
        (120, 0x1000 + BTRFS_USED),
        (136, 1),
        (144, 0x1000_0000_1000),
        (164, 1),
        (180, if group_tree { 0xb } else { 3 }),
        (188, 0x341),
        (201, 1),
        (209, BTRFS_BYTES as u64),
    ];
    for (at, value) in words {
        image.le(head + at, value);
    }
    let (address, len, kind, places) = BTRFS_CHUNKS[0];
    btrfs_key(image, head + 811, (256, 228, address));
    let chunk = btrfs_chunk(len, kind, places);
    image.put(head + 828, &chunk);
    image.put(head + 160, &((17 + chunk.len()) as u32).to_le_bytes());
}

/// Bytes of a cluster, and of a record, of the NTFS.
const CLUSTER: usize = KIB;
const NTFS_CLUSTERS: usize = 256;

/// Where its file table, log, bitmap, the copy of the table and a file are, in
/// clusters, and how many of them.
const NTFS_USED: [(u8, u8); 6] = [(0, 1), (4, 16), (20, 32), (60, 2), (100, 4), (120, 8)];

pub(super) const NTFS_FREE_CLUSTERS: u64 = 256 - 1 - 16 - 32 - 2 - 4 - 8;

/// The file of a system that sleeps, where there is one.
pub(super) const NTFS_ASLEEP: usize = 120 * CLUSTER;
pub(super) const NTFS_LOG: usize = 20 * CLUSTER;

/// Where a record of the file table is.
pub(super) fn ntfs_record(number: usize) -> usize {
    (4 + number) * CLUSTER
}

/// An NTFS of 256 KiB.
pub(super) fn ntfs() -> Vec<u8> {
    let mut image = Image::new(NTFS_CLUSTERS * CLUSTER + 512);
    image.clear(0, 512);
    image.put(0, &[0xeb, 0x52, 0x90]);
    image.put(3, b"NTFS    \0\x02\x02");
    image.le(40, (NTFS_CLUSTERS * 2) as u64);
    image.le(48, 4);
    image.le(56, 100);
    image.put(64, &[0xf6, 0, 0, 0, 1]);
    image.le(72, 0x1234_5678_9abc_def0);
    image.put(510, &[0x55, 0xaa]);
    let runs = |kind: u32, place: usize, bytes: u64| {
        let (start, len) = NTFS_USED[place];
        ntfs_attribute(kind, &[0x11, len, start, 0], Some(bytes))
    };
    image.clear(4 * CLUSTER, 16 * CLUSTER);
    let nothing: &[Vec<u8>] = &[];
    ntfs_file(&mut image, 0, &[runs(0x80, 1, 16 << 10)]);
    ntfs_file(&mut image, 1, nothing);
    ntfs_file(&mut image, 2, &[runs(0x80, 2, 32 << 10)]);
    let name: Vec<u8> = "tiny".bytes().flat_map(|byte| [byte, 0]).collect();
    let information = [0, 0, 0, 0, 0, 0, 0, 0, 3, 1, 0, 0];
    let volume = [
        ntfs_attribute(0x60, &name, None),
        ntfs_attribute(0x70, &information, None),
    ];
    ntfs_file(&mut image, 3, &volume);
    ntfs_file(&mut image, 5, &[ntfs_directory("Hiberfil.SYS", 8)]);
    ntfs_file(&mut image, 6, &[runs(0x80, 3, 32)]);
    ntfs_file(&mut image, 8, &[runs(0x80, 5, 8 << 10)]);
    let copied = image.0[4 * CLUSTER..8 * CLUSTER].to_vec();
    image.put(100 * CLUSTER, &copied);
    image.0[NTFS_LOG..NTFS_LOG + 32 * CLUSTER].fill(0xff);
    image.clear(NTFS_ASLEEP, 8 * CLUSTER);
    image.clear(60 * CLUSTER, CLUSTER);
    for (start, len) in NTFS_USED {
        for cluster in usize::from(start)..usize::from(start) + usize::from(len) {
            image.0[60 * CLUSTER + cluster / 8] |= 1 << (cluster % 8);
        }
    }
    image.0
}

/// The same with a file that has a hole and then these clusters.
pub(super) fn ntfs_with_file(start: u8, len: u8) -> Vec<u8> {
    let mut image = Image(ntfs());
    let runs = [0x01, 9, 0x11, len, start, 0];
    ntfs_file(&mut image, 9, &[ntfs_attribute(0x80, &runs, Some(1024))]);
    image.0
}

/// The same with a `$Bitmap` whose parts are in two records of their own.
pub(super) fn ntfs_in_parts() -> Vec<u8> {
    let mut image = Image(ntfs());
    let entry = |record: u8, cluster: u8| {
        let mut entry = vec![0x80, 0, 0, 0, 32, 0, 0, 26];
        entry.extend([cluster, 0, 0, 0, 0, 0, 0, 0]);
        entry.extend([record, 0, 0, 0, 0, 0, 1, 0]);
        entry.extend([0; 8]);
        entry
    };
    let list = [entry(9, 0), entry(10, 1)].concat();
    ntfs_file(&mut image, 6, &[ntfs_attribute(0x20, &list, None)]);
    ntfs_file(
        &mut image,
        9,
        &[ntfs_attribute(0x80, &[0x11, 1, 60, 0], Some(2048))],
    );
    let mut second = ntfs_attribute(0x80, &[0x11, 1, 61, 0], Some(0));
    second[16] = 1;
    ntfs_file(&mut image, 10, &[second]);
    for record in [9, 10] {
        image.put(ntfs_record(record) + 32, &[6]);
    }
    image.0
}

/// An attribute: its contents, or the runs of contents of so many bytes.
fn ntfs_attribute(kind: u32, contents: &[u8], elsewhere: Option<u64>) -> Vec<u8> {
    named_attribute(kind, &[], contents, elsewhere)
}

fn named_attribute(kind: u32, name: &[u8], contents: &[u8], elsewhere: Option<u64>) -> Vec<u8> {
    let head = if elsewhere.is_some() { 64 } else { 24 };
    let at = head + name.len();
    let mut bytes = vec![0; (at + contents.len()).next_multiple_of(8)];
    let len = bytes.len() as u32;
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[4..8].copy_from_slice(&len.to_le_bytes());
    bytes[9..11].copy_from_slice(&[(name.len() / 2) as u8, head as u8]);
    bytes[head..at].copy_from_slice(name);
    bytes[at..at + contents.len()].copy_from_slice(contents);
    if let Some(all) = elsewhere {
        bytes[8] = 1;
        bytes[32] = at as u8;
        for size in [40, 48, 56] {
            bytes[size..size + 8].copy_from_slice(&all.to_le_bytes());
        }
    } else {
        bytes[16..20].copy_from_slice(&(contents.len() as u32).to_le_bytes());
        bytes[20] = at as u8;
    }
    bytes
}

/// A directory with one entry.
fn ntfs_directory(name: &str, file: u8) -> Vec<u8> {
    let units: Vec<u8> = name.bytes().flat_map(|byte| [byte, 0]).collect();
    let mut entry = vec![0; (82 + units.len()).next_multiple_of(8)];
    let len = entry.len() as u8;
    entry[0] = file;
    entry[8] = len;
    entry[10] = 66 + units.len() as u8;
    entry[16 + 64] = name.len() as u8;
    entry[82..82 + units.len()].copy_from_slice(&units);
    let mut root = vec![0; 32];
    root[0] = 0x30;
    root[8..12].copy_from_slice(&4096_u32.to_le_bytes());
    root[16] = 16;
    root[20] = 16 + len + 16;
    root.extend(entry);
    root.extend([0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 2, 0, 0, 0]);
    named_attribute(0x90, b"$\0I\x003\x000\0", &root, None)
}

/// A record of the file table, with its fixups.
fn ntfs_file(image: &mut Image, number: usize, attributes: &[Vec<u8>]) {
    let at = ntfs_record(number);
    let all = attributes.concat();
    image.put(at, b"FILE\x30\0\x03\0");
    image.put(at + 20, &[56, 0, 1, 0]);
    image.put(at + 24, &(56 + all.len() as u32 + 8).to_le_bytes());
    image.put(at + 44, &(number as u32).to_le_bytes());
    image.put(at + 56, &all);
    image.put(at + 56 + all.len(), &[0xff; 4]);
    image.put(at + 48, &[5, 0]);
    image.put(at + 510, &[5, 0]);
    image.put(at + 1022, &[5, 0]);
}
