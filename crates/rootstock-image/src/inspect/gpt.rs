//! The GUID partition table: UEFI 2.10, section 5.3.

use std::io;

use rootstock_core::ByteRange;

use super::{
    TableKind,
    checksum::crc32,
    table::{DYNAMIC, Entry, Table, bytes_at},
};
use crate::{fields::Fields, read_at::ReadAt};

mod grown;

pub use grown::{GrowError, GrownGpt, grown_gpt};

/// Logical sector sizes that disks have, in bytes.
const SECTOR_BYTES: [u64; 2] = [512, 4096];

/// Section 5.3.2 asks for at least 16,384 bytes of entries; more than this many
/// entries are not read.
const ENTRIES_MAX: u32 = 1024;

/// The longest entry that is read, in bytes. All that are known have 128.
const ENTRY_BYTES_MAX: u32 = 4096;

/// A header whose checksum and place are right, and its entries.
struct Copy {
    sector_bytes: u64,
    alternate: u64,
    /// The header's sector and the entries, in bytes of the disk.
    header: ByteRange,
    entries: ByteRange,
    entry_bytes: usize,
    bytes: Vec<u8>,
}

/// The table of a disk that has a protective record.
pub(super) fn read(disk: &dyn ReadAt) -> io::Result<Table> {
    let mut table = Table::new(TableKind::Gpt);
    for sector_bytes in SECTOR_BYTES {
        if let Some(primary) = Copy::read(disk, sector_bytes, 1)? {
            let backup = Copy::read(disk, sector_bytes, primary.alternate)?;
            // Section 5.3.1: the second header is in the disk's last sector.
            let sectors = primary.alternate.saturating_add(1);
            table.disk_bytes = sectors.saturating_mul(sector_bytes);
            match &backup {
                Some(backup) if backup.bytes != primary.bytes => {
                    table.note("the two copies of the GPT differ: the first one counts");
                }
                Some(_) => {}
                None => table.note("the second copy of the GPT is missing or damaged"),
            }
            primary.fill(&mut table);
            if let Some(backup) = backup {
                backup.reserve_backup(&mut table);
            }
            return Ok(table);
        }
    }
    for sector_bytes in SECTOR_BYTES {
        let last = (disk.len_bytes() / sector_bytes).saturating_sub(1);
        if let Some(backup) = Copy::read(disk, sector_bytes, last)? {
            table.note("the first copy of the GPT is damaged: the second one is used");
            backup.fill(&mut table);
            // Whatever is left of the first copy must stay, too.
            let first_usable = 2 * sector_bytes + backup.entries.len;
            table.reserved.push(ByteRange::new(0, first_usable));
            backup.reserve_backup(&mut table);
            return Ok(table);
        }
    }
    table.give_up("both copies of the GPT are damaged");
    Ok(table)
}

/// The named partitions of a disk that has such a table.
pub(crate) fn named(disk: &dyn ReadAt) -> io::Result<Vec<(String, ByteRange)>> {
    let table = read(disk)?;
    let entries = table.entries.into_iter();
    Ok(entries
        .filter_map(|entry| Some((entry.name?, entry.range)))
        .collect())
}

impl Copy {
    /// The copy whose header is in this sector, if all of it is right.
    fn read(disk: &dyn ReadAt, sector_bytes: u64, sector: u64) -> io::Result<Option<Self>> {
        let Some(offset_bytes) = sector.checked_mul(sector_bytes) else {
            return Ok(None);
        };
        let Some(mut header) = bytes_at(disk, offset_bytes, sector_bytes as usize)? else {
            return Ok(None);
        };
        let mut fields = Fields::new(&header);
        let signature: [u8; 8] = fields.array();
        let revision = fields.u32();
        let header_bytes = fields.u32() as usize;
        let header_crc = fields.u32();
        let _reserved = fields.u32();
        let own_sector = fields.u64();
        let alternate = fields.u64();
        let _usable: [u8; 16] = fields.array();
        let _disk_guid: [u8; 16] = fields.array();
        let entries_sector = fields.u64();
        let count = fields.u32();
        let entry_bytes = fields.u32();
        let entries_crc = fields.u32();
        let sane = signature == *b"EFI PART"
            && revision >> 16 == 1
            && (92..=header.len()).contains(&header_bytes)
            && own_sector == sector
            && count <= ENTRIES_MAX
            && (128..=ENTRY_BYTES_MAX).contains(&entry_bytes)
            && entry_bytes.is_power_of_two();
        if !sane {
            return Ok(None);
        }
        header[16..20].fill(0);
        if crc32(&header[..header_bytes]) != header_crc {
            return Ok(None);
        }
        let Some(start) = entries_sector.checked_mul(sector_bytes) else {
            return Ok(None);
        };
        let len = count as usize * entry_bytes as usize;
        let Some(bytes) = bytes_at(disk, start, len)?.filter(|b| crc32(b) == entries_crc) else {
            return Ok(None);
        };
        Ok(Some(Self {
            sector_bytes,
            alternate,
            header: ByteRange::new(offset_bytes, sector_bytes),
            entries: ByteRange::new(start, len as u64),
            entry_bytes: entry_bytes as usize,
            bytes,
        }))
    }

