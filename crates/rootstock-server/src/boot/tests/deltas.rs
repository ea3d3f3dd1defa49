//! What a machine fetches of the version that it is to run next.

use std::convert::Infallible;

use axum::{http::StatusCode, response::Response};
use rootstock_api::{
    SEAL_HEADER,
    boot::{DELTAS, MANIFEST, SessionState},
    record::{CODEC_DELTA, RECORD_HEADER_BYTES, Records, encode_ids},
};
use rootstock_catalog::VersionRow;
use rootstock_core::{CHUNK_BYTES, ChunkId, Digest};
use rootstock_image::{
    frame::{Codec, Decoder},
    manifest::{Change, Manifest, diff},
    recipe::{Delta, Rebuilder},
};

use super::{OWN, Site, Transport, bytes, state, token_of};
use crate::{
    app::App,
    pages::{StorePages, manifest},
    recipes::{
        self,
        tests::{add, chunks_of, disk, make_all, older_and_newer},
    },
    sizes,
};

/// A machine that runs `lab:1`, with its session; `lab:2` came since.
struct Fleet {
    site: Site,
    session: String,
    older: Vec<u8>,
    newer: Vec<u8>,
    from: VersionRow,
    to: VersionRow,
}

impl Fleet {
    async fn new() -> Self {
        let site = Site::new().await;
        let (older, newer) = older_and_newer();
        let from = add(&site.app, &older).await;
        site.node(r#"{"image":"lab"}"#).await;
        let script = site.script().await;
        let answer = site.redeem(OWN, Transport::Tls, token_of(&script)).await;
        let SessionState::Open { session, .. } = state(answer).await else {
            panic!("is held")
        };
        let to = add(&site.app, &newer).await;
        Self {
            site,
            session,
            older,
            newer,
            from,
            to,
        }
    }

    async fn fetch(&self, query: &str, ids: &[ChunkId]) -> Response {
        let path = format!("{DELTAS}{query}");
        let ids = encode_ids(ids);
        let answer = self.site.call(Transport::Plain, &path, &self.session, &ids);
        answer.await
    }

    /// Fetches all of these, as a machine does.
    async fn fetch_all(&self, query: &str, ids: &[ChunkId]) -> Vec<u8> {
        let mut all = Vec::new();
        for ids in ids.chunks(64) {
            let answer = self.fetch(query, ids).await;
            assert_eq!(answer.status(), StatusCode::OK);
            all.extend(bytes(answer).await);
        }
        all
    }

    /// What the machine lacks: changed pages, then chunks.
    fn lacks(&self) -> (Vec<ChunkId>, Vec<ChunkId>) {
        let store = &self.site.app.store;
        let read = |row: &VersionRow| manifest(store, row.manifest).expect("is there");
        let (older, newer) = (read(&self.from), read(&self.to));
        let mut pages = Vec::new();
        diff(&older, &newer, &StorePages(store), |change| {
            if let Change::Page { id } = change {
                pages.push(id);
            }
        })
        .expect("is read");
        let chunks = sizes::lacking(store, &older, &newer, |_| {});
        (pages, chunks.expect("is read"))
    }

    /// Makes the chunks of an answer; answers how many were deltas, and the bytes of
    /// deltas and frames.
    fn unpack(&self, body: &[u8], wanted: &[ChunkId]) -> (usize, usize) {
        let (have, expected) = (chunks_of(&self.older), chunks_of(&self.newer));
        let (mut delta_count, mut frame_bytes) = (0, 0);
        let mut ids = Vec::new();
        for record in Records::new(body) {
            let record = record.expect("is whole");
            let raw = if record.codec == CODEC_DELTA {
                delta_count += 1;
                let delta = Delta::decode(record.frame, record.raw_bytes).expect("is a delta");
                let lookup = |id| Ok::<_, Infallible>(have[&id]);
                let raw = Rebuilder::new().rebuild(record.chunk, &delta, lookup);
                raw.expect("is rebuilt")
            } else {
                let codec = Codec::from_byte(record.codec).expect("is known");
                let mut decoder = Decoder::new();
                let raw = decoder.decode(record.chunk, record.raw_bytes, codec, record.frame);
                raw.expect("is a frame")
            };
            assert_eq!(raw, expected[&record.chunk]);
            frame_bytes += record.frame.len();
            ids.push(record.chunk);
        }
        assert_eq!(ids, wanted);
        (delta_count, frame_bytes)
    }
}

#[tokio::test]
async fn the_next_version_comes_as_deltas_of_the_bytes_that_were_predicted() {
    let fleet = Fleet::new().await;
    let app = &fleet.site.app;
    make_all(app).await;
    let recipe = recipes::find(app, &fleet.from, &fleet.to).await;
    let recipe = recipe.expect("answers").expect("was made");
    let report = sizes::compare(&app.store, &fleet.from, &fleet.to, Some(&recipe));
    let report = report.expect("answers");
    let predicted = report.recipe.clone().expect("there is one");

    let path = format!("{MANIFEST}?image=lab&version=2");
    let answer = fleet
        .site
        .call(Transport::Plain, &path, &fleet.session, b"");
    let answer = answer.await;
    assert_eq!(answer.headers()[SEAL_HEADER], fleet.to.seal.as_str());
    let root = bytes(answer).await;
    assert_eq!(
        Manifest::decode(&root).expect("is one").id(),
        fleet.to.manifest
    );

    let (pages, wanted) = fleet.lacks();
    let query = "?from=lab:1&to=lab:2";
    let page_records = fleet.fetch_all(query, &pages).await;
    let records = fleet.fetch_all(query, &wanted).await;
    let (delta_count, frame_bytes) = fleet.unpack(&records, &wanted);
    assert_eq!((delta_count, wanted.len()), (21, 22));
    assert_eq!(predicted.delta_count, 21);
    assert_eq!(predicted.fetch_bytes, frame_bytes as u64);
    let wire_bytes = root.len() + page_records.len() + records.len();
    assert_eq!(predicted.wire_bytes, wire_bytes as u64);
    assert!(predicted.wire_bytes * 3 < report.wire_bytes, "{report:?}");

    // Plainly: without a version that is there, with one that is not, and for what
    // has no recipe.
    for query in [
        "?to=lab:2",
        "?from=lab:7&to=lab:2",
        "?from=attic:1&to=lab:2",
    ] {
        let records = fleet.fetch_all(query, &wanted).await;
        assert_eq!(fleet.unpack(&records, &wanted).0, 0, "{query}");
        let wire_bytes = root.len() + page_records.len() + records.len();
        assert_eq!(report.wire_bytes, wire_bytes as u64);
    }
    assert_eq!(
        records.len(),
        frame_bytes + RECORD_HEADER_BYTES * wanted.len()
    );
}

#[tokio::test]
async fn a_machine_that_is_two_versions_behind_has_a_recipe_made() {
    let fleet = Fleet::new().await;
    let app = &fleet.site.app;
    // Of the newer one's chunks all are different from its own by a block.
    let mut newest = fleet.newer.clone();
    for chunk in newest.chunks_mut(CHUNK_BYTES as usize) {
        chunk[..16].copy_from_slice(b"of the third one");
    }
    let third = add(app, &newest).await;
    make_all(app).await;
    let pairs = async || {
        let rows = app.catalog.recipes().await.expect("answers");
        let pairs = rows.iter().map(|row| format!("{} to {}", row.from, row.to));
        pairs.collect::<Vec<_>>()
    };
    assert_eq!(pairs().await, ["lab:1 to lab:2", "lab:2 to lab:3"]);

    let wanted: Vec<ChunkId> = chunks_of(&newest).into_keys().take(8).collect();
    let deltas = async |query| {
        let body = fleet.fetch_all(query, &wanted).await;
        let records = Records::new(&body).map(|record| record.expect("is whole"));
        records.filter(|record| record.codec == CODEC_DELTA).count()
    };
    // What it does not run is not made for it.
    assert_eq!(deltas("?from=lab:2&to=lab:3").await, 8);
    app.catalog
        .remove_recipe(made_of(app, "lab:2").await)
        .await
        .expect("is removed");
    let _ = deltas("?from=lab:2&to=lab:3").await;
    assert_eq!(recipes::list(app).await.expect("answers").waiting_count, 1);

    assert_eq!(deltas("?from=lab:1&to=lab:3").await, 0);
    assert_eq!(deltas("?from=lab:1&to=lab:3").await, 0);
    assert_eq!(recipes::list(app).await.expect("answers").waiting_count, 2);
    make_all(app).await;
    assert_eq!(recipes::list(app).await.expect("answers").waiting_count, 0);
    assert_eq!(
        pairs().await,
        ["lab:1 to lab:2", "lab:1 to lab:3", "lab:2 to lab:3"]
    );
    assert!(deltas("?from=lab:1&to=lab:3").await > 0);
    assert_eq!(third.number.0, 3);
}

/// The recipe of a version's blocks.
async fn made_of(app: &App, from: &str) -> Digest {
    let rows = app.catalog.recipes().await.expect("answers");
    let row = rows.iter().find(|row| row.from.to_string() == from);
    row.expect("is there").root
}

#[tokio::test]
async fn a_machine_reads_what_it_runs_and_what_comes_next_and_nothing_else() {
    let fleet = Fleet::new().await;
    let app = &fleet.site.app;
    let ids: Vec<_> = chunks_of(&fleet.newer).into_keys().take(1).collect();
    let third = add(app, &disk([7])).await;
    let third_id = ChunkId::of(&disk([7]));
    // The node's image is `lab`, whose newest version is the third one now.
    for (query, ids, status) in [
        ("?to=lab:3", &[third_id][..], StatusCode::OK),
        ("?to=lab:3", &ids, StatusCode::FORBIDDEN),
        ("?to=lab:2", &ids, StatusCode::FORBIDDEN),
        ("?to=attic:1", &ids, StatusCode::FORBIDDEN),
        ("", &[third_id], StatusCode::FORBIDDEN),
        ("?to=lab:1", &[third_id], StatusCode::FORBIDDEN),
        ("?to=a%20b", &ids, StatusCode::BAD_REQUEST),
        ("?to=lab:3", &[third_id; 65], StatusCode::BAD_REQUEST),
    ] {
        let answer = fleet.fetch(query, ids).await;
        assert_eq!(answer.status(), status, "{query}");
    }
    let own: Vec<_> = chunks_of(&fleet.older).into_keys().take(3).collect();
    assert_eq!(fleet.fetch("", &own).await.status(), StatusCode::OK);
    for (query, status) in [
        ("?image=lab&version=1", StatusCode::OK),
        ("?image=lab&version=3", StatusCode::OK),
        ("?image=lab&version=2", StatusCode::FORBIDDEN),
        ("?image=attic&version=1", StatusCode::FORBIDDEN),
        ("?image=lab", StatusCode::BAD_REQUEST),
    ] {
        let path = format!("{MANIFEST}{query}");
        let answer = fleet
            .site
            .call(Transport::Plain, &path, &fleet.session, b"");
        assert_eq!(answer.await.status(), status, "{query}");
    }
    assert_eq!(third.number.0, 3);
}

#[tokio::test]
async fn a_recipe_that_is_lost_while_it_is_sent_is_given_up() {
    let fleet = Fleet::new().await;
    let app = &fleet.site.app;
    make_all(app).await;
    let (_, wanted) = fleet.lacks();
    // Its entries are in memory, and what they name goes.
    let answer = fleet.fetch("?from=lab:1&to=lab:2", &wanted[..1]).await;
    bytes(answer).await;
    let rows = app.catalog.recipes().await.expect("answers");
    let root: Digest = rows[0].root;
    app.catalog.remove_recipe(root).await.expect("is removed");
    crate::collector::run(app, None).await.expect("collects");
    app.catalog.add_recipe(&rows[0]).await.expect("is added");
    let answer = fleet.fetch("?from=lab:1&to=lab:2", &wanted).await;
    let body = axum::body::to_bytes(answer.into_body(), usize::MAX).await;
    assert!(body.is_err(), "it breaks off");
    let records = fleet.fetch_all("?from=lab:1&to=lab:2", &wanted).await;
    assert_eq!(fleet.unpack(&records, &wanted).0, 0);
}
