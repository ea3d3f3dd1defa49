//! The other ways to have a root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rootstock_tests::disk::FIRST_PARTITION_BYTES;
use rootstock_tests::golden::{self, Golden};
use rootstock_tests::kernel::SmallGuest;
use rootstock_tests::namespace::Namespace;
use rootstock_tests::undo::{Action, Undo};
use rootstock_tests::watch::Say;
use rootstock_tests::{Process, tool};

use super::super::lab::{self, Port, SERVER};
use super::{BRIDGE, Boot, Site};

/// Where nginx serves.
const HTTP_PORT: u16 = 8080;
const NBD_PORT: u16 = 10809;
const NFS_PORT: u16 = 2049;
const MOUNT_PORT: u16 = 20048;
/// The whole image, compressed.
const PACKED: &str = "disk.zst";
/// What all kernels are told.
const CONSOLE: &str = "console=ttyS0";

/// The image with its own way to a root on NBD, and its files, mounted writable from a
/// copy below `directory`.
pub(super) fn images(
    cache: &Path,
    directory: &Path,
    say: Say<'_>,
) -> Result<(PathBuf, PathBuf, Undo)> {
    let disk = golden::build(cache, Golden::NetworkRoot, say)?;
    let copy = directory.join("tree.img");
    let mut cp = Command::new("cp");
    cp.args(["--sparse=always", "--reflink=auto"]);
    tool::run_command(cp.arg(&disk).arg(&copy))?;
    let tree = directory.join("tree");
    fs::create_dir(&tree)?;
    let mut mount = Command::new("mount");
    mount.args(["-o", &format!("loop,offset={FIRST_PARTITION_BYTES}")]);
    tool::run_command(mount.arg(&copy).arg(&tree))?;
    let mounted = Undo::new(Action::Unmount(tree.clone()));
    Ok((disk, tree, mounted))
}

/// The root on NBD: what is written goes back to the server, which keeps it for this boot.
pub(crate) fn nbd(site: &mut Site) -> Result<Boot> {
    let arguments =
        format!("root=/dev/nbd0p1 nbdroot={SERVER}:{NBD_PORT}/root ip=dhcp rw {CONSOLE}");
    let mut command = site.namespace.command("nbdkit");
    command
        .args(["--foreground", &format!("--ipaddr={SERVER}")])
        .args([&format!("--port={NBD_PORT}"), "--filter=cow", "file"])
        .arg(&site.disk);
    let log = site.directory.join("nbdkit.log");
    let mut server = lab::serve(
        &site.namespace,
        "nbdkit",
        &mut command,
        Port::Tcp(NBD_PORT),
        &log,
    )?;
    installed_kernel(site)?;
    let boot = netboot(site, "nbd", &arguments, None)?;
    // It would wait for its client, whose plug was pulled.
    server.kill()?;
    Ok(boot)
}

/// The root on NFS, version 3, which is what initramfs-tools mount.
pub(super) fn nfs(site: &mut Site) -> Result<Boot> {
    let servers = nfs_servers(site)?;
    let tree = site.tree.display();
    let arguments = format!(
        "boot=nfs root=/dev/nfs nfsroot={SERVER}:{tree},v3,tcp,nolock,rsize=1048576,wsize=1048576 ip=dhcp rw {CONSOLE}"
    );
    installed_kernel(site)?;
    let boot = netboot(site, "nfs", &arguments, None)?;
    for server in servers {
        lab::end(server)?;
    }
    Ok(boot)
}

fn nfs_servers(site: &Site) -> Result<Vec<Process>> {
    let directory = &site.directory;
    let config = directory.join("ganesha.conf");
    let tree = site.tree.display();
    fs::write(
        &config,
        format!(
            "NFS_CORE_PARAM {{ Protocols = 3; NFS_Port = {NFS_PORT}; MNT_Port = {MOUNT_PORT}; \
             Enable_NLM = false; Enable_RQUOTA = false; }}\n\
             EXPORT {{ Export_Id = 1; Path = {tree}; Pseudo = /root; Protocols = 3; \
             Transports = TCP, UDP; Access_Type = RW; Squash = No_Root_Squash; SecType = sys; \
             FSAL {{ Name = VFS; }} }}\n"
        ),
    )?;
    let mut rpcbind = site.namespace.command("rpcbind");
    let rpcbind = lab::serve(
        &site.namespace,
        "rpcbind",
        rpcbind.args(["-f", "-r"]),
        Port::Udp(111),
        &directory.join("rpcbind.log"),
    )?;
    let mut ganesha = site.namespace.command("ganesha.nfsd");
    ganesha
        .args(["-F", "-N", "WARN", "-L"])
        .arg(directory.join("ganesha.log"))
        .arg("-f")
        .arg(&config)
        .arg("-p")
        .arg(directory.join("ganesha.pid"));
    let ganesha = lab::serve(
        &site.namespace,
        "ganesha.nfsd",
        &mut ganesha,
        Port::Tcp6(NFS_PORT),
        &directory.join("ganesha.log"),
    )?;
    // In the order of their ends.
    Ok(vec![ganesha, rpcbind])
}

