//! The swarm, as the daemon sees it: who takes part and how, who is told of whom, and
//! which certificates they show each other.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use rootstock_api::{
    ProblemCode,
    settings::Settings,
    swarm::{LiveCopies, NodeSwarm, SwarmAnnounce, SwarmAnswer, SwarmMode, SwarmOrder, SwarmPeer},
};
use rootstock_core::{Digest, NodeName, PeerId};
use rootstock_peer::Member;
use tokio::sync::OnceCell;

use super::{
    control, guests,
    networks::Network,
    node_api::{Machine, allowed},
    sessions::Session,
    tracker::{AGAIN_SECONDS, Announcer, Figures, Tracker, TrackerError},
    version_ids,
};
use crate::{
    app::{App, hex},
    config::Subnet,
    http::ApiError,
    nodes::SWARM_MODE,
    tls::{CERTIFICATE_LIFE, Identity, PeerAuthority, PeerKey},
};

pub(in crate::boot) mod head;
mod readers;

pub(super) use head::Head;
pub(crate) use head::HeadFigures;
use readers::{Ids, Reader, Readers};

/// For how long a machine gets the same certificate again. The rest of its life is for
/// machines that ask seldom.
const SAME_CERTIFICATE: Duration = Duration::from_secs(CERTIFICATE_LIFE.as_secs() / 2);

/// What is noted of a machine that others are not told of.
const LIAR: &str = "3 machines got from it what they had not asked for: others are not told of \
                    it for 10 minutes; look after its memory and its disk";

/// How often the catalog is asked for versions that machines tell of and nobody knows.
const VERSIONS_PAUSE: Duration = Duration::from_secs(5);

/// The prefix that a subnet is taken to have when nobody says, in bits.
const SUBNET_BITS: u8 = 24;

/// The same of IPv6 (RFC 4291, section 2.5.4).
const SUBNET_V6_BITS: u32 = 64;

/// How a machine with these settings takes part; none when it does not.
pub(crate) fn order(settings: &Settings) -> Option<SwarmOrder> {
    let mode = settings.swarm.unwrap_or(SWARM_MODE);
    (mode != SwarmMode::Off).then(|| SwarmOrder {
        mode,
        upload_mbit_max: settings.upload_mbit_max.map(u32::from),
        is_quiet: settings.exam.unwrap_or(false),
        metered: settings.metered.unwrap_or_default(),
        copies: settings.swarm_copies.unwrap_or_default().get(),
        memory_bytes_max: settings.swarm_memory,
        boots_others: settings.boots_others.unwrap_or(false),
    })
}

/// The rack of a machine: what is set, else its subnet, as far as that is known.
pub(crate) fn rack(settings: &Settings, network: &Network, peer: IpAddr) -> String {
    match (&settings.rack, peer) {
        (Some(rack), _) => rack.to_string(),
        (None, IpAddr::V4(peer)) => {
            let known = network.subnet.filter(|subnet| subnet.contains(peer));
            let subnet = known.unwrap_or_else(|| Subnet::of(peer, SUBNET_BITS));
            subnet.to_string()
        }
        (None, IpAddr::V6(peer)) => {
            let shift = u128::BITS - SUBNET_V6_BITS;
            let first = Ipv6Addr::from_bits(peer.to_bits() >> shift << shift);
            format!("{first}/{SUBNET_V6_BITS}")
        }
    }
}

/// What the daemon knows of the swarm.
#[derive(Default)]
pub(crate) struct Swarm {
    tracker: Mutex<Tracker>,
    versions: Mutex<Versions>,
    authority: OnceLock<Arc<PeerAuthority>>,
    /// Whether this daemon serves members on the port that is configured.
    pub(crate) listens: AtomicBool,
    readers: Arc<Readers>,
    /// What machines that nobody knows show, when no server is there.
    pub(super) guests: guests::Credentials,
    /// This daemon as a member.
    head: Mutex<Option<Arc<Member>>>,
}

/// How many chunks and pages versions have; counted when somebody holds some.
#[derive(Default)]
struct Versions {
    counts: HashMap<Digest, Arc<OnceCell<u32>>>,
    read: Option<Instant>,
}

/// A certificate that was given out.
#[derive(Debug)]
pub(crate) struct Issued {
    key: PeerKey,
    pem: String,
    at: Instant,
}

impl Swarm {
    /// Says who signs certificates, once.
    pub(crate) fn set_authority(&self, authority: PeerAuthority) {
        if self.authority.set(Arc::new(authority)).is_err() {
            tracing::error!("the swarm has two authorities");
        }
    }

