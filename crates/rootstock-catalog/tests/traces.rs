//! Traces of versions: what is kept of them, and how long.

use jiff::Timestamp;
use rootstock_catalog::{Catalog, NewVersion, TRACE_BOOTS_MAX, TraceRow};
use rootstock_core::{Digest, ImageName, VersionNumber};

fn lab() -> ImageName {
    "lab".parse().expect("a name")
}

async fn version(catalog: &Catalog, manifest: &str) {
    let new = NewVersion {
        image: lab(),
        manifest: Digest::of(manifest.as_bytes()),
        disk_bytes: 1 << 30,
        used_bytes: 1,
        added_chunks: 1,
        added_bytes: 1,
        parent: None,
        source: "disk.raw".to_owned(),
        message: None,
        facts: "{}".to_owned(),
        tag: None,
        event: "imported",
        actor: "local".to_owned(),
        import: None,
    };
    let added = catalog.add_version(new, Timestamp::UNIX_EPOCH, |_| String::new());
    added.await.expect("is added");
}

fn row(hardware: &str, boots: u64, trace: &[u8]) -> TraceRow {
    TraceRow {
        hardware: hardware.to_owned(),
        boots,
        source: None,
        trace: trace.to_vec(),
    }
}

#[tokio::test]
async fn traces_are_kept_by_class_and_go_with_their_version() {
    let dir = tempfile::tempdir().expect("a directory");
    let catalog = Catalog::open(&dir.path().join("c.sqlite"))
        .await
        .expect("opens");
    let (lab, first) = (lab(), VersionNumber(1));
    let now = Timestamp::UNIX_EPOCH;
    version(&catalog, "one").await;
    version(&catalog, "two").await;
    assert_eq!(
        catalog.trace(&lab, first, "dell").await.expect("looks"),
        None
    );
    assert!(catalog.versions_to_trace().await.expect("looks").is_empty());
    let mut all = row("", 1, b"all");
    for boot in 1..=TRACE_BOOTS_MAX + 3 {
        let rows = [all.clone(), row("dell", boot.into(), b"dell")];
        let boot = Some(("dell", &[boot as u8][..]));
        let put = catalog.put_traces(&lab, first, &rows, boot, now).await;
        put.expect("is kept");
    }
    let boots = catalog
        .trace_boots(&lab, first, "dell")
        .await
        .expect("lists");
    assert_eq!(boots, (4..12).map(|boot| vec![boot]).collect::<Vec<_>>());
    // A class has its own; another has that of all together.
    for (hardware, expected) in [("dell", &b"dell"[..]), ("hp", b"all"), ("", b"all")] {
        let found = catalog.trace(&lab, first, hardware).await.expect("looks");
        assert_eq!(found.expect("is there").trace, expected, "{hardware}");
    }
    // The second was made from the first, and has none.
    let lacking = catalog.versions_to_trace().await.expect("looks");
    assert_eq!(
        lacking.iter().map(|row| row.number.0).collect::<Vec<_>>(),
        [2]
    );
    all.source = Some("lab:1".parse().expect("a version"));
    let rows = [all.clone()];
    let put = catalog.put_traces(&lab, VersionNumber(2), &rows, None, now);
    put.await.expect("is kept");
    assert_eq!(
        catalog.traces(&lab, VersionNumber(2)).await.expect("lists"),
        [all.clone()]
    );
    assert!(catalog.versions_to_trace().await.expect("looks").is_empty());

    catalog
        .delete_version(&lab, first, "local", now)
        .await
        .expect("goes");
    assert!(catalog.traces(&lab, first).await.expect("lists").is_empty());
    assert!(
        catalog
            .trace_boots(&lab, first, "dell")
            .await
            .expect("lists")
            .is_empty()
    );
    let late = catalog.put_traces(&lab, first, &[all], None, now).await;
    assert!(late.is_err());
}
