//! Imports: chunks come in, and become a version in one step or not at all.
//!
//! What an open import relies on must survive collections. Chunks in stored
//! packs do so by pins, which are in the catalog before the client hears "have";
//! chunks that are still in memory are remembered here until their pack has a
//! name, and a collection counts them as needed. When the daemon dies they are
//! gone with it, and the commit names what is missing, so that the client sends
//! it again.

use std::{
    collections::{HashMap, HashSet},
    ops::RangeInclusive,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use rootstock_api::{
    Bitmap, ImageFacts, ImportCommitted, ImportReceipt, Outcome, Problem, ProblemCode, Records,
    problem::MISSING_MAX,
};
use rootstock_catalog::{AddedVersion, NewVersion};
use rootstock_core::{ChunkId, Digest, TagName, VersionSpec};
use rootstock_image::{
    frame::{Codec, FrameRef},
    inspect::{FreeSpace, inspect},
    manifest::{Descend, Manifest, Visit},
    seal::Seal,
};
use rootstock_store::{ChunkStore, Hold, Origin, PackId, PutOutcome};
use rootstock_volume::DeviceReader;

use crate::{
    app::{App, hex},
    facts,
    http::ApiError,
    pages::{StorePages, manifest},
};

/// Bodies whose memory is kept, at most, while imports are open.
const BODIES_KEPT_MAX: usize = 8;

/// Bodies whose memory is kept, in bytes: lists of ids are not worth it.
const BODY_KEPT_BYTES: RangeInclusive<usize> = 1 << 18..=6 << 20;

/// How often the catalog hears of an import that stores little.
const TOUCH_INTERVAL: Duration = Duration::from_secs(60);

/// What the open imports rely on, as far as it is not in the catalog.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    by_import: Mutex<HashMap<String, Session>>,
    /// Collections under way. A pin made meanwhile may be of a pack that is
    /// being written anew under another name, so notes stay until it is over.
    collections: AtomicUsize,
    /// Memory of bodies, used again by the next ones: fresh pages cost more
    /// than the copy into them.
    body_memory: Mutex<Vec<BytesMut>>,
}

#[derive(Debug, Default)]
struct Session {
    /// What was stored and is not in the catalog yet. Lost when the daemon dies,
    /// as are the chunks themselves, whose pack has no name yet either.
    added: Added,
    /// When the catalog last heard of it.
    touched: Option<Instant>,
    /// Packs that are pinned in the catalog.
    pinned: HashSet<PackId>,
    /// Chunks whose pack has no name yet.
    unnamed: HashSet<ChunkId>,
}

/// What an import brought.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Added {
    pub(crate) chunks: u64,
    /// Bytes of their frames.
    pub(crate) bytes: u64,
}

/// Chunks whose packs have names, and those packs that are not pinned.
#[derive(Debug, Default)]
struct Named {
    chunks: Vec<ChunkId>,
    packs: HashSet<PackId>,
}

impl Sessions {
    /// Chunks that imports rely on and no pin covers.
    pub(crate) fn unnamed(&self) -> Vec<ChunkId> {
        let sessions = self.lock();
        let unnamed = sessions.values().flat_map(|session| &session.unnamed);
        unnamed.copied().collect()
    }