    /// A machine said that it goes.
    pub(crate) fn leave(&self, session: &Session) {
        self.tracker().leave(&session.node, &session.boot);
        let id = PeerId::of(session.node.as_str());
        self.readers.leave(id, &session.boot);
    }

    /// Forgets who is not heard of any more.
    pub(crate) fn tidy(&self) {
        let now = Instant::now();
        self.tracker().tidy(now);
        self.readers.tidy(now);
    }

    /// This daemon as a member in figures, when it is one.
    pub(crate) fn head_figures(&self) -> Option<HeadFigures> {
        let head = self.head().clone()?;
        Some(HeadFigures::of(&head.peers(), self.readers.refused()))
    }

    /// The swarm in figures.
    pub(crate) fn figures(&self) -> Figures {
        self.tracker().figures(Instant::now())
    }

    /// How a node takes part, if it does.
    pub(crate) fn of(&self, node: &NodeName) -> Option<NodeSwarm> {
        let view = self.tracker().view(node, Instant::now())?;
        Some(NodeSwarm {
            rack: view.rack,
            sent_bytes: view.sent_bytes,
            received_bytes: view.received_bytes,
            left_out_seconds: view.left_out.map(|rest| rest.as_secs()),
        })
    }

    fn tracker(&self) -> MutexGuard<'_, Tracker> {
        self.tracker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where members reach this daemon.
    #[cfg(test)]
    pub(crate) fn head_port(&self) -> Option<u16> {
        self.head().as_ref().map(|head| head.port())
    }

    fn head(&self) -> MutexGuard<'_, Option<Arc<Member>>> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn versions(&self) -> MutexGuard<'_, Versions> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn authority(&self) -> Result<Arc<PeerAuthority>, ApiError> {
        self.authority.get().cloned().ok_or_else(|| {
            ApiError::new(ProblemCode::Unavailable, "the daemon has no authority yet")
                .with_hint("ask again later")
        })
    }
}

/// Takes a machine's announcement, and tells it who else is there.
pub(super) async fn announce(
    app: &Arc<App>,
    machine: &Machine,
    said: &SwarmAnnounce,
) -> Result<SwarmAnswer, ApiError> {
    let (session, arrival) = (&*machine.session, &machine.arrival);
    let peer = arrival.peer.ip().to_canonical();
    let local = arrival.local.ip().to_canonical();
    let network = app.boot.networks.of(peer, local);
    let settings = control::settings(app, &session.node, &network).await?;
    let mut answer = SwarmAnswer {
        me: PeerId::of(session.node.as_str()),
        rack: rack(&settings, &network, peer),
        order: order(&settings).unwrap_or_default(),
        certificate_pem: None,
        peers: Vec::new(),
        holds_wanted: Vec::new(),
        again_seconds: AGAIN_SECONDS,
    };
    if answer.order.mode == SwarmMode::Off {
        app.boot.swarm.leave(session);
        return Ok(answer);
    }
    if let Some(key) = said.public_key.as_deref() {
        let key = PeerKey::from_hex(key)
            .map_err(|error| ApiError::new(ProblemCode::BadRequest, error.to_string()))?;
        if answer.order.mode == SwarmMode::Tls {
            answer.certificate_pem = Some(certificate(app, session, answer.me, key)?);
        }
    }
    enter(app, session, peer, said, &mut answer).await?;
    if app.boot.swarm.listens.load(Relaxed) {
        let mode = answer.order.mode;
        admit(app, machine, peer, mode).await?;
    }
    answer.peers.splice(0..0, head(app, local));
    Ok(answer)
}

/// Notes that the machine is there, and whom it is told of.
async fn enter(
    app: &Arc<App>,
    session: &Session,
    address: IpAddr,
    said: &SwarmAnnounce,
    answer: &mut SwarmAnswer,
) -> Result<(), ApiError> {
    let mut counts = HashMap::new();
    for holding in &said.holds {
        if let Some(count) = count(app, holding.version).await? {
            counts.insert(holding.version, count);
        }
    }
    let announcer = Announcer {
        node: &session.node,
        boot: &session.boot,
        address,
        mode: answer.order.mode,
        rack: answer.rack.clone(),
    };
    let now = Instant::now();
    let left_out = {
        let mut tracker = app.boot.swarm.tracker();
        let count_of = |version| counts.get(&version).copied();
        let announced = tracker.announce(announcer, said, count_of, now);
        let announced = announced.map_err(|error| refused(&error))?;
        answer.peers = tracker.peers(answer.me, now);
        answer.holds_wanted = announced.holds_wanted;
        answer.again_seconds = announced.again_seconds;
        announced.left_out
    };
    for (node, boot) in left_out {
        tracing::warn!(%node, boot, "a machine sends others what they did not ask for");
        app.boot.transcripts.note(&boot, LIAR);
    }
    Ok(())
}

