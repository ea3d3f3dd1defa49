//! Volumes and exports, with a real client on the NBD port.

use std::time::{Duration, Instant};

use rootstock_api::{
    ClientList, ExportList, HolderKind, Outcome, ProblemCode, Volume, VolumeCommit,
    VolumeCommitted, VolumeCreate, VolumeList, VolumeResize, VolumeSnapshot, paths,
};
use rootstock_core::CHUNK_BYTES;
use rootstock_server::config::NbdAddress;

use crate::{
    nbd::Nbd,
    support::{Disk, Site, chunk_of, config_in},
};

async fn site() -> Site {
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = config_in(dir.path());
    config.nbd.listen = vec![NbdAddress::Tcp("127.0.0.1:0".to_owned())];
    let site = Site::start_with(dir, config).await;
    site.import("lab", &Disk::of(&[1, 2, 3])).await;
    site
}

fn create(name: &str) -> VolumeCreate {
    VolumeCreate {
        name: name.parse().expect("a name"),
        from: Some("lab".parse().expect("a version")),
        size_bytes: None,
        ephemeral: false,
        block_bytes: 512,
    }
}

/// Does something with a client, on a thread that may wait.
async fn client<T: Send + 'static>(
    site: &Site,
    export: &str,
    work: impl FnOnce(Nbd) -> T + Send + 'static,
) -> T {
    let address = site.daemon().nbd_addresses()[0];
    let export = export.to_owned();
    let done = tokio::task::spawn_blocking(move || {
        work(Nbd::open(address, &export).unwrap_or_else(|reason| panic!("{export}: {reason}")))
    });
    done.await.expect("does not panic")
}

