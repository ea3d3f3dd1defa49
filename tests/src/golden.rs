//! Real Debian disk images with their own kernel and boot loader, and what is made of them.
//!
//! Needs root: it installs packages below a directory and mounts the image to
//! upgrade it. Both happen in a mount and process namespace of their own, so that
//! no mount outlives them, however they end.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::disk::{self, FIRST_PARTITION_BYTES};
use crate::tool;
use crate::undo::{Action, Undo};
use crate::watch::{Say, watch};

/// The password of root in every image made here.
pub const PASSWORD: &str = "rootstock";
/// What the second version has more.
pub const UPGRADE: [&str; 4] = ["nginx-light", "htop", "tree", "less"];

/// What a guest needs for disks over iSCSI on several paths.
const PATHS: [&str; 3] = ["open-iscsi", "multipath-tools", "fio"];

/// Changes when the recipe does, so that an older cached image is not taken.
const RECIPE: u32 = 2;
const DISK_BYTES: u64 = 2 * 1024 * 1024 * 1024;
const PACKAGES: &str = "linux-image-cloud-amd64,systemd-sysv,udev,initramfs-tools,kmod,\
e2fsprogs,iproute2,login,passwd,ca-certificates,grub-pc-bin,grub2-common";
/// Installing packages from the network takes a minute; this is for slow lines.
const INSTALL_LIMIT: Duration = Duration::from_secs(8 * 60);

const SECTOR_BYTES: u64 = 512;
/// The boot code's part of the first sector; the partition table follows.
const BOOT_CODE_BYTES: usize = 440;
/// How a step of the scripts below says what it does.
const MARK: &str = "I: ";

/// Run inside the new system, before it becomes an image.
const CONFIGURE: &str = r#"
echo "I: configuring it and making its boot loader"
echo rootstock > /etc/hostname
echo "127.0.0.1 localhost rootstock" > /etc/hosts
echo "LABEL=root / ext4 errors=remount-ro 0 1" > /etc/fstab
echo "root:$PASSWORD" | chpasswd
# Many emulated machines on few cores: a serial line may take longer to be found
# than the 90 s after which its login prompt would be given up.
mkdir -p /etc/systemd/system.conf.d
printf '[Manager]\nDefaultDeviceTimeoutSec=600\n' > /etc/systemd/system.conf.d/slow.conf
mkdir -p /boot/grub
cat > /boot/grub/grub.cfg <<'END'
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
set timeout=0
menuentry "Debian GNU/Linux" {
    linux /vmlinuz root=LABEL=root ro console=ttyS0 systemd.show_status=true
    initrd /initrd.img
}
END
cp /usr/lib/grub/i386-pc/boot.img /boot/grub/boot.img
grub-mkimage --format=i386-pc --output=/boot/grub/core.img --prefix='(hd0,msdos1)/boot/grub' \
    biosdisk part_msdos ext2 normal linux configfile serial terminal echo test search minicmd
"#;