/// Notes what a machine may read of this daemon as a member: what it may over HTTP.
async fn admit(
    app: &Arc<App>,
    machine: &Machine,
    address: IpAddr,
    mode: SwarmMode,
) -> Result<(), ApiError> {
    let mut versions = Vec::new();
    for version in allowed(app, machine).await? {
        versions.push((version, ids(app, version).await?));
    }
    let session = &machine.session;
    let reader = Reader {
        boot: session.boot.clone(),
        address,
        mode,
        versions,
        heard: Instant::now(),
    };
    let id = PeerId::of(session.node.as_str());
    app.boot.swarm.readers.enter(id, reader);
    Ok(())
}

/// A machine read over HTTP of the version that comes next: it may from members, too,
/// before it announces itself again.
pub(super) async fn may_read_next(
    app: &Arc<App>,
    session: &Session,
    version: Digest,
) -> Result<(), ApiError> {
    let id = PeerId::of(session.node.as_str());
    if app.boot.swarm.readers.lacks(id, &session.boot, version) {
        let ids = ids(app, version).await?;
        app.boot.swarm.readers.set_next(id, version, ids);
    }
    Ok(())
}

async fn ids(app: &Arc<App>, version: Digest) -> Result<Ids, ApiError> {
    if let Some(ids) = app.boot.swarm.readers.ids(version) {
        return Ok(ids);
    }
    let read = app.blocking(move |app| app.boot.version_ids.of(&app.store, version));
    read.await
}

/// Keeps which chunks of a version a machine holds.
pub(super) async fn holds(
    app: &Arc<App>,
    session: &Session,
    version: Digest,
    bitmap: Vec<u8>,
) -> Result<(), ApiError> {
    let Some(count) = count(app, version).await? else {
        // It may be a version that was deleted just now.
        return Ok(());
    };
    if !fits(&bitmap, count) {
        let detail = format!("the version has {count} chunks and pages, and the bitmap more");
        return Err(ApiError::new(ProblemCode::BadRequest, detail));
    }
    let id = PeerId::of(session.node.as_str());
    let mut tracker = app.boot.swarm.tracker();
    tracker
        .holds(id, version, bitmap, count)
        .map_err(|error| refused(&error))
}

/// Whether no bit is set after the first `count`.
fn fits(bitmap: &[u8], count: u32) -> bool {
    let count = count as usize;
    let beyond = match bitmap.get(count / 8) {
        Some(last) if bitmap.len() == count / 8 + 1 => last >> (count % 8),
        Some(_) => 1,
        None => 0,
    };
    beyond == 0
}

fn refused(error: &TrackerError) -> ApiError {
    let code = match error {
        TrackerError::Full | TrackerError::Bitmaps => ProblemCode::Unavailable,
        TrackerError::SameId { .. } => ProblemCode::Exists,
        TrackerError::Stranger | TrackerError::Versions => ProblemCode::BadRequest,
    };
    ApiError::new(code, error.to_string())
}

/// How many copies of each chunk of a version there are among machines.
pub(crate) async fn live_copies(
    app: &Arc<App>,
    version: Digest,
) -> Result<Option<LiveCopies>, ApiError> {
    let holders = app.boot.swarm.tracker().holders(version, Instant::now());
    if holders.is_empty() {
        return Ok(None);
    }
    match count(app, version).await? {
        Some(count) => app.blocking(move |_| Ok(holders.copies(count))).await,
        None => Ok(None),
    }
}

/// The certificate of a machine for its key, the same again while it is young.
fn certificate(app: &App, session: &Session, me: PeerId, key: PeerKey) -> Result<String, ApiError> {
    let authority = app.boot.swarm.authority()?;
    let issued = session.certificate.lock();
    let mut issued = issued.unwrap_or_else(PoisonError::into_inner);
    if let Some(issued) = &*issued
        && issued.key == key
        && issued.at.elapsed() < SAME_CERTIFICATE
    {
        return Ok(issued.pem.clone());
    }
    let pem = authority.certify(&key, me, SystemTime::now());
    let pem = pem.map_err(|error| ApiError::internal("sign a certificate", &error))?;
    *issued = Some(Issued {
        key,
        pem: pem.clone(),
        at: Instant::now(),
    });
    Ok(pem)
}

