//! Nodes, profiles, leases and boots, against a database in a temporary directory.

use std::net::{IpAddr, Ipv4Addr};

use jiff::Timestamp;
use rootstock_catalog::{
    BOOTS_PER_NODE_MAX, Catalog, CatalogError, HELD_MAX, Holder, LeaseRow, LeaseState, NewBoot,
    NewNode, NewProfile, NewToken, NewVersion, NodeState, PROFILE_DEPTH_MAX, Pass, Redeemed,
    Registered, Registration, STEPS_PER_BOOT_MAX, StepRow, Taken,
};
use rootstock_core::{
    Digest, HostList, MacAddress, NodeName, ProfileName, VersionNumber, VersionSpec,
};

struct Site {
    catalog: Catalog,
    dir: tempfile::TempDir,
}

impl Site {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let catalog = open(&dir).await;
        Self { catalog, dir }
    }

    async fn with_version(image: &str) -> Self {
        let site = Self::new().await;
        let new = NewVersion {
            image: image.parse().expect("a name"),
            manifest: Digest::of(b"manifest"),
            disk_bytes: 1 << 30,
            used_bytes: 1,
            added_chunks: 1,
            added_bytes: 1,
            parent: None,
            source: "disk.raw".to_owned(),
            message: None,
            facts: "{}".to_owned(),
            tag: Some("live".parse().expect("a tag")),
            event: "imported",
            actor: "local".to_owned(),
            import: None,
        };
        site.catalog
            .add_version(new, at(0), |_| String::new())
            .await
            .expect("adds");
        site
    }

    async fn booting(&self, node: &str, token: &str) -> NewBoot {
        let boot = boot(node, token);
        self.catalog
            .begin_boot(&boot, at(10))
            .await
            .expect("begins");
        boot
    }
}

async fn open(dir: &tempfile::TempDir) -> Catalog {
    Catalog::open(&dir.path().join("catalog.sqlite"))
        .await
        .expect("opens")
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("in range")
}

fn name(text: &str) -> NodeName {
    text.parse().expect("a node's name")
}

fn profile_name(text: &str) -> ProfileName {
    text.parse().expect("a profile's name")
}

fn mac(last: u16) -> MacAddress {
    let [high, low] = last.to_be_bytes();
    MacAddress([0x52, 0x54, 0, 0, high, low])
}

fn node(text: &str, last: u16) -> NewNode {
    NewNode {
        name: name(text),
        profile: None,
        macs: vec![mac(last)],
        uuid: None,
        address: None,
        settings: "{}".to_owned(),
        image: None,
    }
}

fn profile(text: &str, parent: Option<&str>) -> NewProfile {
    NewProfile {
        name: profile_name(text),
        parent: parent.map(profile_name),
        settings: "{}".to_owned(),
        image: None,
    }
}

fn found(names: &HostList, last: u16, state: NodeState) -> Registration<'_> {
    Registration {
        names,
        macs: vec![mac(last)],
        uuid: None,
        profile: None,
        state,
        inventory: None,
    }
}

const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));

fn boot(node: &str, token: &str) -> NewBoot {
    NewBoot {
        id: format!("boot-{token}"),
        node: name(node),
        token: Some(NewToken {
            digest: Digest::of(token.as_bytes()),
            source: SOURCE,
            expires: at(600),
        }),
    }
}

async fn redeem(site: &Site, token: &str, second: i64) -> Redeemed {
    let session = Digest::of(format!("session of {token}").as_bytes());
    let digest = Digest::of(token.as_bytes());
    let held_until = at(second + 600);
    site.catalog
        .redeem_token(digest, SOURCE, session, at(second), held_until)
        .await
        .expect("judges")
}

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
        .set_boot_order("boot-a", "{}", &lab, one)
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
    let late = catalog.set_boot_order("boot-a", "{}", &lab, one).await;
    assert!(late.is_err(), "a boot that is over runs nothing");
}

fn lease(last: u8, card: u16, from: i64, until: i64) -> LeaseRow {
    LeaseRow {
        address: Ipv4Addr::new(10, 0, 0, last),
        mac: mac(card),
        client_id: "01525400".to_owned(),
        host_name: None,
        node: None,
        network: "lab0".to_owned(),
        state: LeaseState::Bound,
        started: at(from),
        expires: at(until),
    }
}

