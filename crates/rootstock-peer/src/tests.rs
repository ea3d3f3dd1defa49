//! Members on the loopback interface give one another chunks.

use std::collections::{BTreeMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rootstock_core::{ChunkId, Digest, PeerId};
use rootstock_swarm::wire::Known;
use rootstock_swarm::{Bits, Class, Config, Goal, Message, Table, Whole};

use super::*;
use crate::conn::Conn;
use crate::io::Io;

mod sips;
mod slow;

/// The longest that anything takes, if it works at all.
const LIMIT: Duration = Duration::from_secs(60);

/// Chunks in memory, and a way to wait for them.
#[derive(Default)]
struct Memory {
    chunks: Mutex<BTreeMap<ChunkId, Bytes>>,
    came: Condvar,
    liars: Mutex<Vec<PeerId>>,
    lies: bool,
}

impl Holder for Memory {
    fn load(&self, chunk: ChunkId) -> Option<Whole> {
        let chunks = self.chunks.lock().expect("no panic");
        let mut data = chunks.get(&chunk)?.clone();
        if self.lies {
            data = data.iter().map(|byte| !byte).collect();
        }
        Some(Whole {
            codec: 0,
            raw_bytes: data.len() as u32,
            data,
        })
    }

    fn arrived(&self, chunk: ChunkId, whole: &Whole, _: bool) -> Verdict {
        if ChunkId::of(&whole.data) != chunk {
            return Verdict::Wrong;
        }
        let mut chunks = self.chunks.lock().expect("no panic");
        chunks.insert(chunk, whole.data.clone());
        self.came.notify_all();
        Verdict::Kept
    }

    fn no_source(&self, _: ChunkId) {}

    fn lied(&self, peer: PeerId) {
        self.liars.lock().expect("no panic").push(peer);
        self.came.notify_all();
    }
}

impl Memory {
    fn of(raws: &[Vec<u8>], lies: bool) -> Arc<Self> {
        let chunks = raws
            .iter()
            .map(|raw| (ChunkId::of(raw), raw.clone().into()));
        Arc::new(Self {
            chunks: Mutex::new(chunks.collect()),
            lies,
            ..Self::default()
        })
    }

    /// Waits until there are so many.
    fn wait(&self, count: usize) {
        let chunks = self.chunks.lock().expect("no panic");
        let lack = |chunks: &mut BTreeMap<_, _>| chunks.len() < count;
        let waited = self.came.wait_timeout_while(chunks, LIMIT, lack);
        let (chunks, waited) = waited.expect("no panic");
        assert!(!waited.timed_out(), "{} of {count} came", chunks.len());
    }
}

/// Raw chunks of many sizes that do not repeat.
fn raws(count: usize) -> Vec<Vec<u8>> {
    let raw = |number: usize| {
        let words = 0..(number * 977 % 60_000 + 100) as u64;
        words
            .flat_map(|at| (at * 0x9e37_79b9 + number as u64).to_le_bytes())
            .take(256 << 10)
            .collect()
    };
    (0..count).map(raw).collect()
}

struct Site {
    authority: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Site {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let key = KeyPair::generate().expect("a key");
        let authority = params.self_signed(&key).expect("a certificate").pem();
        Self {
            authority,
            issuer: Issuer::new(params, key),
        }
    }

    fn tls(&self, peer: PeerId) -> Tls {
        let both = [
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        self.tls_for(peer, &both)
    }

    /// Good for these ends of a connection.
    fn tls_for(&self, peer: PeerId, ends: &[ExtendedKeyUsagePurpose]) -> Tls {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new([peer.certificate_name()]);
        let mut params = params.expect("a name");
        params.extended_key_usages = ends.to_vec();
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        Tls::new(&certificate.pem(), &key.serialize_pem(), &self.authority).expect("they fit")
    }
}

fn id(name: &str) -> PeerId {
    PeerId::of(name)
}

fn member(name: &str, is_head: bool, tls: Option<Tls>, memory: &Arc<Memory>) -> Member {
    member_of(id(name), is_head, tls, memory)
}

fn member_of(id: PeerId, is_head: bool, tls: Option<Tls>, memory: &Arc<Memory>) -> Member {
    let options = Options {
        node: Config {
            id,
            rack: if is_head { "" } else { "r" }.to_owned(),
            is_head,
            serves: true,
            copies: 2,
            upload_max: None,
            seed: 1,
        },
        listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
        tls,
        takes_plain: is_head,
        workers: 1,
    };
    Member::start(options, Arc::clone(memory) as Arc<dyn Holder>).expect("it starts")
}

fn place(member: &Member) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, member.port()))
}

