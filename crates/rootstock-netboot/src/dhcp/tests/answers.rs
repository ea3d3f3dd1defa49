//! What the subnet's server answers (RFC 2131).

use super::*;

const BY_US: (u8, &[u8]) = (54, &[10, 0, 0, 1]);

fn server() -> Server {
    Server::new(config(Mode::Dhcp))
}

fn request(number: u8, wanted: Ipv4Addr, selecting: bool) -> Ask {
    let octets = wanted.octets();
    let mut options: Vec<(u8, &[u8])> = vec![(50, &octets)];
    if selecting {
        options.push(BY_US);
    }
    ask(number, Kind::Request, &options)
}

#[test]
fn a_lease_has_all_that_a_system_needs() {
    let mut server = server();
    let actions = ask(1, Kind::Discover, &[]).send(&mut server, START);
    let (outgoing, offer) = sent(&actions).remove(0);
    assert_eq!(outgoing.bytes.len(), 300);
    assert_eq!((offer.xid, offer.mac()), (0x0102_0304, Some(mac(1))));
    // Its source is what option 54 says.
    assert_eq!(outgoing.source, SocketAddrV4::new(SERVER, 67));
    for (code, value) in [
        (54, SERVER.octets().to_vec()),
        (51, 3600_u32.to_be_bytes().to_vec()),
        (58, 1800_u32.to_be_bytes().to_vec()),
        (59, 3150_u32.to_be_bytes().to_vec()),
        (1, vec![255, 255, 255, 0]),
        (28, vec![10, 0, 0, 255]),
        (3, vec![10, 0, 0, 254]),
        (6, vec![10, 0, 0, 253]),
        (15, b"lab".to_vec()),
    ] {
        assert_eq!(option(outgoing, code), Some(value), "{code}");
    }
    for absent in [12, 43, 52, 60, 67, 82, 175] {
        assert_eq!(option(outgoing, absent), None, "{absent}");
    }
}

#[test]
fn nothing_is_acknowledged_before_it_is_committed() {
    let mut server = server();
    let wanted = answer(&ask(1, Kind::Discover, &[]).send(&mut server, START)).yiaddr;
    let asked = request(1, wanted, true).send(&mut server, START);
    assert!(sent(&asked).is_empty());
    // Asking again meanwhile does not write twice.
    assert_eq!(request(1, wanted, true).send(&mut server, START), []);
    let [Action::Commit { ticket, lease }] = &asked[..] else {
        panic!("{asked:?}");
    };
    assert_eq!((lease.address, lease.mac), (wanted, mac(1)));
    assert!(lease.expires >= START.after(Millis::seconds(3600)));
    let failed = server.committed(START, *ticket, Err(CommitError::Failed));
    assert!(sent(&failed).is_empty());
    assert_eq!(
        failed,
        [Action::Event(Event::NotWritten {
            mac: mac(1),
            address: wanted
        })]
    );
    // The client asks again, and now it is another server's.
    let again = request(1, wanted, true).send(&mut server, START);
    let taken = answer(&commit(&mut server, START, &again, Err(CommitError::Taken)));
    assert_eq!(taken.kind, Kind::Nak);
    let next = answer(&ask(1, Kind::Discover, &[]).send(&mut server, START)).yiaddr;
    assert_ne!(next, wanted);
}

/// RFC 2131, section 4.3.2.
#[test]
fn requests() {
    let mut server = server();
    let mine = take(&mut server, 1, START, &[]);
    let theirs = take(&mut server, 2, START, &[]);
    let elsewhere = Ipv4Addr::new(192, 168, 1, 1);
    let free = (100..110)
        .map(address)
        .find(|a| *a != mine && *a != theirs)
        .unwrap();
    let outside = address(50);
    let renew = |wanted: Ipv4Addr| ask(1, Kind::Request, &[]).from(wanted);
    for (why, ask, expected) in [
        ("INIT-REBOOT", request(1, mine, false), Some(Kind::Ack)),
        (
            "INIT-REBOOT, wrong network",
            request(1, elsewhere, false),
            Some(Kind::Nak),
        ),
        (
            "INIT-REBOOT, another's",
            request(1, theirs, false),
            Some(Kind::Nak),
        ),
        (
            "INIT-REBOOT, not the one it has",
            request(1, free, false),
            Some(Kind::Nak),
        ),
        ("INIT-REBOOT, no record", request(9, free, false), None),
        (
            "SELECTING, its own",
            request(1, mine, true),
            Some(Kind::Ack),
        ),
        (
            "SELECTING, another's",
            request(1, theirs, true),
            Some(Kind::Nak),
        ),
        (
            "SELECTING, wrong network",
            request(1, elsewhere, true),
            Some(Kind::Nak),
        ),
        (
            "SELECTING, never offered",
            request(1, outside, true),
            Some(Kind::Nak),
        ),
        ("RENEWING", renew(mine), Some(Kind::Ack)),
        ("RENEWING, another's", renew(theirs), Some(Kind::Nak)),
        ("REBINDING, not of the pool", renew(outside), None),
        ("RENEWING, elsewhere", renew(elsewhere), None),
        (
            "another server's",
            ask(
                1,
                Kind::Request,
                &[(50, &mine.octets()), (54, &[10, 0, 0, 77])],
            ),
            None,
        ),
    ] {
        let mut actions = ask.send(&mut server, START);
        actions.extend(commit(&mut server, START, &actions.clone(), Ok(())));
        let kinds: Vec<_> = sent(&actions)
            .into_iter()
            .map(|(_, packet)| packet.kind)
            .collect();
        assert_eq!(kinds, expected.into_iter().collect::<Vec<_>>(), "{why}");
    }
}

