//! Whatever others say, a member neither fails nor grows.

use std::net::{IpAddr, Ipv4Addr};

use bytes::Bytes;
use proptest::prelude::*;
use rootstock_core::Digest;

use super::*;
use crate::bits::Bits;
use crate::holdings::Table;
use crate::wire::{Hello, Known, Refusal};

const CHUNKS: u8 = 24;
const PEERS: u8 = 4;

fn chunk(number: u8) -> ChunkId {
    ChunkId::of(&[number])
}

fn peer(number: u8) -> PeerId {
    PeerId::of(&format!("peer {number}"))
}

fn address() -> IpAddr {
    Ipv4Addr::LOCALHOST.into()
}

fn member(is_head: bool) -> Node {
    let mut node = Node::new(Config {
        id: PeerId::of("me"),
        rack: "r".to_owned(),
        is_head,
        serves: true,
        copies: 2,
        upload_max: Some(10_000_000),
        seed: 1,
    });
    let table = Table::new(Digest::of(b"v"), (0..CHUNKS).map(chunk));
    let mut held = Bits::new(table.len());
    held.set(0);
    held.set(5);
    node.join(Time(1), table, held, Goal::All);
    node
}

/// What happens to a member.
#[derive(Debug, Clone)]
enum Happens {
    Up(u8, bool),
    Down(u8),
    Says(u8, Message),
    Passes(u64),
    Want(u8, Class),
    Unwant(u8),
    Gained(u8),
    Lost(u8),
    Loads(bool),
    Checks(bool),
    Pulls(u8),
    Yields(bool),
}

fn class() -> impl Strategy<Value = Class> {
    prop_oneof![Just(Class::Bulk), Just(Class::Boot), Just(Class::User)]
}

fn says() -> impl Strategy<Value = Message> {
    let request = || 1_u32..12;
    let numbers = || prop::collection::vec(0_u32..40, 0..6);
    prop_oneof![
        (0_u8..3, 0_u32..30).prop_map(|(slot, chunks)| Message::Version {
            slot,
            version: Digest::of(b"v"),
            chunks: if chunks < 20 {
                u32::from(CHUNKS)
            } else {
                chunks
            },
        }),
        (0_u8..3, 0_u32..3, any::<[u8; 3]>()).prop_map(|(slot, eight, bits)| Message::Held {
            slot,
            first: eight * 8,
            bits: bits.to_vec(),
        }),
        (0_u8..3, numbers()).prop_map(|(slot, numbers)| Message::Gained { slot, numbers }),
        (0_u8..3, numbers()).prop_map(|(slot, numbers)| Message::Lost { slot, numbers }),
        (request(), 0..CHUNKS, class(), any::<bool>()).prop_map(
            |(request, number, class, insists)| Message::Ask {
                request,
                chunk: chunk(number),
                class,
                insists,
            }
        ),
        request().prop_map(|request| Message::Cancel { request }),
        (request(), 1_u32..9000).prop_map(|(request, wire_bytes)| Message::Begin {
            request,
            codec: 0,
            raw_bytes: wire_bytes,
            wire_bytes,
        }),
        (request(), 1_usize..6000).prop_map(|(request, len)| Message::Piece {
            request,
            data: Bytes::from(vec![7; len]),
        }),
        (request(), 0_usize..4, 0..PEERS).prop_map(|(request, why, hint)| {
            let all = [
                Refusal::Lacking,
                Refusal::Busy,
                Refusal::Broken,
                Refusal::Elsewhere,
            ];
            Message::Refuse {
                request,
                why: all[why],
                hint: Some(peer(hint)),
            }
        }),
        (0_u32..5000).prop_map(|delay_ms| Message::Load { delay_ms }),
        (0..PEERS, any::<bool>(), 0_u16..700).prop_map(|(number, is_head, age_seconds)| {
            Message::Peers(vec![Known {
                id: peer(number),
                address: SocketAddr::new(address(), 9),
                rack: "r".to_owned(),
                is_head,
                age_seconds,
            }])
        }),
    ]
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        2 => (0..PEERS, any::<bool>()).prop_map(|(peer, is_head)| Happens::Up(peer, is_head)),
        1 => (0..PEERS).prop_map(Happens::Down),
        12 => (0..PEERS, says()).prop_map(|(peer, message)| Happens::Says(peer, message)),
        4 => (0_u64..3_000_000).prop_map(Happens::Passes),
        3 => (0..CHUNKS, class()).prop_map(|(number, class)| Happens::Want(number, class)),
        1 => (0..CHUNKS).prop_map(Happens::Unwant),
        1 => (0..CHUNKS).prop_map(Happens::Gained),
        1 => (0..CHUNKS).prop_map(Happens::Lost),
        2 => any::<bool>().prop_map(Happens::Loads),
        3 => any::<bool>().prop_map(Happens::Checks),
        6 => (0..PEERS).prop_map(Happens::Pulls),
        1 => any::<bool>().prop_map(Happens::Yields),
    ]
}

