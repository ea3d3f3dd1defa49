//! What a machine needs beyond the Rust toolchain, and installing what it lacks.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rootstock_tests::tool;

use crate::command::{self, find_program};

/// What the machine is set up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Building, `cargo xtask test` and `cargo xtask demo`.
    Test,
    /// `cargo xtask bench`.
    Bench,
}

/// One package and its reason.
#[derive(Clone, Copy, Debug)]
struct Need {
    purpose: Purpose,
    /// A program, or the path of a file, that it brings, by which one can tell that it is there.
    program: &'static str,
    debian: &'static str,
    /// Its name on RPM systems, where it has one.
    rpm: Option<&'static str>,
    reason: &'static str,
}

/// In the order of installing. QEMU's packages are installed one after the
/// other: a machine may hold one of them from another source, which conflicts
/// with the rest, and apt resolves that only when it is asked in this order.
const STEPS: [&[Need]; 3] = [
    &[need(
        "qemu-system-x86_64",
        "qemu-system-x86",
        "qemu-kvm",
        "guests that boot and use clones",
    )],
    &[need(
        "qemu-img",
        "qemu-utils",
        "qemu-img",
        "foreign disk formats, and a peer for NBD",
    )],
    &[
        need(
            "nbdinfo",
            "libnbd-bin",
            "libnbd",
            "a peer: the reference NBD client",
        ),
        need(
            "nbdsh",
            "python3-libnbd",
            "python3-libnbd",
            "a peer: NBD requests made by hand",
        ),
        need(
            "nbdkit",
            "nbdkit",
            "nbdkit",
            "a peer: an NBD server to compare with",
        ),
        need(
            "nbd-client",
            "nbd-client",
            "nbd",
            "a peer: the kernel's NBD client, in a guest",
        ),
        need(
            "iscsi-test-cu",
            "libiscsi-bin",
            "libiscsi-utils",
            "a peer: iSCSI initiators, and a suite for targets",
        ),
        need(
            "/usr/lib/x86_64-linux-gnu/qemu/block-iscsi.so",
            "qemu-block-extra",
            "qemu-kvm-block-iscsi",
            "a peer: QEMU's iSCSI initiator",
        ),
        need(
            "libvirtd",
            "libvirt-daemon",
            "libvirt-daemon",
            "a peer: libvirt, which has volumes over iSCSI",
        ),
        need(
            "virsh",
            "libvirt-clients",
            "libvirt-client",
            "a peer: what libvirt is told by",
        ),
        need(
            "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so",
            "libvirt-daemon-driver-qemu",
            "libvirt-daemon-driver-qemu",
            "a peer: libvirt's virtual machines",
        ),
        need(
            "/usr/lib/x86_64-linux-gnu/libvirt/storage-backend/libvirt_storage_backend_iscsi-direct.so",
            "libvirt-daemon-driver-storage-iscsi-direct",
            "libvirt-daemon-driver-storage-iscsi-direct",
            "a peer: libvirt's iSCSI initiator",
        ),
        need(
            "ganesha.nfsd",
            "nfs-ganesha",
            "nfs-ganesha",
            "the server of roots over NFS, and a rival",
        ),
        need(
            "/usr/lib/x86_64-linux-gnu/ganesha/libfsalvfs.so",
            "nfs-ganesha-vfs",
            "nfs-ganesha-vfs",
            "the same, from a directory",
        ),
        need("fio", "fio", "fio", "a peer: load with checked content"),
        need(
            "mke2fs",
            "e2fsprogs",
            "e2fsprogs",
            "making and checking ext4 in disk images",
        ),
        need(
            "mkfs.fat",
            "dosfstools",
            "dosfstools",
            "making and checking FAT in disk images",
        ),
        need(
            "mcopy",
            "mtools",
            "mtools",
            "files in FAT without mounting it",
        ),
        need(
            "sfdisk",
            "fdisk",
            "util-linux",
            "partition tables of disk images",
        ),
        need("sgdisk", "gdisk", "gdisk", "GPT with all its fields"),
        need(
            "parted",
            "parted",
            "parted",
            "partition tables as another tool makes them",
        ),
        need(
            "mkfs.xfs",
            "xfsprogs",
            "xfsprogs",
            "making and checking XFS in disk images",
        ),
        need(
            "mkfs.btrfs",
            "btrfs-progs",
            "btrfs-progs",
            "making and checking Btrfs in disk images",
        ),
        need(
            "mkntfs",
            "ntfs-3g",
            "ntfs-3g",
            "making, filling and checking NTFS in disk images",
        ),
        need(
            "lvm",
            "lvm2",
            "lvm2",
            "making logical volumes in disk images",
        ),
        need(
            "mdadm",
            "mdadm",
            "mdadm",
            "checking superblocks of arrays in disk images",
        ),
        need("xz", "xz-utils", "xz", "compressed disk images"),
        need("zstd", "zstd", "zstd", "compressed disk images"),
        need(
            "busybox",
            "busybox-static",
            "busybox",
            "the user space of small guests",
        ),
        need(
            "modinfo",
            "kmod",
            "kmod",
            "which kernel modules a small guest needs",
        ),
        need(
            "dhclient",
            "isc-dhcp-client",
            "dhcp-client",
            "a peer: ISC's DHCP client",
        ),
        need("dhcpcd", "dhcpcd-base", "dhcpcd", "a peer: a DHCP client"),
        need(
            "perfdhcp",
            "kea-admin",
            "kea",
            "a peer: Kea's load generator for DHCP",
        ),
        need(
            "nmap",
            "nmap",
            "nmap",
            "a peer: its script that looks for DHCP servers",
        ),
        need(
            "tftp",
            "tftp-hpa",
            "tftp",
            "a peer: a TFTP client without options",
        ),
        need(
            "atftp",
            "atftp",
            "atftp",
            "a peer: a TFTP client with windows",
        ),
        need("curl", "curl", "curl", "a peer: an HTTP and TFTP client"),
        need(
            "dnsmasq",
            "dnsmasq-base",
            "dnsmasq",
            "a peer: the DHCP server that most sites have",
        ),
        need(
            "dhcrelay",
            "isc-dhcp-relay",
            "dhcp-relay",
            "a peer: the relay that stands between subnets",
        ),
        need(
            "systemd-analyze",
            "systemd",
            "systemd",
            "checking the service's unit",
        ),
        need(
            "udhcpc",
            "udhcpc",
            "busybox",
            "a peer: busybox's DHCP client",
        ),
        need(
            "/usr/lib/ipxe/undionly.kpxe",
            "ipxe",
            "",
            "boot programs for machines that boot from the network",
        ),
        need(
            "/usr/lib/ipxe/qemu/pxe-virtio.rom",
            "ipxe-qemu",
            "",
            "the boot ROM of a guest's network card",
        ),
        need(
            "/usr/share/OVMF/OVMF_CODE_4M.fd",
            "ovmf",
            "",
            "UEFI firmware for guests",
        ),
        need(
            "/usr/lib/shim/shimx64.efi.signed",
            "shim-signed",
            "",
            "what UEFI with Secure Boot starts first",
        ),
        need(
            "/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed",
            "grub-efi-amd64-signed",
            "",
            "what shim starts, with Secure Boot, from the network",
        ),
        need(
            "/usr/lib/grub/i386-pc/boot.img",
            "grub-pc-bin",
            "grub2-pc-modules",
            "the boot loader of a machine that starts from its own disk",
        ),
        need(
            "ip",
            "iproute2",
            "iproute",
            "networks of their own for tests",
        ),
        need("cpio", "cpio", "cpio", "a peer: reading our initrds"),
        need(
            "mmdebstrap",
            "mmdebstrap",
            "",
            "making a Debian disk image from packages",
        ),
        need(
            "/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64/linux",
            "debian-installer-12-netboot-amd64",
            "",
            "a peer: Debian's network installer",
        ),
        need(
            "/usr/lib/x86_64-linux-gnu/libc.a",
            "libc6-dev",
            "",
            "linking the first stage's program statically",
        ),
        rival(
            "kea-dhcp4",
            "kea-dhcp4-server",
            "kea",
            "a rival: Kea's DHCP server",
        ),
        rival("in.tftpd", "tftpd-hpa", "tftp-server", "a rival: TFTP"),
        rival("nginx", "nginx-light", "nginx", "a rival: HTTP"),
        rival(
            "rpcbind",
            "rpcbind",
            "rpcbind",
            "a rival: what an NFS server is found by",
        ),
        rival("casync", "casync", "casync", "a rival: chunks by content"),
        rival(
            "borg",
            "borgbackup",
            "borgbackup",
            "a rival: deduplicated backup",
        ),
        rival(
            "rsync",
            "rsync",
            "rsync",
            "a rival: differences of two files, found by both ends",
        ),
        rival(
            "zsync",
            "zsync",
            "",
            "a rival: differences of two files, found by the client",
        ),
        rival(
            "nbd-server",
            "nbd-server",
            "nbd",
            "a rival: the reference NBD server",
        ),
        rival(
            "tgtd",
            "tgt",
            "scsi-target-utils",
            "a rival: an iSCSI target that is a program",
        ),
        rival("aria2c", "aria2", "aria2", "a rival: BitTorrent"),
        rival(
            "/usr/lib/python3/dist-packages/libtorrent.egg-info/PKG-INFO",
            "python3-libtorrent",
            "rb_libtorrent-python3",
            "a rival: BitTorrent, by the library that most clients use",
        ),
        rival(
            "opentracker",
            "opentracker",
            "",
            "a rival: where BitTorrent's clients find each other",
        ),
        rival("udp-sender", "udpcast", "udpcast", "a rival: multicast"),
        rival(
            "iperf3",
            "iperf3",
            "iperf3",
            "a rival: TCP with nothing behind it",
        ),
    ],
];

