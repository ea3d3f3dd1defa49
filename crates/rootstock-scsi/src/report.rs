//! What a unit tells of itself apart from INQUIRY: which units there are, how
//! large it is, which commands it knows, how it is reached.

use crate::{
    cdb::{GroupsHeader, SupportedOpcodes, Timeouts, Which, padded},
    inquiry,
    opcode::{OPCODES, Opcode},
    reply::Reply,
    sense::{Sense, SenseFormat},
    unit::Unit,
};

/// The most units of one target that REPORT LUNS tells.
pub const LUNS_MAX: usize = 256;

/// Data cut to what the initiator has room for (SPC-4 4.2.5.6).
pub(crate) fn cut(mut data: Vec<u8>, allocation: u32) -> Reply {
    data.truncate(allocation as usize);
    Reply::data(data)
}

/// REPORT LUNS (SPC-4 6.33).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportLuns {
    select: Select,
    allocation: u32,
}

/// SELECT REPORT (SPC-4 6.33).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Select {
    Units,
    /// There are none.
    WellKnown,
}

impl ReportLuns {
    pub(crate) fn new(select: u8, allocation: u32) -> Result<Self, Sense> {
        let select = match select {
            0 | 2 => Select::Units,
            1 => Select::WellKnown,
            _ => return Err(Sense::command_byte(2)),
        };
        // SPC-4 6.33: less than a header and one LUN is an error.
        if allocation < 16 {
            return Err(Sense::command_byte(6));
        }
        Ok(Self { select, allocation })
    }

    /// The reply, from the numbers of the units that this initiator may use;
    /// those behind the first [`LUNS_MAX`] are left out.
    #[must_use]
    pub fn reply(&self, luns: &[u16]) -> Reply {
        let luns = match self.select {
            Select::Units => &luns[..luns.len().min(LUNS_MAX)],
            Select::WellKnown => &[],
        };
        let mut data = Vec::with_capacity(8 + 8 * luns.len());
        data.extend_from_slice(&(8 * luns.len() as u32).to_be_bytes());
        data.extend_from_slice(&[0; 4]);
        for &lun in luns {
            data.extend_from_slice(&encode_lun(lun));
        }
        cut(data, self.allocation)
    }
}

/// A unit's number as it stands in commands (SAM-5 4.7): peripheral device
/// addressing up to 255, flat space addressing up to 16,383.
#[must_use]
pub const fn encode_lun(lun: u16) -> [u8; 8] {
    let [high, low] = lun.to_be_bytes();
    let method = if lun < 256 { 0 } else { 0x40 };
    [high & 0x3f | method, low, 0, 0, 0, 0, 0, 0]
}

/// The number in a command's LUN field, if it can be one of ours.
#[must_use]
pub const fn decode_lun(lun: [u8; 8]) -> Option<u16> {
    let number = u16::from_be_bytes([lun[0] & 0x3f, lun[1]]);
    let plain = matches!(lun, [_, _, 0, 0, 0, 0, 0, 0]);
    match lun[0] >> 6 {
        // Peripheral addressing of bus 0, and flat space addressing.
        0 if plain && number < 256 => Some(number),
        1 if plain => Some(number),
        _ => None,
    }
}

/// The reply to a command for a unit that is not there (SPC-4 6.6.1, 6.33,
/// 6.39; SAM-5 5.11), from the numbers of those that are.
#[must_use]
pub fn reply_without_unit(cdb: &[u8], luns: &[u16]) -> Reply {
    let cdb = padded(cdb);
    match cdb[0] {
        0x12 if cdb[1] & 1 == 0 && cdb[2] == 0 => {
            let allocation = u16::from_be_bytes([cdb[3], cdb[4]]);
            cut(inquiry::absent(), allocation.into())
        }
        0x03 => {
            let format = if cdb[1] & 1 == 0 {
                SenseFormat::Fixed
            } else {
                SenseFormat::Descriptor
            };
            cut(Sense::UNIT_NOT_SUPPORTED.bytes(format), cdb[4].into())
        }
        0xa0 => {
            let allocation = u32::from_be_bytes([cdb[6], cdb[7], cdb[8], cdb[9]]);
            match ReportLuns::new(cdb[2], allocation) {
                Ok(report) => report.reply(luns),
                Err(sense) => sense.into(),
            }
        }
        _ => Sense::UNIT_NOT_SUPPORTED.into(),
    }
}

/// READ CAPACITY(10) (SBC-3 5.15.2).
pub(crate) fn capacity10(unit: &Unit) -> Reply {
    // A larger unit says so by the highest number, and is asked by the other.
    let last = u32::try_from(unit.blocks.saturating_sub(1)).unwrap_or(u32::MAX);
    let mut data = last.to_be_bytes().to_vec();
    data.extend_from_slice(&unit.block_size.bytes().to_be_bytes());
    Reply::data(data)
}

