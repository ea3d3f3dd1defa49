//! What packets say of their senders, and that no bytes hurt.

use proptest::prelude::*;

use super::*;

/// A request with options after a header of zeros.
pub(crate) fn request(mac: [u8; 6], kind: u8, options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; 236];
    bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
    bytes[4..8].copy_from_slice(&[1, 2, 3, 4]);
    bytes[28..34].copy_from_slice(&mac);
    bytes.extend_from_slice(&[99, 130, 83, 99, 53, 1, kind]);
    for (code, value) in options {
        bytes.extend_from_slice(&[*code, u8::try_from(value.len()).unwrap()]);
        bytes.extend_from_slice(value);
    }
    bytes.push(255);
    bytes
}

const QEMU: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

fn client(options: &[(u8, &[u8])]) -> Client {
    let packet = Packet::read(&request(QEMU, 1, options)).unwrap();
    Client::of(&packet).unwrap()
}

#[test]
fn who_asks() {
    let pxe: (u8, &[u8]) = (60, b"PXEClient:Arch:00007:UNDI:003016");
    let ipxe = |told| {
        Asker::Ipxe(Features {
            told,
            ..Features::default()
        })
    };
    let able = Features {
        told: true,
        http: true,
        bzimage: true,
        efi: false,
        menu: true,
    };
    for (why, options, expected) in [
        ("nothing", &[][..], Asker::System),
        // smee, pixiecore: firmware says its architecture.
        ("PXE without 93", &[pxe], Asker::System),
        ("PXE", &[pxe, (93, &[0, 7])], Asker::Pxe),
        // RFC 4578, section 2.3: 97 is not demanded, some ROMs lack it.
        ("bad 97", &[pxe, (93, &[0, 7]), (97, &[1, 2])], Asker::Pxe),
        (
            "HTTP",
            &[(60, b"HTTPClient:Arch:00016:UNDI:003001"), (93, &[0, 16])],
            Asker::Http,
        ),
        // ipxe#1527: iPXE says PXEClient as well.
        (
            "plain class",
            &[pxe, (93, &[0, 7]), (77, b"iPXE")],
            ipxe(false),
        ),
        // insomniacslk/dhcp#113: RFC 3004 puts lengths before.
        ("listed class", &[pxe, (77, b"\x04iPXE")], ipxe(false)),
        (
            "second class",
            &[pxe, (77, b"\x03abc\x04iPXE")],
            ipxe(false),
        ),
        (
            "other class",
            &[pxe, (93, &[0, 7]), (77, b"\xffiPXE")],
            Asker::Pxe,
        ),
        // LTSP: option 175 is proof as well.
        (
            "175",
            &[(175, &[0x13, 1, 1, 0x18, 1, 1, 0x27, 1, 1])],
            Asker::Ipxe(able),
        ),
        ("175, lacking", &[(175, &[0x21, 1, 1])], ipxe(true)),
        ("175, damaged", &[(175, &[0x13, 200, 1])], ipxe(false)),
        ("Windows", &[(60, b"MSFT 5.0")], Asker::System),
    ] {
        assert_eq!(client(options).program, expected, "{why}");
    }
}

#[test]
fn an_ipxe_that_cannot_run_our_script() {
    for (bytes, suffices) in [
        (&[0x13, 1, 1, 0x18, 1, 1][..], true),
        (&[0x13, 1, 1, 0x24, 1, 1], true),
        (&[0x13, 1, 1], false),
        (&[0x18, 1, 1], false),
        (&[0x13, 1, 0, 0x18, 1, 1], false),
        (&[], true),
    ] {
        let features = features(bytes);
        assert_eq!(features.suffice(), suffices, "{bytes:?}");
    }
}