/// The parts of the toolchain that the tests run.
const COMPONENTS: [(&str, &str); 2] = [("fmt", "rustfmt"), ("clippy", "clippy")];

const fn need(
    program: &'static str,
    debian: &'static str,
    rpm: &'static str,
    reason: &'static str,
) -> Need {
    Need {
        purpose: Purpose::Test,
        program,
        debian,
        rpm: if rpm.is_empty() { None } else { Some(rpm) },
        reason,
    }
}

const fn rival(
    program: &'static str,
    debian: &'static str,
    rpm: &'static str,
    reason: &'static str,
) -> Need {
    Need {
        purpose: Purpose::Bench,
        ..need(program, debian, rpm, reason)
    }
}

/// Installs what lacks for `purposes`, and says so when nothing does.
///
/// # Errors
/// When something cannot be installed; without root, with the command to run.
pub(crate) fn run(purposes: &[Purpose]) -> Result<()> {
    components()?;
    let lacking = all_lacking(purposes);
    if lacking.is_empty() {
        println!("set-up: nothing lacks");
        return Ok(());
    }
    let manager = Manager::find()?;
    print_table(&lacking, manager);
    if !manager.can_install()? {
        bail!(
            "installing needs root: run\n    {}\nand then this again",
            manager.by_hand(&lacking)
        );
    }
    manager.refresh()?;
    for step in STEPS {
        // Asked again at each step: installing one may have removed another.
        let lacking = lacking_of(step, purposes);
        let names = manager.names(&lacking)?;
        if !names.is_empty() {
            println!("set-up: installing {}", names.join(", "));
            tool::run_command(&mut manager.install(&names))?;
        }
    }
    let still = all_lacking(purposes);
    if let Some(need) = still.first() {
        bail!(
            "{} was installed, but {} is still not there: look at what the package manager said above",
            need.debian,
            need.program
        );
    }
    Ok(())
}

