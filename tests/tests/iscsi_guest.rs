//! Linux with open-iscsi and multipathd on volumes whose daemon and network fail under load.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rootstock_tests::cable::Cable;
use rootstock_tests::daemon::DaemonOptions;
use rootstock_tests::golden::{Golden, PASSWORD};
use rootstock_tests::guest::Network;
use rootstock_tests::{Daemon, Guest, GuestOptions, boots, tool, wait};
use tempfile::TempDir;

const INITIATOR: &str = "iqn.2026-11.example:guest";
const TARGET: &str = "iqn.2026-11.example.site:volume.v";
/// This machine, as guests see it on QEMU's user network.
const HOST: &str = "10.0.2.2";
const BOOT_LIMIT: Duration = Duration::from_secs(600);
/// For one command, on a machine that others use, too.
const LIMIT: Duration = Duration::from_secs(300);

/// For a path to go or to come back.
const PATHS_LIMIT: Duration = Duration::from_secs(90);

/// Brings up the guest's network and names its initiator. A peer that says nothing is
/// given up after ten seconds.
const PREPARE: &str = "dev=$(ls /sys/class/net | grep -v lo | head -n1) && \
    ip link set $dev up && ip addr add 10.0.2.15/24 dev $dev && \
    sed -i 's/noop_out_interval = .*/noop_out_interval = 5/; \
    s/noop_out_timeout = .*/noop_out_timeout = 5/' /etc/iscsi/iscsid.conf && \
    dmesg -n 1";

/// Both paths are used at once, and what none of them takes waits.
const MULTIPATH: &str = "printf 'defaults {\\n find_multipaths no\\n polling_interval 2\\n \
    path_grouping_policy multibus\\n no_path_retry queue\\n}\\n\
    blacklist {\\n devnode \"^vd\"\\n}\\n' > /etc/multipath.conf && \
    systemctl restart multipathd && udevadm settle";

/// A daemon that listens at two addresses, a cable to each, and a guest.
struct Bench {
    daemon: Daemon,
    cables: [Cable; 2],
    guest: Guest,
    directory: TempDir,
}

impl Bench {
    fn new(name: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let portals = [free_address()?, free_address()?];
        let mut options = DaemonOptions::new(&directory.path().join("run"))?;
        options.config = format!(
            "[iscsi]\nlisten = [\"{}\", \"{}\"]\nprefix = \"iqn.2026-11.example.site\"\n",
            portals[0], portals[1]
        );
        let daemon = Daemon::start_with(options)?;
        daemon.run(["volume", "create", "v", "--blank", "256M"])?;
        daemon.run(["volume", "share", "v", "--initiator", INITIATOR])?;
        let cables = [Cable::to(portals[0])?, Cable::to(portals[1])?];
        let mut options = GuestOptions::new(name);
        options.network = Network::User;
        options.disks.push(system(directory.path())?);
        let guest = Guest::start(&options, directory.path())?;
        let mut bench = Self {
            daemon,
            cables,
            guest,
            directory,
        };
        bench.guest.log_in(PASSWORD, BOOT_LIMIT)?;
        bench.shell(PREPARE)?;
        bench.shell(&format!(
            "echo InitiatorName={INITIATOR} > /etc/iscsi/initiatorname.iscsi && \
             systemctl restart iscsid"
        ))?;
        Ok(bench)
    }

    fn shell(&mut self, command: &str) -> Result<String> {
        let said = self.guest.console.shell(command, LIMIT)?;
        Ok(said.trim().to_owned())
    }

    /// Where the guest finds the daemon by a path.
    fn portal(&self, path: usize) -> String {
        format!("{HOST}:{}", self.cables[path].address().port())
    }

    /// Logs in by a path, and gives the disk that appears, such as `sda`.
    fn log_in(&mut self, path: usize) -> Result<String> {
        let portal = self.portal(path);
        let node = format!("iscsiadm -m node -T {TARGET} -p {portal}");
        self.shell(&format!("{node},1 -o new && {node} --login"))?;
        self.shell("udevadm settle; ls /sys/block | grep ^sd | tail -n1")
    }

    /// The states of the iSCSI sessions, one a line.
    fn sessions(&mut self) -> Result<String> {
        self.shell("cat /sys/class/iscsi_session/session*/state")
    }

