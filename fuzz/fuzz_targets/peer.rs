//! A peer's bytes: what is read of them is bounded, and written as it came.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use rootstock_swarm::wire::{
    BITS_BYTES_MAX, MESSAGE_BYTES_MAX, Message, NUMBERS_MAX, PEERS_MAX, PIECE_BYTES_MAX,
    RACK_BYTES_MAX, take_preface,
};

// One byte: whether the preface comes first, and how large the parts are in which the
// bytes arrive; then the bytes.
fuzz_target!(|data: &[u8]| {
    let [how, bytes @ ..] = data else {
        return;
    };
    let whole = read(bytes, bytes.len().max(1), how & 0x80 != 0);
    let parts = read(bytes, usize::from(how & 0x7f) + 1, how & 0x80 != 0);
    assert_eq!(whole, parts, "parts make no difference");
});

/// The messages, and whether all of the bytes made sense.
fn read(bytes: &[u8], part: usize, has_preface: bool) -> (Vec<Message>, bool) {
    let mut input = BytesMut::new();
    let mut is_open = !has_preface;
    let mut messages = Vec::new();
    for part in bytes.chunks(part) {
        input.extend_from_slice(part);
        if !is_open {
            match take_preface(&mut input) {
                Ok(came) => is_open = came,
                Err(_) => return (messages, false),
            }
        }
        while is_open {
            match Message::take(&mut input) {
                Ok(Some(message)) => {
                    check(&message);
                    messages.push(message);
                }
                Ok(None) => break,
                Err(_) => return (messages, false),
            }
        }
        assert!(!is_open || input.len() < MESSAGE_BYTES_MAX + 4 + part.len());
    }
    (messages, true)
}

/// A message is within its bounds, and is read again as it was.
fn check(message: &Message) {
    match message {
        Message::Hello(hello) => assert!(hello.rack.len() <= RACK_BYTES_MAX),
        Message::Held { first, bits, .. } => {
            assert!(bits.len() <= BITS_BYTES_MAX && first % 8 == 0);
        }
        Message::Gained { numbers, .. } | Message::Lost { numbers, .. } => {
            assert!(numbers.len() <= NUMBERS_MAX);
        }
        Message::Piece { data, .. } => assert!((1..=PIECE_BYTES_MAX).contains(&data.len())),
        Message::Peers(known) => assert!(known.len() <= PEERS_MAX),
        _ => {}
    }
    let mut out = Vec::new();
    if let Some(data) = message.encode(&mut out) {
        out.extend_from_slice(&data);
    }
    assert!(out.len() <= MESSAGE_BYTES_MAX + 4);
    let mut again = BytesMut::from(&out[..]);
    let read = Message::take(&mut again).expect("it was read before");
    assert_eq!(read.as_ref(), Some(message));
    assert!(again.is_empty());
}
