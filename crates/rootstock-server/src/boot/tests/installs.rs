//! A node that has its image on its own disk: what it is told, and what never happens to it.

use rootstock_api::{
    boot::NodeReport,
    install::{InstallReport, InstallState},
};
use rootstock_core::NodeName;

use super::*;

const INSTALL: &str = r#"{"image":"lab:1","mode":"install","install_disk":"/dev/sda"}"#;

fn n001() -> NodeName {
    "n001".parse().expect("a name")
}

async fn site() -> Site {
    let site = Site::new().await;
    site.version(1).await;
    site.version(2).await;
    site.node(INSTALL).await;
    site
}

/// The machine boots from the network, until its first stage runs; its session.
async fn boots(site: &Site, query: &str) -> String {
    let (_, script) = site.get(&format!("/boot/ipxe/{MAC}{query}")).await;
    let open = state(site.redeem(OWN, Transport::Tls, token_of(&script)).await).await;
    let told = Told::new(BootStep::FirstStage, "");
    let mac: MacAddress = MAC.parse().expect("a MAC");
    site.app.boot.transcripts.step(mac, told);
    match open {
        SessionState::Open { session, .. } => session,
        SessionState::Held { .. } => panic!("is held"),
    }
}

/// The machine's order: whether it is to lay the version out.
async fn lays(site: &Site, session: &str) -> bool {
    let order = site.call(Transport::Tls, ORDER, session, b"").await;
    assert_eq!(order.status(), StatusCode::OK);
    let order: BootOrder = serde_json::from_slice(&bytes(order).await).expect("an order");
    let disk = order.install.as_ref().and_then(|one| one.disk.as_ref());
    assert!(disk.is_none_or(|disk| disk.as_str() == "/dev/sda"));
    order.install.is_some()
}

async fn reports(site: &Site, session: &str, state: InstallState) {
    let report = NodeReport {
        install: Some(InstallReport {
            state,
            device: "/dev/sda\u{1b}".to_owned(),
            ..InstallReport::default()
        }),
        ..NodeReport::default()
    };
    let body = serde_json::to_vec(&report).expect("is JSON");
    let answer = site.call(Transport::Tls, REPORT, session, &body).await;
    assert_eq!(answer.status(), StatusCode::OK);
}

async fn set(site: &Site, settings: &str) {
    let edit = |row: &mut rootstock_catalog::NodeRow| settings.clone_into(&mut row.settings);
    let pass = rootstock_catalog::Pass::Keep;
    let names = [n001()];
    let changed = site.app.catalog.update_nodes(&names, pass, edit);
    changed.await.expect("is changed");
}

async fn installed(site: &Site) -> Option<String> {
    let row = site.app.catalog.installation(&n001()).await;
    row.expect("reads").map(|row| row.version.to_string())
}

/// As if the newest boot had begun long ago.
async fn has_run_long(site: &Site) {
    let long_ago = Timestamp::now() - jiff::SignedDuration::from_hours(1);
    site.says("own-disk", long_ago, None, "").await;
}

#[tokio::test]
async fn what_is_installed_starts_from_its_disk_until_another_version_is_assigned() {
    let site = site().await;
    let session = boots(&site, "").await;
    assert!(lays(&site, &session).await);
    reports(&site, &session, InstallState::Laying).await;
    assert_eq!(installed(&site).await, None);
    // A machine that starts anew meanwhile goes on from the network.
    let session = boots(&site, "").await;
    assert!(lays(&site, &session).await);
    reports(&site, &session, InstallState::Laying).await;
    reports(&site, &session, InstallState::Installed).await;
    assert_eq!(installed(&site).await.as_deref(), Some("lab:1"));

    let script = site.script().await;
    assert!(
        script.contains("sanboot --no-describe --drive 0x80"),
        "{script}"
    );
    assert!(script.contains(&format!("/boot/ipxe/{MAC}?disk=failed")));
    // The session of before is over, and nobody judges a boot that tells nothing.
    let old = site.call(Transport::Tls, ORDER, &session, b"").await;
    assert_eq!(old.status(), StatusCode::UNAUTHORIZED);
    let boots_of = site.app.catalog.boots_of(&n001()).await.expect("lists");
    let judged = site.app.catalog.boots_to_judge(None).await.expect("lists");
    assert!(judged.iter().all(|facts| facts.boot != boots_of[0].id));

    has_run_long(&site).await;
    let (_, script) = site.get(&format!("/boot/grub/{MAC}")).await;
    assert!(script.ends_with("exit\n"), "{script}");
    has_run_long(&site).await;
    set(&site, &INSTALL.replace("lab:1", "lab:2")).await;
    let session = boots(&site, "").await;
    assert!(lays(&site, &session).await);
    // Until it writes, the disk has what it had.
    assert_eq!(installed(&site).await.as_deref(), Some("lab:1"));
    reports(&site, &session, InstallState::Waiting).await;
    assert_eq!(installed(&site).await.as_deref(), Some("lab:1"));
    reports(&site, &session, InstallState::Laying).await;
    assert_eq!(installed(&site).await, None);
}

#[tokio::test]
async fn a_disk_that_does_not_start_is_left_alone_and_the_machine_boots() {
    let site = site().await;
    let session = boots(&site, "").await;
    reports(&site, &session, InstallState::Laying).await;
    reports(&site, &session, InstallState::Installed).await;
    // BIOS says that the disk did not start.
    assert!(site.script().await.contains("sanboot"));
    let session = boots(&site, "?disk=failed").await;
    assert!(!lays(&site, &session).await);
    assert_eq!(installed(&site).await.as_deref(), Some("lab:1"));
    // UEFI comes back by itself.
    assert!(site.script().await.contains("sanboot"));
    site.says("own-disk", Timestamp::now(), None, "").await;
    let session = boots(&site, "").await;
    assert!(!lays(&site, &session).await);

    // It is asked for anew, and the mode decides.
    let forgotten = site.app.catalog.forget_installations(&[n001()]).await;
    assert_eq!(forgotten.expect("is there"), [n001()]);
    let session = boots(&site, "").await;
    assert!(lays(&site, &session).await);
    set(&site, r#"{"image":"lab:1"}"#).await;
    reports(&site, &session, InstallState::Laying).await;
    reports(&site, &session, InstallState::Installed).await;
    let session = boots(&site, "").await;
    assert!(!lays(&site, &session).await);
}
