//! Recipes made of small versions in memory, and what interrupts their making.

use std::{collections::HashMap, path::Path, sync::Arc};

use ed25519_dalek::SigningKey;
use jiff::Timestamp;
use rootstock_catalog::{AddedVersion, Catalog, NewVersion, VersionRow};
use rootstock_core::{BLOCK_BYTES, CHUNK_BYTES, ChunkId, Digest, VersionNumber};
use rootstock_image::{
    grid::Grid,
    manifest::ManifestBuilder,
    recipe::{Delta, Rebuilder},
    seal::Seal,
};
use rootstock_store::{ChunkStore, StoreOptions, disk::RealDisk, objects::MemoryObjects};

use super::{
    find,
    index::Index,
    keep, list,
    make::{Making, Step},
    make_wanted,
};
use crate::{
    app::{App, hex},
    collector,
    config::Config,
    sizes,
    stop::Stop,
    volumes::Volumes,
};

/// A daemon's state without a daemon.
async fn app_in(dir: &Path) -> Arc<App> {
    let catalog = Catalog::open(&dir.join("c.sqlite")).await.expect("opens");
    let objects = Arc::new(MemoryObjects::new());
    let store = ChunkStore::open(objects, StoreOptions::default()).expect("opens");
    let disk = RealDisk::new(dir).expect("opens");
    let volumes = Volumes::new(disk, store.clone(), 1 << 20);
    let mut config = Config {
        data: dir.to_owned(),
        ..Config::default()
    };
    config.store.recipe_load_percent = 100;
    let key = SigningKey::from_bytes(&[5; 32]);
    Arc::new(App::new(config, catalog, store, key, volumes))
}

fn new_version(manifest: Digest, disk_bytes: u64) -> NewVersion {
    NewVersion {
        image: "lab".parse().expect("a name"),
        manifest,
        disk_bytes,
        used_bytes: disk_bytes,
        added_chunks: 1,
        added_bytes: 1,
        parent: None,
        source: "test".to_owned(),
        message: None,
        facts: "{}".to_owned(),
        tag: None,
        event: "imported",
        actor: "test".to_owned(),
        import: None,
    }
}

/// The next version of `lab`, of one region.
pub(crate) async fn add(app: &App, disk: &[u8]) -> VersionRow {
    let grid = Grid::whole(disk.len() as u64).expect("is a grid");
    let mut builder = ManifestBuilder::new(grid);
    for (index, raw) in (0..).zip(disk.chunks(CHUNK_BYTES as usize)) {
        builder.set(index, app.store.put_raw(raw).expect("is stored"));
    }
    let manifest = builder.finish(|_, bytes| app.store.put_raw(bytes).map(drop));
    let manifest = manifest.expect("is built");
    app.store.put_raw(&manifest.encode()).expect("is stored");
    app.store.flush().expect("is durable");
    let new = new_version(manifest.id(), disk.len() as u64);
    let (key, image, id) = (app.key.clone(), new.image.clone(), new.manifest);
    let seal = move |number| hex(&Seal::sign(&key, &image, number, id).encode());
    let added = app.catalog.add_version(new, Timestamp::now(), seal).await;
    let (AddedVersion::Created(row) | AddedVersion::Unchanged(row)) = added.expect("is added");
    row
}

/// Makes every recipe that is wanted.
pub(crate) async fn make_all(app: &Arc<App>) {
    let (_sender, mut stop) = Stop::new();
    assert!(!make_wanted(app, &mut stop).await);
}

/// A disk of blocks of noise, one for each number; zeros for 0.
pub(crate) fn disk(numbers: impl IntoIterator<Item = u64>) -> Vec<u8> {
    let mut disk = Vec::new();
    for number in numbers {
        let mut state = 0x9e37_79b9_7f4a_7c15 ^ (number << 20);
        for _ in 0..BLOCK_BYTES {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            disk.push(if number == 0 { 0 } else { state as u8 });
        }
    }
    disk
}

