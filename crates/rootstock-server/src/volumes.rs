//! Volumes: which are open, and what is done with them as wholes.
//!
//! A volume is opened by its first user and closed, flushed, by its last. Its row
//! in the catalog comes before its files and goes after them, with a state that
//! tells the next start which of the two a crash left undone.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use jiff::Timestamp;
use rootstock_api::{
    HolderKind, ImportCommitted, Outcome, ProblemCode, VolumeCommit, VolumeCommitted,
};
use rootstock_catalog::{CatalogError, NewVersion, NewVolume, VolumeRow, VolumeState};
use rootstock_core::{ChunkId, Digest, ImageName, VersionSelector, VersionSpec, VolumeName};
use rootstock_image::{
    grid::Grid,
    inspect::{FreeSpace, inspect},
    manifest::Manifest,
};
use rootstock_store::{
    ChunkStore,
    disk::{Disk, RealDisk},
};
use rootstock_volume::{
    BlockDevice as _, BlockError, ChunkCache, CommitError, CommitOptions, OpenError,
    OverlayOptions, ResizeError, SnapshotView, VersionDisk, Volume, commit,
};

use crate::{
    app::{App, random_id},
    facts,
    http::{ApiError, chain, lease},
    imports,
    leases::Key,
    pages::manifest,
};

mod kind;

pub(crate) use kind::Kind;
use kind::check_blocks;

/// How often a commit starts again because a collection took what it stored.
const COMMIT_TRIES_MAX: usize = 3;

/// The image whose version empty disks are clones of.
const BLANK_IMAGE: &str = "blank";

/// The size of that version; disks are larger.
const BLANK_BYTES: u64 = 1 << 20;

/// The volumes of a daemon.
pub(crate) struct Volumes {
    disk: Arc<RealDisk>,
    pub(crate) cache: Arc<ChunkCache>,
    open: Mutex<HashMap<VolumeName, Open>>,
    /// Versions in use as disks: all users of one share its decoded pages.
    versions: Mutex<HashMap<Digest, Weak<VersionDisk>>>,
}

struct Open {
    volume: Arc<Volume>,
    row: VolumeRow,
    users: u32,
}

/// A volume in use; the last one closes it.
pub(crate) struct InUse {
    volumes: Arc<Volumes>,
    name: VolumeName,
    pub(crate) volume: Arc<Volume>,
}

impl Volumes {
    pub(crate) fn new(disk: RealDisk, store: ChunkStore, cache_bytes: u64) -> Self {
        Self {
            disk: Arc::new(disk),
            cache: Arc::new(ChunkCache::new(store, cache_bytes)),
            open: Mutex::default(),
            versions: Mutex::default(),
        }
    }

    /// A version as a disk.
    pub(crate) fn version_disk(&self, id: Digest) -> Result<Arc<VersionDisk>, ApiError> {
        let known = || {
            let versions = self.versions();
            versions.get(&id).and_then(Weak::upgrade)
        };
        if let Some(disk) = known() {
            return Ok(disk);
        }
        let manifest = manifest(self.cache.store(), id)?;
        let mut versions = self.versions();
        if let Some(disk) = versions.get(&id).and_then(Weak::upgrade) {
            return Ok(disk);
        }
        versions.retain(|_, disk| disk.strong_count() > 0);
        let disk = Arc::new(VersionDisk::new(manifest, Arc::clone(&self.cache)));
        versions.insert(id, Arc::downgrade(&disk));
        Ok(disk)
    }

