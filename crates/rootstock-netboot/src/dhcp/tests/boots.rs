//! What firmware is told, and what happens when it goes silent.

use super::*;

type Options<'a> = Vec<(u8, &'a [u8])>;

const UUID: &[u8] = &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];

fn pxe(number: &[u8]) -> Options<'_> {
    vec![
        (60, b"PXEClient:Arch:00000:UNDI:002001"),
        (93, number),
        (97, UUID),
    ]
}

fn http_boot() -> Options<'static> {
    vec![(60, b"HTTPClient:Arch:00016"), (93, &[0, 16]), (97, UUID)]
}

fn file(packet: &Outgoing) -> String {
    let bytes = &packet.bytes[108..236];
    assert_eq!(bytes[127], 0, "the name ends within the header");
    let end = bytes.iter().position(|&b| b == 0).unwrap();
    String::from_utf8(bytes[..end].to_vec()).unwrap()
}

fn offer(server: &mut Server, options: &[(u8, &[u8])], now: Millis) -> Outgoing {
    let actions = ask(1, Kind::Discover, options).send(server, now);
    sent(&actions).first().expect("an offer").0.clone()
}

#[test]
fn a_proxy_offer_is_what_firmware_wants() {
    for (why, options, strategy, class, vendor, expected) in [
        // Discovery control 8: boot the file, ask nobody.
        (
            "BIOS",
            pxe(&[0, 0]),
            "undionly",
            "PXEClient",
            Some(&b"\x06\x01\x08\xff"[..]),
            "undionly.kpxe",
        ),
        // pixiecore: UEFI wants no option 43, and asks on 4011.
        (
            "UEFI, asking",
            pxe(&[0, 7]),
            "snponly",
            "PXEClient",
            None,
            "snponly.efi",
        ),
        // smee, edk2#8149: or it wants it, with a prompt.
        (
            "UEFI, 43",
            pxe(&[0, 7]),
            "snponly-offer",
            "PXEClient",
            Some(b"\x06\x01\x08\x0a\x04\x00PXE\xff"),
            "snponly.efi",
        ),
        // FOG: the chain that Secure Boot accepts is there for all.
        (
            "Secure Boot",
            pxe(&[0, 7]),
            "shim-grub",
            "PXEClient",
            None,
            "shimx64.efi",
        ),
        (
            "HTTP boot",
            vec![(60, b"HTTPClient:Arch:00016"), (93, &[0, 16]), (97, UUID)],
            "snponly",
            "HTTPClient",
            None,
            "http://10.0.0.1:8480/boot/file/snponly.efi",
        ),
        (
            "iPXE",
            vec![
                (60, b"PXEClient"),
                (77, b"iPXE"),
                (97, UUID),
                (175, &[0x13, 1, 1, 0x18, 1, 1]),
            ],
            "",
            "PXEClient",
            None,
            "http://10.0.0.1:8480/boot/ipxe/52-54-00-00-00-01",
        ),
    ] {
        let mut server = Server::new(config(Mode::Proxy));
        server.set_known(vec![Known {
            mac: mac(1),
            address: None,
            host_name: None,
            strategy: Some(strategy.to_owned()),
            wants_ipxe: false,
        }]);
        let packet = offer(&mut server, &options, START);
        assert_eq!(
            option(&packet, 60).as_deref(),
            Some(class.as_bytes()),
            "{why}"
        );
        assert_eq!(option(&packet, 43).as_deref(), vendor, "{why}");
        assert_eq!(file(&packet), expected, "{why}");
        // smee: without 54 and siaddr some clients broadcast to 4011.
        assert_eq!(option(&packet, 54), Some(SERVER.octets().to_vec()), "{why}");
        assert_eq!(packet.bytes[20..24], SERVER.octets(), "{why}");
        assert!(packet.bytes[44..].starts_with(b"10.0.0.1\0"), "{why}");
        assert_eq!(option(&packet, 97).as_deref(), Some(UUID), "{why}");
        assert_eq!(packet.to, Destination::Broadcast(68), "{why}");
        assert!(packet.bytes.len() >= 300, "{why}");
        assert_eq!(
            packet.bytes[16..20],
            [0; 4],
            "{why}: no address from a proxy"
        );
        for absent in [51, 52, 67] {
            assert_eq!(option(&packet, absent), None, "{why}: {absent}");
        }
        // The end mark, then zeros only (WDS; ipxe's efi_pxe.c).
        let end = packet.bytes.iter().rposition(|&b| b == 255).unwrap();
        assert!(packet.bytes[end + 1..].iter().all(|&b| b == 0), "{why}");
    }
}

