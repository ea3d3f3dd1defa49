//! Records of NTFS's file table: fixups, attributes and runs of clusters.

use super::{
    super::{Refusal, kept},
    le16_at, le32_at, le64_at,
};
use crate::fields::bytes_at;

pub(super) const ATTRIBUTE_LIST: u32 = 0x20;
pub(super) const VOLUME_NAME: u32 = 0x60;
pub(super) const VOLUME_INFORMATION: u32 = 0x70;
pub(super) const DATA: u32 = 0x80;
pub(super) const INDEX_ROOT: u32 = 0x90;
pub(super) const INDEX_ALLOCATION: u32 = 0xa0;
pub(super) const INDEX_BITMAP: u32 = 0xb0;

const END: u32 = u32::MAX;

/// Compressed, encrypted or sparse.
const CHANGED_FLAGS: u16 = 0xc0ff;

/// The piece whose end a fixup stands for, in bytes, whatever a sector has.
const FIXUP_BYTES: usize = 512;

/// Section "Fixup": the last two bytes of each 512 were moved to an array and
/// stand for the number of the write. Puts them back, or says that a write was
/// not whole.
pub(super) fn undo_fixups(bytes: &mut [u8]) -> bool {
    let at = usize::from(le16_at(bytes, 4));
    let count = usize::from(le16_at(bytes, 6));
    let pieces = bytes.len() / FIXUP_BYTES;
    if count != pieces + 1 || at < 8 || at + count * 2 > FIXUP_BYTES - 2 {
        return false;
    }
    let number: [u8; 2] = bytes_at(bytes, at);
    for piece in 0..pieces {
        let kept: [u8; 2] = bytes_at(bytes, at + 2 + piece * 2);
        let end = (piece + 1) * FIXUP_BYTES;
        let Some(place) = bytes
            .get_mut(end - 2..end)
            .filter(|place| **place == number)
        else {
            return false;
        };
        place.copy_from_slice(&kept);
    }
    true
}

/// A record, in use, with its fixups undone (section "FILE Record").
pub(super) struct Record {
    pub(super) number: u64,
    bytes: Vec<u8>,
}

/// One attribute of a record (section "Attributes").
#[derive(Clone, Copy)]
pub(super) struct Attribute<'a> {
    bytes: &'a [u8],
}

impl Record {
    pub(super) fn parse(number: u64, mut bytes: Vec<u8>) -> Result<Self, Refusal> {
        let len = bytes.len();
        let whole = bytes.starts_with(b"FILE") && undo_fixups(&mut bytes);
        let in_use = le16_at(&bytes, 22) & 1 != 0;
        let used = le32_at(&bytes, 24) as usize;
        // Since NTFS 3.1 a record has its number, after which the fixups are.
        let misplaced = le16_at(&bytes, 4) >= 48 && u64::from(le32_at(&bytes, 44)) != number;
        if !whole || !in_use || used > len || misplaced {
            return damaged(number);
        }
        bytes.truncate(used);
        Ok(Self { number, bytes })
    }

    /// The number of the record that this one is a part of; 0 is none.
    pub(super) fn base(&self) -> u64 {
        le64_at(&self.bytes, 32) & ((1 << 48) - 1)
    }

    /// All that it holds: what the two copies of a record are compared by.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The attributes of this type and name, in the record's order.
    pub(super) fn find(&self, kind: u32, name: &[u8]) -> Result<Vec<Attribute<'_>>, Refusal> {
        let mut found = self.attributes()?;
        found.retain(|attribute| attribute.kind() == kind && attribute.name() == name);
        Ok(found)
    }

    /// All attributes.
    pub(super) fn attributes(&self) -> Result<Vec<Attribute<'_>>, Refusal> {
        let mut found = Vec::new();
        let mut rest = self
            .bytes
            .get(usize::from(le16_at(&self.bytes, 20))..)
            .unwrap_or_default();
        while le32_at(rest, 0) != END {
            let len = le32_at(rest, 4) as usize;
            let Some((bytes, after)) = rest.split_at_checked(len).filter(|_| len >= 24) else {
                return damaged(self.number);
            };
            found.push(Attribute { bytes });
            rest = after;
        }
        Ok(found)
    }
}

