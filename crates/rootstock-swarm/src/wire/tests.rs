//! What is written is read again, and what is read is bounded.

use proptest::prelude::*;

use super::*;

fn class_of() -> impl Strategy<Value = Class> {
    prop_oneof![Just(Class::Bulk), Just(Class::Boot), Just(Class::User)]
}

fn rack() -> impl Strategy<Value = String> {
    "[a-z0-9.-]{0,64}"
}

fn known_of() -> impl Strategy<Value = Known> {
    let ip = prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u16; 8]>().prop_map(|parts| IpAddr::from(parts).to_canonical()),
    ];
    let rest = (
        any::<u64>(),
        any::<u16>(),
        any::<u16>(),
        any::<bool>(),
        rack(),
    );
    (ip, rest).prop_map(|(ip, (id, port, age_seconds, is_head, rack))| Known {
        id: PeerId(id),
        address: SocketAddr::new(ip, port),
        rack,
        is_head,
        age_seconds,
    })
}

fn message() -> impl Strategy<Value = Message> {
    let numbers = || prop::collection::vec(any::<u32>(), 0..50);
    prop_oneof![
        (any::<u64>(), rack(), any::<u16>(), any::<bool>()).prop_map(
            |(id, rack, port, is_head)| {
                Message::Hello(Hello {
                    id: PeerId(id),
                    rack,
                    port,
                    is_head,
                })
            }
        ),
        (any::<u8>(), any::<[u8; 32]>(), any::<u32>()).prop_map(|(slot, id, chunks)| {
            Message::Version {
                slot,
                version: Digest::from_bytes(id),
                chunks,
            }
        }),
        (
            any::<u8>(),
            0_u32..1000,
            prop::collection::vec(any::<u8>(), 0..99)
        )
            .prop_map(|(slot, eights, bits)| Message::Held {
                slot,
                first: eights * 8,
                bits
            }),
        (any::<u8>(), numbers()).prop_map(|(slot, numbers)| Message::Gained { slot, numbers }),
        (any::<u8>(), numbers()).prop_map(|(slot, numbers)| Message::Lost { slot, numbers }),
        (any::<u32>(), any::<[u8; 32]>(), class_of(), any::<bool>()).prop_map(
            |(request, id, class, insists)| Message::Ask {
                request,
                chunk: ChunkId::from_bytes(id),
                class,
                insists,
            }
        ),
        any::<u32>().prop_map(|request| Message::Cancel { request }),
        any::<(u32, u8, u32, u32)>().prop_map(|(request, codec, raw_bytes, wire_bytes)| {
            Message::Begin {
                request,
                codec,
                raw_bytes,
                wire_bytes,
            }
        }),
        (any::<u32>(), prop::collection::vec(any::<u8>(), 1..200)).prop_map(|(request, data)| {
            Message::Piece {
                request,
                data: data.into(),
            }
        }),
        (any::<u32>(), 0_usize..4, any::<Option<u64>>()).prop_map(|(request, why, hint)| {
            let all = [
                Refusal::Lacking,
                Refusal::Busy,
                Refusal::Broken,
                Refusal::Elsewhere,
            ];
            Message::Refuse {
                request,
                why: all[why],
                hint: hint.filter(|id| *id != 0).map(PeerId),
            }
        }),
        any::<u32>().prop_map(|delay_ms| Message::Load { delay_ms }),
        prop::collection::vec(known_of(), 0..8).prop_map(Message::Peers),
    ]
}

fn written(messages: &[Message]) -> Vec<u8> {
    let mut out = Vec::new();
    for message in messages {
        if let Some(data) = message.encode(&mut out) {
            out.extend_from_slice(&data);
        }
    }
    out
}

proptest! {
    #[test]
    fn what_is_written_is_read_however_it_is_cut(
        messages in prop::collection::vec(message(), 0..12),
        cut in 1_usize..90,
    ) {
        let mut input = BytesMut::new();
        let mut read = Vec::new();
        for part in written(&messages).chunks(cut) {
            input.extend_from_slice(part);
            while let Some(message) = Message::take(&mut input).expect("it makes sense") {
                read.push(message);
            }
        }
        prop_assert_eq!(read, messages);
        prop_assert!(input.is_empty());
    }

    #[test]
    fn no_bytes_are_worse_than_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut input = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = Message::take(&mut input) {}
        let mut input = BytesMut::from(&bytes[..]);
        let _ = take_preface(&mut input);
    }

    #[test]
    fn a_known_kind_with_any_body_is_read_or_refused(
        kind in HELLO..=PEERS,
        body in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut bytes = (body.len() as u32 + 1).to_le_bytes().to_vec();
        bytes.push(kind);
        bytes.extend(body);
        let mut input = BytesMut::from(&bytes[..]);
        if let Ok(message) = Message::take(&mut input) {
            // What was read can be said.
            prop_assert!(!written(&[message.expect("it was whole")]).is_empty());
        }
    }
}

#[test]
fn kinds_that_are_not_known_are_passed_over() {
    let mut bytes = vec![3, 0, 0, 0, 99, 1, 2];
    bytes.extend(written(&[Message::Cancel { request: 7 }]));
    let mut input = BytesMut::from(&bytes[..]);
    assert_eq!(
        Message::take(&mut input),
        Ok(Some(Message::Cancel { request: 7 }))
    );
}

#[test]
fn a_length_is_bounded_before_there_is_room_for_it() {
    let mut input = BytesMut::from(&u32::MAX.to_le_bytes()[..]);
    let len = u32::MAX as usize;
    assert_eq!(Message::take(&mut input), Err(WireError::TooLong { len }));
}

#[test]
fn a_preface_is_ours_and_of_this_version() {
    let check = |bytes: &[u8]| take_preface(&mut BytesMut::from(bytes));
    assert_eq!(check(&preface()), Ok(true));
    assert_eq!(check(&preface()[..4]), Ok(false));
    assert_eq!(check(b"GET / HTTP/1.1\r\n"), Err(WireError::Magic));
    let mut newer = preface();
    newer[8] = 9;
    assert_eq!(check(&newer), Err(WireError::Version { version: 9 }));
}