/// A small system writes the whole image to the machine's disk, which then boots it.
pub(crate) fn copy(site: &mut Site) -> Result<Boot> {
    packed(site)?;
    if !site.files.join("copier-vmlinuz").exists() {
        copier(site)?;
    }
    for name in ["vmlinuz", "initrd.img"] {
        let from = site.files.join(format!("copier-{name}"));
        fs::copy(from, site.files.join(name))?;
    }
    let disk = site.directory.join("copied.img");
    let len_bytes = fs::metadata(&site.image)?.len();
    fs::File::create(&disk)?.set_len(len_bytes)?;
    netboot(site, "copy", CONSOLE, Some(&disk))
}

/// What copying the image takes a client with this machine's own processor: the seconds
/// until it is unpacked and synced on a disk. `client` is plugged into the bridge.
pub(crate) fn copy_unemulated(site: &Site, client: &Namespace) -> Result<f64> {
    packed(site)?;
    let disk = site.directory.join("copied.img");
    let nginx = lab::nginx(&site.namespace, &site.directory, &site.files, HTTP_PORT)?;
    let mut copy = client.command("sh");
    let line = format!(
        "curl --fail --silent --show-error http://{SERVER}:{HTTP_PORT}/{PACKED} | zstd -q -d -c \
         | dd of={} bs=1M iflag=fullblock oflag=direct conv=fsync status=none",
        disk.display()
    );
    let start = Instant::now();
    tool::run_command(copy.args(["-ec", &line]))?;
    let seconds = start.elapsed().as_secs_f64();
    lab::end(nginx)?;
    tool::run("cmp", [&site.image, &disk])?;
    fs::remove_file(&disk)?;
    Ok(seconds)
}

/// Has the image compressed among what nginx serves.
fn packed(site: &Site) -> Result<()> {
    let packed = site.files.join(PACKED);
    if !packed.exists() {
        let mut zstd = Command::new("zstd");
        zstd.args(["-q", "-3", "-T0"]).arg(&site.image);
        tool::run_command(zstd.arg("-o").arg(&packed))?;
    }
    Ok(())
}

/// Makes the small system. Its address is fixed, to save it the time of DHCP.
fn copier(site: &Site) -> Result<()> {
    let zstd = crate::command::find_program("zstd").context("zstd")?;
    let zstd = zstd.to_str().context("zstd's path is text")?;
    let guest = SmallGuest {
        modules: &["virtio_pci", "virtio_net", "virtio_blk"],
        programs: &[zstd],
        script: &format!(
            "ip link set eth0 up\nip addr add 10.77.0.99/24 dev eth0\n\
             wget -q -O - http://{SERVER}:{HTTP_PORT}/{PACKED} | zstd -d -c | dd of=/dev/vda bs=1M \
             && sync && reboot -f\n"
        ),
    };
    let kernel = guest.build(&site.directory)?;
    fs::copy(&kernel.image, site.files.join("copier-vmlinuz"))?;
    fs::copy(&kernel.initrd, site.files.join("copier-initrd.img"))?;
    Ok(())
}

/// Serves the image's own kernel and first file system.
fn installed_kernel(site: &Site) -> Result<()> {
    for name in ["vmlinuz", "initrd.img"] {
        // Links into boot/, which end in the image.
        let link = fs::read_link(site.tree.join(name))?;
        let file = site.tree.join(link.strip_prefix("/").unwrap_or(&link));
        ensure!(file.exists(), "{} is not there", file.display());
        fs::copy(file, site.files.join(name))?;
    }
    Ok(())
}

/// Boots from dnsmasq and nginx.
fn netboot(site: &Site, name: &str, arguments: &str, disk: Option<&Path>) -> Result<Boot> {
    let url = format!("http://{SERVER}:{HTTP_PORT}");
    fs::write(
        site.files.join("boot.ipxe"),
        format!(
            "#!ipxe\nkernel {url}/vmlinuz initrd=initrd.img {arguments}\n\
             initrd {url}/initrd.img\nboot\n"
        ),
    )?;
    let nginx = lab::nginx(&site.namespace, &site.directory, &site.files, HTTP_PORT)?;
    let dnsmasq = dnsmasq(site, &url)?;
    let wire = site.wire_bytes()?;
    let start = Instant::now();
    let machine = site.machine(name);
    let machine = match disk {
        None => machine.power_on(site.inside(), &site.directory)?,
        Some(disk) => machine.power_on_with_disk(site.inside(), &site.directory, disk)?,
    };
    let boot = site.watch(start, wire, machine)?;
    lab::end(dnsmasq)?;
    lab::end(nginx)?;
    Ok(boot)
}

fn dnsmasq(site: &Site, url: &str) -> Result<Process> {
    let mut command = lab::dnsmasq(&site.namespace, BRIDGE);
    command.args([
        "--dhcp-authoritative",
        "--no-ping",
        "--dhcp-range=10.77.0.100,10.77.0.199,255.255.255.0,1h",
    ]);
    command.arg(format!("--dhcp-boot={url}/boot.ipxe"));
    let leases = site.directory.join("dnsmasq.leases");
    command.arg(format!("--dhcp-leasefile={}", leases.display()));
    let log = site.directory.join("dnsmasq.log");
    lab::serve(
        &site.namespace,
        "dnsmasq",
        &mut command,
        Port::Udp(67),
        &log,
    )
}
