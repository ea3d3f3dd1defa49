//! Members on real sockets that fetch from the daemon.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, TcpListener},
    sync::{Condvar, Mutex},
    time::Duration,
};

use rootstock_image::{
    frame::{Codec, Decoder},
    manifest::{Descend, Visit},
};
use rootstock_peer::{Holder, Member, Options, Tls, Verdict};
use rootstock_swarm::{Class, Config, Whole};

use super::*;
use crate::{
    boot::swarm::head,
    pages::{StorePages, manifest},
};

/// The longest that anything takes, if it works at all.
const LIMIT: Duration = Duration::from_secs(60);

/// Where the machines of these tests are.
const HERE: &str = "127.0.0.1:1000";

const PLAIN: &str = r#"{"image":"lab","swarm":"plain"}"#;

/// What a machine was sent, and what nobody has for it.
#[derive(Default)]
struct Memory {
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Default)]
struct Seen {
    came: BTreeMap<ChunkId, Vec<u8>>,
    lacking: BTreeSet<ChunkId>,
}

impl Holder for Memory {
    fn load(&self, _: ChunkId) -> Option<Whole> {
        None
    }

    fn arrived(&self, chunk: ChunkId, whole: &Whole, _: bool) -> Verdict {
        let codec = Codec::from_byte(whole.codec);
        let decode = |codec| Decoder::new().decode(chunk, whole.raw_bytes, codec, &whole.data);
        let Some(Ok(raw)) = codec.map(decode) else {
            return Verdict::Wrong;
        };
        self.seen.lock().expect("no panic").came.insert(chunk, raw);
        self.changed.notify_all();
        Verdict::Right
    }

    fn no_source(&self, chunk: ChunkId) {
        self.seen.lock().expect("no panic").lacking.insert(chunk);
        self.changed.notify_all();
    }

    fn lied(&self, peer: PeerId) {
        panic!("{peer} sent what is not a frame of the chunk");
    }
}

impl Memory {
    /// Waits until this holds.
    fn wait(&self, is_so: impl Fn(&Seen) -> bool) {
        let seen = self.seen.lock().expect("no panic");
        let waited = self
            .changed
            .wait_timeout_while(seen, LIMIT, |seen| !is_so(seen));
        let (seen, waited) = waited.expect("no panic");
        let (came, lacking) = (seen.came.len(), seen.lacking.len());
        assert!(!waited.timed_out(), "{came} came, {lacking} lack");
    }
}

/// A daemon with an image and a head, and the session of `n001`.
struct HeadSite {
    site: Site,
    session: String,
    keys: tempfile::TempDir,
}

impl HeadSite {
    async fn new(settings: &str) -> Self {
        let (site, session, keys) = site_and_keys(settings).await;
        follow(&site, &keys).expect("starts");
        Self {
            site,
            session,
            keys,
        }
    }

    async fn announce(&self, said: &SwarmAnnounce) -> SwarmAnswer {
        announce(&self.site, HERE, &self.session, said).await
    }

    /// A machine that knows nobody but the head.
    fn machine(&self, name: &str, tls: Option<Tls>) -> (Member, Arc<Memory>) {
        let memory = Arc::<Memory>::default();
        let options = Options {
            node: Config {
                id: id(name),
                rack: "r".to_owned(),
                is_head: false,
                serves: false,
                copies: 2,
                upload_max: None,
                seed: 1,
            },
            listen: None,
            tls,
            takes_plain: false,
            workers: 1,
        };
        let member = Member::start(options, Arc::clone(&memory) as Arc<dyn Holder>);
        let member = member.expect("starts");
        let head = swarm::head_id(&self.site.app);
        member.know(vec![(head, self.place(), String::new(), true)]);
        (member, memory)
    }

    fn place(&self) -> SocketAddr {
        let port = self.site.app.boot.swarm.head_port().expect("listens");
        (Ipv4Addr::LOCALHOST, port).into()
    }

    /// All chunks and pages of a version, but not its root document.
    async fn ids(&self, spec: &str) -> BTreeSet<ChunkId> {
        let spec = spec.parse().expect("a version");
        let version = self.site.app.catalog.resolve(&spec).await;
        let version = version.expect("is there").manifest;
        let store = &self.site.app.store;
        let mut ids = BTreeSet::new();
        let manifest = manifest(store, version).expect("is read");
        let walked = manifest.walk(&StorePages(store), |visit| {
            let (Visit::Page { id, .. } | Visit::Chunk { id, .. }) = visit;
            ids.insert(id);
            Descend::Into
        });
        walked.expect("is whole");
        ids
    }

    /// Has a machine fetch all of these.
    fn fetches(&self, machine: &(Member, Arc<Memory>), ids: &BTreeSet<ChunkId>) {
        let (member, memory) = machine;
        for id in ids {
            member.want(*id, Class::User);
        }
        memory.wait(|seen| ids.iter().all(|id| seen.came.contains_key(id)));
        let seen = memory.seen.lock().expect("no panic");
        for id in ids {
            let stored = self.site.app.store.read(*id).expect("is there");
            assert_eq!(seen.came[id], stored, "{id}");
        }
    }
}

fn follow(site: &Site, keys: &tempfile::TempDir) -> Result<(), String> {
    let listen = (Ipv4Addr::LOCALHOST, 0).into();
    head::follow(&site.app, keys.path(), listen)
}

