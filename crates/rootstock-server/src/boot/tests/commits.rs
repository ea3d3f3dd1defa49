//! What a personal machine wrote: who may send it, and what becomes of it.

use rootstock_api::{
    NodeCommit, NodeCommitState, Record, VolumeCommit,
    boot::{CONTROL, NodeControl},
    personal::{COMMIT, COMMIT_CHUNKS, COMMIT_LACKING, CommitProgress, CommitTold},
    record::encode_ids,
};
use rootstock_core::NodeName;
use rootstock_image::{frame::Encoder, manifest::Manifest};

use super::*;
use crate::boot::commits;

const SETTINGS: &str = r#"{"image":"lab:1","mode":"personal","personal":"disk"}"#;

fn n001() -> NodeName {
    "n001".parse().expect("a name")
}

async fn boots(site: &Site) -> String {
    let script = site.script().await;
    let open = state(site.redeem(OWN, Transport::Tls, token_of(&script)).await).await;
    match open {
        SessionState::Open { session, .. } => session,
        SessionState::Held { .. } => panic!("is held"),
    }
}

async fn running() -> (Site, String) {
    let site = Site::new().await;
    site.version(1).await;
    site.node(SETTINGS).await;
    let session = boots(&site).await;
    (site, session)
}

async fn begin(site: &Site, image: &str) -> NodeCommit {
    let request = VolumeCommit {
        image: image.parse().expect("a name"),
        tag: Some("test".parse().expect("a tag")),
        message: None,
    };
    let begun = commits::begin(&site.app, &n001(), request, "admin".to_owned()).await;
    begun.expect("begins")
}

/// What the machine is to send.
async fn ordered(site: &Site, session: &str) -> Option<String> {
    let path = format!("{CONTROL}?after=0");
    let control = site.call(Transport::Tls, &path, session, b"").await;
    let control: NodeControl = serde_json::from_slice(&bytes(control).await).expect("a control");
    control.commit.map(|order| order.commit)
}

async fn post(site: &Site, path: &str, commit: &str, session: &str, body: &[u8]) -> StatusCode {
    let request = Request::post(format!("{path}?commit={commit}"))
        .header(header::AUTHORIZATION, format!("Bearer {session}"))
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .body(Body::from(body.to_vec()))
        .expect("a request");
    site.send(OWN, Transport::Tls, request).await.status()
}

async fn tells(site: &Site, commit: &str, session: &str, told: &CommitTold) -> StatusCode {
    let body = serde_json::to_vec(told).expect("is JSON");
    post(site, COMMIT, commit, session, &body).await
}

fn shown(site: &Site) -> NodeCommit {
    site.app.boot.commits.show(&n001()).expect("was asked for")
}

fn record(raw: &[u8]) -> Vec<u8> {
    let frame = Encoder::new().encode(ChunkId::of(raw), raw);
    let mut body = Vec::new();
    Record {
        chunk: frame.chunk,
        raw_bytes: frame.raw_bytes,
        codec: frame.codec.to_byte(),
        frame: &frame.bytes,
    }
    .write(&mut body);
    body
}

/// A manifest of one chunk, and the pages that it takes.
fn manifest(raw: &[u8]) -> (Manifest, Vec<Vec<u8>>) {
    let mut builder = ManifestBuilder::new(Grid::whole(1 << 18).expect("a grid"));
    builder.set(0, ChunkId::of(raw));
    let mut pages = Vec::new();
    let manifest = builder.finish(|_, page| {
        pages.push(page.to_vec());
        Ok::<_, std::convert::Infallible>(())
    });
    (manifest.expect("is built"), pages)
}

