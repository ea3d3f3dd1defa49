//! What an image's own initrd is, told by the names of the files in it.
//!
//! A machine whose root is a disk over iSCSI needs an initiator before it has a
//! root. Whether the image's initrd brings one is read here, without running
//! anything of it: an early archive for the processor's microcode, and after it
//! the archive itself, plain or compressed. Contents are passed over; only names
//! are looked at. The initrd is the image's, and so is not trusted: its length,
//! its number of files and the length of their names are bounded. Where it brings none, one is
//! added to it.

use super::{
    arguments::own_arguments,
    kernel::Kernel,
    root_fs::{FsError, RootFs},
};

mod archive;
mod lz4;
#[cfg(test)]
mod tests;

pub use archive::InitrdError;

/// The largest initrd of an image that is read, in bytes, as it is stored.
pub const INITRD_BYTES_MAX: u64 = 512 << 20;

/// How arguments begin that have an initrd log in: open-iscsi's script's, and dracut's
/// (dracut.cmdline(7)).
const ISCSI_ARGUMENTS: [&str; 5] = [
    "iscsi_",
    "ISCSI_",
    "rd.iscsi.",
    "netroot=iscsi",
    "iscsiroot",
];

/// Archives begin at a multiple of this (buffer-format.rst).
const ALIGNMENT_BYTES: usize = 4;

/// What is in an image's own initrd, as far as iSCSI goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Initrd {
    /// Whether it has a program that logs in, and what runs that.
    has_initiator: bool,
    /// Whether it has what tells that to log in.
    is_told: bool,
    /// How long the archives are, from the beginning on, that are not compressed.
    early_bytes: usize,
}

impl Initrd {
    /// Reads an initrd, as it is stored.
    ///
    /// # Errors
    /// When it is damaged, longer than it may be, or compressed in a way that is
    /// not known.
    pub fn read(bytes: &[u8]) -> Result<Self, InitrdError> {
        let mut names = Names::default();
        let early_bytes = archive::walk(bytes, &mut |path| names.note(path))?;
        Ok(Self {
            has_initiator: names.has_program && names.has_runner,
            is_told: names.is_told,
            early_bytes,
        })
    }

    /// Whether it logs in to a disk over iSCSI: an initiator that nothing tells to do so, as
    /// installing open-iscsi alone leaves it, does not.
    #[must_use]
    pub fn logs_in(&self, arguments: IscsiArguments) -> bool {
        let is_told = self.is_told || arguments == IscsiArguments::Some;
        self.has_initiator && is_told
    }

    /// The initrd, which was read from `bytes`, with another archive in it, compressed.
    ///
    /// It comes behind the processor's microcode, which is to be first, and before what is
    /// compressed: not every decompressor of the kernel finds its own end.
    #[must_use]
    pub fn with(&self, bytes: &[u8], archive: &[u8]) -> Vec<u8> {
        let (early, rest) = bytes.split_at(self.early_bytes.min(bytes.len()));
        let mut whole = Vec::with_capacity(bytes.len() + archive.len() + 2 * ALIGNMENT_BYTES);
        for part in [early, archive, rest] {
            whole.resize(whole.len().next_multiple_of(ALIGNMENT_BYTES), 0);
            whole.extend_from_slice(part);
        }
        whole
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

/// Whether an image's own boot loader tells its initrd of a disk over iSCSI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IscsiArguments {
    /// It does.
    Some,
    /// It does not, as far as its settings say.
    None,
}

/// Reads the settings of an image's boot loader.
///
/// # Errors
/// When the image cannot be read.
pub fn iscsi_arguments(fs: &dyn RootFs) -> Result<IscsiArguments, FsError> {
    let arguments = own_arguments(fs)?;
    let is_one = |word: &String| ISCSI_ARGUMENTS.iter().any(|start| word.starts_with(start));
    Ok(if arguments.iter().any(is_one) {
        IscsiArguments::Some
    } else {
        IscsiArguments::None
    })
}

/// What is noticed while an archive is read.
#[derive(Default)]
struct Names {
    is_told: bool,
    has_program: bool,
    has_runner: bool,
}

impl Names {
    /// Takes the path of a file, as the archive has it.
    fn note(&mut self, path: &str) {
        let path = path.trim_start_matches("./").trim_start_matches('/');
        // Whether `/lib` leads to `/usr/lib` differs from one image to the next.
        let path = path.strip_prefix("usr/").unwrap_or(path);
        match path {
            "bin/iscsistart" | "sbin/iscsistart" | "bin/iscsid" | "sbin/iscsid" => {
                self.has_program = true;
            }
            // open-iscsi's script, dracut's module, and mkinitcpio's hook.
            "scripts/local-top/iscsi" | "bin/iscsiroot" | "sbin/iscsiroot" | "hooks/iscsi" => {
                self.has_runner = true;
                self.is_told |= path == "hooks/iscsi";
            }
            // What open-iscsi's script reads.
            "etc/iscsi.initramfs" => self.is_told = true,
            // Arguments that dracut was given when it made it.
            _ => self.is_told |= path.starts_with("etc/cmdline.d/") && path.contains("iscsi"),
        }
    }
}
