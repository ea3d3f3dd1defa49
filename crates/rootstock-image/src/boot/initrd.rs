//! What an image's own initrd is, told by the names of the files in it.
//!
//! A machine whose root is a disk over iSCSI needs an initiator before it has a
//! root. Whether the image's initrd brings one is read here, without running
//! anything of it: an early archive for the processor's microcode, and after it
//! the archive itself, plain or compressed. Contents are passed over; only names
//! are looked at. The initrd is the image's, and so is not trusted: its length,
//! its number of files and the length of their names are bounded.

use std::collections::BTreeSet;

use super::{
    kernel::Kernel,
    modules::{ModuleIndex, name_of},
    root_fs::{FsError, RootFs},
};

mod archive;
mod lz4;
#[cfg(test)]
mod tests;

pub use archive::InitrdError;

/// The largest initrd of an image that is read, in bytes, as it is stored.
pub const INITRD_BYTES_MAX: u64 = 512 << 20;

/// Modules that an iSCSI disk takes; what they need comes besides.
const ISCSI_MODULES: [&str; 3] = ["iscsi_tcp", "iscsi_ibft", "sd_mod"];

/// Where the drivers of wired cards are, below `lib/modules/VERSION/`.
const NETWORK_DIRS: [&str; 2] = ["kernel/drivers/net/ethernet/", "kernel/drivers/net/usb/"];

/// Drivers of cards of virtual machines, which are not in those directories.
const NETWORK_NAMES: [&str; 4] = ["virtio_net", "vmxnet3", "xen_netfront", "hv_netvsc"];

/// The tool that made an initrd: it decides how hooks are given to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitrdKind {
    /// Debian's and Ubuntu's.
    InitramfsTools,
    /// Fedora's, SUSE's, and others' by choice.
    Dracut,
    /// Arch Linux's.
    Mkinitcpio,
    /// None that is known.
    Unknown,
}

/// What is in an image's own initrd, as far as iSCSI goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Initrd {
    /// The tool that made it.
    pub kind: InitrdKind,
    /// Whether it has a program that logs in, and what runs that.
    pub has_initiator: bool,
    /// The kernel's modules in it, by name.
    pub modules: BTreeSet<String>,
    /// Whether it has the driver of any wired network card.
    pub has_network_drivers: bool,
}

/// What an initrd lacks for a root over iSCSI.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IscsiNeeds {
    /// Whether there is no initiator in it.
    pub initiator: bool,
    /// Modules that the kernel has beside it, closed over what each needs.
    pub modules: BTreeSet<String>,
    /// Modules that the image has not at all.
    pub lacking: Vec<String>,
}

impl Initrd {
    /// Reads an initrd, as it is stored.
    ///
    /// # Errors
    /// When it is damaged, longer than it may be, or compressed in a way that is
    /// not known.
    pub fn read(bytes: &[u8]) -> Result<Self, InitrdError> {
        let mut names = Names::default();
        archive::walk(bytes, &mut |path| names.note(path))?;
        Ok(names.told())
    }

    /// What is to be added before a kernel of the image finds an iSCSI disk.
    ///
    /// # Errors
    /// When the image's lists of modules cannot be read.
    pub fn iscsi_needs(&self, fs: &dyn RootFs, kernel: &Kernel) -> Result<IscsiNeeds, FsError> {
        let index = ModuleIndex::read(fs, &kernel.modules)?;
        let is_network = |path: &str| NETWORK_DIRS.iter().any(|dir| path.starts_with(dir));
        let mut wanted: Vec<String> = ISCSI_MODULES.map(ToOwned::to_owned).into();
        if !self.has_network_drivers && !index.builtin().any(|(_, path)| is_network(path)) {
            let drivers = index
                .modules()
                .filter(|(name, module)| NETWORK_NAMES.contains(name) || is_network(&module.path));
            wanted.extend(drivers.map(|(name, _)| name.to_owned()));
        }
        let lacking = ISCSI_MODULES.iter().filter(|name| !index.has(name));
        let lacking = lacking.map(|name| (*name).to_owned()).collect();
        let mut modules = index.closed(wanted);
        modules.retain(|name| !self.modules.contains(name));
        Ok(IscsiNeeds {
            initiator: !self.has_initiator,
            modules,
            lacking,
        })
    }
}

