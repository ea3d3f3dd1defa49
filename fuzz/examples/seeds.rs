//! Writes the first inputs of every target: `seeds CORPUS_DIRECTORY`.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use rootstock_api::Record;
use rootstock_core::{BLOCK_BYTES, ByteRange, ChunkId, Digest, PeerId, VersionNumber};
use rootstock_fuzz::{overlay, sparse::SparseDisk, volumes};
use rootstock_image::{
    frame::Encoder,
    grid::{Grid, Region, RegionKind},
    inspect::{FreeSpace, inspect},
    manifest::Manifest,
    recipe::{Finder, RecipeWriter},
    seal::Seal,
    trace::TraceBuilder,
};
use rootstock_scsi::opcode::OPCODES;
use rootstock_store::{
    ChunkStore, StoreOptions,
    disk::{Disk, SimDisk},
    objects::{MemoryObjects, Objects as _},
};
use rootstock_swarm::wire::{Class, Hello, Known, Message, Refusal, preface};
use rootstock_volume::BlockDevice as _;

type Seeds = Vec<(&'static str, Vec<u8>)>;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let corpus = arguments.next().map(PathBuf::from);
    let corpus = corpus.ok_or_else(|| io::Error::other("name the corpus directory"))?;
    let all = [
        ("nbd_server", nbd_server()),
        ("nbd_client", nbd_client()),
        ("manifest", manifests()),
        ("api", api()),
        ("frame", frames()),
        ("pack", packs()?),
        ("overlay", logs()?),
        ("inspect", disks()?),
        ("xfs", xfs()?),
        ("btrfs", btrfs()?),
        ("ntfs", ntfs()?),
        ("volumes", volumes()),
        ("trace", traces()?),
        ("dhcp", dhcp()),
        ("tftp", tftp()),
        ("recipe", recipes()),
        ("peer", peers()),
        ("scsi", scsi()),
        ("iscsi", iscsi()),
        ("planted", vec![("other", b"RS".to_vec())]),
    ];
    for (target, seeds) in all {
        let dir = corpus.join(target);
        fs::create_dir_all(&dir)?;
        for (name, bytes) in seeds {
            fs::write(dir.join(format!("seed-{name}")), bytes)?;
        }
    }
    Ok(())
}

/// A firmware's DISCOVER, REQUEST and question at port 4011, and one by a relay.
fn dhcp() -> Seeds {
    let with_header = 32;
    let pxe = [
        [60, 32].as_slice(),
        b"PXEClient:Arch:00007:UNDI:003001",
        &[93, 2, 0, 7, 94, 3, 1, 3, 1, 97, 17, 0],
        &[9; 16],
        &[55, 4, 1, 3, 43, 60],
    ]
    .concat();
    let packet = |flags: u8, options: &[u8]| {
        let bytes = [&[7], options, &pxe].concat();
        let len = (bytes.len() as u16).to_le_bytes();
        [[flags | with_header].as_slice(), &len, &bytes].concat()
    };
    let discover = packet(0, &[53, 1, 1]);
    let wanted = [53, 1, 3, 50, 4, 10, 0, 0, 100, 54, 4, 10, 0, 0, 1];
    let request = packet(0, &wanted);
    let relayed = packet(64, &[53, 1, 1, 82, 4, 1, 2, 7, 7]);
    vec![
        ("bound", [discover.clone(), request].concat()),
        (
            "proxy",
            [packet(1, &[53, 1, 1]), packet(3, &[53, 1, 3])].concat(),
        ),
        ("relayed", relayed),
        (
            "declined",
            [discover, packet(0, &[53, 1, 4, 50, 4, 10, 0, 0, 100])].concat(),
        ),
    ]
}

/// A read with all options and its acknowledgements, and one with none.
fn tftp() -> Seeds {
    let transfer = |request: &[u8], acknowledged: u8| {
        let head = [0, 16, 0, 0xdc, 5, request.len() as u8];
        let packets = (0..=acknowledged).flat_map(|block| [4, 0, 4, 0, block]);
        [head.as_slice(), request]
            .concat()
            .into_iter()
            .chain(packets)
            .collect()
    };
    let options = b"\0\x01snponly.efi\0octet\0tsize\x000\0blksize\x001428\0windowsize\x004\0";
    vec![
        ("options", transfer(options, 3)),
        ("plain", transfer(b"\0\x01undionly.kpxe\0octet\0", 8)),
    ]
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u32).to_be_bytes();
    [b"IHAVEOPT".as_slice(), &number.to_be_bytes(), &len, data].concat()
}

