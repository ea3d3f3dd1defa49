//! Linux swap space: the header page is kept, what was swapped out is not.

use rootstock_core::ByteRange;

use super::{Found, Refusal, kept};
use crate::{
    fields::Fields,
    read_at::{ReadAt, Window},
};

/// The page size of x86 and of most ARM systems, in bytes. Swap space of other
/// sizes is told by its signature's place and kept whole.
const PAGE_BYTES: u64 = 4096;

/// The header follows boot code, at this byte.
const HEADER: usize = 1024;

pub(super) fn read(window: &Window<'_>, found: &mut Found) -> Result<(), Refusal> {
    let mut page = vec![0; PAGE_BYTES as usize];
    window.read_exact_at(0, &mut page)?;
    let mut fields = Fields::new(&page[HEADER..]);
    let version = fields.u32();
    let last_page = fields.u32();
    let _bad_pages = fields.u32();
    let uuid: [u8; 16] = fields.array();
    let label: [u8; 16] = fields.array();
    match &page[PAGE_BYTES as usize - 10..] {
        b"SWAPSPACE2" => {}
        b"SWAP-SPACE" => return kept("it is swap space of the first version"),
        _ => return kept("a hibernated system is in it"),
    }
    if version != 1 {
        return kept(format!("its header has the unknown version {version}"));
    }
    found.report.uuid = super::uuid_text(&uuid);
    found.report.label = super::label_text(&label);
    let pages = u64::from(last_page) + 1;
    if pages < 2 || pages * PAGE_BYTES > window.len_bytes() {
        return kept(format!(
            "its header names {pages} pages, which do not fit its partition"
        ));
    }
    let free = ByteRange::new(PAGE_BYTES, (pages - 1) * PAGE_BYTES);
    found.report.used_bytes = Some(PAGE_BYTES);
    found.report.free_bytes = Some(free.len);
    found.free.insert(free);
    Ok(())
}
