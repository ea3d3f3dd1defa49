//! Nodes and profiles: who is known, what holds, what is in use.

use std::net::Ipv4Addr;

use rootstock_catalog::{
    CatalogError, HELD_MAX, Holder, NodeState, PROFILE_DEPTH_MAX, Pass, Redeemed, Registered,
};
use rootstock_core::{HostList, VersionNumber, VersionSpec};

use super::support::{
    LIMIT, Site, at, found, mac, name, node, open, profile, profile_name, redeem,
};

#[tokio::test]
async fn a_node_is_known_by_what_it_has() {
    let site = Site::new().await;
    let mut first = node("n1", 1);
    first.macs.push(mac(2));
    first.uuid = Some("7c0c1d8e-0000-4000-8000-000000000001".to_owned());
    first.address = Some(Ipv4Addr::new(10, 0, 0, 1));
    site.catalog.add_node(&first, at(1)).await.expect("adds");
    let row = site
        .catalog
        .node_by_mac(mac(2))
        .await
        .expect("looks")
        .expect("is known");
    assert_eq!((row.macs.len(), row.state), (2, NodeState::Ready));
    let by_uuid = site
        .catalog
        .node_by_uuid(first.uuid.as_deref().expect("set"))
        .await;
    assert_eq!(by_uuid.expect("looks"), Some(row));
    assert_eq!(site.catalog.node_by_mac(mac(3)).await.expect("looks"), None);
    let set = site.catalog.node_settings().await.expect("lists");
    let set = set.first().expect("is there");
    assert_eq!(
        (&set.name, set.settings.as_str()),
        (&first.name, first.settings.as_str())
    );

    let taken = site
        .catalog
        .add_node(&node("n2", 2), at(1))
        .await
        .expect_err("is taken");
    assert_eq!(
        taken.to_string(),
        "node 'n1' has the MAC address 52:54:00:00:00:02 already"
    );
    for (change, what) in [(first.uuid.clone(), "UUID"), (None, "address")] {
        let mut second = node("n2", 9);
        second.address = change.is_none().then_some(Ipv4Addr::new(10, 0, 0, 1));
        second.uuid = change;
        let taken = site
            .catalog
            .add_node(&second, at(1))
            .await
            .expect_err("is taken");
        assert!(
            taken.to_string().contains(&format!("'n1' has the {what}")),
            "{taken}"
        );
    }
    let again = site
        .catalog
        .add_node(&node("n1", 9), at(1))
        .await
        .expect_err("is there");
    assert!(
        matches!(again, CatalogError::Exists { what: "node", .. }),
        "{again}"
    );
    // One node's two equal cards, given to another: nothing of a list is added.
    let many = [node("n3", 3), node("n4", 3)];
    assert!(site.catalog.add_nodes(&many, at(1)).await.is_err());
    assert_eq!(site.catalog.nodes().await.expect("lists").len(), 1);
    let gone = site
        .catalog
        .delete_nodes(&[name("n1")])
        .await
        .expect("deletes");
    assert_eq!(gone[0].macs, [mac(1), mac(2)]);
    site.catalog
        .add_node(&node("n2", 2), at(1))
        .await
        .expect("the card is free");
}

