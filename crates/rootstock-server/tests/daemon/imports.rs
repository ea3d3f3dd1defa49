//! Imports: whole, resumed, unchanged, incomplete and broken.

use axum::body::Body;
use rootstock_api::{
    HistoryList, ImageList, ImportCommit, ImportList, Outcome, ProblemCode, Records, SEAL_HEADER,
    TokenRole, VersionDetail, paths, record::encode_ids,
};
use rootstock_core::{CHUNK_BYTES, ChunkId, VersionNumber, VersionSelector};
use rootstock_image::{
    frame::{Codec, Decoder},
    manifest::Manifest,
};

use crate::{
    remote::{Remote, site_with_https},
    support::{Disk, Site, binary, chunk_of, record},
};

#[tokio::test]
async fn an_import_becomes_a_version_that_can_be_fetched() {
    let site = Site::start().await;
    let disk = Disk::of(&[1, 0, 2, 1]);
    let committed = site.import("lab", &disk).await;
    assert_eq!(committed.outcome, Outcome::Created);
    assert_eq!(committed.version, VersionNumber(1));
    assert_eq!(committed.used_bytes, 3 * CHUNK_BYTES);
    assert_eq!(committed.added_chunk_count, disk.frames.len() as u64);
    let images: ImageList = site.get(paths::IMAGES).await.json();
    let latest = images.images[0].latest.as_ref().expect("has a version");
    assert_eq!(latest.disk_bytes, 4 * CHUNK_BYTES);

    let lab = "lab".parse().expect("a name");
    let answer = site
        .get(&paths::manifest(&lab, &VersionSelector::Latest))
        .await;
    let manifest = Manifest::decode(&answer.body).expect("is a manifest");
    assert_eq!(manifest.id(), disk.manifest);
    let seal = answer.headers[SEAL_HEADER].to_str().expect("is text");
    let detail: VersionDetail = site
        .get(&paths::version(&lab, &VersionSelector::Latest))
        .await
        .json();
    assert_eq!(detail.seal, seal);
    assert_eq!(detail.size.chunk_count, 2);
    assert_eq!(detail.size.unique_bytes, 2 * CHUNK_BYTES);
    assert!(detail.size.stored_bytes > 0);

    let chunk = ChunkId::of(&chunk_of(2));
    let answer = site.bytes(paths::CHUNKS_FETCH, encode_ids(&[chunk])).await;
    let records: Vec<_> = Records::new(&answer.body).collect();
    let [Ok(fetched)] = &records[..] else {
        panic!("{records:?}")
    };
    let codec = Codec::from_byte(fetched.codec).expect("is known");
    let raw = Decoder::new().decode(chunk, fetched.raw_bytes, codec, fetched.frame);
    assert_eq!(raw.expect("is good"), chunk_of(2));
}

#[tokio::test]
async fn the_next_version_costs_its_difference() {
    let site = Site::start().await;
    site.import("lab", &Disk::of(&[1, 2, 3, 4])).await;
    let second = Disk::of(&[1, 2, 3, 5]);
    let import = site.open_import("lab", &second).await;
    let ids: Vec<_> = second.frames.iter().map(|frame| frame.chunk).collect();
    let lacking = site.lacking(&import.id, &ids).await;
    // One chunk, its page and the root document.
    assert_eq!(lacking, [false, false, false, true, true, true]);
    let committed = site.import("lab", &second).await;
    assert_eq!(committed.added_chunk_count, 3);
    assert_eq!(committed.parent.expect("has one").to_string(), "lab:1");
    let diff: rootstock_api::DiffReport = site.get("/v1/diff?from=lab:1&to=lab:2").await.json();
    assert_eq!((diff.changed_chunk_count, diff.fetch_chunk_count), (1, 1));
    assert_eq!(diff.fetch_raw_bytes, CHUNK_BYTES);
    assert!(diff.fetch_page_bytes > 0 && diff.fetch_bytes > 0);
}

#[tokio::test]
async fn the_same_again_is_unchanged_and_keeps_nothing_open() {
    let site = Site::start().await;
    let disk = Disk::of(&[1, 2]);
    site.import("lab", &disk).await;
    let again = site.import("lab", &disk).await;
    assert_eq!(again.outcome, Outcome::Unchanged);
    assert_eq!(again.version, VersionNumber(1));
    assert_eq!(again.added_chunk_count, 0);
    let imports: ImportList = site.get(paths::IMPORTS).await.json();
    assert!(imports.imports.is_empty());
    let history: HistoryList = site.get("/v1/images/lab/history").await.json();
    assert_eq!(history.entries.len(), 1);
    assert_eq!(history.entries[0].actor, "local");
}

#[tokio::test]
async fn an_interrupted_import_goes_on_after_a_restart() {
    let mut site = Site::start().await;
    let disk = Disk::of(&[1, 2, 3]);
    let import = site.open_import("lab", &disk).await;
    site.send_frames(&import.id, &disk.frames[..2]).await;
    site.restart().await;
    let images: ImageList = site.get(paths::IMAGES).await.json();
    assert!(images.images.is_empty(), "nothing half-done is visible");
    let imports: ImportList = site.get(paths::IMPORTS).await.json();
    assert_eq!(imports.imports[0].id, import.id);
    let ids: Vec<_> = disk.frames.iter().map(|frame| frame.chunk).collect();
    let lacking = site.lacking(&import.id, &ids).await;
    assert_eq!(lacking, [false, false, true, true, true]);
    // What it sent before is pinned: a collection between does not take it.
    let answer = site.bytes(paths::GC, Vec::new()).await;
    assert!(answer.status.is_success());
    assert_eq!(site.lacking(&import.id, &ids).await, lacking);
    site.send_frames(&import.id, &disk.frames[2..]).await;
    let answer = site.commit(&import.id, &disk, Some("production")).await;
    let committed: rootstock_api::ImportCommitted = answer.json();
    assert_eq!(committed.added_chunk_count, disk.frames.len() as u64);
}

