//! Deciding between server and proxy, and hearing of others.

use super::*;

fn rival(kind: Kind, yiaddr: Ipv4Addr) -> Ask {
    let mut ask = ask(9, kind, &[(54, &[10, 0, 0, 77])]).at(0, &[2]);
    ask.source = SocketAddrV4::new(address(77), 67);
    ask.port = 68;
    ask.at(16, &yiaddr.octets())
}

/// Wakes the server until it has decided; answers how often it asked.
fn decide(server: &mut Server) -> (usize, Event) {
    let mut questions = 0;
    while let Some(now) = server.next_wake() {
        for action in server.wake(now) {
            match action {
                Action::Send(question) => {
                    assert_eq!(question.to, Destination::Broadcast(67));
                    questions += 1;
                }
                Action::Event(event) => return (questions, event),
                other => panic!("{other:?}"),
            }
        }
    }
    panic!("it never decides");
}

#[test]
fn alone_it_serves_private_addresses_only() {
    let mut server = Server::new(config(Mode::Auto));
    assert_eq!(
        ask(1, Kind::Discover, &[]).send(&mut server, START),
        [],
        "undecided"
    );
    let interface = InterfaceId(0);
    let expected = Event::Decided {
        interface,
        mode: Mode::Dhcp,
        rival: None,
    };
    assert_eq!(decide(&mut server), (3, expected));
    assert_eq!(
        answer(&ask(1, Kind::Discover, &[]).send(&mut server, START)).kind,
        Kind::Offer
    );

    let mut public = config(Mode::Auto);
    public.interfaces[0].address = Ipv4Addr::new(8, 8, 8, 8);
    let (_, event) = decide(&mut Server::new(public));
    assert_eq!(
        event,
        Event::Decided {
            interface,
            mode: Mode::Observe,
            rival: None
        }
    );
}

#[test]
fn beside_another_server_it_is_a_proxy() {
    let mut server = Server::new(config(Mode::Auto));
    server.wake(START);
    let events = rival(Kind::Offer, address(30)).send(&mut server, START);
    let interface = InterfaceId(0);
    assert_eq!(
        events,
        [
            Action::Event(Event::Rival {
                interface,
                server: address(77),
                role: Role::Addresses
            }),
            Action::Event(Event::Decided {
                interface,
                mode: Mode::Proxy,
                rival: Some(address(77))
            }),
        ]
    );
    assert_eq!(server.next_wake(), None);
    assert!(sent(&ask(1, Kind::Discover, &[]).send(&mut server, START)).is_empty());
}

/// A server that came later answers its clients unheard, but it answers us.
#[test]
fn alone_it_asks_again_and_yields_to_who_answers() {
    let mut server = Server::new(config(Mode::Auto));
    decide(&mut server);
    for _ in 0..2 {
        let now = server.next_wake().unwrap();
        let actions = server.wake(now);
        assert!(matches!(&actions[..], [Action::Send(question)]
            if question.to == Destination::Broadcast(67)));
    }
    assert_eq!(server.mode(InterfaceId(0)), Some(Mode::Dhcp));
    rival(Kind::Offer, address(30)).send(&mut server, START);
    assert_eq!(server.mode(InterfaceId(0)), Some(Mode::Proxy));
    assert_eq!(server.next_wake(), None);
}

/// It yields to one that appears later; what was configured stays.
#[test]
fn rivals_are_reported() {
    for (mode, after) in [
        (Mode::Auto, Mode::Proxy),
        (Mode::Dhcp, Mode::Dhcp),
        (Mode::Observe, Mode::Observe),
    ] {
        let mut server = Server::new(config(mode));
        if mode == Mode::Auto {
            decide(&mut server);
        }
        // Somebody else's ProxyDHCP is no reason to yield.
        let proxy = rival(Kind::Offer, Ipv4Addr::UNSPECIFIED).at(240, &[53]);
        let seen = proxy.send(&mut server, START);
        assert!(matches!(
            seen[..],
            [Action::Event(Event::Rival {
                role: Role::Boot,
                ..
            })]
        ));
        let mut other = rival(Kind::Ack, address(30));
        other.bytes.truncate(243);
        other.bytes.extend_from_slice(&[54, 4, 10, 0, 0, 78, 255]);
        other.send(&mut server, START);
        assert_eq!(server.mode(InterfaceId(0)), Some(after), "{mode:?}");
        // Not again and again.
        assert_eq!(other.send(&mut server, START), []);
    }
    // Our own replies come back to us.
    let mut server = Server::new(config(Mode::Dhcp));
    let mut own = rival(Kind::Offer, address(30));
    own.bytes.truncate(243);
    own.bytes.extend_from_slice(&[54, 4, 10, 0, 0, 1, 255]);
    assert_eq!(own.send(&mut server, START), []);
}

#[test]
fn an_observer_answers_nothing() {
    let mut server = Server::new(config(Mode::Observe));
    let seen = ask(1, Kind::Discover, &[]).send(&mut server, START);
    assert!(matches!(
        seen[..],
        [Action::Event(Event::Discovered { .. })]
    ));
    // Whose offer a client takes is heard although the offer was not.
    let choice: [(u8, &[u8]); 2] = [(54, &[10, 0, 0, 77]), (50, &[10, 0, 0, 30])];
    let seen = ask(1, Kind::Request, &choice).send(&mut server, START);
    assert!(
        matches!(
            seen[..],
            [Action::Event(Event::Rival { server, role: Role::Addresses, .. })]
                if server == address(77)
        ),
        "{seen:?}"
    );
    for kind in [Kind::Request, Kind::Inform, Kind::Release, Kind::Decline] {
        assert_eq!(
            ask(1, kind, &[(50, &[10, 0, 0, 100])]).send(&mut server, START),
            []
        );
    }
}

/// Two of our own interfaces on one wire hear each other's questions.
#[test]
fn our_own_question_is_not_answered() {
    let mut settings = config(Mode::Auto);
    let mut second = settings.interfaces[0].clone();
    second.mode = Mode::Dhcp;
    second.address = address(2);
    settings.interfaces.push(second);
    let mut server = Server::new(settings);
    let actions = server.wake(START);
    let Some(Action::Send(question)) = actions.first() else {
        panic!("{actions:?}");
    };
    let incoming = Incoming {
        interface: InterfaceId(1),
        source: question.source,
        destination: SocketAddrV4::new(Ipv4Addr::BROADCAST, 67),
        bytes: &question.bytes,
    };
    assert_eq!(server.handle(START, &incoming), []);
}