/// Where the image keeps the initrd of a kernel, by the habits of distributions.
///
/// # Errors
/// When the image cannot be read.
pub fn own_initrd(fs: &dyn RootFs, kernel: &Kernel) -> Result<Option<String>, FsError> {
    let version = &kernel.version;
    let mut places = vec![
        format!("/boot/initrd.img-{version}"),
        format!("/boot/initramfs-{version}.img"),
        format!("/boot/initrd-{version}"),
        format!("{}/initrd", kernel.modules),
    ];
    // Arch Linux has names without versions: `vmlinuz-linux` and its twin.
    if let Some(flavour) = kernel.path.strip_prefix("/boot/vmlinuz-") {
        places.push(format!("/boot/initramfs-{flavour}.img"));
    }
    for place in places {
        if fs.is_file(&place)? {
            return Ok(Some(place));
        }
    }
    Ok(None)
}

/// What is noticed while an archive is read.
#[derive(Default)]
struct Names {
    is_initramfs_tools: bool,
    is_dracut: bool,
    is_mkinitcpio: bool,
    has_program: bool,
    has_runner: bool,
    has_network_drivers: bool,
    modules: BTreeSet<String>,
}

impl Names {
    /// Takes the path of a file, as the archive has it.
    fn note(&mut self, path: &str) {
        let path = path.trim_start_matches("./").trim_start_matches('/');
        // Whether `/lib` leads to `/usr/lib` differs from one image to the next.
        let path = path.strip_prefix("usr/").unwrap_or(path);
        match path {
            "scripts/functions" | "conf/initramfs.conf" => self.is_initramfs_tools = true,
            "lib/dracut-lib.sh" | "lib/dracut/dracut-lib.sh" => self.is_dracut = true,
            "init_functions" => self.is_mkinitcpio = true,
            "bin/iscsistart" | "sbin/iscsistart" | "bin/iscsid" | "sbin/iscsid" => {
                self.has_program = true;
            }
            // open-iscsi's script, dracut's module, and mkinitcpio's hook.
            "scripts/local-top/iscsi" | "bin/iscsiroot" | "sbin/iscsiroot" | "hooks/iscsi" => {
                self.has_runner = true;
            }
            _ => {}
        }
        if let Some((_, module)) = path
            .strip_prefix("lib/modules/")
            .and_then(|rest| rest.split_once('/'))
        {
            self.note_module(module);
        }
    }

    fn note_module(&mut self, path: &str) {
        let file = path.rsplit('/').next().unwrap_or(path);
        let is_module = [".ko", ".ko.gz", ".ko.xz", ".ko.zst"]
            .iter()
            .any(|ending| file.ends_with(ending));
        if is_module {
            let name = name_of(path);
            self.has_network_drivers |= NETWORK_NAMES.contains(&name.as_str())
                || NETWORK_DIRS.iter().any(|dir| path.starts_with(dir));
            self.modules.insert(name);
        }
    }

    fn told(self) -> Initrd {
        // dracut's archives may have a `scripts` of somebody's own, the others'
        // never have dracut's library.
        let kind = match (self.is_dracut, self.is_initramfs_tools, self.is_mkinitcpio) {
            (true, _, _) => InitrdKind::Dracut,
            (_, true, _) => InitrdKind::InitramfsTools,
            (_, _, true) => InitrdKind::Mkinitcpio,
            _ => InitrdKind::Unknown,
        };
        Initrd {
            kind,
            has_initiator: self.has_program && self.has_runner,
            modules: self.modules,
            has_network_drivers: self.has_network_drivers,
        }
    }
}
