//! Boot health: what became of boots, and what nodes fall back to.

use rootstock_catalog::{CatalogError, Holder, StepRow, Verdict};
use rootstock_core::{VersionNumber, VersionSpec};

use super::support::{LIMIT, Site, at, name, node, redeem};

fn step(text: &str, second: i64, uptime_ms: Option<u64>) -> StepRow {
    StepRow {
        step: text.to_owned(),
        time: at(second),
        uptime_ms,
        bytes: 0,
        detail: format!("{text} at {second}"),
    }
}

/// A node's boot of `lab:1`.
async fn boots(site: &Site, token: &str) {
    site.booting("n1", token).await;
    let lab = "lab".parse().expect("a name");
    let boot = format!("boot-{token}");
    let order = site
        .catalog
        .set_boot_order(&boot, "{}", &lab, VersionNumber(1), LIMIT);
    order.await.expect("records");
}

#[tokio::test]
async fn facts_are_what_the_machine_said_and_what_followed() {
    let site = Site::with_version("lab").await;
    let catalog = &site.catalog;
    catalog.add_node(&node("n1", 1), at(1)).await.expect("adds");
    boots(&site, "a").await;
    let steps = [
        step("initrd-served", 12, None),
        step("failed", 13, None),
        step("failed", 14, Some(900)),
    ];
    catalog.add_steps("boot-a", &steps).await.expect("adds");
    redeem(&site, "a", 20).await;
    let facts = catalog.boots_to_judge(None).await.expect("lists");
    let [facts] = facts.as_slice() else {
        panic!("{facts:?}")
    };
    assert_eq!(
        (facts.limit, facts.up, facts.is_followed),
        (LIMIT, None, false)
    );
    assert_eq!((facts.sent, facts.redeemed), (Some(at(12)), Some(at(20))));
    assert_eq!(facts.failed.as_deref(), Some("failed at 14"));
    // A boot that has got no version yet follows nothing.
    site.booting("n1", "b").await;
    assert!(!catalog.boots_to_judge(None).await.expect("lists")[0].is_followed);
    boots(&site, "c").await;
    let of_node = catalog.boots_to_judge(Some(&name("n1"))).await;
    let of_node = of_node.expect("lists");
    let followed: Vec<_> = of_node.iter().map(|facts| facts.is_followed).collect();
    assert_eq!(followed, [true, false]);
    assert!(
        catalog
            .boots_to_judge(Some(&name("n2")))
            .await
            .expect("lists")
            .is_empty()
    );
}

#[tokio::test]
async fn a_version_that_was_good_stays_so_and_cannot_be_deleted() {
    let site = Site::with_version("lab").await;
    let catalog = &site.catalog;
    let (n1, lab) = (name("n1"), "lab".parse().expect("a name"));
    catalog.add_node(&node("n1", 1), at(1)).await.expect("adds");
    boots(&site, "a").await;
    let failed = Verdict::Failed {
        reason: "it was slow".to_owned(),
    };
    catalog
        .judge_boot("boot-a", &failed, at(30))
        .await
        .expect("judges");
    let token = rootstock_catalog::NewToken {
        digest: rootstock_core::Digest::of(b"other"),
        source: super::support::SOURCE,
        expires: at(900),
    };
    let again = catalog.arm_boot("boot-a", &token).await;
    assert!(again.is_err(), "what was judged is not booted again");
    let health = catalog.version_health(&n1).await.expect("reads");
    let version: VersionSpec = "lab:1".parse().expect("a version");
    assert_eq!(health.len(), 1);
    assert_eq!(health[0].version, version);
    assert_eq!(health[0].failed, Some((at(30), "it was slow".to_owned())));
    // It may still come up.
    assert!(catalog.boots_to_judge(None).await.expect("lists")[0].has_failed);
    let good = Verdict::Good { up: at(40) };
    catalog
        .judge_boot("boot-a", &good, at(41))
        .await
        .expect("judges");
    assert!(
        catalog
            .boots_to_judge(None)
            .await
            .expect("lists")
            .is_empty()
    );
    boots(&site, "b").await;
    catalog
        .judge_boot("boot-b", &failed, at(50))
        .await
        .expect("judges");
    let health = catalog.all_version_health().await.expect("reads");
    assert_eq!((health[0].good, &health[0].failed), (Some(at(40)), &None));

    for boot in ["boot-a", "boot-b"] {
        catalog.end_boot(boot, at(60)).await.expect("ends");
    }
    let tag = "live".parse().expect("a tag");
    catalog
        .remove_tag(&lab, &tag, "local", at(61))
        .await
        .expect("untags");
    let held = catalog
        .delete_version(&lab, VersionNumber(1), "local", at(62))
        .await;
    match held {
        Err(CatalogError::InUse { holders, .. }) => assert_eq!(holders, [Holder::Node(n1.clone())]),
        other => panic!("{other:?}"),
    }
    catalog.delete_nodes(&[n1]).await.expect("deletes");
    catalog
        .delete_version(&lab, VersionNumber(1), "local", at(63))
        .await
        .expect("nobody needs it");
}

#[tokio::test]
async fn failures_are_forgotten_when_that_is_asked_for() {
    let site = Site::with_version("lab").await;
    let catalog = &site.catalog;
    let (n1, n2) = (name("n1"), name("n2"));
    for (name, last) in [("n1", 1), ("n2", 2)] {
        catalog
            .add_node(&node(name, last), at(1))
            .await
            .expect("adds");
    }
    boots(&site, "a").await;
    let failed = Verdict::Failed {
        reason: "x".to_owned(),
    };
    catalog
        .judge_boot("boot-a", &failed, at(30))
        .await
        .expect("judges");
    let forgotten = catalog.forget_failures(&[n1.clone(), n2]).await;
    assert_eq!(forgotten.expect("forgets"), std::slice::from_ref(&n1));
    assert!(catalog.version_health(&n1).await.expect("reads").is_empty());
    let unknown = catalog.forget_failures(&[n1, name("n9")]).await;
    assert!(matches!(unknown, Err(CatalogError::NodeNotFound { .. })));
}
