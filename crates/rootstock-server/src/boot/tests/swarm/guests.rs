//! Orders for strangers: who is given them, and what they have.

use rootstock_api::{boot::CacheChoice, guest::GUEST_ORDER, guest::GuestOrder, local::LOCAL_FILE};

use super::*;

/// A site whose machine has these settings, and its session.
async fn lab(settings: &str) -> (Site, String) {
    let site = Site::new().await;
    let keys = tempfile::tempdir().expect("a directory");
    authority_pem(keys.path()).expect("is made");
    let authority = PeerAuthority::open(keys.path()).expect("opens");
    site.app.boot.swarm.set_authority(authority);
    site.image().await;
    site.node(settings).await;
    let session = session(&site, MAC, OWN).await;
    (site, session)
}

async fn ask(site: &Site, session: &str, path: &str) -> Response {
    site.call(Transport::Plain, path, session, &[]).await
}

#[tokio::test]
async fn who_boots_others_gets_an_order_without_anything_of_its_own() {
    let settings = r#"{"image":"lab","swarm":"tls","boots_others":true,"console":"ttyS0",
        "cache":"auto","keep":["/home"],"rescue_shell":true}"#;
    let (site, session) = lab(settings).await;
    let words = "?image=lab&version=1";
    let answer = ask(&site, &session, &format!("{GUEST_ORDER}{words}")).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let body = bytes(answer).await;
    let text = String::from_utf8(body.clone()).expect("text");
    assert!(!text.contains(&session) && !text.contains("n001"), "{text}");
    let guest: GuestOrder = serde_json::from_slice(&body).expect("an order");
    let order = &guest.order;
    assert_eq!((order.node.as_str(), order.boot.as_str()), ("guest", ""));
    assert_eq!((&order.cache, order.keep.len()), (&CacheChoice::None, 0));
    assert_eq!(order.identity, Default::default());
    assert!(!order.rescue_shell);
    assert_eq!(guest.arguments, ["net.ifnames=0", "console=ttyS0"]);
    let left = guest.until_seconds - Timestamp::now().as_second();
    assert!((13 * 86_400..=14 * 86_400).contains(&left), "{left}");
    let own = guest.credentials.expect("a certificate");
    CertificateDer::from_pem_slice(own.certificate_pem.as_bytes()).expect("is one");
    let again = bytes(ask(&site, &session, &format!("{GUEST_ORDER}{words}")).await).await;
    let again: GuestOrder = serde_json::from_slice(&again).expect("an order");
    assert!(again.credentials == Some(own), "it is the same for a day");
    for file in [&guest.kernel, &guest.first_stage] {
        let path = format!("{LOCAL_FILE}{words}&name={}", file.name);
        let given = bytes(ask(&site, &session, &path).await).await;
        assert_eq!(Digest::of(&given), file.digest);
    }
}

#[tokio::test]
async fn nobody_else_gets_one() {
    for settings in [
        r#"{"image":"lab","swarm":"tls"}"#,
        r#"{"image":"lab","boots_others":true}"#,
    ] {
        let (site, session) = lab(settings).await;
        let path = format!("{GUEST_ORDER}?image=lab&version=1");
        let answer = ask(&site, &session, &path).await;
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{settings}");
    }
}
