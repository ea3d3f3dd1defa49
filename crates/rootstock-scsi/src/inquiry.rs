//! INQUIRY: who a unit is (SPC-4 6.6 and 7.8, SBC-3 6.6).

use crate::{nexus::PROTOCOL_ISCSI, reply::Reply, report::cut, sense::Sense, unit::Unit};

/// The T10 vendor identification.
pub(crate) const VENDOR: &[u8; 8] = b"ROOTSTCK";

/// The one target port group.
pub(crate) const TARGET_PORT_GROUP: u16 = 1;

const SERIAL_BYTES_MAX: usize = 64;

/// The longest target name in bytes (RFC 7143 4.2.7.1).
const NAME_BYTES_MAX: usize = 223;

/// The vital product data pages there are (SPC-4 7.8, supported pages).
const PAGES: [u8; 6] = [0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2];

/// Answers INQUIRY.
pub(crate) fn reply(unit: &Unit, page: Option<u8>, allocation: u32) -> Result<Reply, Sense> {
    let Some(page) = page else {
        return Ok(cut(standard(unit), allocation));
    };
    let body = match page {
        0x00 => PAGES.to_vec(),
        0x80 => ascii(&unit.identity.serial, SERIAL_BYTES_MAX),
        0x83 => designators(unit),
        0xb0 => block_limits(unit),
        0xb1 => characteristics(),
        0xb2 => provisioning(),
        _ => return Err(Sense::command_byte(2)),
    };
    // SPC-4 7.8. PAGE LENGTH is the whole even where less fits.
    let mut data = vec![0, page];
    data.extend_from_slice(&(body.len() as u16).to_be_bytes());
    data.extend_from_slice(&body);
    Ok(cut(data, allocation))
}

/// The standard data where there is no unit: PERIPHERAL QUALIFIER 011b,
/// PERIPHERAL DEVICE TYPE 1Fh.
pub(crate) fn absent() -> Vec<u8> {
    let mut data = header(0x7f);
    data.extend_from_slice(&[b' '; 20]);
    data[4] = (data.len() - 5) as u8;
    data
}

// SPC-4 6.6.2.
fn header(peripheral: u8) -> Vec<u8> {
    // SPC-4; RESPONSE DATA FORMAT 2; TPGS 01b; CMDQUE.
    let mut data = vec![peripheral, 0, 0x06, 0x02, 0, 0x10, 0, 0x02];
    data.extend_from_slice(VENDOR);
    data
}

fn standard(unit: &Unit) -> Vec<u8> {
    let mut data = header(0);
    data.extend_from_slice(&padded(&unit.identity.product, 16));
    data.extend_from_slice(&padded(&unit.identity.revision, 4));
    data.resize(58, 0);
    // SAM-5, SPC-4, SBC-3, iSCSI (SPC-4 6.6.2, version descriptors).
    for descriptor in [0x00a0_u16, 0x0460, 0x04c0, 0x0960] {
        data.extend_from_slice(&descriptor.to_be_bytes());
    }
    data.resize(96, 0);
    data[4] = (data.len() - 5) as u8;
    data
}

/// Printable ASCII (SPC-4 4.3), not longer than the field.
fn ascii(text: &str, bytes_max: usize) -> Vec<u8> {
    text.bytes()
        .take(bytes_max)
        .map(|byte| {
            if (0x20..=0x7e).contains(&byte) {
                byte
            } else {
                b'?'
            }
        })
        .collect()
}

fn padded(text: &str, bytes: usize) -> Vec<u8> {
    let mut field = ascii(text, bytes);
    field.resize(bytes, b' ');
    field
}

/// What a designator names (SPC-4 7.8.6.1, ASSOCIATION).
#[derive(Debug, Clone, Copy)]
enum Of {
    Unit = 0x00,
    Port = 0x10,
    Device = 0x20,
}

/// CODE SET (SPC-4 7.8.6).
#[derive(Debug, Clone, Copy)]
enum Code {
    Binary = 1,
    Ascii = 2,
    Utf8 = 3,
}

/// The device identification page (SPC-4 7.8.6).
fn designators(unit: &Unit) -> Vec<u8> {
    let identity = &unit.identity;
    let mut page = Vec::new();
    // NAA.
    designator(&mut page, Of::Unit, 3, Code::Binary, identity.naa.bytes());
    // T10 vendor ID, with the serial number to make it unique.
    let mut vendor = VENDOR.to_vec();
    vendor.extend_from_slice(&ascii(&identity.serial, SERIAL_BYTES_MAX));
    designator(&mut page, Of::Unit, 1, Code::Ascii, &vendor);
    // Relative target port, target port group.
    let relative = u32::from(identity.relative_port).to_be_bytes();
    designator(&mut page, Of::Port, 4, Code::Binary, &relative);
    let group = u32::from(TARGET_PORT_GROUP).to_be_bytes();
    designator(&mut page, Of::Port, 5, Code::Binary, &group);
    // SCSI name strings of the port and of the device.
    let device = name(&identity.target_name);
    let port = format!("{device},t,0x{:04x}", identity.portal_group_tag);
    designator(&mut page, Of::Port, 8, Code::Utf8, &terminated(&port));
    designator(&mut page, Of::Device, 8, Code::Utf8, &terminated(device));
    page
}

fn designator(page: &mut Vec<u8>, of: Of, kind: u8, code: Code, bytes: &[u8]) {
    // PIV says that the protocol is told, which it is for ports and devices.
    let (protocol, piv) = match of {
        Of::Unit => (0, 0),
        Of::Port | Of::Device => (PROTOCOL_ISCSI << 4, 0x80),
    };
    page.extend_from_slice(&[protocol | code as u8, piv | of as u8 | kind, 0]);
    page.push(bytes.len() as u8);
    page.extend_from_slice(bytes);
}

/// As much of a name as a field holds.
fn name(name: &str) -> &str {
    let mut end = name.len().min(NAME_BYTES_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

/// Null-terminated, and padded to a multiple of four bytes.
fn terminated(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize((text.len() + 1).next_multiple_of(4), 0);
    bytes
}

/// The block limits page (SBC-3 6.6).
fn block_limits(unit: &Unit) -> Vec<u8> {
    let limits = &unit.limits;
    let physical = 1_u32 << unit.block_size.physical_exponent();
    // WSNZ: a WRITE SAME of no blocks is refused.
    let mut page = vec![0x01, limits.compare_and_write_blocks_max];
    page.extend_from_slice(&(physical as u16).to_be_bytes());
    for number in [
        limits.transfer_blocks_max,
        limits.transfer_blocks_optimal,
        // No limit for a prefetch.
        0,
        limits.unmap_blocks_max,
        limits.unmap_descriptors_max,
        // OPTIMAL UNMAP GRANULARITY, from block 0 (UGAVALID).
        physical,
        1 << 31,
    ] {
        page.extend_from_slice(&number.to_be_bytes());
    }
    page.extend_from_slice(&limits.write_same_blocks_max.to_be_bytes());
    page.resize(0x3c, 0);
    page
}

/// The block device characteristics page (SBC-3 6.6): it does not rotate.
fn characteristics() -> Vec<u8> {
    let mut page = vec![0, 1];
    page.resize(0x3c, 0);
    page
}

/// The logical block provisioning page (SBC-3 6.6): LBPU, LBPWS, LBPWS10,
/// LBPRZ; thin provisioning.
fn provisioning() -> Vec<u8> {
    vec![0, 0x80 | 0x40 | 0x20 | 0x04, 0x02, 0]
}

#[cfg(test)]
mod tests;
