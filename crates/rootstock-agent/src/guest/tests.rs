//! Orders for strangers, and what is made of documents that are none.

use rootstock_api::boot::{BootOrder, CacheChoice, NodeMode};
use rootstock_api::guest::{GUEST_FORMAT, GuestCredentials};
use rootstock_api::local::{LOCAL_FILE_BYTES_MAX, LocalFile};
use rootstock_api::swarm::{SwarmMode, SwarmOrder};
use rootstock_core::{CHUNK_BYTES, Digest};
use rootstock_image::grid::Grid;
use rootstock_image::seal::Seal;

use super::*;
use crate::order::tests::{key, order, signed, site};

/// Until when the order holds.
const UNTIL: i64 = 1_000;

fn file(name: &str) -> LocalFile {
    LocalFile {
        name: name.to_owned(),
        len_bytes: 7,
        digest: Digest::of(name.as_bytes()),
    }
}

fn guest() -> GuestOrder {
    GuestOrder {
        guest_format: GUEST_FORMAT,
        until_seconds: UNTIL,
        order: BootOrder {
            boot: String::new(),
            node: "guest".to_owned(),
            cache: CacheChoice::None,
            ..order()
        },
        arguments: vec!["quiet".to_owned()],
        kernel: file("kernel"),
        first_stage: file("first-stage"),
        swarm: SwarmOrder {
            mode: SwarmMode::Tls,
            ..SwarmOrder::default()
        },
        credentials: Some(GuestCredentials {
            certificate_pem: "a certificate".to_owned(),
            key_pem: "a key".to_owned(),
        }),
    }
}

fn document(guest: &GuestOrder) -> Document {
    let (order, signature) = signed(guest);
    let manifest = Manifest::zero(Grid::whole(4 * CHUNK_BYTES).expect("a grid"));
    let (image, version) = (&guest.order.image, guest.order.version);
    let seal = Seal::sign(&key(), image, version, manifest.id()).encode();
    let made = Document::new(
        order,
        signature,
        (&manifest.encode(), hex(&seal)),
        Some(b"a trace"),
    );
    let mut document = made.expect("is text");
    let member = SwarmPeer {
        id: PeerId(5),
        addresses: vec!["10.0.0.5:8486".to_owned()],
        rack: "r".to_owned(),
        head: false,
    };
    document.set_members(("r".to_owned(), vec![member; 2 * MEMBERS_MAX]));
    document
}

fn open(document: &Document) -> Result<Guest, TrustError> {
    let text = serde_json::to_vec(document).expect("is JSON");
    Document::open(&text, &site(), UNTIL)
}

#[test]
fn a_guest_has_an_id_and_a_name_of_its_own() {
    let mut opened = open(&document(&guest())).expect("is good");
    assert_eq!(opened.trace.as_deref(), Some(&b"a trace"[..]));
    assert_eq!(opened.members.len(), MEMBERS_MAX);
    let mac: MacAddress = "52:54:00:12:34:56".parse().expect("a card");
    let one = opened.settle(mac).expect("chance");
    let first = opened.order.order.identity.clone();
    assert_eq!(first.host_name, "guest-52-54-00-12-34-56");
    assert_eq!((first.machine_id.len(), first.files.len()), (32, 0));
    assert_eq!(one.order().mode, SwarmMode::Tls);
    let other = opened.settle(mac).expect("chance");
    assert!(one.is_guest() && other.is_guest());
    assert_ne!(one, other);
    assert_ne!(first.machine_id, opened.order.order.identity.machine_id);
}

#[test]
fn an_order_that_a_stranger_must_not_have_is_refused() {
    let with = |change: fn(&mut GuestOrder)| {
        let mut guest = guest();
        change(&mut guest);
        open(&document(&guest))
    };
    for (opened, expected) in [
        (with(|guest| guest.guest_format = 2), "another release"),
        (with(|guest| guest.until_seconds = UNTIL - 1), "run out"),
        (
            with(|guest| guest.order.mode = NodeMode::Ram),
            "neither disks",
        ),
        (
            with(|guest| guest.order.cache = CacheChoice::Auto),
            "neither disks",
        ),
        (
            with(|guest| guest.order.keep = vec!["/home".parse().expect("a path")]),
            "neither disks",
        ),
        (
            with(|guest| guest.order.identity.host_name = "n1".to_owned()),
            "neither disks",
        ),
        (
            with(|guest| guest.order.boot = "session".to_owned()),
            "another boot",
        ),
        (
            with(|guest| guest.kernel.len_bytes = LOCAL_FILE_BYTES_MAX + 1),
            "256 MiB",
        ),
        (with(|guest| guest.credentials = None), "how the swarm"),
        (
            with(|guest| guest.swarm.mode = SwarmMode::Plain),
            "how the swarm",
        ),
        (
            with(|guest| guest.swarm.mode = SwarmMode::Off),
            "how the swarm",
        ),
        (
            with(|guest| guest.order.root.init = "sh".to_owned()),
            "init",
        ),
    ] {
        let error = opened.err().expect(expected).to_string();
        assert!(error.contains(expected), "{error}: {expected}");
    }
}

#[test]
fn a_document_that_is_hostile_or_garbage_is_refused() {
    let with = |change: fn(&mut Document)| {
        let mut document = document(&guest());
        change(&mut document);
        let opened = open(&document);
        opened.err().expect("refused").to_string()
    };
    for (error, expected) in [
        (with(|document| document.format = 2), "another release"),
        (with(|document| document.order.push(' ')), "not signed"),
        (with(|document| document.signature.clear()), "not signed"),
        (with(|document| document.manifest.push('0')), "no manifest"),
        (
            with(|document| document.manifest.push_str("00")),
            "not the one",
        ),
        (with(|document| document.seal = "00".repeat(100)), "seal"),
        (
            with(|document| document.rack = "r".repeat(RACK_BYTES_MAX + 1)),
            "longer",
        ),
        (
            with(|document| document.trace = "00".repeat(TRACE_KEPT_BYTES_MAX + 1)),
            "longer",
        ),
        (
            with(|document| document.members.push(document.members[0].clone())),
            "longer",
        ),
    ] {
        assert!(error.contains(expected), "{error}: {expected}");
    }
    for garbage in [&b""[..], b"{}", b"[]", &[0xff; 100], b"null"] {
        assert!(Document::open(garbage, &site(), 0).is_err());
    }
}