    fn wait_for_sessions(&mut self, wanted: &str) -> Result<()> {
        wait::until(&format!("sessions {wanted:?}"), LIMIT, || {
            Ok((self.sessions()? == wanted).then_some(()))
        })
    }

    /// Begins to write and to read below /mnt, and comes back when some was written to
    /// `disk` since.
    fn begin_load(&mut self, disk: &str) -> Result<()> {
        let before = self.writes(disk)?;
        self.shell(
            "rm -rf /root/fio.* /mnt/bin; { (fio --name=f --directory=/mnt --rw=randwrite \
             --bsrange=4k-64k --size=24m --rate=3m --ioengine=libaio --iodepth=16 --direct=1 \
             --fsync=64 --verify=crc32c --verify_fatal=1 > /root/fio.log 2>&1; \
             echo $? > /root/fio.done) & } ; { (cp -a /usr/sbin /mnt/bin; \
             echo $? > /root/fio.copied) & }",
        )?;
        wait::until("writes", LIMIT, || {
            Ok((self.writes(disk)? > before + 50).then_some(()))
        })
    }

    /// Writes that the guest's kernel knows of.
    fn writes(&mut self, disk: &str) -> Result<u64> {
        let said = self.shell(&format!("cat /sys/block/{disk}/stat"))?;
        let writes = said
            .split_whitespace()
            .nth(4)
            .context("a count of writes")?;
        Ok(writes.parse()?)
    }

    /// Whether the load is still under way.
    fn is_loaded(&mut self) -> Result<bool> {
        Ok(self.shell("ls /root")?.matches("fio.done").count() == 0)
    }

    /// Waits for the load's end: nothing that was written has changed.
    fn end_load(&mut self) -> Result<()> {
        wait::until("the load's end", LIMIT, || {
            let ends = self.shell("cat /root/fio.done /root/fio.copied 2>&1 || true")?;
            Ok((!ends.contains("No such file")).then_some(()))
        })?;
        let ends = self.shell("cat /root/fio.done /root/fio.copied")?;
        let log = self.shell("head -n 12 /root/fio.log")?;
        ensure!(ends.split_whitespace().eq(["0", "0"]), "{ends}: {log}");
        self.shell("sync; echo 3 > /proc/sys/vm/drop_caches")?;
        self.shell("diff -r --no-dereference /usr/sbin /mnt/bin")?;
        let errors = self.shell(
            "dmesg | grep -E 'EXT4-fs error|Buffer I/O error|JBD2: Error|Aborting journal' || true",
        )?;
        ensure!(errors.is_empty(), "{errors}");
        Ok(())
    }

    /// Looks at the file system from both sides, and ends everything.
    fn finish(mut self, disk: &str) -> Result<()> {
        self.shell(&format!("umount /mnt && e2fsck -fn /dev/{disk}"))?;
        self.shell(
            "systemctl stop multipathd multipathd.socket; multipath -F; iscsiadm -m node --logout",
        )?;
        let clients = &self.daemon.json(["volume", "show", "v"])?["clients"];
        ensure!(clients.as_array().is_some_and(Vec::is_empty), "{clients}");
        let copy = self.directory.path().join("copy.img");
        let uri = self.daemon.nbd_uri("volume/v");
        tool::run("nbdcopy", [uri.as_str(), text(&copy)?])?;
        tool::run("e2fsck", ["-fn", text(&copy)?])?;
        self.guest.kill()?;
        self.daemon.stop()
    }
}

#[test]
fn a_file_system_outlives_its_daemon_and_its_connection() -> Result<()> {
    let mut it = Bench::new("one-path")?;
    let disk = it.log_in(0)?;
    it.shell(&format!(
        "mkfs.ext4 -q /dev/{disk} && mount /dev/{disk} /mnt"
    ))?;

    // A crash.
    it.begin_load(&disk)?;
    it.daemon.kill()?;
    it.daemon.restart()?;
    it.end_load()?;

    // An orderly stop, after which it is away for a while.
    it.begin_load(&disk)?;
    it.daemon.stop()?;
    it.wait_for_sessions("FAILED")?;
    ensure!(it.is_loaded()?, "the load ended before the daemon was back");
    it.daemon.restart()?;
    it.end_load()?;

    // A connection that ends.
    it.begin_load(&disk)?;
    it.cables[0].cut();
    it.wait_for_sessions("FAILED")?;
    ensure!(it.is_loaded()?, "the load ended without its disk");
    it.cables[0].mend();
    it.end_load()?;

    // One that only falls silent: the initiator finds out, and leaves a session behind
    // that its next one takes the place of.
    it.begin_load(&disk)?;
    it.cables[0].silence();
    it.wait_for_sessions("FAILED")?;
    it.cables[0].mend();
    it.end_load()?;
    it.wait_for_sessions("LOGGED_IN")?;
    it.finish(&disk)
}

