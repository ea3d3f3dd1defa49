//! LVM2: logical volumes of plain pieces, in a group that is all in one partition.
//!
//! The layout is that of LVM2's `lib/format_text/layout.h` and of the text that
//! `vgcfgbackup` writes (lvm.conf(5), vgcfgbackup(8)). Everything else than
//! linear volumes is kept whole: snapshots, thin pools, RAID and caches have blocks
//! in use that no file system knows of.

use super::{
    Found, Refusal, Walk, kept,
    volumes::{self, unused},
};
use crate::read_at::{ReadAt, Window};

mod areas;
mod group;
mod text;

use areas::PhysicalVolume;
use group::Group;

pub(super) const NAME: &str = "lvm2 physical volume";

pub(super) fn read(window: &Window<'_>, walk: &mut Walk, found: &mut Found) -> Result<(), Refusal> {
    let pv = PhysicalVolume::read(window)?;
    found.report.uuid = Some(pv.uuid.clone());
    let group = one_group(window, &pv)?;
    found.report.label = Some(group.name.clone());
    let extents = group.extents;
    if extents.end() > window.len_bytes() || group.device_bytes > window.len_bytes() {
        return kept("it goes on past the end of its partition");
    }
    if extents.start != pv.data_start {
        return kept("its header and its volume group say different beginnings of its extents");
    }
    if pv
        .reserved
        .iter()
        .any(|area| area.intersection(extents).is_some())
    {
        return kept("its own metadata lie among its extents");
    }
    let used = group.used()?;
    volumes::read(window, &group.volumes, walk, found)?;
    // What holds metadata is not among the extents, and stays. Space of volumes that
    // were removed is no more in use than that of deleted files.
    let (free, free_bytes) = unused(extents, &used);
    found.free.absorb(&free, 0);
    found.report.free_bytes = Some(free_bytes);
    found.report.used_bytes = Some(extents.len - free_bytes);
    Ok(())
}

/// The volume group by all copies of its description, which have to agree.
fn one_group(window: &Window<'_>, pv: &PhysicalVolume) -> Result<Group, Refusal> {
    let mut one = None;
    for area in &pv.metadata {
        let Some(text) = area.text(window)? else {
            continue;
        };
        let group = Group::parse(&text, &pv.uuid)?;
        if one.as_ref().is_some_and(|one| *one != group) {
            return kept("the copies of its volume group's description differ");
        }
        one = Some(group);
    }
    one.map_or_else(
        || kept("it has no description of a volume group: it belongs to none, or others have it"),
        Ok,
    )
}
