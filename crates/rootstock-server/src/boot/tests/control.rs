//! Machines that wait to be told what holds, and what they say of their disks.

use std::time::{Duration, Instant};

use jiff::{Zoned, civil};
use rootstock_api::{
    NodeEvent, Setting,
    boot::{
        CONTROL, DiskCacheReport, NextReport, NodeControl, NodeReport, RebootOrder, StartReport,
    },
};
use rootstock_catalog::{NewProfile, Pass, RebootKind};
use rootstock_core::{ImageName, TagName, VersionNumber, VersionSelector};

use super::*;
use crate::boot::{clock::SiteClock, control::tests::central_europe};

/// A hold that ends before a test is slow.
const SHORT: Duration = Duration::from_millis(50);

/// A hold that no test sits out.
const LONG: Duration = Duration::from_secs(600);

/// A site with a machine that runs `lab@live`, and its session.
async fn running(prepare: impl FnOnce(&mut App)) -> (Arc<Site>, String) {
    let site = Site::with(prepare).await;
    site.image().await;
    tag(&site, 1).await;
    let room = NewProfile {
        name: "room".parse().expect("a name"),
        parent: None,
        settings: "{}".to_owned(),
        image: None,
    };
    let added = site.app.catalog.add_profile(&room, Timestamp::now()).await;
    added.expect("is added");
    site.node(r#"{"image":"lab@live"}"#).await;
    let script = site.script().await;
    let open = state(site.redeem(OWN, Transport::Tls, token_of(&script)).await).await;
    let SessionState::Open { session, .. } = open else {
        panic!("is held")
    };
    (Arc::new(site), session)
}

async fn tag(site: &Site, version: u32) {
    let (image, tag): (ImageName, TagName) = (
        "lab".parse().expect("a name"),
        "live".parse().expect("a tag"),
    );
    let selector = VersionSelector::Number(VersionNumber(version));
    let set = site
        .app
        .catalog
        .set_tag(&image, &tag, &selector, "test", Timestamp::now());
    set.await.expect("is set");
    site.app.nodes.note_version_change();
}

/// Sets something on the machine as an administrator does.
async fn set(site: &Site, setting: Setting, value: &str) {
    let names = ["n001".parse().expect("a name")];
    let edit = |row: &mut rootstock_catalog::NodeRow| {
        let mut settings = crate::nodes::read_settings(&row.settings).expect("reads");
        settings.set_text(setting, value).expect("reads");
        row.settings = crate::nodes::write_settings(&settings).expect("writes");
    };
    let changed = site.app.catalog.update_nodes(&names, Pass::Keep, edit);
    changed.await.expect("is changed");
    site.app.nodes.note_change();
}

async fn asked(site: &Site, session: &str, after: u64) -> Response {
    let path = format!("{CONTROL}?after={after}");
    site.call(Transport::Tls, &path, session, b"").await
}

async fn told(site: &Site, session: &str, after: u64) -> NodeControl {
    let response = asked(site, session, after).await;
    assert_eq!(response.status(), StatusCode::OK);
    serde_json::from_slice(&bytes(response).await).expect("is a control")
}

/// Asks, and comes back while the answer is held.
async fn waiting(
    site: &Arc<Site>,
    session: &str,
    after: u64,
) -> tokio::task::JoinHandle<NodeControl> {
    let (asker, session) = (Arc::clone(site), session.to_owned());
    let held = site.app.boot.controls.held();
    let waits = tokio::spawn(async move { told(&asker, &session, after).await });
    while site.app.boot.controls.held() == held {
        tokio::task::yield_now().await;
    }
    waits
}

fn held(hold: Duration) -> impl FnOnce(&mut App) {
    move |app| app.boot.controls.hold = hold
}

#[tokio::test]
async fn an_order_to_start_anew_is_told_to_the_boot_that_it_is_of() {
    let (site, session) = running(held(LONG)).await;
    let first = told(&site, &session, 0).await;
    assert_eq!(first.reboot, None);
    let waits = waiting(&site, &session, first.number).await;
    let names = ["n001".parse().expect("a name")];
    let ordered = site.app.catalog.order_reboots(&names, RebootKind::Forced);
    assert_eq!(ordered.await.expect("orders"), names);
    site.app.nodes.note_version_change();
    let control = waits.await.expect("answers");
    assert_eq!(control.reboot, Some(RebootOrder::Forced));
    // The next boot is not meant.
    let mac: MacAddress = MAC.parse().expect("a MAC");
    let step = Told::new(BootStep::FirstStage, "");
    site.app.boot.transcripts.step(mac, step);
    let script = site.script().await;
    let open = state(site.redeem(OWN, Transport::Tls, token_of(&script)).await).await;
    let SessionState::Open { session, .. } = open else {
        panic!("is held")
    };
    site.app.nodes.note_version_change();
    assert_eq!(told(&site, &session, 0).await.reboot, None);
}

#[tokio::test]
async fn what_does_not_change_is_answered_after_the_hold() {
    let (site, session) = running(held(SHORT)).await;
    let first = told(&site, &session, 0).await;
    assert!(first.number > 0);
    assert_eq!((&first.fill.paused, &first.next), (&None, &None));
    let began = Instant::now();
    assert_eq!(told(&site, &session, first.number).await, first);
    assert!(began.elapsed() >= SHORT);
    // Who has something else, or nothing, does not wait.
    assert_eq!(told(&site, &session, first.number + 1).await, first);
    // A wrong question is the machine's fault.
    let path = format!("{CONTROL}?after=x");
    let wrong = site.call(Transport::Tls, &path, &session, b"").await;
    assert_eq!(wrong.status(), StatusCode::BAD_REQUEST);
    let unknown = asked(&site, "0123", 0).await;
    assert_eq!(unknown.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_change_is_told_at_once() {
    let (site, session) = running(held(LONG)).await;
    let first = told(&site, &session, 0).await;

    let waits = waiting(&site, &session, first.number).await;
    set(&site, Setting::FillMbitMax, "100").await;
    let capped = waits.await.expect("is told");
    assert_eq!(capped.fill.mbit_max, Some(100));

    // What changes nothing for this machine wakes it, and is not told.
    let waits = waiting(&site, &session, capped.number).await;
    set(&site, Setting::Console, "ttyS0").await;
    set(&site, Setting::Exam, "yes").await;
    let exam = waits.await.expect("is told");
    assert_eq!(exam.fill.paused.as_deref(), Some("exam mode"));

    // A profile's, which it comes to inherit.
    set(&site, Setting::Exam, "no").await;
    let profile = "room".parse().expect("a name");
    let pause = |row: &mut rootstock_catalog::ProfileRow| {
        row.settings = r#"{"fill":"paused"}"#.to_owned();
    };
    let changed = site.app.catalog.update_profile(&profile, Pass::Keep, pause);
    changed.await.expect("is changed");
    let names = ["n001".parse().expect("a name")];
    let waits = waiting(&site, &session, capped.number).await;
    let inherit = |row: &mut rootstock_catalog::NodeRow| row.profile = Some(profile.clone());
    let changed = site.app.catalog.update_nodes(&names, Pass::Keep, inherit);
    changed.await.expect("is changed");
    site.app.nodes.note_change();
    let paused = waits.await.expect("is told");
    assert_eq!(
        paused.fill.paused.as_deref(),
        Some("paused by the administrator")
    );

    // What was before has the number that it had.
    set(&site, Setting::Fill, "on").await;
    assert_eq!(told(&site, &session, 0).await, capped);
}

#[tokio::test]
async fn a_tag_that_moves_is_a_version_to_come() {
    let (site, session) = running(held(LONG)).await;
    let first = told(&site, &session, 0).await;
    site.version(8).await;
    let waits = waiting(&site, &session, first.number).await;
    tag(&site, 2).await;
    let moved = waits.await.expect("is told");
    let next = moved.next.expect("there is one");
    let spec = "lab:2".parse().expect("a version");
    let row = site.app.catalog.resolve(&spec).await.expect("is there");
    assert_eq!((next.version, next.manifest), (row.number, row.manifest));
    // Back again: what runs is what is to run.
    let waits = waiting(&site, &session, moved.number).await;
    tag(&site, 1).await;
    assert_eq!(waits.await.expect("is told"), first);
}

#[tokio::test]
async fn a_personal_machine_stays_on_its_volumes_version() {
    let (site, session) = running(held(LONG)).await;
    set(&site, Setting::Mode, "personal").await;
    let volume = rootstock_catalog::NewVolume {
        name: "n001".parse().expect("a name"),
        image: "lab".parse().expect("a name"),
        version: VersionNumber(1),
        size_bytes: 1 << 18,
        ephemeral: false,
        block_bytes: 512,
        directory: "d".to_owned(),
    };
    let added = site.app.catalog.add_volume(&volume, Timestamp::now()).await;
    added.expect("is added");
    site.version(8).await;
    tag(&site, 2).await;
    assert_eq!(told(&site, &session, 0).await.next, None);
}

#[tokio::test]
async fn an_image_that_is_gone_is_no_version_to_come() {
    let (site, session) = running(held(LONG)).await;
    set(&site, Setting::Image, "lab@nowhere").await;
    assert_eq!(told(&site, &session, 0).await.next, None);
}

/// A clock in Central Europe.
fn clock(time: &str) -> SiteClock {
    let time: civil::DateTime = time.parse().expect("a time");
    let time: Zoned = time.to_zoned(central_europe()).expect("is a time there");
    SiteClock::at(&time)
}

#[tokio::test]
async fn hours_that_begin_are_told_when_they_do() {
    let (site, session) = running(|app| {
        app.boot.controls.hold = LONG;
        app.boot.clock = clock("2026-03-01T21:59:59");
    })
    .await;
    set(&site, Setting::FillHours, "22:00-06:00").await;
    let mut control = told(&site, &session, 0).await;
    // On a slow machine it is ten already.
    if control.fill.paused.is_some() {
        assert_eq!(control.fill.paused.as_deref(), Some("outside 22:00-06:00"));
        control = told(&site, &session, control.number).await;
    }
    assert_eq!(control.fill.paused, None);
}

#[tokio::test]
async fn an_order_has_what_holds_then() {
    let (site, session) = running(|app| {
        app.boot.clock = clock("2026-03-01T12:00:00");
    })
    .await;
    for (setting, value) in [
        (Setting::Cache, "/dev/sda3"),
        (Setting::CacheDiskBytesMax, "64G"),
        (Setting::FillMbitMax, "200"),
        (Setting::FillHours, "22:00-06:00"),
    ] {
        set(&site, setting, value).await;
    }
    let response = site.call(Transport::Tls, ORDER, &session, b"").await;
    let order: BootOrder = serde_json::from_slice(&bytes(response).await).expect("is an order");
    assert_eq!(order.cache.to_string(), "/dev/sda3");
    assert_eq!(order.cache_disk_bytes_max, Some(64 << 30));
    assert_eq!(order.fill.mbit_max, Some(200));
    assert_eq!(order.fill.paused.as_deref(), Some("outside 22:00-06:00"));
}

#[tokio::test]
async fn only_the_newest_question_of_a_machine_waits() {
    let (site, session) = running(held(LONG)).await;
    let first = told(&site, &session, 0).await;
    let number = first.number;
    let given_up = waiting(&site, &session, number).await;
    let (asker, secret) = (Arc::clone(&site), session.clone());
    let newer = tokio::spawn(async move { told(&asker, &secret, number).await });
    assert_eq!(given_up.await.expect("is answered"), first);
    while site.app.boot.controls.held() == 0 {
        tokio::task::yield_now().await;
    }
    // And the daemon's stop ends that one too.
    site.app.nodes.close();
    assert_eq!(newer.await.expect("is answered"), first);
    let stopping = asked(&site, &session, number).await;
    assert_eq!(stopping.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn many_that_wait_read_the_catalog_once() {
    let (site, session) = running(held(LONG)).await;
    let first = told(&site, &session, 0).await;
    let read_at = || site.app.boot.controls.read_at();
    let before = read_at();
    for _ in 0..20 {
        told(&site, &session, first.number + 1).await;
    }
    assert_eq!(read_at(), before);
    set(&site, Setting::Exam, "yes").await;
    told(&site, &session, 0).await;
    let after = read_at();
    assert_ne!(after, before);
    for _ in 0..20 {
        told(&site, &session, 0).await;
    }
    assert_eq!(read_at(), after);
}

async fn report(site: &Site, session: &str, report: &NodeReport) {
    let body = serde_json::to_vec(report).expect("is JSON");
    let response = site.call(Transport::Tls, REPORT, session, &body).await;
    assert_eq!(response.status(), StatusCode::OK);
}

fn disk(off: Option<&str>) -> NodeReport {
    NodeReport {
        up: true,
        disk_cache: Some(DiskCacheReport {
            device: "/dev/sda3".to_owned(),
            off: off.map(str::to_owned),
            version_bytes: 100,
            version_local_bytes: 73,
            ..DiskCacheReport::default()
        }),
        ..NodeReport::default()
    }
}

#[tokio::test]
async fn reports_are_kept_and_told() {
    let (site, session) = running(|_| {}).await;
    let mut events = site.app.nodes.listen().expect("is open");
    report(&site, &session, &disk(None)).await;
    let told = async {
        loop {
            if let NodeEvent::Report { node, report } = events.recv().await.expect("is open") {
                return (node.to_string(), report);
            }
        }
    };
    assert_eq!(told.await, ("n001".to_owned(), disk(None)));
    let reports = site.app.boot.sessions.reports();
    assert_eq!(reports.values().collect::<Vec<_>>(), [&disk(None)]);
    let mut text = String::new();
    site.app.boot.render_reports(&mut text);
    assert!(text.contains("rootstock_node_version_local_bytes{node=\"n001\"} 73\n"));
    // A machine that goes says nothing any more.
    let gone = br#"{"steps":[{"step":"gone","uptime_ms":900}]}"#;
    site.call(Transport::Tls, STEPS, &session, gone).await;
    assert!(site.app.boot.sessions.reports().is_empty());
}

#[tokio::test]
async fn no_word_of_a_machine_moves_a_terminal() {
    let (site, session) = running(|_| {}).await;
    let mut said = disk(Some("off\x1b[2J"));
    let cache = said.disk_cache.as_mut().expect("has one");
    cache.next = Some(NextReport {
        version: "lab:2".parse().expect("a version"),
        fetched_bytes: 0,
        complete: false,
        trouble: Some("next\x1b[2J".to_owned()),
    });
    cache.start = Some(StartReport {
        version: None,
        trouble: Some("start\x1b[2J".to_owned()),
    });
    report(&site, &session, &said).await;
    let reports = site.app.boot.sessions.reports();
    let text = serde_json::to_string(&reports).expect("is JSON");
    assert!(
        text.contains("start [2J") && !text.contains("\\u001b"),
        "{text}"
    );
}

#[tokio::test]
async fn a_disk_that_goes_out_of_use_is_noted_once() {
    let (site, session) = running(|_| {}).await;
    let (changed, _changes) = tokio::sync::mpsc::channel(64);
    let (stop, stops) = crate::stop::Stop::new();
    let transcripts = Arc::clone(&site.app.boot.transcripts);
    let stored = tokio::spawn(transcripts.work(site.app.catalog.clone(), changed, stops));
    let off = disk(Some("read\x1b error"));
    for disk in [&disk(None), &off, &off, &disk(None)] {
        report(&site, &session, disk).await;
    }
    let node = "n001".parse().expect("a name");
    let notes = || async {
        let boots = site.app.catalog.boots_of(&node).await.expect("lists");
        let transcript = site.app.catalog.boot_transcript(&boots[0].id).await;
        let (_, steps) = transcript.expect("is there");
        let details = steps.into_iter().map(|step| step.detail);
        let of_disk = details.filter(|detail| detail.contains("/dev/sda3"));
        of_disk.collect::<Vec<_>>()
    };
    while notes().await.is_empty() {
        tokio::task::yield_now().await;
    }
    // A daemon that knows nothing of it but what is stored.
    site.app.boot.sessions.forget(&node);
    report(&site, &session, &off).await;
    stop.send_replace(true);
    stored.await.expect("ends");
    let noted = ["its disk /dev/sda3 is out of use: read  error"];
    assert_eq!(notes().await, noted);
}
