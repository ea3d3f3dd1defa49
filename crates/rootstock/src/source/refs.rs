//! Refuses disk images that name other files, before any tool has opened them.
//!
//! A 200 kB qcow2 whose backing file is `/etc/shadow` would otherwise carry that
//! file into a version that many can read. QEMU is told besides never to open
//! what an image names; this check gives the message and does not rest on it.

use rootstock_core::units::DISK_BYTES_MAX;
use rootstock_image::ReadAt;

use super::detect::Foreign;

/// The longest VMDK descriptor that is read, in bytes.
const DESCRIPTOR_BYTES_MAX: u64 = 1 << 20;
/// The most header extensions of a qcow2 that are looked at.
const EXTENSIONS_MAX: usize = 64;

/// Why an image was refused by its header.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum HeaderError {
    /// It is not whole without another file.
    #[error("it takes data from {what}{}", named(name.as_ref()))]
    OtherFile {
        /// What the format calls the other file.
        what: &'static str,
        /// Its name as the image has it, cut to what a message bears.
        name: Option<String>,
    },
    /// Its contents are encrypted.
    #[error("it is encrypted")]
    Encrypted,
    /// It claims a disk larger than an image may be.
    #[error("it claims a disk of {disk_bytes} bytes, and the limit is {DISK_BYTES_MAX}")]
    TooLarge {
        /// The claimed size in bytes.
        disk_bytes: u64,
    },
    /// The header cannot be.
    #[error("{0}")]
    Corrupt(&'static str),
    /// It ends within its header, or could not be read.
    #[error("it ends within its header")]
    Short,
}

fn named(name: Option<&String>) -> String {
    name.map(|name| format!(", '{}'", name.escape_debug()))
        .unwrap_or_default()
}

/// Looks for references to other files in the header of `image`.
///
/// # Errors
/// [`HeaderError`] when there is one, or when the header cannot be trusted.
pub(crate) fn check(format: Foreign, image: &dyn ReadAt) -> Result<(), HeaderError> {
    match format {
        Foreign::Qcow2 => check_qcow2(image),
        Foreign::Vmdk => check_vmdk(image),
        Foreign::Vdi => check_vdi(image),
        Foreign::Vhd => check_vhd(image),
        // A VHDX with a parent says so deep in its metadata; QEMU refuses those.
        Foreign::Vhdx => Ok(()),
    }
}

/// QEMU's docs/interop/qcow2.txt, "Header".
fn check_qcow2(image: &dyn ReadAt) -> Result<(), HeaderError> {
    let header = read(image, 0, 72)?;
    if be32(&header, 0) != 0x5146_49fb {
        return Err(HeaderError::Corrupt("it does not begin as a qcow2 does"));
    }
    let version = be32(&header, 4);
    if !(2..=3).contains(&version) {
        return Err(HeaderError::Corrupt(
            "it is a qcow2 of a version that is not known",
        ));
    }
    let (backing_at, backing_len) = (be64(&header, 8), be32(&header, 16));
    if backing_at != 0 || backing_len != 0 {
        return Err(HeaderError::OtherFile {
            what: "a backing file",
            name: text(image, backing_at, u64::from(backing_len)),
        });
    }
    if be32(&header, 32) != 0 {
        return Err(HeaderError::Encrypted);
    }
    check_size(be64(&header, 24))?;
    let (features, header_bytes) = if version == 3 {
        let more = read(image, 72, 32)?;
        (be64(&more, 0), u64::from(be32(&more, 28)))
    } else {
        (0, 72)
    };
    let data_file = qcow2_data_file(image, header_bytes);
    if features & 4 != 0 || data_file.is_some() {
        return Err(HeaderError::OtherFile {
            what: "an external data file",
            name: data_file,
        });
    }
    Ok(())
}

