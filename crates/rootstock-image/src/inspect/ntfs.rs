//! NTFS: free clusters by the volume's `$Bitmap`.
//!
//! The layout is that of the Linux-NTFS project's "NTFS Documentation", whose
//! sections are named beside the code, and of the kernel's `fs/ntfs3/ntfs.h`. A
//! volume is read only when it says that it was shut down, its log is empty, no
//! system sleeps on it and both copies of its first records agree; none of the
//! clusters of the files read for that may be free.

use rootstock_core::{ByteRange, Extents};

use super::{Found, Refusal, bitmap::zero_runs, free::FreeSet, kept};
use crate::{
    fields::{le16_at, le32_at, le64_at},
    read_at::{ReadAt, Window},
};

mod index;
mod record;
mod shadows;
mod state;
mod table;
mod used;

use table::{Contents, Data, Table};

/// How much of the bitmap is read at a time, in bytes.
const READ_BYTES: u64 = 64 << 10;

/// The numbers of the files that every volume has (section "Metadata Files").
mod files {
    pub(super) const TABLE: u64 = 0;
    pub(super) const LOG: u64 = 2;
    pub(super) const VOLUME: u64 = 3;
    pub(super) const ROOT: u64 = 5;
    pub(super) const BITMAP: u64 = 6;
}

pub(super) fn read(window: &Window<'_>, found: &mut Found) -> Result<(), Refusal> {
    let mut head = [0; 512];
    window.read_exact_at(0, &mut head)?;
    let volume = Volume::parse(&head);
    found.report.uuid = Some(format!("{:016X}", volume.serial));
    volume.check(window.len_bytes())?;
    let table = Table::open(window, &volume)?;
    found.report.label = state::label(&table)?;
    state::check(&table)?;
    shadows::check(window)?;
    let Some(Contents::Runs(bitmap)) = table.contents(files::BITMAP, record::DATA, &[])? else {
        return kept("it has no $Bitmap in clusters of its own: run chkdsk on it");
    };
    let used = metadata(&table, &bitmap)?;
    let free = free_clusters(&table, &bitmap, &used)?;
    used::check(&table, &free.set)?;
    let free_bytes = free.clusters * volume.cluster_bytes;
    found.report.free_bytes = Some(free_bytes);
    found.report.used_bytes = Some(volume.sectors * volume.sector_bytes - free_bytes);
    found.free = free.set;
    Ok(())
}

/// The boot sector's fields that the layout follows from (section "$Boot"). The
/// sector after the volume's last is the copy of it: it is in no cluster.
#[derive(Debug)]
struct Volume {
    sector_bytes: u64,
    cluster_bytes: u64,
    sectors: u64,
    record_bytes: u64,
    table_cluster: u64,
    mirror_cluster: u64,
    serial: u64,
    signed: bool,
}

impl Volume {
    fn parse(head: &[u8; 512]) -> Self {
        let sector_bytes = u64::from(le16_at(head, 11));
        // More than 0x80 is the power of two, less than nothing.
        let cluster_sectors = match head[13] {
            few @ 0..=0x80 => u64::from(few),
            many => 1 << (u8::MAX - many + 1).min(32),
        };
        let cluster_bytes = sector_bytes * cluster_sectors;
        let record_bytes = match head[64] as i8 {
            clusters @ 0.. => cluster_bytes * clusters.unsigned_abs() as u64,
            power => 1 << power.unsigned_abs().min(32),
        };
        Self {
            sector_bytes,
            cluster_bytes,
            sectors: le64_at(head, 40),
            record_bytes,
            table_cluster: le64_at(head, 48),
            mirror_cluster: le64_at(head, 56),
            serial: le64_at(head, 72),
            signed: head[510..] == [0x55, 0xaa],
        }
    }

    fn check(&self, window_bytes: u64) -> Result<(), Refusal> {
        let sane = [512, 1024, 2048, 4096].contains(&self.sector_bytes)
            && self.cluster_bytes.is_power_of_two()
            && self.cluster_bytes <= 2 << 20
            && self.record_bytes.is_power_of_two()
            && (512..=16 << 10).contains(&self.record_bytes)
            && self.table_cluster > 0
            && self.signed;
        if !sane {
            return kept("its boot sector has impossible sizes");
        }
        let bytes = self.sectors.checked_mul(self.sector_bytes);
        if bytes.is_none_or(|bytes| bytes > window_bytes) {
            return kept("it is longer than its partition");
        }
        if self.table_cluster.max(self.mirror_cluster) >= self.clusters() {
            return kept("its boot sector names clusters that it does not have");
        }
        Ok(())
    }

    fn clusters(&self) -> u64 {
        self.sectors * self.sector_bytes / self.cluster_bytes
    }

    /// Whether these clusters are all its own.
    fn has(&self, start: u64, len: u64) -> bool {
        let end = start.checked_add(len);
        end.is_some_and(|end| end <= self.clusters())
    }
}

/// The clusters of the files that were read to know what is free.
fn metadata(table: &Table<'_>, bitmap: &Data) -> Result<Extents, Refusal> {
    let mut used = Extents::new();
    used.insert(ByteRange::new(0, 1));
    used.insert(ByteRange::new(table.volume.mirror_cluster, 1));
    for place in table.data.places().chain(bitmap.places()) {
        used.insert(place);
    }
    if let Some(Contents::Runs(log)) = table.contents(files::LOG, record::DATA, &[])? {
        log.places().for_each(|place| used.insert(place));
    }
    Ok(used)
}

/// Free clusters: where, and how many.
struct Free {
    set: FreeSet,
    clusters: u64,
}

/// Section "$Bitmap": one bit for each cluster, set when it is in use.
fn free_clusters(table: &Table<'_>, bitmap: &Data, used: &Extents) -> Result<Free, Refusal> {
    let clusters = table.volume.clusters();
    if bitmap.written_bytes() < clusters.div_ceil(8) {
        return kept("its $Bitmap is shorter than its clusters need: run chkdsk on it");
    }
    let mut free = Free {
        set: FreeSet::new(),
        clusters: 0,
    };
    let mut piece = vec![0; READ_BYTES as usize];
    let mut in_metadata = false;
    for first in (0..clusters).step_by(READ_BYTES as usize * 8) {
        let bits = (clusters - first).min(READ_BYTES * 8);
        let len = bits.div_ceil(8);
        bitmap.read(table, first / 8, &mut piece[..len as usize])?;
        zero_runs(&piece, bits, |start, end| {
            let run = ByteRange::new(first + start, end - start);
            in_metadata |= used.within(run).next().is_some();
            free.clusters += run.len;
            free.set.insert(table.bytes_of(run));
        });
    }
    if in_metadata {
        return kept("its $Bitmap has its own files in free clusters: run chkdsk on it");
    }
    Ok(free)
}
