//! Tells file systems and their like by their signatures.

use std::io;

use crate::read_at::{ReadAt, Window};

/// What a signature stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signature {
    /// ext2, ext3 or ext4.
    Ext,
    /// FAT of any width.
    Fat,
    /// Linux swap space.
    Swap,
    /// XFS.
    Xfs,
    /// NTFS.
    Ntfs,
    /// Btrfs.
    Btrfs,
    /// A physical volume of LVM2.
    Lvm,
    /// A member of a Linux software RAID.
    Md,
    /// Something whose free space is not looked for.
    Other(&'static str),
}

impl Signature {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ext => "ext",
            Self::Fat => "fat",
            Self::Swap => "swap",
            Self::Xfs => "xfs",
            Self::Ntfs => "ntfs",
            Self::Btrfs => "btrfs",
            Self::Lvm => super::lvm::NAME,
            Self::Md => super::md::NAME,
            Self::Other(name) => name,
        }
    }

    /// Where its UUID lies, if it is one that has a root: `s_uuid`, `sb_uuid` and `fsid` of
    /// the first superblocks.
    fn uuid_at(self) -> Option<u64> {
        match self {
            Self::Ext => Some(1024 + 0x68),
            Self::Xfs => Some(32),
            Self::Btrfs => Some(0x10020),
            _ => None,
        }
    }

    /// Its UUID, if it is one that has a root, and is as long as it should be.
    pub(super) fn uuid(self, window: &Window<'_>) -> io::Result<Option<[u8; 16]>> {
        let at = self.uuid_at();
        let Some(at) = at.filter(|at| at + 16 <= window.len_bytes()) else {
            return Ok(None);
        };
        let mut uuid = [0; 16];
        window.read_exact_at(at, &mut uuid)?;
        Ok(Some(uuid))
    }

    /// Whether it can be mounted without a mark on the disk: XFS has none before
    /// its first change, Btrfs never, and NTFS none of ntfs-3g. LVM has none, and may
    /// give its extents to others while they are read.
    pub(super) fn may_be_in_use_unmarked(self) -> bool {
        matches!(self, Self::Xfs | Self::Ntfs | Self::Btrfs | Self::Lvm)
    }
}

/// How much of the beginning of a partition holds signatures, in bytes: Btrfs
/// has its first superblock at 64 KiB.
const HEAD_BYTES: usize = 0x11000;

/// The kernel's `include/uapi/linux/bcache.h`, and bcachefs's own of the same place.
const BCACHE: [u8; 16] = [
    0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81,
];
const BCACHEFS: [u8; 16] = [
    0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9, 0xd9, 0x6a, 0x60, 0xcf, 0x80, 0x3d, 0xf7, 0xef,
];

/// ZFS's label has its uberblocks in its second half, in slots of at least 1 KiB, and its
/// first 8 KiB are left as they were: "ZFS On-Disk Specification", chapter 1.
const ZFS_UBERBLOCKS: std::ops::Range<u64> = 128 << 10..256 << 10;
const ZFS: [[u8; 8]; 2] = [0x00ba_b10c_u64.to_le_bytes(), 0x00ba_b10c_u64.to_be_bytes()];

/// Signatures at fixed places: place in bytes, bytes, meaning.
const MAGICS: [(usize, &[u8], Signature); 32] = [
    (1024 + 56, &[0x53, 0xef], Signature::Ext),
    (4086, b"SWAPSPACE2", Signature::Swap),
    (4086, b"SWAP-SPACE", Signature::Swap),
    (4086, b"S1SUSPEND\0", Signature::Swap),
    (4086, b"S2SUSPEND\0", Signature::Swap),
    (4086, b"ULSUSPEND\0", Signature::Swap),
    (4086, b"LINHIB0001", Signature::Swap),
    (8182, b"SWAPSPACE2", Signature::Other("swap of 8 KiB pages")),
    (
        16374,
        b"SWAPSPACE2",
        Signature::Other("swap of 16 KiB pages"),
    ),
    (
        65526,
        b"SWAPSPACE2",
        Signature::Other("swap of 64 KiB pages"),
    ),
    (0, b"XFSB", Signature::Xfs),
    (3, b"NTFS    ", Signature::Ntfs),
    (3, b"EXFAT   ", Signature::Other("exfat")),
    (3, b"-FVE-FS-", Signature::Other("bitlocker")),
    (3, b"ReFS\0", Signature::Other("refs")),
    (0x10040, b"_BHRfS_M", Signature::Btrfs),
    (0, b"LUKS\xba\xbe", Signature::Other("luks")),
    (1024, &[0x10, 0x20, 0xf5, 0xf2], Signature::Other("f2fs")),
    (0, b"hsqs", Signature::Other("squashfs")),
    (0x8001, b"CD001", Signature::Other("iso9660")),
    (0x10034, b"ReIsEr", Signature::Other("reiserfs")),
    (1024, b"H+\0\x04", Signature::Other("hfs+")),
    (1024, &[0xe2, 0xe1, 0xf5, 0xe0], Signature::Other("erofs")),
    (
        1024,
        &[2, 0, 0, 0, 0, 0, 0x34, 0x34],
        Signature::Other("nilfs2"),
    ),
    (4096 + 24, &BCACHE, Signature::Other("bcache")),
    (4096 + 24, &BCACHEFS, Signature::Other("bcachefs")),
    (0x8000, b"JFS1", Signature::Other("jfs")),
    (0x10000, &[1, 0x16, 0x19, 0x70], Signature::Other("gfs2")),
    (0x400, b"OCFSV2", Signature::Other("ocfs2")),
    (0x800, b"OCFSV2", Signature::Other("ocfs2")),
    (0x1000, b"OCFSV2", Signature::Other("ocfs2")),
    (0x2000, b"OCFSV2", Signature::Other("ocfs2")),
];

/// All that the beginning of a partition says it is.
pub(super) fn find(window: &Window<'_>) -> io::Result<Vec<Signature>> {
    let len = window.len_bytes().min(HEAD_BYTES as u64) as usize;
    if len == 0 {
        // A partition that begins past the disk's end has no place to read at.
        return Ok(Vec::new());
    }
    let mut head = vec![0; len];
    window.read_exact_at(0, &mut head)?;
    let mut found: Vec<Signature> = Vec::new();
    let mut add = |signature| {
        if !found.contains(&signature) {
            found.push(signature);
        }
    };
    for (place, magic, signature) in MAGICS {
        if head.get(place..).is_some_and(|at| at.starts_with(magic)) {
            add(signature);
        }
    }
    // LVM looks for its label in the first four sectors.
    if (0..4).any(|sector| {
        head.get(sector * 512..)
            .is_some_and(|at| at.starts_with(b"LABELONE") && at.get(24..32) == Some(b"LVM2 001"))
    }) {
        add(Signature::Lvm);
    }
    if super::fat::is_boot_sector(&head) {
        add(Signature::Fat);
    }
    if has_zfs(window)? {
        add(Signature::Other("zfs"));
    }
    if super::md::is_there(window)? {
        add(Signature::Md);
    }
    Ok(found)
}

fn has_zfs(window: &Window<'_>) -> io::Result<bool> {
    if window.len_bytes() < ZFS_UBERBLOCKS.end {
        return Ok(false);
    }
    let len = ZFS_UBERBLOCKS.end - ZFS_UBERBLOCKS.start;
    let mut blocks = vec![0; len as usize];
    window.read_exact_at(ZFS_UBERBLOCKS.start, &mut blocks)?;
    let is_one = |block: &[u8]| ZFS.iter().any(|magic| block.starts_with(magic));
    Ok(blocks.chunks(1024).any(is_one))
}
