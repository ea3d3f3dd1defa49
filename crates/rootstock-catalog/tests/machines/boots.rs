//! Boots: tokens, transcripts, and what worked.

use std::net::{IpAddr, Ipv4Addr};

use rootstock_catalog::{
    BOOTS_PER_NODE_MAX, CatalogError, NewBoot, NewToken, NodeState, RebootKind, Redeemed,
    STEPS_PER_BOOT_MAX, StepRow,
};
use rootstock_core::{Digest, HostList, VersionNumber};

use super::support::{LIMIT, SOURCE, Site, at, found, mac, name, node, open, redeem};

#[tokio::test]
async fn a_token_is_good_once() {
    let site = Site::new().await;
    let catalog = &site.catalog;
    catalog
        .add_nodes(&[node("n1", 1), node("n2", 2)], at(1))
        .await
        .expect("adds");
    let boot = site.booting("n1", "a").await;
    assert_eq!(redeem(&site, "b", 20).await, Redeemed::Unknown);
    let digest = Digest::of(b"a");
    let spoofed = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 8));
    let foreign = catalog
        .redeem_token(digest, spoofed, Digest::of(b"s"), at(20), at(21))
        .await;
    assert!(matches!(foreign.expect("judges"), Redeemed::Foreign(_)));
    // Of many at once, one gets the session.
    let tasks: Vec<_> = (0..8_u8)
        .map(|turn| {
            let catalog = catalog.clone();
            tokio::spawn(async move {
                let session = Digest::of(&[turn]);
                let done = catalog
                    .redeem_token(digest, SOURCE, session, at(20), at(21))
                    .await;
                (turn, done.expect("judges"))
            })
        })
        .collect();
    let mut winners = Vec::new();
    for task in tasks {
        match task.await.expect("ends") {
            (turn, Redeemed::Open(row)) => {
                assert_eq!((row.id.as_str(), row.redeemed), ("boot-a", Some(at(20))));
                winners.push(turn);
            }
            (_, other) => assert!(matches!(other, Redeemed::Used(_)), "{other:?}"),
        }
    }
    assert_eq!(winners.len(), 1);
    let session = Digest::of(&[winners[0]]);
    let found = catalog
        .session(session)
        .await
        .expect("looks")
        .expect("is open");
    assert_eq!(found.id, boot.id);
    assert_eq!(
        catalog.session(Digest::of(b"other")).await.expect("looks"),
        None
    );
    // A script fetched again gets another token; the first is worth nothing.
    site.booting("n2", "c").await;
    let other = boot_token("d", 700);
    catalog.arm_boot("boot-c", &other).await.expect("arms");
    assert_eq!(redeem(&site, "c", 30).await, Redeemed::Unknown);
    assert!(matches!(
        redeem(&site, "d", 700).await,
        Redeemed::Expired(_)
    ));
    // The session survives a restart, and ends when the node boots anew.
    let site = Site {
        catalog: open(&site.dir).await,
        dir: site.dir,
    };
    assert!(
        site.catalog
            .session(session)
            .await
            .expect("looks")
            .is_some()
    );
    site.booting("n1", "e").await;
    assert!(
        site.catalog
            .session(session)
            .await
            .expect("looks")
            .is_some()
    );
    assert!(matches!(redeem(&site, "e", 40).await, Redeemed::Open(_)));
    assert!(
        site.catalog
            .session(session)
            .await
            .expect("looks")
            .is_none()
    );
    let late = site.catalog.arm_boot("boot-e", &other).await;
    assert!(
        late.is_err(),
        "a boot whose token was given in gets no other"
    );
}

fn boot_token(token: &str, expires: i64) -> NewToken {
    NewToken {
        digest: Digest::of(token.as_bytes()),
        source: SOURCE,
        expires: at(expires),
    }
}

#[tokio::test]
async fn a_held_nodes_token_waits_with_it() {
    let site = Site::new().await;
    let names: HostList = "n1".parse().expect("a list");
    let new = found(&names, 1, NodeState::Held);
    site.catalog
        .register_node(new, at(1))
        .await
        .expect("registers");
    site.booting("n1", "a").await;
    // Asking again and again keeps it good for longer than its ten minutes.
    for second in [500, 1000, 1500] {
        assert!(
            matches!(redeem(&site, "a", second).await, Redeemed::Held(_)),
            "{second}"
        );
    }
    site.catalog
        .approve_nodes(&[name("n1")], at(1600))
        .await
        .expect("approves");
    assert!(matches!(redeem(&site, "a", 2000).await, Redeemed::Open(_)));
}