/// A new key, and what the machine says to have it certified.
fn key() -> (KeyPair, SwarmAnnounce) {
    let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let said = SwarmAnnounce {
        public_key: Some(hex(&key.subject_public_key_info())),
        ..SwarmAnnounce::default()
    };
    (key, said)
}

/// What a machine shows that was answered this.
fn shown(site: &HeadSite, key: &KeyPair, answer: &SwarmAnswer) -> Tls {
    let certificate = answer.certificate_pem.as_ref().expect("is certified");
    let authority = authority_pem(site.keys.path()).expect("is there");
    Tls::new(certificate, &key.serialize_pem(), &authority).expect("they fit")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_fetches_its_version_without_certificates() {
    let site = HeadSite::new(PLAIN).await;
    let answer = site.announce(&serving()).await;
    assert_eq!(answer.peers.len(), 1);
    assert_eq!(answer.peers[0].id, swarm::head_id(&site.site.app));
    let ids = site.ids("lab:1").await;
    // Three chunks, and the page that names them.
    assert_eq!(ids.len(), 4);
    site.fetches(&site.machine("n001", None), &ids);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_fetches_its_version_with_a_certificate_and_what_comes_next() {
    let site = HeadSite::new(TLS).await;
    let (key, said) = key();
    let answer = site.announce(&said).await;
    let machine = site.machine("n001", Some(shown(&site, &key, &answer)));
    site.fetches(&machine, &site.ids("lab:1").await);
    // A certificate that was renewed is shown to those who come later.
    follow(&site.site, &site.keys).expect("is renewed");
    site.site.version_of(&[4, 5]).await;
    let next = site.ids("lab:2").await;
    // It reads over HTTP of what comes next.
    let path = format!("{MANIFEST}?image=lab&version=2");
    let session = &site.session;
    let from = site.site.call(Transport::Tls, &path, session, b"").await;
    assert_eq!(from.status(), StatusCode::OK);
    site.fetches(&machine, &next);
    drop(machine);
    let again = site.machine("n001", Some(shown(&site, &key, &answer)));
    site.fetches(&again, &next);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_gets_nothing_of_other_versions() {
    let site = HeadSite::new(r#"{"image":"lab:1","swarm":"plain"}"#).await;
    site.site.version_of(&[8, 9]).await;
    site.announce(&serving()).await;
    let own = site.ids("lab:1").await;
    let mut others = site.ids("lab:2").await;
    // The root document of its own version comes over HTTP alone, with its seal.
    others.insert(ChunkId(lab(&site.site).await));
    let machine = site.machine("n001", None);
    site.fetches(&machine, &own);
    let (member, memory) = &machine;
    for other in &others {
        member.want(*other, Class::User);
    }
    memory.wait(|seen| others.is_subset(&seen.lacking));
    let seen = memory.seen.lock().expect("no panic");
    assert!(others.iter().all(|other| !seen.came.contains_key(other)));
    drop(seen);
    let figures = site.site.app.boot.swarm.head_figures().expect("is a head");
    assert!(figures.refused >= others.len() as u64, "{figures:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_did_not_announce_itself_gets_nothing_and_figures_are_shown() {
    let site = HeadSite::new(TLS).await;
    let ids = site.ids("lab:1").await;
    let (key, said) = key();
    let answer = site.announce(&said).await;
    // It says that it is a machine that shows a certificate, and shows none.
    let (stranger, nothing) = site.machine("n001", None);
    for id in &ids {
        stranger.want(*id, Class::User);
    }
    let machine = site.machine("n001", Some(shown(&site, &key, &answer)));
    site.fetches(&machine, &ids);
    nothing.wait(|seen| ids.is_subset(&seen.lacking));
    assert!(nothing.seen.lock().expect("no panic").came.is_empty());
    // What was sent is counted twice a second.
    let sent = |text: &str| {
        let mut lines = text.lines();
        let line =
            lines.find_map(|line| line.strip_prefix("rootstock_swarm_head_sent_bytes_total "));
        line.expect("is shown").parse::<u64>().expect("a number")
    };
    let expected: u64 = ids
        .iter()
        .filter_map(|id| site.site.app.store.frame_bytes(*id))
        .map(u64::from)
        .sum();
    let asked = std::time::Instant::now();
    loop {
        let mut text = String::new();
        site.site.app.boot.render_reports(&mut text);
        if sent(&text) == expected {
            assert!(
                text.contains("\nrootstock_swarm_head_connections "),
                "{text}"
            );
            break;
        }
        assert!(asked.elapsed() < LIMIT, "{text}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_said_with_what_helps() {
    let (site, _session, keys) = site_and_keys(TLS).await;
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let listen = taken.local_addr().expect("has one");
    let error = head::follow(&site.app, keys.path(), listen).expect_err("is taken");
    for part in [
        &format!("cannot listen for other machines at {listen}"),
        "ss -lntp",
        "boot.swarm_port",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
    let listens = site.app.boot.swarm.listens.load(Relaxed);
    assert!(!listens);
    drop(taken);
    head::follow(&site.app, keys.path(), listen).expect("is free");
    assert!(site.app.boot.swarm.listens.load(Relaxed));
}