#[tokio::test]
async fn what_a_machine_wrote_becomes_a_version_when_it_is_asked_for() {
    let (site, session) = running().await;
    let order = site.call(Transport::Tls, ORDER, &session, b"").await;
    let order: BootOrder = serde_json::from_slice(&bytes(order).await).expect("an order");
    assert!(order.volume.is_none() && !order.chunk_urls.is_empty());
    assert_eq!(order.personal.expect("is told").resets, 0);
    // Nobody asks yet.
    assert_eq!(ordered(&site, &session).await, None);
    let raw = vec![42; 1 << 18];
    let ids = encode_ids(&[ChunkId::of(&raw)]);
    for (path, body) in [(COMMIT_LACKING, &ids), (COMMIT_CHUNKS, &record(&raw))] {
        let status = post(&site, path, "x", &session, body).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{path}");
    }
    assert!(!site.app.store.contains(ChunkId::of(&raw)));

    assert_eq!(begin(&site, "mine").await.state, NodeCommitState::Waiting);
    let commit = ordered(&site, &session).await.expect("is told");
    let progress = CommitProgress {
        done_bytes: 1,
        total_bytes: 2,
        sent_bytes: 3,
    };
    let status = tells(&site, &commit, &session, &CommitTold::Going(progress)).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(shown(&site).progress, progress);
    let (manifest, pages) = manifest(&raw);
    let sent = CommitTold::Sent {
        manifest: manifest.id(),
    };
    // It forgot its chunks, and goes on.
    let status = tells(&site, &commit, &session, &sent).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(shown(&site).state, NodeCommitState::Going);
    let all = [&[raw], &pages[..], &[manifest.encode()]].concat();
    for raw in all {
        let ids = encode_ids(&[ChunkId::of(&raw)]);
        let status = post(&site, COMMIT_LACKING, &commit, &session, &ids).await;
        assert_eq!(status, StatusCode::OK);
        let status = post(&site, COMMIT_CHUNKS, &commit, &session, &record(&raw)).await;
        assert_eq!(status, StatusCode::OK);
    }
    let status = tells(&site, &commit, &session, &sent).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let done = shown(&site);
    assert_eq!(done.state, NodeCommitState::Done);
    let committed = done.committed.expect("is a version");
    assert_eq!(committed.manifest, manifest.id());
    let spec = "mine@test".parse().expect("a name");
    let version = site.app.catalog.resolve(&spec).await.expect("is there");
    assert_eq!(
        version.parent.map(|spec| spec.to_string()).as_deref(),
        Some("lab:1")
    );
    // It is over. Whoever did not hear the answer asks again.
    assert_eq!(ordered(&site, &session).await, None);
    let status = tells(&site, &commit, &session, &sent).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let other = CommitTold::Sent {
        manifest: rootstock_core::Digest::of(b"other"),
    };
    let status = tells(&site, &commit, &session, &other).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn another_boot_has_nothing_to_send() {
    let (site, session) = running().await;
    assert_eq!(ordered(&site, &session).await, None);
    begin(&site, "mine").await;
    let commit = ordered(&site, &session).await.expect("is told");
    let later = boots(&site).await;
    assert_eq!(ordered(&site, &later).await, None);
    let told = CommitTold::Going(CommitProgress::default());
    let status = tells(&site, &commit, &later, &told).await;
    assert_eq!(status, StatusCode::FORBIDDEN);

    commits::abort(&site.app, &n001()).expect("is given up");
    assert_eq!(shown(&site).state, NodeCommitState::Failed);
    // What was left open is gone on with.
    begin(&site, "mine").await;
    let again = ordered(&site, &later).await.expect("is told");
    assert_ne!(again, commit, "it is another order");
    let imports = site.app.catalog.imports().await.expect("lists");
    assert_eq!(imports.len(), 1, "with the chunks of the first");
    let commit = again;
    let told = CommitTold::Failed {
        reason: "no\u{1b}room".to_owned(),
    };
    assert_eq!(
        tells(&site, &commit, &later, &told).await,
        StatusCode::NO_CONTENT
    );
    assert_eq!(shown(&site).reason.as_deref(), Some("no room"));
}

#[tokio::test]
async fn a_machine_cannot_have_the_server_remember_without_end() {
    let (site, session) = running().await;
    assert_eq!(ordered(&site, &session).await, None);
    begin(&site, "mine").await;
    let commit = ordered(&site, &session).await.expect("is told");
    let ids: Vec<ChunkId> = (0..4096_u32)
        .map(|id| ChunkId::of(&id.to_le_bytes()))
        .collect();
    let ids = encode_ids(&ids);
    let mut asked = 0;
    while post(&site, COMMIT_LACKING, &commit, &session, &ids).await == StatusCode::OK {
        asked += 1;
        assert!(asked < 10, "it has one chunk");
    }
    assert_eq!(asked, 3);
    assert_eq!(shown(&site).state, NodeCommitState::Failed);
}

#[tokio::test]
async fn resets_are_told_with_the_order() {
    let (site, session) = running().await;
    let reset = site.app.catalog.reset_personal(&[n001()]).await;
    assert_eq!(reset.expect("is noted"), [n001()]);
    let order = site.call(Transport::Tls, ORDER, &session, b"").await;
    let order: BootOrder = serde_json::from_slice(&bytes(order).await).expect("an order");
    assert!(order.personal.expect("is told").resets > 0);
}