fn all_lacking(purposes: &[Purpose]) -> Vec<Need> {
    let steps = STEPS.iter();
    steps.flat_map(|step| lacking_of(step, purposes)).collect()
}

fn lacking_of(step: &[Need], purposes: &[Purpose]) -> Vec<Need> {
    let needs = step.iter().copied();
    needs
        .filter(|need| purposes.contains(&need.purpose) && !need.is_there())
        .collect()
}

impl Need {
    fn is_there(&self) -> bool {
        // A path is left as it is when it is joined to the search path's directories.
        find_program(self.program).is_some()
    }
}

/// The system's package manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manager {
    Apt,
    Dnf,
}

impl Manager {
    fn find() -> Result<Self> {
        if find_program("apt-get").is_some() {
            Ok(Self::Apt)
        } else if find_program("dnf").is_some() {
            Ok(Self::Dnf)
        } else {
            bail!(
                "this machine has neither apt-get nor dnf: install the programs of the table in xtask/src/setup.rs by hand"
            )
        }
    }

    fn names(self, needs: &[Need]) -> Result<Vec<&'static str>> {
        let mut names = Vec::new();
        for need in needs {
            names.push(match self {
                Self::Apt => need.debian,
                Self::Dnf => need.rpm.with_context(|| {
                    format!(
                        "{} has no RPM package: run this on Debian or Ubuntu",
                        need.debian
                    )
                })?,
            });
        }
        Ok(names)
    }

    fn can_install(self) -> Result<bool> {
        Ok(tool::run("id", ["-u"])?.trim() == "0")
    }

    fn refresh(self) -> Result<()> {
        match self {
            Self::Apt => command::show(Command::new("apt-get").args(["update", "--quiet=2"])),
            Self::Dnf => Ok(()),
        }
    }

    fn install(self, names: &[&str]) -> Command {
        let mut command = match self {
            Self::Apt => {
                let mut command = Command::new("apt-get");
                command
                    .args(["install", "--yes", "--quiet=2", "--no-install-recommends"])
                    .env("DEBIAN_FRONTEND", "noninteractive");
                command
            }
            Self::Dnf => {
                let mut command = Command::new("dnf");
                command.args([
                    "install",
                    "--assumeyes",
                    "--quiet",
                    "--setopt=install_weak_deps=False",
                ]);
                command
            }
        };
        command.args(names).stdin(Stdio::null());
        command
    }

    /// The commands that someone with root runs; one for each step.
    fn by_hand(self, lacking: &[Need]) -> String {
        let mut lines = Vec::new();
        if self == Self::Apt {
            lines.push("sudo apt-get update".to_owned());
        }
        for step in STEPS {
            let wanted: Vec<Need> = lacking
                .iter()
                .copied()
                .filter(|need| step.iter().any(|other| other.debian == need.debian))
                .collect();
            if let Ok(names) = self.names(&wanted)
                && !names.is_empty()
            {
                lines.push(format!("sudo {}", tool::shown(&self.install(&names))));
            }
        }
        lines.join("\n    ")
    }
}

