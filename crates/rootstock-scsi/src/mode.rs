//! Mode parameters: the write cache, the format of sense data, software write
//! protection (SPC-4 7.5, SBC-3 6.5).

use crate::{
    cdb::{BlockDescriptor, Form, ModeSense, PageControl},
    reply::Reply,
    report::cut,
    sense::{Sense, SenseFormat},
    unit::{Access, Unit},
};

/// What MODE SELECT can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mode {
    /// D_SENSE of the control page.
    pub(crate) sense_format: SenseFormat,
    /// SWP of the control page, as an access.
    pub(crate) software_access: Access,
}

impl Default for Mode {
    fn default() -> Self {
        Self {
            sense_format: SenseFormat::Fixed,
            software_access: Access::ReadWrite,
        }
    }
}

const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0a;
const INFORMATIONAL_EXCEPTIONS: u8 = 0x1c;

/// The pages there are; 3Fh asks for all.
const PAGES: [u8; 3] = [CACHING, CONTROL, INFORMATIONAL_EXCEPTIONS];
const ALL_PAGES: u8 = 0x3f;
const ALL_SUBPAGES: u8 = 0xff;

const D_SENSE: u8 = 0x04;
const SWP: u8 = 0x08;

/// A page with its header, as it holds now.
fn page(code: u8, mode: Mode) -> Vec<u8> {
    match code {
        // SBC-3 6.5, the caching page: WCE.
        CACHING => {
            let mut page = vec![CACHING, 0x12, 0x04];
            page.resize(20, 0);
            page
        }
        // SPC-4 7.5, the control page: QUEUE ALGORITHM MODIFIER 1, commands are not put in
        // order.
        CONTROL => {
            let d_sense = match mode.sense_format {
                SenseFormat::Fixed => 0,
                SenseFormat::Descriptor => D_SENSE,
            };
            let swp = match mode.software_access {
                Access::ReadWrite => 0,
                Access::ReadOnly => SWP,
            };
            vec![CONTROL, 0x0a, d_sense, 0x10, swp, 0, 0, 0, 0, 0, 0, 0]
        }
        // SPC-4 7.5, the informational exceptions page: nothing is reported.
        _ => {
            let mut page = vec![INFORMATIONAL_EXCEPTIONS, 0x0a];
            page.resize(12, 0);
            page
        }
    }
}

/// Which bits of a page MODE SELECT may change, with the page's header.
fn changeable(code: u8) -> Vec<u8> {
    let mut mask = page(code, Mode::default());
    mask[2..].fill(0);
    if code == CONTROL {
        mask[2] = D_SENSE;
        mask[4] = SWP;
    }
    mask
}

/// MODE SENSE (SPC-4 6.13, 6.14).
pub(crate) fn sense(unit: &Unit, mode: Mode, asked: ModeSense) -> Result<Reply, Sense> {
    let one = [asked.page];
    let codes: &[u8] = match (asked.page, asked.subpage) {
        (ALL_PAGES, 0 | ALL_SUBPAGES) => &PAGES,
        (page, 0 | ALL_SUBPAGES) if PAGES.contains(&page) => &one,
        (page, _) if PAGES.contains(&page) || page == ALL_PAGES => {
            return Err(Sense::command_byte(3));
        }
        _ => return Err(Sense::command_bit(2, 5)),
    };
    let of = |code| match asked.control {
        PageControl::Current => Ok(page(code, mode)),
        PageControl::Changeable => Ok(changeable(code)),
        PageControl::Default => Ok(page(code, Mode::default())),
        PageControl::Saved => Err(Sense::SAVING_NOT_SUPPORTED),
    };
    let mut pages = Vec::new();
    for &code in codes {
        pages.extend(of(code)?);
    }
    let mut data = header(unit, mode, asked, pages.len());
    data.append(&mut pages);
    Ok(cut(data, asked.allocation))
}

