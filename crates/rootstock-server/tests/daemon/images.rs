//! Images: tags, deletion, collection, verification.

use rootstock_api::{
    CollectEvent, HolderKind, ImageDetail, ProblemCode, StoreReport, TagSet, TagTarget,
    VerifyEvent, paths,
};
use rootstock_core::{CHUNK_BYTES, VersionNumber, VersionSelector};

use crate::support::{Disk, Site};

async fn collect(site: &Site) -> rootstock_api::CollectReport {
    let answer = site.bytes(paths::GC, Vec::new()).await;
    match answer.lines().pop() {
        Some(CollectEvent::Done(report)) => report,
        last => panic!("{last:?}"),
    }
}

#[tokio::test]
async fn tags_point_and_protect() {
    let site = Site::start().await;
    site.import("lab", &Disk::of(&[1])).await;
    site.import("lab", &Disk::of(&[2])).await;
    let target = |version: &str| TagTarget {
        version: version.to_owned(),
    };
    let path = "/v1/images/lab/tags/production";
    let set: TagSet = site.put(path, &target("1")).await.json();
    assert_eq!((set.version, set.before), (VersionNumber(1), None));
    let problem = site.delete("/v1/images/lab/versions/1").await.problem();
    assert_eq!(problem.code, ProblemCode::InUse);
    assert_eq!(problem.holders[0].kind, HolderKind::Tag);
    assert!(problem.detail.contains("tag production"), "{problem}");
    let set: TagSet = site.put(path, &target("latest")).await.json();
    assert_eq!(set.before, Some(VersionNumber(1)));
    assert!(
        site.delete("/v1/images/lab/versions/1")
            .await
            .status
            .is_success()
    );
    let answer = site.get("/v1/images/lab/versions/@production").await;
    let detail: rootstock_api::VersionDetail = answer.json();
    assert_eq!(detail.summary.version, VersionNumber(2));
    assert!(site.delete(path).await.status.is_success());
    let problem = site.delete(path).await.problem();
    assert_eq!(problem.code, ProblemCode::TagNotFound);
    let problem = site.put(path, &target("9")).await.problem();
    assert_eq!(problem.code, ProblemCode::VersionNotFound);
}

#[tokio::test]
async fn a_collection_frees_what_nothing_needs_and_nothing_else() {
    let site = Site::start().await;
    site.import("lab", &Disk::of(&[1, 2])).await;
    site.import("lab", &Disk::of(&[1, 3])).await;
    let before: StoreReport = site.get(paths::STORE).await.json();
    assert_eq!(collect(&site).await.freed_chunk_count, 0);
    assert!(
        site.delete("/v1/images/lab/versions/1")
            .await
            .status
            .is_success()
    );
    let report = collect(&site).await;
    // The chunk, its page and its root document.
    assert_eq!(report.freed_chunk_count, 3, "{report:?}");
    let after: StoreReport = site.get(paths::STORE).await.json();
    assert_eq!(after.chunk_count, before.chunk_count - 3);
    let lab = "lab".parse().expect("a name");
    let path = paths::verify(&lab, &VersionSelector::Latest);
    let events: Vec<VerifyEvent> = site.bytes(&path, Vec::new()).await.lines();
    let Some(VerifyEvent::Done(report)) = events.last() else {
        panic!("{events:?}")
    };
    assert_eq!(report.damage_count, 0);
    assert_eq!(report.checked_bytes, 2 * CHUNK_BYTES);
    // Numbers are not used again, even when the image was deleted.
    assert!(site.delete("/v1/images/lab").await.status.is_success());
    let committed = site.import("lab", &Disk::of(&[9])).await;
    assert_eq!(committed.version, VersionNumber(3));
}

#[tokio::test]
async fn damage_is_named_and_never_served() {
    let mut site = Site::start().await;
    let disk = Disk::of(&[1, 2, 3]);
    site.import("lab", &disk).await;
    site.stop().await;
    // One bit in the middle of every pack's frames.
    let mut flipped = 0;
    for pack in packs(&site.data().join("store/packs")) {
        let mut bytes = std::fs::read(&pack).expect("reads");
        let frame = &disk.frames[1].bytes;
        let at = bytes
            .windows(64)
            .position(|window| window == &frame[512..576]);
        if let Some(at) = at {
            bytes[at] ^= 1;
            std::fs::write(&pack, bytes).expect("writes");
            flipped += 1;
        }
    }
    assert_eq!(flipped, 1);
    let mut site = site.started().await;
    let lab = "lab".parse().expect("a name");
    let path = paths::verify(&lab, &VersionSelector::Number(VersionNumber(1)));
    let events: Vec<VerifyEvent> = site.bytes(&path, Vec::new()).await.lines();
    let damage: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            VerifyEvent::Damage(damage) => Some(damage),
            _ => None,
        })
        .collect();
    let [damage] = damage[..] else {
        panic!("{events:?}")
    };
    assert_eq!(damage.chunk, disk.frames[1].chunk);
    assert_eq!(damage.offset_bytes, CHUNK_BYTES);
    assert_eq!(damage.version, VersionNumber(1));
    let ids = rootstock_api::record::encode_ids(&[damage.chunk]);
    let problem = site.bytes(paths::CHUNKS_FETCH, ids).await.problem();
    assert_eq!(problem.code, ProblemCode::Damaged);
    // The same image again mends it.
    site.import("lab", &disk).await;
    let events: Vec<VerifyEvent> = site.bytes(&path, Vec::new()).await.lines();
    assert!(matches!(events.last(), Some(VerifyEvent::Done(r)) if r.damage_count == 0));
    site.stop().await;
}

fn packs(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut packs = Vec::new();
    for entry in std::fs::read_dir(dir).expect("reads") {
        let path = entry.expect("reads").path();
        if path.is_dir() {
            packs.extend(self::packs(&path));
        } else {
            packs.push(path);
        }
    }
    packs
}

#[tokio::test]
async fn an_image_is_listed_with_its_versions() {
    let site = Site::start().await;
    for fill in 1..=3 {
        site.import("lab", &Disk::of(&[fill])).await;
    }
    let detail: ImageDetail = site.get("/v1/images/lab").await.json();
    let numbers: Vec<_> = detail.versions.iter().map(|v| v.version.0).collect();
    assert_eq!(numbers, [1, 2, 3]);
    let problem = site.get("/v1/images/attic").await.problem();
    assert_eq!(problem.code, ProblemCode::ImageNotFound);
    assert_eq!(
        problem.to_string(),
        "there is no image 'attic': `rootstock image list` shows the images"
    );
}