/// A disk over iSCSI is nothing for GRUB.
#[test]
fn who_needs_ipxe_is_not_led_to_grub() {
    let programs = ["shimx64.efi", "snponly.efi"].map(str::to_owned);
    for (wants_ipxe, expected) in [(false, "shimx64.efi"), (true, "snponly.efi")] {
        let config = Config {
            programs: Some(programs.iter().cloned().collect()),
            ..config(Mode::Dhcp)
        };
        let mut server = Server::new(config);
        server.set_known(vec![Known {
            mac: mac(1),
            address: None,
            host_name: None,
            strategy: None,
            wants_ipxe,
        }]);
        assert_eq!(file(&offer(&mut server, &pxe(&[0, 7]), START)), expected);
    }
}

/// smee, LTSP: a Raspberry Pi says that it is a PC and looks for these words.
#[test]
fn raspberry_pis_get_their_words() {
    for mode in [Mode::Proxy, Mode::Dhcp] {
        let mut server = Server::new(config(mode));
        let pi = ask(1, Kind::Discover, &pxe(&[0, 0])).at(28, &[0xdc, 0xa6, 0x32, 1, 2, 3]);
        let actions = pi.send(&mut server, START);
        let packet = sent(&actions)[0].0;
        let vendor = option(packet, 43).unwrap();
        let parts: Vec<_> = crate::client::encapsulated(&vendor).collect();
        assert!(
            parts.contains(&(9, b"\0\0\x11Raspberry Pi Boot")),
            "{parts:?}"
        );
        assert!(parts.contains(&(10, b"\0PXE")), "{parts:?}");
        assert_eq!(option(packet, 60).as_deref(), Some(&b"PXEClient"[..]));
    }
}

/// Confluent, LTSP: 60 from the subnet's own server makes UEFI ask for a proxy and
/// forget the file. HTTP boot needs it. iPXE need not wait two seconds for a proxy.
#[test]
fn the_subnets_own_server_says_less() {
    let mut server = Server::new(config(Mode::Dhcp));
    let packet = offer(&mut server, &pxe(&[0, 7]), START);
    assert_eq!((option(&packet, 60), option(&packet, 43)), (None, None));
    assert_eq!(file(&packet), "snponly-shimx64.efi");
    // The firmware's lease is short: the system asks again.
    assert_eq!(option(&packet, 51), Some(120_u32.to_be_bytes().to_vec()));
    let http = offer(&mut server, &[(60, b"HTTPClient"), (93, &[0, 16])], START);
    assert_eq!(option(&http, 60).as_deref(), Some(&b"HTTPClient"[..]));
    let ipxe = offer(&mut server, &[(60, b"PXEClient"), (77, b"iPXE")], START);
    assert_eq!(option(&ipxe, 175), Some(vec![176, 1, 1]));
    // It also answers those who ask on 4011 all the same.
    let asked = ask(1, Kind::Request, &pxe(&[0, 7]))
        .from(address(50))
        .to(4011);
    assert_eq!(answer(&asked.send(&mut server, START)).kind, Kind::Ack);
}

#[test]
fn port_4011_answers_from_itself() {
    let mut server = Server::new(config(Mode::Proxy));
    let offered = file(&offer(&mut server, &pxe(&[0, 7]), START));
    let asked = ask(1, Kind::Request, &pxe(&[0, 7]))
        .from(address(50))
        .to(4011);
    let actions = asked.send(&mut server, START);
    let (packet, ack) = sent(&actions).remove(0);
    assert_eq!(ack.kind, Kind::Ack);
    assert_eq!(packet.source, SocketAddrV4::new(SERVER, 4011));
    assert_eq!(
        packet.to,
        Destination::Unicast(SocketAddrV4::new(address(50), 68))
    );
    // The same file in both phases.
    assert_eq!(file(packet), offered);
    assert_eq!(option(packet, 97).as_deref(), Some(UUID));
    // What does not boot is not answered.
    assert_eq!(
        ask(1, Kind::Request, &[])
            .from(address(50))
            .to(4011)
            .send(&mut server, START),
        []
    );
}