    /// Puts the partitions into the table.
    fn fill(&self, table: &mut Table) {
        table.reserved.push(ByteRange::new(0, self.sector_bytes));
        table.reserved.extend([self.header, self.entries]);
        for (number, bytes) in (1..).zip(self.bytes.chunks_exact(self.entry_bytes)) {
            let mut fields = Fields::new(bytes);
            let kind: [u8; 16] = fields.array();
            let _own: [u8; 16] = fields.array();
            let (first, last) = (fields.u64(), fields.u64());
            let _attributes = fields.u64();
            let name: [u8; 72] = fields.array();
            if kind == [0; 16] {
                continue;
            }
            let sectors = last.checked_sub(first).and_then(|len| len.checked_add(1));
            let range = sectors.and_then(|sectors| {
                let start = first.checked_mul(self.sector_bytes)?;
                Some(ByteRange::new(
                    start,
                    sectors.checked_mul(self.sector_bytes)?,
                ))
            });
            let Some(range) = range else {
                table.note(format!(
                    "partition {number} ends before it begins and is left out"
                ));
                continue;
            };
            table.entries.push(Entry {
                number,
                range,
                type_name: type_name(&kind),
                name: name_text(&name),
            });
        }
    }

    /// Notes where this second copy is.
    fn reserve_backup(&self, table: &mut Table) {
        table.reserved.extend([self.header, self.entries]);
        if self.entries.end() <= self.header.start {
            let start = self.entries.start;
            table.backup = Some(ByteRange::new(start, self.header.end() - start));
        }
    }
}

fn name_text(name: &[u8; 72]) -> Option<String> {
    let (units, _) = name.as_chunks::<2>();
    let units = units.iter().map(|unit| u16::from_le_bytes(*unit));
    let text: String = char::decode_utf16(units.take_while(|unit| *unit != 0))
        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
        .filter(|c| !c.is_control())
        .collect();
    (!text.is_empty()).then_some(text)
}

fn type_name(guid: &[u8; 16]) -> String {
    // The first three fields of a GUID are little-endian.
    let [a, b, c, d, e, f, g, h, rest @ ..] = *guid;
    let mixed = [d, c, b, a, f, e, h, g];
    let digits = mixed.iter().chain(&rest);
    let mut text = String::with_capacity(36);
    for (at, byte) in digits.enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    let name = match text.as_str() {
        "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" => "EFI system",
        "21686148-6449-6e6f-744e-656564454649" => "BIOS boot",
        "0fc63daf-8483-4772-8e79-3d69d8477de4" => "Linux filesystem",
        "4f68bce3-e8cd-4db1-96e7-fbcaf984b709" => "Linux root (x86-64)",
        "b921b045-1df0-41c3-af44-4c6f280d3fae" => "Linux root (ARM64)",
        "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f" => "Linux swap",
        "e6d6d379-f507-44c2-a23c-238f2a3df928" => "Linux LVM",
        "a19d880f-05fc-4d3b-a006-743f0f84911e" => "Linux RAID",
        "933ac7e1-2eb4-4f13-b844-0e14e2aef915" => "Linux home",
        "bc13c2ff-59e6-4262-a352-b275fd6f7172" => "Linux extended boot",
        "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7" => "Microsoft basic data",
        "e3c9e316-0b5c-4db8-817d-f92df00215ae" => "Microsoft reserved",
        "af9b60a0-1431-4f62-bc68-3311714a69ad" | "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3" => DYNAMIC,
        "de94bba4-06d1-4d40-a16a-bfd50179d6ac" => "Windows recovery",
        _ => return text,
    };
    name.into()
}