    /// Keeps all notes until what it returns is dropped.
    pub(crate) fn keep_notes(&self) -> NotesKept<'_> {
        // Under the lock: no note is on its way out when this returns.
        let _sessions = self.lock();
        self.collections.fetch_add(1, Ordering::Relaxed);
        NotesKept(self)
    }

    /// Imports that are known here.
    pub(crate) fn known(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// Forgets an import that ended.
    pub(crate) fn end(&self, import: &str) {
        self.lock().remove(import);
        self.bodies().clear();
    }

    /// What was stored for an import and is not in the catalog yet.
    pub(crate) fn added(&self, import: &str) -> Added {
        let sessions = self.lock();
        sessions
            .get(import)
            .map_or_else(Added::default, |session| session.added)
    }

    /// Memory for a body of this announced length: none, or what an earlier one
    /// had.
    pub(crate) fn body_memory(&self, announced_bytes: usize) -> BytesMut {
        if !BODY_KEPT_BYTES.contains(&announced_bytes) {
            return BytesMut::new();
        }
        self.bodies().pop().unwrap_or_default()
    }

    /// Keeps the memory of a body that was read, if nobody else does.
    pub(crate) fn keep_body_memory(&self, body: Bytes) {
        if let Ok(mut memory) = body.try_into_mut() {
            memory.clear();
            let mut kept = self.bodies();
            if kept.len() < BODIES_KEPT_MAX && BODY_KEPT_BYTES.contains(&memory.capacity()) {
                kept.push(memory);
            }
        }
    }

    fn bodies(&self) -> MutexGuard<'_, Vec<BytesMut>> {
        let bodies = self.body_memory.lock();
        bodies.unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what was stored; answers whether the catalog should hear of it.
    fn add(&self, import: &str, receipt: &ImportReceipt) -> bool {
        let mut sessions = self.lock();
        let Some(session) = sessions.get_mut(import) else {
            return false;
        };
        session.added.chunks += receipt.stored_count;
        session.added.bytes += receipt.stored_bytes;
        let recent = |at: Instant| at.elapsed() < TOUCH_INTERVAL;
        !session.touched.is_some_and(recent)
    }

    /// Takes what is to be written to the catalog.
    fn take_added(&self, import: &str) -> Option<Added> {
        let mut sessions = self.lock();
        let session = sessions.get_mut(import)?;
        session.touched = Some(Instant::now());
        Some(std::mem::take(&mut session.added))
    }

    /// Notes chunks that the import relies on from now on, before it is known
    /// whether they are there: a collection that begins meanwhile keeps them.
    fn rely(&self, import: &str, chunks: impl IntoIterator<Item = ChunkId>) {
        let mut sessions = self.lock();
        let session = sessions.entry(import.to_owned()).or_default();
        session.unnamed.extend(chunks);
    }

    /// The packs of the noted chunks, as far as they have names.
    fn named(&self, store: &ChunkStore, import: &str) -> Named {
        let sessions = self.lock();
        let mut named = Named::default();
        let Some(session) = sessions.get(import) else {
            return named;
        };
        for chunk in &session.unnamed {
            if let Some(pack) = store.pack_of(*chunk) {
                named.chunks.push(*chunk);
                if !session.pinned.contains(&pack) {
                    named.packs.insert(pack);
                }
            }
        }
        named
    }

    /// The packs are pinned: the chunks in them need no note any more.
    fn pinned(&self, import: &str, named: Named) {
        let mut sessions = self.lock();
        if self.collections.load(Ordering::Relaxed) > 0 {
            return;
        }
        if let Some(session) = sessions.get_mut(import) {
            session.pinned.extend(named.packs);
            for chunk in named.chunks {
                session.unnamed.remove(&chunk);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        let sessions = self.by_import.lock();
        sessions.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notes stay while it lives.
pub(crate) struct NotesKept<'a>(&'a Sessions);

impl Drop for NotesKept<'_> {
    fn drop(&mut self) {
        self.0.collections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Which of these chunks are to be sent. The others stay until the import ends.
pub(crate) async fn lacking(
    app: &Arc<App>,
    import: &str,
    ids: Vec<ChunkId>,
) -> Result<Bitmap, ApiError> {
    require(app, import).await?;
    let asked = ids.iter().copied().filter(|id| !id.is_zero());
    app.imports.rely(import, asked);
    let mut bitmap = Bitmap::new(ids.len());
    for (index, id) in ids.into_iter().enumerate() {
        if !app.store.contains(id) {
            bitmap.set(index);
        }
    }
    pin(app, import).await?;
    Ok(bitmap)
}

/// Stores chunk records.
pub(crate) async fn store_chunks(
    app: &Arc<App>,
    import: &str,
    body: Bytes,
    origin: Origin,
) -> Result<ImportReceipt, ApiError> {
    require(app, import).await?;
    let owned = import.to_owned();
    let receipt = app
        .blocking(move |app| put_records(app, &owned, &body, origin))
        .await?;
    if app.imports.add(import, &receipt) {
        touch(app, import).await?;
    }
    pin(app, import).await?;
    app.metrics.chunks_received(&receipt);
    Ok(receipt)
}

fn put_records(
    app: &App,
    import: &str,
    body: &[u8],
    origin: Origin,
) -> Result<ImportReceipt, ApiError> {
    let mut receipt = ImportReceipt::default();
    let good = Records::new(body).map_while(Result::ok);
    app.imports.rely(import, good.map(|record| record.chunk));
    for record in Records::new(body) {
        let bad = |detail: String| {
            ApiError::new(ProblemCode::BadChunk, detail).with_hint("send the chunk again")
        };
        let record = record.map_err(|error| bad(error.to_string()))?;
        let codec = Codec::from_byte(record.codec).ok_or_else(|| {
            let codec = record.codec;
            bad(format!(
                "chunk {} has codec {codec}, which is not known here",
                record.chunk
            ))
        })?;
        let frame = FrameRef {
            chunk: record.chunk,
            raw_bytes: record.raw_bytes,
            codec,
            bytes: record.frame,
        };
        match app.store.put_from(frame, origin)? {
            PutOutcome::Stored => {
                receipt.stored_count += 1;
                receipt.stored_bytes += record.frame.len() as u64;
            }
            PutOutcome::Present => receipt.present_count += 1,
        }
    }
    Ok(receipt)
}

/// Pins what the import relies on, durably.
async fn pin(app: &Arc<App>, import: &str) -> Result<(), ApiError> {
    let named = app.imports.named(&app.store, import);
    if !named.packs.is_empty() {
        let names: Vec<_> = named.packs.iter().map(ToString::to_string).collect();
        app.catalog.pin(import, &names).await?;
        // Once for each pack, not for each body: it waits for the disk.
        touch(app, import).await?;
    }
    app.imports.pinned(import, named);
    Ok(())
}

/// The import is open. One that is known here is: ends of imports are told here.
async fn require(app: &App, import: &str) -> Result<(), ApiError> {
    if !app.imports.lock().contains_key(import) {
        app.catalog.import(import).await?;
    }
    Ok(())
}

/// Writes to the catalog what was stored for the import, and that it is active.
async fn touch(app: &App, import: &str) -> Result<(), ApiError> {
    if let Some(added) = app.imports.take_added(import) {
        let now = Timestamp::now();
        let catalog = &app.catalog;
        catalog
            .touch_import(import, added.chunks, added.bytes, now)
            .await?;
    }
    Ok(())
}

/// What is said of a version that an import becomes.
pub(crate) struct Words {
    pub(crate) tag: Option<TagName>,
    pub(crate) message: Option<String>,
    pub(crate) parent: Option<VersionSpec>,
    /// How its history calls it.
    pub(crate) event: &'static str,
    /// What is on the disk; it is looked at here when that is not said.
    pub(crate) facts: Option<ImageFacts>,
}

/// Makes an import a version.
pub(crate) async fn commit(
    app: &Arc<App>,
    import: &str,
    manifest: Digest,
    words: Words,
    actor: String,
) -> Result<ImportCommitted, ApiError> {
    touch(app, import).await?;
    let row = app.catalog.import(import).await?;
    let disk_bytes = row.disk_bytes;
    let said = words.facts;
    let work = move |app: &App| {
        let checked = check(app, manifest, Some(disk_bytes))?;
        let facts = match said {
            Some(facts) => facts,
            None => look(app, manifest)?,
        };
        Ok((checked, facts))
    };
    let (checked, facts) = app.blocking(work).await?;
    let facts = serde_json::to_string(&facts)
        .map_err(|error| ApiError::internal("keep what is on the disk", &error))?;
    let new = NewVersion {
        image: row.image,
        manifest,
        disk_bytes,
        used_bytes: checked.used_bytes,
        added_chunks: row.added_chunks,
        added_bytes: row.added_bytes,
        parent: words.parent,
        source: row.source,
        message: words.message,
        facts,
        tag: words.tag,
        event: words.event,
        actor,
        import: Some(import.to_owned()),
    };
    let committed = publish(app, new, checked).await?;
    app.imports.end(import);
    Ok(committed)
}

/// What is on the disk of a manifest whose chunks are all there.
fn look(app: &App, manifest: Digest) -> Result<ImageFacts, ApiError> {
    let disk = app.volumes.version_disk(manifest)?;
    let report = inspect(&DeviceReader(&*disk), FreeSpace::Keep)
        .map_err(|error| ApiError::internal("look at what is on a disk", &error))?;
    Ok(facts::of(&report))
}

/// A manifest whose chunks are all there, durable, and held.
pub(crate) struct Checked {
    pub(crate) used_bytes: u64,
    pub(crate) disk_bytes: u64,
    hold: Hold,
}

/// Puts a checked manifest into the catalog: the step that makes it a version.
pub(crate) async fn publish(
    app: &Arc<App>,
    new: NewVersion,
    checked: Checked,
) -> Result<ImportCommitted, ApiError> {
    let key = app.key.clone();
    let (image, manifest) = (new.image.clone(), new.manifest);
    let (added_chunk_count, added_bytes) = (new.added_chunks, new.added_bytes);
    let seal = move |number| hex(&Seal::sign(&key, &image, number, manifest).encode());
    // A client that goes away now must not leave the import half ended: this
    // goes on without it.
    let keeper = Arc::clone(app);
    let adding = tokio::spawn(async move {
        let adding = keeper.catalog.add_version(new, Timestamp::now(), seal);
        let added = adding.await;
        keeper.nodes.note_version_change();
        added
    });
    let added = adding
        .await
        .map_err(|error| ApiError::internal("commit a version", &error))??;
    drop(checked.hold);
    let (outcome, row) = match added {
        AddedVersion::Created(row) => (Outcome::Created, row),
        AddedVersion::Unchanged(row) => (Outcome::Unchanged, row),
    };
    tracing::info!(image = %row.image, version = row.number.0, ?outcome, added_bytes, "version committed");
    app.traces.carry_soon();
    app.recipes.wake();
    if let Some(stages) = app.first_stages.get()
        && app.boot.is_on()
    {
        stages.prepare(&row);
    }
    Ok(ImportCommitted {
        outcome,
        image: row.image,
        version: row.number,
        manifest,
        disk_bytes: row.disk_bytes,
        used_bytes: row.used_bytes,
        added_chunk_count,
        added_bytes,
        parent: row.parent,
    })
}

/// Checks that a manifest can be a version: it decodes, every page and chunk is
/// in the store with the right length, and all of it is durable.
pub(crate) fn check(app: &App, id: Digest, disk_bytes: Option<u64>) -> Result<Checked, ApiError> {
    // Most of the waiting before the hold, which collections wait for.
    app.store.flush()?;
    let hold = app.store.hold();
    if !app.store.contains(ChunkId(id)) {
        return Err(missing(id, vec![ChunkId(id)], 1));
    }
    let manifest = manifest(&app.store, id)?;
    let found_bytes = manifest.grid().disk_bytes();
    if let Some(expected) = disk_bytes
        && expected != found_bytes
    {
        let detail = format!(
            "the import is of a disk of {expected} bytes, and its manifest is of one of {found_bytes}"
        );
        return Err(ApiError::new(ProblemCode::BadManifest, detail));
    }
    let used_bytes = check_chunks(&app.store, &manifest)?;
    // What others put since the first flush may be among our chunks.
    app.store.flush()?;
    Ok(Checked {
        used_bytes,
        disk_bytes: found_bytes,
        hold,
    })
}

/// Answers the bytes of the disk in chunks that are not zero.
fn check_chunks(store: &ChunkStore, manifest: &Manifest) -> Result<u64, ApiError> {
    let mut lacking = Vec::new();
    let mut lacking_count = 0_u64;
    let mut wrong = None;
    let mut used_bytes = 0;
    let grid = manifest.grid();
    manifest.walk(&StorePages(store), |visit| {
        let (Visit::Page { id, .. } | Visit::Chunk { id, .. }) = visit;
        if !store.contains(id) {
            lacking_count += 1;
            if lacking.len() < MISSING_MAX && !lacking.contains(&id) {
                lacking.push(id);
            }
            return Descend::Past;
        }
        if let Visit::Chunk { index, id } = visit {
            let span = grid.span(index);
            used_bytes += u64::from(span.len_bytes);
            if store.raw_bytes(id) != Some(span.len_bytes) && wrong.is_none() {
                wrong = Some((id, span));
            }
        }
        Descend::Into
    })?;
    if !lacking.is_empty() {
        return Err(missing(manifest.id(), lacking, lacking_count));
    }
    if let Some((id, span)) = wrong {
        let detail = format!(
            "chunk {id} does not have the {} bytes that its place at byte {} needs",
            span.len_bytes, span.start_bytes
        );
        return Err(ApiError::new(ProblemCode::BadManifest, detail));
    }
    Ok(used_bytes)
}

fn missing(manifest: Digest, lacking: Vec<ChunkId>, count: u64) -> ApiError {
    let detail = format!("manifest {manifest} needs {count} chunks or pages that were not sent");
    let mut problem = Problem::new(ProblemCode::ChunksMissing, detail)
        .with_hint("ask again which chunks are lacking, send them, and commit again");
    problem.missing = lacking;
    problem.into()
}

/// Ends imports that nobody continued.
pub(crate) async fn expire(app: &App, now: Timestamp) -> Result<(), ApiError> {
    let days = i64::from(app.config.store.import_idle_days);
    let idle = jiff::SignedDuration::from_hours(24 * days);
    let Ok(idle_since) = now.checked_sub(idle) else {
        return Ok(());
    };
    for import in app.catalog.expire_imports(idle_since).await? {
        app.imports.end(&import);
        tracing::info!(import, "import expired");
    }
    Ok(())
}
