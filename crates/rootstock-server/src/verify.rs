//! Verification: reads every chunk of a version again and names what is damaged.

use std::collections::HashMap;

use rootstock_api::{Damage, ProblemCode, VerifyEvent, VerifyReport};
use rootstock_catalog::VersionRow;
use rootstock_core::ChunkId;
use rootstock_image::manifest::{Manifest, PAGE_ENTRIES};
use rootstock_store::ChunkStore;

use crate::{
    app::App,
    http::{ApiError, Progress, chain},
    leases::Lease,
    pages::{StorePages, manifest},
};

/// Bytes of disk between two lines of progress.
const REPORT_EVERY_BYTES: u64 = 64 << 20;

/// Verifies a version and reports as it goes; ends early when the client has gone.
pub(crate) fn run(app: &App, version: &VersionRow, progress: &Progress, lease: Lease) {
    let last = match verify(app, version, progress) {
        Ok(Some(report)) => VerifyEvent::Done(report),
        Ok(None) => return,
        Err(error) => VerifyEvent::Failed(*error.0),
    };
    drop(lease);
    // A client that has gone does not want it.
    let _ = progress.send(&last);
}

fn verify(
    app: &App,
    version: &VersionRow,
    progress: &Progress,
) -> Result<Option<VerifyReport>, ApiError> {
    let manifest = match manifest(&app.store, version.manifest) {
        Err(error) if error.0.code == ProblemCode::Damaged => {
            return Ok(lost(app, version, error.0.detail, progress));
        }
        manifest => manifest?,
    };
    let mut verify = Verify {
        store: &app.store,
        manifest: &manifest,
        version,
        known: HashMap::new(),
        report: VerifyReport {
            chunk_count: 1,
            ..VerifyReport::default()
        },
    };
    let total_bytes = manifest.grid().disk_bytes();
    let mut reported_bytes = 0;
    let mut index = 0;
    while index < manifest.grid().chunk_count() {
        let (damage, next) = verify.leaf(index);
        index = next;
        app.metrics.damage(damage.len() as u64);
        for damage in damage {
            if progress.send(&VerifyEvent::Damage(damage)).is_err() {
                return Ok(None);
            }
        }
        let done_bytes = verify.report.checked_bytes;
        if done_bytes - reported_bytes >= REPORT_EVERY_BYTES || done_bytes == total_bytes {
            reported_bytes = done_bytes;
            let event = VerifyEvent::Progress {
                done_bytes,
                total_bytes,
            };
            if progress.send(&event).is_err() {
                return Ok(None);
            }
        }
    }
    Ok(Some(verify.report))
}

/// Without its manifest the whole disk is lost.
fn lost(
    app: &App,
    version: &VersionRow,
    reason: String,
    progress: &Progress,
) -> Option<VerifyReport> {
    app.metrics.damage(1);
    let damage = Damage {
        image: version.image.clone(),
        version: version.number,
        offset_bytes: 0,
        len_bytes: version.disk_bytes,
        chunk: ChunkId(version.manifest),
        reason,
    };
    progress.send(&VerifyEvent::Damage(damage)).ok()?;
    Some(VerifyReport {
        chunk_count: 1,
        checked_bytes: version.disk_bytes,
        damage_count: 1,
    })
}

struct Verify<'a> {
    store: &'a ChunkStore,
    manifest: &'a Manifest,
    version: &'a VersionRow,
    /// Chunks that were read: what is wrong with them, if anything.
    known: HashMap<ChunkId, Option<String>>,
    report: VerifyReport,
}

/// Chunks that are checked between two looks at the client: 64 MiB.
const STEP_CHUNKS: u64 = 256;

impl Verify<'_> {
    /// Checks the chunks from `index` to the end of their leaf, or a step of it.
    /// Answers the damage and the first chunk after them.
    fn leaf(&mut self, index: u64) -> (Vec<Damage>, u64) {
        let grid = self.manifest.grid();
        let leaf = match self.manifest.leaf(&StorePages(self.store), index) {
            Ok(leaf) => leaf,
            Err(error) => {
                let damage = self.lost_leaf(index, &error);
                return (vec![damage.0], damage.1);
            }
        };
        let all = leaf.chunks();
        let next = if leaf.is_zero() {
            all.end
        } else {
            all.end.min(index + STEP_CHUNKS)
        };
        let mut damage = Vec::new();
        for chunk in index..next {
            let span = grid.span(chunk);
            self.report.checked_bytes += u64::from(span.len_bytes);
            let id = leaf.chunk(chunk).unwrap_or(ChunkId::ZERO);
            if let Some(reason) = self.wrong_with(id, span.len_bytes) {
                self.report.damage_count += 1;
                damage.push(Damage {
                    image: self.version.image.clone(),
                    version: self.version.number,
                    offset_bytes: span.start_bytes,
                    len_bytes: u64::from(span.len_bytes),
                    chunk: id,
                    reason,
                });
            }
        }
        (damage, next)
    }

    fn wrong_with(&mut self, id: ChunkId, len_bytes: u32) -> Option<String> {
        if id.is_zero() {
            return None;
        }
        if let Some(known) = self.known.get(&id) {
            return known.clone();
        }
        self.report.chunk_count += 1;
        let wrong = match self.store.read(id) {
            Ok(raw) if raw.len() == len_bytes as usize => None,
            Ok(raw) => Some(format!("it has {} bytes", raw.len())),
            Err(error) => Some(chain(&error)),
        };
        self.known.insert(id, wrong.clone());
        wrong
    }

    /// A page on the way to these chunks cannot be read: they are all lost.
    fn lost_leaf(
        &mut self,
        index: u64,
        error: &(dyn std::error::Error + 'static),
    ) -> (Damage, u64) {
        let grid = self.manifest.grid();
        let region = grid.region_of_chunk(index);
        let first = grid.region_first_chunk(region);
        let count = grid.regions()[region].chunk_count();
        let end = ((index - first) / PAGE_ENTRIES + 1) * PAGE_ENTRIES;
        let next = first + end.min(count);
        let start_bytes = grid.span(index).start_bytes;
        let end_bytes = grid.span(next - 1).end_bytes();
        self.report.damage_count += 1;
        self.report.checked_bytes += end_bytes - start_bytes;
        let damage = Damage {
            image: self.version.image.clone(),
            version: self.version.number,
            offset_bytes: start_bytes,
            len_bytes: end_bytes - start_bytes,
            chunk: self.manifest.root(region),
            reason: chain(error),
        };
        (damage, next)
    }
}