/// The option `GO` or `INFO` for the export `d` without information requests.
const GO_DATA: [u8; 7] = [0, 0, 0, 1, b'd', 0, 0];

fn nbd_server() -> Seeds {
    let head = [0, 255, 0, 0, 0, 3];
    let go = option(7, &GO_DATA);
    let request = |command: u16, offset: u64, len: u32| {
        let mut bytes = [0x2560_9513_u32.to_be_bytes().as_slice(), &[0, 0]].concat();
        bytes.extend(command.to_be_bytes());
        bytes.extend(7_u64.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes
    };
    let mut write = request(1, 4096, 8);
    write.extend([9; 8]);
    let simple = [
        &head,
        go.as_slice(),
        &request(0, 0, 512),
        &write,
        &request(3, 0, 0),
    ]
    .concat();
    let extended = [&head, option(11, &[]).as_slice(), &go].concat();
    let structured = [&head, option(8, &[]).as_slice(), &go, &request(7, 0, 4096)].concat();
    let tls = [
        &[1, 3, 0, 0, 0, 3],
        option(5, &[]).as_slice(),
        &option(3, &[]),
    ]
    .concat();
    let old = [&head, option(1, b"d").as_slice(), &request(2, 0, 0)].concat();
    vec![
        ("simple", simple),
        ("extended", extended),
        ("structured", structured),
        ("tls", tls),
        ("export-name", old),
    ]
}

/// A login in one step, and then a read, a write and a logout.
fn iscsi() -> Seeds {
    let pdu = |opcode: u8, flags: u8, words: &[(usize, u32)], data: &[u8]| {
        let mut bytes = vec![0; 48];
        (bytes[0], bytes[1]) = (opcode, flags);
        bytes[7] = data.len() as u8;
        for (at, word) in words {
            bytes[*at..at + 4].copy_from_slice(&word.to_be_bytes());
        }
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    let names = b"InitiatorName=iqn.a\0TargetName=iqn.t\0InitialR2T=No\0";
    let session = [
        vec![0],
        pdu(0x43, 0x87, &[(24, 1)], names),
        pdu(
            0x01,
            0xc0,
            &[(16, 1), (20, 512), (24, 1), (32, 0x2800_0000)],
            &[],
        ),
        pdu(
            0x01,
            0x20,
            &[(16, 2), (20, 64), (24, 2), (32, 0x2a00_0000)],
            &[1; 8],
        ),
        pdu(0x05, 0x80, &[(16, 2), (20, u32::MAX), (40, 8)], &[2; 56]),
        pdu(
            0x44,
            0x80,
            &[(16, 3), (20, u32::MAX), (24, 3)],
            b"SendTargets=All\0",
        ),
        pdu(0x46, 0x80, &[(16, 4), (24, 3)], &[]),
    ];
    vec![("session", session.concat())]
}

/// Each command of each length once, and a fight for a reservation.
fn scsi() -> Seeds {
    let step = |nexus: u8, cdb: &[u8], data: &[u8]| {
        let mut bytes = vec![nexus];
        bytes.extend_from_slice(cdb);
        bytes.resize(17, 0);
        bytes.push(data.len() as u8);
        bytes.extend_from_slice(data);
        bytes
    };
    let all = OPCODES.iter().flat_map(|row| {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1]) = (row.code, row.service_action.unwrap_or(0));
        (cdb[8], cdb[13]) = (1, 1);
        step(0, &cdb[..row.usage.len()], &[0; 24])
    });
    let out = |nexus: u8, action: u8, kind: u8, action_key: u8| {
        let mut list = [0; 24];
        (list[7], list[15], list[20]) = (nexus + 1, action_key, 1);
        step(nexus, &[0x5f, action, kind, 0, 0, 0, 0, 0, 24], &list)
    };
    // The first commands take the attentions.
    let fight = [
        step(0, &[0], &[]),
        step(1, &[0], &[]),
        out(0, 6, 0, 1),
        out(1, 6, 0, 2),
        out(0, 1, 5, 0),
        out(1, 4, 8, 1),
        vec![0xff],
        step(0, &[0x16], &[]),
    ];
    let unmap = [
        0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0,
    ];
    let mode = [0, 0, 0, 0, 0x0a, 10, 4, 0x10, 8, 0, 0, 0, 0, 0, 0, 0];
    let lists = [
        step(0, &[0], &[]),
        step(0, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24], &unmap),
        step(0, &[0x15, 0x10, 0, 0, 16], &mode),
    ];
    vec![
        ("all", [0].into_iter().chain(all).collect()),
        ("fight", [vec![0], fight.concat()].concat()),
        ("lists", [vec![1], lists.concat()].concat()),
    ]
}