/// The name in the header extension "external data file name", if there is one.
fn qcow2_data_file(image: &dyn ReadAt, header_bytes: u64) -> Option<String> {
    let mut at = header_bytes;
    for _ in 0..EXTENSIONS_MAX {
        let extension = read(image, at, 8).ok()?;
        let (kind, len) = (be32(&extension, 0), u64::from(be32(&extension, 4)));
        match kind {
            0 => return None,
            0x4441_5441 => return text(image, at + 8, len).or_else(|| Some(String::new())),
            _ => at += 8 + len.next_multiple_of(8),
        }
    }
    None
}

/// VMware's "Virtual Disk Format 5.0", "Hosted Sparse Extents".
fn check_vmdk(image: &dyn ReadAt) -> Result<(), HeaderError> {
    let header = read(image, 0, 80.min(image.len_bytes()))?;
    if header.starts_with(b"COWD") {
        return Err(HeaderError::OtherFile {
            what: "an ESX descriptor file and its other extents",
            name: None,
        });
    }
    if !header.starts_with(b"KDMV") {
        let text = text_of(image, 0, image.len_bytes());
        return Err(other_extents(&text).unwrap_or(HeaderError::Corrupt(
            "it is a VMDK descriptor without any data",
        )));
    }
    if header.len() < 80 {
        return Err(HeaderError::Short);
    }
    let capacity_sectors = le64(&header, 12);
    let (descriptor_at, descriptor_len) = (le64(&header, 28), le64(&header, 36));
    let descriptor = text_of(
        image,
        descriptor_at.saturating_mul(512),
        descriptor_len.saturating_mul(512),
    );
    // Without a capacity the file only carries a descriptor of other files.
    if capacity_sectors == 0 {
        return Err(other_extents(&descriptor).unwrap_or(HeaderError::Corrupt(
            "it is a VMDK that claims a disk of 0 bytes",
        )));
    }
    check_size(capacity_sectors.saturating_mul(512))?;
    if descriptor_at == 0 || !descriptor.to_ascii_lowercase().contains("createtype") {
        return Err(HeaderError::OtherFile {
            what: "a descriptor file and its other extents: it is a part of a split disk",
            name: None,
        });
    }
    if let Some(parent) = value_of(&descriptor, "parentFileNameHint") {
        return Err(HeaderError::OtherFile {
            what: "a parent disk",
            name: Some(parent),
        });
    }
    if extents(&descriptor).count() > 1 {
        return Err(other_extents(&descriptor).unwrap_or(HeaderError::Short));
    }
    Ok(())
}

/// The complaint about the first file a descriptor names.
fn other_extents(descriptor: &str) -> Option<HeaderError> {
    let parent = value_of(descriptor, "parentFileNameHint");
    let (what, name) = match parent {
        Some(parent) => ("a parent disk", parent),
        None => ("another file", extents(descriptor).next()?),
    };
    Some(HeaderError::OtherFile {
        what,
        name: Some(name),
    })
}

/// The file names of a descriptor's extent lines: `RW 4192256 FLAT "disk-flat.vmdk" 0`.
fn extents(descriptor: &str) -> impl Iterator<Item = String> + '_ {
    descriptor.lines().filter_map(|line| {
        let line = line.trim_start();
        let access = line.split_whitespace().next()?;
        ["RW", "RDONLY", "NOACCESS"]
            .iter()
            .any(|known| access.eq_ignore_ascii_case(known))
            .then(|| line.split('"').nth(1).map(shorten))?
    })
}

/// The value of a descriptor's line `KEY = "value"`.
fn value_of(descriptor: &str, key: &str) -> Option<String> {
    descriptor.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        name.trim()
            .eq_ignore_ascii_case(key)
            .then(|| shorten(value.trim().trim_matches('"')))
    })
}

/// VirtualBox's VDI header, version 1.1.
fn check_vdi(image: &dyn ReadAt) -> Result<(), HeaderError> {
    let header = read(image, 0, 0x1c8)?;
    check_size(le64(&header, 0x170))?;
    check_vdi_end(&header, image.len_bytes())?;
    let linked = header[0x1a8..0x1c8].iter().any(|byte| *byte != 0);
    match le32(&header, 0x4c) {
        1 | 2 if !linked => Ok(()),
        _ => Err(HeaderError::OtherFile {
            what: "a parent disk (it is a snapshot or a linked clone)",
            name: None,
        }),
    }
}

