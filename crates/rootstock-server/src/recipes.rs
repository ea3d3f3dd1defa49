//! Recipes: made in the background after a version came, kept, and given out.
//!
//! One is made at a time, a little at once, with rests between. What is made is in
//! the store and noted here until its row is in the catalog, so that collections
//! keep it; a daemon that dies forgets the notes, and begins that recipe again.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rootstock_api::{ProblemCode, RecipeList, RecipeProgress, RecipeSummary};
use rootstock_catalog::{CatalogError, RecipeRow, VersionRow};
use rootstock_core::{ChunkId, Digest, VersionSpec};
use rootstock_store::ChunkStore;
use tokio::sync::Notify;

use crate::{
    app::App,
    http::{ApiError, chain},
    stop::Stop,
};

mod index;
mod make;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use index::{Index, Place};
use make::{Making, Step};

/// Recipes whose entries are in memory, 60 bytes for each delta.
const INDEXES_MAX: usize = 8;

/// After how long a recipe is tried again that could not be made.
const RETRY_INTERVAL: Duration = Duration::from_secs(3600);

/// Pairs that machines asked for and that wait to be made.
const MISSED_MAX: usize = 32;

/// What is known of recipes besides the catalog's rows.
#[derive(Debug, Default)]
pub(crate) struct Recipes {
    state: Mutex<State>,
    /// A version came or went.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Parts of the recipe that is being made.
    notes: HashSet<ChunkId>,
    making: Option<RecipeProgress>,
    /// Pairs that could not be made, and when that was found.
    failed: HashMap<(VersionSpec, VersionSpec), Instant>,
    /// Pairs that machines asked for and that have none, in the order of asking.
    missed: VecDeque<(VersionRow, VersionRow)>,
    /// The recipes that were asked for last, by their roots.
    indexes: VecDeque<(Digest, Arc<Index>)>,
}

impl Recipes {
    /// Looks for recipes to make.
    pub(crate) fn wake(&self) {
        self.changed.notify_one();
    }

    /// Parts of recipes that no row names yet.
    pub(crate) fn notes(&self) -> Vec<ChunkId> {
        self.state().notes.iter().copied().collect()
    }

    /// Notes a part before it is stored.
    fn note(&self, part: ChunkId) {
        self.state().notes.insert(part);
    }

    fn known_index(&self, root: Digest) -> Option<Arc<Index>> {
        let state = self.state();
        let known = state.indexes.iter().find(|known| known.0 == root);
        known.map(|(_, index)| Arc::clone(index))
    }

