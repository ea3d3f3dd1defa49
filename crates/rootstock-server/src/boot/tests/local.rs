//! What a machine is given to start from its own disk.

use axum::{http::StatusCode, response::Response};
use ed25519_dalek::{Signature, Verifier as _};
use rootstock_api::{
    boot::{ORDER_SIGNATURE_HEADER, SessionState},
    local::{LOCAL_FILE, LOCAL_ORDER, LocalOrder},
};
use rootstock_core::Digest;

use super::{MAC, OWN, Site, Transport, bytes, state, token_of};

async fn ask(site: &Site, session: &str, path: &str) -> Response {
    site.call(Transport::Plain, path, session, &[]).await
}

async fn session(site: &Site) -> String {
    let script = site.script().await;
    let answer = site.redeem(OWN, Transport::Tls, token_of(&script)).await;
    match state(answer).await {
        SessionState::Open { session, .. } => session,
        SessionState::Held { .. } => panic!("is held"),
    }
}

#[tokio::test]
async fn a_local_order_is_signed_and_has_nothing_secret() {
    let site = Site::new().await;
    site.image().await;
    site.node(r#"{"image":"lab","console":"ttyS0"}"#).await;
    let session = session(&site).await;
    let words = "?image=lab&version=1";
    let answer = ask(&site, &session, &format!("{LOCAL_ORDER}{words}")).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let signature = answer.headers()[ORDER_SIGNATURE_HEADER]
        .to_str()
        .expect("text");
    let digits = signature.as_bytes().chunks_exact(2);
    let signature: Vec<u8> = digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("text"), 16).expect("hex"))
        .collect();
    let body = bytes(answer).await;
    let signature = Signature::from_slice(&signature).expect("a signature");
    let key = site.app.key.verifying_key();
    key.verify(&body, &signature).expect("the site's");
    let text = String::from_utf8(body.clone()).expect("text");
    assert!(
        !text.contains(&session) && !text.contains("PRIVATE KEY"),
        "{text}"
    );
    let local: LocalOrder = serde_json::from_slice(&body).expect("an order");
    assert_eq!(local.order.boot, "");
    assert_eq!(local.order.identity, Default::default());
    assert_eq!(local.arguments, ["net.ifnames=0", "console=ttyS0"]);
    for file in [&local.kernel, &local.first_stage] {
        let path = format!("{LOCAL_FILE}{words}&name={}", file.name);
        let given = bytes(ask(&site, &session, &path).await).await;
        assert_eq!(given.len() as u64, file.len_bytes);
        assert_eq!(Digest::of(&given), file.digest);
    }
    for (path, expected) in [
        (
            format!("{LOCAL_ORDER}?image=lab&version=2"),
            StatusCode::FORBIDDEN,
        ),
        (
            format!("{LOCAL_FILE}{words}&name=shadow"),
            StatusCode::NOT_FOUND,
        ),
        (LOCAL_ORDER.to_owned(), StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(
            ask(&site, &session, &path).await.status(),
            expected,
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_machine_without_a_cache_has_no_local_order() {
    let site = Site::new().await;
    site.image().await;
    site.node(r#"{"image":"lab","mode":"ram"}"#).await;
    let session = session(&site).await;
    let answer = ask(
        &site,
        &session,
        &format!("{LOCAL_ORDER}?image=lab&version=1"),
    )
    .await;
    assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let text = String::from_utf8(bytes(answer).await).expect("text");
    assert!(text.contains("mode"), "{text}");
}

#[tokio::test]
async fn a_machine_that_started_by_itself_gets_a_token_for_what_it_is_to_run() {
    let site = Site::new().await;
    site.image().await;
    site.node(r#"{"image":"lab"}"#).await;
    let path = |runs: &str| format!("/boot/local/{MAC}?runs={runs}");
    for (runs, expected) in [
        ("lab:2", StatusCode::CONFLICT),
        ("lab", StatusCode::CONFLICT),
        ("", StatusCode::NOT_FOUND),
    ] {
        assert_eq!(site.get(&path(runs)).await.0, expected, "{runs}");
    }
    let (_, why) = site.get(&path("lab:2")).await;
    assert!(why.contains("is to run lab:1"), "{why}");
    // The number is the same, and the version is not.
    let manifest = |of: &[u8]| format!("lab:1&manifest={}", Digest::of(of));
    let (status, why) = site.get(&path(&manifest(b"other"))).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(why.contains("another lab:1"), "{why}");
    assert_eq!(
        site.get(&path("lab:1&manifest=x")).await.0,
        StatusCode::NOT_FOUND
    );
    let (status, token) = site.get(&path("lab:1")).await;
    assert_eq!(status, StatusCode::OK);
    let answer = site.redeem(OWN, Transport::Tls, token.trim()).await;
    assert!(matches!(state(answer).await, SessionState::Open { .. }));
}
