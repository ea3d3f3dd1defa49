//! NTFS's file table, `$MFT`, and the contents of its files.

use rootstock_core::ByteRange;

use super::{
    super::{Refusal, kept},
    Volume, files, le16_at, le32_at, le64_at,
    record::{ATTRIBUTE_LIST, Attribute, DATA, Record, damaged},
};
use crate::{
    fields::bytes_at,
    read_at::{ReadAt, Window},
};

/// The most pieces that a file's contents may be in.
const RUNS_MAX: usize = 1 << 18;

/// The most bytes of an attribute list: Windows makes none longer.
const LIST_BYTES_MAX: u64 = 256 << 10;

/// How many records are kept twice (section "$MFTMirr").
const MIRRORED: u64 = 4;

/// The file table of a volume.
pub(super) struct Table<'a> {
    window: &'a Window<'a>,
    pub(super) volume: &'a Volume,
    /// Its own contents.
    pub(super) data: Data,
}

/// The contents of an attribute.
pub(super) enum Contents {
    /// In its record.
    Resident(Vec<u8>),
    /// In clusters.
    Runs(Data),
}

/// Contents that lie in clusters.
pub(super) struct Data {
    /// In the order of the contents, each with the cluster of them that it
    /// begins with.
    runs: Vec<(u64, ByteRange)>,
    clusters: u64,
    written_bytes: u64,
    cluster_bytes: u64,
}

impl<'a> Table<'a> {
    /// Opens the table: its first record says where the others are.
    pub(super) fn open(window: &'a Window<'a>, volume: &'a Volume) -> Result<Self, Refusal> {
        let mut table = Self {
            window,
            volume,
            data: Data::none(volume),
        };
        let place = volume.table_cluster * volume.cluster_bytes;
        let first = table.record_at(files::TABLE, place)?;
        let own = first.find(DATA, &[])?;
        let Some(own) = own.first().filter(|own| own.resident().is_none()) else {
            return damaged(files::TABLE);
        };
        table.data.begin(own)?;
        table.data.add(own, volume)?;
        if let Some(Contents::Runs(all)) = table.contents(files::TABLE, DATA, &[])? {
            table.data = all;
        }
        table.check_mirror()?;
        Ok(table)
    }

    fn check_mirror(&self) -> Result<(), Refusal> {
        let start = self.volume.mirror_cluster * self.volume.cluster_bytes;
        for number in 0..MIRRORED {
            let place = start + number * self.volume.record_bytes;
            if self.record_at(number, place)?.bytes() != self.record(number)?.bytes() {
                return kept("its $MFT and the copy of it differ: run chkdsk on it");
            }
        }
        Ok(())
    }

    fn record_at(&self, number: u64, place: u64) -> Result<Record, Refusal> {
        let mut bytes = vec![0; self.volume.record_bytes as usize];
        self.window.read_exact_at(place, &mut bytes)?;
        Record::parse(number, bytes)
    }

    fn record(&self, number: u64) -> Result<Record, Refusal> {
        let mut bytes = vec![0; self.volume.record_bytes as usize];
        let Some(place) = number.checked_mul(self.volume.record_bytes) else {
            return damaged(number);
        };
        self.data.read(self, place, &mut bytes)?;
        Record::parse(number, bytes)
    }

    /// The contents of a file's attribute, from all of its records.
    pub(super) fn contents(
        &self,
        number: u64,
        kind: u32,
        name: &[u8],
    ) -> Result<Option<Contents>, Refusal> {
        let base = self.record(number)?;
        if base.base() != 0 {
            return damaged(number);
        }
        let list = base.find(ATTRIBUTE_LIST, &[])?;
        let mut parts = Parts::None;
        if let Some(list) = list.first() {
            for (record, first_cluster) in list_entries(&self.attribute_list(list)?, kind, name) {
                let record = self.record(record)?;
                if record.number != number && record.base() != number {
                    return damaged(record.number);
                }
                let own = record.find(kind, name)?;
                let Some(part) = own.iter().find(|part| part.begins_at(first_cluster)) else {
                    return damaged(number);
                };
                parts = parts.with(part, self.volume)?;
            }
        } else {
            for part in base.find(kind, name)? {
                parts = parts.with(&part, self.volume)?;
            }
        }
        parts.joined()
    }

    /// Section "$ATTRIBUTE_LIST".
    fn attribute_list(&self, list: &Attribute<'_>) -> Result<Vec<u8>, Refusal> {
        match Parts::None.with(list, self.volume)?.joined()? {
            Some(Contents::Resident(bytes)) => Ok(bytes),
            Some(Contents::Runs(data)) if data.written_bytes <= LIST_BYTES_MAX => {
                let mut bytes = vec![0; data.written_bytes as usize];
                data.read(self, 0, &mut bytes)?;
                Ok(bytes)
            }
            _ => torn(),
        }
    }

    /// Where clusters are, in bytes of the partition.
    pub(super) fn bytes_of(&self, clusters: ByteRange) -> ByteRange {
        let bytes = self.volume.cluster_bytes;
        ByteRange::new(clusters.start * bytes, clusters.len * bytes)
    }
}