    fn keep_index(&self, root: Digest, index: Arc<Index>) {
        let mut state = self.state();
        if state.indexes.iter().all(|known| known.0 != root) {
            state.indexes.truncate(INDEXES_MAX - 1);
            state.indexes.push_front((root, index));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_failed(&self, from: &VersionRow, to: &VersionRow) -> bool {
        let at = self.failed.get(&(from.spec(), to.spec()));
        at.is_some_and(|at| at.elapsed() < RETRY_INTERVAL)
    }

    /// Whether it waits, or is made now.
    fn has_missed(&self, from: &VersionRow, to: &VersionRow) -> bool {
        let made = self.making.as_ref();
        if made.is_some_and(|made| made.from == from.spec() && made.to == to.spec()) {
            return true;
        }
        let pair = (from.manifest, to.manifest);
        let mut missed = self.missed.iter();
        missed.any(|(from, to)| (from.manifest, to.manifest) == pair)
    }
}

/// The recipe of one version's blocks for another, if there is one that can be read.
/// One that cannot is forgotten, and made anew.
pub(crate) async fn find(
    app: &Arc<App>,
    from: &VersionRow,
    to: &VersionRow,
) -> Result<Option<Arc<Index>>, ApiError> {
    let key = |row: &VersionRow| (row.image.clone(), row.number);
    let ((from_image, from_number), (to_image, to_number)) = (key(from), key(to));
    let row = app
        .catalog
        .recipe((&from_image, from_number), (&to_image, to_number))
        .await?;
    let Some(row) = row else {
        return Ok(None);
    };
    if let Some(index) = app.recipes.known_index(row.root) {
        return Ok(Some(index));
    }
    let (root, manifests) = (row.root, (from.manifest, to.manifest));
    let read = app.blocking(move |app| Index::read(&app.store, root, manifests));
    match read.await {
        Ok(index) => {
            let index = Arc::new(index);
            app.recipes.keep_index(root, Arc::clone(&index));
            Ok(Some(index))
        }
        Err(error) => {
            give_up(app, root, &error).await;
            Ok(None)
        }
    }
}

/// Has a recipe made that somebody looked for and there is not: from a version that is
/// older than those which get theirs by themselves.
pub(crate) fn miss(app: &App, from: &VersionRow, to: &VersionRow) {
    if app.config.store.recipe_load_percent == 0 || from.manifest == to.manifest {
        return;
    }
    let mut state = app.recipes.state();
    let is_known = state.has_failed(from, to) || state.has_missed(from, to);
    if is_known || state.missed.len() >= MISSED_MAX {
        return;
    }
    state.missed.push_back((from.clone(), to.clone()));
    drop(state);
    app.recipes.wake();
}

/// Forgets a recipe that cannot be read: machines fetch frames instead, and it is
/// made anew.
pub(crate) async fn give_up(app: &App, root: Digest, why: &ApiError) {
    tracing::error!(%root, detail = why.0.detail, "recipe cannot be read: it is made anew");
    app.recipes.state().indexes.retain(|known| known.0 != root);
    if let Err(error) = app.catalog.remove_recipe(root).await {
        tracing::error!(%root, error = chain(&error), "recipe not forgotten");
    }
    app.recipes.wake();
}

/// Every part of a recipe, for a collection.
pub(crate) fn parts(store: &ChunkStore, root: Digest) -> Result<Vec<ChunkId>, ApiError> {
    index::parts(store, root)
}

/// A recipe as the API shows it.
pub(crate) fn summary(row: &RecipeRow) -> RecipeSummary {
    RecipeSummary {
        from: row.from.clone(),
        to: row.to.clone(),
        delta_count: row.delta_count,
        delta_bytes: row.delta_bytes,
        frame_bytes: row.frame_bytes,
        stored_bytes: row.stored_bytes,
        created: row.created.to_string(),
    }
}

/// All recipes, and the making of them.
pub(crate) async fn list(app: &App) -> Result<RecipeList, ApiError> {
    let load_percent = app.config.store.recipe_load_percent;
    // What is made meanwhile is shown twice rather than not at all: recipes last.
    let making = app.recipes.state().making.clone();
    let wanted = match load_percent {
        0 => Vec::new(),
        _ => app.catalog.recipes_wanted().await?,
    };
    let rows = app.catalog.recipes().await?;
    // The one that is made is still wanted, unless a machine asked for it.
    let is_wanted = |made: &RecipeProgress| {
        let mut wanted = wanted.iter();
        wanted.any(|(from, to)| from.spec() == made.from && to.spec() == made.to)
    };
    let made_of_wanted = usize::from(making.as_ref().is_some_and(is_wanted));
    let waiting_count = wanted.len() - made_of_wanted + app.recipes.state().missed.len();
    Ok(RecipeList {
        recipes: rows.iter().map(summary).collect(),
        waiting_count: waiting_count as u64,
        making,
        load_percent,
    })
}

/// Makes what is wanted until the stop.
pub(crate) async fn work(app: Arc<App>, mut stop: Stop) {
    if app.config.store.recipe_load_percent == 0 {
        return;
    }
    while !make_wanted(&app, &mut stop).await && !idle(&app, &mut stop).await {}
}

/// Makes one recipe after the other, until none is wanted. True when the daemon
/// stops.
async fn make_wanted(app: &Arc<App>, stop: &mut Stop) -> bool {
    while let Some((from, to)) = next(app).await {
        if make(app, from, to, stop).await {
            return true;
        }
    }
    false
}

/// Waits until there may be something to do. True when the daemon stops.
async fn idle(app: &App, stop: &mut Stop) -> bool {
    tokio::select! {
        () = stop.wait() => true,
        () = app.recipes.changed.notified() => false,
        () = tokio::time::sleep(RETRY_INTERVAL) => false,
    }
}

async fn next(app: &App) -> Option<(VersionRow, VersionRow)> {
    let wanted = match app.catalog.recipes_wanted().await {
        Ok(wanted) => wanted,
        Err(error) => {
            tracing::error!(error = chain(&error), "wanted recipes not known");
            return None;
        }
    };
    let mut state = app.recipes.state();
    let mut wanted = wanted.into_iter();
    let wanted = wanted.find(|(from, to)| !state.has_failed(from, to));
    wanted.or_else(|| state.missed.pop_front())
}

/// Makes one recipe. True when the daemon stops.
async fn make(app: &Arc<App>, from: VersionRow, to: VersionRow, stop: &mut Stop) -> bool {
    let began = Instant::now();
    let pair = (from.spec(), to.spec());
    let made = make_steps(app, from, to, stop).await;
    let is_stopping = match made {
        Ok(Some(row)) => {
            tracing::info!(
                from = %row.from,
                to = %row.to,
                deltas = row.delta_count,
                delta_bytes = row.delta_bytes,
                frame_bytes = row.frame_bytes,
                seconds = began.elapsed().as_secs(),
                "recipe made"
            );
            false
        }
        Ok(None) => true,
        Err(error) => {
            failed(app, &pair, &error);
            false
        }
    };
    // Whatever was not named by a row is no longer needed.
    let mut state = app.recipes.state();
    state.notes.clear();
    state.making = None;
    is_stopping
}

/// Remembers a pair that could not be made, for a while.
fn failed(app: &App, pair: &(VersionSpec, VersionSpec), error: &ApiError) {
    let (from, to) = pair;
    let detail = &error.0.detail;
    if error.0.code == ProblemCode::VersionNotFound || error.0.code == ProblemCode::ImageNotFound {
        tracing::info!(%from, %to, "recipe not made: a version of it was deleted");
    } else {
        tracing::warn!(%from, %to, detail, "recipe not made");
    }
    let mut state = app.recipes.state();
    state.failed.retain(|_, at| at.elapsed() < RETRY_INTERVAL);
    state.failed.insert(pair.clone(), Instant::now());
}

/// Makes one recipe step by step; `None` when the daemon stops.
async fn make_steps(
    app: &Arc<App>,
    from: VersionRow,
    to: VersionRow,
    stop: &mut Stop,
) -> Result<Option<RecipeRow>, ApiError> {
    let load_percent = app.config.store.recipe_load_percent.clamp(1, 100);
    let began = app.blocking(move |app| Making::new(&app.store, from, to));
    let mut making = began.await?;
    loop {
        app.recipes.state().making = Some(making.progress());
        let began = Instant::now();
        let step = app.blocking(move |app| making.step(app)).await?;
        making = match step {
            Step::More(making) => *making,
            Step::Done(row) => return keep(app, row).await.map(Some),
        };
        let rest = began.elapsed() * (100 - load_percent) / load_percent;
        if stop.rest(rest).await {
            return Ok(None);
        }
    }
}

/// Makes a recipe durable, and then known.
async fn keep(app: &Arc<App>, row: RecipeRow) -> Result<RecipeRow, ApiError> {
    app.blocking(|app| Ok(app.store.flush()?)).await?;
    app.catalog.add_recipe(&row).await?;
    Ok(row)
}

/// The version that is meant, if there is one: machines may name one that has gone.
pub(crate) async fn version_if_any(
    app: &App,
    spec: &VersionSpec,
) -> Result<Option<VersionRow>, ApiError> {
    match app.catalog.resolve(spec).await {
        Ok(row) => Ok(Some(row)),
        Err(
            CatalogError::ImageNotFound { .. }
            | CatalogError::NoVersions { .. }
            | CatalogError::VersionNotFound { .. }
            | CatalogError::TagNotFound { .. },
        ) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
