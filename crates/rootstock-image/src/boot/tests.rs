//! First stages of small systems made in memory.

use std::{collections::BTreeMap, io::Read as _, sync::Arc};

use proptest::prelude::*;

use super::{memory::MemoryFs, modinfo::tests::module, *};
use crate::inspect::{FsReport, PartitionReport};

const AGENT: &[u8] = b"\x7fELF agent";
const SITE: &[u8] = b"{\"format\":1}";
const DIR: &str = "/usr/lib/modules/6.1.0-18-amd64";

/// A system with a merged `/usr`, as Debian makes it.
fn system() -> MemoryFs {
    let mut fs = MemoryFs::new(&[
        ("/etc/os-release", b"PRETTY_NAME=\"Debian\"\n"),
        ("/usr/lib/systemd/systemd", b"\x7fELF"),
        ("/boot/vmlinuz-6.1.0-18-amd64", b"kernel"),
        (
            "/boot/config-6.1.0-18-amd64",
            b"CONFIG_RD_GZIP=y\nCONFIG_RD_ZSTD=y\n",
        ),
        ("/usr/lib/firmware/rtl_nic/rtl8168h-2.fw", b"firmware"),
        ("/usr/lib/firmware/iwlwifi.ucode", b"not asked for"),
    ]);
    fs.link("/lib", "/usr/lib");
    fs.link("/sbin", "/usr/sbin");
    fs.link("/usr/sbin/init", "/usr/lib/systemd/systemd");
    let put = |fs: &mut MemoryFs, name: &str, bytes: &[u8]| fs.put(&format!("{DIR}/{name}"), bytes);
    put(
        &mut fs,
        "modules.dep",
        b"kernel/drivers/block/nbd.ko.xz:\n\
          kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko\n\
          kernel/fs/jbd2/jbd2.ko:\n\
          kernel/crypto/crc32c_generic.ko:\n\
          kernel/drivers/net/ethernet/realtek/r8169.ko.zst: kernel/drivers/net/phy/libphy.ko\n\
          kernel/drivers/net/phy/libphy.ko:\n\
          kernel/drivers/net/phy/realtek.ko.gz: kernel/drivers/net/phy/libphy.ko\n\
          kernel/drivers/net/wireless/iwlwifi.ko:\n",
    );
    put(
        &mut fs,
        "modules.builtin",
        b"kernel/fs/overlayfs/overlay.ko\n",
    );
    put(
        &mut fs,
        "modules.alias",
        b"alias crypto-crc32c crc32c_generic\n\
          alias pci:v000010ECd00008168sv*sd*bc*sc*i* r8169\n\
          alias pci:v00008086d* iwlwifi\n",
    );
    put(
        &mut fs,
        "modules.softdep",
        b"softdep ext4 pre: crypto-crc32c\nsoftdep r8169 pre: realtek\n",
    );
    let plain = module(&["license=GPL"]);
    let r8169 = module(&[
        "firmware=rtl_nic/rtl8168h-2.fw",
        "firmware=rtl_nic/absent.fw",
    ]);
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    std::io::Write::write_all(&mut xz, &plain).expect("writes");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &plain).expect("writes");
    for (name, bytes) in [
        ("drivers/block/nbd.ko.xz", xz.finish().expect("ends")),
        ("fs/ext4/ext4.ko", plain.clone()),
        ("fs/jbd2/jbd2.ko", plain.clone()),
        ("crypto/crc32c_generic.ko", plain.clone()),
        (
            "drivers/net/ethernet/realtek/r8169.ko.zst",
            zstd::encode_all(r8169.as_slice(), 1).expect("compresses"),
        ),
        ("drivers/net/phy/libphy.ko", plain.clone()),
        (
            "drivers/net/phy/realtek.ko.gz",
            gzip.finish().expect("ends"),
        ),
        ("drivers/net/wireless/iwlwifi.ko", plain),
    ] {
        put(&mut fs, &format!("kernel/{name}"), &bytes);
    }
    fs
}

fn made(fs: &MemoryFs) -> Result<Assembled, AssembleError> {
    let kernel = choose_kernel(fs, None).expect("a kernel");
    let ingredients = Ingredients {
        agent: AGENT,
        site: SITE,
    };
    assemble(fs, &kernel, "ext4", ingredients)
}

