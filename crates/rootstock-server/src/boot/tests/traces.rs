//! Boot traces and boot packs, by a machine's requests.

use rootstock_api::boot::{BOOT_PACK, COVERAGE_HEADER, PACK_IDS_MAX, TRACE};
use rootstock_api::record::encode_ids;
use rootstock_catalog::TRACE_CLASS_ALL;
use rootstock_core::{ByteRange, VersionSelector, VersionSpec};
use rootstock_image::trace::{Trace, TraceBuilder};

use super::*;
use crate::{stop::Stop, traces};

const DISK_BYTES: u64 = 1 << 18;

/// The trace of a boot that read one block.
fn trace(block: u64, disk_bytes: u64) -> Trace {
    let mut builder = TraceBuilder::new(disk_bytes);
    builder.read(ByteRange::new(block * 4096, 4096));
    builder.finish()
}

impl Site {
    async fn session(&self) -> String {
        let script = self.script().await;
        let token = token_of(&script).to_owned();
        match state(self.redeem(OWN, Transport::Tls, &token).await).await {
            SessionState::Open { session, .. } => session,
            SessionState::Held { message, .. } => panic!("is held: {message}"),
        }
    }

    async fn tell(&self, session: &str, trace: &Trace, coverage: &str) -> StatusCode {
        let mut request = Request::post(TRACE);
        if !coverage.is_empty() {
            request = request.header(COVERAGE_HEADER, coverage);
        }
        let request = request
            .header(header::AUTHORIZATION, format!("Bearer {session}"))
            .body(Body::from(trace.encode()))
            .expect("a request");
        self.send(OWN, Transport::Plain, request).await.status()
    }

    async fn row(&self, number: u32) -> VersionRow {
        let spec = VersionSpec {
            image: "lab".parse().expect("a name"),
            selector: VersionSelector::Number(rootstock_core::VersionNumber(number)),
        };
        self.app.catalog.resolve(&spec).await.expect("is there")
    }
}

#[tokio::test]
async fn a_boot_is_learnt_from_once_and_later_ones_are_told() {
    let site = Site::new().await;
    let chunk = site.image().await;
    site.node(r#"{"image":"lab"}"#).await;
    let session = site.session().await;
    let none = site.call(Transport::Plain, TRACE, &session, b"").await;
    assert_eq!(none.status(), StatusCode::NO_CONTENT);
    assert_eq!(
        traces::boot_set(&site.app, &site.row(1).await)
            .await
            .expect("looks"),
        None
    );

    for (told, coverage, status) in [
        (trace(0, 4096), "", StatusCode::BAD_REQUEST),
        (trace(3, DISK_BYTES), "1001", StatusCode::BAD_REQUEST),
        (trace(3, DISK_BYTES), "much", StatusCode::BAD_REQUEST),
        (trace(3, DISK_BYTES), "", StatusCode::NO_CONTENT),
        // The same boot again teaches nothing.
        (trace(9, DISK_BYTES), "", StatusCode::NO_CONTENT),
    ] {
        assert_eq!(
            site.tell(&session, &told, coverage).await,
            status,
            "{coverage}"
        );
    }
    let garbage = site
        .call(Transport::Plain, TRACE, &session, b"no trace")
        .await;
    assert_eq!(garbage.status(), StatusCode::BAD_REQUEST);

    let session = site.session().await;
    let given = site.call(Transport::Plain, TRACE, &session, b"").await;
    assert_eq!(given.status(), StatusCode::OK);
    let given = Trace::decode(&bytes(given).await).expect("is a trace");
    assert_eq!(given, trace(3, DISK_BYTES));
    let set = traces::boot_set(&site.app, &site.row(1).await).await;
    let set = set.expect("looks").expect("is known");
    let frame_bytes = u64::from(site.app.store.frame_bytes(chunk).expect("is there"));
    assert_eq!((set.chunk_count, set.raw_bytes), (1, DISK_BYTES));
    assert_eq!(
        (set.frame_bytes, set.boots, set.source),
        (frame_bytes, 1, None)
    );
    // A second boot counts too.
    assert_eq!(
        site.tell(&session, &trace(9, DISK_BYTES), "0").await,
        StatusCode::NO_CONTENT
    );
    let rows = site
        .app
        .catalog
        .traces(
            &"lab".parse().expect("a name"),
            rootstock_core::VersionNumber(1),
        )
        .await;
    let rows = rows.expect("lists");
    let names: Vec<_> = rows
        .iter()
        .map(|row| (row.hardware.as_str(), row.boots))
        .collect();
    assert_eq!(names, [(TRACE_CLASS_ALL, 2), ("unknown", 2)]);
    assert_eq!(
        Trace::decode(&rows[1].trace).expect("is one").block_count(),
        2
    );
}

#[tokio::test]
async fn a_boot_pack_is_sent_in_the_order_that_was_asked_for() {
    let site = Site::new().await;
    let chunks = site.version_of(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]).await;
    site.node(r#"{"image":"lab"}"#).await;
    let session = site.session().await;
    let asked: Vec<_> = chunks.iter().rev().copied().cycle().take(37).collect();
    let chunk = chunks[0];
    let response = site
        .call(Transport::Plain, BOOT_PACK, &session, &encode_ids(&asked))
        .await;
    assert_eq!(response.status(), StatusCode::OK);
    let announced = response.headers()[header::CONTENT_LENGTH].clone();
    let body = bytes(response).await;
    assert_eq!(announced, body.len().to_string());
    let got: Vec<_> = Records::new(&body)
        .map(|record| record.expect("is whole").chunk)
        .collect();
    assert_eq!(got, asked);

    let secret = site
        .app
        .store
        .put_raw(b"another image's")
        .expect("is stored");
    let many = vec![chunk; PACK_IDS_MAX + 1];
    for (ids, status) in [
        (vec![chunk, secret], StatusCode::FORBIDDEN),
        (many, StatusCode::BAD_REQUEST),
    ] {
        let response = site
            .call(Transport::Plain, BOOT_PACK, &session, &encode_ids(&ids))
            .await;
        assert_eq!(response.status(), status, "{} ids", ids.len());
    }
    let response = site
        .call(
            Transport::Plain,
            BOOT_PACK,
            &session,
            &encode_ids(&vec![chunk; PACK_IDS_MAX]),
        )
        .await;
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_new_version_begins_with_its_parents_trace() {
    let site = Site::new().await;
    site.image().await;
    site.node(r#"{"image":"lab:1"}"#).await;
    site.version(8).await;
    let session = site.session().await;
    assert_eq!(
        site.tell(&session, &trace(3, DISK_BYTES), "").await,
        StatusCode::NO_CONTENT
    );
    // The versions were there before: a daemon that starts finds what is lacking.
    site.version(9).await;
    for number in [2, 3] {
        assert_eq!(
            traces::boot_set(&site.app, &site.row(number).await)
                .await
                .expect("looks"),
            None
        );
    }
    let (stop, stopped) = Stop::new();
    let working = tokio::spawn(traces::work(Arc::clone(&site.app), stopped));
    for number in [2, 3] {
        let row = site.row(number).await;
        let set = loop {
            if let Some(set) = traces::boot_set(&site.app, &row).await.expect("looks") {
                break set;
            }
            site.app.traces.carry_soon();
            tokio::task::yield_now().await;
        };
        assert_eq!((set.chunk_count, set.boots), (1, 0));
        assert_eq!(set.source.expect("is carried over").to_string(), "lab:1");
    }
    stop.send_replace(true);
    working.await.expect("stops");
}