fn table(raws: &[Vec<u8>]) -> Arc<Table> {
    Table::new(Digest::of(b"v"), raws.iter().map(|raw| ChunkId::of(raw)))
}

/// A head and three machines, which fill.
fn fills(tls: impl Fn(&str) -> Option<Tls>) {
    let raws = raws(60);
    let table = table(&raws);
    let head = member("head", true, tls("head"), &Memory::of(&raws, false));
    let names = ["a", "b", "c"];
    let memories = names.map(|_| Memory::of(&[], false));
    let members: Vec<Member> = names
        .iter()
        .zip(&memories)
        .map(|(name, memory)| member(name, false, tls(name), memory))
        .collect();
    for member in &members {
        let others = names.iter().zip(&members);
        let others = others.map(|(name, other)| (id(name), place(other), "r".to_owned(), false));
        let heads = [(id("head"), place(&head), String::new(), true)];
        member.know(heads.into_iter().chain(others).collect());
        let nothing = Bits::new(table.len());
        member.join(Arc::clone(&table), nothing, Goal::All);
    }
    memories.iter().for_each(|memory| memory.wait(60));
    for memory in &memories {
        let chunks = memory.chunks.lock().expect("no panic");
        assert!(raws.iter().all(|raw| chunks[&ChunkId::of(raw)] == raw[..]));
    }
}

#[test]
fn machines_fill_from_a_head_and_one_another() {
    fills(|_| None);
}

#[test]
fn they_do_with_certificates() {
    let site = Site::new();
    fills(|name| Some(site.tls(id(name))));
}

#[test]
fn a_head_takes_who_comes_without_and_knows_who_comes_with_another_name() {
    let raws = raws(4);
    let site = Site::new();
    let head = member(
        "head",
        true,
        Some(site.tls(id("head"))),
        &Memory::of(&raws, false),
    );
    let chunk = ChunkId::of(&raws[0]);
    let heads = || vec![(id("head"), place(&head), String::new(), true)];
    // One without certificates.
    let memory = Memory::of(&[], false);
    let plain = member("plain", false, None, &memory);
    plain.know(heads());
    plain.want(chunk, Class::User);
    memory.wait(1);
    // One whose certificate is another's: the head ends its connection.
    let memory = Memory::of(&[], false);
    let other = member("liar", false, Some(site.tls(id("other"))), &memory);
    other.know(heads());
    other.want(chunk, Class::User);
    // One that is right, and comes later, is served.
    let served = Memory::of(&[], false);
    let right = member("right", false, Some(site.tls(id("right"))), &served);
    right.know(heads());
    right.want(chunk, Class::User);
    served.wait(1);
    assert!(memory.chunks.lock().expect("no panic").is_empty());
}

#[test]
fn who_gives_wrong_bytes_is_found_and_done_without() {
    let raws = raws(12);
    let table = table(&raws);
    let head = member("head", true, None, &Memory::of(&raws, false));
    let liar = member("liar", false, None, &Memory::of(&raws, true));
    liar.join(Arc::clone(&table), Bits::full(table.len()), Goal::Nothing);
    let memory = Memory::of(&[], false);
    let reader = member("reader", false, None, &memory);
    reader.join(Arc::clone(&table), Bits::new(table.len()), Goal::Nothing);
    reader.know(vec![(id("liar"), place(&liar), "r".to_owned(), false)]);
    reader.want(ChunkId::of(&raws[0]), Class::User);
    {
        let liars = memory.liars.lock().expect("no panic");
        let lack = |liars: &mut Vec<PeerId>| liars.is_empty();
        let waited = memory.came.wait_timeout_while(liars, LIMIT, lack);
        assert_eq!(*waited.expect("no panic").0, [id("liar")]);
    }
    reader.know(vec![(id("head"), place(&head), String::new(), true)]);
    for raw in &raws {
        reader.want(ChunkId::of(raw), Class::User);
    }
    memory.wait(12);
    assert_eq!(memory.liars.lock().expect("no panic").len(), 1);
}

