//! Roots over NFS: what the head is to export, and who waits for it.

use rootstock_api::nfs::{NfsExport, NfsState, NfsWanted};
use rootstock_core::NodeName;

use super::*;
use crate::boot::nfs;

const SETTINGS: &str = r#"{"image":"lab","mode":"nfs"}"#;

async fn site(allowed: bool) -> Site {
    let site = Site::new().await;
    site.image().await;
    site.node(SETTINGS).await;
    let (lab, now) = ("lab".parse().expect("a name"), Timestamp::now());
    let set = site.app.catalog.set_nfs(&lab, allowed, "test", now).await;
    set.expect("is set");
    site
}

async fn exchange(site: &Site, state: NfsState) -> NfsWanted {
    let answer = nfs::exchange(&site.app, state).await;
    answer.map_err(|error| error.0.detail).expect("answers")
}

async fn wanted(site: &Site) -> NfsWanted {
    exchange(site, NfsState::default()).await
}

/// The head says that it exports what is wanted, or why it does not.
async fn tell(site: &Site, trouble: Option<&str>) {
    let export = |want: rootstock_api::NfsWant| NfsExport {
        root: want.root,
        port: 2049,
        clients: want.clients,
        trouble: trouble.map(str::to_owned),
    };
    let exports = wanted(site).await.exports.into_iter().map(export);
    let state = NfsState {
        after: 0,
        exports: Some(exports.collect()),
    };
    exchange(site, state).await;
}

async fn open(site: &Site, token: &str) -> String {
    match state(site.redeem(OWN, Transport::Tls, token).await).await {
        SessionState::Open { session, .. } => session,
        held => panic!("a session is open: {held:?}"),
    }
}

#[tokio::test]
async fn an_image_is_exported_to_the_machine_that_boots_it() {
    let site = site(true).await;
    assert_eq!(wanted(&site).await.exports, []);
    let script = site.script().await;
    let first = wanted(&site).await;
    let [want] = first.exports.as_slice() else {
        panic!("one is wanted: {first:?}");
    };
    assert_eq!(want.root.path(), "/lab/1");
    assert_eq!(
        want.clients,
        ["10.0.0.7".parse::<std::net::IpAddr>().expect("is one")]
    );
    let session = open(&site, token_of(&script)).await;

    // Why it lacks is told at once; the order comes when it is there.
    tell(&site, Some("no loop device")).await;
    let refused = site.call(Transport::Tls, ORDER, &session, &[]).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    let why = String::from_utf8(bytes(refused).await).expect("is text");
    assert!(
        why.contains("lab:1 is not exported over NFS: no loop device"),
        "{why}"
    );
    tell(&site, None).await;
    let response = site.call(Transport::Tls, ORDER, &session, &[]).await;
    assert_eq!(response.status(), StatusCode::OK);
    let order: BootOrder = serde_json::from_slice(&bytes(response).await).expect("an order");
    let place = order.nfs.expect("has a place");
    assert_eq!(
        (place.server.to_string().as_str(), place.port),
        ("10.0.0.1", 2049)
    );
    assert_eq!(order.swarm, None);

    // A boot that is over wants nothing.
    let node: NodeName = "n001".parse().expect("a name");
    let boots = site.app.catalog.boots_of(&node).await.expect("lists");
    let ended = site
        .app
        .catalog
        .end_boot(&boots[0].id, Timestamp::now())
        .await;
    assert!(ended.expect("ends"));
    assert_eq!(wanted(&site).await.exports, []);
}

#[tokio::test]
async fn an_image_that_is_not_allowed_is_wanted_by_nobody() {
    let site = site(false).await;
    let script = site.script().await;
    assert!(
        script.contains("rootstock image set lab --nfs yes"),
        "{script}"
    );
    assert!(!script.contains("rootstock.token="), "{script}");
    assert_eq!(wanted(&site).await.exports, []);
}

#[tokio::test]
async fn nothing_is_exported_to_a_machine_that_waits_for_approval() {
    let site = Site::new().await;
    site.image().await;
    let (lab, now) = ("lab".parse().expect("a name"), Timestamp::now());
    site.app
        .catalog
        .set_nfs(&lab, true, "test", now)
        .await
        .expect("is set");
    // It registers itself, held; then it is said what it is to run.
    site.script().await;
    let nodes = site.app.catalog.nodes().await.expect("lists");
    let names = [nodes[0].name.clone()];
    let settings = |row: &mut rootstock_catalog::NodeRow| row.settings = SETTINGS.to_owned();
    let keep = rootstock_catalog::Pass::Keep;
    let changed = site.app.catalog.update_nodes(&names, keep, settings).await;
    changed.expect("is changed");
    let script = site.script().await;
    let token = token_of(&script).to_owned();
    assert_eq!(wanted(&site).await.exports, []);
    let approved = site
        .app
        .catalog
        .approve_nodes(&names, Timestamp::now())
        .await;
    approved.expect("is approved");
    let session = open(&site, &token).await;
    let order = site.call(Transport::Tls, ORDER, &session, &[]);
    // It asks for its order, and the head hears of it.
    let (answer, ()) = tokio::join!(order, async {
        while wanted(&site).await.exports.is_empty() {
            tokio::task::yield_now().await;
        }
        tell(&site, None).await;
    });
    assert_eq!(answer.status(), StatusCode::OK);
}
