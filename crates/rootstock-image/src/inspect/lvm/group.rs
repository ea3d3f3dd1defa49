//! A volume group: which extents each of its logical volumes has.
//!
//! Only names and flags that are known to change nothing are let pass (LVM2's
//! `lib/format_text/import_vsn1.c` and `flags.c`), so that what a later LVM adds
//! keeps the group whole.

use rootstock_core::{ByteRange, Extents, SECTOR_BYTES};

use super::{
    super::{Refusal, kept, volumes::Volume},
    text::{self, Item, Section},
};

/// Names beside those that are read here.
const GROUP_NAMES: [&str; 17] = [
    "id",
    "seqno",
    "format",
    "status",
    "flags",
    "tags",
    "system_id",
    "lock_type",
    "extent_size",
    "max_lv",
    "max_pv",
    "alloc",
    "profile",
    "metadata_copies",
    "physical_volumes",
    "logical_volumes",
    "historical_logical_volumes",
];
const DEVICE_NAMES: [&str; 12] = [
    "id",
    "device",
    "device_id",
    "device_id_type",
    "status",
    "flags",
    "tags",
    "dev_size",
    "pe_start",
    "pe_count",
    "ba_start",
    "ba_size",
];
const VOLUME_NAMES: [&str; 13] = [
    "id",
    "status",
    "flags",
    "tags",
    "creation_time",
    "creation_host",
    "allocation_policy",
    "alloc",
    "profile",
    "read_ahead",
    "major",
    "minor",
    "segment_count",
];
const SEGMENT_NAMES: [&str; 7] = [
    "start_extent",
    "extent_count",
    "type",
    "tags",
    "stripe_count",
    "stripe_size",
    "stripes",
];

/// A volume group whose logical volumes are all plain.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) name: String,
    id: String,
    seqno: u64,
    /// Where the extents are in the physical volume, in bytes.
    pub(super) extents: ByteRange,
    /// How long the physical volume has to be.
    pub(super) device_bytes: u64,
    pub(super) volumes: Vec<Volume>,
}

/// The only physical volume of a group.
struct Device<'a> {
    name: &'a str,
    extents: ByteRange,
    extent_bytes: u64,
    bytes: u64,
}

impl Group {
    /// The group that a text describes, if all of it is in this physical volume.
    pub(super) fn parse(text: &[u8], pv_uuid: &str) -> Result<Self, Refusal> {
        let Ok(text) = text::parse(text) else {
            return damaged("cannot be read");
        };
        let is_ours = text.get("contents") == Some(&Item::Text("Text Format Volume Group".into()))
            && text.get("version") == Some(&Item::Number(1));
        let mut sections = text.iter().filter_map(|(name, item)| match item {
            Item::Section(section) => Some((name, section)),
            _ => None,
        });
        let (true, Some((name, group)), None) = (is_ours, sections.next(), sections.next()) else {
            return damaged("is of no known format");
        };
        check_names(name, group, &GROUP_NAMES, None)?;
        check_flags(name, group, &["RESIZEABLE", "READ", "WRITE"])?;
        if !matches!(group.get("lock_type"), None | Some(Item::Text(_)))
            || group
                .get("lock_type")
                .is_some_and(|kind| *kind != Item::Text("none".into()))
        {
            return kept(format!("{name} is shared between machines (lvmlockd)"));
        }
        let extent_bytes = sectors(group, "extent_size")?;
        let device = Device::parse(name, group, extent_bytes, pv_uuid)?;
        let none = Section::new();
        let volumes = section(group, "logical_volumes").unwrap_or(&none);
        let volumes = volumes.iter().map(|(name, item)| device.volume(name, item));
        Ok(Self {
            name: name.clone(),
            id: string(group, "id")?.to_owned(),
            seqno: number(group, "seqno")?,
            extents: device.extents,
            device_bytes: device.bytes,
            volumes: volumes.collect::<Result<_, _>>()?,
        })
    }

    /// What the logical volumes have, which is theirs alone.
    pub(super) fn used(&self) -> Result<Extents, Refusal> {
        let mut used = Extents::new();
        for volume in &self.volumes {
            for place in volume.places() {
                if used.within(place).next().is_some() {
                    return damaged("gives one extent to two logical volumes");
                }
                used.insert(place);
            }
        }
        Ok(used)
    }
}

impl<'a> Device<'a> {
    fn parse(
        group_name: &str,
        group: &'a Section,
        extent_bytes: u64,
        pv_uuid: &str,
    ) -> Result<Self, Refusal> {
        let Some(devices) = section(group, "physical_volumes") else {
            return damaged("names no physical volume");
        };
        if devices.len() > 1 {
            return kept(format!(
                "{group_name} has {} physical volumes, of which this is one",
                devices.len()
            ));
        }
        let Some((name, Item::Section(device))) = devices.iter().next() else {
            return damaged("names no physical volume");
        };
        check_names(name, device, &DEVICE_NAMES, None)?;
        check_flags(group_name, device, &["ALLOCATABLE"])?;
        if string(device, "id")? != pv_uuid {
            return damaged("is that of another physical volume");
        }
        let start = sectors(device, "pe_start")?;
        let len = number(device, "pe_count")?.checked_mul(extent_bytes);
        let Some(len) = len.filter(|len| extent_bytes > 0 && start.checked_add(*len).is_some())
        else {
            return damaged("has impossible sizes");
        };
        let bytes = sectors(device, "dev_size")?;
        Ok(Self {
            name,
            extents: ByteRange::new(start, len),
            extent_bytes,
            bytes,
        })
    }