#[test]
fn one_path_of_two_is_enough() -> Result<()> {
    let mut it = Bench::new("two-paths")?;
    it.shell(MULTIPATH)?;
    it.log_in(0)?;
    it.log_in(1)?;
    let map = wait::until("a map with two paths", LIMIT, || {
        let ready = active_paths(&mut it)? == 2;
        let maps = it.shell("ls /sys/block | grep ^dm- || true")?;
        Ok(ready.then_some(maps))
    })?;
    ensure!(map.starts_with("dm-") && !map.contains('\n'), "{map}");
    it.shell(&format!("mkfs.ext4 -q /dev/{map} && mount /dev/{map} /mnt"))?;
    for path in [0, 1] {
        it.begin_load(&map)?;
        it.cables[path].cut();
        wait_for_paths(&mut it, 1)?;
        // It goes on by the other one.
        let writes = it.writes(&map)?;
        wait::until("writes by one path", LIMIT, || {
            Ok((!it.is_loaded()? || it.writes(&map)? > writes).then_some(()))
        })?;
        it.end_load()?;
        it.cables[path].mend();
        wait_for_paths(&mut it, 2)?;
    }
    // With no path for a while.
    it.begin_load(&map)?;
    it.daemon.kill()?;
    it.daemon.restart()?;
    it.end_load()?;
    it.finish(&map)
}

