//! Random clients, two servers with one table of leases, and restarts, against a
//! plain model: no address is ever valid for two clients.

use std::collections::{HashMap, VecDeque};

use proptest::prelude::*;

use super::*;

/// The shared table, with the rule of the catalog: an address is given when it is
/// free, over, or this card's own and not declined; no lease becomes shorter; and what
/// a card gives back is not what it was given since.
#[derive(Default)]
struct Book(HashMap<Ipv4Addr, Lease>);

impl Book {
    fn commit(&mut self, lease: &Lease) -> Result<(), CommitError> {
        let mut lease = lease.clone();
        if let Some(row) = self.0.get(&lease.address) {
            let own = row.mac == lease.mac && row.state != LeaseState::Declined;
            if row.expires > lease.started && !own {
                return Err(CommitError::Taken);
            }
            if own && row.state == LeaseState::Bound {
                lease.expires = lease.expires.max(row.expires);
            }
        }
        self.0.insert(lease.address, lease);
        Ok(())
    }

    fn end(&mut self, address: Ipv4Addr, mac: MacAddress, state: LeaseState, until: Millis) {
        let is_its = |row: &&mut Lease| {
            row.mac == mac && (state != LeaseState::Released || row.started < until)
        };
        if let Some(row) = self.0.get_mut(&address).filter(is_its) {
            row.state = state;
            row.expires = until;
        }
    }
}

/// What a client believes: its address, and until when.
type Beliefs = HashMap<MacAddress, (Ipv4Addr, Millis)>;

#[derive(Debug, Clone)]
enum Step {
    Discover {
        client: u8,
        boots: bool,
    },
    /// Takes the last offer from either server.
    Take {
        client: u8,
    },
    Renew {
        client: u8,
        to: usize,
    },
    Reboot {
        client: u8,
        wanted: u8,
    },
    Release {
        client: u8,
        to: usize,
    },
    Decline {
        client: u8,
    },
    Restart {
        which: usize,
    },
    /// Answers of the table arrive.
    Settle {
        which: usize,
        fails: bool,
    },
    Probes {
        which: usize,
        used: bool,
    },
    Pass {
        seconds: u32,
    },
    Reserve {
        client: u8,
        last: u8,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let client = 1..9_u8;
    let step = prop_oneof![
        4 => (client.clone(), any::<bool>()).prop_map(|(client, boots)| Step::Discover { client, boots }),
        4 => client.clone().prop_map(|client| Step::Take { client }),
        2 => (client.clone(), 0..2_usize).prop_map(|(client, to)| Step::Renew { client, to }),
        2 => (client.clone(), 98..106_u8).prop_map(|(client, wanted)| Step::Reboot { client, wanted }),
        2 => (client.clone(), 0..2_usize).prop_map(|(client, to)| Step::Release { client, to }),
        1 => client.clone().prop_map(|client| Step::Decline { client }),
        1 => (0..2_usize).prop_map(|which| Step::Restart { which }),
        6 => (0..2_usize, prop::bool::weighted(0.1)).prop_map(|(which, fails)| Step::Settle { which, fails }),
        3 => (0..2_usize, prop::bool::weighted(0.1)).prop_map(|(which, used)| Step::Probes { which, used }),
        2 => (1..200_u32).prop_map(|seconds| Step::Pass { seconds }),
        1 => (client, 100..104_u8).prop_map(|(client, last)| Step::Reserve { client, last }),
    ];
    proptest::collection::vec(step, 1..150)
}

struct World {
    now: Millis,
    heads: [Server; 2],
    /// What each head waits for.
    waiting: [VecDeque<Action>; 2],
    book: Book,
    offers: HashMap<MacAddress, (Ipv4Addr, Ipv4Addr)>,
    beliefs: Beliefs,
    known: Vec<Known>,
    /// Numbers requests (`xid`), of which each client forgets those before it gave its
    /// address back: answers to them are none of its.
    requests: u32,
    forgotten: HashMap<MacAddress, u32>,
}

fn head(which: usize) -> Server {
    let mut settings = config(Mode::Dhcp);
    settings.interfaces[0].address = head_address(which);
    settings.networks[0].pool = Some((address(100), address(103)));
    settings.networks[0].lease = Millis::seconds(300);
    settings.probes = Probes::On;
    Server::new(settings)
}

fn head_address(which: usize) -> Ipv4Addr {
    if which == 0 { SERVER } else { address(2) }
}

impl World {
    fn new() -> Self {
        Self {
            now: START,
            heads: [head(0), head(1)],
            waiting: Default::default(),
            book: Book::default(),
            offers: HashMap::new(),
            beliefs: HashMap::new(),
            known: Vec::new(),
            requests: 0,
            forgotten: HashMap::new(),
        }
    }