#[test]
fn where_answers_go() {
    let mut server = server();
    let discover = ask(1, Kind::Discover, &[]);
    let to = |actions: &[Action]| sent(actions)[0].0.to;
    let plain = discover.send(&mut server, START);
    let yiaddr = answer(&plain).yiaddr;
    let hardware = Destination::Hardware {
        mac: mac(1),
        address: SocketAddrV4::new(yiaddr, 68),
    };
    assert_eq!(to(&plain), hardware);
    // The broadcast flag (RFC 2131, section 4.1).
    let flagged = discover.clone().at(10, &[0x80, 0]).send(&mut server, START);
    assert_eq!(to(&flagged), Destination::Broadcast(68));
    // To a relay's server port; its option 82 goes back whole (RFC 3046).
    let relay = Ipv4Addr::new(10, 0, 5, 254);
    let info: &[u8] = &[1, 3, b'a', b'b', b'c', 2, 1, 9];
    let relayed = ask(1, Kind::Discover, &[(82, info)])
        .relayed(relay)
        .send(&mut server, START);
    assert_eq!(
        to(&relayed),
        Destination::Unicast(SocketAddrV4::new(relay, 67))
    );
    let (outgoing, packet) = sent(&relayed).remove(0);
    assert_eq!(packet.relay, info);
    assert_eq!(packet.giaddr, relay);
    assert!(Subnet::of(relay, 24).contains(packet.yiaddr));
    let (last, _) = crate::client::encapsulated(&outgoing.bytes[240..])
        .last()
        .unwrap();
    assert_eq!(last, 82);
    // A renewing client is reached at its address.
    let mine = take(&mut server, 1, START, &[]);
    let renewing = ask(1, Kind::Request, &[])
        .from(mine)
        .send(&mut server, START);
    let ack = commit(&mut server, START, &renewing, Ok(()));
    assert_eq!(to(&ack), Destination::Unicast(SocketAddrV4::new(mine, 68)));
    // A NAK is heard by all; a relay is told to broadcast it.
    let nak = request(1, Ipv4Addr::new(1, 2, 3, 4), false).send(&mut server, START);
    assert_eq!(to(&nak), Destination::Broadcast(68));
    let nak = request(1, Ipv4Addr::new(1, 2, 3, 4), false)
        .relayed(relay)
        .send(&mut server, START);
    assert!(answer(&nak).wants_broadcast());
}

#[test]
fn relays_choose_the_network() {
    let mut server = server();
    let third = |server: &mut Server, ask: Ask| {
        let actions = ask.send(server, START);
        sent(&actions)
            .first()
            .map(|(_, packet)| packet.yiaddr.octets()[2])
    };
    let relay = Ipv4Addr::new(10, 0, 5, 254);
    assert_eq!(
        third(&mut server, ask(1, Kind::Discover, &[]).relayed(relay)),
        Some(5)
    );
    // RFC 3527: the relay says which link, whatever its own address.
    let link = ask(2, Kind::Discover, &[(82, &[5, 4, 10, 0, 5, 0])]).relayed(relay);
    assert_eq!(third(&mut server, link), Some(5));
    // A relay that no network knows.
    let foreign = ask(3, Kind::Discover, &[(82, &[5, 4, 10, 0, 5, 0])]);
    assert_eq!(
        third(&mut server, foreign.relayed(Ipv4Addr::new(172, 16, 0, 1))),
        None
    );
    let nowhere = ask(4, Kind::Discover, &[]).relayed(Ipv4Addr::new(172, 16, 0, 1));
    assert_eq!(third(&mut server, nowhere), None);
    // RFC 5107: the address that clients know us by.
    let renamed = ask(5, Kind::Discover, &[(82, &[11, 4, 10, 0, 5, 254])]).relayed(relay);
    let actions = renamed.send(&mut server, START);
    assert_eq!(answer(&actions).server, Some(relay));
}