    /// Opens a volume, or joins those who have it open.
    pub(crate) fn open(self: &Arc<Self>, row: &VolumeRow, base: Digest) -> Result<InUse, ApiError> {
        let base = self.version_disk(base)?.into_base();
        let mut all = self.all();
        if let Some(open) = all.get_mut(&row.name) {
            open.users += 1;
            return Ok(self.in_use(row, &open.volume));
        }
        let (disk, dir) = (self.disk(), row.directory.as_str());
        let options = OverlayOptions::default();
        let opened = if row.ephemeral {
            Volume::create_ephemeral(&*disk, dir, base, row.size_bytes, options)
        } else {
            Volume::open(&disk, dir, base, options)
        };
        let volume = Arc::new(opened.map_err(|error| open_failed(&row.name, &error))?);
        let open = Open {
            volume: Arc::clone(&volume),
            row: row.clone(),
            users: 1,
        };
        all.insert(row.name.clone(), open);
        Ok(self.in_use(row, &volume))
    }

    fn in_use(self: &Arc<Self>, row: &VolumeRow, volume: &Arc<Volume>) -> InUse {
        InUse {
            volumes: Arc::clone(self),
            name: row.name.clone(),
            volume: Arc::clone(volume),
        }
    }

    /// The volume's size and what its own writes take, without opening it.
    pub(crate) fn measure(&self, row: &VolumeRow) -> (u64, u64) {
        if let Some(open) = self.all().get(&row.name) {
            let stats = open.volume.stats();
            return (stats.size_bytes, stats.used_bytes);
        }
        (row.size_bytes, self.files_bytes(&row.directory))
    }

    fn files_bytes(&self, directory: &str) -> u64 {
        let Ok(entries) = fs::read_dir(self.disk.root().join(directory)) else {
            return 0;
        };
        let blocks = |entry: fs::DirEntry| entry.metadata().map_or(0, |metadata| metadata.blocks());
        // st_blocks counts units of 512 bytes, whatever the file system's are.
        let counts = |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(Volume::counts);
        let entries = entries.flatten().filter(counts);
        entries.map(|entry| blocks(entry) * 512).sum()
    }

    /// Flushes what has not been for a while.
    pub(crate) fn checkpoint(&self) {
        let open: Vec<_> = {
            let all = self.all();
            let open = all.values().filter(|open| !open.row.ephemeral);
            open.map(|open| (open.row.name.clone(), Arc::clone(&open.volume)))
                .collect()
        };
        for (name, volume) in open {
            if volume.stats().unflushed_bytes > 0
                && let Err(error) = volume.checkpoint()
            {
                tracing::error!(volume = %name, error = chain(&error), "volume not flushed");
            }
        }
    }

    fn release(&self, name: &VolumeName) {
        let mut all = self.all();
        let Some(open) = all.get_mut(name) else {
            return;
        };
        open.users -= 1;
        if open.users > 0 {
            return;
        }
        if open.row.ephemeral {
            let removed = all.remove(name);
            let directory = removed.map(|open| open.row.directory);
            if let Some(Err(error)) = directory.map(|dir| Volume::delete(&*self.disk, &dir)) {
                tracing::warn!(volume = %name, %error, "ephemeral volume's files not removed");
            }
            return;
        }
        match open.volume.checkpoint() {
            Ok(()) => {
                all.remove(name);
            }
            // It stays open, with what it holds, and the next flush tries again.
            Err(error) => {
                tracing::error!(volume = %name, error = chain(&error), "volume not flushed");
            }
        }
    }

    fn delete_files(&self, directory: &str) -> io::Result<()> {
        Volume::delete(&*self.disk, directory)
    }

    fn disk(&self) -> Arc<dyn Disk> {
        Arc::clone(&self.disk) as Arc<dyn Disk>
    }