/// Whether the blocks that a VDI says it has are there: QEMU does not look.
fn check_vdi_end(header: &[u8], file_bytes: u64) -> Result<(), HeaderError> {
    let blocks = u64::from(le32(header, 0x184));
    let block_bytes = u64::from(le32(header, 0x178));
    let end = blocks
        .checked_mul(block_bytes)
        .and_then(|len| len.checked_add(u64::from(le32(header, 0x158))));
    if end.is_none_or(|end| end > file_bytes) {
        return Err(HeaderError::Corrupt("its end is missing"));
    }
    Ok(())
}

/// Microsoft's "Virtual Hard Disk Image Format", "Hard Disk Footer Format".
fn check_vhd(image: &dyn ReadAt) -> Result<(), HeaderError> {
    let last = image
        .len_bytes()
        .checked_sub(512)
        .ok_or(HeaderError::Short)?;
    // A dynamic one has a copy at its beginning, but without the one at its end
    // the blocks before that may be missing too.
    let footer = read(image, last, 512)?;
    if !footer.starts_with(b"conectix") {
        return Err(HeaderError::Corrupt(
            "it has no VHD footer: its end is missing",
        ));
    }
    check_size(be64(&footer, 48))?;
    match be32(&footer, 60) {
        2 | 3 => Ok(()),
        4 => Err(HeaderError::OtherFile {
            what: "a parent disk (it is a differencing disk)",
            name: None,
        }),
        _ => Err(HeaderError::Corrupt("it is a VHD of an unknown type")),
    }
}

fn check_size(disk_bytes: u64) -> Result<(), HeaderError> {
    if disk_bytes > DISK_BYTES_MAX {
        return Err(HeaderError::TooLarge { disk_bytes });
    }
    Ok(())
}

fn read(image: &dyn ReadAt, at: u64, len: u64) -> Result<Vec<u8>, HeaderError> {
    if at
        .checked_add(len)
        .is_none_or(|end| end > image.len_bytes())
    {
        return Err(HeaderError::Short);
    }
    let mut bytes = vec![0; len as usize];
    match image.read_exact_at(at, &mut bytes) {
        Ok(()) => Ok(bytes),
        Err(_) => Err(HeaderError::Short),
    }
}

/// A name in the image, cut to what a message bears.
fn text(image: &dyn ReadAt, at: u64, len: u64) -> Option<String> {
    let bytes = read(image, at, len.min(256)).ok()?;
    Some(shorten(&String::from_utf8_lossy(&bytes)))
}

/// A text in the image as far as it is there.
fn text_of(image: &dyn ReadAt, at: u64, len: u64) -> String {
    let rest = image.len_bytes().saturating_sub(at);
    let bytes = read(image, at, len.min(DESCRIPTOR_BYTES_MAX).min(rest)).unwrap_or_default();
    String::from_utf8_lossy(&bytes)
        .trim_end_matches('\0')
        .to_owned()
}

