//! The scrubber: reads what is stored before somebody needs it, at a gentle pace.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rootstock_api::{Damage, ScrubStatus};
use rootstock_core::ChunkId;
use rootstock_image::manifest::{Descend, Visit};

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
}

impl Scrub {
    pub(crate) fn new(rate_bytes: u64) -> Self {
        let status = ScrubStatus {
            rate_bytes,
            ..ScrubStatus::default()
        };
        Self {
            status: Mutex::new(status),
        }
    }

    pub(crate) fn status(&self) -> ScrubStatus {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, ScrubStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Scrubs pass after pass until `stop`.
pub(crate) async fn work(app: Arc<App>, mut stop: Stop) {
    while pass(&app, &mut stop).await && !stop.rest(PASS_PAUSE).await {}
}

/// Scrubs every pack once. False when the daemon stops.
pub(crate) async fn pass(app: &Arc<App>, stop: &mut Stop) -> bool {
    let packs = app.store.packs();
    {
        let mut status = app.scrub.lock();
        status.running = true;
        status.done_pack_count = 0;
        status.total_pack_count = packs.len() as u64;
        status.damage.clear();
        status.unused_damage_count = 0;
    }
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
    let mut status = app.scrub.lock();
    status.running = false;
    status.last_pass = Some(Timestamp::now().to_string());
    true
}

/// How long reading this much may take at this rate.
fn pace(read_bytes: u64, rate_bytes: u64) -> Duration {
    Duration::from_millis(read_bytes.saturating_mul(1000) / rate_bytes.max(1))
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
