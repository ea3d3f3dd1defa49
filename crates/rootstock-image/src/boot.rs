//! What boots a machine from an image: its root, its kernel, and a first stage made for them.
//!
//! All of it is read from the image through [`RootFs`], and nothing of it is
//! trusted: sizes and counts are bounded, links stay within the root, and what
//! does not fit is an error that names it. The first stage is made from the
//! kernel's own modules, so it makes no difference which tool made the image's
//! own initrd.

mod arguments;
mod assemble;
mod cpio;
mod ext4;
mod firmware;
mod initrd;
mod kernel;
#[cfg(test)]
mod memory;
mod modinfo;
mod modules;
mod root_fs;
mod select;
mod system;
#[cfg(test)]
mod tests;
mod unpack;

pub use arguments::{ARGUMENTS_BYTES_MAX, kept_arguments};
pub use assemble::{
    AssembleError, Assembled, Compression, Ingredients, MODULES_BYTES_MAX, NFS, assemble,
    assemble_initiator, compression, initiator_digest,
};
pub use cpio::Cpio;
pub use ext4::Ext4Fs;
pub use firmware::FIRMWARE_BYTES_MAX;
pub use initrd::{
    INITRD_BYTES_MAX, Initrd, InitrdError, IscsiArguments, iscsi_arguments, own_initrd,
};
pub use kernel::{KERNEL_BYTES_MAX, Kernel, KernelError, choose_kernel, kernels, newer};
pub use root_fs::{FileKind, FsError, JoinedFs, RootFs, Stat};
pub use system::{OpenFs, OpenFsError, Opened, System, SystemError, find_system};
pub use unpack::UnpackError;
