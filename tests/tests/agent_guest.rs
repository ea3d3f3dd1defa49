//! The agent as a machine's first process: a real kernel boots over its device.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rootstock_api::boot::{BootOrder, BootStep, NodeMode};
use rootstock_tests::guest::Network;
use rootstock_tests::node_service::{self, NodeService, TOKEN};
use rootstock_tests::{Guest, GuestOptions, agent, disk, wait};

const MIB: u64 = 1024 * 1024;
const DISK_BYTES: u64 = 160 * MIB;
const DATA_BYTES: u64 = 24 * MIB;
const BOOT_LIMIT: Duration = Duration::from_secs(240);
const COMMAND_LIMIT: Duration = Duration::from_secs(120);

/// The image's init: a shell on the console.
const INIT: &str = "export PS1='guest# ' TERM=dumb\nexec setsid cttyhack sh";
const ADDRESS: &str = "rootstock.ip=10.0.2.15/255.255.255.0,10.0.2.2,10.0.2.3";

/// A service with a small image, and the file in it that does not compress.
fn image(directory: &Path) -> (Arc<NodeService>, String) {
    let tree = directory.join("tree");
    agent::small_root(&tree, INIT).unwrap();
    let data = tree.join("data");
    disk::noise(&data, DATA_BYTES, 3).unwrap();
    let digest = disk::sha256(&data).unwrap();
    let fstab = "LABEL=root / ext4 defaults 0 1\nUUID=77 none swap sw 0 0\n";
    fs::write(tree.join("etc/fstab"), fstab).unwrap();
    std::os::unix::fs::symlink("../run/nowhere/resolv.conf", tree.join("etc/resolv.conf")).unwrap();
    let path = directory.join("disk.img");
    disk::ext4_on_mbr(&path, DISK_BYTES, &tree).unwrap();
    (NodeService::start(&path).unwrap(), digest)
}

fn start(
    directory: &Path,
    service: &NodeService,
    order: &BootOrder,
    without: &[&str],
    arguments: &str,
) -> Guest {
    service.give(order).unwrap();
    let line = format!(
        "console=ttyS0 panic=-1 rootstock.url=http://10.0.2.2:{} \
         BOOTIF=01-52-54-00-12-34-56 {arguments}",
        service.port()
    );
    let program = agent::program().unwrap();
    let mut options = GuestOptions::new("machine");
    options.kernel =
        Some(agent::first_stage(directory, &program, &service.site(), without, &line).unwrap());
    options.network = Network::User;
    Guest::start(&options, directory).unwrap()
}

fn first_word(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}