#[tokio::test]
async fn changes_are_all_or_nothing_and_dry_runs_nothing() {
    let site = Site::with_version("lab").await;
    let new = [node("n1", 1), node("n2", 2)];
    site.catalog.add_nodes(&new, at(1)).await.expect("adds");
    let names = [name("n1"), name("n2")];
    let spec: VersionSpec = "lab@live".parse().expect("a spec");
    for (pass, kept) in [(Pass::DryRun, 0), (Pass::Keep, 2)] {
        let changes = site
            .catalog
            .update_nodes(&names, pass, |row| row.image = Some(spec.clone()))
            .await
            .expect("changes");
        assert_eq!(changes[1].before.image, None);
        assert_eq!(changes[1].after.image.as_ref(), Some(&spec));
        let rows = site.catalog.nodes().await.expect("lists");
        assert_eq!(rows.iter().filter(|row| row.image.is_some()).count(), kept);
    }
    let absent = site
        .catalog
        .update_nodes(&names, Pass::DryRun, |row| {
            row.image = Some("lab:7".parse().expect("a spec"));
        })
        .await;
    assert!(matches!(absent, Err(CatalogError::VersionNotFound { .. })));
    let half = site
        .catalog
        .update_nodes(&[name("n1"), name("n9")], Pass::Keep, |row| {
            row.macs.clear();
        })
        .await;
    assert!(matches!(half, Err(CatalogError::NodeNotFound { .. })));
    assert_eq!(
        site.catalog.node(&name("n1")).await.expect("is").macs,
        [mac(1)]
    );
    let swapped = site
        .catalog
        .update_nodes(&[name("n1")], Pass::Keep, |row| row.macs = vec![mac(2)])
        .await;
    assert!(matches!(swapped, Err(CatalogError::MacTaken { .. })));
    site.catalog
        .update_nodes(&[name("n1")], Pass::Keep, |row| {
            row.macs = vec![mac(5), mac(1)];
        })
        .await
        .expect("changes");
    assert_eq!(
        site.catalog.node(&name("n1")).await.expect("is").macs,
        [mac(1), mac(5)]
    );
}

#[tokio::test]
async fn a_list_is_put_as_it_is_and_may_swap_cards() {
    let site = Site::new().await;
    let held = &site.catalog;
    held.add_nodes(&[node("n1", 1), node("n2", 2)], at(1))
        .await
        .expect("adds");
    let list = [node("n1", 2), node("n2", 1), node("n3", 3)];
    for (pass, count) in [(Pass::DryRun, 2), (Pass::Keep, 3)] {
        let done = held.put_nodes(&list, pass, at(2)).await.expect("puts");
        assert_eq!(done[0].1.macs, [mac(2)]);
        assert!(done[0].0.is_some() && done[2].0.is_none());
        assert_eq!(held.nodes().await.expect("lists").len(), count);
    }
    let row = held
        .node_by_mac(mac(1))
        .await
        .expect("looks")
        .expect("is known");
    assert_eq!((row.name, row.created), (name("n2"), at(1)));
    let clash = held
        .put_nodes(&[node("n4", 4), node("n5", 1)], Pass::Keep, at(3))
        .await;
    assert!(
        matches!(clash, Err(CatalogError::MacTaken { .. })),
        "{clash:?}"
    );
    assert_eq!(held.nodes().await.expect("lists").len(), 3);
}

#[tokio::test]
async fn two_daemons_register_each_machine_once() {
    let site = Site::new().await;
    let other = open(&site.dir).await;
    let names: HostList = "n[01-40]".parse().expect("a list");
    site.catalog
        .add_node(&node("n03", 999), at(0))
        .await
        .expect("adds");
    let tasks: Vec<_> = (0..60_u16)
        .map(|turn| {
            let catalog = if turn % 2 == 0 { &site.catalog } else { &other }.clone();
            let names = names.clone();
            // Both see each of the thirty machines.
            tokio::spawn(async move {
                let new = found(&names, turn / 2, NodeState::Ready);
                catalog.register_node(new, at(1)).await.expect("registers")
            })
        })
        .collect();
    let mut new = 0;
    for task in tasks {
        new += usize::from(matches!(task.await.expect("ends"), Registered::New(_)));
    }
    let rows = site.catalog.nodes().await.expect("lists");
    assert_eq!((new, rows.len()), (30, 31));
    let given: Vec<String> = rows.iter().map(|row| row.name.to_string()).collect();
    let expected: Vec<String> = (1..=31).map(|number| format!("n{number:02}")).collect();
    assert_eq!(given, expected);
    let few: HostList = "n[01-03]".parse().expect("a list");
    let full = site
        .catalog
        .register_node(found(&few, 500, NodeState::Ready), at(1))
        .await;
    let said = full.expect_err("no name is left").to_string();
    assert_eq!(said, "all 3 names of 'n[01-03]' are taken");
}