#[test]
fn a_proxy_leaves_others_alone() {
    let mut server = Server::new(config(Mode::Proxy));
    for (why, ask) in [
        ("a system", ask(1, Kind::Discover, &[])),
        (
            "no architecture",
            ask(1, Kind::Discover, &[(60, b"PXEClient")]),
        ),
        (
            "a request to the other server",
            ask(1, Kind::Request, &pxe(&[0, 0])),
        ),
        ("a release", ask(1, Kind::Release, &pxe(&[0, 0]))),
        (
            "unknown firmware",
            ask(
                1,
                Kind::Discover,
                &[(60, b"PXEClient"), (93, &[0x12, 0x34])],
            ),
        ),
    ] {
        assert!(sent(&ask.send(&mut server, START)).is_empty(), "{why}");
    }
    // Machines that nobody has heard of, unless the network says otherwise.
    for (unknown, known, answered) in [
        (Unknown::Auto, false, false),
        (Unknown::Ignore, false, false),
        (Unknown::Auto, true, true),
        (Unknown::Boot, false, true),
    ] {
        let mut settings = config(Mode::Proxy);
        settings.interfaces[0].unknown = unknown;
        let mut server = Server::new(settings);
        if known {
            let known = Known {
                mac: mac(1),
                address: None,
                host_name: None,
                strategy: None,
                wants_ipxe: false,
            };
            server.set_known(vec![known]);
        }
        let actions = ask(1, Kind::Discover, &pxe(&[0, 0])).send(&mut server, START);
        assert_eq!(!sent(&actions).is_empty(), answered, "{unknown:?} {known}");
    }
}

/// bootimus#77: some firmware never puts two offers together.
#[test]
fn silence_leads_to_the_next_strategy() {
    let mut settings = config(Mode::Proxy);
    settings.programs = Some(["snponly.efi", "shimx64.efi"].map(str::to_owned).into());
    let mut server = Server::new(settings);
    let options = pxe(&[0, 7]);
    let mut now = START;
    let mut seen = Vec::new();
    for _ in 0..5 {
        let packet = offer(&mut server, &options, now);
        seen.push((file(&packet), option(&packet, 43).is_some()));
        let deadline = server.next_wake().unwrap();
        assert_eq!(deadline, now.after(Millis::seconds(40)));
        assert_eq!(server.wake(Millis(deadline.0 - 1)), []);
        let silent = server.wake(deadline);
        assert!(
            matches!(silent[..], [Action::Event(Event::Silent { .. })]),
            "{silent:?}"
        );
        now = deadline;
    }
    // Programs that are not there are skipped, and after the last comes the first.
    let expected = [
        ("snponly.efi", false),
        ("snponly.efi", true),
        ("shimx64.efi", false),
        ("shimx64.efi", true),
        ("snponly.efi", false),
    ];
    assert_eq!(
        seen,
        expected.map(|(file, vendor)| (file.to_owned(), vendor))
    );
}