    fn all(&self) -> MutexGuard<'_, HashMap<VolumeName, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn versions(&self) -> MutexGuard<'_, HashMap<Digest, Weak<VersionDisk>>> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InUse {
    /// Whether others than this have it open.
    fn has_clients(&self) -> bool {
        let all = self.volumes.all();
        all.get(&self.name).is_some_and(|open| open.users > 1)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.volumes.release(&self.name);
    }
}

/// Makes a volume. Takes the same time whatever the image's size.
pub(crate) async fn create(
    app: &Arc<App>,
    name: VolumeName,
    from: &VersionSpec,
    size_bytes: Option<u64>,
    kind: Kind,
) -> Result<VolumeRow, ApiError> {
    let Kind {
        ephemeral,
        block_bytes,
    } = kind;
    let (version, _lease) = lease(app, from, HolderKind::Operation, "volume create").await?;
    let size_bytes = size_bytes.unwrap_or(version.disk_bytes);
    check_size(&name, size_bytes, version.disk_bytes)?;
    check_blocks(&name, size_bytes, block_bytes)?;
    let new = NewVolume {
        name,
        image: version.image,
        version: version.number,
        size_bytes,
        ephemeral,
        block_bytes,
        directory: random_id()?,
    };
    let directory = new.directory.clone();
    let base = version.manifest;
    make(app, new, move |app| {
        if ephemeral {
            return Ok(());
        }
        let volumes = &app.volumes;
        let base = volumes.version_disk(base)?.into_base();
        let options = OverlayOptions::default();
        let made = Volume::create(volumes.disk(), &directory, base, size_bytes, options);
        made.map(drop).map_err(|error| files_failed(&error))
    })
    .await
}

/// Makes a volume that begins as an empty disk.
pub(crate) async fn create_blank(
    app: &Arc<App>,
    name: VolumeName,
    size_bytes: u64,
    kind: Kind,
) -> Result<VolumeRow, ApiError> {
    let nothing = blank(app).await?;
    create(app, name, &nothing, Some(size_bytes), kind).await
}

/// The version of which empty disks are clones. It is made for the first of them.
async fn blank(app: &Arc<App>) -> Result<VersionSpec, ApiError> {
    let image: ImageName = BLANK_IMAGE
        .parse()
        .map_err(|error| ApiError::internal("name the image of empty disks", &error))?;
    let latest = VersionSpec {
        image: image.clone(),
        selector: VersionSelector::Latest,
    };
    match app.catalog.resolve(&latest).await {
        Ok(row) if row.used_bytes == 0 => return Ok(row.spec()),
        Ok(row) => {
            let detail = format!(
                "{} is not empty, and empty disks are clones of it",
                row.spec()
            );
            return Err(
                ApiError::new(ProblemCode::BadValue, detail).with_hint(format!(
                    "call that image something else than '{BLANK_IMAGE}': export it, import it \
                 under another name, and delete it"
                )),
            );
        }
        Err(CatalogError::ImageNotFound { .. } | CatalogError::VersionNotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let work = |app: &App| {
        let grid = Grid::whole(BLANK_BYTES);
        let grid = grid.map_err(|error| ApiError::internal("make an empty disk", &error))?;
        let manifest = Manifest::zero(grid);
        app.store.put_raw(&manifest.encode())?;
        let zeros = vec![0; BLANK_BYTES as usize];
        let report = inspect(&zeros, FreeSpace::Keep);
        let report = report.map_err(|error| ApiError::internal("look at an empty disk", &error))?;
        let facts = serde_json::to_string(&facts::of(&report));
        let facts = facts.map_err(|error| ApiError::internal("keep what is on it", &error))?;
        let checked = imports::check(app, manifest.id(), Some(BLANK_BYTES))?;
        Ok((manifest.id(), facts, checked))
    };
    let (manifest, facts, checked) = app.blocking(work).await?;
    let new = NewVersion {
        image,
        manifest,
        disk_bytes: checked.disk_bytes,
        used_bytes: checked.used_bytes,
        added_chunks: 0,
        added_bytes: 0,
        parent: None,
        source: "nothing".to_owned(),
        message: Some("what empty disks are clones of".to_owned()),
        facts,
        tag: None,
        event: "created",
        actor: "rootstock".to_owned(),
        import: None,
    };
    let made = imports::publish(app, new, checked).await?;
    Ok(VersionSpec {
        image: made.image,
        selector: VersionSelector::Number(made.version),
    })
}

/// Adds a volume's row, makes its files, and makes it ready.
async fn make(
    app: &Arc<App>,
    new: NewVolume,
    files: impl FnOnce(&App) -> Result<(), ApiError> + Send + 'static,
) -> Result<VolumeRow, ApiError> {
    app.catalog.add_volume(&new, Timestamp::now()).await?;
    if let Err(error) = app.blocking(files).await {
        undo(app, &new.name, &new.directory).await;
        return Err(error);
    }
    app.catalog
        .set_volume_state(&new.name, VolumeState::Ready)
        .await?;
    tracing::info!(volume = %new.name, image = %new.image, version = new.version.0, "volume created");
    Ok(app.catalog.volume(&new.name).await?)
}

/// Takes back a volume that could not be made. What fails here the next start
/// does.
async fn undo(app: &Arc<App>, name: &VolumeName, directory: &str) {
    let directory = directory.to_owned();
    let deleted = app
        .blocking(move |app| Ok(app.volumes.delete_files(&directory)))
        .await;
    if matches!(deleted, Ok(Ok(())))
        && let Err(error) = app.catalog.remove_volume(name).await
    {
        tracing::error!(volume = %name, error = chain(&error), "volume not taken back");
    }
}

/// Settles what a crash left between a volume's row and its files.
pub(crate) async fn settle(app: &Arc<App>) -> Result<(), ApiError> {
    for row in app.catalog.volumes().await? {
        if row.state == VolumeState::Ready {
            continue;
        }
        tracing::info!(volume = %row.name, state = ?row.state, "unfinished volume removed");
        remove(app, &row).await?;
    }
    Ok(())
}

async fn remove(app: &Arc<App>, row: &VolumeRow) -> Result<(), ApiError> {
    let directory = row.directory.clone();
    app.blocking(move |app| {
        app.volumes
            .delete_files(&directory)
            .map_err(|error| ApiError::internal("remove a volume's files", &error))
    })
    .await?;
    Ok(app.catalog.remove_volume(&row.name).await?)
}

/// Deletes a volume that nobody has open.
pub(crate) async fn delete(app: &Arc<App>, name: &VolumeName) -> Result<(), ApiError> {
    let row = app.catalog.volume(name).await?;
    let closed = app.leases.close(Key::Volume(name.clone()))?;
    app.catalog
        .set_volume_state(name, VolumeState::Deleting)
        .await?;
    remove(app, &row).await?;
    drop(closed);
    tracing::info!(volume = %name, "volume deleted");
    Ok(())
}

/// Opens a volume for an operation or a client. The caller has a lease on it.
pub(crate) async fn open(app: &Arc<App>, name: &VolumeName) -> Result<InUse, ApiError> {
    let row = app.catalog.volume(name).await?;
    let base = app.catalog.resolve(&row.base()).await?.manifest;
    app.blocking(move |app| app.volumes.open(&row, base)).await
}

/// Drops what was written to a volume that nobody has open.
pub(crate) async fn reset(app: &Arc<App>, name: &VolumeName) -> Result<(), ApiError> {
    app.catalog.volume(name).await?;
    let closed = app.leases.close(Key::Volume(name.clone()))?;
    let volume = open(app, name).await?;
    let owned = name.clone();
    app.blocking(move |_| {
        volume
            .volume
            .reset()
            .map_err(|error| failed(&owned, &error))
    })
    .await?;
    drop(closed);
    tracing::info!(volume = %name, "volume reset");
    Ok(())
}

/// Makes a volume larger, also while clients have it open.
pub(crate) async fn resize(
    app: &Arc<App>,
    name: &VolumeName,
    size_bytes: u64,
) -> Result<(), ApiError> {
    let row = app.catalog.volume(name).await?;
    let _lease = operation(app, name, "resize")?;
    check_size(name, size_bytes, row.size_bytes)?;
    check_blocks(name, size_bytes, row.block_bytes)?;
    let volume = open(app, name).await?;
    let owned = name.clone();
    app.blocking(move |_| {
        let resized = volume.volume.resize(size_bytes);
        resized.map_err(|error| match error {
            ResizeError::Record(error) => failed(&owned, &error),
            error => ApiError::new(ProblemCode::BadValue, error.to_string()),
        })
    })
    .await?;
    app.catalog.set_volume_size(name, size_bytes).await?;
    tracing::info!(volume = %name, size_bytes, "volume resized");
    Ok(())
}

/// Copies a volume, as it is now, into a new one.
pub(crate) async fn snapshot(
    app: &Arc<App>,
    name: &VolumeName,
    new_name: VolumeName,
) -> Result<VolumeRow, ApiError> {
    let row = app.catalog.volume(name).await?;
    let _lease = operation(app, name, "snapshot")?;
    let volume = open(app, name).await?;
    let view = view(app, name, &volume).await?;
    let new = NewVolume {
        name: new_name,
        image: row.image,
        version: row.version,
        size_bytes: view.size_bytes(),
        ephemeral: false,
        block_bytes: row.block_bytes,
        directory: random_id()?,
    };
    let directory = new.directory.clone();
    make(app, new, move |app| {
        let copied = view.copy_to(app.volumes.disk(), &directory, OverlayOptions::default());
        copied.map_err(|error| files_failed(&error))
    })
    .await
}

/// Makes a volume's contents a version: what was flushed, and what was not.
pub(crate) async fn commit_volume(
    app: &Arc<App>,
    name: &VolumeName,
    request: VolumeCommit,
    actor: String,
) -> Result<VolumeCommitted, ApiError> {
    let row = app.catalog.volume(name).await?;
    let _lease = operation(app, name, "commit")?;
    let base = app.catalog.resolve(&row.base()).await?.manifest;
    let volume = open(app, name).await?;
    let had_clients = volume.has_clients();
    let view = Arc::new(view(app, name, &volume).await?);
    // A file system that a client has mounted may be newer in its memory than here.
    let free_space = if had_clients || volume.has_clients() {
        FreeSpace::DropIfMarked
    } else {
        FreeSpace::Drop
    };
    let mut tries = 0;
    let (stored, checked) = loop {
        tries += 1;
        let (view, owned) = (Arc::clone(&view), name.clone());
        let work = move |app: &App| {
            let stored = store_view(app, &owned, &view, base, free_space)?;
            let checked = imports::check(app, stored.manifest, None);
            Ok((stored, checked))
        };
        let (stored, checked) = app.blocking(work).await?;
        match checked {
            Ok(checked) => break (stored, checked),
            // A collection that had begun before took what nothing referred to.
            Err(error)
                if error.0.code == ProblemCode::ChunksMissing && tries < COMMIT_TRIES_MAX => {}
            Err(error) => return Err(error),
        }
    };
    let new = NewVersion {
        image: request.image,
        manifest: stored.manifest,
        disk_bytes: checked.disk_bytes,
        used_bytes: checked.used_bytes,
        added_chunks: stored.added_chunks,
        added_bytes: stored.added_bytes,
        parent: Some(row.base()),
        source: format!("volume {name}"),
        message: request.message,
        facts: stored.facts,
        tag: request.tag,
        event: "committed",
        actor,
        import: None,
    };
    Ok(committed(imports::publish(app, new, checked).await?))
}

/// What became a version, in the words for volumes.
pub(crate) fn committed(committed: ImportCommitted) -> VolumeCommitted {
    let added = committed.outcome == Outcome::Created;
    VolumeCommitted {
        outcome: committed.outcome,
        image: committed.image,
        version: committed.version,
        manifest: committed.manifest,
        disk_bytes: committed.disk_bytes,
        used_bytes: committed.used_bytes,
        added_chunk_count: if added {
            committed.added_chunk_count
        } else {
            0
        },
        added_bytes: if added { committed.added_bytes } else { 0 },
    }
}

/// A volume's contents, stored and not yet a version.
struct StoredView {
    manifest: Digest,
    added_chunks: u64,
    added_bytes: u64,
    facts: String,
}

fn store_view(
    app: &App,
    name: &VolumeName,
    view: &SnapshotView,
    base: Digest,
    free_space: FreeSpace,
) -> Result<StoredView, ApiError> {
    let parent = app.volumes.version_disk(base)?;
    let options = CommitOptions {
        free_space,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
    };
    let go_on = |_| std::ops::ControlFlow::Continue(());
    let (manifest, report) =
        commit(view, &parent, options, &go_on).map_err(|error| commit_failed(name, error))?;
    let document = manifest.encode();
    let id = app.store.put_raw(&document)?;
    debug_assert_eq!(id, ChunkId(manifest.id()));
    let facts = serde_json::to_string(&facts::of(&report.disk))
        .map_err(|error| ApiError::internal("keep what is on the disk", &error))?;
    Ok(StoredView {
        manifest: manifest.id(),
        added_chunks: report.stored.chunks,
        added_bytes: report.stored.frame_bytes,
        facts,
    })
}

async fn view(app: &Arc<App>, name: &VolumeName, volume: &InUse) -> Result<SnapshotView, ApiError> {
    let (volume, name) = (Arc::clone(&volume.volume), name.clone());
    app.blocking(move |_| {
        volume
            .snapshot_view()
            .map_err(|error| failed(&name, &error))
    })
    .await
}

fn operation(app: &App, name: &VolumeName, doing: &str) -> Result<crate::leases::Lease, ApiError> {
    app.leases
        .take(Key::Volume(name.clone()), HolderKind::Operation, doing)
}

fn check_size(name: &VolumeName, size_bytes: u64, least_bytes: u64) -> Result<(), ApiError> {
    let max_bytes = rootstock_core::units::DISK_BYTES_MAX;
    if (least_bytes..=max_bytes).contains(&size_bytes) {
        return Ok(());
    }
    let detail = format!(
        "volume '{name}' cannot have {size_bytes} bytes: it needs {least_bytes} to {max_bytes}"
    );
    Err(ApiError::new(ProblemCode::BadValue, detail)
        .with_hint("volumes only grow; for a smaller one, make it from a smaller image"))
}

fn failed(name: &VolumeName, error: &BlockError) -> ApiError {
    let code = match error {
        BlockError::NoSpace { .. } => ProblemCode::NoSpace,
        BlockError::Damaged { .. } => ProblemCode::Damaged,
        BlockError::OutOfRange { .. } | BlockError::ReadOnly => ProblemCode::BadValue,
        BlockError::Io { .. } => ProblemCode::Internal,
    };
    tracing::error!(volume = %name, error = chain(error), "volume failed");
    ApiError::new(code, format!("volume '{name}': {error}"))
}

fn open_failed(name: &VolumeName, error: &OpenError) -> ApiError {
    let code = match error {
        OpenError::Damaged { .. } => ProblemCode::Damaged,
        _ => ProblemCode::Internal,
    };
    tracing::error!(volume = %name, error = chain(error), "volume not opened");
    ApiError::new(code, format!("volume '{name}' cannot be opened: {error}"))
}

fn files_failed(error: &OpenError) -> ApiError {
    let full = chain(error).contains("No space left");
    let code = if full {
        ProblemCode::NoSpace
    } else {
        ProblemCode::Internal
    };
    tracing::error!(error = chain(error), "volume's files not made");
    ApiError::new(
        code,
        format!("the volume's files cannot be made: {}", chain(error)),
    )
}

fn commit_failed(name: &VolumeName, error: CommitError) -> ApiError {
    match error {
        CommitError::Read(error) => failed(name, &error),
        CommitError::Parent(error) => error.into(),
        CommitError::Store(error) => error.into(),
        error => ApiError::internal("commit a volume", &error),
    }
}
