//! The collector: what no version and no open import needs is freed.

use std::{
    collections::HashSet,
    hash::{BuildHasherDefault, Hasher},
    ops::ControlFlow,
    sync::Arc,
};

use rootstock_api::{CollectEvent, CollectReport};
use rootstock_core::{ChunkId, Digest};
use rootstock_image::manifest::{Descend, Visit};
use rootstock_store::{Collection, LiveSet, PackId};

use crate::{
    app::App,
    http::{ApiError, Progress},
    pages::{StorePages, manifest},
    recipes,
};

/// Collects, reporting to whoever asked. Goes on when they leave.
pub(crate) async fn run(
    app: &Arc<App>,
    progress: Option<Progress>,
) -> Result<CollectReport, ApiError> {
    let collected = collect(app, progress.clone()).await;
    let event = match &collected {
        Ok(report) => {
            app.metrics.collected(report);
            tracing::info!(
                freed_bytes = report.freed_bytes,
                freed_chunks = report.freed_chunk_count,
                live_chunks = report.live_chunk_count,
                "collection done"
            );
            CollectEvent::Done(*report)
        }
        Err(error) => CollectEvent::Failed((*error.0).clone()),
    };
    if let Some(progress) = progress {
        let sending = tokio::task::spawn_blocking(move || progress.send(&event));
        // Nobody is there any more to be told.
        let _ = sending.await;
    }
    collected
}

async fn collect(app: &Arc<App>, progress: Option<Progress>) -> Result<CollectReport, ApiError> {
    let _notes = app.imports.keep_notes();
    // The order matters: what is committed, pinned or asked for after this line
    // is kept by the store itself; what was before is found by the mark.
    let collection = app
        .blocking(|app| app.store.begin_collection().map_err(ApiError::from))
        .await?;
    forget_ended(app).await?;
    // Notes become pins: read in this order, none is missed on its way.
    let mut kept = app.imports.unnamed();
    kept.extend(app.recipes.notes());
    let pins = pins(app).await?;
    let versions = app.catalog.all_versions().await?;
    let mut manifests: Vec<Digest> = versions.iter().map(|row| row.manifest).collect();
    manifests.sort_unstable();
    manifests.dedup();
    kept.extend(recipe_parts(app).await?);
    app.blocking(move |app| sweep(app, collection, &manifests, &kept, &pins, progress.as_ref()))
        .await
}

/// Forgets what imports relied on that ended while a request of theirs was under
/// way. What is known is asked first: an import that opens meanwhile stays.
async fn forget_ended(app: &App) -> Result<(), ApiError> {
    let known = app.imports.known();
    let open = app.catalog.imports().await?;
    for import in known {
        if open.iter().all(|row| row.id != import) {
            app.imports.end(&import);
        }
    }
    Ok(())
}

/// Every part of every recipe. One that cannot be read is forgotten: it can be made
/// anew, and is no reason to keep what nothing needs.
async fn recipe_parts(app: &Arc<App>) -> Result<Vec<ChunkId>, ApiError> {
    let mut parts = Vec::new();
    for recipe in app.catalog.recipes().await? {
        let root = recipe.root;
        let read = app.blocking(move |app| recipes::parts(&app.store, root));
        match read.await {
            Ok(read) => parts.extend(read),
            Err(error) => recipes::give_up(app, root, &error).await,
        }
    }
    Ok(parts)
}

async fn pins(app: &App) -> Result<HashSet<PackId>, ApiError> {
    let names = app.catalog.pins().await?;
    let parse = |name: &String| {
        name.parse().map(PackId).map_err(|_| {
            let error = std::io::Error::other(format!("'{name}' is no pack"));
            ApiError::internal("read the pins", &error)
        })
    };
    names.iter().map(parse).collect()
}

fn sweep(
    app: &App,
    collection: Collection,
    manifests: &[Digest],
    kept: &[ChunkId],
    pins: &HashSet<PackId>,
    progress: Option<&Progress>,
) -> Result<CollectReport, ApiError> {
    let mut live = Live::default();
    for id in kept {
        live.add(*id);
    }
    for (done, id) in manifests.iter().enumerate() {
        if let Some(progress) = progress {
            progress.send_if_room(&CollectEvent::Marking {
                done_count: done as u64,
                total_count: manifests.len() as u64,
            });
        }
        mark(app, *id, &mut live)?;
    }
    let live_chunk_count = live.prefixes.len() as u64;
    if let Some(progress) = progress {
        progress.send_if_room(&CollectEvent::Sweeping { live_chunk_count });
    }
    let report = collection.sweep(&live, pins, &mut |_| ControlFlow::Continue(()))?;
    Ok(CollectReport {
        live_chunk_count,
        freed_chunk_count: report.chunks_removed,
        freed_bytes: report.freed_bytes(),
        removed_pack_count: report.packs_deleted,
        rewritten_pack_count: report.packs_written,
    })
}

/// Marks what a version needs. A page that cannot be read ends the collection:
/// what is below it is not known, and nothing may be freed by guess.
fn mark(app: &App, id: Digest, live: &mut Live) -> Result<(), ApiError> {
    let incomplete = |error: ApiError| {
        let detail = format!(
            "manifest {id} cannot be read, so nothing was collected: {}",
            error.0.detail
        );
        ApiError::new(error.0.code, detail)
            .with_hint("`rootstock image verify` names the version; import it again or delete it")
    };
    live.add(ChunkId(id));
    let manifest = manifest(&app.store, id).map_err(incomplete)?;
    manifest
        .walk(&StorePages(&app.store), |visit| match visit {
            // A page that was seen has had everything below it marked.
            Visit::Page { id, .. } if !live.add_page(id) => Descend::Past,
            Visit::Page { .. } => Descend::Into,
            Visit::Chunk { id, .. } => {
                live.add(id);
                Descend::Into
            }
        })
        .map_err(|error| incomplete(error.into()))
}

/// What is needed. Of chunks only the first eight bytes of their ids are kept, at
/// 9 to 18 bytes of memory each: two that begin alike keep a chunk too many, never
/// one too few. Pages are kept whole, since one that is taken for another would
/// leave unmarked what is below it.
#[derive(Default)]
struct Live {
    prefixes: HashSet<u64, BuildHasherDefault<Prefix>>,
    pages: HashSet<ChunkId>,
}

impl Live {
    fn add(&mut self, id: ChunkId) {
        self.prefixes.insert(prefix(&id));
    }

    /// Whether the page is new.
    fn add_page(&mut self, id: ChunkId) -> bool {
        self.add(id);
        self.pages.insert(id)
    }
}

impl LiveSet for Live {
    fn is_live(&self, chunk: &ChunkId) -> bool {
        self.prefixes.contains(&prefix(chunk))
    }
}

fn prefix(id: &ChunkId) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *id.as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// A digest's bytes are as good as a hash.
#[derive(Default)]
struct Prefix(u64);

impl Hasher for Prefix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}
