//! Machines that announce themselves, and what they are answered.

use std::sync::atomic::Ordering::Relaxed;

use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData as _};
use rootstock_api::{
    boot::{CONTROL, NodeControl},
    swarm::{
        LiveCopies, SWARM, SWARM_HOLDS, SwarmAnnounce, SwarmAnswer, SwarmHolding, SwarmMode,
        SwarmOrder,
    },
};
use rootstock_core::{Digest, NodeName, PeerId};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use super::*;
use crate::{
    app::hex,
    boot::swarm,
    tls::{PeerAuthority, authority_pem},
};

mod guests;
mod head;

/// What is set on the machine.
const TLS: &str = r#"{"image":"lab","swarm":"tls","swarm_copies":3}"#;

/// A site with an authority, and a machine with these settings.
async fn site(settings: &str) -> (Site, String) {
    let (site, session, _keys) = site_and_keys(settings).await;
    (site, session)
}

/// The same, with the directory of its authority.
async fn site_and_keys(settings: &str) -> (Site, String, tempfile::TempDir) {
    let site = Site::new().await;
    let keys = tempfile::tempdir().expect("a directory");
    authority_pem(keys.path()).expect("is made");
    let authority = PeerAuthority::open(keys.path()).expect("opens");
    site.app.boot.swarm.set_authority(authority);
    site.version_of(&[1, 2, 3]).await;
    site.node(settings).await;
    let session = session(&site, MAC, OWN).await;
    (site, session, keys)
}

/// The session of a machine that boots.
async fn session(site: &Site, mac: &str, from: &str) -> String {
    let request = Request::get(format!("/boot/ipxe/{mac}")).body(Body::empty());
    let request = request.expect("a request");
    let script = bytes(site.send(from, Transport::Plain, request).await).await;
    let script = String::from_utf8(script).expect("is text");
    let ask = SessionCreate {
        token: token_of(&script).to_owned(),
        mac: mac.replace('-', ":"),
        uuid: None,
        release: "0.1.0".to_owned(),
        inventory: Inventory::default(),
    };
    let body = serde_json::to_vec(&ask).expect("is JSON");
    let request = Request::post(SESSION).body(body.into()).expect("a request");
    match state(site.send(from, Transport::Tls, request).await).await {
        SessionState::Open { session, .. } => session,
        SessionState::Held { message, .. } => panic!("{message}"),
    }
}

/// Another machine `n00N` at `10.0.0.N`, with its session.
async fn other(site: &Site, number: u8, settings: &str) -> String {
    let mac = format!("52-54-00-00-00-{number:02x}");
    let node = NewNode {
        name: format!("n{number:03}").parse().expect("a name"),
        profile: None,
        macs: vec![mac.parse().expect("a MAC")],
        uuid: None,
        address: None,
        settings: settings.to_owned(),
        image: None,
    };
    let added = site.app.catalog.add_node(&node, Timestamp::now()).await;
    added.expect("is added");
    site.app.nodes.note_change();
    session(site, &mac, &at(number)).await
}

fn at(number: u8) -> String {
    format!("10.0.0.{number}:1000")
}

async fn post(site: &Site, from: &str, path: &str, session: &str, body: &[u8]) -> Response {
    let request = Request::post(path)
        .header(header::AUTHORIZATION, format!("Bearer {session}"))
        .body(Body::from(body.to_vec()))
        .expect("a request");
    site.send(from, Transport::Plain, request).await
}

async fn announce(site: &Site, from: &str, session: &str, said: &SwarmAnnounce) -> SwarmAnswer {
    let body = serde_json::to_vec(said).expect("is JSON");
    let response = post(site, from, SWARM, session, &body).await;
    assert_eq!(response.status(), StatusCode::OK);
    serde_json::from_slice(&bytes(response).await).expect("is an answer")
}

fn serving() -> SwarmAnnounce {
    SwarmAnnounce {
        port: 8486,
        ..SwarmAnnounce::default()
    }
}

fn id(node: &str) -> PeerId {
    PeerId::of(node)
}

async fn lab(site: &Site) -> Digest {
    let spec = "lab:1".parse().expect("a version");
    let version = site.app.catalog.resolve(&spec).await;
    version.expect("is there").manifest
}