/// How many chunks and pages a version has; nothing when the catalog does not have it.
async fn count(app: &Arc<App>, version: Digest) -> Result<Option<u32>, ApiError> {
    let Some(cell) = cell(app, version).await? else {
        return Ok(None);
    };
    let read = || app.blocking(move |app| version_ids::read(&app.store, version));
    let counted = cell.get_or_try_init(|| async {
        let ids = read().await?;
        u32::try_from(ids.len()).map_err(|error| ApiError::internal("count chunks", &error))
    });
    counted.await.map(|count| Some(*count))
}

/// Where the count of a version is, if the catalog has that.
async fn cell(app: &App, version: Digest) -> Result<Option<Arc<OnceCell<u32>>>, ApiError> {
    {
        let mut versions = app.boot.swarm.versions();
        let found = versions.counts.get(&version).cloned();
        let is_young = |read: Instant| read.elapsed() < VERSIONS_PAUSE;
        if found.is_some() || versions.read.is_some_and(is_young) {
            return Ok(found);
        }
        versions.read = Some(Instant::now());
    }
    let rows = app.catalog.all_versions().await?;
    let mut versions = app.boot.swarm.versions();
    let mut before = std::mem::take(&mut versions.counts);
    for row in rows {
        let cell = before.remove(&row.manifest).unwrap_or_default();
        versions.counts.insert(row.manifest, cell);
    }
    Ok(versions.counts.get(&version).cloned())
}

/// This daemon as a member, as a machine reaches it that asked this address.
fn head(app: &App, local: IpAddr) -> Option<SwarmPeer> {
    let port = app.config.boot.swarm_port;
    let listens = port != 0 && app.boot.swarm.listens.load(Relaxed);
    listens.then(|| SwarmPeer {
        id: head_id(app),
        addresses: vec![SocketAddr::new(local, port).to_string()],
        rack: String::new(),
        head: true,
    })
}

/// Who this daemon is among members: of this site, on this host.
pub(crate) fn head_id(app: &App) -> PeerId {
    let site = hex(app.key.verifying_key().as_bytes());
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy();
    PeerId::of(&format!("head:{site}:{host}"))
}

/// What this daemon shows members: its certificate, for its own peer id, and the key.
pub(crate) fn head_identity(app: &App) -> Result<Identity, ApiError> {
    let identity = app
        .boot
        .swarm
        .authority()?
        .identity(head_id(app), SystemTime::now());
    identity.map_err(|error| ApiError::internal("make the certificate of a head", &error))
}

#[cfg(test)]
mod tests {
    use rootstock_api::swarm::Metered;

    use super::*;

    fn settings(json: &str) -> Settings {
        serde_json::from_str(json).expect(json)
    }

    #[test]
    fn settings_say_who_takes_part() {
        assert_eq!(order(&settings("{}")), None);
        assert_eq!(
            order(&settings(r#"{"swarm":"off","swarm_copies":3}"#)),
            None
        );
        let plain = order(&settings(r#"{"swarm":"plain"}"#)).expect("takes part");
        let usual = SwarmOrder {
            mode: SwarmMode::Plain,
            copies: 2,
            ..SwarmOrder::default()
        };
        assert_eq!(plain, usual);
        let full = r#"{"swarm":"tls","swarm_copies":3,"upload_mbit_max":500,
            "metered":"yes","swarm_memory":1048576,"exam":true,"boots_others":true}"#;
        let expected = SwarmOrder {
            mode: SwarmMode::Tls,
            upload_mbit_max: Some(500),
            is_quiet: true,
            metered: Metered::Yes,
            copies: 3,
            memory_bytes_max: Some(1 << 20),
            boots_others: true,
        };
        assert_eq!(order(&settings(full)), Some(expected));
    }

    #[test]
    fn a_rack_is_what_is_set_or_the_subnet() {
        let in_subnet = |subnet: Option<&str>| Network {
            subnet: subnet.map(|subnet| subnet.parse().expect(subnet)),
            ..Network::default()
        };
        for (set, subnet, peer, expected) in [
            ("{}", Some("10.0.0.0/16"), "10.0.3.7", "10.0.0.0/16"),
            // Behind a router, in a subnet that nobody told us of.
            ("{}", Some("10.0.0.0/16"), "10.9.3.7", "10.9.3.0/24"),
            ("{}", None, "10.0.3.7", "10.0.3.0/24"),
            ("{}", None, "2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
            (
                r#"{"rack":"room-1"}"#,
                Some("10.0.0.0/16"),
                "10.0.3.7",
                "room-1",
            ),
        ] {
            let peer = peer.parse().expect(peer);
            let found = rack(&settings(set), &in_subnet(subnet), peer);
            assert_eq!(found, expected, "{set} {subnet:?} {peer}");
        }
    }
}