#[tokio::test]
async fn what_is_missing_is_named_and_the_import_stays() {
    let site = Site::start().await;
    let disk = Disk::of(&[1, 2, 3]);
    let import = site.open_import("lab", &disk).await;
    let problem = site.commit(&import.id, &disk, None).await.problem();
    assert_eq!(problem.code, ProblemCode::ChunksMissing);
    assert_eq!(problem.missing, [ChunkId(disk.manifest)]);
    // All but the second chunk.
    let others = disk
        .frames
        .iter()
        .filter(|f| f.chunk != disk.frames[1].chunk);
    site.send_frames(&import.id, others).await;
    let problem = site.commit(&import.id, &disk, None).await.problem();
    assert_eq!(problem.missing, [disk.frames[1].chunk]);
    assert!(site.get("/v1/images/lab").await.status.is_client_error());
    site.send_frames(&import.id, [&disk.frames[1]]).await;
    let answer = site.commit(&import.id, &disk, None).await;
    assert!(answer.status.is_success());
}

#[tokio::test]
async fn lies_are_refused() {
    let site = site_with_https().await;
    let remote = Remote::of(site.daemon());
    let secret = site.token(TokenRole::Admin).await;
    let disk = Disk::of(&[1, 2]);
    let import = site.open_import("lab", &disk).await;
    let chunks = paths::import_chunks(&import.id);
    let frame = &disk.frames[0];
    let mut body = Vec::new();
    record(frame).write(&mut body);
    // Other bytes than the id says, a codec nobody knows, half a record.
    let mut flipped = body.clone();
    *flipped.last_mut().expect("has bytes") ^= 1;
    let mut codec = body.clone();
    codec[40] = 9;
    for bad in [flipped, codec.clone(), body[..60].to_vec()] {
        let post = binary(&chunks, Body::from(bad));
        let problem = remote.send(post, Some(&secret)).await.problem();
        assert_eq!(problem.code, ProblemCode::BadChunk, "{problem}");
    }
    // The daemon's own user is believed about the bytes, not about the form.
    for bad in [codec, body[..60].to_vec()] {
        let problem = site.bytes(&chunks, bad).await.problem();
        assert_eq!(problem.code, ProblemCode::BadChunk, "{problem}");
    }
    assert_eq!(site.lacking(&import.id, &[frame.chunk]).await, [true]);
    // A manifest of another disk, and a chunk that is no manifest.
    site.send_frames(&import.id, &disk.frames).await;
    let other = Disk::of(&[1, 2, 3]);
    site.send_frames(&import.id, &other.frames).await;
    let problem = site.commit(&import.id, &other, None).await.problem();
    assert_eq!(problem.code, ProblemCode::BadManifest, "{problem}");
    let commit = ImportCommit {
        manifest: frame.chunk.0,
        tag: None,
        message: None,
        facts: rootstock_api::ImageFacts::default(),
    };
    let answer = site.post(&paths::import_commit(&import.id), &commit).await;
    assert_eq!(answer.problem().code, ProblemCode::BadManifest);
    assert!(disk.chunk_count == 2);
}

#[tokio::test]
async fn a_chunk_of_the_wrong_length_is_found_at_commit() {
    let site = Site::start().await;
    // A page where a chunk should be: it is in the store, and 144 bytes long.
    let inner = Disk::of(&[1, 2]);
    let page = &inner.frames[inner.chunk_count];
    let grid = rootstock_image::grid::Grid::whole(2 * CHUNK_BYTES).expect("a grid");
    let mut builder = rootstock_image::manifest::ManifestBuilder::new(grid);
    builder.set(0, page.chunk);
    let mut encoder = rootstock_image::frame::Encoder::new();
    let mut frames = inner.frames.clone();
    let manifest = builder.finish(|id, page| {
        frames.push(encoder.encode(id, page));
        Ok::<_, std::convert::Infallible>(())
    });
    let manifest = manifest.expect("builds");
    frames.push(encoder.encode(ChunkId(manifest.id()), &manifest.encode()));
    let disk = Disk {
        disk_bytes: 2 * CHUNK_BYTES,
        manifest: manifest.id(),
        frames,
        chunk_count: 0,
    };
    let import = site.open_import("lab", &disk).await;
    site.send_frames(&import.id, &disk.frames).await;
    let problem = site.commit(&import.id, &disk, None).await.problem();
    assert_eq!(problem.code, ProblemCode::BadManifest, "{problem}");
    assert!(problem.detail.contains("at byte 0"), "{problem}");
}

#[tokio::test]
async fn an_aborted_import_is_gone() {
    let site = Site::start().await;
    let disk = Disk::of(&[1]);
    let import = site.open_import("lab", &disk).await;
    site.send_frames(&import.id, &disk.frames).await;
    let path = paths::import(&import.id);
    assert!(site.delete(&path).await.status.is_success());
    let problem = site.commit(&import.id, &disk, None).await.problem();
    assert_eq!(problem.code, ProblemCode::ImportNotFound);
    assert_eq!(
        site.get(&path).await.problem().code,
        ProblemCode::ImportNotFound
    );
}
