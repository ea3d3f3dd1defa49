//! The scrubber: reads what is stored before somebody needs it, at a gentle pace.
//!
//! Passes begin by themselves while the configured pace is not 0, and when they
//! are asked for. What the last whole pass found outlives a restart.

mod record;

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rootstock_api::{Damage, ScrubStatus};
use rootstock_core::ChunkId;
use rootstock_image::manifest::{Descend, Visit};
use tokio::sync::Notify;

use crate::{
    app::App,
    http::{ApiError, chain},
    pages::{StorePages, manifest},
    stop::Stop,
};

/// Places of damage that the status names.
const DAMAGE_MAX: usize = 1000;

/// The rest between two passes.
const PASS_PAUSE: Duration = Duration::from_secs(3600);

/// How far the scrub is.
#[derive(Debug)]
pub(crate) struct Scrub {
    status: Mutex<ScrubStatus>,
    /// A pass was asked for.
    wanted: Notify,
    /// Where the last result is kept.
    record: PathBuf,
}

impl Scrub {
    /// A scrub that knows what the last whole pass found, even before a restart.
    pub(crate) fn new(rate_bytes: u64, data: &Path) -> Self {
        let record = data.join(record::FILE);
        let last = record::read(&record).unwrap_or_else(|error| {
            tracing::warn!(error = chain(&error), "last scrub's result not known");
            ScrubStatus::default()
        });
        Self {
            status: Mutex::new(ScrubStatus { rate_bytes, ..last }),
            wanted: Notify::new(),
            record,
        }
    }

    /// Begins a pass, unless one is under way.
    pub(crate) fn start(&self, pack_count: usize) -> ScrubStatus {
        let mut status = self.lock();
        if !status.running {
            begin(&mut status, pack_count);
            self.wanted.notify_one();
        }
        status.clone()
    }

