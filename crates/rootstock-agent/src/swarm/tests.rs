//! What this machine has for others, and what it makes of what comes.

use std::sync::mpsc::channel;

use rootstock_core::PeerId;
use rootstock_image::frame::Encoder;
use rootstock_peer::Verdict;
use rootstock_swarm::Whole;

use super::*;

fn travelling(raw: &[u8]) -> (ChunkId, Whole) {
    let chunk = ChunkId::of(raw);
    let frame = Encoder::new().encode(chunk, raw);
    let whole = Whole {
        codec: frame.codec.to_byte(),
        raw_bytes: frame.raw_bytes,
        data: frame.bytes.into(),
    };
    (chunk, whole)
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let word = |at: u64| Digest::of(&(at + seed * 1_000_003).to_le_bytes());
    let words = (0..).flat_map(|at| *word(at).as_bytes());
    words.take(len).collect()
}

#[test]
fn what_comes_goes_to_all_who_wait_and_is_kept_while_there_is_room() {
    let store = Store::default();
    store.set_memory_max(100_000);
    let (one, other) = (noise(60_000, 1), noise(60_000, 2));
    let (chunk, whole) = travelling(&one);
    let (sender, came) = channel();
    let [_, second, gone] = [(); 3].map(|()| {
        let number = store.waiter();
        store.wait(number, chunk, &sender);
        number
    });
    assert_eq!(store.give_up(gone, &[chunk]), [], "others wait");
    assert_eq!(store.arrived(chunk, &whole, true), Verdict::Kept);
    drop(sender);
    let told: Vec<_> = came.iter().collect();
    assert_eq!(told.len(), 2);
    assert!(told.iter().all(|(id, one_came)| {
        *id == chunk && one_came.as_ref().is_some_and(|(_, raw)| *raw == one)
    }));
    assert_eq!(store.give_up(second, &[chunk]), [], "it came");
    assert_eq!(store.load(chunk), Some(whole));
    // Who comes between that and its end has to ask again.
    let (sender, came) = channel();
    store.wait(store.waiter(), chunk, &sender);
    store.settled(chunk);
    drop(sender);
    assert_eq!(came.iter().collect::<Vec<_>>(), [(chunk, None)]);
    // A second one has no room, and is handed on all the same.
    let (chunk, whole) = travelling(&other);
    assert_eq!(store.arrived(chunk, &whole, true), Verdict::Right);
    assert_eq!(store.load(chunk), None);
}

#[test]
fn what_is_wrong_goes_to_nobody() {
    let store = Store::default();
    let (chunk, whole) = travelling(b"a chunk");
    let (sender, came) = channel();
    let number = store.waiter();
    store.wait(number, chunk, &sender);
    drop(sender);
    let (_, other) = travelling(b"a chunl");
    let unknown = Whole {
        codec: 99,
        ..whole.clone()
    };
    let longer = Whole {
        raw_bytes: 1 << 30,
        ..whole
    };
    for wrong in [other, unknown, longer] {
        assert_eq!(store.arrived(chunk, &wrong, true), Verdict::Wrong);
    }
    assert_eq!(store.give_up(number, &[chunk]), [chunk]);
    assert_eq!(came.iter().count(), 0);
    store.lied(PeerId(7));
    assert_eq!(store.take_liars(), [PeerId(7)]);
    assert_eq!(store.take_liars(), []);
}

#[test]
fn a_key_is_told_as_the_standard_says() {
    let (one, other) = (Key::generate(), Key::generate());
    let (one, other) = (one.expect("a key"), other.expect("a key"));
    // RFC 8410, section 4: the identifier of ed25519, and a bit string of 32 bytes.
    let hex = one.public_hex();
    assert_eq!(&hex[..24], "302a300506032b6570032100");
    assert_eq!(hex.len(), 24 + 64);
    assert_ne!(hex, other.public_hex());
    let pem = one.pem();
    assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----"), "{pem}");
}

#[test]
fn guests_are_answered_where_settings_say_so() {
    let store = Store::default();
    let address = Ipv4Addr::LOCALHOST.into();
    let admits = |id| store.admits(id, address, rootstock_peer::Proof::Certificate);
    let (node, guest) = (PeerId::of("n1"), PeerId::guest(1));
    assert!(admits(node) && !admits(guest));
    store.set_takes_guests(true);
    assert!(admits(node) && admits(guest));
    store.set_takes_guests(false);
    assert!(!admits(guest));
}
