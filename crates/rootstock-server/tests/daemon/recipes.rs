//! Recipes: made by themselves, shown, kept and freed.

use std::time::Duration;

use rootstock_api::{CollectEvent, DiffReport, RecipeList, VersionDetail, paths};
use rootstock_server::Config;

use crate::support::{Disk, Site, chunk_of, config_in};

/// How long small recipes may take on a busy machine.
const MAKING_LIMIT: Duration = Duration::from_secs(60);

fn making(dir: &std::path::Path) -> Config {
    let mut config = config_in(dir);
    config.store.recipe_load_percent = 100;
    config
}

/// Two disks, the second of which has the first one's blocks at other places.
fn disks() -> (Disk, Disk) {
    let older: Vec<u8> = (1..=6).flat_map(chunk_of).collect();
    let mut newer = chunk_of(99)[..12 * 1024].to_vec();
    newer.extend(&older[..older.len() - 12 * 1024]);
    (Disk::of_raw(&older), Disk::of_raw(&newer))
}

async fn list(site: &Site) -> RecipeList {
    site.get(paths::RECIPES).await.json()
}

/// The list once nothing is being made any more.
async fn made(site: &Site) -> RecipeList {
    let waiting = async {
        loop {
            let list = list(site).await;
            if list.making.is_none() && list.waiting_count == 0 {
                return list;
            }
            tokio::task::yield_now().await;
        }
    };
    let made = tokio::time::timeout(MAKING_LIMIT, waiting).await;
    made.expect("is made in time")
}

async fn collect(site: &Site) -> rootstock_api::CollectReport {
    match site.bytes(paths::GC, Vec::new()).await.lines().pop() {
        Some(CollectEvent::Done(report)) => report,
        last => panic!("{last:?}"),
    }
}

async fn diff(site: &Site) -> DiffReport {
    let path = format!("{}?from=lab:1&to=lab:2", paths::DIFF);
    site.get(&path).await.json()
}

#[tokio::test]
async fn a_recipe_is_made_shown_kept_and_freed() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = making(dir.path());
    let mut site = Site::start_with(dir, config).await;
    let (older, newer) = disks();
    site.import("lab", &older).await;
    site.import("lab", &newer).await;
    let made = made(&site).await;
    let [recipe] = &made.recipes[..] else {
        panic!("{made:?}")
    };
    assert_eq!(
        (recipe.from.to_string(), recipe.to.to_string()),
        ("lab:1".into(), "lab:2".into())
    );
    assert_eq!(recipe.delta_count, 6);
    assert!(recipe.delta_bytes * 4 < recipe.frame_bytes, "{recipe:?}");
    let detail: VersionDetail = site.get("/v1/images/lab/versions/2").await.json();
    assert_eq!(detail.recipes, made.recipes);
    let report = diff(&site).await;
    let predicted = report.recipe.clone().expect("has a recipe");
    assert_eq!(predicted.delta_bytes, recipe.delta_bytes);
    assert!(predicted.wire_bytes * 3 < report.wire_bytes, "{report:?}");
    assert_eq!(collect(&site).await.freed_chunk_count, 0);
    // A restart finds it, and makes nothing anew.
    site.stop().await;
    let site = site.started().await;
    assert_eq!(list(&site).await.recipes, made.recipes);
    assert_eq!(diff(&site).await, report);
    assert!(
        site.delete("/v1/images/lab/versions/1")
            .await
            .status
            .is_success()
    );
    assert!(list(&site).await.recipes.is_empty());
    // Six chunks, their page and root document; the recipe's root, page and piece.
    assert_eq!(collect(&site).await.freed_chunk_count, 8 + 3);
}

#[tokio::test]
async fn a_daemon_without_leave_makes_none() {
    let site = Site::start().await;
    let (older, newer) = disks();
    site.import("lab", &older).await;
    site.import("lab", &newer).await;
    let list = list(&site).await;
    assert_eq!((list.load_percent, list.waiting_count), (0, 0));
    assert!(list.recipes.is_empty());
    let report = diff(&site).await;
    assert_eq!(report.recipe, None);
    assert!(report.wire_bytes > report.fetch_bytes);
}