#[tokio::test]
async fn held_nodes_are_few_and_approved() {
    let site = Site::new().await;
    let names: HostList = "n[0001-2000]".parse().expect("a list");
    for number in 0..u16::try_from(HELD_MAX).expect("is small") {
        let new = found(&names, number, NodeState::Held);
        site.catalog
            .register_node(new, at(1))
            .await
            .expect("registers");
    }
    let more = site
        .catalog
        .register_node(found(&names, 9999, NodeState::Held), at(1))
        .await;
    assert!(matches!(more, Err(CatalogError::Full { .. })), "{more:?}");
    let first = [name("n0001")];
    let approved = site
        .catalog
        .approve_nodes(&first, at(2))
        .await
        .expect("approves");
    assert_eq!(approved[0].approved, Some(at(2)));
    let again = site
        .catalog
        .approve_nodes(&first, at(3))
        .await
        .expect("approves");
    assert!(again.is_empty());
    assert_eq!(
        site.catalog.node(&first[0]).await.expect("is").approved,
        Some(at(2))
    );
}

#[tokio::test]
async fn secrets_are_made_once() {
    let site = Site::new().await;
    site.catalog
        .add_node(&node("n1", 1), at(1))
        .await
        .expect("adds");
    let n1 = name("n1");
    let first = site
        .catalog
        .node_secret(&n1, || "first".to_owned(), at(1))
        .await;
    assert_eq!(first.expect("keeps"), "first");
    let second = site
        .catalog
        .node_secret(&n1, || "second".to_owned(), at(1))
        .await;
    assert_eq!(second.expect("keeps"), "first");
    let nobody = site
        .catalog
        .node_secret(&name("n2"), String::new, at(1))
        .await;
    assert!(matches!(nobody, Err(CatalogError::NodeNotFound { .. })));
}

#[tokio::test]
async fn profiles_do_not_inherit_from_themselves() {
    let site = Site::new().await;
    let catalog = &site.catalog;
    catalog
        .add_profile(&profile("base", None), at(1))
        .await
        .expect("adds");
    catalog
        .add_profile(&profile("lab", Some("base")), at(1))
        .await
        .expect("adds");
    catalog
        .add_profile(&profile("gpu", Some("lab")), at(1))
        .await
        .expect("adds");
    for parent in ["gpu", "base"] {
        let base = profile_name("base");
        let cycle = catalog
            .update_profile(&base, Pass::Keep, |row| {
                row.parent = Some(profile_name(parent));
            })
            .await;
        assert!(
            matches!(cycle, Err(CatalogError::Cycle { .. })),
            "{parent}: {cycle:?}"
        );
    }
    let absent = catalog.add_profile(&profile("x", Some("y")), at(1)).await;
    assert!(matches!(absent, Err(CatalogError::ProfileNotFound { .. })));
    let twice = catalog.add_profile(&profile("lab", None), at(1)).await;
    assert!(matches!(twice, Err(CatalogError::Exists { .. })));

    let mut heir = node("n1", 1);
    heir.profile = Some(profile_name("gpu"));
    catalog.add_node(&heir, at(1)).await.expect("adds");
    for (held, holder) in [
        ("lab", Holder::Profile(profile_name("gpu"))),
        ("gpu", Holder::Node(name("n1"))),
    ] {
        let in_use = catalog
            .delete_profile(&profile_name(held))
            .await
            .expect_err("is in use");
        let CatalogError::ProfileInUse { holders, .. } = &in_use else {
            panic!("{in_use}")
        };
        assert_eq!(*holders, [holder]);
    }
    catalog.delete_nodes(&[name("n1")]).await.expect("deletes");
    catalog
        .delete_profile(&profile_name("gpu"))
        .await
        .expect("deletes");
}

#[tokio::test]
async fn inheritance_has_a_depth() {
    let site = Site::new().await;
    let catalog = &site.catalog;
    catalog
        .add_profile(&profile("p1", None), at(1))
        .await
        .expect("adds");
    for depth in 2..=PROFILE_DEPTH_MAX {
        let parent = format!("p{}", depth - 1);
        let new = profile(&format!("p{depth}"), Some(&parent));
        catalog.add_profile(&new, at(1)).await.expect("adds");
    }
    let last = format!("p{PROFILE_DEPTH_MAX}");
    let deep = catalog
        .add_profile(&profile("more", Some(&last)), at(1))
        .await;
    assert!(
        matches!(deep, Err(CatalogError::TooDeep { .. })),
        "{deep:?}"
    );
    // Nor by putting the whole chain below another.
    catalog
        .add_profile(&profile("top", None), at(1))
        .await
        .expect("adds");
    let first = profile_name("p1");
    let deep = catalog
        .update_profile(&first, Pass::Keep, |row| {
            row.parent = Some(profile_name("top"));
        })
        .await;
    assert!(
        matches!(deep, Err(CatalogError::TooDeep { .. })),
        "{deep:?}"
    );
}