    pub(crate) fn status(&self) -> ScrubStatus {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, ScrubStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Scrubs pass after pass until `stop`: at the pace of the configuration, or only
/// when asked where that is 0.
pub(crate) async fn work(app: Arc<App>, mut stop: Stop) {
    let by_itself = app.config.store.scrub_rate_bytes > 0;
    let mut goes_on = !by_itself || pass(&app, &mut stop).await;
    while goes_on {
        goes_on = tokio::select! {
            () = stop.wait() => false,
            () = app.scrub.wanted.notified() => pass(&app, &mut stop).await,
            () = tokio::time::sleep(PASS_PAUSE), if by_itself => pass(&app, &mut stop).await,
        };
    }
}

fn begin(status: &mut ScrubStatus, pack_count: usize) {
    status.running = true;
    status.done_pack_count = 0;
    status.total_pack_count = pack_count as u64;
    status.damage.clear();
    status.unused_damage_count = 0;
}

/// Scrubs every pack once. False when the daemon stops.
pub(crate) async fn pass(app: &Arc<App>, stop: &mut Stop) -> bool {
    let packs = app.store.packs();
    begin(&mut app.scrub.lock(), packs.len());
    for pack in packs {
        let began = Instant::now();
        let scrubbed = app
            .blocking(move |app| Ok(app.store.scrub_pack(pack)))
            .await;
        let report = match scrubbed {
            Ok(report) => report,
            Err(error) => {
                tracing::error!(detail = error.0.detail, "scrub of a pack failed");
                None
            }
        };
        let mut read_bytes = 0;
        if let Some(report) = report {
            read_bytes = report.read_bytes;
            if !report.damage.is_empty() {
                let damage = report.damage;
                note_damage(app, damage).await;
            }
        }
        app.scrub.lock().done_pack_count += 1;
        let due = pace(read_bytes, app.config.store.scrub_rate_bytes);
        if stop.rest(due.saturating_sub(began.elapsed())).await {
            return false;
        }
    }
    keep(app).await;
    true
}

/// Ends a whole pass, and writes down what it found.
async fn keep(app: &Arc<App>) {
    let ended = ScrubStatus {
        running: false,
        last_pass: Some(Timestamp::now().to_string()),
        ..app.scrub.status()
    };
    let written = ended.clone();
    let kept = app.blocking(move |app| {
        record::write(&app.scrub.record, &written)
            .map_err(|error| ApiError::internal("keep the scrub's result", &error))
    });
    if let Err(error) = kept.await {
        tracing::error!(detail = error.0.detail, "scrub's result not kept");
    }
    *app.scrub.lock() = ended;
}

/// How long reading this much may take at this rate; a pass that was asked for
/// where the pace is 0 goes as fast as the disk.
fn pace(read_bytes: u64, rate_bytes: u64) -> Duration {
    let millis = read_bytes.saturating_mul(1000).checked_div(rate_bytes);
    Duration::from_millis(millis.unwrap_or(0))
}

async fn note_damage(app: &Arc<App>, found: Vec<rootstock_store::Damage>) {
    app.metrics.damage(found.len() as u64);
    let versions = match app.catalog.all_versions().await {
        Ok(versions) => versions,
        Err(error) => {
            tracing::error!(error = chain(&error), "damage not placed");
            return;
        }
    };
    let placed = app.blocking(move |app| place(app, &found, &versions)).await;
    match placed {
        Ok((damage, unused)) => {
            for damage in &damage {
                tracing::error!(
                    image = %damage.image,
                    version = damage.version.0,
                    offset_bytes = damage.offset_bytes,
                    reason = damage.reason,
                    "version damaged"
                );
            }
            let mut status = app.scrub.lock();
            let room = DAMAGE_MAX.saturating_sub(status.damage.len());
            status.damage.extend(damage.into_iter().take(room));
            status.unused_damage_count += unused;
        }
        Err(error) => tracing::error!(detail = error.0.detail, "damage not placed"),
    }
}

/// Finds where damaged chunks stand. Answers the places, and how many chunks no
/// version needs.
fn place(
    app: &App,
    found: &[rootstock_store::Damage],
    versions: &[rootstock_catalog::VersionRow],
) -> Result<(Vec<Damage>, u64), ApiError> {
    let mut places = Vec::new();
    let mut unused: HashSet<ChunkId> = found.iter().map(|damage| damage.chunk).collect();
    let damaged = unused.clone();
    let reason = |id: ChunkId| {
        let damage = found.iter().find(|damage| damage.chunk == id);
        damage.map_or_else(String::new, |damage| damage.kind.to_string())
    };
    for version in versions {
        let mut add = |id: ChunkId, offset_bytes, len_bytes| {
            unused.remove(&id);
            if places.len() < DAMAGE_MAX {
                places.push(Damage {
                    image: version.image.clone(),
                    version: version.number,
                    offset_bytes,
                    len_bytes,
                    chunk: id,
                    reason: reason(id),
                });
            }
        };
        let root = ChunkId(version.manifest);
        if damaged.contains(&root) {
            add(root, 0, version.disk_bytes);
            continue;
        }
        let Ok(manifest) = manifest(&app.store, version.manifest) else {
            continue;
        };
        let grid = manifest.grid();
        let walked = manifest.walk(&StorePages(&app.store), |visit| match visit {
            Visit::Page {
                id,
                index,
                chunk_count,
                ..
            } if damaged.contains(&id) => {
                let start_bytes = grid.span(index).start_bytes;
                let end_bytes = grid.span(index + chunk_count - 1).end_bytes();
                add(id, start_bytes, end_bytes - start_bytes);
                Descend::Past
            }
            // A page that another pack lost is placed with that pack's damage, and
            // must not hide what comes after it.
            Visit::Page { id, .. } if app.store.read(id).is_err() => Descend::Past,
            Visit::Page { .. } => Descend::Into,
            Visit::Chunk { index, id } => {
                let span = grid.span(index);
                if damaged.contains(&id) {
                    add(id, span.start_bytes, u64::from(span.len_bytes));
                }
                Descend::Into
            }
        });
        if let Err(error) = walked {
            tracing::error!(error = chain(&error), "version not searched for damage");
        }
    }
    Ok((places, unused.len() as u64))
}
