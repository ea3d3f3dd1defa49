//! The making of one recipe, in steps of bounded length.

use std::{
    collections::{HashSet, VecDeque},
    ops::Range,
};

use bytes::Bytes;
use jiff::Timestamp;
use rootstock_api::RecipeProgress;
use rootstock_catalog::{RecipeRow, VersionRow};
use rootstock_core::{ChunkId, Digest};
use rootstock_image::{
    frame::Encoder,
    manifest::{Descend, Manifest, Visit},
    recipe::{
        BLOCKS_MAX, Delta, Finder, Rebuilder, RecipeWriter, SOURCES_MAX, WANTED_BLOCKS_MAX,
        is_worth,
    },
};
use rootstock_store::{ChunkStore, PutError, ReadError};

use super::Recipes;
use crate::{
    app::App,
    http::ApiError,
    pages::{StorePages, manifest},
    sizes,
};

/// Chunks that are read in one step: some 50 ms of work.
const STEP_CHUNKS: usize = 64;

/// Chunks that get their deltas in one step, each of which may read many others.
const STEP_DELTAS: usize = 16;

/// Sources that are kept while deltas are tried: neighbours share them.
const SOURCES_KEPT_MAX: usize = 2 * SOURCES_MAX;

/// A recipe that is being made.
pub(super) struct Making {
    from: VersionRow,
    to: VersionRow,
    /// Chunks that the older version lacks, in the order of the disk.
    wanted: Vec<ChunkId>,
    /// Chunks of the older version, in the order of its disk, each once.
    older: Vec<ChunkId>,
    /// Which of the wanted ones this pass is for.
    pass: Range<usize>,
    phase: Phase,
    finder: Finder,
    writer: RecipeWriter,
    encoder: Encoder,
    rebuilder: Rebuilder,
    sources: Sources,
    frame_bytes: u64,
    stored_bytes: u64,
    done_chunk_count: u64,
}

/// What is done next, and to which chunk: each pass goes through all three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Blocks of new chunks go into the table, until it is full.
    Want,
    /// The older version goes past it.
    Search(usize),
    /// The deltas are made.
    Build(usize),
}

/// What a step came to.
pub(super) enum Step {
    /// There is more to do.
    More(Box<Making>),
    /// All parts are in the store.
    Done(RecipeRow),
}

impl Making {
    /// Finds out what there is to do.
    pub(super) fn new(
        store: &ChunkStore,
        from: VersionRow,
        to: VersionRow,
    ) -> Result<Self, ApiError> {
        let older = manifest(store, from.manifest)?;
        let newer = manifest(store, to.manifest)?;
        let wanted = sizes::lacking(store, &older, &newer, |_| {})?;
        let older = match wanted.is_empty() {
            true => Vec::new(),
            false => chunks(store, &older)?,
        };
        Ok(Self {
            writer: RecipeWriter::new(from.manifest, to.manifest),
            from,
            to,
            wanted,
            older,
            pass: 0..0,
            phase: Phase::Want,
            finder: Finder::new(),
            encoder: Encoder::new(),
            rebuilder: Rebuilder::new(),
            sources: Sources::default(),
            frame_bytes: 0,
            stored_bytes: 0,
            done_chunk_count: 0,
        })
    }

    /// How far it is.
    pub(super) fn progress(&self) -> RecipeProgress {
        let passes = (self.wanted.len() * BLOCKS_MAX).div_ceil(WANTED_BLOCKS_MAX);
        let total = 2 * self.wanted.len() + passes * self.older.len();
        RecipeProgress {
            from: self.from.spec(),
            to: self.to.spec(),
            done_chunk_count: self.done_chunk_count,
            total_chunk_count: (total as u64).max(self.done_chunk_count),
        }
    }

    /// Does a part of the work.
    pub(super) fn step(mut self, app: &App) -> Result<Step, ApiError> {
        match self.phase {
            Phase::Want if self.pass.start == self.wanted.len() => return self.finish(app),
            Phase::Want => self.want(&app.store)?,
            Phase::Search(at) => self.search(&app.store, at)?,
            Phase::Build(at) => self.build(app, at)?,
        }
        Ok(Step::More(Box::new(self)))
    }

    fn want(&mut self, store: &ChunkStore) -> Result<(), ApiError> {
        let end = self.wanted.len().min(self.pass.end + STEP_CHUNKS);
        while self.pass.end < end && !self.finder.is_full() {
            self.finder.want(&store.read(self.wanted[self.pass.end])?);
            self.pass.end += 1;
            self.done_chunk_count += 1;
        }
        if self.pass.end == self.wanted.len() || self.finder.is_full() {
            self.phase = Phase::Search(0);
        }
        Ok(())
    }

