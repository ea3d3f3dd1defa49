//! A version on its way to many nodes, of which one machine boots.

use rootstock_api::{
    Problem, ProblemCode, RolloutReboot, RolloutStart, RolloutStarted, RolloutState,
    boot::{DiskCacheReport, NextReport, NodeReport},
};
use rootstock_catalog::{NewProfile, Pass, RebootKind};
use rootstock_core::NodeName;

use super::*;
use crate::{http::ApiError, nodes, rollouts};

fn name(text: &str) -> NodeName {
    text.parse().expect("a name")
}

/// A site whose profile `room` has `lab:1`, which one of its four machines runs.
async fn site() -> (Site, String) {
    site_with(|_| {}).await
}

async fn site_with(prepare: impl FnOnce(&mut App)) -> (Site, String) {
    let site = Site::with(prepare).await;
    site.version(1).await;
    site.version(2).await;
    let catalog = &site.app.catalog;
    let room = NewProfile {
        name: "room".parse().expect("a name"),
        parent: None,
        settings: r#"{"image":"lab:1"}"#.to_owned(),
        image: Some("lab:1".parse().expect("a version")),
    };
    let now = Timestamp::now();
    catalog.add_profile(&room, now).await.expect("is added");
    for (number, settings) in [
        (1, "{}"),
        (2, "{}"),
        (3, r#"{"image":"lab:1"}"#),
        (4, r#"{"mode":"personal"}"#),
    ] {
        let image = settings.contains("image").then(|| "lab:1".parse());
        let node = NewNode {
            name: name(&format!("n00{number}")),
            profile: Some(room.name.clone()),
            macs: match number {
                1 => vec![MAC.parse().expect("a MAC")],
                _ => Vec::new(),
            },
            uuid: None,
            address: None,
            settings: settings.to_owned(),
            image: image.transpose().expect("a version"),
        };
        catalog.add_node(&node, now).await.expect("is added");
    }
    let session = boots(&site, "lab:1").await;
    says(&site, "up", "").await;
    (site, session)
}

/// The machine boots this version; answers its session.
async fn boots(site: &Site, version: &str) -> String {
    let script = site.script().await;
    let open = state(site.redeem(OWN, Transport::Tls, token_of(&script)).await).await;
    let SessionState::Open { session, .. } = open else {
        panic!("{open:?}");
    };
    let boots = site.app.catalog.boots_of(&name("n001")).await;
    let runs = nodes::image_of(&boots.expect("lists")[0]);
    assert_eq!(runs.expect("has one").to_string(), version);
    session
}

async fn says(site: &Site, step: &str, detail: &str) {
    site.says(step, Timestamp::now(), Some(5), detail).await;
    crate::boot::health::judge_all(&site.app).await;
}

/// The machine reports: who is logged in, and what it has of `lab:2`.
async fn reports(site: &Site, session: &str, users: u32, complete: Option<bool>) {
    let report = NodeReport {
        up: true,
        users: Some(users),
        disk_cache: complete.map(|complete| DiskCacheReport {
            device: "/dev/sda3".to_owned(),
            next: Some(NextReport {
                version: "lab:2".parse().expect("a version"),
                fetched_bytes: 7,
                complete,
                trouble: None,
            }),
            ..DiskCacheReport::default()
        }),
        ..NodeReport::default()
    };
    let body = serde_json::to_vec(&report).expect("is JSON");
    let response = site.call(Transport::Tls, REPORT, session, &body).await;
    assert_eq!(response.status(), StatusCode::OK);
}

async fn start(site: &Site, version: &str, dry_run: bool) -> Result<RolloutStarted, Problem> {
    let request = RolloutStart {
        version: version.parse().expect("a version"),
        profile: Some("room".parse().expect("a name")),
        nodes: None,
        canary_count: 1,
        batch_count: 5,
        failures_max: 3,
        reboot: RolloutReboot::Idle,
        at: None,
        wake: false,
        dry_run,
    };
    let started = rollouts::start(&site.app, &request, "root").await;
    started.map_err(|ApiError(problem)| *problem)
}

/// How far all nodes are, after one more look.
async fn look(site: &Site, rollout: u64) -> Vec<String> {
    rollouts::look(&site.app)
        .await
        .map_err(|e| e.0)
        .expect("looks");
    let detail = rollouts::detail(&site.app, rollout).await;
    let nodes = detail.map_err(|e| e.0).expect("is there").nodes;
    let text = |node: &rootstock_api::RolloutNode| format!("{} {}", node.node, node.state);
    nodes.iter().map(text).collect()
}

async fn rollout_state(site: &Site, rollout: u64) -> (RolloutState, Option<String>) {
    let detail = rollouts::detail(&site.app, rollout).await;
    let rollout = detail.map_err(|e| e.0).expect("is there").rollout;
    (rollout.state, rollout.reason)
}

async fn image(site: &Site, node: &str) -> Option<String> {
    let row = site.app.catalog.node(&name(node)).await.expect("is there");
    row.image.map(|image| image.to_string())
}

#[tokio::test]
async fn the_canary_has_it_first_and_the_profile_last() {
    let (site, session) = site().await;
    reports(&site, &session, 1, Some(false)).await;
    let planned = start(&site, "lab:2", true).await.expect("is planned");
    assert_eq!(planned.rollout, None);
    let nodes: Vec<_> = planned.nodes.iter().map(|one| one.node.as_str()).collect();
    assert_eq!(nodes, ["n001", "n002"]);
    assert_eq!(planned.nodes[0].users, 1);
    assert!(planned.nodes[0].bytes.is_some_and(|bytes| bytes > 0));
    assert_eq!(planned.nodes[1].bytes, None);
    let left: Vec<_> = planned.left.iter().map(|one| one.reason.as_str()).collect();
    assert_eq!(
        left,
        [
            "it has an image of its own",
            "it is personal: its volume stays what it is"
        ]
    );

    let id = start(&site, "lab:2", false)
        .await
        .expect("begins")
        .rollout
        .expect("a number");
    let twice = start(&site, "lab:2", false).await.expect_err("is in one");
    assert_eq!(twice.code, ProblemCode::Busy);
    // It waits for the machine's disk, and then until nobody is logged in.
    assert_eq!(look(&site, id).await, ["n001 assigned", "n002 waiting"]);
    assert_eq!(image(&site, "n001").await.as_deref(), Some("lab:2"));
    assert_eq!(look(&site, id).await, ["n001 assigned", "n002 waiting"]);
    reports(&site, &session, 1, Some(true)).await;
    assert_eq!(look(&site, id).await, ["n001 assigned", "n002 waiting"]);
    assert!(site.app.catalog.reboots().await.expect("lists").is_empty());
    reports(&site, &session, 0, Some(true)).await;
    assert_eq!(look(&site, id).await, ["n001 restarting", "n002 waiting"]);
    let ordered = site.app.catalog.reboots().await.expect("lists");
    assert_eq!(
        ordered.into_values().collect::<Vec<_>>(),
        [RebootKind::Idle]
    );
    let lab = "lab".parse().expect("a name");
    let two = rootstock_core::VersionNumber(2);
    let deleted = site
        .app
        .catalog
        .delete_version(&lab, two, "x", Timestamp::now());
    assert!(deleted.await.is_err());

    boots(&site, "lab:2").await;
    assert_eq!(look(&site, id).await, ["n001 restarting", "n002 waiting"]);
    says(&site, "up", "").await;
    assert_eq!(look(&site, id).await, ["n001 good", "n002 assigned"]);
    assert_eq!(
        rollout_state(&site, id).await,
        (RolloutState::Running, None)
    );
    assert_eq!(look(&site, id).await, ["n001 good", "n002 later"]);
    assert_eq!(rollout_state(&site, id).await, (RolloutState::Done, None));
    for (node, own) in [("n001", None), ("n002", None), ("n003", Some("lab:1"))] {
        assert_eq!(image(&site, node).await.as_deref(), own, "{node}");
    }
    let room = site
        .app
        .catalog
        .profile(&"room".parse().expect("a name"))
        .await;
    let room = room.expect("is there").image.expect("has one");
    assert_eq!(room.to_string(), "lab:2");
    // What is over is over.
    let resumed = rollouts::resume(&site.app, id).await.map_err(|e| e.0);
    assert_eq!(resumed.expect_err("is over").code, ProblemCode::BadValue);
}

#[tokio::test]
async fn a_canary_that_fails_stops_it_and_an_abort_puts_all_back() {
    let (site, session) = site().await;
    reports(&site, &session, 0, None).await;
    let id = start(&site, "lab:2", false)
        .await
        .expect("begins")
        .rollout
        .expect("a number");
    look(&site, id).await;
    assert_eq!(look(&site, id).await, ["n001 restarting", "n002 waiting"]);
    boots(&site, "lab:2").await;
    says(&site, "failed", "no init").await;
    assert_eq!(look(&site, id).await, ["n001 failed", "n002 waiting"]);
    let reason = "a canary did not come up with it; n001: it failed: no init";
    let expected = (RolloutState::Stopped, Some(reason.to_owned()));
    assert_eq!(rollout_state(&site, id).await, expected);
    // It runs what it came up with, and the rollout does nothing by itself.
    boots(&site, "lab:1").await;
    assert_eq!(look(&site, id).await, ["n001 failed", "n002 waiting"]);

    // Told to go on, it takes the other one.
    rollouts::resume(&site.app, id)
        .await
        .map_err(|e| e.0)
        .expect("goes on");
    assert_eq!(look(&site, id).await, ["n001 failed", "n002 assigned"]);
    assert_eq!(image(&site, "n002").await.as_deref(), Some("lab:2"));

    rollouts::abort(&site.app, id, "root")
        .await
        .map_err(|e| e.0)
        .expect("is ended");
    assert_eq!(look(&site, id).await, ["n001 left", "n002 left"]);
    let expected = (RolloutState::Aborted, Some("by root".to_owned()));
    assert_eq!(rollout_state(&site, id).await, expected);
    assert_eq!(image(&site, "n001").await, None);
    assert_eq!(image(&site, "n002").await, None);
}

#[tokio::test]
async fn what_somebody_sets_meanwhile_stays_and_what_is_wrong_is_refused() {
    let (site, session) = site().await;
    reports(&site, &session, 1, None).await;
    let id = start(&site, "lab:2", false)
        .await
        .expect("begins")
        .rollout
        .expect("a number");
    look(&site, id).await;
    let names = [name("n001")];
    let other = "lab:1".parse().expect("a version");
    let set = site.app.catalog.update_nodes(&names, Pass::Keep, |row| {
        nodes::assign(&mut row.settings, Some(&other));
        row.image = Some(other.clone());
    });
    set.await.expect("is set");
    assert_eq!(look(&site, id).await[0], "n001 left");
    rollouts::pause(&site.app, id, "root")
        .await
        .map_err(|e| e.0)
        .expect("halts");
    assert_eq!(rollout_state(&site, id).await.0, RolloutState::Paused);

    for (version, code) in [
        ("lab:9", ProblemCode::VersionNotFound),
        ("nothing:1", ProblemCode::ImageNotFound),
    ] {
        let refused = start(&site, version, true).await.expect_err("is refused");
        assert_eq!(refused.code, code);
    }
    let unknown = rollouts::detail(&site.app, 77).await.map_err(|e| e.0);
    assert_eq!(
        unknown.expect_err("is unknown").code,
        ProblemCode::RolloutNotFound
    );
}

#[tokio::test]
async fn who_has_the_profile_from_its_network_is_of_it_too() {
    let network = "subnet = \"10.0.0.0/24\"\nprofile = \"room\"";
    let network = toml::from_str(network).expect("is a network");
    let (site, session) = site_with(|app| app.config.network = vec![network]).await;
    reports(&site, &session, 0, None).await;
    let names = [name("n001"), name("n003")];
    let set = site.app.catalog.update_nodes(&names, Pass::Keep, |row| {
        row.profile = None;
    });
    set.await.expect("is set");
    let planned = start(&site, "lab:2", true).await.expect("is planned");
    let nodes: Vec<_> = planned.nodes.iter().map(|one| one.node.as_str()).collect();
    assert_eq!(nodes, ["n001", "n002"]);
    assert_eq!(planned.left[0].reason, "it has an image of its own");
}
