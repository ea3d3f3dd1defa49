//! Which format a source has, by its own magic bytes: nothing else is asked.

use std::{fmt, str::FromStr};

/// How many bytes [`detect`] wants to see of the beginning of a source.
pub(crate) const HEAD_BYTES: usize = 1024;

/// How a source holds its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// The disk's bytes themselves.
    Raw,
    /// A disk format that QEMU reads for us.
    Foreign(Foreign),
    /// A tar archive with a disk in it: OVA or Vagrant box.
    Tar,
    /// A compressed stream of any of the others.
    Compressed(Compression),
}

/// Disk formats that QEMU reads for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Foreign {
    /// QEMU's qcow2, versions 2 and 3.
    Qcow2,
    /// VMware's VMDK.
    Vmdk,
    /// VirtualBox's VDI.
    Vdi,
    /// Virtual PC's VHD.
    Vhd,
    /// Hyper-V's VHDX.
    Vhdx,
}

/// Compressed streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    /// gzip (RFC 1952).
    Gzip,
    /// xz.
    Xz,
    /// Zstandard (RFC 8878).
    Zstd,
}

impl Foreign {
    /// QEMU's name of the driver.
    pub(crate) const fn driver(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
            Self::Vhd => "vpc",
            Self::Vhdx => "vhdx",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Raw => "raw",
            Self::Foreign(Foreign::Qcow2) => "qcow2",
            Self::Foreign(Foreign::Vmdk) => "VMDK",
            Self::Foreign(Foreign::Vdi) => "VDI",
            Self::Foreign(Foreign::Vhd) => "VHD",
            Self::Foreign(Foreign::Vhdx) => "VHDX",
            Self::Tar => "OVA or Vagrant box",
            Self::Compressed(Compression::Gzip) => "gzip",
            Self::Compressed(Compression::Xz) => "xz",
            Self::Compressed(Compression::Zstd) => "zstd",
        })
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text.to_ascii_lowercase().as_str() {
            "raw" | "img" => Self::Raw,
            "qcow2" => Self::Foreign(Foreign::Qcow2),
            "vmdk" => Self::Foreign(Foreign::Vmdk),
            "vdi" => Self::Foreign(Foreign::Vdi),
            "vhd" | "vpc" => Self::Foreign(Foreign::Vhd),
            "vhdx" => Self::Foreign(Foreign::Vhdx),
            "ova" | "box" | "tar" => Self::Tar,
            "gz" | "gzip" => Self::Compressed(Compression::Gzip),
            "xz" => Self::Compressed(Compression::Xz),
            "zst" | "zstd" => Self::Compressed(Compression::Zstd),
            _ => {
                return Err(
                    "write raw, qcow2, vmdk, vdi, vhd, vhdx, ova, box, gz, xz or zstd".to_owned(),
                );
            }
        })
    }
}

/// The format of what begins with `head` and ends with `tail` (its last 512
/// bytes, where a fixed VHD has its only mark). Anything unknown is raw.
pub(crate) fn detect(head: &[u8], tail: &[u8]) -> Format {
    let at = |offset: usize, magic: &[u8]| {
        head.get(offset..)
            .is_some_and(|rest| rest.starts_with(magic))
    };
    if at(0, b"QFI\xfb") {
        Format::Foreign(Foreign::Qcow2)
    } else if at(0, b"KDMV") || at(0, b"COWD") || is_vmdk_descriptor(head) {
        Format::Foreign(Foreign::Vmdk)
    } else if at(0x40, &0xbeda_107f_u32.to_le_bytes()) {
        Format::Foreign(Foreign::Vdi)
    } else if at(0, b"vhdxfile") {
        Format::Foreign(Foreign::Vhdx)
    } else if at(0, b"conectix") || tail.starts_with(b"conectix") {
        Format::Foreign(Foreign::Vhd)
    } else if at(257, b"ustar") {
        Format::Tar
    } else if at(0, &[0x1f, 0x8b]) {
        Format::Compressed(Compression::Gzip)
    } else if at(0, b"\xfd7zXZ\0") {
        Format::Compressed(Compression::Xz)
    } else if at(0, &[0x28, 0xb5, 0x2f, 0xfd]) {
        Format::Compressed(Compression::Zstd)
    } else {
        Format::Raw
    }
}

/// A VMDK that is only a text: QEMU takes comments and blank lines before the
/// line that names it.
fn is_vmdk_descriptor(head: &[u8]) -> bool {
    let text = String::from_utf8_lossy(head);
    text.lines()
        .map(str::trim)
        .take_while(|line| line.is_empty() || line.starts_with('#'))
        .any(|line| line.eq_ignore_ascii_case("# disk descriptorfile"))
        || text.starts_with("version=")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magic_bytes() {
        let placed = |offset: usize, magic: &[u8]| {
            let mut head = vec![0; HEAD_BYTES];
            head[offset..offset + magic.len()].copy_from_slice(magic);
            head
        };
        let cases: [(Vec<u8>, &str); 10] = [
            (placed(0, b"QFI\xfb\0\0\0\x03"), "qcow2"),
            (placed(0, b"KDMV"), "VMDK"),
            (placed(0, b"# Disk DescriptorFile\nversion=1\n"), "VMDK"),
            (placed(0, b"\n# x\n# Disk DescriptorFile\n"), "VMDK"),
            (placed(0x40, &[0x7f, 0x10, 0xda, 0xbe]), "VDI"),
            (placed(0, b"vhdxfile"), "VHDX"),
            (placed(0, b"conectix"), "VHD"),
            (placed(257, b"ustar\x0000"), "OVA or Vagrant box"),
            (placed(0, &[0x1f, 0x8b, 8]), "gzip"),
            (placed(510, &[0x55, 0xaa]), "raw"),
        ];
        for (head, expected) in cases {
            assert_eq!(detect(&head, &[]).to_string(), expected);
        }
        assert_eq!(
            detect(&[0; 512], b"conectix...").to_string(),
            "VHD",
            "a fixed VHD has only a footer"
        );
        assert_eq!(detect(b"", b""), Format::Raw);
    }
}
