//! A catalog in a temporary directory, and what is put into it.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use jiff::Timestamp;
use rootstock_catalog::{
    Catalog, NewBoot, NewNode, NewProfile, NewToken, NewVersion, NodeState, Redeemed, Registration,
};
use rootstock_core::{Digest, HostList, MacAddress, NodeName, ProfileName};

/// How long boots have to come up.
pub(crate) const LIMIT: Duration = Duration::from_secs(600);

pub(crate) struct Site {
    pub(crate) catalog: Catalog,
    pub(crate) dir: tempfile::TempDir,
}

impl Site {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let catalog = open(&dir).await;
        Self { catalog, dir }
    }

    pub(crate) async fn with_version(image: &str) -> Self {
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

    pub(crate) async fn booting(&self, node: &str, token: &str) -> NewBoot {
        let boot = boot(node, token);
        self.catalog
            .begin_boot(&boot, at(10))
            .await
            .expect("begins");
        boot
    }
}

pub(crate) async fn open(dir: &tempfile::TempDir) -> Catalog {
    Catalog::open(&dir.path().join("catalog.sqlite"))
        .await
        .expect("opens")
}

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("in range")
}

pub(crate) fn name(text: &str) -> NodeName {
    text.parse().expect("a node's name")
}

pub(crate) fn profile_name(text: &str) -> ProfileName {
    text.parse().expect("a profile's name")
}

pub(crate) fn mac(last: u16) -> MacAddress {
    let [high, low] = last.to_be_bytes();
    MacAddress([0x52, 0x54, 0, 0, high, low])
}

pub(crate) fn node(text: &str, last: u16) -> NewNode {
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

pub(crate) fn profile(text: &str, parent: Option<&str>) -> NewProfile {
    NewProfile {
        name: profile_name(text),
        parent: parent.map(profile_name),
        settings: "{}".to_owned(),
        image: None,
    }
}

pub(crate) fn found(names: &HostList, last: u16, state: NodeState) -> Registration<'_> {
    Registration {
        names,
        macs: vec![mac(last)],
        uuid: None,
        profile: None,
        state,
        inventory: None,
    }
}

pub(crate) const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));

pub(crate) fn boot(node: &str, token: &str) -> NewBoot {
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

pub(crate) async fn redeem(site: &Site, token: &str, second: i64) -> Redeemed {
    let session = Digest::of(format!("session of {token}").as_bytes());
    let digest = Digest::of(token.as_bytes());
    let held_until = at(second + 600);
    site.catalog
        .redeem_token(digest, SOURCE, session, at(second), held_until)
        .await
        .expect("judges")
}