fn shorten(name: &str) -> String {
    name.trim_end_matches('\0').chars().take(128).collect()
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4]
        .iter()
        .fold(0, |value, byte| value << 8 | u32::from(*byte))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    be32(bytes, at).swap_bytes()
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    be64(bytes, at).swap_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_snapshot;

    fn qcow2(backing: &str, data_file: &str) -> Vec<u8> {
        let mut image = vec![0; 4096];
        image[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        image[24..32].copy_from_slice(&(1_u64 << 30).to_be_bytes());
        image[100..104].copy_from_slice(&104_u32.to_be_bytes());
        if !backing.is_empty() {
            image[8..16].copy_from_slice(&2048_u64.to_be_bytes());
            image[16..20].copy_from_slice(&(backing.len() as u32).to_be_bytes());
            image[2048..2048 + backing.len()].copy_from_slice(backing.as_bytes());
        }
        if !data_file.is_empty() {
            image[79] = 4;
            image[104..108].copy_from_slice(b"DATA");
            image[108..112].copy_from_slice(&(data_file.len() as u32).to_be_bytes());
            image[112..112 + data_file.len()].copy_from_slice(data_file.as_bytes());
        }
        image
    }

    fn vmdk(capacity_sectors: u64, descriptor: &str) -> Vec<u8> {
        let mut image = vec![0; 4096];
        image[..4].copy_from_slice(b"KDMV");
        image[12..20].copy_from_slice(&capacity_sectors.to_le_bytes());
        image[28..36].copy_from_slice(&1_u64.to_le_bytes());
        image[36..44].copy_from_slice(&4_u64.to_le_bytes());
        image[512..512 + descriptor.len()].copy_from_slice(descriptor.as_bytes());
        image
    }

    fn refusal(format: Foreign, image: &[u8]) -> String {
        check(format, &image.to_vec())
            .expect_err("refused")
            .to_string()
    }

    #[test]
    fn what_names_nothing_passes() {
        assert_eq!(check(Foreign::Qcow2, &qcow2("", "")), Ok(()));
        let whole =
            "# Disk DescriptorFile\ncreateType=\"monolithicSparse\"\nRW 8 SPARSE \"x.vmdk\"\n";
        assert_eq!(check(Foreign::Vmdk, &vmdk(8, whole)), Ok(()));
    }

    #[test]
    fn other_files_are_named() {
        let shadow = "/etc/shadow";
        let text =
            b"# Disk DescriptorFile\ncreateType=\"monolithicFlat\"\nRW 8 FLAT \"/etc/shadow\" 0\n";
        let parent =
            "# Disk DescriptorFile\ncreateType=\"x\"\nparentFileNameHint=\"/etc/shadow\"\n";
        let lines = [
            refusal(Foreign::Qcow2, &qcow2(shadow, "")),
            refusal(Foreign::Qcow2, &qcow2("", shadow)),
            refusal(Foreign::Vmdk, text),
            refusal(Foreign::Vmdk, &vmdk(8, parent)),
            refusal(
                Foreign::Vmdk,
                &vmdk(0, "createType=\"x\"\nRW 8 FLAT \"/etc/shadow\" 0\n"),
            ),
            refusal(Foreign::Vmdk, &vmdk(8, "")),
            refusal(Foreign::Vmdk, b"COWD"),
        ];
        assert_snapshot!(lines.join("\n"), @r"
        it takes data from a backing file, '/etc/shadow'
        it takes data from an external data file, '/etc/shadow'
        it takes data from another file, '/etc/shadow'
        it takes data from a parent disk, '/etc/shadow'
        it takes data from another file, '/etc/shadow'
        it takes data from a descriptor file and its other extents: it is a part of a split disk
        it takes data from an ESX descriptor file and its other extents
        ");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let mut huge = qcow2("", "");
        huge[24..32].fill(0xff);
        let mut encrypted = qcow2("", "");
        encrypted[35] = 1;
        let mut vhd = vec![0; 1024];
        vhd[512..520].copy_from_slice(b"conectix");
        vhd[512 + 63] = 4;
        let mut vdi = vec![0; 512];
        vdi[0x4c] = 4;
        let mut cut = vdi.clone();
        (cut[0x4c], cut[0x17a], cut[0x184]) = (1, 16, 1);
        let lines = [
            refusal(Foreign::Qcow2, &huge),
            refusal(Foreign::Qcow2, &encrypted),
            refusal(Foreign::Qcow2, &qcow2("", "")[..60]),
            refusal(Foreign::Vhd, &vhd),
            refusal(Foreign::Vhd, &[0; 1024]),
            refusal(Foreign::Vdi, &vdi),
            refusal(Foreign::Vdi, &cut),
        ];
        assert_snapshot!(lines.join("\n"), @r"
        it claims a disk of 18446744073709551615 bytes, and the limit is 70368744177664
        it is encrypted
        it ends within its header
        it takes data from a parent disk (it is a differencing disk)
        it has no VHD footer: its end is missing
        it takes data from a parent disk (it is a snapshot or a linked clone)
        its end is missing
        ");
    }
}