/// What Linux's initiator can do besides: secrets in both directions, hashed with SHA-256,
/// digests, several disks of a target, and a login that is sent on to another head.
#[test]
fn linux_proves_itself_finds_all_disks_and_follows() -> Result<()> {
    let mut it = Bench::new("logins")?;
    let share = ["volume", "share", "v", "--initiator", INITIATOR];
    let shared = it
        .daemon
        .json([&share[..], &["--chap", "--mutual"]].concat())?;
    let word = |name: &str| shared[name].as_str().map(str::to_owned);
    let secret = word("secret").context("a secret")?;
    let mutual = word("mutual_secret").context("the target's secret")?;
    let portal = it.portal(0);
    let node = format!("iscsiadm -m node -T {TARGET} -p {portal}");
    it.shell(&format!("{node},1 -o new"))?;
    for (name, value) in [
        ("node.session.auth.authmethod", "CHAP"),
        ("node.session.auth.chap_algs", "SHA256"),
        ("node.session.auth.username", "guest"),
        ("node.session.auth.password", &secret),
        ("node.session.auth.username_in", TARGET),
        ("node.session.auth.password_in", &mutual),
        ("node.conn[0].iscsi.HeaderDigest", "CRC32C"),
        ("node.conn[0].iscsi.DataDigest", "CRC32C"),
    ] {
        it.shell(&format!("{node} -o update -n {name} -v '{value}'"))?;
    }
    it.shell(&format!("{node} --login"))?;
    let digests = it.shell("cat /sys/class/iscsi_connection/*/{header,data}_digest")?;
    ensure!(digests.lines().eq(["1", "1"]), "{digests}");
    it.shell("udevadm settle; dd if=/dev/urandom of=/root/random bs=1M count=16 status=none")?;
    it.shell("dd if=/root/random of=/dev/sda bs=1M oflag=direct status=none")?;
    it.shell(
        "cmp -n 16777216 /root/random <(dd if=/dev/sda bs=1M iflag=direct count=16 status=none)",
    )?;
    // Somebody who claims to be the target is not believed.
    it.shell(&format!("{node} --logout"))?;
    it.shell(&format!(
        "{node} -o update -n node.session.auth.password_in -v 'not-what-it-is-16'"
    ))?;
    let refused = it.shell(&format!("{node} --login 2>&1 || true"))?;
    ensure!(refused.contains("login failure"), "{refused}");

    // Several disks, one of them later.
    let disks =
        |it: &mut Bench| it.shell("udevadm settle; lsblk -dno SIZE,TRAN | grep -c iscsi || true");
    for (volume, size, lun) in [("a", "64M", "0"), ("b", "128M", "5")] {
        it.daemon
            .run(["volume", "create", volume, "--blank", size])?;
        let share = ["volume", "share", volume, "--initiator", INITIATOR];
        it.daemon
            .run([&share[..], &["--target", "db", "--lun", lun]].concat())?;
    }
    let db = "iqn.2026-11.example.site:target.db";
    let found = it.shell(&format!("iscsiadm -m discovery -t sendtargets -p {portal}"))?;
    ensure!(found.contains(db), "{found}");
    // The daemon tells its own address, which is another one for a guest of QEMU's network.
    let node = format!("iscsiadm -m node -T {db} -p {portal}");
    it.shell(&format!("{node},1 -o new && {node} --login"))?;
    assert_eq!(disks(&mut it)?, "2");
    it.daemon
        .run(["volume", "create", "c", "--blank", "256M"])?;
    let share = ["volume", "share", "c", "--initiator", INITIATOR];
    it.daemon.run([&share[..], &["--target", "db"]].concat())?;
    it.shell("iscsiadm -m session --rescan")?;
    assert_eq!(disks(&mut it)?, "3");
    let units =
        it.shell("lsscsi -b 2>/dev/null || ls /sys/class/scsi_disk | cut -d: -f4 | sort")?;
    ensure!(units.split_whitespace().eq(["0", "1", "5"]), "{units}");
    it.shell("iscsiadm -m node --logoutall=all")?;

    // Another head has the disk.
    let other = free_address()?;
    let mut options = DaemonOptions::new(&it.directory.path().join("other"))?;
    options.config =
        format!("[iscsi]\nlisten = [\"{other}\"]\nprefix = \"iqn.2026-11.example.site\"\n");
    let mut head = Daemon::start_with(options)?;
    for daemon in [&it.daemon, &head] {
        daemon.run(["volume", "create", "r", "--blank", "512M"])?;
    }
    let share = ["volume", "share", "r", "--initiator", INITIATOR];
    head.run(share)?;
    let to = format!("{HOST}:{}", other.port());
    it.daemon.run([&share[..], &["--redirect", &to]].concat())?;
    let node = format!("iscsiadm -m node -T iqn.2026-11.example.site:volume.r -p {portal}");
    it.shell(&format!("{node},1 -o new && {node} --login"))?;
    assert_eq!(disks(&mut it)?, "1");
    let of = |daemon: &Daemon| -> Result<usize> {
        let shown = daemon.json(["volume", "show", "r"])?;
        Ok(shown["clients"].as_array().map_or(0, Vec::len))
    };
    assert_eq!((of(&it.daemon)?, of(&head)?), (0, 1));
    it.shell("iscsiadm -m node --logoutall=all")?;
    it.guest.kill()?;
    head.stop()?;
    it.daemon.stop()
}

/// Waits until multipathd holds so many paths for good.
fn wait_for_paths(bench: &mut Bench, wanted: usize) -> Result<()> {
    let waited = wait::until(&format!("{wanted} paths"), PATHS_LIMIT, || {
        Ok((active_paths(bench)? == wanted).then_some(()))
    });
    let Err(error) = waited else {
        return Ok(());
    };
    let journal = bench.shell("journalctl --no-pager -n 60 -o short-monotonic; multipath -ll")?;
    Err(error.context(journal))
}

/// Paths that multipathd holds for good.
fn active_paths(bench: &mut Bench) -> Result<usize> {
    let said = bench.shell("multipathd show paths raw format '%t/%o/%T' || true")?;
    Ok(said
        .lines()
        .filter(|line| line.starts_with("active/running/ready"))
        .count())
}

/// A disk of the guest's own, as QEMU takes it; what is written to it goes with the test.
fn system(directory: &Path) -> Result<String> {
    let image = boots::image(Golden::Paths)?;
    let layer = directory.join("system.qcow2");
    let words = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"];
    let words = words.iter().copied().chain([text(&image)?, text(&layer)?]);
    tool::run("qemu-img", words)?;
    Ok(format!(
        "driver=qcow2,file.driver=file,file.filename={}",
        layer.display()
    ))
}

/// It has to be the same after a restart, which one that the daemon chooses would not be.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is text")
}