fn step(text: &str, second: i64) -> StepRow {
    StepRow {
        step: text.to_owned(),
        time: at(second),
        uptime_ms: None,
        bytes: 7,
        detail: "x".to_owned(),
    }
}

#[tokio::test]
async fn transcripts_are_kept_in_order_and_bounded() {
    let site = Site::with_version("lab").await;
    let catalog = &site.catalog;
    catalog.add_node(&node("n1", 1), at(1)).await.expect("adds");
    let n1 = name("n1");
    assert!(catalog.last_boots().await.expect("lists").is_empty());
    site.booting("n1", "runs").await;
    redeem(&site, "runs", 11).await;
    let lab = "lab".parse().expect("a name");
    catalog
        .set_boot_order("boot-runs", "{}", &lab, VersionNumber(1), LIMIT)
        .await
        .expect("records");
    catalog
        .add_steps("boot-runs", &[step("session", 11)])
        .await
        .expect("adds");
    let many: Vec<_> = (0..i64::from(STEPS_PER_BOOT_MAX))
        .map(|s| step("up", 20 + s))
        .collect();
    catalog.add_steps("boot-runs", &many).await.expect("adds");
    let (row, steps) = catalog.boot_transcript("boot-runs").await.expect("reads");
    assert_eq!(row.image, Some((lab, VersionNumber(1))));
    assert_eq!(steps.len(), STEPS_PER_BOOT_MAX as usize);
    assert_eq!(
        (&steps[0], &steps[1]),
        (&step("session", 11), &step("up", 20))
    );
    for number in 0..2 * i64::from(BOOTS_PER_NODE_MAX) {
        let new = NewBoot {
            id: format!("b{number:03}"),
            node: n1.clone(),
            token: None,
        };
        catalog
            .begin_boot(&new, at(100 + number))
            .await
            .expect("begins");
    }
    let boots = catalog.boots_of(&n1).await.expect("lists");
    assert_eq!(boots.len(), BOOTS_PER_NODE_MAX as usize + 1);
    assert_eq!(boots[0].id, "b099");
    assert_eq!(boots.last().map(|row| row.id.as_str()), Some("boot-runs"));
    catalog
        .add_steps("b099", &[step("discovered", 300)])
        .await
        .expect("adds");
    let last = catalog.last_boots().await.expect("lists");
    assert_eq!(last.len(), 1);
    assert_eq!(last[0].1, Some(step("discovered", 300)));
    catalog.delete_nodes(&[n1]).await.expect("deletes");
    let gone = catalog.boot_transcript("boot-runs").await;
    assert!(matches!(gone, Err(CatalogError::BootNotFound { .. })));
}

#[tokio::test]
async fn what_worked_is_remembered() {
    let site = Site::new().await;
    assert_eq!(site.catalog.strategy(mac(1)).await.expect("looks"), None);
    for worked in ["tftp-ipxe", "http-snponly"] {
        site.catalog
            .remember_strategy(mac(1), worked, at(1))
            .await
            .expect("remembers");
        assert_eq!(
            site.catalog
                .strategy(mac(1))
                .await
                .expect("looks")
                .as_deref(),
            Some(worked)
        );
    }
}

#[tokio::test]
async fn an_order_to_start_anew_is_of_one_boot() {
    let site = Site::new().await;
    let catalog = &site.catalog;
    let nodes = [node("n1", 1), node("n2", 2)];
    catalog.add_nodes(&nodes, at(1)).await.expect("adds");
    site.booting("n1", "a").await;
    redeem(&site, "a", 20).await;
    // A machine that has no session yet cannot be told.
    site.booting("n2", "b").await;
    let names = [name("n1"), name("n2")];
    let ordered = catalog.order_reboots(&names, RebootKind::Orderly).await;
    assert_eq!(ordered.expect("orders"), [name("n1")]);
    let ordered = catalog.order_reboots(&names, RebootKind::Forced).await;
    assert_eq!(ordered.expect("orders"), [name("n1")]);
    let reboots = catalog.reboots().await.expect("lists");
    assert_eq!(reboots.len(), 1);
    assert_eq!(reboots["boot-a"], RebootKind::Forced);
    site.booting("n1", "c").await;
    redeem(&site, "c", 30).await;
    assert!(catalog.reboots().await.expect("lists").is_empty());
    let unknown = catalog
        .order_reboots(&[name("n9")], RebootKind::Forced)
        .await;
    assert!(matches!(unknown, Err(CatalogError::NodeNotFound { .. })));
}
