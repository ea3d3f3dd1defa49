//! Tests of who is in the swarm and what they hold, at times that are made up.

use std::collections::{BTreeMap, BTreeSet};

use rootstock_api::swarm::{LiveCopies, SwarmHolding, SwarmPeer};

use super::*;

/// The chunks and pages of [`lab`].
const COUNT: u32 = 12;

fn name(text: &str) -> NodeName {
    text.parse().expect("a name")
}

fn id(node: &str) -> PeerId {
    PeerId::of(node)
}

fn lab() -> Digest {
    Digest::of(b"lab")
}

fn count_of(version: Digest) -> Option<u32> {
    (version == lab()).then_some(COUNT)
}

/// One that says what there is to say of most.
fn said(held_chunks: u32) -> SwarmAnnounce {
    let holding = SwarmHolding {
        version: lab(),
        held_chunks,
    };
    SwarmAnnounce {
        port: 8486,
        holds: vec![holding],
        ..SwarmAnnounce::default()
    }
}

/// A tracker, and its time.
struct Site {
    tracker: Tracker,
    now: Instant,
}

impl Site {
    fn new() -> Self {
        Self {
            tracker: Tracker::default(),
            now: Instant::now(),
        }
    }

    fn try_say(
        &mut self,
        node: &str,
        rack: &str,
        said: &SwarmAnnounce,
    ) -> Result<Announced, TrackerError> {
        let who = Announcer {
            node: &name(node),
            boot: "boot",
            address: [10, 0, 0, 7].into(),
            mode: SwarmMode::Tls,
            rack: rack.to_owned(),
        };
        self.tracker.announce(who, said, count_of, self.now)
    }

    fn say(&mut self, node: &str, rack: &str, said: &SwarmAnnounce) -> Announced {
        self.try_say(node, rack, said).expect("is taken")
    }

    fn accuse(&mut self, node: &str, liars: &[&str]) -> Vec<(NodeName, String)> {
        let liars = liars.iter().map(|liar| id(liar)).collect();
        let said = SwarmAnnounce { liars, ..said(0) };
        self.say(node, "a", &said).left_out
    }

    fn peers(&self, node: &str) -> Vec<SwarmPeer> {
        self.tracker.peers(id(node), self.now)
    }

