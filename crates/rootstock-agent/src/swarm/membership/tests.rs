//! Memberships that are kept, and what is made of files that are none.

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rootstock_swarm::Counters;

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A site with an authority of its own.
struct Lab {
    file: SiteFile,
    issuer: Issuer<'static, KeyPair>,
}

fn lab() -> Lab {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let key = KeyPair::generate().expect("a key");
    let authority_pem = params.self_signed(&key).expect("a certificate").pem();
    Lab {
        file: SiteFile {
            format: 1,
            public_key: "aa".repeat(32),
            authority_pem,
            made_seconds: 0,
        },
        issuer: Issuer::new(params, key),
    }
}

/// A certificate for this name that holds for 30 days.
fn credentials(lab: &Lab, id: PeerId, now: SystemTime) -> Credentials {
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    let mut params = CertificateParams::new([id.certificate_name()]).expect("a name");
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.not_before = (now - DAY).into();
    params.not_after = (now + 30 * DAY).into();
    let certificate = params.signed_by(&key, &lab.issuer).expect("signed");
    Credentials {
        certificate_pem: certificate.pem(),
        key_pem: key.serialize_pem(),
    }
}

fn peer(number: u64, rack: &str) -> SwarmPeer {
    SwarmPeer {
        id: PeerId(number),
        addresses: vec![format!("10.0.0.{}:8486", number % 250)],
        rack: rack.to_owned(),
        head: false,
    }
}

/// A machine of the rack `r` in a swarm without TLS.
pub(crate) fn membership() -> Membership {
    Membership {
        id: PeerId(1),
        rack: "r".to_owned(),
        order: SwarmOrder {
            mode: SwarmMode::Plain,
            ..SwarmOrder::default()
        },
        credentials: None,
        peers: vec![peer(2, "r"), peer(3, "s")],
    }
}

/// A whole file with this number.
pub(crate) fn text(count: u64) -> Vec<u8> {
    let text = membership().encode(&lab().file, count);
    text.expect("is JSON")
}

/// One with the digest of what was changed.
fn changed(text: &[u8], from: &str, to: &str) -> Vec<u8> {
    let body = std::str::from_utf8(&text[HEAD_BYTES..]).expect("JSON");
    assert!(body.contains(from), "{body}");
    let body = body.replacen(from, to, 1);
    format!("{}\n{body}", Digest::of(body.as_bytes())).into_bytes()
}

#[test]
fn what_was_written_is_read() {
    let (lab, now) = (lab(), SystemTime::now());
    let mut own = membership();
    for credentials in [None, Some(credentials(&lab, own.id, now))] {
        if credentials.is_some() {
            own.order.mode = SwarmMode::Tls;
        }
        own.credentials = credentials;
        let text = own.encode(&lab.file, 7).expect("is JSON");
        assert_eq!(number(&text), Some(7));
        let read = Membership::decode(&text, &lab.file, now);
        assert_eq!(read, Ok(own.clone()));
        let said = format!("{own:?}");
        assert!(!said.contains("PRIVATE"), "{said}");
    }
}

#[test]
fn what_is_hostile_or_garbage_is_refused() {
    let (lab, now) = (lab(), SystemTime::now());
    let good = membership().encode(&lab.file, 7).expect("is JSON");
    let mut torn = good.clone();
    torn.truncate(good.len() - 1);
    let mut flipped = good.clone();
    flipped[HEAD_BYTES + 30] ^= 1;
    let long = "x".repeat(RACK_BYTES_MAX + 1);
    let many: Vec<SwarmPeer> = (2..).take(PEERS_MAX + 1).map(|id| peer(id, "r")).collect();
    let many = Membership {
        peers: many,
        ..membership()
    };
    for (text, expected) in [
        (Vec::new(), "not whole"),
        (vec![b'0'; HEAD_BYTES], "not whole"),
        (vec![0xff; 1000], "not whole"),
        (torn, "not whole"),
        (flipped, "not whole"),
        (changed(&good, "{", "["), "cannot be read"),
        (
            changed(&good, "\"format\":1", "\"format\":2"),
            "format is 2",
        ),
        (changed(&good, "aaaa", "aaab"), "another site"),
        (changed(&good, "\"id\":\"", "\"id\":\"0"), "cannot be read"),
        (
            changed(&good, "\"rack\":\"r\"", &format!("\"rack\":\"{long}\"")),
            "64 bytes",
        ),
        (changed(&good, "\"plain\"", "\"off\""), "not in the swarm"),
        (changed(&good, "\"plain\"", "\"tls\""), "no certificate"),
        (changed(&good, "\"plain\"", "\"later\""), "cannot be read"),
        (many.encode(&lab.file, 1).expect("is JSON"), "64 others"),
    ] {
        let error = Membership::decode(&text, &lab.file, now).expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}: {expected}");
    }
}