/// A member, what it wants done, and the time.
struct Play {
    node: Node,
    now: Time,
    loads: Vec<ChunkId>,
    arrived: Vec<(ChunkId, PeerId, u32, bool)>,
}

impl Play {
    fn happens(&mut self, what: Happens) {
        let now = self.now;
        match what {
            Happens::Up(number, is_head) => {
                let hello = Hello {
                    id: peer(number),
                    rack: "r".to_owned(),
                    port: 9,
                    is_head,
                };
                if is_head {
                    let place = SocketAddr::new(address(), 9);
                    let head = Member::new(peer(number), place, "", true, now);
                    self.node.know(now, [head]);
                }
                self.node.up(now, &hello, address());
            }
            Happens::Down(number) => self.node.down(now, peer(number)),
            Happens::Says(number, message) => self.node.received(now, peer(number), message),
            Happens::Passes(micros) => {
                self.now = Time(now.0 + micros);
                self.node.tick(self.now);
            }
            Happens::Want(number, class) => self.node.want(now, chunk(number), class),
            Happens::Unwant(number) => self.node.unwant(now, chunk(number)),
            Happens::Gained(number) => self.node.gained(now, chunk(number)),
            Happens::Lost(number) => self.node.lost(now, chunk(number)),
            Happens::Loads(is_there) => {
                for chunk in std::mem::take(&mut self.loads) {
                    let whole = is_there.then(|| Whole {
                        codec: 0,
                        raw_bytes: 5000,
                        data: Bytes::from(vec![1; 5000]),
                    });
                    self.node.loaded(now, chunk, whole);
                }
            }
            Happens::Checks(is_right) => {
                for (chunk, peer, request, keep) in std::mem::take(&mut self.arrived) {
                    self.node.checked(now, peer, request, is_right);
                    if is_right && keep {
                        self.node.gained(now, chunk);
                    }
                }
            }
            Happens::Pulls(number) => {
                for _ in 0..20 {
                    if self.node.message(now, peer(number)).is_none() {
                        break;
                    }
                }
            }
            Happens::Yields(yields) => self.node.give_way(yields),
        }
        while let Some(action) = self.node.action() {
            match action {
                Action::Load { chunk } => self.loads.push(chunk),
                Action::Arrived {
                    chunk,
                    peer,
                    request,
                    keep,
                    ..
                } => self.arrived.push((chunk, peer, request, keep)),
                _ => {}
            }
        }
    }
}

proptest! {
    #[test]
    fn nothing_that_is_said_makes_it_fail_or_grow(
        is_head in any::<bool>(),
        all in prop::collection::vec(happens(), 0..250),
    ) {
        let mut play = Play {
            node: member(is_head),
            now: Time(1),
            loads: Vec::new(),
            arrived: Vec::new(),
        };
        for what in all {
            play.happens(what);
            let (wants, chunks, answers) = play.node.sizes();
            prop_assert!(wants <= usize::from(CHUNKS) && chunks <= 200 && answers <= 800);
        }
        // When all are gone, nothing is left but what is wanted here.
        // Twice: who goes last may have it begin to connect with the first again.
        for number in (0..PEERS).chain(0..PEERS) {
            play.happens(Happens::Down(number));
        }
        play.happens(Happens::Checks(true));
        play.happens(Happens::Loads(true));
        let (_, _, answers) = play.node.sizes();
        prop_assert_eq!(answers, 0);
        prop_assert_eq!(play.node.in_flight(), 0);
    }
}

#[test]
fn who_asks_and_does_not_listen_is_left() {
    let mut play = Play {
        node: member(false),
        now: Time(1),
        loads: Vec::new(),
        arrived: Vec::new(),
    };
    play.happens(Happens::Up(0, false));
    for request in 0..10_000 {
        let ask = Message::Ask {
            request,
            chunk: ChunkId::of(b"nobody has it"),
            class: Class::User,
            insists: false,
        };
        play.happens(Happens::Says(0, ask));
    }
    assert_eq!(play.node.linked().count(), 0);
}

#[test]
fn who_says_of_itself_that_it_is_a_head_is_none() {
    let mut node = member(false);
    let hello = Hello {
        id: peer(0),
        rack: "r".to_owned(),
        port: 9,
        is_head: true,
    };
    node.up(Time(1), &hello, address());
    let gossip = Known {
        id: peer(0),
        address: SocketAddr::new(address(), 9),
        rack: "r".to_owned(),
        is_head: true,
        age_seconds: 0,
    };
    node.received(Time(2), peer(1), Message::Peers(vec![gossip]));
    assert!(node.rack().contains(&peer(0)), "it owns as others do");
}