fn nbd_client() -> Seeds {
    let greeting = [b"NBDMAGICIHAVEOPT".as_slice(), &[0, 3]].concat();
    let reply = |asked: u32, kind: u32, data: &[u8]| {
        let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
        bytes.extend(asked.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        bytes
    };
    let mut info = vec![0, 0];
    info.extend((1_u64 << 20).to_be_bytes());
    info.extend([0, 1]);
    let unsupported = (1 << 31) + 1;
    let plain = [
        greeting.as_slice(),
        &reply(8, unsupported, &[]),
        &reply(7, 3, &info),
        &reply(7, 1, &[]),
    ];
    let context = [&[0, 0, 0, 1], b"base:allocation".as_slice()].concat();
    let structured = [
        greeting.as_slice(),
        &reply(8, 1, &[]),
        &reply(10, 4, &context),
        &reply(10, 1, &[]),
        &reply(7, 3, &info),
        &reply(7, 1, &[]),
        &0x668e_33ef_u32.to_be_bytes(),
        &[0, 1, 0, 2],
        &1_u64.to_be_bytes(),
        &12_u32.to_be_bytes(),
        &0_u64.to_be_bytes(),
        &4096_u32.to_be_bytes(),
    ];
    vec![
        ("plain", plain.concat()),
        ("structured", structured.concat()),
    ]
}

/// Traces with the file systems of `disks` behind them.
fn traces() -> io::Result<Seeds> {
    let mut builder = TraceBuilder::new(64 << 20);
    for (first, count) in [(256, 40), (9000, 3), (8000, 700), (1, 2)] {
        builder.read(ByteRange::new(first * BLOCK_BYTES, count * BLOCK_BYTES));
    }
    let trace = builder.finish().encode();
    let with = |disk: &[u8]| {
        let mut input = (trace.len() as u16).to_le_bytes().to_vec();
        input.extend_from_slice(&trace);
        input.extend_from_slice(disk);
        input
    };
    let mut seeds = vec![("alone", with(&[]))];
    // The first byte of a disk's seed is the other target's own.
    seeds.extend(
        disks()?
            .iter()
            .map(|(name, disk)| (*name, with(&disk[1..]))),
    );
    Ok(seeds)
}

fn manifests() -> Seeds {
    let with_page = |grid: Grid| {
        let document = Manifest::zero(grid).encode();
        let mut page = b"RSTKPAGE\x01\0\x01\0\x02\0\0\0".to_vec();
        page.extend(Digest::of(b"a").as_bytes());
        page.extend(Digest::of(b"b").as_bytes());
        // The first region's root becomes an id of its own.
        let mut document = document;
        document[32 + 24..32 + 56].copy_from_slice(Digest::of(&page).as_bytes());
        [
            &(document.len() as u16).to_le_bytes(),
            document.as_slice(),
            &page,
        ]
        .concat()
    };
    let region = |start_bytes, len_bytes, kind| Region {
        start_bytes,
        len_bytes,
        kind,
    };
    let parted = Grid::new(
        2 << 30,
        vec![
            region(0, 1 << 20, RegionKind::PartitionTable),
            region(1 << 20, (2 << 30) - (1 << 20), RegionKind::Partition),
        ],
    );
    let key = SigningKey::from_bytes(&[1; 32]);
    let image = "lab".parse().expect("a name");
    let seal = Seal::sign(&key, &image, VersionNumber(1), Digest::of(b"manifest"));
    vec![
        ("whole", with_page(Grid::whole(512 << 10).expect("a disk"))),
        ("parted", with_page(parted.expect("a grid"))),
        ("seal", seal.encode()),
    ]
}

fn api() -> Seeds {
    let mut records = Vec::new();
    for frame in [b"ab".as_slice(), b"cde"] {
        Record {
            chunk: ChunkId::of(frame),
            raw_bytes: 7,
            codec: 1,
            frame,
        }
        .write(&mut records);
    }
    vec![
        ("records", records),
        ("ids", ChunkId::of(b"a").as_bytes().to_vec()),
        ("spec", b"lab@production".to_vec()),
        ("volume", br#"{"name":"seat","from":"lab:1"}"#.to_vec()),
        ("token", br#"{"name":"ci","role":"reader"}"#.to_vec()),
    ]
}

fn frames() -> Seeds {
    let raw = b"chunk ".repeat(99);
    let frame = Encoder::new().encode(ChunkId::of(&raw), &raw);
    let len = frame.raw_bytes.to_le_bytes();
    let zstd = [&[1], len.as_slice(), &frame.bytes].concat();
    let plain = [&[0], len.as_slice(), &raw].concat();
    vec![("zstd", zstd), ("raw", plain)]
}

/// A delta of two sources' blocks, a recipe with it, and its page.
fn recipes() -> Seeds {
    let block = |fill: u8| [[fill; 64], [fill + 1; 64]].concat().repeat(32);
    let source = [block(1), block(2), block(3)].concat();
    let raw = [block(2), block(3), vec![0; 4096], block(9)].concat();
    let mut finder = Finder::new();
    finder.want(&raw);
    finder.search(ChunkId::of(&source), &source);
    let delta = finder.delta(&raw, &mut Encoder::new()).unwrap_or_default();
    let mut stored = Vec::new();
    let mut sink = |bytes: &[u8]| {
        stored.push(bytes.to_vec());
        Ok::<_, std::convert::Infallible>(ChunkId::of(bytes))
    };
    let mut writer = RecipeWriter::new(Digest::of(b"from"), Digest::of(b"to"));
    let Ok(()) = writer.push(ChunkId::of(&raw), &delta, &mut sink);
    let Ok(_) = writer.finish(&mut sink);
    let as_kind = |kind: u8, bytes: &[u8]| {
        let len = (raw.len() as u32).to_le_bytes();
        [&[kind], &len[..3], bytes].concat()
    };
    vec![
        ("delta", as_kind(0, &delta)),
        ("page", as_kind(2, &stored[1])),
        ("root", as_kind(1, &stored[2])),
        ("found", [&[3, 0, 48, 0], source.as_slice(), &raw].concat()),
    ]
}

fn packs() -> io::Result<Seeds> {
    let objects = Arc::new(MemoryObjects::new());
    let store =
        ChunkStore::open(objects.clone(), StoreOptions::default()).map_err(io::Error::other)?;
    for seed in 1..4 {
        store.put_raw(&[seed; 700]).map_err(io::Error::other)?;
    }
    store.flush().map_err(io::Error::other)?;
    let mut seeds = Seeds::new();
    for object in objects.list("packs/")? {
        let pack = objects.get_range(&object.key, 0, object.len_bytes as usize)?;
        seeds.push(("whole", [&[1], pack.as_ref()].concat()));
        seeds.push(("cut", [&[1], &pack[..pack.len() - 40]].concat()));
    }
    Ok(seeds)
}

fn logs() -> io::Result<Seeds> {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let (volume, path) = overlay::create(&disk)?;
    for round in 0..3_u8 {
        let at = u64::from(round) * 5 * BLOCK_BYTES;
        volume
            .write(at, &[round; 3 * BLOCK_BYTES as usize])
            .map_err(io::Error::other)?;
        volume
            .discard(at + BLOCK_BYTES, BLOCK_BYTES)
            .map_err(io::Error::other)?;
        volume.flush().map_err(io::Error::other)?;
    }
    let file = disk.open(&path)?;
    let mut log = vec![0; file.len()? as usize];
    file.read_at(0, &mut log)?;
    Ok(vec![("three", [&[1], log.as_slice()].concat())])
}

/// A file system as its tool makes it on an empty disk.
fn made(name: &str, options: &str, mib: u64) -> io::Result<Vec<u8>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("disk");
    fs::File::create(&path)?.set_len(mib << 20)?;
    let options: Vec<&str> = options.split(' ').collect();
    tool(name, &options, &path, "")?;
    fs::read(&path)
}

/// A file system as an input; one that is kept whole would find little.
fn as_input(disk: &[u8]) -> io::Result<Vec<u8>> {
    let report = inspect(&disk.to_vec(), FreeSpace::Drop)?;
    if report.free.is_empty() {
        let words = format!("a seed is kept whole: {:?}", report.partitions);
        return Err(io::Error::other(words));
    }
    Ok([vec![1], SparseDisk::to_input(disk)].concat())
}

fn xfs() -> io::Result<Seeds> {
    let new = made(
        "mkfs.xfs",
        "-q -K --unsupported -b size=1024 -d agcount=2",
        64,
    )?;
    let old = made(
        "mkfs.xfs",
        "-q -K --unsupported -m crc=0,finobt=0 -d agcount=2",
        64,
    )?;
    Ok(vec![("5", as_input(&new)?), ("4", as_input(&old)?)])
}

fn btrfs() -> io::Result<Seeds> {
    let mut single = made("mkfs.btrfs", "-q -K -n 4096 -m single", 128)?;
    // A copy of the superblock, which would make the input too long.
    single[64 << 20..][..4096].fill(0);
    let mixed = made("mkfs.btrfs", "-q -K -n 4096 --mixed", 32)?;
    Ok(vec![
        ("single", as_input(&single)?),
        ("mixed", as_input(&mixed)?),
    ])
}

/// A volume group, and an array that has one.
fn volumes() -> Seeds {
    let group = volumes::DESCRIPTION.as_bytes();
    vec![
        ("group", [&[0], group].concat()),
        ("array", [vec![2], volumes::superblock()].concat()),
    ]
}

/// An NTFS without what makes it long and is not read: the log but its two
/// restart areas, which say that it is empty, and the table of capital letters.
fn ntfs() -> io::Result<Seeds> {
    let mut disk = made("mkntfs", "-q -Q -F -c 4096", 4)?;
    let empty = |page: &[u8]| page.iter().all(|byte| *byte == 0xff);
    let log = disk.chunks(4096).position(empty);
    let letters: Vec<u8> = (0..256_u16).flat_map(u16::to_le_bytes).take(128).collect();
    let table = disk
        .chunks(512)
        .position(|sector| sector.starts_with(&letters));
    let (Some(log), Some(table)) = (log, table) else {
        return Err(io::Error::other(
            "mkntfs makes its file systems otherwise now",
        ));
    };
    for page in disk.chunks_mut(4096).filter(|page| empty(page)) {
        page.fill(0);
    }
    for page in [log, log + 1] {
        let page = &mut disk[page * 4096..][..4096];
        page[..8].copy_from_slice(b"RSTR\x1e\0\x09\0");
        page[17] = 16;
        page[24] = 0x40;
        page[28] = 1;
        page[0x40 + 14] = 2;
    }
    disk[table * 512..][..128 << 10].fill(0);
    Ok(vec![("small", as_input(&disk)?)])
}

/// Small disks, made with the tools that make real ones.
fn disks() -> io::Result<Seeds> {
    let dir = tempfile::tempdir()?;
    let file = |name: &str, kib: u64| {
        let path = dir.path().join(name);
        // For the owner only: mkswap warns about anything else.
        let mut options = fs::File::options();
        options.create_new(true).write(true).mode(0o600);
        options.open(&path)?.set_len(kib << 10)?;
        Ok::<_, io::Error>(path)
    };
    let mut seeds = Seeds::new();
    let mut add = |name, path: &Path| {
        let disk = fs::read(path)?;
        seeds.push((name, [vec![1], SparseDisk::to_input(&disk)].concat()));
        Ok::<_, io::Error>(())
    };
    let plain = file("plain", 1024)?;
    tool(
        "mke2fs",
        &[
            "-q",
            "-F",
            "-t",
            "ext4",
            "-I",
            "128",
            "-N",
            "16",
            "-O",
            "^metadata_csum,^uninit_bg,^has_journal,^resize_inode",
        ],
        &plain,
        "",
    )?;
    add("ext4-plain", &plain)?;
    let sums = file("sums", 1024)?;
    tool(
        "mke2fs",
        &[
            "-q",
            "-F",
            "-t",
            "ext4",
            "-I",
            "128",
            "-N",
            "16",
            "-O",
            "metadata_csum,64bit,^has_journal,^resize_inode",
        ],
        &sums,
        "",
    )?;
    add("ext4-sums", &sums)?;
    let groups = file("groups", 4096)?;
    tool(
        "mke2fs",
        &[
            "-q", "-F", "-t", "ext2", "-b", "1024", "-g", "1024", "-N", "64",
        ],
        &groups,
        "",
    )?;
    add("ext2-groups", &groups)?;
    for (name, bits, kib) in [
        ("fat12", "12", 1024),
        ("fat16", "16", 5000),
        ("fat32", "32", 34_000),
    ] {
        let path = file(name, kib)?;
        tool("mkfs.fat", &["-s", "1", "-F", bits], &path, "")?;
        add(name, &path)?;
    }
    let swap = file("swap", 1024)?;
    tool("mkswap", &[], &swap, "")?;
    add("swap", &swap)?;
    let gpt = file("gpt", 4096)?;
    tool(
        "sfdisk",
        &["--quiet"],
        &gpt,
        "label: gpt\nstart=64, size=1024\nstart=2048, size=2048\n",
    )?;
    add("gpt", &gpt)?;
    let mbr = file("mbr", 4096)?;
    tool(
        "sfdisk",
        &["--quiet"],
        &mbr,
        "label: dos\nstart=64, size=1024, type=83\nstart=2048, size=4096, type=5\nstart=2112, size=512, type=82\n",
    )?;
    add("mbr", &mbr)?;
    Ok(seeds)
}

fn tool(name: &str, arguments: &[&str], disk: &Path, input: &str) -> io::Result<()> {
    use io::Write as _;
    let missing =
        |error| io::Error::other(format!("{name}: {error}; 'cargo xtask setup' installs it"));
    let mut child = Command::new(name)
        .args(arguments)
        .arg(disk)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .map_err(missing)?;
    child
        .stdin
        .take()
        .map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()))?;
    let status = child.wait()?;
    if status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{name} ended with {status}")))
}

