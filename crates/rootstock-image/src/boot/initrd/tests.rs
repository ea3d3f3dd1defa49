//! Initrds of every kind and every compression, and damaged ones.

use std::io::Write as _;

use proptest::prelude::*;

use super::*;
use crate::boot::{cpio::Cpio, memory::MemoryFs};

const INITRAMFS_TOOLS: [&str; 4] = [
    "scripts/functions",
    "conf/initramfs.conf",
    "usr/lib/modules/6.1.0-1/kernel/drivers/net/ethernet/intel/e1000/e1000.ko",
    "usr/lib/modules/6.1.0-1/kernel/drivers/scsi/sd_mod.ko",
];

fn archive(paths: &[&str]) -> Vec<u8> {
    let mut cpio = Cpio::new(Vec::new());
    for path in paths {
        cpio.file(path, 0o644, path.repeat(30).as_bytes()).unwrap();
    }
    cpio.finish().unwrap()
}

/// A legacy frame with one block of literals only.
fn lz4(bytes: &[u8]) -> Vec<u8> {
    let mut block = vec![0xf0];
    let more = bytes.len() - 15;
    block.extend(std::iter::repeat_n(255, more / 255));
    block.push((more % 255) as u8);
    block.extend(bytes);
    let mut frame = vec![0x02, 0x21, 0x4c, 0x18];
    frame.extend((block.len() as u32).to_le_bytes());
    frame.extend(block);
    frame
}

fn compressed(bytes: &[u8], format: &str) -> Vec<u8> {
    match format {
        "gzip" => {
            let fast = flate2::Compression::fast();
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), fast);
            gzip.write_all(bytes).unwrap();
            gzip.finish().unwrap()
        }
        "xz" => {
            let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
            xz.write_all(bytes).unwrap();
            xz.finish().unwrap()
        }
        "zstd" => zstd::encode_all(bytes, 1).unwrap(),
        "lz4" => lz4(bytes),
        _ => bytes.to_vec(),
    }
}

#[test]
fn every_compression_is_read_behind_microcode_and_before_an_addition() {
    let early = archive(&["kernel/x86/microcode/GenuineIntel.bin"]);
    let late = archive(&["sbin/iscsistart", "scripts/local-top/iscsi"]);
    for format in ["plain", "gzip", "xz", "zstd", "lz4"] {
        let mut bytes = early.clone();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes.extend(compressed(&archive(&INITRAMFS_TOOLS), format));
        let alone = Initrd::read(&bytes).unwrap();
        assert!(!alone.has_initiator, "{format}");
        let added = alone.with(&bytes, &compressed(&late, "gzip"));
        // Microcode stays first, and what is compressed last.
        assert!(added.starts_with(&early), "{format}");
        assert_eq!(
            added.ends_with(&bytes[bytes.len() - 30..]),
            format != "plain"
        );
        assert!(Initrd::read(&added).unwrap().has_initiator, "{format}");
        bytes.extend([0; 4]);
        bytes.extend(compressed(&late, "gzip"));
        assert!(Initrd::read(&bytes).unwrap().has_initiator, "{format}");
    }
}

#[test]
fn initiators_are_told_by_names() {
    use IscsiArguments::{None, Some};
    let tools = [
        "scripts/functions",
        "usr/sbin/iscsistart",
        "scripts/local-top/iscsi",
    ];
    let told = [&tools[..], &["etc/iscsi.initramfs"]].concat();
    let dracut = ["lib/dracut-lib.sh", "sbin/iscsiroot", "usr/sbin/iscsid"];
    let cases: [(&[&str], IscsiArguments, bool); 8] = [
        (&["init"], Some, false),
        // As a package alone leaves it.
        (&tools, None, false),
        (&tools, Some, true),
        (&told, None, true),
        // A program that nothing runs.
        (&["scripts/functions", "sbin/iscsistart"], Some, false),
        (&["./usr/lib/dracut-lib.sh"], Some, false),
        (&dracut, None, false),
        (&dracut, Some, true),
    ];
    for (paths, arguments, logs_in) in cases {
        let initrd = Initrd::read(&archive(paths)).unwrap();
        assert_eq!(initrd.logs_in(arguments), logs_in, "{paths:?}");
    }
    let settings = "GRUB_CMDLINE_LINUX=\"quiet rd.iscsi.firmware=1 ip=ibft\"\n";
    let fs = MemoryFs::new(&[("/etc/default/grub", settings.as_bytes())]);
    assert_eq!(iscsi_arguments(&fs).unwrap(), Some);
    let fs = MemoryFs::new(&[("/etc/default/grub", b"GRUB_CMDLINE_LINUX=quiet\n")]);
    assert_eq!(iscsi_arguments(&fs).unwrap(), None);
}

#[test]
fn it_is_found_by_its_kernel() {
    let fs = MemoryFs::new(&[("/boot/initrd.img-6.1.0-1", b"x")]);
    let kernel = Kernel {
        version: "6.1.0-1".to_owned(),
        path: "/boot/vmlinuz-6.1.0-1".to_owned(),
        modules: "/lib/modules/6.1.0-1".to_owned(),
    };
    let found = own_initrd(&fs, &kernel).unwrap();
    assert_eq!(found.as_deref(), Some("/boot/initrd.img-6.1.0-1"));
}

#[test]
fn lz4_copies_what_overlaps() {
    // "ab", nine bytes from two back, then "z".
    let block = [0x25, b'a', b'b', 2, 0, 0x10, b'z'];
    let mut frame = (block.len() as u32).to_le_bytes().to_vec();
    frame.extend(block);
    let mut plain = String::new();
    let mut reader = lz4::Lz4Legacy::new(&frame);
    std::io::Read::read_to_string(&mut reader, &mut plain).unwrap();
    assert_eq!(plain, "abababababaz");
}

#[test]
fn what_is_no_initrd_is_refused() {
    let whole = archive(&INITRAMFS_TOOLS);
    let mut long_name = whole.clone();
    long_name[94..102].copy_from_slice(b"ffffffff");
    let mut long_file = whole.clone();
    long_file[54..62].copy_from_slice(b"ffffffff");
    let cut = &whole[..whole.len() - 200];
    for (bytes, expected) in [
        (&b""[..], "no cpio archive"),
        (&[0; 64], "no cpio archive"),
        (b"MZ", "no cpio archive"),
        (b"BZh9", "no cpio archive"),
        (cut, "is damaged"),
        (&long_name, "more than"),
        (&long_file, "more than"),
    ] {
        let error = Initrd::read(bytes).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

proptest! {
    #[test]
    fn damage_is_never_a_panic(
        format in prop::sample::select(vec!["plain", "gzip", "xz", "zstd", "lz4"]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        len in any::<prop::sample::Index>(),
    ) {
        let mut bytes = compressed(&archive(&INITRAMFS_TOOLS), format);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(len.index(bytes.len()) + 1);
        let _ = Initrd::read(&bytes);
    }

    #[test]
    fn any_bytes_behind_the_magic_of_lz4_end(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut initrd = vec![0x02, 0x21, 0x4c, 0x18];
        initrd.extend((bytes.len() as u32).to_le_bytes());
        initrd.extend(bytes);
        let _ = Initrd::read(&initrd);
    }
}