/// READ CAPACITY(16) (SBC-3 5.16.2): no protection, LBPME and LBPRZ.
pub(crate) fn capacity16(unit: &Unit, allocation: u32) -> Reply {
    let mut data = unit.blocks.saturating_sub(1).to_be_bytes().to_vec();
    data.extend_from_slice(&unit.block_size.bytes().to_be_bytes());
    data.extend_from_slice(&[0, unit.block_size.physical_exponent(), 0xc0, 0]);
    data.resize(32, 0);
    cut(data, allocation)
}

/// REPORT TARGET PORT GROUPS (SPC-4 6.37): one group of one port, which is
/// active and optimized, and never changes by itself.
pub(crate) fn target_port_groups(unit: &Unit, header: GroupsHeader, allocation: u32) -> Reply {
    let mut groups = match header {
        GroupsHeader::LengthOnly => Vec::new(),
        GroupsHeader::Extended => vec![0x10, 0, 0, 0],
    };
    let group = inquiry::TARGET_PORT_GROUP.to_be_bytes();
    // PREF, active/optimized; AO_SUP; group; status; one port.
    groups.extend_from_slice(&[0x80, 0x01, group[0], group[1], 0, 0, 0, 1]);
    let port = unit.identity.relative_port.to_be_bytes();
    groups.extend_from_slice(&[0, 0, port[0], port[1]]);
    let mut data = (groups.len() as u32).to_be_bytes().to_vec();
    data.append(&mut groups);
    cut(data, allocation)
}

/// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-4 6.36): ABORT TASK, ABORT
/// TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET, TARGET RESET.
pub(crate) fn task_management(len: usize, allocation: u32) -> Reply {
    let mut data = vec![0; len];
    data[0] = 0x80 | 0x40 | 0x10 | 0x08 | 0x02;
    if len > 4 {
        data[3] = (len - 4) as u8;
    }
    cut(data, allocation)
}

/// REPORT SUPPORTED OPERATION CODES (SPC-4 6.35).
pub(crate) fn opcodes(asked: SupportedOpcodes) -> Result<Reply, Sense> {
    let told = match asked.which {
        Which::All => return Ok(cut(all_opcodes(asked.timeouts), asked.allocation)),
        Which::Code(code) => match one_of(code) {
            // Only to be asked with its service action.
            Some(row) if row.service_action.is_some() => return Err(Sense::command_bit(2, 2)),
            row => row,
        },
        Which::Action(code, action) => match one_of(code) {
            Some(row) if row.service_action.is_none() => return Err(Sense::command_bit(2, 2)),
            _ => with_action(code, action),
        },
        Which::Either(code, action) => match one_of(code) {
            Some(row) if row.service_action.is_none() => (action == 0).then_some(row),
            _ => with_action(code, action),
        },
    };
    Ok(cut(one_opcode(told, asked.timeouts), asked.allocation))
}

fn one_of(code: u8) -> Option<&'static Opcode> {
    OPCODES.iter().find(|row| row.code == code)
}

fn with_action(code: u8, action: u16) -> Option<&'static Opcode> {
    OPCODES
        .iter()
        .find(|row| row.code == code && row.service_action.map(u16::from) == Some(action))
}

// SPC-4 6.35.2.
fn all_opcodes(timeouts: Timeouts) -> Vec<u8> {
    let mut list = Vec::new();
    for row in &OPCODES {
        let service_action = u16::from(row.service_action.unwrap_or(0)).to_be_bytes();
        let servactv = u8::from(row.service_action.is_some());
        let ctdp = match timeouts {
            Timeouts::Omitted => 0,
            Timeouts::Told => 0x02,
        };
        list.extend_from_slice(&[row.code, 0, service_action[0], service_action[1]]);
        list.extend_from_slice(&[0, servactv | ctdp, 0, row.usage.len() as u8]);
        add_timeouts(&mut list, timeouts);
    }
    let mut data = (list.len() as u32).to_be_bytes().to_vec();
    data.append(&mut list);
    data
}

// SPC-4 6.35.3. SUPPORT: 001b not, 011b as the standard says.
fn one_opcode(row: Option<&Opcode>, timeouts: Timeouts) -> Vec<u8> {
    let Some(row) = row else {
        return vec![0, 0x01, 0, 0];
    };
    let ctdp = match timeouts {
        Timeouts::Omitted => 0,
        Timeouts::Told => 0x80,
    };
    let mut data = vec![0, ctdp | 0x03, 0, row.usage.len() as u8];
    data.extend_from_slice(row.usage);
    if let Some(action) = row.service_action {
        // The service action stands for itself in the map, as the code does.
        data[5] = data[5] & !crate::opcode::SERVICE_ACTION_MASK | action;
    }
    add_timeouts(&mut data, timeouts);
    data
}

/// SPC-4 6.35.4: nothing is promised.
fn add_timeouts(data: &mut Vec<u8>, timeouts: Timeouts) {
    if timeouts == Timeouts::Told {
        data.extend_from_slice(&[0, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}

#[cfg(test)]
mod tests;