/// A disk, and one where much has moved by three blocks and each fourth is new.
pub(crate) fn older_and_newer() -> (Vec<u8>, Vec<u8>) {
    let older = disk((1..=1400).map(|number| if number % 90 == 0 { 0 } else { number }));
    let new = |place: u64| {
        if place.is_multiple_of(4) {
            5000 + place
        } else {
            place - 3
        }
    };
    let newer = disk((1..=64).chain((65..=1420).map(new)));
    (older, newer)
}

/// The raw chunks of a disk by their ids.
pub(crate) fn chunks_of(disk: &[u8]) -> HashMap<ChunkId, &[u8]> {
    let chunks = disk.chunks(CHUNK_BYTES as usize);
    chunks.map(|raw| (ChunkId::of(raw), raw)).collect()
}

/// Every chunk that the newer version needs is rebuilt, or has no delta; answers
/// how many are rebuilt.
fn rebuild(app: &App, index: &Index, older: &[u8], newer: &[u8]) -> usize {
    let (older, newer) = (chunks_of(older), chunks_of(newer));
    let mut rebuilt_count = 0;
    for (id, raw) in &newer {
        let Some(place) = index.place(*id) else {
            continue;
        };
        let piece = app.store.read(place.piece).expect("is there");
        let bytes = place.of(&piece).expect("is within it");
        let delta = Delta::decode(&bytes, raw.len() as u32).expect("is a delta");
        let lookup = |id| Ok::<_, std::convert::Infallible>(older[&id]);
        let rebuilt = Rebuilder::new().rebuild(*id, &delta, lookup);
        assert_eq!(rebuilt.expect("is rebuilt"), *raw);
        rebuilt_count += 1;
    }
    rebuilt_count
}

#[tokio::test]
async fn a_recipe_rebuilds_what_differs() {
    let dir = tempfile::tempdir().expect("a directory");
    let app = app_in(dir.path()).await;
    let (older, newer) = older_and_newer();
    let from = add(&app, &older).await;
    let to = add(&app, &newer).await;
    assert!(find(&app, &from, &to).await.expect("answers").is_none());
    let before = list(&app).await.expect("answers");
    assert_eq!((before.recipes.len(), before.waiting_count), (0, 1));
    make_all(&app).await;
    let index = find(&app, &from, &to).await.expect("answers");
    let index = index.expect("was made");
    let rebuilt = rebuild(&app, &index, &older, &newer);
    // All but the first, which did not change, and the last, which is new.
    assert_eq!(rebuilt, 21);
    let list = list(&app).await.expect("answers");
    assert_eq!((list.waiting_count, list.making), (0, None));
    let [recipe] = &list.recipes[..] else {
        panic!("{:?}", list.recipes)
    };
    assert_eq!(recipe.delta_count, rebuilt as u64);
    // A quarter of the blocks is new, and noise.
    assert!(recipe.delta_bytes * 3 < recipe.frame_bytes, "{recipe:?}");
    assert!(
        recipe.stored_bytes < recipe.delta_bytes + 8192,
        "{recipe:?}"
    );
    let plain = sizes::compare(&app.store, &from, &to, None).expect("answers");
    let with = sizes::compare(&app.store, &from, &to, Some(&index)).expect("answers");
    let made = with.recipe.clone().expect("has one");
    assert_eq!(plain.recipe, None);
    assert_eq!(made.delta_bytes, recipe.delta_bytes);
    assert_eq!(
        with.fetch_bytes - made.fetch_bytes,
        recipe.frame_bytes - recipe.delta_bytes
    );
    assert_eq!(
        plain.wire_bytes - made.wire_bytes,
        with.fetch_bytes - made.fetch_bytes
    );
}

