//! Labels of file systems, by their superblocks.

/// Bytes from a disk's beginning that have all that is looked at.
pub(super) const HEAD_BYTES: usize = 0x1_0000 + 0x1000;

/// A file system's kind, as the kernel calls it, and its label. ext4 takes what ext2
/// and ext3 made.
pub(super) fn of(head: &[u8]) -> Option<(&'static str, String)> {
    // "Super Block", `Documentation/filesystems/ext4/super.rst`.
    if head.get(0x438..0x43a)? == [0x53, 0xef] {
        return Some(("ext4", text(head.get(0x478..0x488)?)));
    }
    // `struct xfs_dsb` of `fs/xfs/libxfs/xfs_format.h`: `sb_fname`.
    if head.starts_with(b"XFSB") {
        return Some(("xfs", text(head.get(108..120)?)));
    }
    // `struct btrfs_super_block`: at 64 KiB, its magic at 0x40, `label` at 0x12b.
    let btrfs = head.get(0x1_0000..)?;
    if btrfs.get(0x40..0x48)? == b"_BHRfS_M" {
        return Some(("btrfs", text(btrfs.get(0x12b..0x22b)?)));
    }
    None
}

/// What is before the first zero.
fn text(field: &[u8]) -> String {
    let len = field.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&field[..len.unwrap_or(field.len())]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_found_where_each_kind_has_them() {
        let blank = vec![0; HEAD_BYTES];
        assert_eq!(of(&blank), None);
        assert_eq!(of(&blank[..100]), None);
        let with = |parts: &[(usize, &[u8])]| {
            let mut head = blank.clone();
            for (at, bytes) in parts {
                head[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            of(&head)
        };
        for (parts, kind) in [
            (&[(0x438, &[0x53, 0xef][..]), (0x478, b"rootstock")], "ext4"),
            (&[(0, b"XFSB"), (108, b"rootstock")], "xfs"),
            (
                &[(0x1_0040, b"_BHRfS_M"), (0x1_012b, b"rootstock")],
                "btrfs",
            ),
        ] {
            assert_eq!(with(parts), Some((kind, "rootstock".to_owned())));
        }
        // A label may fill its field.
        let full = with(&[(0x438, &[0x53, 0xef]), (0x478, b"sixteen-letters!")]);
        assert_eq!(full, Some(("ext4", "sixteen-letters!".to_owned())));
    }
}