#[test]
fn a_certificate_is_the_machines_own_and_holds_now() {
    let (lab, other, now) = (lab(), lab(), SystemTime::now());
    let id = membership().id;
    let own = credentials(&lab, id, now);
    let no_key = Credentials {
        key_pem: "-----BEGIN PRIVATE KEY-----".to_owned(),
        ..own.clone()
    };
    let no_certificate = Credentials {
        certificate_pem: String::new(),
        ..own.clone()
    };
    for (shown, at, expected) in [
        (own.clone(), now, None),
        (own.clone(), now + 29 * DAY, None),
        (own.clone(), now + 31 * DAY, Some("does not hold now")),
        (own, now - 2 * DAY, Some("does not hold now")),
        (credentials(&lab, PeerId(9), now), now, Some("not its own")),
        (credentials(&other, id, now), now, Some("not its own")),
        (no_key, now, Some("no key")),
        (no_certificate, now, Some("not its own")),
    ] {
        let own = Membership {
            order: SwarmOrder {
                mode: SwarmMode::Tls,
                ..SwarmOrder::default()
            },
            credentials: Some(shown),
            ..membership()
        };
        let text = own.encode(&lab.file, 1).expect("is JSON");
        let found = Membership::decode(&text, &lab.file, at).err();
        let found = found.map(|error| error.to_string()).unwrap_or_default();
        assert!(found.contains(expected.unwrap_or_default()), "{found}");
        assert_eq!(found.is_empty(), expected.is_none(), "{found}");
    }
}

#[test]
fn a_certificate_is_replaced_in_its_second_half() {
    let (lab, now) = (lab(), SystemTime::now());
    let mut own = membership();
    let wants = |own: &Membership, at| own.wants_certificate(&lab.file.authority_pem, at);
    assert_eq!(wants(&own, now), None, "there is none");
    own.credentials = Some(credentials(&lab, own.id, now));
    let key = own.credentials.as_ref().and_then(Credentials::key);
    let key = key.expect("a key").public_hex();
    for (days, expected) in [(0, false), (14, false), (16, true), (40, true)] {
        let wanted = wants(&own, now + days * DAY);
        assert_eq!(wanted, expected.then(|| key.clone()), "after {days} days");
    }
}

#[test]
fn the_rack_is_kept_first_and_who_is_away_stays() {
    let known = |ids: &[u64], rack: &str, is_head| {
        let one = |id: &u64| {
            let address = SocketAddr::from(([10, 0, 0, (*id % 250) as u8], 8486));
            (PeerId(*id), address, rack.to_owned(), is_head)
        };
        ids.iter().map(one).collect::<Vec<_>>()
    };
    let ids = |own: &Membership| own.peers.iter().map(|peer| peer.id.0).collect::<Vec<_>>();
    let peers = |known, liars| Peers {
        linked: Vec::new(),
        known,
        liars,
        counters: Counters::default(),
    };
    let mut own = membership();
    let mut all = known(&[7, 5], "r", false);
    all.extend(known(&[9], "", true));
    all.extend(known(&[10], "", false));
    own.learn(&peers(all, vec![PeerId(2)]));
    // Neither a head, nor who lied.
    assert_eq!(ids(&own), [3, 5, 7]);
    own.learn(&peers(Vec::new(), Vec::new()));
    assert_eq!(ids(&own), [3, 5, 7], "nobody is there");
    let far: Vec<u64> = (1000..1100).collect();
    let near: Vec<u64> = (100..160).collect();
    let mut all = known(&far, "s", false);
    all.extend(known(&near, "r", false));
    own.learn(&peers(all, Vec::new()));
    assert_eq!(own.peers.len(), PEERS_MAX);
    assert_eq!(ids(&own)[..60], near);
    // Another machine of a large rack keeps others.
    let near: Vec<u64> = (100..400).collect();
    own.learn(&peers(known(&near, "r", false), Vec::new()));
    let mut other = Membership {
        id: PeerId(99),
        ..membership()
    };
    other.learn(&peers(known(&near, "r", false), Vec::new()));
    assert_ne!(ids(&own), ids(&other));
    // A later boot takes over whom an earlier one knew, of its own site.
    let lab = lab();
    let text = membership().encode(&lab.file, 1).expect("is JSON");
    let mut later = Membership {
        peers: vec![peer(8, "r")],
        ..membership()
    };
    let mut elsewhere = later.clone();
    later.take_over(&text, &lab.file);
    assert_eq!(ids(&later), [2, 3, 8]);
    elsewhere.take_over(&changed(&text, "aaaa", "aaab"), &lab.file);
    assert_eq!(ids(&elsewhere), [8]);
}
