//! Versions that a machine does not come up with, and the one that it goes back to.

use rootstock_api::Settings;
use rootstock_core::NodeName;

use super::*;
use crate::boot::health;

fn n001() -> NodeName {
    "n001".parse().expect("a name")
}

/// A site with `lab:1` and `lab:2`, and a machine that came up with `lab:1`.
async fn site() -> Site {
    let site = Site::new().await;
    site.version(1).await;
    site.version(2).await;
    site.node(r#"{"image":"lab:1"}"#).await;
    assert_eq!(boots(&site).await, "lab:1");
    says(&site, "up", Some(5), "").await;
    assert_eq!(boots(&site).await, "lab:1");
    set(&site, r#"{"image":"lab:2"}"#).await;
    site
}

/// The machine boots until its first stage has a session; answers the version.
async fn boots(site: &Site) -> String {
    let mac: MacAddress = MAC.parse().expect("a MAC");
    let told = Told::new(BootStep::FirstStage, "");
    let script = site.script().await;
    let open = state(site.redeem(OWN, Transport::Tls, token_of(&script)).await).await;
    assert!(matches!(open, SessionState::Open { .. }));
    site.app.boot.transcripts.step(mac, told);
    let boots = site.app.catalog.boots_of(&n001()).await.expect("lists");
    crate::nodes::image_of(&boots[0])
        .expect("has one")
        .to_string()
}

/// The catalog hears of a step of the newest boot.
async fn says(site: &Site, step: &str, uptime_ms: Option<u64>, detail: &str) {
    site.says(step, Timestamp::now(), uptime_ms, detail).await;
}

async fn set(site: &Site, settings: &str) {
    let edit = |row: &mut rootstock_catalog::NodeRow| settings.clone_into(&mut row.settings);
    let pass = rootstock_catalog::Pass::Keep;
    let names = [n001()];
    let changed = site.app.catalog.update_nodes(&names, pass, edit);
    changed.await.expect("is changed");
}

/// Why the machine goes back, if it does, after all boots are judged.
async fn reason(site: &Site) -> Option<String> {
    health::judge_all(&site.app).await;
    let rows = site.app.catalog.version_health(&n001()).await;
    let lab = "lab:2".parse().expect("a version");
    let assigned = site.app.catalog.resolve(&lab).await.expect("is there");
    let abandoned = health::abandoned(&rows.expect("reads"), &Settings::default(), &assigned)?;
    assert_eq!(abandoned.instead.expect("has one").to_string(), "lab:1");
    Some(abandoned.reason)
}

#[tokio::test]
async fn a_version_that_fails_is_abandoned_until_it_is_tried_again() {
    let site = site().await;
    assert_eq!(boots(&site).await, "lab:2");
    says(&site, "failed", Some(900), "no init").await;
    assert_eq!(reason(&site).await.as_deref(), Some("it failed: no init"));
    assert_eq!(boots(&site).await, "lab:1");
    let boots_of = site.app.catalog.boots_of(&n001()).await.expect("lists");
    let transcripts = &site.app.boot.transcripts;
    let mut news = transcripts.watch();
    assert_eq!(boots(&site).await, "lab:1");
    let script = std::iter::from_fn(|| news.try_recv().ok())
        .find(|news| news.step == BootStep::ScriptServed)
        .expect("is told");
    assert_eq!(
        script.detail,
        "lab:1, since lab:2 is abandoned here (it failed: no init): set another image, or try it \
         again with `rootstock node retry n001`"
    );
    assert_eq!(boots_of.len(), 4);

    // What it goes back to is held, though nobody names it.
    let lab = "lab".parse().expect("a name");
    let one = rootstock_core::VersionNumber(1);
    let deleted = site
        .app
        .catalog
        .delete_version(&lab, one, "x", Timestamp::now());
    assert!(deleted.await.is_err());

    let names = [n001()];
    let forgotten = site.app.catalog.forget_failures(&names).await;
    assert_eq!(forgotten.expect("forgets"), [n001()]);
    assert_eq!(boots(&site).await, "lab:2");
    says(&site, "up", Some(5), "").await;
    assert_eq!(reason(&site).await, None);
    // From now on its failures are no reason to leave it.
    assert_eq!(boots(&site).await, "lab:2");
    assert_eq!(boots(&site).await, "lab:2");
    assert_eq!(reason(&site).await, None);
}

#[tokio::test]
async fn starting_anew_before_it_is_up_is_a_failure_and_another_version_is_tried() {
    let site = site().await;
    assert_eq!(boots(&site).await, "lab:2");
    // What the server guesses is none.
    says(&site, "failed", None, "nothing for 120 s").await;
    assert_eq!(reason(&site).await, None);
    assert_eq!(boots(&site).await, "lab:1");
    let anew = "the machine started anew before it was up";
    assert_eq!(reason(&site).await.as_deref(), Some(anew));
    site.version(3).await;
    set(&site, r#"{"image":"lab"}"#).await;
    assert_eq!(boots(&site).await, "lab:3");
}

#[tokio::test]
async fn a_script_that_is_fetched_again_is_the_same_boot() {
    let site = site().await;
    site.script().await;
    site.script().await;
    assert_eq!(reason(&site).await, None);
    assert_eq!(boots(&site).await, "lab:2");
}

#[tokio::test]
async fn a_limit_that_passed_while_no_daemon_ran_has_passed() {
    let site = site().await;
    set(&site, r#"{"image":"lab:2","boot_limit":"1s"}"#).await;
    assert_eq!(boots(&site).await, "lab:2");
    let boots_of = site.app.catalog.boots_of(&n001()).await.expect("lists");
    while reason(&site).await.is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        reason(&site).await.as_deref(),
        Some("it was not up within 1 s")
    );
    // The transcript says so too.
    let (_, steps) = site
        .app
        .catalog
        .boot_transcript(&boots_of[0].id)
        .await
        .expect("reads");
    let last = steps.last().expect("has one");
    assert_eq!(
        (last.step.as_str(), last.detail.as_str()),
        ("failed", "it was not up within 1 s")
    );
    // Late is better than never.
    says(&site, "up", Some(9), "").await;
    assert_eq!(reason(&site).await, None);
    assert_eq!(boots(&site).await, "lab:2");
}
