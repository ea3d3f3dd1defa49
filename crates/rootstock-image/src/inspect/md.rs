//! Linux software RAID: an array of level 1 whose member here is in step.
//!
//! The superblock is `struct mdp_superblock_1` of the kernel's
//! `include/uapi/linux/raid/md_p.h`, and its places those of `super_1_load` in
//! `drivers/md/md.c`. Each member of such an array has all of its bytes one after
//! another, so that the array is a part of its partition.

use rootstock_core::{ByteRange, SECTOR_BYTES};

use super::{
    Found, Refusal, Walk, kept, label_text, uuid_text,
    volumes::{self, Volume},
};
use crate::{
    fields::{bytes_at, le16_at, le32_at, le64_at},
    read_at::{ReadAt, Window},
};

pub(super) const NAME: &str = "md raid";

/// The magic in the byte order of most machines and in the other.
pub(super) const MAGIC: [[u8; 4]; 2] = [[0xfc, 0x4e, 0x2b, 0xa9], [0xa9, 0x2b, 0x4e, 0xfc]];

/// A superblock with the roles of all members, in bytes; and before the roles.
const SUPERBLOCK: usize = 4096;
const HEAD: usize = 256;

/// A bitmap of writes is there. No other feature is read here: they are of what is
/// not finished, of bad blocks and of other levels.
const BITMAP: u32 = 1;

/// `struct bitmap_super_s` of `drivers/md/md-bitmap.h`, the part that is read.
const BITMAP_HEAD: usize = 64;

/// Roles from here on are those of spare and faulty members.
const ROLES_MAX: u16 = 0xff00;

pub(super) fn read(window: &Window<'_>, walk: &mut Walk, found: &mut Found) -> Result<(), Refusal> {
    let places = with_magic(window)?;
    let [place] = places[..] else {
        return kept("it has several superblocks of arrays: which one is in use is not certain");
    };
    if place.is_old {
        return kept("its metadata have the version 0.90");
    }
    let array = Array::read(window, place.start)?;
    found.report.kind = format!("{NAME} level {}", array.level);
    found.report.uuid = uuid_text(&array.uuid);
    found.report.label = array.name.clone();
    let data = array.data(window)?;
    array.check_bitmap(window, data)?;
    let mut volume = Volume::new(array.name.as_deref().unwrap_or("array"));
    volume.push(data);
    volumes::read(window, &[volume], walk, found)
}

/// Whether the only superblock lies at the end: then what is at the beginning is the
/// array's own, and looks as if it lay there by itself.
pub(super) fn is_at_end(window: &Window<'_>) -> std::io::Result<bool> {
    let places = with_magic(window)?;
    Ok(matches!(places[..], [Place { start, is_old: false }] if start > HEAD_PLACES[1]))
}

/// Whether there is a superblock of any version.
pub(super) fn is_there(window: &Window<'_>) -> std::io::Result<bool> {
    Ok(!with_magic(window)?.is_empty())
}

/// Versions 1.1 and 1.2 lie here; 1.0 and 0.90 at the end.
const HEAD_PLACES: [u64; 2] = [0, 4096];

#[derive(Clone, Copy)]
struct Place {
    start: u64,
    /// Version 0.90.
    is_old: bool,
}

/// Where the magic is of those places that may have a superblock.
fn with_magic(window: &Window<'_>) -> std::io::Result<Vec<Place>> {
    let len = window.len_bytes();
    let old = (len & !0xffff).checked_sub(64 << 10);
    let sectors = (len / SECTOR_BYTES).checked_sub(16);
    let new = sectors.map(|sector| (sector & !7) * SECTOR_BYTES);
    let mut found: Vec<Place> = Vec::new();
    let starts = HEAD_PLACES.into_iter().chain(new);
    let candidates = starts
        .map(|start| (start, false))
        .chain(old.map(|start| (start, true)));
    for (start, is_old) in candidates {
        let mut magic = [0; 4];
        if start + 4 > len || found.iter().any(|place| place.start == start) {
            continue;
        }
        window.read_exact_at(start, &mut magic)?;
        if MAGIC.contains(&magic) {
            found.push(Place { start, is_old });
        }
    }
    Ok(found)
}

/// What the superblock of an array says, as far as it is sound.
struct Array {
    /// Where the superblock is, in bytes.
    start: u64,
    uuid: [u8; 16],
    name: Option<String>,
    level: i32,
    bytes: Vec<u8>,
}