/// The parts of an attribute as they are put together.
enum Parts {
    None,
    Resident(Vec<u8>),
    Runs { data: Data, allocated_bytes: u64 },
}

impl Parts {
    /// The first part of runs has the sizes of all.
    fn with(self, part: &Attribute<'_>, volume: &Volume) -> Result<Self, Refusal> {
        match (self, part.resident()) {
            (Self::None, Some(bytes)) => Ok(Self::Resident(bytes.to_vec())),
            (Self::None, None) => {
                let mut data = Data::none(volume);
                data.begin(part)?;
                let allocated_bytes = part.allocated_bytes();
                Self::Runs {
                    data,
                    allocated_bytes,
                }
                .with(part, volume)
            }
            (
                Self::Runs {
                    mut data,
                    allocated_bytes,
                },
                None,
            ) if part.begins_at(data.clusters) => {
                data.add(part, volume)?;
                Ok(Self::Runs {
                    data,
                    allocated_bytes,
                })
            }
            _ => torn(),
        }
    }

    fn joined(self) -> Result<Option<Contents>, Refusal> {
        match self {
            Self::None => Ok(None),
            Self::Resident(bytes) => Ok(Some(Contents::Resident(bytes))),
            Self::Runs {
                data,
                allocated_bytes,
            } => {
                if data.bytes() < allocated_bytes.max(data.written_bytes) {
                    return torn();
                }
                Ok(Some(Contents::Runs(data)))
            }
        }
    }
}

fn torn<T>() -> Result<T, Refusal> {
    kept("the parts of a file of its own do not fit together: run chkdsk on it")
}

/// The parts of an attribute in its order: in which record each is, and the
/// cluster of the contents that it begins with.
fn list_entries(list: &[u8], kind: u32, name: &[u8]) -> Vec<(u64, u64)> {
    let mut records = Vec::new();
    let mut rest = list;
    loop {
        let len = usize::from(le16_at(rest, 4));
        let Some((entry, after)) = rest.split_at_checked(len).filter(|_| len >= 24) else {
            return records;
        };
        let [name_len, name_at]: [u8; 2] = bytes_at(entry, 6);
        let name_end = usize::from(name_at) + usize::from(name_len) * 2;
        let own_name = entry.get(name_at.into()..name_end);
        if le32_at(entry, 0) == kind && own_name == Some(name) {
            let record = le64_at(entry, 16) & ((1 << 48) - 1);
            records.push((record, le64_at(entry, 8)));
        }
        rest = after;
    }
}

impl Data {
    fn none(volume: &Volume) -> Self {
        Self {
            runs: Vec::new(),
            clusters: 0,
            written_bytes: 0,
            cluster_bytes: volume.cluster_bytes,
        }
    }

    fn begin(&mut self, first: &Attribute<'_>) -> Result<(), Refusal> {
        if !first.is_plain() {
            return kept("a file of its own is compressed, encrypted or sparse");
        }
        self.written_bytes = first.written_bytes();
        Ok(())
    }

    fn add(&mut self, part: &Attribute<'_>, volume: &Volume) -> Result<(), Refusal> {
        for run in part.runs() {
            // Nothing that is read here is sparse.
            let run = run.and_then(|(start, len)| Some((start?, len)));
            let run = run.filter(|(start, len)| volume.has(*start, *len));
            let Some((start, len)) = run else {
                return kept("its files lie in clusters that it does not have: run chkdsk on it");
            };
            if self.runs.len() >= RUNS_MAX {
                return kept("a file of its own is in too many pieces");
            }
            self.runs.push((self.clusters, ByteRange::new(start, len)));
            self.clusters = self.clusters.saturating_add(len);
        }
        Ok(())
    }

    pub(super) fn bytes(&self) -> u64 {
        self.clusters.saturating_mul(self.cluster_bytes)
    }

    pub(super) fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// The clusters that it is in.
    pub(super) fn places(&self) -> impl Iterator<Item = ByteRange> + '_ {
        self.runs.iter().map(|(_, place)| *place)
    }

    /// Fills `buffer` from a place of the contents.
    pub(super) fn read(
        &self,
        table: &Table<'_>,
        offset_bytes: u64,
        mut buffer: &mut [u8],
    ) -> Result<(), Refusal> {
        let size = self.cluster_bytes;
        let mut at = offset_bytes;
        while !buffer.is_empty() {
            let cluster = at / size;
            let next = self.runs.partition_point(|(first, _)| *first <= cluster);
            let run = next.checked_sub(1).and_then(|run| self.runs.get(run));
            let Some((first, place)) = run.filter(|(first, place)| cluster - first < place.len)
            else {
                return kept("a file of its own is shorter than it says: run chkdsk on it");
            };
            let into = at - first * size;
            let len = (place.len * size - into).min(buffer.len() as u64);
            let (now, rest) = buffer.split_at_mut(len as usize);
            table.window.read_exact_at(place.start * size + into, now)?;
            at += len;
            buffer = rest;
        }
        Ok(())
    }
}