/// The preface and a message of each kind, then each kind by itself.
fn peers() -> Seeds {
    let (request, chunk, class) = (7, ChunkId::of(b"chunk"), Class::Boot);
    let (slot, id) = (1, PeerId(9));
    let known = |ip: IpAddr| Known {
        id,
        address: SocketAddr::new(ip, 8486),
        rack: "room-1".to_owned(),
        is_head: false,
        age_seconds: 3,
    };
    let all = [
        Message::Hello(Hello {
            id,
            rack: "room-1".to_owned(),
            port: 8486,
            is_head: true,
        }),
        Message::Version {
            slot,
            version: Digest::of(b"version"),
            chunks: 300,
        },
        Message::Held {
            slot,
            first: 8,
            bits: vec![0xa5; 9],
        },
        Message::Gained {
            slot,
            numbers: vec![1, 200],
        },
        Message::Lost {
            slot,
            numbers: vec![3],
        },
        Message::Ask {
            request,
            chunk,
            class,
            insists: true,
        },
        Message::Cancel { request },
        Message::Begin {
            request,
            codec: 1,
            raw_bytes: 262_144,
            wire_bytes: 12,
        },
        Message::Piece {
            request,
            data: Bytes::from_static(b"some of them"),
        },
        Message::Refuse {
            request,
            why: Refusal::Elsewhere,
            hint: Some(id),
        },
        Message::Load { delay_ms: 40 },
        Message::Peers(vec![
            known(Ipv4Addr::new(10, 0, 0, 7).into()),
            known(Ipv6Addr::LOCALHOST.into()),
        ]),
    ];
    let mut whole = vec![0x90];
    whole.extend(preface());
    for message in &all {
        append(message, &mut whole);
    }
    let alone = [
        "hello", "version", "held", "gained", "lost", "ask", "ask-run", "cancel", "begin", "piece",
        "refuse", "load", "peers",
    ];
    let mut seeds = vec![("all", whole)];
    for (name, message) in alone.into_iter().zip(&all) {
        let mut bytes = vec![3];
        append(message, &mut bytes);
        seeds.push((name, bytes));
    }
    seeds
}

fn append(message: &Message, out: &mut Vec<u8>) {
    if let Some(data) = message.encode(out) {
        out.extend_from_slice(&data);
    }
}
