//! What a request may be, and that no bytes upset the decoder.

use proptest::prelude::*;

use super::*;
use crate::{
    TlsOffer,
    client::codec::{put_option, put_string},
    loopback::{Loopback, NAME, Phase},
    proto::{allocation, option},
};

const SIZE: u64 = 1 << 40;

fn request(command: Command, flags: u16, offset: u64, len: u64) -> Request {
    Request {
        command,
        flags,
        cookie: 7,
        offset,
        len,
    }
}

#[test]
fn requests_are_checked() {
    use Command::{BlockStatus, Cache, Disconnect, Flush, Other, Read, Trim, Write, WriteZeroes};
    use ErrorCode::{Inval, NoSpace, Overflow, Perm};
    use command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, PAYLOAD_LEN, REQ_ONE};
    let max = u64::from(PAYLOAD_BYTES_MAX);
    let rw = |style| Terms {
        size_bytes: SIZE,
        read_only: false,
        block_status: true,
        style,
    };
    let simple = rw(ReplyStyle::Simple);
    let structured = rw(ReplyStyle::Structured);
    let extended = rw(ReplyStyle::Extended);
    let read_only = Terms {
        read_only: true,
        ..structured
    };
    let no_status = Terms {
        block_status: false,
        ..structured
    };
    #[rustfmt::skip]
    let cases = [
        (&structured, request(Read, 0, 0, max), Ok(())),
        (&structured, request(Read, FUA | DF, 0, 1), Ok(())),
        (&simple, request(Read, DF, 0, 1), Err(Inval)),
        (&structured, request(Read, 0, 0, max + 1), Err(Inval)),
        (&structured, request(Read, DF, 0, max + 1), Err(Overflow)),
        (&structured, request(Read, 0, SIZE, 0), Ok(())),
        (&structured, request(Read, 0, SIZE, 1), Err(Inval)),
        (&structured, request(Read, 0, u64::MAX, 2), Err(Inval)),
        (&structured, request(Read, NO_HOLE, 0, 1), Err(Inval)),
        (&structured, request(Write, FUA, SIZE - 1, 1), Ok(())),
        (&structured, request(Write, 0, SIZE - 1, 2), Err(NoSpace)),
        (&structured, request(Write, PAYLOAD_LEN, 0, 1), Err(Inval)),
        (&extended, request(Write, PAYLOAD_LEN, 0, 1), Ok(())),
        (&read_only, request(Write, 0, SIZE, 2), Err(Perm)),
        (&read_only, request(Trim, 0, 0, 1), Err(Perm)),
        (&read_only, request(WriteZeroes, 0, 0, 1), Err(Perm)),
        (&read_only, request(Flush, 0, 0, 0), Ok(())),
        (&structured, request(Flush, FUA, 99, 99), Ok(())),
        (&structured, request(Trim, FUA, 0, SIZE), Ok(())),
        (&structured, request(Trim, 0, 1, SIZE), Err(Inval)),
        (&structured, request(Trim, 1 << 9, 0, 1), Err(Inval)),
        (&structured, request(WriteZeroes, FUA | NO_HOLE | FAST_ZERO, 0, SIZE), Ok(())),
        (&structured, request(WriteZeroes, 0, 1, SIZE), Err(NoSpace)),
        (&structured, request(Cache, 0, 0, SIZE), Ok(())),
        (&structured, request(Cache, DF, 0, SIZE), Err(Inval)),
        (&structured, request(Cache, 0, 1, SIZE), Err(Inval)),
        (&structured, request(BlockStatus, REQ_ONE, 0, SIZE), Ok(())),
        (&structured, request(BlockStatus, 0, 0, 0), Err(Inval)),
        (&structured, request(BlockStatus, 0, 1, SIZE), Err(Inval)),
        (&no_status, request(BlockStatus, 0, 0, 1), Err(Inval)),
        (&structured, request(Disconnect, 0, 0, 0), Ok(())),
        (&structured, request(Other(8), 0, 0, 0), Err(Inval)),
    ];
    for (terms, request, expected) in cases {
        assert_eq!(
            request.check(terms),
            expected,
            "{request:?} under {terms:?}"
        );
    }
}

/// Decodes everything, as text; writes as their pieces' place and length.
fn decode(style: ReplyStyle, bytes: &[u8]) -> (Vec<String>, bool) {
    let mut decoder = RequestDecoder::new(style);
    let mut input = InputBuffer::new(InputBuffer::CAPACITY_BYTES_MIN);
    let mut said = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let taken = input.push(rest);
        rest = &rest[taken..];
        loop {
            match decoder.next(&mut input) {
                Ok(Some(Message::Write {
                    offset, data, last, ..
                })) => said.push(format!("write {offset}+{} {last}", data.len())),
                Ok(Some(Message::Request(request))) => said.push(format!(
                    "{:?} {}+{}",
                    request.command, request.offset, request.len
                )),
                Ok(Some(Message::Refused { request, code })) => {
                    said.push(format!("{:?} refused {code:?}", request.command));
                }
                Ok(None) => break,
                Err(error) => {
                    said.push(error.to_string());
                    return (said, false);
                }
            }
        }
    }
    (said, decoder.at_boundary() && input.is_empty())
}