#[tokio::test]
async fn collections_keep_what_is_being_made_and_free_what_is_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let app = app_in(dir.path()).await;
    let (older, newer) = older_and_newer();
    let from = add(&app, &older).await;
    let to = add(&app, &newer).await;
    let store = app.store.clone();
    let mut making = Making::new(&store, from.clone(), to.clone()).expect("begins");
    let mut noted_count = 0;
    let row = loop {
        let steps = app.blocking(move |app| making.step(app)).await;
        making = match steps.expect("goes on") {
            Step::More(making) => *making,
            Step::Done(row) => break row,
        };
        noted_count = noted_count.max(app.recipes.notes().len());
        app.store.flush().expect("is durable");
        let report = collector::run(&app, None).await.expect("collects");
        assert_eq!(report.freed_chunk_count, 0);
    };
    assert!(noted_count > 1, "pieces are stored on the way");
    app.store.flush().expect("is durable");
    keep(&app, row).await.expect("is kept");
    app.recipes.state().notes.clear();
    let report = collector::run(&app, None).await.expect("collects");
    assert_eq!(report.freed_chunk_count, 0);
    let index = find(&app, &from, &to).await.expect("answers");
    assert_eq!(rebuild(&app, &index.expect("is there"), &older, &newer), 21);
    let deleted = app
        .catalog
        .delete_version(&from.image, from.number, "test", Timestamp::now());
    deleted.await.expect("is deleted");
    assert!(list(&app).await.expect("answers").recipes.is_empty());
    let before = app.store.stats();
    collector::run(&app, None).await.expect("collects");
    let left = sizes::weigh(&app.store, to.manifest, &[].into()).expect("answers");
    assert_eq!(app.store.stats().frame_bytes, left.stored_bytes);
    assert!(before.frame_bytes > left.stored_bytes);
}

#[tokio::test]
async fn a_daemon_that_stops_begins_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut app = app_in(dir.path()).await;
    let inner = Arc::get_mut(&mut app).expect("is not shared yet");
    // It rests longer than it works, so that the stop is heard after one step.
    inner.config.store.recipe_load_percent = 1;
    let (older, newer) = older_and_newer();
    let from = add(&app, &older).await;
    let to = add(&app, &newer).await;
    let (sender, mut stop) = Stop::new();
    sender.send_replace(true);
    assert!(make_wanted(&app, &mut stop).await);
    assert!(app.recipes.notes().is_empty());
    let half = list(&app).await.expect("answers");
    assert_eq!(
        (half.recipes.len(), half.waiting_count, half.making),
        (0, 1, None)
    );
    // The parts of the first try, as a crash leaves them.
    collector::run(&app, None).await.expect("collects");
    let inner = Arc::get_mut(&mut app).expect("is not shared any more");
    inner.config.store.recipe_load_percent = 100;
    make_all(&app).await;
    let index = find(&app, &from, &to).await.expect("answers");
    assert_eq!(rebuild(&app, &index.expect("was made"), &older, &newer), 21);
}

#[tokio::test]
async fn a_recipe_that_is_lost_is_made_anew_and_a_version_that_is_lost_has_none() {
    let dir = tempfile::tempdir().expect("a directory");
    let app = app_in(dir.path()).await;
    let (older, newer) = older_and_newer();
    let from = add(&app, &older).await;
    let to = add(&app, &newer).await;
    let (_sender, mut stop) = Stop::new();
    make_wanted(&app, &mut stop).await;
    let [mut row] =
        <[_; 1]>::try_from(app.catalog.recipes().await.expect("answers")).expect("one recipe");
    row.root = from.manifest;
    app.catalog.add_recipe(&row).await.expect("is replaced");
    // A root that is none: frames are sent, and the recipe is made anew.
    assert!(find(&app, &from, &to).await.expect("answers").is_none());
    assert_eq!(list(&app).await.expect("answers").waiting_count, 1);
    app.catalog.add_recipe(&row).await.expect("is replaced");
    collector::run(&app, None)
        .await
        .expect("collects all the same");
    make_wanted(&app, &mut stop).await;
    assert!(find(&app, &from, &to).await.expect("answers").is_some());
    // Nothing can be made for a version without its manifest, and no other waits.
    let lost = new_version(Digest::of(b"lost"), 1 << 18);
    let seal = |_: VersionNumber| String::new();
    let added = app.catalog.add_version(lost, Timestamp::now(), seal).await;
    added.expect("is added");
    assert!(!make_wanted(&app, &mut stop).await);
    assert_eq!(list(&app).await.expect("answers").waiting_count, 1);
}