#[test]
fn a_head_tells_of_those_that_the_other_end_can_reach() {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("has one");
    let known = |name: &str| Known {
        id: id(name),
        address,
        rack: String::new(),
        is_head: false,
        age_seconds: 0,
    };
    let plain = HashSet::from([id("plain")]);
    let tls = Site::new().tls(id("head"));
    for (tls, expected) in [
        (None, "plain"),
        (Some(tls.accept().expect("is set up")), "tls"),
    ] {
        let stream = mio::net::TcpStream::connect(address).expect("begins");
        let conn = Conn::new(Io::new(stream, tls), address.ip(), None);
        let mut message = Message::Peers(vec![known("plain"), known("tls")]);
        conn.keep_alike(&mut message, &plain);
        assert_eq!(message, Message::Peers(vec![known(expected)]));
    }
}

#[test]
fn a_guest_is_served_and_is_nobody_else() {
    let raws = raws(4);
    let table = table(&raws);
    let site = Site::new();
    let begins = [ExtendedKeyUsagePurpose::ClientAuth];
    let tls = || Some(site.tls_for(PeerId::guest(0), &begins));
    let giver = member(
        "giver",
        false,
        Some(site.tls(id("giver"))),
        &Memory::of(&raws, false),
    );
    giver.join(Arc::clone(&table), Bits::full(table.len()), Goal::Nothing);
    let givers = || vec![(id("giver"), place(&giver), "r".to_owned(), false)];
    let chunk = ChunkId::of(&raws[0]);
    // What it shows is for no machine's name.
    let memory = Memory::of(&[], false);
    let other = member("other", false, tls(), &memory);
    other.know(givers());
    other.want(chunk, Class::User);
    // Nor for the end that is connected to, whatever that has.
    let asker = Memory::of(&[], false);
    let host = member_of(PeerId::guest(9), false, tls(), &Memory::of(&raws, false));
    let asks = member("asks", false, Some(site.tls(id("asks"))), &asker);
    asks.know(vec![(
        PeerId::guest(9),
        place(&host),
        "r".to_owned(),
        false,
    )]);
    asks.want(chunk, Class::User);
    // Two of them are not in each other's way.
    let served = [7, 8].map(|number| {
        let served = Memory::of(&[], false);
        let guest = member_of(PeerId::guest(number), false, tls(), &served);
        guest.join(Arc::clone(&table), Bits::new(table.len()), Goal::Nothing);
        guest.know(givers());
        raws.iter()
            .for_each(|raw| guest.want(ChunkId::of(raw), Class::User));
        (served, guest)
    });
    for (served, _guest) in &served {
        served.wait(raws.len());
    }
    for nothing in [memory, asker] {
        assert!(nothing.chunks.lock().expect("no panic").is_empty());
    }
}

#[test]
fn nothing_is_believed_of_what_a_guest_says_of_itself_or_others() {
    let known = Known {
        id: id("a"),
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
        rack: "r".to_owned(),
        is_head: false,
        age_seconds: 0,
    };
    let version = Message::Version {
        slot: 1,
        version: Digest::of(b"v"),
        chunks: 3,
    };
    let numbers = vec![1];
    for (message, expected) in [
        (
            Message::Peers(vec![known]),
            Some(Message::Peers(Vec::new())),
        ),
        (
            Message::Cancel { request: 1 },
            Some(Message::Cancel { request: 1 }),
        ),
        (version.clone(), Some(version)),
        (
            Message::Held {
                slot: 1,
                first: 0,
                bits: vec![1],
            },
            None,
        ),
        (
            Message::Gained {
                slot: 1,
                numbers: numbers.clone(),
            },
            None,
        ),
        (Message::Lost { slot: 1, numbers }, None),
    ] {
        let heard = member::believed(PeerId::guest(1), message.clone());
        assert_eq!(heard, expected);
        assert_eq!(member::believed(id("n"), message.clone()), Some(message));
    }
}
