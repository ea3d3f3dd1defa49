//! The label of a physical volume, its header and its metadata areas.

use rootstock_core::{ByteRange, SECTOR_BYTES};

use super::super::{Refusal, checksum::crc_lvm, kept};
use crate::{
    fields::{bytes_at, le32_at, le64_at},
    read_at::{ReadAt, Window},
};

const SECTOR: usize = SECTOR_BYTES as usize;

/// LVM looks for its label in so many sectors.
const LABEL_SECTORS: usize = 4;

/// A header has this length (`MDA_HEADER_SIZE`), and this magic (`FMTT_MAGIC`).
const AREA_HEAD: usize = 512;
const AREA_MAGIC: &[u8; 16] = b" LVM2 x[5A%r0N*>";

/// `RAW_LOCN_IGNORED`: the area is there and not kept up to date.
const IGNORED: u32 = 1;

/// The longest description that is read, in bytes. That of 256 volumes has about 128 KiB.
const TEXT_BYTES_MAX: u64 = 1 << 20;

/// The most metadata areas of one physical volume; pvcreate makes at most two.
const AREAS_MAX: usize = 2;

/// What a physical volume says of itself.
pub(super) struct PhysicalVolume {
    /// As people see it, in groups of characters.
    pub(super) uuid: String,
    /// Where its extents begin, in bytes.
    pub(super) data_start: u64,
    pub(super) metadata: Vec<Area>,
    /// What is in use by LVM itself.
    pub(super) reserved: Vec<ByteRange>,
}

/// A metadata area: a header, and a ring of descriptions after it.
pub(super) struct Area {
    range: ByteRange,
}

impl PhysicalVolume {
    pub(super) fn read(window: &Window<'_>) -> Result<Self, Refusal> {
        let mut head = [0; LABEL_SECTORS * SECTOR];
        window.read_exact_at(0, &mut head)?;
        let is_label = |at: &usize| head[at * SECTOR..].starts_with(b"LABELONE");
        let mut labels = (0..LABEL_SECTORS).filter(is_label);
        let (Some(at), None) = (labels.next(), labels.next()) else {
            return kept("it has several labels: which one is in use is not certain");
        };
        let label = &head[at * SECTOR..(at + 1) * SECTOR];
        let header = le32_at(label, 20) as usize;
        if le64_at(label, 8) != at as u64
            || le32_at(label, 16) != crc_lvm(&label[20..])
            || !(32..=SECTOR / 2).contains(&header)
        {
            return kept("its label is damaged");
        }
        let mut pv = Self::parse(&label[header..])?;
        let labels = ByteRange::new(0, (LABEL_SECTORS * SECTOR) as u64);
        pv.reserved.push(labels);
        Ok(pv)
    }

    /// A header: lists of places that end with an empty one (`struct pv_header`).
    fn parse(header: &[u8]) -> Result<Self, Refusal> {
        let Some(uuid) = uuid_text(bytes_at(header, 0)) else {
            return kept("its header is damaged");
        };
        let (data, rest) = places(header.get(40..).unwrap_or_default())?;
        let (areas, extension) = places(rest)?;
        // Version 1 added places for boot loaders; before it, there were zeros.
        let version = le32_at(extension, 0);
        let (boot, _) = places(extension.get(8..).unwrap_or_default())?;
        if version > 2 || (version == 0 && !boot.is_empty()) {
            return kept(format!(
                "its header has an extension of the unknown version {version}"
            ));
        }
        let [data] = data[..] else {
            return kept("its header names several areas of data");
        };
        if areas.len() > AREAS_MAX {
            return kept(format!("it has more than {AREAS_MAX} metadata areas"));
        }
        Ok(Self {
            uuid,
            data_start: data.start,
            reserved: areas.iter().chain(&boot).copied().collect(),
            metadata: areas.into_iter().map(|range| Area { range }).collect(),
        })
    }
}

/// Places up to an empty one, and what comes after it.
fn places(mut bytes: &[u8]) -> Result<(Vec<ByteRange>, &[u8]), Refusal> {
    let mut places = Vec::new();
    while let Some((place, rest)) = bytes.split_first_chunk::<16>() {
        bytes = rest;
        let (start, len) = (le64_at(place, 0), le64_at(place, 8));
        if start == 0 && len == 0 {
            return Ok((places, bytes));
        }
        if start == 0 || start.checked_add(len).is_none() {
            break;
        }
        places.push(ByteRange::new(start, len));
    }
    kept("its header is damaged")
}

/// The letters and digits of a UUID in groups, if it has no others.
fn uuid_text(letters: [u8; 32]) -> Option<String> {
    let mut text = String::with_capacity(38);
    for (at, letter) in letters.iter().enumerate() {
        if !letter.is_ascii_alphanumeric() {
            return None;
        }
        if matches!(at, 6 | 10 | 14 | 18 | 22 | 26) {
            text.push('-');
        }
        text.push(char::from(*letter));
    }
    Some(text)
}

impl Area {
    /// The description that is valid now, if the area has one (`struct mda_header`).
    pub(super) fn text(&self, window: &Window<'_>) -> Result<Option<Vec<u8>>, Refusal> {
        let mut head = [0; AREA_HEAD];
        window.read_exact_at(self.range.start, &mut head)?;
        let sound = le32_at(&head, 0) == crc_lvm(&head[4..])
            && head[4..20] == *AREA_MAGIC
            && le32_at(&head, 20) == 1
            && le64_at(&head, 24) == self.range.start
            && le64_at(&head, 32) == self.range.len;
        if !sound || self.range.end() > window.len_bytes() {
            return kept("a metadata area of it is damaged");
        }
        let (start, len) = (le64_at(&head, 40), le64_at(&head, 48));
        let (checksum, flags) = (le32_at(&head, 56), le32_at(&head, 60));
        if flags & IGNORED != 0 || start == 0 {
            return Ok(None);
        }
        // The next place is filled while a change is under way, and emptied after it.
        if flags != 0 || le64_at(&head, 64) != 0 {
            return kept("a change of its volume group was not finished: run vgck on it");
        }
        let text = self.ring(window, start, len)?;
        if crc_lvm(&text) != checksum {
            return kept("the description of its volume group has a wrong checksum");
        }
        Ok(Some(text))
    }

    /// Reads from the ring, which goes on after the header when it comes to its end.
    fn ring(&self, window: &Window<'_>, start: u64, len: u64) -> Result<Vec<u8>, Refusal> {
        let head = AREA_HEAD as u64;
        let fits = (head..self.range.len).contains(&start) && len <= self.range.len - head;
        if !fits || len > TEXT_BYTES_MAX {
            return kept("the description of its volume group has an impossible place or length");
        }
        let mut text = vec![0; len as usize];
        let first = len.min(self.range.len - start);
        let (now, later) = text.split_at_mut(first as usize);
        window.read_exact_at(self.range.start + start, now)?;
        if !later.is_empty() {
            window.read_exact_at(self.range.start + head, later)?;
        }
        Ok(text)
    }
}
