//! A guest's own kernel as NBD client: it attaches a volume, writes, flushes, discards and reads back.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use rootstock_tests::guest::Network;
use rootstock_tests::kernel::SmallGuest;
use rootstock_tests::{Daemon, Guest, GuestOptions, disk, tool};

const MIB: u64 = 1024 * 1024;
const DISK_BYTES: u64 = 64 * MIB;
const BOOT_LIMIT: Duration = Duration::from_secs(240);
const COMMAND_LIMIT: Duration = Duration::from_secs(120);

#[test]
fn the_kernels_client_writes_and_reads_back() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source.img");
    disk::noise(&source, DISK_BYTES, 1).unwrap();
    let mut daemon = Daemon::start(directory.path()).unwrap();
    daemon
        .run(["image", "import", "base", source.to_str().unwrap()])
        .unwrap();
    daemon
        .run(["volume", "create", "seat", "--from", "base"])
        .unwrap();

    let kernel = SmallGuest {
        modules: &["virtio_pci", "virtio_net", "nbd"],
        programs: &["/usr/sbin/nbd-client"],
        script: "ip link set lo up\nip link set eth0 up\nip addr add 10.0.2.15/24 dev eth0\n",
    };
    let mut options = GuestOptions::new("nbd-client");
    options.kernel = Some(kernel.build(directory.path()).unwrap());
    options.network = Network::User;
    let mut guest = Guest::start(&options, directory.path()).unwrap();
    guest.console.expect("guest# ", BOOT_LIMIT).unwrap();
    let port = daemon.nbd_port();
    let attach = format!("/usr/sbin/nbd-client -N volume/seat 10.0.2.2 {port} /dev/nbd0");
    let mut shell = |command: &str| guest.console.shell(command, COMMAND_LIMIT).unwrap();
    shell(&attach);
    assert_eq!(
        shell("blockdev --getsize64 /dev/nbd0").trim(),
        DISK_BYTES.to_string()
    );

    // The image's own content, through the kernel.
    let whole = shell("sha256sum < /dev/nbd0");
    assert_eq!(first_word(&whole), disk::sha256(&source).unwrap());

    // 5 MiB at an odd place, flushed by fsync, read back past the guest's page cache.
    shell("dd if=/dev/urandom of=/tmp/data bs=64k count=80 2>/dev/null");
    shell("dd if=/tmp/data of=/dev/nbd0 bs=4k seek=777 conv=fsync 2>/dev/null");
    shell("sync; echo 3 > /proc/sys/vm/drop_caches");
    let written = shell("sha256sum < /tmp/data");
    let read = shell("dd if=/dev/nbd0 bs=4k skip=777 count=1280 2>/dev/null | sha256sum");
    assert_eq!(first_word(&read), first_word(&written));

    // A discarded range reads as zeroes.
    shell("blkdiscard -o 33554432 -l 1048576 /dev/nbd0; echo 3 > /proc/sys/vm/drop_caches");
    shell("dd if=/dev/nbd0 bs=1M skip=32 count=1 2>/dev/null | cmp -n 1048576 - /dev/zero");
    let whole = shell("sha256sum < /dev/nbd0");
    shell("/usr/sbin/nbd-client -d /dev/nbd0");
    guest.kill().unwrap();

    // The daemon agrees with the guest, also after it was killed.
    daemon.kill().unwrap();
    daemon.restart().unwrap();
    let copy = directory.path().join("copy.img");
    let uri = daemon.nbd_uri("volume/seat");
    tool::run("nbdcopy", [uri.as_str(), copy.to_str().unwrap()]).unwrap();
    assert_eq!(disk::sha256(&copy).unwrap(), first_word(&whole));
    daemon.stop().unwrap();
}

fn first_word(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}