    fn send(&mut self, which: usize, ask: Ask) {
        self.send_to(&[which], ask);
    }

    fn both(&mut self, ask: Ask) {
        self.send_to(&[0, 1], ask);
    }

    fn send_to(&mut self, heads: &[usize], ask: Ask) {
        self.requests += 1;
        let ask = ask.at(4, &self.requests.to_be_bytes());
        for which in heads {
            let actions = ask.send(&mut self.heads[*which], self.now);
            self.follow(*which, actions);
        }
    }

    /// A client gives its address back.
    fn leave(&mut self, client: u8) {
        self.beliefs.remove(&mac(client));
        self.forgotten.insert(mac(client), self.requests);
    }

    fn follow(&mut self, which: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send(outgoing) => self.deliver(which, &outgoing),
                Action::Event(_) => {}
                other => self.waiting[which].push_back(other),
            }
        }
    }

    fn deliver(&mut self, which: usize, outgoing: &Outgoing) {
        let packet = Packet::read(&outgoing.bytes).unwrap();
        let mac = packet.mac().unwrap();
        if self
            .forgotten
            .get(&mac)
            .is_some_and(|last| packet.xid <= *last)
        {
            return;
        }
        match packet.kind {
            Kind::Offer => {
                self.offers
                    .insert(mac, (packet.yiaddr, head_address(which)));
            }
            Kind::Ack => {
                let seconds = option(outgoing, 51).unwrap();
                let seconds = u32::from_be_bytes(seconds.try_into().unwrap());
                let until = self.now.after(Millis::seconds(seconds));
                self.believe(mac, packet.yiaddr, until);
            }
            _ => {
                self.beliefs.remove(&mac);
            }
        }
    }

    /// The property.
    fn believe(&mut self, mac: MacAddress, address: Ipv4Addr, until: Millis) {
        for (other, (theirs, end)) in &self.beliefs {
            assert!(
                *other == mac || *theirs != address || *end <= self.now,
                "{address} is {other}'s until {end:?}, and {mac} was given it at {:?}",
                self.now
            );
        }
        let row = &self.book.0[&address];
        assert_eq!(row.mac, mac, "an acknowledgement without a lease");
        assert!(row.expires >= until, "a lease shorter than told");
        self.beliefs.insert(mac, (address, until));
    }

    fn settle(&mut self, which: usize, fails: bool) {
        for action in std::mem::take(&mut self.waiting[which]) {
            let answers = match action {
                Action::Commit { ticket, lease } => {
                    let result = if fails {
                        Err(CommitError::Failed)
                    } else {
                        self.book.commit(&lease)
                    };
                    self.heads[which].committed(self.now, ticket, result)
                }
                Action::Release { address, mac, now } => {
                    self.book.end(address, mac, LeaseState::Released, now);
                    Vec::new()
                }
                Action::Decline {
                    address,
                    mac,
                    until,
                } => {
                    self.book.end(address, mac, LeaseState::Declined, until);
                    Vec::new()
                }
                probe => {
                    self.waiting[which].push_back(probe);
                    Vec::new()
                }
            };
            self.follow(which, answers);
        }
    }

    fn probes(&mut self, which: usize, used: bool) {
        for action in std::mem::take(&mut self.waiting[which]) {
            if let Action::Probe { ticket, .. } = action {
                let found = if used { Probed::Used } else { Probed::Silent };
                let answers = self.heads[which].probed(self.now, ticket, found);
                self.follow(which, answers);
            } else {
                self.waiting[which].push_back(action);
            }
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Discover { client, boots } => {
                let options: &[(u8, &[u8])] = if boots {
                    &[(60, b"PXEClient"), (93, &[0, 0])]
                } else {
                    &[]
                };
                self.both(ask(client, Kind::Discover, options));
            }
            Step::Take { client } => {
                let Some((wanted, server)) = self.offers.get(&mac(client)).copied() else {
                    return;
                };
                let options: &[(u8, &[u8])] = &[(50, &wanted.octets()), (54, &server.octets())];
                self.both(ask(client, Kind::Request, options));
            }
            Step::Renew { client, to } => {
                let valid = self.belief(client);
                if let Some(address) = valid {
                    self.send(to, ask(client, Kind::Request, &[]).from(address));
                }
            }
            Step::Reboot { client, wanted } => {
                self.both(ask(
                    client,
                    Kind::Request,
                    &[(50, &address(wanted).octets())],
                ));
            }
            Step::Release { client, to } => {
                if let Some(address) = self.belief(client) {
                    self.leave(client);
                    self.send(to, ask(client, Kind::Release, &[]).from(address));
                }
            }
            Step::Decline { client } => {
                if let Some(address) = self.belief(client) {
                    self.leave(client);
                    let octets = address.octets();
                    self.both(ask(client, Kind::Decline, &[(50, &octets)]));
                }
            }
            Step::Restart { which } => {
                self.heads[which] = head(which);
                self.waiting[which].clear();
                let leases: Vec<_> = self.book.0.values().cloned().collect();
                self.heads[which].load(self.now, &leases);
                self.heads[which].set_known(self.known.clone());
            }
            Step::Settle { which, fails } => self.settle(which, fails),
            Step::Probes { which, used } => self.probes(which, used),
            Step::Pass { seconds } => {
                self.now = self.now.after(Millis::seconds(seconds));
                for which in 0..2 {
                    let actions = self.heads[which].wake(self.now);
                    self.follow(which, actions);
                }
            }
            Step::Reserve { client, last } => {
                self.known = vec![Known {
                    mac: mac(client),
                    address: Some(address(last)),
                    host_name: None,
                    strategy: None,
                    wants_ipxe: false,
                }];
                for head in &mut self.heads {
                    head.set_known(self.known.clone());
                }
            }
        }
    }

    fn belief(&self, client: u8) -> Option<Ipv4Addr> {
        let belief = self.beliefs.get(&mac(client));
        belief
            .filter(|belief| belief.1 > self.now)
            .map(|belief| belief.0)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_address_is_ever_two_clients(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
    }

    #[test]
    fn no_packet_hurts(
        packets in proptest::collection::vec(
            (1..9_u8, proptest::collection::vec((1..254_u8, proptest::collection::vec(any::<u8>(), 0..20)), 0..8),
             proptest::collection::vec((0..240_usize, any::<u8>()), 0..4)),
            1..60,
        ),
        mode in prop_oneof![Just(Mode::Auto), Just(Mode::Dhcp), Just(Mode::Proxy), Just(Mode::Observe)],
    ) {
        let mut server = Server::new(config(mode));
        for (kind, options, changes) in packets {
            let options: Vec<(u8, &[u8])> = options.iter().map(|(c, v)| (*c, v.as_slice())).collect();
            let mut bytes = crate::client::tests::request(mac(kind).0, kind, &options);
            for (place, byte) in changes {
                bytes[place] = byte;
            }
            let ask = Ask { bytes, source: SocketAddrV4::new(address(50), 68), port: if kind > 4 { 4011 } else { 67 } };
            let actions = ask.send(&mut server, START);
            for (outgoing, _) in sent(&actions) {
                prop_assert!((300..=576).contains(&outgoing.bytes.len()));
            }
            commit(&mut server, START, &actions, Ok(()));
        }
    }
}