/// The files of an archive, by the format's own description.
fn unpacked(assembled: &Assembled) -> BTreeMap<String, Vec<u8>> {
    let mut bytes = Vec::new();
    let initrd = assembled.initrd.as_slice();
    match assembled.compression {
        Compression::Gzip => flate2::read::GzDecoder::new(initrd).read_to_end(&mut bytes),
        Compression::Zstd => zstd::Decoder::new(initrd)
            .expect("starts")
            .read_to_end(&mut bytes),
    }
    .expect("decompresses");
    let mut files = BTreeMap::new();
    let mut at = 0;
    loop {
        assert_eq!(&bytes[at..at + 6], b"070701");
        let field = |number: usize| {
            let start = at + 6 + number * 8;
            let text = std::str::from_utf8(&bytes[start..start + 8]).expect("hex");
            usize::from_str_radix(text, 16).expect("hex")
        };
        let (mode, len, name_len) = (field(1), field(6), field(11));
        let name_at = at + 110;
        let name = std::str::from_utf8(&bytes[name_at..name_at + name_len - 1]).expect("a name");
        let data = (name_at + name_len).next_multiple_of(4);
        if name == "TRAILER!!!" {
            return files;
        }
        let known = files.contains_key(name);
        assert!(!known, "{name} is there twice");
        if let Some((parent, _)) = name.rsplit_once('/') {
            assert!(files.contains_key(parent), "{name} is before {parent}");
        }
        let text = if mode & 0o170_000 == 0o100_000 {
            bytes[data..data + len].to_vec()
        } else {
            Vec::new()
        };
        files.insert(name.to_owned(), text);
        at = (data + len).next_multiple_of(4);
    }
}