    fn search(&mut self, store: &ChunkStore, at: usize) -> Result<(), ApiError> {
        let end = self.older.len().min(at + STEP_CHUNKS);
        for id in &self.older[at..end] {
            self.finder.search(*id, &store.read(*id)?);
            self.done_chunk_count += 1;
        }
        self.phase = match end == self.older.len() {
            true => Phase::Build(self.pass.start),
            false => Phase::Search(end),
        };
        Ok(())
    }

    fn build(&mut self, app: &App, at: usize) -> Result<(), ApiError> {
        let end = self.pass.end.min(at + STEP_DELTAS);
        for index in at..end {
            self.delta(app, self.wanted[index])?;
            self.done_chunk_count += 1;
        }
        if end < self.pass.end {
            self.phase = Phase::Build(end);
            return Ok(());
        }
        self.finder = Finder::new();
        self.pass = end..end;
        self.phase = Phase::Want;
        Ok(())
    }

    /// Adds the delta of one chunk, if it is worth it and makes the chunk.
    fn delta(&mut self, app: &App, chunk: ChunkId) -> Result<(), ApiError> {
        let raw = app.store.read(chunk)?;
        let Some(bytes) = self.finder.delta(&raw, &mut self.encoder) else {
            return Ok(());
        };
        let frame_bytes = app.store.frame_bytes(chunk).unwrap_or(0);
        if !is_worth(bytes.len(), frame_bytes as usize) || !self.makes(app, chunk, &raw, &bytes)? {
            return Ok(());
        }
        let stored_bytes = &mut self.stored_bytes;
        self.writer.push(chunk, &bytes, sink(app, stored_bytes))?;
        self.frame_bytes += u64::from(frame_bytes);
        Ok(())
    }

    /// Whether a delta makes its chunk: two blocks could have one hash, and then a
    /// machine is not to be sent it.
    fn makes(
        &mut self,
        app: &App,
        chunk: ChunkId,
        raw: &[u8],
        bytes: &[u8],
    ) -> Result<bool, ApiError> {
        let Ok(delta) = Delta::decode(bytes, raw.len() as u32) else {
            return Ok(false);
        };
        let mut lost = None;
        let sources = &mut self.sources;
        let rebuilt = self.rebuilder.rebuild(chunk, &delta, |id| {
            sources.read(&app.store, id).map_err(|error| {
                lost = Some(error);
                Unreadable
            })
        });
        match lost {
            Some(error) => Err(error.into()),
            None => Ok(rebuilt.is_ok()),
        }
    }

    fn finish(self, app: &App) -> Result<Step, ApiError> {
        let mut stored_bytes = self.stored_bytes;
        let (root, recipe) = self.writer.finish(sink(app, &mut stored_bytes))?;
        Ok(Step::Done(RecipeRow {
            to: self.to.spec(),
            from: self.from.spec(),
            root: Digest::from_bytes(*root.as_bytes()),
            delta_count: recipe.delta_count,
            delta_bytes: recipe.delta_bytes,
            frame_bytes: self.frame_bytes,
            stored_bytes,
            created: Timestamp::now(),
        }))
    }
}

/// Stores parts, noted before they are there.
fn sink<'a>(
    app: &'a App,
    stored_bytes: &'a mut u64,
) -> impl FnMut(&[u8]) -> Result<ChunkId, PutError> + 'a {
    let recipes: &Recipes = &app.recipes;
    |bytes| {
        recipes.note(ChunkId::of(bytes));
        let id = app.store.put_raw(bytes)?;
        *stored_bytes += u64::from(app.store.frame_bytes(id).unwrap_or(0));
        Ok(id)
    }
}

/// The chunks of a version, in the order of its disk, each once.
fn chunks(store: &ChunkStore, manifest: &Manifest) -> Result<Vec<ChunkId>, ApiError> {
    let mut seen = HashSet::new();
    let mut chunks = Vec::new();
    manifest.walk(&StorePages(store), |visit| match visit {
        Visit::Page { id, .. } if !seen.insert(id) => Descend::Past,
        Visit::Page { .. } => Descend::Into,
        Visit::Chunk { id, .. } => {
            if seen.insert(id) {
                chunks.push(id);
            }
            Descend::Into
        }
    })?;
    Ok(chunks)
}

/// A source could not be read; why is kept elsewhere.
#[derive(Debug, thiserror::Error)]
#[error("a source cannot be read")]
struct Unreadable;

/// The raw chunks that deltas took last.
#[derive(Debug, Default)]
struct Sources(VecDeque<(ChunkId, Bytes)>);

impl Sources {
    fn read(&mut self, store: &ChunkStore, id: ChunkId) -> Result<Bytes, ReadError> {
        if let Some((_, bytes)) = self.0.iter().find(|known| known.0 == id) {
            return Ok(bytes.clone());
        }
        let bytes = store.read(id)?;
        self.0.truncate(SOURCES_KEPT_MAX - 1);
        self.0.push_front((id, bytes.clone()));
        Ok(bytes)
    }
}