#[tokio::test]
async fn machines_are_told_of_each_other_where_they_ask_from() {
    let (site, first) = site(TLS).await;
    let second = other(&site, 8, TLS).await;
    let third = other(&site, 9, r#"{"image":"lab","swarm":"tls","rack":"room-2"}"#).await;
    let answer = announce(&site, OWN, &first, &serving()).await;
    let order = SwarmOrder {
        mode: SwarmMode::Tls,
        copies: 3,
        ..SwarmOrder::default()
    };
    assert_eq!((answer.me, &answer.order), (id("n001"), &order));
    assert_eq!((answer.peers, answer.again_seconds), (vec![], 10));
    assert_eq!(answer.rack, "10.0.0.0/24");
    let answer = announce(&site, &at(8), &second, &serving()).await;
    assert_eq!(answer.peers[0].addresses, ["10.0.0.7:8486"]);
    let answer = announce(&site, &at(9), &third, &serving()).await;
    assert_eq!((answer.rack.as_str(), answer.peers.len()), ("room-2", 2));
    // The head comes first once it listens, where it was asked.
    site.app.boot.swarm.listens.store(true, Relaxed);
    let answer = announce(&site, OWN, &first, &serving()).await;
    let told: Vec<_> = answer
        .peers
        .iter()
        .map(|peer| (peer.id, peer.head))
        .collect();
    let head = swarm::head_id(&site.app);
    assert_eq!(
        told,
        [(head, true), (id("n008"), false), (id("n009"), false)]
    );
    assert_eq!(answer.peers[0].addresses, ["10.0.0.1:8486"]);
    // A machine that goes is not told of any more.
    let gone = br#"{"steps":[{"step":"gone","uptime_ms":1}]}"#;
    let response = post(&site, &at(8), STEPS, &second, gone).await;
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
    let answer = announce(&site, OWN, &first, &serving()).await;
    assert_eq!(answer.peers.len(), 2);
    let node: NodeName = "n009".parse().expect("a name");
    let shown = site.app.boot.swarm.of(&node).expect("is a member");
    assert_eq!(shown.rack, "room-2");
}

#[tokio::test]
async fn who_is_off_is_no_member_and_hears_it_at_once() {
    let (site, session) = site(r#"{"image":"lab"}"#).await;
    let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let said = SwarmAnnounce {
        public_key: Some(hex(&key.subject_public_key_info())),
        ..serving()
    };
    let answer = announce(&site, OWN, &session, &said).await;
    assert_eq!(answer.order, SwarmOrder::default());
    assert_eq!(answer.certificate_pem, None);
    assert_eq!(site.app.boot.swarm.figures().members, 0);
    let control = async |after: u64| -> NodeControl {
        let path = format!("{CONTROL}?after={after}");
        let response = site.call(Transport::Tls, &path, &session, b"").await;
        serde_json::from_slice(&bytes(response).await).expect("is a control")
    };
    let off = control(0).await;
    assert_eq!(off.swarm, None);
    let set = |mode: &str| {
        let settings = format!(r#"{{"image":"lab","swarm":"{mode}"}}"#);
        let site = &site;
        async move {
            let names = ["n001".parse().expect("a name")];
            let edit = |row: &mut rootstock_catalog::NodeRow| row.settings.clone_from(&settings);
            let pass = rootstock_catalog::Pass::Keep;
            let changed = site.app.catalog.update_nodes(&names, pass, edit).await;
            changed.expect("is changed");
            site.app.nodes.note_change();
        }
    };
    set("plain").await;
    let on = control(off.number).await;
    let order = on.swarm.expect("is told");
    assert_eq!((order.mode, order.copies), (SwarmMode::Plain, 2));
    let answer = announce(&site, OWN, &session, &said).await;
    // Nobody shows one there.
    assert_eq!(answer.certificate_pem, None);
    assert_eq!(site.app.boot.swarm.figures().members, 1);
    let order = site.call(Transport::Tls, ORDER, &session, b"").await;
    // The session went over plain HTTP above.
    assert_eq!(order.status(), StatusCode::FORBIDDEN);
    set("off").await;
    announce(&site, OWN, &session, &said).await;
    assert_eq!(site.app.boot.swarm.figures().members, 0);
}

#[tokio::test]
async fn an_order_says_how_a_machine_takes_part() {
    let (site, session) = site(TLS).await;
    let response = site.call(Transport::Tls, ORDER, &session, b"").await;
    assert_eq!(response.status(), StatusCode::OK);
    let order: BootOrder = serde_json::from_slice(&bytes(response).await).expect("is an order");
    assert_eq!(order.swarm.map(|swarm| swarm.copies), Some(3));
}

#[tokio::test]
async fn a_machines_key_is_certified_once() {
    let (site, session) = site(TLS).await;
    let told = |key: &KeyPair| SwarmAnnounce {
        public_key: Some(hex(&key.subject_public_key_info())),
        ..serving()
    };
    let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let first = announce(&site, OWN, &session, &told(&key)).await;
    let pem = first.certificate_pem.expect("is certified");
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    assert_eq!(chain.expect("is PEM").len(), 1);
    let again = announce(&site, OWN, &session, &told(&key)).await;
    assert_eq!(again.certificate_pem, Some(pem.clone()));
    let other = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let other = announce(&site, OWN, &session, &told(&other)).await;
    assert_ne!(other.certificate_pem, Some(pem));
    // Without a key there is none.
    let none = announce(&site, OWN, &session, &serving()).await;
    assert_eq!(none.certificate_pem, None);
    let head = swarm::head_identity(&site.app).expect("is made");
    assert_eq!(head.0.len(), 1);
    for (public_key, status) in [
        ("", StatusCode::BAD_REQUEST),
        ("302a300506032b6570032100", StatusCode::BAD_REQUEST),
    ] {
        let body = format!(r#"{{"port":8486,"public_key":"{public_key}"}}"#);
        let response = post(&site, OWN, SWARM, &session, body.as_bytes()).await;
        assert_eq!(response.status(), status, "{public_key}");
    }
    let response = post(&site, OWN, SWARM, "no session", b"{}").await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn what_machines_hold_is_counted() {
    let (site, first) = site(TLS).await;
    let second = other(&site, 8, TLS).await;
    let version = lab(&site).await;
    let live = async || {
        swarm::live_copies(&site.app, version)
            .await
            .expect("counts")
    };
    assert_eq!(live().await, None);
    let holding = |version, held_chunks| SwarmHolding {
        version,
        held_chunks,
    };
    let unknown = Digest::of(b"another");
    let said = SwarmAnnounce {
        holds: vec![holding(version, 2), holding(unknown, 9)],
        ..serving()
    };
    let answer = announce(&site, OWN, &first, &said).await;
    assert_eq!(answer.holds_wanted, [version]);
    // Three chunks, and the page that names them.
    let all = SwarmAnnounce {
        holds: vec![holding(version, 4)],
        ..serving()
    };
    let answer = announce(&site, &at(8), &second, &all).await;
    assert_eq!(answer.holds_wanted, []);
    let copies = |rarest_count| {
        Some(LiveCopies {
            rarest_count,
            machine_count: 2,
        })
    };
    assert_eq!(live().await, copies(1));
    let path = format!("{SWARM_HOLDS}?version={version}");
    for (bitmap, status, rarest) in [
        (&[0b0111_u8][..], StatusCode::NO_CONTENT, 1),
        (&[0b1_0000], StatusCode::BAD_REQUEST, 1),
        (&[0b1111, 0], StatusCode::BAD_REQUEST, 1),
        (&[0b1111], StatusCode::NO_CONTENT, 2),
    ] {
        let response = post(&site, OWN, &path, &first, bitmap).await;
        assert_eq!(response.status(), status, "{bitmap:?}");
        assert_eq!(live().await, copies(rarest), "{bitmap:?}");
    }
    let path = format!("{SWARM_HOLDS}?version={unknown}");
    let response = post(&site, OWN, &path, &first, &[1]).await;
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
    assert_eq!(
        swarm::live_copies(&site.app, unknown)
            .await
            .expect("counts"),
        None
    );
    let many = SwarmAnnounce {
        holds: vec![holding(version, 1); 9],
        ..serving()
    };
    let body = serde_json::to_vec(&many).expect("is JSON");
    let response = post(&site, OWN, SWARM, &first, &body).await;
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

/// What the catalog has of the newest boot of a node, when all is stored.
async fn noted(site: &Site, node: &NodeName) -> Vec<String> {
    let (changed, _changes) = tokio::sync::mpsc::channel(64);
    let (stop, stopped) = crate::stop::Stop::new();
    stop.send_replace(true);
    let transcripts = Arc::clone(&site.app.boot.transcripts);
    transcripts
        .work(site.app.catalog.clone(), changed, stopped)
        .await;
    let boots = site.app.catalog.boots_of(node).await.expect("lists");
    let transcript = site.app.catalog.boot_transcript(&boots[0].id).await;
    let (_, steps) = transcript.expect("is there");
    steps.into_iter().map(|step| step.detail).collect()
}

#[tokio::test]
async fn a_liar_is_left_out_and_its_boot_says_so() {
    let (site, first) = site(TLS).await;
    announce(&site, OWN, &first, &serving()).await;
    let accusing = SwarmAnnounce {
        liars: vec![id("n001")],
        sent_bytes: 100,
        ..serving()
    };
    for number in [8, 9, 10] {
        let session = other(&site, number, TLS).await;
        let answer = announce(&site, &at(number), &session, &accusing).await;
        let knows = answer.peers.iter().any(|peer| peer.id == id("n001"));
        assert_eq!(knows, number < 10, "{number}");
    }
    let node: NodeName = "n001".parse().expect("a name");
    let shown = site.app.boot.swarm.of(&node).expect("is a member");
    assert!(shown.left_out_seconds.is_some_and(|seconds| seconds > 500));
    let noted = noted(&site, &node).await;
    assert!(
        noted
            .iter()
            .any(|detail| detail.starts_with("3 machines got from it")),
        "{noted:?}"
    );
    let mut text = String::new();
    site.app.boot.render_reports(&mut text);
    for line in [
        "\nrootstock_swarm_members 4\n",
        "\nrootstock_swarm_members_left_out 1\n",
        "\nrootstock_swarm_sent_bytes_total 300\n",
        "\nrootstock_swarm_rack_members{rack=\"10.0.0.0/24\"} 4\n",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}