#[test]
fn without_room_nothing_is_fetched_to_be_kept() {
    let asks = |node: &mut Node, now: Time| {
        let mut count = 0;
        while let Some(message) = node.message(now, peer(0)) {
            count += usize::from(matches!(message, Message::Ask { .. }));
        }
        count
    };
    let mut node = member(false);
    node.had_no_room(Time(1), chunk(0));
    let head = Member::new(peer(0), SocketAddr::new(address(), 9), "", true, Time(1));
    node.know(Time(1), [head]);
    let hello = Hello {
        id: peer(0),
        rack: String::new(),
        port: 9,
        is_head: true,
    };
    node.up(Time(2), &hello, address());
    node.tick(Time(9_000_000));
    assert_eq!(asks(&mut node, Time(9_000_000)), 0);
    node.tick(Time(11_000_000));
    assert!(
        asks(&mut node, Time(11_000_000)) > 0,
        "there may be room again"
    );
}

#[test]
fn who_takes_its_name_does_not_keep_it_from_owning() {
    let mut node = member(false);
    let hello = Hello {
        id: node.id(),
        rack: "r".to_owned(),
        port: 9,
        is_head: false,
    };
    node.up(Time(1), &hello, address());
    assert_eq!(node.rack(), [node.id()]);
    assert_eq!(node.liars().count(), 0);
}

fn up(node: &mut Node, number: u8, rack: &str, port: u16) {
    let hello = Hello {
        id: peer(number),
        rack: rack.to_owned(),
        port,
        is_head: false,
    };
    node.up(Time(2), &hello, address());
}

/// What it has to say to a peer.
fn said(node: &mut Node, number: u8) -> Vec<Message> {
    std::iter::from_fn(|| node.message(Time(3), peer(number))).collect()
}

#[test]
fn a_head_sends_boots_to_whom_it_gave_a_chunk() {
    let mut play = Play {
        node: member(true),
        now: Time(2),
        loads: Vec::new(),
        arrived: Vec::new(),
    };
    play.node.set_order(Time(2), "", 2, None);
    for (number, rack, port) in [(0, "r", 9), (1, "r", 9), (2, "other", 9), (3, "r", 0)] {
        up(&mut play.node, number, rack, port);
    }
    let mut request = 0;
    let mut asks = |number: u8, class, insists| {
        request += 1;
        let ask = Message::Ask {
            request,
            chunk: chunk(7),
            class,
            insists,
        };
        play.happens(Happens::Says(number, ask));
        play.happens(Happens::Loads(true));
        let said = said(&mut play.node, number);
        said.into_iter().find_map(|message| match message {
            Message::Begin { .. } => Some(None),
            Message::Refuse { why, hint, .. } => Some(Some((why, hint))),
            _ => None,
        })
    };
    let sent = Some(None);
    let elsewhere = |number| Some(Some((Refusal::Elsewhere, Some(peer(number)))));
    // Who gives nothing is sent to by nobody.
    assert_eq!(asks(3, Class::Bulk, false), sent);
    assert_eq!(asks(0, Class::Bulk, false), sent);
    assert_eq!(asks(1, Class::Boot, false), elsewhere(0));
    assert_eq!(asks(0, Class::Boot, false), sent, "it lost it");
    assert_eq!(asks(2, Class::Boot, false), sent, "in another rack");
    assert_eq!(asks(1, Class::User, false), sent, "in a hurry");
    assert_eq!(asks(0, Class::Bulk, false), elsewhere(1));
    assert_eq!(asks(1, Class::Boot, false), elsewhere(0));
    assert_eq!(asks(1, Class::Boot, true), sent, "it was there");
}

/// Who would wait long is sent to somebody with less to do, as far as that is quicker.
#[test]
fn who_has_much_to_do_sends_some_to_others_that_hold_it() {
    for (class, insists, is_held, elsewhere) in [
        (Class::Bulk, false, true, 7),
        (Class::Bulk, true, true, 0),
        (Class::Boot, false, true, 0),
        (Class::Bulk, false, false, 0),
    ] {
        let mut node = member(false);
        up(&mut node, 0, "r", 9);
        up(&mut node, 1, "r", 9);
        let version = Message::Version {
            slot: 0,
            version: Digest::of(b"v"),
            chunks: u32::from(CHUNKS),
        };
        node.received(Time(2), peer(1), version);
        if is_held {
            let (slot, numbers) = (0, vec![5]);
            node.received(Time(2), peer(1), Message::Gained { slot, numbers });
        }
        // Each takes 26 ms of what may be sent.
        for request in 1..=20 {
            let ask = Message::Ask {
                request,
                chunk: chunk(5),
                class,
                insists,
            };
            node.received(Time(2), peer(0), ask);
        }
        node.tick(Time(25_000));
        let said = said(&mut node, 0);
        let sent = said.iter().filter(|message| {
            let to = (Refusal::Elsewhere, Some(peer(1)));
            matches!(message, Message::Refuse { why, hint, .. } if (*why, *hint) == to)
        });
        assert_eq!(sent.count(), elsewhere, "{class:?} {insists} {is_held}");
    }
}