#[test]
fn what_worked_is_tried_first() {
    let mut settings = config(Mode::Proxy);
    settings.programs = Some(["snponly.efi", "shimx64.efi"].map(str::to_owned).into());
    let options = pxe(&[0, 7]);
    let mut server = Server::new(settings.clone());
    offer(&mut server, &options, START);
    let heard = ask(1, Kind::Request, &options).from(address(50)).to(4011);
    heard.send(&mut server, START);
    assert_eq!(
        server.progress(START, Who::Address(address(50)), Progress::File),
        []
    );
    // Back in its firmware: it could not start what it fetched, as with Secure Boot.
    let again = ask(1, Kind::Discover, &options).send(&mut server, START);
    let silent = Event::Silent {
        mac: mac(1),
        strategy: "snponly",
        next: "shim-grub",
    };
    assert!(again.contains(&Action::Event(silent)), "{again:?}");
    // The same program is not announced in another way, and this very offer knows it.
    assert_eq!(file(&offer(&mut server, &options, START)), "shimx64.efi");
    let worked = server.progress(START, Who::Card(mac(1)), Progress::Script);
    let event = Event::Worked {
        mac: mac(1),
        strategy: "shim-grub",
    };
    assert_eq!(worked, [Action::Event(event)]);

    let mut restarted = Server::new(settings);
    restarted.set_worked(vec![(mac(1), "shim-grub".to_owned())]);
    assert_eq!(file(&offer(&mut restarted, &options, START)), "shimx64.efi");
    // What worked before may fail once: somebody pulled the plug.
    let mut now = START;
    for expected in ["shim-grub", "shim-grub-offer"] {
        offer(&mut restarted, &options, now);
        now = restarted.next_wake().unwrap();
        let silent = restarted.wake(now);
        let Action::Event(Event::Silent { next, .. }) = &silent[0] else {
            panic!("{silent:?}");
        };
        assert_eq!(*next, expected);
    }
}

/// The boot manager of OVMF goes from PXE to HTTP boot when Secure Boot refused what
/// PXE fetched: the same program would be refused again.
#[test]
fn what_was_refused_is_not_given_by_another_way() {
    let mut settings = config(Mode::Proxy);
    settings.programs = Some(["snponly.efi", "ipxe.efi"].map(str::to_owned).into());
    let mut server = Server::new(settings);
    assert_eq!(
        file(&offer(&mut server, &pxe(&[0, 7]), START)),
        "snponly.efi"
    );
    server.progress(START, Who::Card(mac(1)), Progress::File);
    let by_http = file(&offer(&mut server, &http_boot(), START));
    assert!(by_http.ends_with("/ipxe.efi"), "{by_http}");
    // And when all are refused, all are tried again.
    server.progress(START, Who::Card(mac(1)), Progress::File);
    let by_http = file(&offer(&mut server, &http_boot(), START));
    assert!(by_http.ends_with("/snponly.efi"), "{by_http}");
}

/// A card's iPXE without HTTP gets ours, once; then the script.
#[test]
fn a_lacking_ipxe_is_given_ours_once() {
    let mut server = Server::new(config(Mode::Dhcp));
    let ipxe: &[(u8, &[u8])] = &[
        (60, b"PXEClient"),
        (93, &[0, 0]),
        (77, b"iPXE"),
        (175, &[0x21, 1, 1]),
    ];
    let first = offer(&mut server, ipxe, START);
    assert_eq!(file(&first), "tftp://10.0.0.1/undionly.kpxe");
    let second = offer(&mut server, ipxe, START.after(Millis::seconds(5)));
    assert!(file(&second).starts_with("http://10.0.0.1:8480/boot/ipxe/"));
    // After a reboot it begins anew.
    let later = START.after(Millis::seconds(600));
    assert!(file(&offer(&mut server, ipxe, later)).starts_with("tftp://"));
}

/// Confluent: two cards of ours on one wire.
#[test]
fn one_of_two_cards_on_a_wire_answers() {
    let mut settings = config(Mode::Proxy);
    let mut second = settings.interfaces[0].clone();
    second.address = address(2);
    settings.interfaces.push(second);
    let mut server = Server::new(settings);
    let packet = ask(1, Kind::Discover, &pxe(&[0, 0]));
    let send = |server: &mut Server, interface, now| {
        let incoming = Incoming {
            interface: InterfaceId(interface),
            source: packet.source,
            destination: SocketAddrV4::new(Ipv4Addr::BROADCAST, 67),
            bytes: &packet.bytes,
        };
        sent(&server.handle(now, &incoming)).len()
    };
    assert_eq!(send(&mut server, 0, START), 1);
    assert_eq!(send(&mut server, 1, START), 0);
    assert_eq!(send(&mut server, 0, START), 1, "the same again is a retry");
    assert_eq!(send(&mut server, 1, START.after(Millis::seconds(10))), 1);
}