#[test]
fn a_first_stage_has_what_it_needs_and_nothing_else() {
    let fs = system();
    let assembled = made(&fs).expect("assembles");
    let files = unpacked(&assembled);
    let with_contents: Vec<_> = files
        .iter()
        .filter(|(_, bytes)| !bytes.is_empty())
        .map(|(name, _)| name.as_str())
        .collect();
    insta::assert_snapshot!(with_contents.join("\n"), @r"
    init
    lib/firmware/rtl_nic/rtl8168h-2.fw
    lib/modules/6.1.0-18-amd64/kernel/crypto/crc32c_generic.ko
    lib/modules/6.1.0-18-amd64/kernel/drivers/block/nbd.ko
    lib/modules/6.1.0-18-amd64/kernel/drivers/net/ethernet/realtek/r8169.ko
    lib/modules/6.1.0-18-amd64/kernel/drivers/net/phy/libphy.ko
    lib/modules/6.1.0-18-amd64/kernel/drivers/net/phy/realtek.ko
    lib/modules/6.1.0-18-amd64/kernel/fs/ext4/ext4.ko
    lib/modules/6.1.0-18-amd64/kernel/fs/jbd2/jbd2.ko
    lib/modules/6.1.0-18-amd64/modules.alias
    lib/modules/6.1.0-18-amd64/modules.dep
    rootstock/modules.load
    rootstock/site.json
    ");
    let text = |name: &str| String::from_utf8_lossy(&files[name]).into_owned();
    insta::assert_snapshot!(text("rootstock/modules.load"), @r"
    crc32c_generic
    nbd
    ext4
    ");
    insta::assert_snapshot!(text("lib/modules/6.1.0-18-amd64/modules.dep"), @r"
    kernel/crypto/crc32c_generic.ko:
    kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko
    kernel/fs/jbd2/jbd2.ko:
    kernel/drivers/net/phy/libphy.ko:
    kernel/drivers/block/nbd.ko:
    kernel/drivers/net/ethernet/realtek/r8169.ko: kernel/drivers/net/phy/realtek.ko kernel/drivers/net/phy/libphy.ko
    kernel/drivers/net/phy/realtek.ko: kernel/drivers/net/phy/libphy.ko
    ");
    insta::assert_snapshot!(text("lib/modules/6.1.0-18-amd64/modules.alias"), @r"
    alias crypto-crc32c crc32c_generic
    alias pci:v000010ECd00008168sv*sd*bc*sc*i* r8169
    ");
    assert_eq!(files["init"], AGENT);
    assert_eq!(files["rootstock/site.json"], SITE);
    assert_eq!(assembled.compression, Compression::Zstd);
    assert_eq!(assembled.initrd, made(&fs).expect("again").initrd);
}

#[test]
fn an_initiator_is_added_in_a_directory_of_its_own() {
    let mut fs = system();
    let kernel = choose_kernel(&fs, None).expect("a kernel");
    let error = assemble_initiator(&fs, &kernel, AGENT).expect_err("no initiator");
    insta::assert_snapshot!(error, @"kernel 6.1.0-18-amd64 has no iscsi_ibft, iscsi_tcp, sd_mod: install the package with the rest of its modules in the image");
    let dep = format!("{DIR}/modules.dep");
    let mut text = fs.read(&dep, 1 << 20).expect("is there");
    text.extend(
        b"kernel/drivers/firmware/iscsi_ibft.ko:\n\
          kernel/drivers/scsi/iscsi_tcp.ko: kernel/drivers/scsi/libiscsi.ko\n\
          kernel/drivers/scsi/libiscsi.ko:\n\
          kernel/drivers/scsi/sd_mod.ko:\n",
    );
    fs.put(&dep, &text);
    for name in [
        "firmware/iscsi_ibft",
        "scsi/iscsi_tcp",
        "scsi/libiscsi",
        "scsi/sd_mod",
    ] {
        let path = format!("{DIR}/kernel/drivers/{name}.ko");
        fs.put(&path, &module(&["license=GPL"]));
    }
    let added = assemble_initiator(&fs, &kernel, AGENT).expect("assembles");
    // Whatever of it another owner of the same kernel has otherwise, makes another digest.
    let digest = |fs: &MemoryFs| initiator_digest(fs, &kernel, AGENT).expect("sums");
    let before = digest(&fs);
    assert_eq!(before, digest(&fs.clone()));
    for (path, bytes) in [
        (
            format!("{DIR}/kernel/drivers/scsi/sd_mod.ko"),
            module(&["license=GPL", "version=evil"]),
        ),
        (
            "/usr/lib/firmware/rtl_nic/rtl8168h-2.fw".to_owned(),
            b"other".to_vec(),
        ),
    ] {
        let mut other = fs.clone();
        other.put(&path, &bytes);
        assert_ne!(before, digest(&other), "{path}");
    }
    let files = unpacked(&added);
    assert!(files.keys().all(|name| name.starts_with("rootstock")));
    assert_eq!(files["rootstock/iscsi"], AGENT);
    let names = files.iter().filter(|(_, bytes)| !bytes.is_empty());
    let names: Vec<_> = names.map(|(name, _)| name.as_str()).collect();
    insta::assert_snapshot!(names.join("\n"), @r"
    rootstock/firmware/rtl_nic/rtl8168h-2.fw
    rootstock/iscsi
    rootstock/modules/kernel/crypto/crc32c_generic.ko
    rootstock/modules/kernel/drivers/firmware/iscsi_ibft.ko
    rootstock/modules/kernel/drivers/net/ethernet/realtek/r8169.ko
    rootstock/modules/kernel/drivers/net/phy/libphy.ko
    rootstock/modules/kernel/drivers/net/phy/realtek.ko
    rootstock/modules/kernel/drivers/scsi/iscsi_tcp.ko
    rootstock/modules/kernel/drivers/scsi/libiscsi.ko
    rootstock/modules/kernel/drivers/scsi/sd_mod.ko
    rootstock/modules/load
    rootstock/modules/modules.alias
    rootstock/modules/modules.dep
    ");
    let load = String::from_utf8_lossy(&files["rootstock/modules/load"]).into_owned();
    insta::assert_snapshot!(load, @r"
    crc32c_generic
    iscsi_ibft
    iscsi_tcp
    sd_mod
    ");
}

#[test]
fn a_kernel_that_does_not_take_zstd_gets_gzip() {
    let mut fs = system();
    fs.put(
        "/boot/config-6.1.0-18-amd64",
        b"# CONFIG_RD_ZSTD is not set\n",
    );
    let assembled = made(&fs).expect("assembles");
    assert_eq!(assembled.compression, Compression::Gzip);
    assert_eq!(unpacked(&assembled)["init"], AGENT);
}

#[test]
fn what_a_kernel_lacks_is_said() {
    let mut fs = system();
    let dep = format!("{DIR}/modules.dep");
    fs.put(&dep, b"kernel/fs/ext4/ext4.ko:\n");
    let error = made(&fs).expect_err("no nbd");
    insta::assert_snapshot!(error, @"kernel 6.1.0-18-amd64 has no nbd: install the package with the rest of its modules in the image");
    fs.put(
        &dep,
        b"kernel/drivers/block/nbd.ko:\nkernel/fs/ext4/ext4.ko:\n",
    );
    fs.put(&format!("{DIR}/kernel/drivers/block/nbd.ko"), b"#!/bin/sh");
    let error = made(&fs).expect_err("no module");
    assert!(matches!(error, AssembleError::NotModule { .. }), "{error}");
}

struct Partitions(BTreeMap<u32, MemoryFs>);

impl OpenFs for Partitions {
    fn open(&self, partition: &PartitionReport) -> Result<Vec<Opened>, OpenFsError> {
        if partition.fs.as_ref().is_some_and(|fs| fs.kind == "xfs") {
            return Err(OpenFsError::Unsupported("not here".into()));
        }
        let fs = self.0.get(&partition.number);
        Ok(fs.map_or_else(Vec::new, |fs| {
            vec![Opened {
                fs: Box::new(fs.clone()),
                kind: "ext4",
                options: String::new(),
            }]
        }))
    }
}

fn partition(number: u32, kind: &str) -> PartitionReport {
    PartitionReport {
        number,
        start_bytes: 0,
        len_bytes: 0,
        type_name: String::new(),
        name: None,
        fs: Some(FsReport {
            kind: kind.into(),
            ..FsReport::default()
        }),
    }
}

#[test]
fn a_root_is_found_with_its_boot_apart() {
    let mut root = system();
    let kernel = root.files.remove("/boot/vmlinuz-6.1.0-18-amd64");
    root.put(
        "/etc/fstab",
        b"# <fs> <place>\nUUID=1 / btrfs rw,subvol=@,noatime 0 0\nUUID=2 /boot ext4 defaults\n",
    );
    let boot = MemoryFs::new(&[("/vmlinuz-6.1.0-18-amd64", &kernel.expect("a kernel"))]);
    let data = MemoryFs::new(&[("/srv/file", b"data")]);
    let all = Partitions([(1, boot), (2, root), (3, data)].into());
    let parts = [
        partition(1, "ext"),
        partition(2, "ext"),
        partition(3, "ext"),
        partition(14, "swap"),
    ];
    let found = find_system(&parts, &all, None).expect("a system");
    assert_eq!((found.partition, found.init.as_str()), (2, "/sbin/init"));
    assert_eq!(found.options, "subvol=@");
    let kernel = choose_kernel(&found.fs, None).expect("a kernel");
    assert_eq!(kernel.path, "/boot/vmlinuz-6.1.0-18-amd64");
    assert!(find_system(&parts, &all, Some(2)).is_ok());
    let error = find_system(&parts, &all, Some(1)).err().expect("no root");
    insta::assert_snapshot!(error, @"partition 1 has no Linux root file system: partition 3 has ext without a system; partition 14 has swap");
}

#[test]
fn why_there_is_no_root_is_said() {
    let two = Partitions([(1, system()), (2, system())].into());
    let error = find_system(&[partition(1, "ext"), partition(2, "ext")], &two, None);
    insta::assert_snapshot!(error.err().expect("two roots"), @"partitions 1 and 2 each have a Linux root: say which one boots with the setting `root`");
    assert!(find_system(&[partition(1, "ext"), partition(2, "ext")], &two, Some(2)).is_ok());
    let none = Partitions(BTreeMap::new());
    let parts = [
        partition(1, "fat"),
        partition(2, "lvm2 physical volume"),
        partition(3, "xfs"),
    ];
    let error = find_system(&parts, &none, None);
    insta::assert_snapshot!(error.err().expect("no root"), @"the image has no Linux root file system: partition 1 has fat; partition 2 has lvm2 physical volume: roots on LVM are not supported yet; partition 3 has xfs: not here");
}

#[test]
fn what_is_no_ext4_is_an_error() {
    for len in [0, 1024, 1 << 20] {
        let disk: Arc<Vec<u8>> = Arc::new(vec![0x53; len]);
        assert!(Ext4Fs::open(disk, 0, len as u64).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn hostile_files_do_no_harm(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), bytes in prop::collection::vec(any::<u8>(), 1..32)) {
        let mut fs = system();
        let paths: Vec<_> = fs.files.keys().cloned().collect();
        let path = which.get(&paths);
        let file = fs.files.get_mut(path).expect("a file");
        let start = at.index(file.len());
        for (place, byte) in file[start..].iter_mut().zip(&bytes) {
            *place = *byte;
        }
        file.truncate(start + bytes.len());
        if let Ok(kernel) = choose_kernel(&fs, None) {
            let ingredients = Ingredients { agent: AGENT, site: SITE };
            if let Ok(assembled) = assemble(&fs, &kernel, "ext4", ingredients) {
                unpacked(&assembled);
            }
        }
        let _ = kept_arguments(&fs);
    }
}