#[test]
fn a_machine_boots_diskless_and_outlasts_its_server() {
    let directory = tempfile::tempdir().unwrap();
    let (service, digest) = image(directory.path());
    service.hold(1);
    let mut order = node_service::order(&service).unwrap();
    order.overlay_bytes_max = Some(32 * MIB);
    let arguments = format!("rootstock.token={TOKEN} {ADDRESS}");
    let mut guest = start(directory.path(), &service, &order, &[], &arguments);
    guest
        .console
        .expect("waiting for approval", BOOT_LIMIT)
        .unwrap();
    guest.console.expect("guest# ", BOOT_LIMIT).unwrap();
    let mut shell = |command: &str| guest.console.shell(command, COMMAND_LIMIT).unwrap();

    // The kernel's lines must not fall into the answers; errors are waited for below.
    shell("dmesg -n 4");
    // It is its own machine.
    assert_eq!(shell("cat /etc/hostname").trim(), "n1");
    assert_eq!(
        shell("cat /etc/machine-id").trim(),
        "0123456789abcdef0123456789abcdef"
    );
    assert!(shell("cat /etc/hosts").contains("10.0.2.99 n99"));
    assert_eq!(shell("cat /etc/resolv.conf"), "nameserver 10.0.2.3\n");
    let mode = shell("stat -c %a /etc/ssh/ssh_host_ed25519_key");
    assert_eq!(mode.trim(), "600");
    assert!(shell("cat /run/rootstock/settings.json").contains("blue"));
    assert!(!shell("cat /run/rootstock/order.json").contains("ssh_host"));
    assert!(shell("cat /etc/fstab").contains("# no swap"));
    assert!(shell("mount").contains("/dev/nbd0p1 on / type ext4 (rw"));
    assert!(shell("ls /sys/block").contains("zram1"));

    // What serves the root is still there, and is marked as systemd asks.
    let server = shell("ps -o pid,args | grep '[@]rootstock-agent'");
    let pid = first_word(&server).to_owned();
    assert_eq!(
        shell(&format!("cat /proc/{pid}/oom_score_adj")).trim(),
        "-1000"
    );
    shell(&format!("kill {pid}; kill -HUP {pid}; kill -0 {pid}"));
    assert!(shell(&format!("cat /proc/{pid}/cgroup")).contains("rootstock-agent"));

    // The server's death stalls reads, and its return lets them go on.
    service.go_away();
    guest.console.send("sha256sum /data\n").unwrap();
    guest
        .console
        .expect("does not answer", COMMAND_LIMIT)
        .unwrap();
    service.come_back();
    guest
        .console
        .expect("answers again", COMMAND_LIMIT)
        .unwrap();
    guest.console.expect(&digest, COMMAND_LIMIT).unwrap();
    guest.console.expect("guest# ", COMMAND_LIMIT).unwrap();

    // Writes are kept while it runs, and are read back past its page cache.
    let mut shell = |command: &str| guest.console.shell(command, COMMAND_LIMIT).unwrap();
    shell("dd if=/dev/urandom of=/new bs=1M count=6 2>/dev/null; sync");
    let written = shell("sha256sum /new");
    shell("echo 3 > /proc/sys/vm/drop_caches");
    assert_eq!(shell("sha256sum /new"), written);

    // When memory for them ends, a write fails; nothing hangs.
    guest
        .console
        .send("dd if=/dev/urandom of=/dev/nbd0 bs=1M seek=100 count=50 conv=fsync 2>&1\n")
        .unwrap();
    guest.console.expect("% full", COMMAND_LIMIT).unwrap();
    // The warning may come before dd's end or behind it: ask for another prompt.
    guest.console.send("\n").unwrap();
    guest.console.expect("guest# ", COMMAND_LIMIT).unwrap();

    let report = wait::until("a report of the full overlay", COMMAND_LIMIT, || {
        let report = service.report();
        Ok(report.filter(|report| report.overlay_used_bytes > 24 * MIB))
    })
    .unwrap();
    assert!(report.stall_worst_ms > 1000, "{report:?}");
    assert!(report.read_bytes > DATA_BYTES && report.fetched_bytes > DATA_BYTES);
    let steps: Vec<BootStep> = service.steps().iter().map(|told| told.step).collect();
    assert_eq!(
        steps,
        [
            BootStep::FirstStage,
            BootStep::Network,
            BootStep::Session,
            BootStep::DeviceUp,
            BootStep::RootMounted,
            BootStep::Switched,
        ]
    );
    guest.kill().unwrap();
}

#[test]
fn an_image_in_memory_needs_no_server() {
    let directory = tempfile::tempdir().unwrap();
    let (service, digest) = image(directory.path());
    let mut order = node_service::order(&service).unwrap();
    order.mode = NodeMode::Ram;
    // Without zram, and with an address by DHCP.
    let arguments = format!("rootstock.token={TOKEN}");
    let mut guest = start(directory.path(), &service, &order, &["zram"], &arguments);
    guest.console.expect("guest# ", BOOT_LIMIT).unwrap();
    let mut shell = |command: &str| guest.console.shell(command, COMMAND_LIMIT).unwrap();
    // The kernel's lines must not fall into the answers.
    shell("dmesg -n 1");
    service.go_away();
    let sent = service.sent_bytes();
    assert_eq!(first_word(&shell("sha256sum /data")), digest);
    shell("dd if=/dev/urandom of=/new bs=1M count=6 2>/dev/null; sync");
    let written = shell("sha256sum /new");
    shell("echo 3 > /proc/sys/vm/drop_caches");
    assert_eq!(shell("sha256sum /new"), written);
    assert_eq!(service.sent_bytes(), sent);
    guest.kill().unwrap();
}

#[test]
fn a_refusal_is_told_and_the_machine_starts_anew() {
    let directory = tempfile::tempdir().unwrap();
    let (service, _) = image(directory.path());
    let order = node_service::order(&service).unwrap();
    let arguments = format!("quiet rootstock.token=another {ADDRESS}");
    let mut guest = start(directory.path(), &service, &order, &[], &arguments);
    guest
        .console
        .expect("FAILED at session", BOOT_LIMIT)
        .unwrap();
    guest
        .console
        .expect("the token is not known; next:", COMMAND_LIMIT)
        .unwrap();
    // QEMU ends where a machine would start anew.
    guest.wait_off(COMMAND_LIMIT).unwrap();
    assert!(!service.has_step(BootStep::Session));
}