#[test]
fn architectures() {
    let of = |options: &[(u8, &[u8])]| {
        let mut all: Vec<(u8, &[u8])> = vec![(60, b"PXEClient:Arch:99999")];
        all.extend(options);
        client(&all).architecture.map(|a| (a.machine, a.firmware))
    };
    use Firmware::{Bios, Efi};
    for (bytes, expected) in [
        (&[0, 0][..], Some((Machine::X86, Bios))),
        (&[0, 6], Some((Machine::X86, Efi))),
        (&[0, 7], Some((Machine::X64, Efi))),
        (&[0, 9], Some((Machine::X64, Efi))),
        (&[0, 11], Some((Machine::Arm64, Efi))),
        (&[0, 16], Some((Machine::X64, Efi))),
        (&[0, 27], Some((Machine::Riscv64, Efi))),
        (&[0, 41], Some((Machine::Arm64, Firmware::RaspberryPi))),
        // It may be a list: the first that is known.
        (&[0xff, 0xfe, 0, 11, 0, 0], Some((Machine::Arm64, Efi))),
        (&[7], None),
        (&[0x12, 0x34], None),
    ] {
        assert_eq!(of(&[(93, bytes)]), expected, "{bytes:?}");
    }
    // The class's number is decimal, though some write it in hex (netboot.xyz).
    for (class, expected) in [
        (
            &b"PXEClient:Arch:00011:UNDI:003000"[..],
            Some(Machine::Arm64),
        ),
        (b"PXEClient:Arch:0000B:UNDI:003000", Some(Machine::Arm64)),
        (b"PXEClient:Arch:0", None),
        (b"PXEClient:Arch:\xff\xff\xff\xff\xff", None),
    ] {
        let machine = client(&[(60, class), (93, &[0xff, 0xff])]).architecture;
        assert_eq!(machine.map(|a| a.machine), expected, "{class:?}");
    }
}

/// Their firmware says 0, a PC BIOS (smee, LTSP).
#[test]
fn raspberry_pis_are_known_by_their_cards() {
    for prefix in RASPBERRY_PI_PREFIXES {
        let mac = [prefix[0], prefix[1], prefix[2], 1, 2, 3];
        let bytes = request(
            mac,
            1,
            &[(60, b"PXEClient:Arch:00000:UNDI:002001"), (93, &[0, 0])],
        );
        let client = Client::of(&Packet::read(&bytes).unwrap()).unwrap();
        assert_eq!(client.architecture, Some(Architecture::RASPBERRY_PI));
    }
}

#[test]
fn uuids() {
    let mut id = vec![0];
    id.extend(1..=16);
    let packet = |id: &[u8]| Packet::read(&request(QEMU, 1, &[(97, id)])).unwrap();
    assert_eq!(packet(&id).uuid().map(|uuid| uuid[15]), Some(16));
    for bad in [&[][..], &[0], &id[..16], &[1; 17]] {
        assert_eq!(packet(bad).uuid(), None);
    }
}

/// RFC 3396: an option that is there twice is one.
#[test]
fn options_in_parts() {
    let bytes = request(QEMU, 1, &[(60, b"PXE"), (93, &[0, 7]), (60, b"Client")]);
    assert_eq!(Packet::read(&bytes).unwrap().class, b"PXEClient");
}

#[test]
fn what_is_no_packet() {
    let good = request(QEMU, 1, &[]);
    let changed = |place: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[place] = byte;
        Packet::read(&bytes).map(|packet| Client::of(&packet).is_some())
    };
    assert_eq!(changed(0, 1), Ok(true));
    assert_eq!(changed(0, 3), Err(PacketError::NotDhcp { operation: 3 }));
    assert_eq!(changed(236, 0), Err(PacketError::NotDhcp { operation: 1 }));
    assert_eq!(changed(2, 17), Err(PacketError::Hardware { length: 17 }));
    assert_eq!(changed(2, 255), Err(PacketError::Hardware { length: 255 }));
    assert_eq!(changed(242, 99), Err(PacketError::Kind));
    // Infiniband and Omni-Path have 20 and 8 bytes, and no card's address here.
    for length in [0, 8, 16] {
        assert_eq!(changed(2, length), Ok(false), "{length}");
    }
    assert_eq!(changed(1, 32), Ok(false));
    assert_eq!(changed(28, 1), Ok(false));
    assert_eq!(
        Packet::read(&good[..239]),
        Err(PacketError::Length { bytes: 239 })
    );
    assert_eq!(
        Packet::read(&[1; 5000]),
        Err(PacketError::Length { bytes: 5000 })
    );
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
        let _ = Packet::read(&bytes).map(|packet| Client::of(&packet));
    }

    #[test]
    fn any_options_are_read(tail in proptest::collection::vec(any::<u8>(), 0..400), length in any::<u8>()) {
        let mut bytes = request(QEMU, 1, &[]);
        bytes.pop();
        bytes[2] = length;
        bytes.extend(tail);
        if let Ok(packet) = Packet::read(&bytes) {
            let _ = (Client::of(&packet), packet.uuid(), packet.host_name(), packet.relay_part(5));
        }
    }
}
