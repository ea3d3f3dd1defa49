//! Tables of packets, and a transfer held against a model client over a bad network.

use super::{packet::error, *};
use crate::Millis;

mod model;

const MTU: u32 = 1500;
const START: Millis = Millis(1_000_000);

/// An RRQ; fields parted by `|`, the name first.
fn rrq(fields: &str) -> Vec<u8> {
    let mut bytes = vec![0, 1];
    for field in fields.split('|') {
        bytes.extend(field.as_bytes());
        bytes.push(0);
    }
    bytes
}

fn asked(fields: &str) -> ReadRequest {
    match First::of(&rrq(fields)) {
        First::Read(request) => request,
        other => panic!("{fields}: {other:?}"),
    }
}

/// What the server agrees to, as words.
fn agreed(fields: &str, len: u64, mtu: u32) -> String {
    let (transfer, action) = Transfer::new(&asked(fields), len, mtu, START).expect("is sent");
    match action {
        Action::Send(packet) => {
            let Ok(Packet::OptionsAck(pairs)) = Packet::parse(&packet) else {
                panic!("{packet:?}");
            };
            let words = pairs.iter().map(|(name, value)| {
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("is text");
                format!("{}={}", text(name), text(value))
            });
            words.collect::<Vec<_>>().join(" ")
        }
        Action::SendWindow { first, count } => {
            format!("{first}+{count} of {}", transfer.block_bytes())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_what_was_asked_is_agreed_to_and_within_bounds() {
    for (fields, mtu, expected) in [
        ("x|octet", MTU, "1+1 of 512"),
        ("x|octet|blksize|1428", MTU, "blksize=1428"),
        ("x|OCTET|BlkSize|1428", MTU, "blksize=1428"),
        ("x|octet|blksize|65464", MTU, "blksize=1468"),
        ("x|octet|blksize|65464", 65_536, "blksize=1468"),
        ("x|octet|blksize|1468", 1280, "blksize=1248"),
        ("x|octet|blksize|8", MTU, "blksize=8"),
        ("x|octet|blksize|512", 0, "blksize=8"),
        ("x|octet|tsize|0", MTU, "tsize=9000"),
        (
            "x|octet|tsize|0|blksize|1024|windowsize|16|timeout|3",
            MTU,
            "blksize=1024 tsize=9000 timeout=3 windowsize=16",
        ),
        ("x|octet|windowsize|65535", MTU, "windowsize=64"),
        ("x|octet|timeout|30", MTU, "timeout=30"),
        // Values that are none leave the option out, and all of them the OACK.
        ("x|octet|blksize|7", MTU, "1+1 of 512"),
        ("x|octet|blksize|65465", MTU, "1+1 of 512"),
        ("x|octet|blksize|+512", MTU, "1+1 of 512"),
        ("x|octet|blksize|", MTU, "1+1 of 512"),
        ("x|octet|windowsize|0|tsize|0", MTU, "tsize=9000"),
        ("x|octet|timeout|0", MTU, "1+1 of 512"),
        ("x|octet|timeout|31", MTU, "1+1 of 512"),
        ("x|octet|multicast||blksize|512", MTU, "blksize=512"),
        ("x|octet|blksize|1024|blksize|16", MTU, "blksize=1024"),
        ("x|octet|blksize", MTU, "1+1 of 512"),
    ] {
        assert_eq!(agreed(fields, 9000, mtu), expected, "{fields}");
    }
}

#[test]
fn names_are_as_the_table_has_them() {
    for (name, expected) in [
        (&b"undionly.kpxe"[..], "undionly.kpxe"),
        (b"/undionly.kpxe", "undionly.kpxe"),
        (b"\\boot\\x64\\a.efi", "boot/x64/a.efi"),
        (b"//boot//./a.efi/", "boot/a.efi"),
        (b"a/../b", "b"),
        (b"../../etc/passwd", "etc/passwd"),
        (b"..\\..\\etc\\passwd", "etc/passwd"),
        (b"a.efi\xff", "a.efi"),
        (b"a.efi\xff\x06\x01\x08rest", "a.efi"),
        (b"a.efi\x07\r\n ", "a.efi"),
        (b"a b.efi", "a b.efi"),
        (b"A.EFI", "A.EFI"),
    ] {
        let request = Request {
            name,
            mode: b"octet",
            options: Vec::new(),
        };
        let First::Read(read) = First::of(&Packet::Read(request).encode()) else {
            panic!("{expected}");
        };
        assert_eq!(read.name, expected);
    }
}

#[test]
fn what_is_not_served_is_said_clearly_or_not_answered() {
    let said = |bytes: &[u8]| match First::of(bytes) {
        First::Ignored => "nothing".to_owned(),
        First::Read(read) => format!("{} is read", read.name),
        First::Refused(refusal) => match Packet::parse(&refusal.packet()) {
            Ok(Packet::Error { code, message }) => {
                format!("{code} {}", String::from_utf8_lossy(message))
            }
            other => panic!("{other:?}"),
        },
    };
    for (bytes, expected) in [
        (
            rrq("x|netascii"),
            "4 transfer mode netascii is not served: use octet (binary)",
        ),
        (
            rrq("x|mail"),
            "4 transfer mode mail is not served: use octet (binary)",
        ),
        (
            rrq("x|\u{7}\u{fc}"),
            "4 transfer mode ??? is not served: use octet (binary)",
        ),
        (
            b"\0\x02x\0octet\0".to_vec(),
            "4 this server only sends files",
        ),
        (b"\0\x01x\0octet".to_vec(), "4 the request is not complete"),
        (b"\0\x01".to_vec(), "4 the request is not complete"),
        (rrq("|octet"), "4 the request is not complete"),
        (rrq("/|octet"), "4 the request is not complete"),
        // Firmware may send its whole buffer: what follows is not an option.
        ([rrq("x|octet"), vec![0; 40]].concat(), "x is read"),
        ([rrq("x|octet"), vec![255; 40]].concat(), "x is read"),
        (b"\0\x03\0\x01x".to_vec(), "nothing"),
        (b"\0\x04\0\x01".to_vec(), "nothing"),
        (error(ErrorCode::OTHER, "x"), "nothing"),
        (b"\0\x09".to_vec(), "nothing"),
        (b"".to_vec(), "nothing"),
    ] {
        assert_eq!(said(&bytes), expected, "{bytes:?}");
    }
}

#[test]
fn a_probe_for_the_size_ends_without_a_failure() {
    // edk2's PXE asks so, then aborts with code 8 and asks again.
    let request = asked("x|octet|tsize|0|blksize|1468");
    let (mut transfer, first) = Transfer::new(&request, 9000, MTU, START).expect("is sent");
    assert!(matches!(first, Action::Send(_)));
    let declined = error(ErrorCode::OPTIONS, "User aborted the transfer");
    assert_eq!(
        transfer.handle(START, &declined),
        Action::End(Outcome::Declined)
    );
    assert_eq!(transfer.handle(START, &declined), Action::Nothing);
    assert_eq!(transfer.poll(Millis(u64::MAX)), Action::Nothing);
    let (mut transfer, _) = Transfer::new(&request, 9000, MTU, START).expect("is sent");
    assert_eq!(transfer.left(), Action::End(Outcome::Declined));
}

fn ack(block: u16) -> Vec<u8> {
    Packet::Ack { block }.encode()
}

fn window(first: u64, count: u16) -> Action {
    Action::SendWindow { first, count }
}

#[test]
fn only_the_clock_sends_again_and_not_for_ever() {
    let (mut transfer, first) = Transfer::new(&asked("x|octet"), 1024, MTU, START).expect("fits");
    assert_eq!(first, window(1, 1));
    for stray in [ack(0), ack(2), ack(65_535), rrq("x|octet"), vec![], vec![0]] {
        assert_eq!(transfer.handle(START, &stray), Action::Nothing, "{stray:?}");
    }
    assert_eq!(transfer.handle(START, &ack(1)), window(2, 1));
    assert_eq!(transfer.handle(START, &ack(1)), Action::Nothing);
    let mut now = START;
    for _ in 1..TRIES_MAX {
        assert_eq!(
            transfer.poll(Millis(now.0 + TIMEOUT.0 - 1)),
            Action::Nothing
        );
        now = now.after(TIMEOUT);
        assert_eq!(transfer.poll(now), window(2, 1));
    }
    // A file of whole blocks ends with an empty one.
    assert_eq!(transfer.handle(now, &ack(2)), window(3, 1));
    assert_eq!(transfer.block_range(3), 1024..1024);
    for _ in 1..TRIES_MAX {
        now = now.after(TIMEOUT);
        assert_eq!(transfer.poll(now), window(3, 1));
    }
    now = now.after(TIMEOUT);
    assert_eq!(transfer.poll(now), Action::End(Outcome::TimedOut));
    assert_eq!(transfer.acked_bytes(), 1024);
    assert_eq!(transfer.blocks_resent(), 8);
}

#[test]
fn the_clients_timeout_counts() {
    let request = asked("x|octet|timeout|7");
    let (mut transfer, _) = Transfer::new(&request, 1, MTU, START).expect("fits");
    assert_eq!(transfer.deadline(), START.after(Millis::seconds(7)));
    assert_eq!(transfer.poll(START.after(Millis(6999))), Action::Nothing);
    assert!(matches!(
        transfer.poll(START.after(Millis(7000))),
        Action::Send(_)
    ));
}

#[test]
fn a_window_begins_again_where_something_was_lost() {
    let request = asked("x|octet|windowsize|4");
    let (mut transfer, _) = Transfer::new(&request, 512 * 10, MTU, START).expect("fits");
    for (packet, expected) in [
        (ack(1), Action::Nothing),
        (ack(0), window(1, 4)),
        (ack(0), Action::Nothing),
        (ack(4), window(5, 4)),
        (ack(6), window(7, 4)),
        (ack(6), Action::Nothing),
        (ack(5), Action::Nothing),
        (ack(11), Action::Nothing),
        (ack(10), window(11, 1)),
        (ack(11), Action::End(Outcome::Complete)),
        (ack(11), Action::Nothing),
    ] {
        assert_eq!(transfer.handle(START, &packet), expected, "{packet:?}");
    }
}

#[test]
fn the_client_may_give_up_or_go() {
    let begin = || {
        Transfer::new(&asked("x|octet"), 513, MTU, START)
            .expect("fits")
            .0
    };
    let full = error(ErrorCode(3), "disk full");
    assert_eq!(
        begin().handle(START, &full),
        Action::End(Outcome::Aborted {
            code: ErrorCode(3),
            message: "disk full".to_owned()
        })
    );
    assert_eq!(begin().left(), Action::End(Outcome::Left));
    let mut late = begin();
    late.handle(START, &ack(1));
    assert_eq!(late.left(), Action::End(Outcome::Complete));
}

#[test]
fn who_cannot_count_further_is_told_so() {
    let most = 65_535 * 512 - 1;
    let plain = asked("x|octet");
    assert!(Transfer::new(&plain, most, MTU, START).is_ok());
    let refused = Transfer::new(&plain, most + 1, MTU, START).expect_err("is refused");
    assert_eq!(
        refused.to_string(),
        "33553920 bytes do not fit in 65535 blocks of 512: ask with a blksize, or use HTTP"
    );
    assert!(Transfer::new(&asked("x|octet|tsize|0"), 1 << 40, MTU, START).is_ok());
}