async fn refused(site: &Site, export: &str) -> String {
    let address = site.daemon().nbd_addresses()[0];
    let export = export.to_owned();
    let opening = tokio::task::spawn_blocking(move || Nbd::open(address, &export).err());
    opening.await.expect("does not panic").expect("is refused")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_guest_wrote_becomes_a_version() {
    let site = site().await;
    let made: Volume = site.post(paths::VOLUMES, &create("seat")).await.json();
    assert_eq!(
        (made.size_bytes, made.base.to_string().as_str()),
        (3 * CHUNK_BYTES, "lab:1")
    );
    client(&site, "volume/seat", |mut nbd| {
        assert_eq!((nbd.size_bytes, nbd.read_only), (3 * CHUNK_BYTES, false));
        assert_eq!(nbd.read(CHUNK_BYTES, CHUNK_BYTES as u32), chunk_of(2));
        nbd.write(CHUNK_BYTES + 4096, &[9; 4096]);
        nbd.flush();
        nbd.close();
    })
    .await;
    let commit = VolumeCommit {
        image: "lab".parse().expect("a name"),
        tag: Some("production".parse().expect("a tag")),
        message: Some("written by hand".to_owned()),
    };
    let committed: VolumeCommitted = site.post("/v1/volumes/seat/commit", &commit).await.json();
    assert_eq!(
        (committed.outcome, committed.version.0),
        (Outcome::Created, 2)
    );
    // One chunk and its page.
    assert_eq!(committed.added_chunk_count, 1);
    client(&site, "image/lab@production", |mut nbd| {
        assert!(nbd.read_only);
        let mut expected = chunk_of(2);
        expected[4096..8192].fill(9);
        assert_eq!(nbd.read(CHUNK_BYTES, CHUNK_BYTES as u32), expected);
        assert_eq!(nbd.read(0, CHUNK_BYTES as u32), chunk_of(1));
        nbd.close();
    })
    .await;
    let again: VolumeCommitted = site.post("/v1/volumes/seat/commit", &commit).await.json();
    assert_eq!((again.outcome, again.version.0), (Outcome::Unchanged, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_survive_a_restart_and_a_reset_drops_them() {
    let mut site = site().await;
    site.post(paths::VOLUMES, &create("seat")).await;
    client(&site, "volume/seat", |mut nbd| {
        nbd.write(0, &[7; 8192]);
        nbd.close();
    })
    .await;
    site.stop().await;
    let mut config = config_in(site.dir.path());
    config.nbd.listen = vec![NbdAddress::Tcp("127.0.0.1:0".to_owned())];
    let site = Site::start_with(site.dir, config).await;
    client(&site, "volume/seat", |mut nbd| {
        assert_eq!(nbd.read(0, 8192), [7; 8192]);
        nbd.close();
    })
    .await;
    let answer = site.bytes("/v1/volumes/seat/reset", Vec::new()).await;
    assert!(answer.status.is_success());
    client(&site, "volume/seat", |mut nbd| {
        assert_eq!(nbd.read(0, 8192), chunk_of(1)[..8192]);
        nbd.close();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_is_not_deleted_and_names_its_client() {
    let site = site().await;
    site.post(paths::VOLUMES, &create("seat")).await;
    let problem = site.delete("/v1/images/lab/versions/1").await.problem();
    assert_eq!(problem.code, ProblemCode::InUse);
    assert_eq!(problem.holders[0].kind, HolderKind::Volume);
    let nbd = client(&site, "volume/seat", |nbd| nbd).await;
    for (path, reset) in [
        ("/v1/volumes/seat", false),
        ("/v1/volumes/seat/reset", true),
    ] {
        let answer = if reset {
            site.bytes(path, Vec::new()).await
        } else {
            site.delete(path).await
        };
        let problem = answer.problem();
        assert_eq!(problem.code, ProblemCode::InUse);
        assert_eq!(problem.holders[0].kind, HolderKind::Client);
    }
    let clients: ClientList = site.get(paths::CLIENTS).await.json();
    assert_eq!(clients.clients[0].export, "volume/seat");
    let exports: ExportList = site.get(paths::EXPORTS).await.json();
    let count = |e: &rootstock_api::Export| (e.name.clone(), e.client_count);
    let counts: Vec<_> = exports.exports.iter().map(count).collect();
    let expected = [("volume/seat", 1), ("image/lab:1", 0)];
    let expected = expected.map(|(name, count)| (name.to_owned(), count));
    assert_eq!(counts, expected);
    client_gone(nbd).await;
    assert!(site.delete("/v1/volumes/seat").await.status.is_success());
    let version = client(&site, "image/lab:1", |nbd| nbd).await;
    let problem = site.delete("/v1/images/lab/versions/1").await.problem();
    assert_eq!(problem.holders[0].kind, HolderKind::Client);
    client_gone(version).await;
    assert!(site.delete("/v1/images/lab").await.status.is_success());
    let reason = refused(&site, "image/lab:1").await;
    assert!(reason.contains("there is no image 'lab'"), "{reason}");
    let reason = refused(&site, "thesis").await;
    assert!(reason.contains("image/NAME:VERSION"), "{reason}");
}

async fn client_gone(nbd: Nbd) {
    let closing = tokio::task::spawn_blocking(move || nbd.close());
    closing.await.expect("does not panic");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_made_at_once() {
    let site = site().await;
    let mut fastest = Duration::MAX;
    for number in 0..8 {
        let began = Instant::now();
        let answer = site
            .post(paths::VOLUMES, &create(&format!("seat-{number}")))
            .await;
        fastest = fastest.min(began.elapsed());
        assert!(answer.status.is_success());
    }
    // The promise is 50 ms in a release build on an idle machine. The fastest
    // of several says least about what else this machine does.
    assert!(fastest < Duration::from_millis(500), "{fastest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_grow_are_copied_and_forget() {
    let site = site().await;
    site.post(paths::VOLUMES, &create("seat")).await;
    let problem = site.post(paths::VOLUMES, &create("seat")).await.problem();
    assert_eq!(problem.code, ProblemCode::Exists);
    client(&site, "volume/seat", |mut nbd| {
        nbd.write(0, &[7; 4096]);
        nbd.close();
    })
    .await;
    let grow = |size_bytes| VolumeResize { size_bytes };
    let resize = "/v1/volumes/seat/resize";
    let grown: Volume = site.post(resize, &grow(8 * CHUNK_BYTES)).await.json();
    assert_eq!(grown.size_bytes, 8 * CHUNK_BYTES);
    assert!(grown.used_bytes > 0);
    let problem = site.post(resize, &grow(CHUNK_BYTES)).await.problem();
    assert_eq!(problem.code, ProblemCode::BadValue);
    let snapshot = VolumeSnapshot {
        name: "copy".parse().expect("a name"),
    };
    let copy: Volume = site
        .post("/v1/volumes/seat/snapshot", &snapshot)
        .await
        .json();
    assert_eq!(copy.size_bytes, 8 * CHUNK_BYTES);
    client(&site, "volume/copy", |mut nbd| {
        assert_eq!(nbd.read(0, 4096), [7; 4096]);
        assert_eq!(nbd.read(7 * CHUNK_BYTES, 4096), [0; 4096]);
        nbd.close();
    })
    .await;
    let exam = VolumeCreate {
        ephemeral: true,
        ..create("exam")
    };
    site.post(paths::VOLUMES, &exam).await;
    for _ in 0..2 {
        client(&site, "volume/exam", |mut nbd| {
            assert_eq!(nbd.read(0, 4096), chunk_of(1)[..4096]);
            nbd.write(0, &[7; 4096]);
            assert_eq!(nbd.read(0, 4096), [7; 4096]);
            nbd.close();
        })
        .await;
    }
    let list: VolumeList = site.get(paths::VOLUMES).await.json();
    let names: Vec<_> = list
        .volumes
        .iter()
        .map(|volume| volume.name.as_str())
        .collect();
    assert_eq!(names, ["copy", "exam", "seat"]);
    let small = VolumeCreate {
        size_bytes: Some(4096),
        ..create("small")
    };
    let problem = site.post(paths::VOLUMES, &small).await.problem();
    assert_eq!(problem.code, ProblemCode::BadValue);
}

#[tokio::test]
async fn an_empty_disk_is_a_clone_of_nothing() {
    let site = site().await;
    let blank = |name: &str, size_bytes: Option<u64>| VolumeCreate {
        from: None,
        size_bytes,
        ..create(name)
    };
    for (name, size_bytes) in [("one", 5 << 30), ("two", 1 << 20)] {
        let new = blank(name, Some(size_bytes));
        let made: Volume = site.post(paths::VOLUMES, &new).await.json();
        assert_eq!(
            (made.size_bytes, made.base.to_string().as_str()),
            (size_bytes, "blank:1")
        );
    }
    client(&site, "volume/one", |mut nbd| {
        assert_eq!(nbd.read(4 << 30, 4096), [0; 4096]);
        nbd.write(4 << 30, &[7; 4096]);
        assert_eq!(nbd.read(4 << 30, 4096), [7; 4096]);
        nbd.close();
    })
    .await;
    let sizeless = blank("three", None);
    let problem = site.post(paths::VOLUMES, &sizeless).await.problem();
    assert_eq!(problem.code, ProblemCode::BadValue);
    // What somebody calls so later is not taken for an empty disk.
    site.import("blank", &Disk::of(&[1])).await;
    let other = blank("three", Some(1 << 30));
    let problem = site.post(paths::VOLUMES, &other).await.problem();
    assert_eq!(problem.code, ProblemCode::BadValue);
}

#[tokio::test]
async fn an_unfinished_volume_is_gone_after_a_restart() {
    let mut site = Site::start().await;
    site.import("lab", &Disk::of(&[1])).await;
    site.stop().await;
    // What a crash leaves between a volume's row and its files, either way.
    let path = site.data().join("catalog.sqlite");
    let catalog = rootstock_catalog::Catalog::open(&path).await;
    let catalog = catalog.expect("opens");
    for name in ["made", "deleted"] {
        let directory = format!("dir-{name}");
        let path = site.data().join("volumes").join(&directory);
        std::fs::create_dir(&path).expect("makes");
        std::fs::write(path.join("rest"), "…").expect("writes");
        let new = rootstock_catalog::NewVolume {
            name: name.parse().expect("a name"),
            image: "lab".parse().expect("a name"),
            version: rootstock_core::VersionNumber(1),
            size_bytes: CHUNK_BYTES,
            ephemeral: false,
            block_bytes: 512,
            directory,
        };
        let now = jiff::Timestamp::now();
        catalog.add_volume(&new, now).await.expect("adds");
    }
    let deleted = "deleted".parse().expect("a name");
    let deleting = rootstock_catalog::VolumeState::Deleting;
    let set = catalog.set_volume_state(&deleted, deleting).await;
    set.expect("sets");
    catalog.close().await;
    let site = site.started().await;
    let list: VolumeList = site.get(paths::VOLUMES).await.json();
    assert!(list.volumes.is_empty());
    let dirs = std::fs::read_dir(site.data().join("volumes")).expect("reads");
    assert_eq!(dirs.count(), 0);
    assert!(
        site.post(paths::VOLUMES, &create("made"))
            .await
            .status
            .is_success()
    );
}