    fn knows(&self, node: &str) -> BTreeSet<PeerId> {
        self.peers(node).iter().map(|peer| peer.id).collect()
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn copies(&self) -> Option<LiveCopies> {
        self.tracker.holders(lab(), self.now).copies(COUNT)
    }
}

fn ids(nodes: &[&str]) -> BTreeSet<PeerId> {
    nodes.iter().map(|node| id(node)).collect()
}

#[test]
fn members_are_told_of_each_other_and_forgotten_when_silent() {
    let mut site = Site::new();
    site.say("n1", "a", &said(0));
    site.say("n2", "a", &said(0));
    site.say("n3", "b", &said(0));
    // It serves nobody, and is told of the others all the same.
    site.say("n4", "a", &SwarmAnnounce::default());
    assert_eq!(site.knows("n1"), ids(&["n2", "n3"]));
    assert_eq!(site.knows("n4"), ids(&["n1", "n2", "n3"]));
    assert_eq!(site.knows("n9"), ids(&[]));
    let peers = site.peers("n1");
    assert_eq!(peers[0].id, id("n2"), "its own rack comes first");
    assert_eq!(peers[0].addresses, ["10.0.0.7:8486"]);
    assert_eq!((peers[1].rack.as_str(), peers[1].head), ("b", false));
    // Three missed are borne, a fourth is not.
    site.pass(35);
    site.say("n1", "a", &said(0));
    assert_eq!(site.knows("n1"), ids(&["n2", "n3"]));
    site.say("n3", "b", &said(0));
    site.pass(1);
    assert_eq!(site.knows("n1"), ids(&["n3"]));
    assert_eq!(site.tracker.figures(site.now).members, 2);
    site.tracker.tidy(site.now);
    assert_eq!(site.tracker.members.len(), 2);
    site.tracker.leave(&name("n3"), "another boot");
    assert_eq!(site.knows("n1"), ids(&["n3"]));
    site.tracker.leave(&name("n3"), "boot");
    assert_eq!(site.knows("n1"), ids(&[]));
}

#[test]
fn who_speaks_otherwise_is_not_told() {
    let mut site = Site::new();
    site.say("n1", "a", &said(0));
    let plain = Announcer {
        node: &name("n2"),
        boot: "boot",
        address: [10, 0, 0, 8].into(),
        mode: SwarmMode::Plain,
        rack: "a".to_owned(),
    };
    let announced = site.tracker.announce(plain, &said(0), count_of, site.now);
    assert!(announced.is_ok());
    assert_eq!(site.knows("n1"), ids(&[]));
    assert_eq!(site.knows("n2"), ids(&[]));
}

#[test]
fn many_racks_each_have_some_who_change() {
    let mut site = Site::new();
    for number in 0..600 {
        let rack = format!("r{}", number % 40);
        site.say(&format!("n{number}"), &rack, &said(0));
    }
    let own = |peer: &&SwarmPeer| peer.rack == "r0";
    let first = site.peers("n0");
    assert_eq!(first.iter().take_while(own).count(), 14);
    assert_eq!(first.iter().filter(own).count(), 14);
    let mut by_rack = BTreeMap::<_, usize>::new();
    for peer in &first[14..] {
        *by_rack.entry(&peer.rack).or_default() += 1;
    }
    assert_eq!(first.len() - 14, 64);
    assert_eq!(by_rack.len(), 39);
    assert!(by_rack.values().all(|peers| (1..=2).contains(peers)));
    // The same question has the same answer, the next one another.
    assert_eq!(site.peers("n0"), first);
    site.say("n0", "r0", &said(0));
    let second = site.peers("n0");
    assert_eq!(second[..14], first[..14]);
    assert_ne!(second[14..], first[14..]);
}

#[test]
fn a_large_rack_agrees_on_a_part_of_it() {
    let mut site = Site::new();
    let nodes: Vec<String> = (0..500).map(|number| format!("n{number}")).collect();
    for node in &nodes {
        site.say(node, "a", &said(0));
    }
    let mut known = BTreeSet::new();
    for node in &nodes[..20] {
        let knows = site.knows(node);
        assert_eq!(knows.len(), 384);
        known.extend(knows);
    }
    // Each does without itself, if it is in the part.
    assert_eq!(known.len(), 385);
}

#[test]
fn announcements_are_seldom_where_members_are_many() {
    let mut site = Site::new();
    for (members, seconds) in [(1, 10), (500, 10), (502, 11), (2001, 40)] {
        let mut again = 0;
        for number in 0..members {
            let node = format!("n{number}");
            again = site
                .say(&node, "a", &SwarmAnnounce::default())
                .again_seconds;
        }
        assert_eq!(again, seconds, "{members} members");
    }
    // They are waited for accordingly.
    site.pass(100);
    assert!(site.tracker.view(&name("n2000"), site.now).is_some());
}

#[test]
fn there_is_no_place_for_more_than_there_can_be() {
    let mut site = Site::new();
    for number in 0..MEMBERS_MAX {
        site.say(&format!("n{number}"), "a", &SwarmAnnounce::default());
    }
    let error = site.try_say("other", "a", &said(0));
    assert_eq!(error, Err(TrackerError::Full));
    site.say("n7", "a", &said(0));
    // Those that went make room.
    site.pass(3600);
    site.say("other", "a", &said(0));
    assert_eq!(site.tracker.members.len(), 1);
}

#[test]
fn two_names_with_one_id_are_not_mistaken_for_each_other() {
    let mut site = Site::new();
    site.say("n1", "a", &said(0));
    let member = site.tracker.members.get_mut(&id("n1")).expect("is there");
    member.node = name("twin");
    let error = site.try_say("n1", "a", &said(0)).expect_err("is refused");
    let (id, other) = (id("n1"), name("twin"));
    assert_eq!(error, TrackerError::SameId { id, other });
    assert_eq!(site.tracker.view(&name("n1"), site.now), None);
    site.pass(36);
    assert!(site.try_say("n1", "a", &said(0)).is_ok());
}

#[test]
fn the_rarest_chunk_is_known_as_machines_say_what_they_hold() {
    let mut site = Site::new();
    assert_eq!(site.copies(), None);
    // The count alone says nothing, unless it is all.
    assert_eq!(site.say("n1", "a", &said(8)).holds_wanted, [lab()]);
    assert_eq!(site.say("n2", "a", &said(COUNT)).holds_wanted, []);
    assert_eq!(site.say("n3", "a", &said(0)).holds_wanted, []);
    let live = |rarest_count, machine_count| {
        Some(LiveCopies {
            rarest_count,
            machine_count,
        })
    };
    assert_eq!(site.copies(), live(1, 2));
    let holds = |site: &mut Site, node: &str, bitmap: &[u8]| {
        let held = site.tracker.holds(id(node), lab(), bitmap.to_vec(), COUNT);
        held.expect("is kept");
    };
    holds(&mut site, "n1", &[0xff, 0x00]);
    assert_eq!(site.copies(), live(1, 2));
    holds(&mut site, "n3", &[0x00, 0x0f]);
    assert_eq!(site.copies(), live(2, 3));
    holds(&mut site, "n3", &[0xff, 0x0f]);
    assert_eq!(site.copies(), live(2, 3));
    assert_eq!(site.tracker.bitmap_bytes, 2);
    // What is known stays with the next announcements, until it changes.
    assert_eq!(site.say("n1", "a", &said(9)).holds_wanted, []);
    assert_eq!(site.copies(), live(2, 3));
    assert_eq!(site.say("n2", "a", &said(3)).holds_wanted, [lab()]);
    assert_eq!(site.copies(), live(1, 3));
    // Who serves nobody is no copy, and who lets it go neither.
    site.say("n1", "a", &SwarmAnnounce::default());
    assert_eq!(site.tracker.bitmap_bytes, 0);
    site.pass(36);
    assert_eq!(site.copies(), None);
}

#[test]
fn what_is_held_has_bounds() {
    let mut site = Site::new();
    let hold = |site: &mut Site, version: u8| {
        let version = Digest::of(&[version]);
        site.tracker.holds(id("n1"), version, vec![1], COUNT)
    };
    assert_eq!(hold(&mut site, 0), Err(TrackerError::Stranger));
    let unknown = SwarmHolding {
        version: Digest::of(b"unknown"),
        held_chunks: 1,
    };
    let mut announce = said(1);
    // What is told twice counts once, and what nobody knows is not kept.
    announce.holds = vec![
        unknown,
        announce.holds[0].clone(),
        announce.holds[0].clone(),
    ];
    site.say("n1", "a", &announce);
    assert_eq!(site.tracker.members[&id("n1")].holdings.len(), 1);
    for version in 0..7 {
        assert_eq!(hold(&mut site, version), Ok(()));
    }
    assert_eq!(hold(&mut site, 7), Err(TrackerError::Versions));
    assert_eq!(hold(&mut site, 6), Ok(()));
    assert_eq!(site.tracker.bitmap_bytes, 7);
    // As if others had said as much as there may be, but for a byte.
    site.tracker.bitmap_bytes = BITMAP_BYTES_MAX - 1;
    let grow = |site: &mut Site, bitmap: &[u8]| {
        let version = Digest::of(&[6]);
        site.tracker
            .holds(id("n1"), version, bitmap.to_vec(), COUNT)
    };
    assert_eq!(grow(&mut site, &[1, 0, 0]), Err(TrackerError::Bitmaps));
    assert_eq!(grow(&mut site, &[1, 0]), Ok(()));
    assert_eq!(site.tracker.bitmap_bytes, BITMAP_BYTES_MAX);
    // Nobody is asked for what there is no room for.
    assert_eq!(site.say("n2", "a", &said(1)).holds_wanted, []);
    site.tracker.tidy(site.now);
    assert_eq!(site.tracker.bitmap_bytes, 8);
    assert_eq!(site.say("n2", "a", &said(1)).holds_wanted, [lab()]);
    site.say("n1", "a", &said(1));
    assert_eq!(site.tracker.bitmap_bytes, 0);
}

#[test]
fn three_machines_together_are_believed() {
    let mut site = Site::new();
    for node in ["n1", "n2", "n3", "n4", "liar"] {
        site.say(node, "a", &said(COUNT));
    }
    assert_eq!(site.accuse("n1", &["liar"]), []);
    assert_eq!(site.accuse("n1", &["liar", "liar", "n1", "stranger"]), []);
    assert_eq!(site.accuse("n2", &["liar"]), []);
    assert!(site.knows("n1").contains(&id("liar")));
    let left_out = site.accuse("n3", &["liar", "n4"]);
    assert_eq!(left_out, [(name("liar"), "boot".to_owned())]);
    assert_eq!(site.knows("n1"), ids(&["n2", "n3", "n4"]));
    // It is told of the others still, but not believed.
    assert_eq!(site.knows("liar"), ids(&["n1", "n2", "n3", "n4"]));
    assert_eq!(site.accuse("n1", &["n4", "liar"]), []);
    assert_eq!(site.accuse("liar", &["n4"]), []);
    assert_eq!(site.tracker.figures(site.now).left_out, 1);
    assert_eq!(site.copies().map(|live| live.machine_count), Some(1));
    let rest = |site: &Site| site.tracker.view(&name("liar"), site.now)?.left_out;
    assert_eq!(rest(&site), Some(Duration::from_secs(600)));
    // It is not forgotten by going and coming again.
    site.tracker.leave(&name("liar"), "boot");
    site.pass(599);
    site.tracker.tidy(site.now);
    site.say("n1", "a", &said(0));
    site.say("liar", "a", &said(0));
    assert_eq!(rest(&site), Some(Duration::from_secs(1)));
    assert_eq!(site.knows("n1"), ids(&[]));
    site.pass(1);
    assert_eq!(rest(&site), None);
    assert_eq!(site.knows("n1"), ids(&["liar"]));
}

#[test]
fn old_accusations_do_not_count() {
    let mut site = Site::new();
    site.say("liar", "a", &said(0));
    assert_eq!(site.accuse("n1", &["liar"]), []);
    assert_eq!(site.accuse("n2", &["liar"]), []);
    site.pass(600);
    site.say("liar", "a", &said(0));
    assert_eq!(site.accuse("n3", &["liar"]), []);
    assert_eq!(site.accuse("n2", &["liar"]), []);
    assert_eq!(site.accuse("n1", &["liar"]).len(), 1);
    site.pass(600);
    site.tracker.tidy(site.now);
    assert_eq!(site.tracker.members.len(), 0);
}

#[test]
fn bytes_are_counted_over_boots() {
    let mut site = Site::new();
    let moved = |sent_bytes, received_bytes| SwarmAnnounce {
        sent_bytes,
        received_bytes,
        ..said(0)
    };
    site.say("n1", "a", &moved(100, 7));
    site.say("n1", "a", &moved(150, 7));
    site.say("n2", "b", &moved(0, 150));
    // An agent that began anew within a boot takes nothing away.
    site.say("n2", "b", &moved(0, 20));
    let anew = Announcer {
        node: &name("n1"),
        boot: "the next",
        address: [10, 0, 0, 7].into(),
        mode: SwarmMode::Tls,
        rack: "a".to_owned(),
    };
    let taken = site
        .tracker
        .announce(anew, &moved(30, 0), count_of, site.now);
    assert!(taken.is_ok());
    let figures = site.tracker.figures(site.now);
    let expected = Figures {
        members: 2,
        left_out: 0,
        by_rack: [("a".to_owned(), 1), ("b".to_owned(), 1)].into(),
        sent_bytes: 180,
        received_bytes: 157,
    };
    assert_eq!(figures, expected);
    let view = site.tracker.view(&name("n1"), site.now).expect("is there");
    assert_eq!((view.sent_bytes, view.received_bytes), (30, 0));
}