fn stream(style: ReplyStyle, requests: &[(Request, usize)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (request, payload_bytes) in requests {
        encode(&mut out, style, request);
        out.resize(out.len() + payload_bytes, 0xab);
    }
    out
}

#[test]
fn payloads_are_cut_at_blocks_or_drained() {
    let too_long = PAYLOAD_BYTES_MAX as usize + 1;
    let bytes = stream(
        ReplyStyle::Simple,
        &[
            (request(Command::Write, 0, 512, 30_000), 30_000),
            (request(Command::Read, 0, 5, 6), 0),
            (request(Command::Write, 0, 0, too_long as u64), too_long),
            (request(Command::Write, 0, 9, 0), 0),
            (request(Command::Other(77), 0, 1, 2), 0),
            (request(Command::Disconnect, 0, 0, 0), 0),
        ],
    );
    let (said, whole) = decode(ReplyStyle::Simple, &bytes);
    assert_eq!(
        said,
        [
            "write 512+15872 false",
            "write 16384+14128 true",
            "Read 5+6",
            "Write refused Inval",
            "write 9+0 true",
            "Other(77) 1+2",
            "Disconnect 0+0",
        ]
    );
    assert!(whole);
}

#[test]
fn extended_payloads_need_their_flag() {
    use command_flag::PAYLOAD_LEN;
    let bytes = stream(
        ReplyStyle::Extended,
        &[
            (request(Command::Write, PAYLOAD_LEN, 0, 10), 10),
            (request(Command::Write, 0, 0, 10), 0),
            (request(Command::Read, PAYLOAD_LEN, 0, 10), 10),
            (request(Command::Trim, 0, 0, 1 << 40), 0),
            (request(Command::Write, PAYLOAD_LEN, 0, 1 << 32), 0),
        ],
    );
    let (said, _) = decode(ReplyStyle::Extended, &bytes);
    assert_eq!(
        said,
        [
            "write 0+10 true",
            "Write refused Inval",
            "Read refused Inval",
            "Trim 0+1099511627776",
            "a request claims a payload of 4294967296 bytes, and the limit is 4294967295",
        ]
    );
}

/// The client's bytes up to the transmission phase.
fn handshake(extended: bool) -> Vec<u8> {
    let mut out = 3_u32.to_be_bytes().to_vec();
    let headers = if extended {
        option::EXTENDED_HEADERS
    } else {
        option::STRUCTURED_REPLY
    };
    put_option(&mut out, headers, &[]);
    let mut data = Vec::new();
    put_string(&mut data, NAME);
    data.extend_from_slice(&1_u32.to_be_bytes());
    put_string(&mut data, allocation::NAME);
    put_option(&mut out, option::SET_META_CONTEXT, &data);
    data.clear();
    put_string(&mut data, NAME);
    data.extend_from_slice(&0_u16.to_be_bytes());
    put_option(&mut out, option::GO, &data);
    out
}

/// Feeds `bytes` in pieces of the given sizes, over and over.
fn feed(server: &mut Loopback, mut bytes: &[u8], splits: &[usize]) -> Vec<u8> {
    let mut said = Vec::new();
    for split in splits.iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        let (head, tail) = bytes.split_at((*split).min(bytes.len()));
        server.receive(head);
        said.extend(server.take_output());
        bytes = tail;
    }
    said
}

fn any_request() -> impl Strategy<Value = (Request, usize)> {
    let len = prop_oneof![0_u64..300, 15_000_u64..40_000, any::<u64>()];
    (0_u16..9, any::<u16>(), any::<u64>(), 0_u64..70_000, len).prop_map(
        |(command, flags, cookie, offset, len)| {
            let request = Request {
                command: Command::from_number(command),
                flags: flags & 0x1f,
                cookie,
                offset,
                len,
            };
            (request, 0)
        },
    )
}

proptest! {
    #[test]
    fn noise_in_any_splits_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..3000), splits in prop::collection::vec(1_usize..500, 1..20), prefix in 0_usize..3) {
        let mut server = Loopback::new(vec![0; 70_000], TlsOffer::Optional);
        if prefix > 0 {
            feed(&mut server, &handshake(prefix == 2), &splits);
            prop_assert!(matches!(server.phase, Phase::Transmission(..)));
        }
        feed(&mut server, &bytes, &splits);
    }

    #[test]
    fn every_split_says_the_same(requests in prop::collection::vec(any_request(), 0..12), extended in any::<bool>(), splits in prop::collection::vec(1_usize..40_000, 1..20)) {
        let style = if extended { ReplyStyle::Extended } else { ReplyStyle::Structured };
        let mut bytes = handshake(extended);
        let mut answered = 0;
        for (mut request, _) in requests {
            if request.command == Command::Disconnect {
                continue;
            }
            if request.command == Command::Write {
                request.len %= 40_000;
                if extended {
                    request.flags |= command_flag::PAYLOAD_LEN;
                }
            }
            encode(&mut bytes, style, &request);
            if request.command == Command::Write {
                bytes.resize(bytes.len() + request.len as usize, request.cookie as u8);
            }
            answered += 1;
        }
        let run = |splits: &[usize]| {
            let mut server = Loopback::new(vec![0; 70_000], TlsOffer::Off);
            let said = feed(&mut server, &bytes, splits);
            (said, server)
        };
        let (whole, one) = run(&[bytes.len().max(1)]);
        let (pieces, two) = run(&splits);
        prop_assert!(!one.is_closed() && !two.is_closed());
        prop_assert_eq!(whole, pieces);
        prop_assert_eq!(&one.disk, &two.disk);
        prop_assert!(one.requests >= answered);
    }

    #[test]
    fn headers_round_trip((request, _) in any_request(), extended in any::<bool>()) {
        let style = if extended { ReplyStyle::Extended } else { ReplyStyle::Simple };
        let mut request = request;
        if !extended {
            request.len &= 0xffff_ffff;
        }
        prop_assume!(request.command != Command::Write);
        let mut bytes = Vec::new();
        encode(&mut bytes, style, &request);
        let mut input = InputBuffer::new(InputBuffer::CAPACITY_BYTES_MIN);
        input.push(&bytes);
        let got = RequestDecoder::new(style).next(&mut input).unwrap();
        prop_assert_eq!(got, Some(Message::Request(request)));
    }
}