#[test]
fn reservations_come_first() {
    let mut server = server();
    let known = |number: u8, last: u8| Known {
        mac: mac(number),
        address: Some(address(last)),
        host_name: Some(format!("n{number}")),
        strategy: None,
        wants_ipxe: false,
    };
    server.set_known(vec![known(1, 20), known(2, 105)]);
    assert_eq!(take(&mut server, 1, START, &[]), address(20));
    // Nobody else gets one, even when it asks for it.
    let wish: &[(u8, &[u8])] = &[(50, &[10, 0, 0, 105])];
    let wished = ask(10, Kind::Discover, wish).send(&mut server, START);
    assert_ne!(answer(&wished).yiaddr, address(105));
    let others: Vec<_> = (10..19).map(|n| take(&mut server, n, START, &[])).collect();
    assert!(!others.contains(&address(105)), "{others:?}");
    let actions = ask(2, Kind::Discover, &[]).send(&mut server, START);
    assert_eq!(answer(&actions).yiaddr, address(105));
    assert_eq!(option(sent(&actions)[0].0, 12), Some(b"n2".to_vec()));
    // The pool is used up: 10 addresses, one reserved.
    let full = ask(30, Kind::Discover, &[]).send(&mut server, START);
    assert!(
        matches!(&full[..], [Action::Event(Event::Exhausted { .. })]),
        "{full:?}"
    );
    // When leases are over there is room again, and a client gets what it had.
    let later = START.after(Millis::seconds(4000));
    assert_eq!(take(&mut server, 12, later, &[]), others[2]);
    server.set_known(Vec::new());
    assert!(
        (100..110)
            .map(address)
            .any(|a| a == take(&mut server, 30, later, &[]))
    );
}

#[test]
fn releases_and_declines() {
    let mut server = server();
    let mine = take(&mut server, 1, START, &[]);
    let release = ask(1, Kind::Release, &[BY_US]).at(12, &mine.octets());
    // One that does not come from the address is not believed.
    assert_eq!(release.send(&mut server, START), []);
    let stranger = ask(2, Kind::Release, &[BY_US]).from(mine);
    assert_eq!(stranger.send(&mut server, START), []);
    let actions = release.from(mine).send(&mut server, START);
    assert_eq!(
        actions[0],
        Action::Release {
            address: mine,
            mac: mac(1),
            now: START
        }
    );

    let mine = take(&mut server, 1, START, &[]);
    let decline = |number| ask(number, Kind::Decline, &[BY_US, (50, &mine.octets())]);
    assert_eq!(decline(2).send(&mut server, START), []);
    let actions = decline(1).send(&mut server, START);
    assert!(matches!(actions[0], Action::Decline { address, .. } if address == mine));
    for number in 1..10 {
        assert_ne!(take(&mut server, number, START, &[]), mine);
    }
}

#[test]
fn inform_gets_settings_without_a_lease() {
    let mut server = server();
    let actions = ask(1, Kind::Inform, &[])
        .from(address(50))
        .send(&mut server, START);
    let (outgoing, ack) = sent(&actions).remove(0);
    assert_eq!((ack.kind, ack.yiaddr), (Kind::Ack, Ipv4Addr::UNSPECIFIED));
    assert_eq!(
        outgoing.to,
        Destination::Unicast(SocketAddrV4::new(address(50), 68))
    );
    assert_eq!(option(outgoing, 51), None);
    assert_eq!(option(outgoing, 6), Some(vec![10, 0, 0, 253]));
}

#[test]
fn addresses_are_asked_after_first() {
    let mut settings = config(Mode::Dhcp);
    settings.probes = Probes::On;
    let mut server = Server::new(settings);
    let discover = ask(1, Kind::Discover, &[]);
    let asked = discover.send(&mut server, START);
    let [
        Action::Probe {
            ticket,
            address: first,
            ..
        },
    ] = &asked[..]
    else {
        panic!("{asked:?}");
    };
    assert_eq!(discover.send(&mut server, START), [], "one probe at a time");
    let used = server.probed(START, *ticket, Probed::Used);
    assert!(matches!(&used[0], Action::Event(Event::Conflict { address, .. }) if address == first));
    let Action::Probe {
        ticket,
        address: second,
        ..
    } = &used[1]
    else {
        panic!("{used:?}");
    };
    assert_ne!(first, second);
    let offer = answer(&server.probed(START, *ticket, Probed::Silent));
    assert_eq!((offer.kind, offer.yiaddr), (Kind::Offer, *second));
    // What it was offered need not be asked after again.
    assert_eq!(answer(&discover.send(&mut server, START)).yiaddr, *second);
}

/// A first stage takes over iPXE's address and does not ask again.
#[test]
fn a_running_machine_keeps_its_address() {
    let mut server = server();
    let mine = take(&mut server, 1, START, &[]);
    let later = START.after(Millis::seconds(3000));
    let kept = server.keep(later, mine, mac(1), Millis::seconds(7200));
    assert!(matches!(&kept[..], [Action::Commit { lease, .. }] if lease.address == mine));
    assert_eq!(commit(&mut server, later, &kept, Ok(())), []);
    assert_eq!(server.keep(later, mine, mac(1), Millis::seconds(60)), []);
    assert_eq!(server.keep(later, mine, mac(2), Millis::seconds(9000)), []);
}