/// The mode parameter header (SPC-4 7.5) with the block descriptor.
fn header(unit: &Unit, mode: Mode, asked: ModeSense, pages_bytes: usize) -> Vec<u8> {
    let descriptor = block_descriptor(unit, asked.descriptor);
    // The device-specific parameter (SBC-3 6.5): WP, DPOFUA.
    let protected = unit.access == Access::ReadOnly || mode.software_access == Access::ReadOnly;
    let specific = if protected { 0x90 } else { 0x10 };
    let len = descriptor.len() as u8;
    let mut data = match asked.form {
        // MODE DATA LENGTH counts from behind itself.
        Form::Short => vec![(3 + descriptor.len() + pages_bytes) as u8, 0, specific, len],
        Form::Long => {
            let [high, low] = ((6 + descriptor.len() + pages_bytes) as u16).to_be_bytes();
            let long = u8::from(asked.descriptor == BlockDescriptor::Long);
            vec![high, low, 0, specific, long, 0, 0, len]
        }
    };
    data.extend_from_slice(&descriptor);
    data
}

/// SBC-3 6.5, mode parameter block descriptors.
fn block_descriptor(unit: &Unit, which: BlockDescriptor) -> Vec<u8> {
    let block = unit.block_size.bytes().to_be_bytes();
    let mut bytes = Vec::new();
    match which {
        BlockDescriptor::None => {}
        BlockDescriptor::Short => {
            let blocks = u32::try_from(unit.blocks).unwrap_or(u32::MAX);
            bytes.extend_from_slice(&blocks.to_be_bytes());
            bytes.extend_from_slice(&block);
        }
        BlockDescriptor::Long => {
            bytes.extend_from_slice(&unit.blocks.to_be_bytes());
            bytes.extend_from_slice(&[0; 4]);
            bytes.extend_from_slice(&block);
        }
    }
    bytes
}

/// MODE SELECT (SPC-4 6.11): the parameters after this list.
///
/// # Errors
/// PARAMETER LIST LENGTH ERROR for a list that ends too early, INVALID FIELD IN
/// PARAMETER LIST for one that changes what cannot be changed.
pub(crate) fn select(unit: &Unit, mode: Mode, form: Form, list: &[u8]) -> Result<Mode, Sense> {
    if list.is_empty() {
        return Ok(mode);
    }
    let mut at = check_header(unit, form, list)?;
    let mut after = mode;
    while at < list.len() {
        let code = list[at] & 0x3f;
        // Not a page of ours, or a subpage (SPF).
        if list[at] & 0x40 != 0 || !PAGES.contains(&code) {
            return Err(Sense::parameter_byte(at));
        }
        let now = page(code, mode);
        let len = list.get(at + 1).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        if *len != now[1] {
            return Err(Sense::parameter_byte(at + 1));
        }
        let new = list
            .get(at..at + now.len())
            .ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        let mask = changeable(code);
        for place in 2..now.len() {
            if (new[place] ^ now[place]) & !mask[place] != 0 {
                return Err(Sense::parameter_byte(at + place));
            }
        }
        if code == CONTROL {
            after = control(new);
        }
        at += now.len();
    }
    Ok(after)
}

fn control(page: &[u8]) -> Mode {
    Mode {
        sense_format: if page[2] & D_SENSE == 0 {
            SenseFormat::Fixed
        } else {
            SenseFormat::Descriptor
        },
        software_access: if page[4] & SWP == 0 {
            Access::ReadWrite
        } else {
            Access::ReadOnly
        },
    }
}

/// Where the pages begin. MODE DATA LENGTH is reserved, MEDIUM TYPE and the
/// device-specific parameter are passed over (SBC-3 6.5), a block descriptor
/// may only say what is so.
fn check_header(unit: &Unit, form: Form, list: &[u8]) -> Result<usize, Sense> {
    let header = match form {
        Form::Short => 4,
        Form::Long => 8,
    };
    let bytes = list.get(..header).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    let (long, len) = match form {
        Form::Short => (false, usize::from(bytes[3])),
        Form::Long => (
            bytes[4] & 1 != 0,
            usize::from(u16::from_be_bytes([bytes[6], bytes[7]])),
        ),
    };
    let which = match (len, long) {
        (0, _) => BlockDescriptor::None,
        (8, false) => BlockDescriptor::Short,
        (16, true) => BlockDescriptor::Long,
        _ => return Err(Sense::parameter_byte(header - 1)),
    };
    let descriptor = list
        .get(header..header + len)
        .ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    let own = block_descriptor(unit, which);
    // No number of blocks stands for all of them.
    let blocks = len / 2;
    let all = descriptor[..blocks].iter().all(|byte| *byte == 0);
    let from = if all { blocks } else { 0 };
    if descriptor[from..] != own[from..] {
        return Err(Sense::parameter_byte(header));
    }
    Ok(header + len)
}

#[cfg(test)]
mod tests;