#[tokio::test]
async fn an_address_is_one_clients() {
    let site = Site::new().await;
    let other = open(&site.dir).await;
    let taken = |last| {
        Err(Taken {
            address: Ipv4Addr::new(10, 0, 0, last),
        })
    };
    let first = [
        lease(1, 1, 0, 100),
        lease(2, 2, 0, 100),
        lease(1, 3, 0, 100),
    ];
    let answers = site
        .catalog
        .lease_commit_many(&first)
        .await
        .expect("commits");
    assert_eq!(answers, [Ok(()), Ok(()), taken(1)]);
    // The other daemon: not before it is over, but the same card at any time.
    for (row, answer) in [
        (lease(1, 3, 99, 200), taken(1)),
        (lease(1, 1, 50, 150), Ok(())),
        (lease(1, 3, 149, 250), taken(1)),
        (lease(1, 3, 150, 250), Ok(())),
    ] {
        let answers = other.lease_commit_many(std::slice::from_ref(&row)).await;
        assert_eq!(answers.expect("commits"), [answer], "{row:?}");
    }
    let address = Ipv4Addr::new(10, 0, 0, 1);
    assert!(
        !site
            .catalog
            .lease_release(address, mac(1), at(160))
            .await
            .expect("looks")
    );
    assert!(
        site.catalog
            .lease_release(address, mac(3), at(160))
            .await
            .expect("releases")
    );
    let again = site
        .catalog
        .lease_commit_many(&[lease(1, 4, 160, 300)])
        .await;
    assert_eq!(again.expect("commits"), [Ok(())]);
    // A declined address is nobody's, also not its own client's.
    assert!(
        site.catalog
            .lease_decline(address, mac(4), at(500))
            .await
            .expect("declines")
    );
    for (card, from, answer) in [(4, 400, taken(1)), (5, 499, taken(1)), (5, 500, Ok(()))] {
        let answers = other.lease_commit_many(&[lease(1, card, from, 600)]).await;
        assert_eq!(answers.expect("commits"), [answer]);
    }
    assert_eq!(
        site.catalog.leases_expire(at(101)).await.expect("forgets"),
        1
    );
    let rows = site.catalog.leases().await.expect("lists");
    assert_eq!(rows, [lease(1, 5, 500, 600)]);
}

#[tokio::test]
async fn a_nodes_address_is_for_its_cards_only() {
    let site = Site::new().await;
    let mut owner = node("n1", 1);
    owner.macs.push(mac(2));
    owner.address = Some(Ipv4Addr::new(10, 0, 0, 9));
    site.catalog.add_node(&owner, at(1)).await.expect("adds");
    let asked = [lease(9, 7, 1, 9), lease(9, 2, 1, 9), lease(8, 7, 1, 9)];
    let answers = site
        .catalog
        .lease_commit_many(&asked)
        .await
        .expect("commits");
    assert_eq!(
        answers.iter().map(Result::is_ok).collect::<Vec<_>>(),
        [false, true, true]
    );
}

/// A batch is one statement: what clients send in it reaches its own row, as it is.
#[tokio::test]
async fn a_batch_of_leases_keeps_every_field() {
    let site = Site::new().await;
    let mut rows: Vec<LeaseRow> = (1..=200)
        .map(|last| lease(last, last.into(), 1, 100 + i64::from(last)))
        .collect();
    let names = [
        "\"],[\"",
        "back\\slash",
        "\u{1}\t",
        "'; DROP TABLE lease",
        "é€𝄞",
        "",
    ];
    for (row, name) in rows.iter_mut().zip(names) {
        row.host_name = Some(name.to_owned());
    }
    rows[7].client_id = String::new();
    rows[8].node = Some("n1".parse().expect("a name"));
    // The one in the middle comes again for another card, and is refused alone.
    let mut asked = rows.clone();
    asked.insert(100, lease(50, 999, 1, 9));
    let answers = site.catalog.lease_commit_many(&asked).await;
    let answers = answers.expect("commits");
    let refused = (0..).zip(&answers).filter(|(_, answer)| answer.is_err());
    let refused: Vec<i32> = refused.map(|(place, _)| place).collect();
    assert_eq!((answers.len(), refused), (201, vec![100]));
    let mut kept = site.catalog.leases().await.expect("lists");
    kept.sort_by_key(|row| row.address);
    assert_eq!(kept, rows);
    let none = site.catalog.lease_commit_many(&[]).await;
    assert_eq!(none.expect("commits"), []);
}

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
        .set_boot_order("boot-runs", "{}", &lab, VersionNumber(1))
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
