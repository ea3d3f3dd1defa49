//! Conversations: what the client sends, and what it is told.

use super::*;
use crate::{
    client::codec::{put_option, put_string},
    loopback::{Loopback, NAME, Phase as ServerPhase},
};

fn text(option: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_option(&mut out, option, data);
    out
}

fn named(name: &str, tail: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_string(&mut out, name);
    out.extend_from_slice(tail);
    out
}

fn queries(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut out = named(name, &(queries.len() as u32).to_be_bytes());
    for query in queries {
        put_string(&mut out, query);
    }
    out
}

/// The replies to options, in words.
fn replies(mut bytes: &[u8]) -> Vec<String> {
    let mut said = Vec::new();
    while bytes.len() >= 20 {
        assert_eq!(be64(bytes), magic::OPTION_REPLY);
        let (option, kind) = (be32(&bytes[8..]), be32(&bytes[12..]));
        let len = be32(&bytes[16..]) as usize;
        let data = &bytes[20..20 + len];
        let detail = match kind {
            option_reply::ACK => "ack".to_owned(),
            option_reply::SERVER => format!("server {}", String::from_utf8_lossy(&data[4..])),
            option_reply::INFO => format!("info {} {}", data[1], len - 2),
            option_reply::META_CONTEXT => {
                format!(
                    "context {} {}",
                    be32(data),
                    String::from_utf8_lossy(&data[4..])
                )
            }
            error => format!("error {}", error & !option_reply::ERROR),
        };
        said.push(format!("{option}: {detail}"));
        bytes = &bytes[20 + len..];
    }
    assert!(bytes.is_empty());
    said
}

/// A fixed newstyle client without zeroes sends options one by one.
fn converse(tls: TlsOffer, options: &[Vec<u8>]) -> (Vec<String>, Loopback) {
    let mut server = Loopback::new(vec![0; 1 << 20], tls);
    assert_eq!(server.take_output(), greeting());
    server.receive(&3_u32.to_be_bytes());
    let mut said = Vec::new();
    for option in options {
        server.receive(option);
        said.extend(replies(&server.take_output()));
    }
    (said, server)
}

#[test]
fn each_option_has_its_answer() {
    let go = named(NAME, &[0, 2, 0, 1, 0, 2]);
    let cases: &[(&str, Vec<u8>, &[&str])] = &[
        (
            "list",
            text(option::LIST, &[]),
            &["3: server image/debian:3", "3: ack"],
        ),
        ("list with data", text(option::LIST, &[1]), &["3: error 3"]),
        ("unknown", text(99, &[1, 2, 3]), &["99: error 1"]),
        ("peek", text(4, &[]), &["4: error 1"]),
        ("no tls", text(option::STARTTLS, &[]), &["5: error 2"]),
        (
            "info",
            text(option::INFO, &go),
            &[
                "6: info 0 10",
                "6: info 3 12",
                "6: info 1 14",
                "6: info 2 16",
                "6: ack",
            ],
        ),
        (
            "info of nothing",
            text(option::INFO, &named("x", &[0, 0])),
            &["6: error 6"],
        ),
        (
            "info cut short",
            text(option::INFO, &named(NAME, &[0, 2, 0, 1])),
            &["6: error 3"],
        ),
        (
            "info with a tail",
            text(option::INFO, &named(NAME, &[0, 0, 9])),
            &["6: error 3"],
        ),
        (
            "info, lying length",
            text(option::INFO, &[0, 0, 1, 0, 65]),
            &["6: error 3"],
        ),
        (
            "name with nul",
            text(option::INFO, &named("a\0b", &[0, 0])),
            &["6: error 3"],
        ),
        (
            "structured with data",
            text(option::STRUCTURED_REPLY, &[0]),
            &["8: error 3"],
        ),
        (
            "contexts",
            text(option::LIST_META_CONTEXT, &queries(NAME, &[])),
            &["9: context 0 base:allocation", "9: ack"],
        ),
        (
            "wildcard",
            text(option::LIST_META_CONTEXT, &queries(NAME, &["base:"])),
            &["9: context 0 base:allocation", "9: ack"],
        ),
        (
            "other contexts",
            text(
                option::LIST_META_CONTEXT,
                &queries(NAME, &["qemu:", "base:x"]),
            ),
            &["9: ack"],
        ),
        (
            "no colon",
            text(option::LIST_META_CONTEXT, &queries(NAME, &["base"])),
            &["9: error 3"],
        ),
        (
            "contexts of nothing",
            text(option::LIST_META_CONTEXT, &queries("x", &[])),
            &["9: error 6"],
        ),
        (
            "many queries",
            text(option::LIST_META_CONTEXT, &named(NAME, &[255; 4])),
            &["9: error 3"],
        ),
        (
            "set too early",
            text(
                option::SET_META_CONTEXT,
                &queries(NAME, &["base:allocation"]),
            ),
            &["10: error 3"],
        ),
        (
            "too big",
            text(option::INFO, &vec![0; OPTION_BYTES_MAX + 1]),
            &["6: error 9"],
        ),
        ("abort", text(option::ABORT, b"bye"), &["2: ack"]),
    ];
    for (what, option, expected) in cases {
        let (said, _) = converse(TlsOffer::Off, std::slice::from_ref(option));
        assert_eq!(&said, expected, "{what}");
    }
}