/// Run in a namespace of its own with `$IMAGE`, `$OFFSET`, `$MOUNT` and `$PACKAGES` set.
const UPGRADE_SCRIPT: &str = r#"
mount -o loop,offset="$OFFSET" "$IMAGE" "$MOUNT"
mount -t proc proc "$MOUNT/proc"
cp --dereference /etc/resolv.conf "$MOUNT/etc/resolv.conf"
printf '#!/bin/sh\nexit 101\n' > "$MOUNT/usr/sbin/policy-rc.d"
chmod 755 "$MOUNT/usr/sbin/policy-rc.d"
echo "I: updating its package lists"
chroot "$MOUNT" apt-get --quiet=2 update
echo "I: installing $PACKAGES"
chroot "$MOUNT" apt-get --quiet=2 --yes --no-install-recommends install $PACKAGES
chroot "$MOUNT" apt-get clean
eval "$CONFIGURE"
rm -r "$MOUNT"/var/lib/apt/lists/* "$MOUNT/usr/sbin/policy-rc.d"
umount "$MOUNT/proc"
umount "$MOUNT"
"#;

/// Run in the same place: its own first file system logs in to its disk over iSCSI, as
/// firmware describes that, and UEFI finds a boot loader, too.
const ISCSI_SCRIPT: &str = r#"
echo "I: preparing it for a disk over iSCSI"
echo ISCSI_AUTO=true > "$MOUNT/etc/iscsi/iscsi.initramfs"
chroot "$MOUNT" update-initramfs -u
printf 'search --no-floppy --label --set=root root\nconfigfile /boot/grub/grub.cfg\n' \
    > "$MOUNT/boot/grub/early.cfg"
chroot "$MOUNT" grub-mkimage --format=x86_64-efi --output=/boot/grub/bootx64.efi \
    --prefix=/boot/grub --config=/boot/grub/early.cfg part_msdos ext2 normal linux \
    configfile serial terminal echo test search search_label minicmd
cp "$MOUNT/boot/grub/bootx64.efi" "$LOADER"
"#;

/// A disk image that can be made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Golden {
    /// Debian 12 on ext4, with the first file system of initramfs-tools.
    Debian,
    /// The same, with dracut in the place of initramfs-tools.
    Dracut,
    /// The same on XFS.
    Xfs,
    /// The same on Btrfs.
    Btrfs,
    /// The same with nbd-client, so that its own first file system can have its root
    /// on a server, as sites do it without us.
    NetworkRoot,
    /// The same with fio, and dmsetup to see what it reads.
    Fio,
    /// The same with open-iscsi in its own first file system, and a boot loader for
    /// UEFI beside the one for a BIOS.
    Iscsi,
    /// The same with open-iscsi, multipathd and fio, for disks beside its own.
    Paths,
}

impl Golden {
    const fn name(self) -> &'static str {
        match self {
            Self::Debian => "debian-12",
            Self::Dracut => "debian-12-dracut",
            Self::Xfs => "debian-12-xfs",
            Self::Btrfs => "debian-12-btrfs",
            Self::NetworkRoot => "debian-12-nbd",
            Self::Fio => "debian-12-fio",
            Self::Iscsi => "debian-12-iscsi",
            Self::Paths => "debian-12-paths",
        }
    }
}

/// Where the images of earlier runs are kept, beside the programs.
///
/// # Errors
/// When the running program has no place.
pub fn cache() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program
        .ancestors()
        .find(|path| path.join("CACHEDIR.TAG").exists())
        .context("the running program is not below a build directory")?;
    Ok(target.join("demo-cache"))
}

/// Run in a namespace of its own: what `$BASE` holds, on a file system of `$KIND`.
const COPY_SCRIPT: &str = r#"
truncate --size="$DISK_BYTES" "$IMAGE"
printf 'label: dos\nstart=2048, type=83, bootable\n' | sfdisk --quiet "$IMAGE"
loop=$(losetup --find --show --offset "$OFFSET" "$IMAGE")
trap 'losetup --detach "$loop"' EXIT
"mkfs.$KIND" -q -L root "$loop"
mkdir -p "$FROM"
mount -o loop,ro,offset="$OFFSET" "$BASE" "$FROM"
mount "$loop" "$MOUNT"
cp --archive "$FROM/." "$MOUNT/"
sed --in-place "s/ext4 errors=remount-ro/$KIND defaults/" "$MOUNT/etc/fstab"
umount "$MOUNT" "$FROM"
"#;

/// Gives an image, made now or by an earlier run. Runs beside this one wait.
///
/// # Errors
/// When it cannot be made; nothing half-made stays in the cache.
pub fn build(cache: &Path, golden: Golden, say: Say<'_>) -> Result<PathBuf> {
    fs::create_dir_all(cache)?;
    let image = cache.join(format!("{}-recipe-{RECIPE}.img", golden.name()));
    let lock = File::create(cache.join(format!("{}.lock", golden.name())))?;
    lock.lock()?;
    if image.exists() {
        say(&format!(
            "taking the one made by an earlier run: {}",
            image.display()
        ));
        return Ok(image);
    }
    let work = tempfile::Builder::new()
        .prefix("making-")
        .tempdir_in(cache)?;
    // apt's own user, which fetches the packages, must be able to come in.
    fs::set_permissions(work.path(), Permissions::from_mode(0o755))?;
    let work_undo = Undo::new(Action::RemoveTree(work.path().to_owned()));
    let unfinished = match golden {
        Golden::Debian => debian(work.path(), say)?,
        Golden::Dracut => with(cache, work.path(), &["dracut"], say)?,
        Golden::NetworkRoot => with(cache, work.path(), &["nbd-client"], say)?,
        Golden::Fio => with(cache, work.path(), &["fio", "dmsetup"], say)?,
        Golden::Iscsi => iscsi(cache, work.path(), say)?,
        Golden::Paths => with(cache, work.path(), &PATHS, say)?,
        Golden::Xfs => copied(cache, work.path(), "xfs", say)?,
        Golden::Btrfs => copied(cache, work.path(), "btrfs", say)?,
    };
    fs::rename(&unfinished, &image)?;
    work_undo.now()?;
    Ok(image)
}

fn debian(work: &Path, say: Say<'_>) -> Result<PathBuf> {
    let tree = work.join("tree");
    let log = work.join("log");
    let mut bootstrap = contained("mmdebstrap");
    bootstrap
        .args(["--mode=root", "--variant=minbase", "--format=directory"])
        .arg(format!("--include={PACKAGES}"))
        .arg("bookworm")
        .arg(&tree)
        .arg("http://deb.debian.org/debian")
        .arg("deb http://deb.debian.org/debian bookworm-updates main")
        .arg("deb http://deb.debian.org/debian-security bookworm-security main")
        .env("TMPDIR", work);
    watch(&mut bootstrap, &log, MARK, INSTALL_LIMIT, say)?;
    let mut configure = contained("chroot");
    configure
        .arg(&tree)
        .args(["sh", "-ec", CONFIGURE])
        .env("PASSWORD", PASSWORD);
    watch(
        &mut configure,
        &work.join("configure.log"),
        MARK,
        INSTALL_LIMIT,
        say,
    )?;

    say("writing the disk");
    let disk = work.join("disk.img");
    disk::ext4_on_mbr(&disk, DISK_BYTES, &tree)?;
    install_boot_loader(&disk, &tree.join("boot/grub"))?;
    Ok(disk)
}

/// The first image with more packages.
fn with(cache: &Path, work: &Path, packages: &[&str], say: Say<'_>) -> Result<PathBuf> {
    let copy = work.join("disk.img");
    let base = build(cache, Golden::Debian, say)?;
    install(&base, &copy, work, packages, &[], say)?;
    Ok(copy)
}

/// The first image, for a disk over iSCSI.
fn iscsi(cache: &Path, work: &Path, say: Say<'_>) -> Result<PathBuf> {
    let copy = work.join("disk.img");
    let base = build(cache, Golden::Debian, say)?;
    let packages = ["open-iscsi", "grub-efi-amd64-bin"];
    let loader = work.join("bootx64.efi");
    let loader_text = loader.to_str().context("a path that is text")?;
    let configure = [("CONFIGURE", ISCSI_SCRIPT), ("LOADER", loader_text)];
    install(&base, &copy, work, &packages, &configure, say)?;
    disk::add_system_partition(&copy, &loader)?;
    Ok(copy)
}

/// The files of the first image on a disk whose root is a file system of another kind.
fn copied(cache: &Path, work: &Path, kind: &str, say: Say<'_>) -> Result<PathBuf> {
    let base = build(cache, Golden::Debian, say)?;
    say(&format!("copying the files to {kind}"));
    let disk = work.join("disk.img");
    let mount = work.join("mount");
    fs::create_dir_all(&mount)?;
    let mut script = contained("sh");
    script
        .args(["-ec", COPY_SCRIPT])
        .env("BASE", base)
        .env("IMAGE", &disk)
        .env("KIND", kind)
        .env("DISK_BYTES", DISK_BYTES.to_string())
        .env("OFFSET", FIRST_PARTITION_BYTES.to_string())
        .env("FROM", work.join("from"))
        .env("MOUNT", &mount);
    let log = work.join("copy.log");
    watch(&mut script, &log, MARK, INSTALL_LIMIT, say)?;
    Ok(disk)
}

/// Copies `image` to `copy` and installs [`UPGRADE`] in the copy, as an administrator would.
///
/// # Errors
/// When a package cannot be installed.
pub fn upgrade(image: &Path, copy: &Path, work: &Path, say: Say<'_>) -> Result<()> {
    install(image, copy, work, &UPGRADE, &[], say)
}

fn install(
    image: &Path,
    copy: &Path,
    work: &Path,
    packages: &[&str],
    more: &[(&str, &str)],
    say: Say<'_>,
) -> Result<()> {
    let mut cp = Command::new("cp");
    cp.args(["--sparse=always", "--reflink=auto"])
        .arg(image)
        .arg(copy);
    tool::run_command(&mut cp)?;
    let mount = work.join("mount");
    fs::create_dir_all(&mount)?;
    let mut script = contained("sh");
    script
        .args(["-ec", UPGRADE_SCRIPT])
        .env("IMAGE", copy)
        .env("OFFSET", FIRST_PARTITION_BYTES.to_string())
        .env("MOUNT", &mount)
        .env("PACKAGES", packages.join(" "))
        .env("CONFIGURE", "")
        .envs(more.iter().copied())
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C.UTF-8");
    watch(
        &mut script,
        &work.join("install.log"),
        MARK,
        INSTALL_LIMIT,
        say,
    )
}

/// `program` in namespaces that end with it: its mounts and all it started go too.
fn contained(program: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    // Only the system's own programs, whatever the caller's path is.
    command
        .arg(program)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

/// Writes GRUB's first stage into the first sector and the rest of it behind,
/// before the first partition, which is where the first stage looks by default.
fn install_boot_loader(image: &Path, grub: &Path) -> Result<()> {
    let read = |name: &str| fs::read(grub.join(name)).with_context(|| format!("read {name}"));
    let [boot, core] = ["boot.img", "core.img"].map(read);
    let (boot, core) = (boot?, core?);
    ensure!(
        boot.len() as u64 == SECTOR_BYTES,
        "GRUB's boot.img is not one sector"
    );
    ensure!(
        core.len() as u64 <= FIRST_PARTITION_BYTES - SECTOR_BYTES,
        "GRUB's core.img does not fit before the first partition"
    );
    let disk = File::options().write(true).open(image)?;
    disk.write_all_at(&boot[..BOOT_CODE_BYTES], 0)?;
    disk.write_all_at(&core, SECTOR_BYTES)?;
    Ok(())
}