impl Array {
    fn read(window: &Window<'_>, start: u64) -> Result<Self, Refusal> {
        let mut bytes = vec![0; SUPERBLOCK];
        let rest = window.len_bytes().saturating_sub(start);
        let len = SUPERBLOCK.min(usize::try_from(rest).unwrap_or(SUPERBLOCK));
        window.read_exact_at(start, &mut bytes[..len])?;
        let roles = le32_at(&bytes, 220) as usize;
        let end = roles.saturating_mul(2).saturating_add(HEAD);
        let sound = bytes.starts_with(&MAGIC[0])
            && le32_at(&bytes, 4) == 1
            && end <= len
            && le32_at(&bytes, 216) == checksum(&bytes[..end])
            && le64_at(&bytes, 144).checked_mul(SECTOR_BYTES) == Some(start);
        if !sound {
            return kept("the superblock of its array is damaged, or of an unknown version");
        }
        bytes.truncate(end);
        Ok(Self {
            start,
            uuid: bytes_at(&bytes, 16),
            name: label_text(&bytes_at::<32>(&bytes, 32)),
            level: le32_at(&bytes, 72).cast_signed(),
            bytes,
        })
    }

    /// Where the array's bytes are, if this member has them all as they should be.
    fn data(&self, window: &Window<'_>) -> Result<ByteRange, Refusal> {
        if self.level != 1 {
            return kept(format!(
                "the blocks of an array of level {} are not looked for",
                self.level
            ));
        }
        let features = le32_at(&self.bytes, 8);
        if features & !BITMAP != 0 {
            return kept(format!(
                "its array has bad blocks, or is being changed or rebuilt (features {features:#x})"
            ));
        }
        if le64_at(&self.bytes, 208) != u64::MAX {
            return kept("its array is not in step: start it, and wait until it is");
        }
        let members = le32_at(&self.bytes, 92);
        let number = le32_at(&self.bytes, 160) as usize;
        let role = self
            .bytes
            .get(HEAD..)
            .filter(|roles| number < roles.len() / 2)
            .map(|roles| le16_at(roles, number * 2));
        if role.is_none_or(|role| role >= ROLES_MAX || u32::from(role) >= members) {
            return kept("it is a spare of its array, or was taken out of it");
        }
        let sectors = |at| le64_at(&self.bytes, at).checked_mul(SECTOR_BYTES);
        let (Some(start), Some(room), Some(len)) = (sectors(128), sectors(136), sectors(80)) else {
            return kept("its array has impossible sizes");
        };
        let end = start.checked_add(len);
        if len == 0 || len > room || end.is_none_or(|end| end > window.len_bytes()) {
            return kept("its array goes on past the end of its partition");
        }
        let data = ByteRange::new(start, len);
        let own = ByteRange::new(self.start, self.bytes.len() as u64);
        if data.intersection(own).is_some() {
            return kept("its array has impossible sizes");
        }
        Ok(data)
    }

    /// The bitmap of writes lies outside of the data, and is believed by the array.
    fn check_bitmap(&self, window: &Window<'_>, data: ByteRange) -> Result<(), Refusal> {
        if le32_at(&self.bytes, 8) & BITMAP == 0 {
            return Ok(());
        }
        let sectors = i64::from(le32_at(&self.bytes, 96).cast_signed());
        let start = self.start.checked_add_signed(sectors * SECTOR_BYTES as i64);
        let mut head = [0; BITMAP_HEAD];
        let place = start.map(|start| ByteRange::new(start, BITMAP_HEAD as u64));
        let Some(place) = place.filter(|place| place.intersection(data).is_none()) else {
            return kept("the bitmap of its array lies in its data");
        };
        window.read_exact_at(place.start, &mut head)?;
        let sound = head.starts_with(b"bitm")
            && matches!(le32_at(&head, 4), 3 | 4)
            && bytes_at::<16>(&head, 8) == self.uuid
            && le64_at(&head, 24) >= le64_at(&self.bytes, 200)
            && le32_at(&head, 48) == 0;
        if !sound {
            return kept("the bitmap of its array is damaged or out of date");
        }
        Ok(())
    }
}

/// The sum of all words but the one that holds it, with what it overflows by.
fn checksum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(4).enumerate().filter(|(at, _)| *at != 216 / 4);
    let sum: u64 = words.map(|(_, word)| u64::from(le32_at(word, 0))).sum();
    (sum as u32).wrapping_add((sum >> 32) as u32)
}