#[test]
fn what_is_agreed_shows_in_the_transmission_phase() {
    let structured = text(option::STRUCTURED_REPLY, &[]);
    let extended = text(option::EXTENDED_HEADERS, &[]);
    let tls = text(option::STARTTLS, &[]);
    let set = |queries_: &[&str]| text(option::SET_META_CONTEXT, &queries(NAME, queries_));
    let status = set(&["base:allocation", "qemu:dirty-bitmap:x"]);
    let go = text(option::GO, &named(NAME, &[0, 0]));
    use ReplyStyle::{Extended, Simple, Structured};
    let cases = [
        (vec![go.clone()], Simple, false),
        (vec![structured.clone(), go.clone()], Structured, false),
        (
            vec![structured.clone(), status.clone(), go.clone()],
            Structured,
            true,
        ),
        (
            vec![extended.clone(), status.clone(), go.clone()],
            Extended,
            true,
        ),
        (
            vec![structured.clone(), extended.clone(), go.clone()],
            Extended,
            false,
        ),
        // No way back from extended headers.
        (
            vec![extended.clone(), structured.clone(), go.clone()],
            Extended,
            false,
        ),
        // A wildcard chooses nothing, and the last choice counts.
        (
            vec![structured.clone(), set(&["base:"]), go.clone()],
            Structured,
            false,
        ),
        (
            vec![structured.clone(), status.clone(), set(&[]), go.clone()],
            Structured,
            false,
        ),
        // What was agreed in the clear is forgotten.
        (
            vec![structured.clone(), status.clone(), tls, go.clone()],
            Simple,
            false,
        ),
    ];
    for (options, style, block_status) in cases {
        let (said, server) = converse(TlsOffer::Optional, &options);
        let ServerPhase::Transmission(agreement, _) = server.phase else {
            panic!("{said:?} did not end in transmission");
        };
        assert_eq!(
            (agreement.style, agreement.block_status),
            (style, block_status),
            "{said:?}"
        );
        let df = agreement.export_flags & export_flag::SEND_DF != 0;
        assert_eq!(df, style != Simple);
    }
}

#[test]
fn tls_can_be_insisted_on() {
    let go = text(option::GO, &named(NAME, &[0, 0]));
    let (said, server) = converse(
        TlsOffer::Required,
        &[
            text(option::LIST, &[]),
            go.clone(),
            text(77, &[]),
            text(option::STARTTLS, &[1]),
            text(option::STARTTLS, &[]),
            text(option::STARTTLS, &[]),
            text(option::LIST, &[]),
            go,
        ],
    );
    let said: Vec<_> = said.iter().map(String::as_str).collect();
    assert_eq!(
        said,
        [
            "3: error 5",
            "7: error 5",
            "77: error 5",
            "5: error 3",
            "5: ack",
            "5: error 3",
            "3: server image/debian:3",
            "3: ack",
            "7: info 0 10",
            "7: info 3 12",
            "7: ack",
        ]
    );
    assert!(matches!(server.phase, ServerPhase::Transmission(..)));
    let (_, server) = converse(TlsOffer::Required, &[text(option::EXPORT_NAME, b"x")]);
    assert!(server.is_closed());
}

#[test]
fn bytes_behind_starttls_are_not_let_into_tls() {
    let mut both = text(option::STARTTLS, &[]);
    both.extend(text(option::LIST, &[]));
    let (_, server) = converse(TlsOffer::Optional, &[both]);
    assert!(server.is_closed());
}

#[test]
fn export_name_has_its_own_form() {
    for (flags, zeroes) in [(1_u32, 124), (3, 0), (2, 0), (0, 124)] {
        let mut server = Loopback::new(vec![0; 4096], TlsOffer::Off);
        server.take_output();
        server.receive(&flags.to_be_bytes());
        server.receive(&text(option::EXPORT_NAME, NAME.as_bytes()));
        let said = server.take_output();
        assert_eq!(said.len(), 10 + zeroes, "flags {flags}");
        assert_eq!(be64(&said), 4096);
        assert!(matches!(server.phase, ServerPhase::Transmission(..)));
    }
    for name in [&b"none"[..], b"a\xff", &[b'a'; 5000], &vec![b'a'; 20_000]] {
        let (said, server) = converse(TlsOffer::Off, &[text(option::EXPORT_NAME, name)]);
        assert!(said.is_empty() && server.is_closed());
    }
    let (_, server) = converse(
        TlsOffer::Off,
        &[
            text(option::EXTENDED_HEADERS, &[]),
            text(option::EXPORT_NAME, NAME.as_bytes()),
        ],
    );
    assert!(server.is_closed());
}

#[test]
fn broken_clients_are_closed() {
    let flags = |flags: u32| flags.to_be_bytes().to_vec();
    let mut old = flags(2);
    old.extend(text(option::LIST, &[]));
    let mut wrong = flags(3);
    wrong.extend([0; 16]);
    for bytes in [flags(4), flags(u32::MAX), old, wrong] {
        let mut server = Loopback::new(vec![0; 4096], TlsOffer::Off);
        server.receive(&bytes);
        assert!(server.is_closed(), "{bytes:?}");
    }
}