pub(super) fn damaged<T>(number: u64) -> Result<T, Refusal> {
    kept(format!(
        "record {number} of its $MFT is damaged: run chkdsk on it"
    ))
}

impl<'a> Attribute<'a> {
    fn part(&self, at: usize, len: usize) -> &'a [u8] {
        let end = at.saturating_add(len);
        self.bytes.get(at..end).unwrap_or_default()
    }

    fn kind(&self) -> u32 {
        le32_at(self.bytes, 0)
    }

    /// UTF-16, little-endian.
    fn name(&self) -> &'a [u8] {
        let [len] = bytes_at(self.bytes, 9);
        self.part(le16_at(self.bytes, 10).into(), usize::from(len) * 2)
    }

    /// Its contents, if they are in the record.
    pub(super) fn resident(&self) -> Option<&'a [u8]> {
        let [elsewhere] = bytes_at(self.bytes, 8);
        let (len, at) = (le32_at(self.bytes, 16), le16_at(self.bytes, 20));
        (elsewhere == 0).then(|| self.part(at.into(), len as usize))
    }

    pub(super) fn is_plain(&self) -> bool {
        le16_at(self.bytes, 12) & CHANGED_FLAGS == 0
    }

    /// Whether it is the part that begins with this cluster of the contents.
    pub(super) fn begins_at(&self, cluster: u64) -> bool {
        let first = self
            .resident()
            .map_or_else(|| le64_at(self.bytes, 16), |_| 0);
        first == cluster
    }

    pub(super) fn allocated_bytes(&self) -> u64 {
        le64_at(self.bytes, 40)
    }

    /// How much of it was ever written: the rest reads as zeros.
    pub(super) fn written_bytes(&self) -> u64 {
        le64_at(self.bytes, 48).min(le64_at(self.bytes, 56))
    }

    /// The runs as they are written.
    pub(super) fn runs(&self) -> RunList<'a> {
        let at = usize::from(le16_at(self.bytes, 32));
        RunList {
            rest: self.bytes.get(at..).unwrap_or_default(),
            cluster: 0,
        }
    }
}

/// Section "Data Runs": lengths, and how far each begins from the one before.
pub(super) struct RunList<'a> {
    rest: &'a [u8],
    cluster: i64,
}

/// A run: its first cluster, none for a hole, and how many; or that the list is damaged.
impl Iterator for RunList<'_> {
    type Item = Option<(Option<u64>, u64)>;

    fn next(&mut self) -> Option<Self::Item> {
        let (&widths, rest) = self.rest.split_first()?;
        if widths == 0 {
            return None;
        }
        let (len_width, offset_width) = (usize::from(widths & 15), usize::from(widths >> 4));
        let split = rest.split_at_checked(len_width + offset_width);
        self.rest = split.map_or(&[], |(_, after)| after);
        let sane = len_width <= 8 && offset_width <= 8;
        let Some((fields, _)) = split.filter(|_| sane) else {
            return Some(None);
        };
        let (len, offset) = fields.split_at(len_width);
        self.cluster = self.cluster.wrapping_add(signed(offset));
        let place = match offset_width {
            0 => Some(None),
            _ => u64::try_from(self.cluster).ok().map(Some),
        };
        let len = u64::try_from(signed(len)).ok().filter(|len| *len > 0);
        Some(place.zip(len))
    }
}

/// A little-endian number of up to 8 bytes with a sign.
fn signed(bytes: &[u8]) -> i64 {
    let mut wide = [0; 8];
    let len = bytes.len().min(8);
    wide[..len].copy_from_slice(&bytes[..len]);
    let unused = 64 - 8 * len as u32;
    i64::from_le_bytes(wide).checked_shl(unused).unwrap_or(0) >> unused.min(63)
}