#[tokio::test]
async fn a_version_that_a_node_needs_is_in_use() {
    let site = Site::with_version("lab").await;
    let catalog = &site.catalog;
    let lab = "lab".parse().expect("a name");
    catalog
        .remove_tag(&lab, &"live".parse().expect("a tag"), "local", at(1))
        .await
        .expect("untags");
    let mut pinned = node("n1", 1);
    pinned.image = Some("lab:1".parse().expect("a spec"));
    catalog.add_node(&pinned, at(1)).await.expect("adds");
    let holders = |error: CatalogError| match error {
        CatalogError::InUse { holders, .. } | CatalogError::ImageInUse { holders, .. } => holders,
        other => panic!("{other}"),
    };
    let one = VersionNumber(1);
    let held = catalog
        .delete_version(&lab, one, "local", at(2))
        .await
        .expect_err("is in use");
    assert_eq!(holders(held), [Holder::Node(name("n1"))]);
    catalog
        .update_nodes(&[name("n1")], Pass::Keep, |row| {
            row.image = Some("lab".parse().expect("a spec"));
        })
        .await
        .expect("changes");
    let held = catalog
        .delete_image(&lab, "local", at(2))
        .await
        .expect_err("is named");
    assert_eq!(holders(held), [Holder::Node(name("n1"))]);
    catalog
        .update_nodes(&[name("n1")], Pass::Keep, |row| row.image = None)
        .await
        .expect("changes");

    // What runs is in use without any setting, until it is over.
    site.booting("n1", "a").await;
    assert!(matches!(redeem(&site, "a", 11).await, Redeemed::Open(_)));
    catalog
        .set_boot_order("boot-a", "{}", &lab, one, LIMIT)
        .await
        .expect("records");
    let held = catalog
        .delete_image(&lab, "local", at(12))
        .await
        .expect_err("runs");
    assert_eq!(holders(held), [Holder::Node(name("n1"))]);
    assert!(catalog.end_boot("boot-a", at(13)).await.expect("ends"));
    catalog
        .delete_version(&lab, one, "local", at(14))
        .await
        .expect("deletes");
    let late = catalog
        .set_boot_order("boot-a", "{}", &lab, one, LIMIT)
        .await;
    assert!(late.is_err(), "a boot that is over runs nothing");
}

#[tokio::test]
async fn a_tag_that_nodes_are_to_run_stays() {
    let site = Site::with_version("lab").await;
    let catalog = &site.catalog;
    let (lab, live) = (
        "lab".parse().expect("a name"),
        "live".parse().expect("a tag"),
    );
    let mut tagged = node("n1", 1);
    tagged.image = Some("lab@live".parse().expect("a spec"));
    tagged.settings = r#"{"image":"lab@live"}"#.to_owned();
    catalog.add_node(&tagged, at(1)).await.expect("adds");
    let mut pinned = node("n2", 2);
    pinned.image = Some("lab:1".parse().expect("a spec"));
    pinned.settings = r#"{"image":"lab:1"}"#.to_owned();
    catalog.add_node(&pinned, at(1)).await.expect("adds");
    let refused = catalog.remove_tag(&lab, &live, "local", at(2)).await;
    let Err(CatalogError::TagInUse { holders, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(holders, [Holder::Node(name("n1"))]);
    let image = catalog.image(&lab).await.expect("an image");
    assert_eq!(image.tags.len(), 1, "nothing changed");
    catalog.delete_nodes(&[name("n1")]).await.expect("deletes");
    let removed = catalog.remove_tag(&lab, &live, "local", at(3)).await;
    assert_eq!(removed.expect("removes"), VersionNumber(1));
}
