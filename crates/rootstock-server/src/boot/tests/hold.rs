//! Machines with a system of their own, which hold an image for others.

use axum::http::StatusCode;
use rootstock_api::boot::{BootOrder, NodeMode, ORDER, SessionState};
use rootstock_api::swarm::SwarmMode;

use super::{MAC, OWN, Site, Transport, bytes, state};

#[tokio::test]
async fn a_holder_starts_by_itself_and_is_told_what_to_hold() {
    let site = Site::new().await;
    site.image().await;
    site.node(r#"{"image":"lab","mode":"hold","swarm":"tls"}"#)
        .await;
    let (status, script) = site.get(&format!("/boot/ipxe/{MAC}")).await;
    assert_eq!(status, StatusCode::OK);
    assert!(!script.contains("rootstock.token="), "{script}");
    let (status, token) = site.get(&format!("/boot/hold/{MAC}")).await;
    assert_eq!(status, StatusCode::OK);
    let answer = site.redeem(OWN, Transport::Tls, token.trim()).await;
    let SessionState::Open { session, .. } = state(answer).await else {
        panic!("is held");
    };
    let answer = site.call(Transport::Tls, ORDER, &session, &[]).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let order: BootOrder = serde_json::from_slice(&bytes(answer).await).expect("an order");
    assert_eq!(order.mode, NodeMode::Hold);
    assert_eq!(order.boot, session);
    assert_eq!((order.image.as_str(), order.version.0), ("lab", 1));
    assert_eq!(order.swarm.expect("is in it").mode, SwarmMode::Tls);
    // What a machine is that boots from us is nothing of its.
    assert_eq!(order.identity, Default::default());
}

#[tokio::test]
async fn others_are_not_to_hold_anything() {
    let site = Site::new().await;
    site.image().await;
    site.node(r#"{"image":"lab"}"#).await;
    let (status, why) = site.get(&format!("/boot/hold/{MAC}")).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(why.contains("--mode hold"), "{why}");
    let (status, _) = site.get("/boot/hold/elsewhere").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}