fn print_table(lacking: &[Need], manager: Manager) {
    println!("set-up: this machine lacks");
    for need in lacking {
        let name = match manager {
            Manager::Apt => need.debian,
            Manager::Dnf => need.rpm.unwrap_or(need.debian),
        };
        println!("  {name:<18} {}", need.reason);
    }
}

/// Rust's formatter and linter come with the pinned toolchain where rustup is used.
fn components() -> Result<()> {
    for (subcommand, component) in COMPONENTS {
        let mut probe = command::cargo();
        let there = tool::output(probe.args([subcommand, "--version"]))?;
        if !there.status.success() {
            println!("set-up: adding {component} to the Rust toolchain");
            command::show(Command::new("rustup").args(["component", "add", component]))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_for_people_without_root_keeps_the_steps_apart() {
        let named = |program| {
            let mut all = STEPS.iter().flat_map(|step| step.iter());
            *all.find(|need| need.program == program).unwrap()
        };
        let lacking = [STEPS[0][0], STEPS[1][0], named("fio")];
        assert_eq!(
            Manager::Apt.by_hand(&lacking),
            "sudo apt-get update
    sudo apt-get install --yes --quiet=2 --no-install-recommends qemu-system-x86
    sudo apt-get install --yes --quiet=2 --no-install-recommends qemu-utils
    sudo apt-get install --yes --quiet=2 --no-install-recommends fio"
        );
    }

    #[test]
    fn every_need_has_a_reason_and_one_row() {
        let mut names: Vec<_> = STEPS.iter().flat_map(|step| step.iter()).collect();
        assert!(names.iter().all(|need| !need.reason.is_empty()));
        let count = names.len();
        names.sort_by_key(|need| need.debian);
        names.dedup_by_key(|need| need.debian);
        assert_eq!(names.len(), count);
    }
}