    fn volume(&self, name: &str, item: &Item) -> Result<Volume, Refusal> {
        let Item::Section(volume) = item else {
            return damaged("has impossible logical volumes");
        };
        check_names(name, volume, &VOLUME_NAMES, Some("segment"))?;
        check_flags(
            name,
            volume,
            &["READ", "WRITE", "VISIBLE", "FIXED_MINOR", "ACTIVATION_SKIP"],
        )?;
        let visible = Item::Text("VISIBLE".into());
        if !matches!(volume.get("status"), Some(Item::List(flags)) if flags.contains(&visible)) {
            return kept(format!(
                "{name} is a part of another logical volume, or of a change that was not finished"
            ));
        }
        let count = number(volume, "segment_count")?;
        let segments = volume.keys().filter(|key| is_numbered(key, "segment"));
        if count == 0 || segments.count() as u64 != count {
            return damaged("counts other segments than it has");
        }
        let mut whole = Volume::new(name);
        let mut next_extent = 0;
        for at in 1..=count {
            let Some(segment) = section(volume, &format!("segment{at}")) else {
                return damaged("counts other segments than it has");
            };
            if number(segment, "start_extent")? != next_extent {
                return damaged("has segments that do not join");
            }
            let (extents, place) = self.segment(name, segment)?;
            next_extent += extents;
            whole.push(place);
        }
        Ok(whole)
    }

    /// A piece of a volume: how many extents, and where they lie.
    fn segment(&self, name: &str, segment: &Section) -> Result<(u64, ByteRange), Refusal> {
        let kind = string(segment, "type")?;
        if kind != "striped" && kind != "linear" {
            return kept(format!(
                "{name} is of the type {kind}, whose blocks are not looked for"
            ));
        }
        check_names(name, segment, &SEGMENT_NAMES, None)?;
        if number(segment, "stripe_count")? != 1 {
            return kept(format!("{name} is striped"));
        }
        let Some(Item::List(stripes)) = segment.get("stripes") else {
            return damaged("has a segment that lies nowhere");
        };
        let [Item::Text(device), Item::Number(first)] = &stripes[..] else {
            return damaged("has a segment that lies nowhere");
        };
        let count = number(segment, "extent_count")?;
        let all = self.extents.len / self.extent_bytes;
        if device != self.name || count == 0 || *first > all || count > all - first {
            return damaged("has a segment outside of the physical volume");
        }
        let start = self.extents.start + first * self.extent_bytes;
        Ok((count, ByteRange::new(start, count * self.extent_bytes)))
    }
}

/// Refuses names that are not known.
fn check_names(
    of: &str,
    section: &Section,
    known: &[&str],
    numbered: Option<&str>,
) -> Result<(), Refusal> {
    for name in section.keys() {
        let is_one = numbered.is_some_and(|prefix| is_numbered(name, prefix));
        if !is_one && !known.contains(&name.as_str()) {
            return kept(format!("{of} has \"{name}\", which is not known here"));
        }
    }
    Ok(())
}

fn is_numbered(name: &str, prefix: &str) -> bool {
    let digits = name.strip_prefix(prefix).unwrap_or_default();
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// Refuses flags that are not known to change nothing.
fn check_flags(of: &str, section: &Section, known: &[&str]) -> Result<(), Refusal> {
    for key in ["status", "flags"] {
        let flags = match section.get(key) {
            Some(Item::List(flags)) => flags.as_slice(),
            None if key == "flags" => &[],
            _ => return damaged("has impossible flags"),
        };
        for flag in flags {
            match flag {
                Item::Text(flag) if known.contains(&flag.as_str()) => {}
                Item::Text(flag) => return kept(format!("{of} is marked as {flag}")),
                _ => return damaged("has impossible flags"),
            }
        }
    }
    Ok(())
}

fn section<'a>(of: &'a Section, name: &str) -> Option<&'a Section> {
    match of.get(name) {
        Some(Item::Section(section)) => Some(section),
        _ => None,
    }
}

fn string<'a>(of: &'a Section, name: &str) -> Result<&'a str, Refusal> {
    match of.get(name) {
        Some(Item::Text(text)) => Ok(text),
        _ => damaged(format!("has no {name}")),
    }
}

fn number(of: &Section, name: &str) -> Result<u64, Refusal> {
    match of.get(name) {
        Some(Item::Number(number)) => Ok(*number),
        _ => damaged(format!("has no {name}")),
    }
}

/// A length that is told in sectors, in bytes.
fn sectors(of: &Section, name: &str) -> Result<u64, Refusal> {
    match number(of, name)?.checked_mul(SECTOR_BYTES) {
        Some(bytes) => Ok(bytes),
        None => damaged("has impossible sizes"),
    }
}

fn damaged<T>(what: impl std::fmt::Display) -> Result<T, Refusal> {
    kept(format!("the description of its volume group {what}"))
}
