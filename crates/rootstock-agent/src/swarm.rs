//! This machine among others: it gives them what it has, and takes from them what it
//! lacks.
//!
//! A head introduces it and certifies its key of this boot; from then on it talks to the
//! others by itself. Nothing here is needed to run: without the others, and without a
//! head that knows of them, chunks come over HTTP as they always did.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rootstock_api::boot::SiteFile;
use rootstock_api::swarm::{
    SwarmAnnounce, SwarmAnswer, SwarmHolding, SwarmMode, SwarmOrder, SwarmPeer,
};
use rootstock_core::{ChunkId, Digest, PeerId};
use rootstock_image::manifest::{Descend, Manifest, Visit};
use rootstock_peer::{Holder, Member, MemberError, Options, Tls, TlsError};
use rootstock_store::ReadError;
use rootstock_swarm::{Bits, Config, Counters, Goal, Table};
use rootstock_volume::ChunkSource;

use crate::console;
use crate::local::member::MemberDisk;
use crate::service::{CallError, Service};
use crate::tiers::keeper::Keeper;
use crate::tiers::pages::Pages;

mod fetch;
mod joined;
mod key;
pub(crate) mod membership;
mod notes;
mod packs;
mod store;
#[cfg(test)]
mod tests;
mod thrift;

pub(crate) use fetch::SwarmFetch;
use joined::Joined;
use key::Key;
use membership::Membership;
pub(crate) use packs::SwarmPacks;
use store::Store;
use thrift::Thrift;

/// The port at which machines serve one another, unless it is taken.
const PORT: u16 = 8486;

/// Between two looks at whether the machine's user waits, and whom it is connected with.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// After a head did not answer.
const RETRY: Duration = Duration::from_secs(5);

/// Between two looks at whether a machine that is in no swarm remembers one.
const CLEAR_EVERY: Duration = Duration::from_secs(10);

/// A page of the manifest that cannot be had is tried again after this.
const TABLE_PAUSE: Duration = Duration::from_secs(5);

/// Leave to fill the disk holds so long; it is given anew several times in that.
const FILL_LEAVE: Duration = Duration::from_millis(600);

/// Threads that read and check chunks.
const WORKERS: usize = 2;

/// What of the memory a machine without a disk holds for others, as one part in so
/// many; one that is there for that, and one that has a user.
const MEMORY_PART_HOLDER: u64 = 2;
const MEMORY_PART: u64 = 8;

/// This machine in the swarm.
pub(crate) struct Swarm {
    store: Arc<Store>,
    member: Mutex<Option<Arc<Member>>>,
    /// What went on while it was a member before.
    past: Mutex<Counters>,
    /// Whether somebody is there to be asked.
    is_linked: AtomicBool,
    linked: Condvar,
    order: Mutex<Option<SwarmOrder>>,
    changed: Condvar,
    table: OnceLock<Arc<Table>>,
    /// The chunks that the member was told of.
    known: Mutex<Option<Bits>>,
    /// The chunks that a head was told of last.
    told: Mutex<Option<Bits>>,
    /// Whether all of the version is kept in memory, where there is no disk for it.
    holds_all: bool,
    /// When the disk was allowed to be filled. Who is paused asks no more.
    may_fill: Mutex<Option<Instant>>,
    /// The disk that the machine starts from, where it keeps whom it knows.
    kept: OnceLock<MemberDisk>,
    /// Who it is, while it is a member.
    own: Mutex<Option<(PeerId, String)>>,
}

/// What it needs of the rest of the agent.
pub(crate) struct Site {
    /// The client of heads.
    pub(crate) service: Service,
    /// Their base URLs, best first.
    pub(crate) urls: Vec<String>,
    /// Whose certificates are trusted.
    pub(crate) file: SiteFile,
    /// Who the machine was when it was written down last, while no server says so.
    pub(crate) kept: Option<Membership>,
    /// Memory of the machine.
    pub(crate) memory_bytes: u64,
    /// What is `/run` on other systems.
    pub(crate) run: PathBuf,
    /// Whether the machine's user waits for a chunk, or the machine still boots.
    pub(crate) is_busy: Box<dyn Fn() -> bool + Send>,
}

/// Why the machine is not in the swarm by now.
#[derive(Debug, thiserror::Error)]
enum JoinError {
    #[error("no head answers")]
    Call(#[from] CallError),
    #[error("the head gave no certificate")]
    NoCertificate,
    #[error("there is no key to be had")]
    Key(#[from] rustix::io::Errno),
    #[error("the certificate cannot be used")]
    Tls(#[from] TlsError),
    #[error("other machines cannot be served")]
    Member(#[from] MemberError),
}

impl Swarm {
    /// A machine that knows nobody yet.
    pub(crate) fn new(order: Option<SwarmOrder>, holds_all: bool) -> Arc<Self> {
        Arc::new(Self {
            store: Arc::new(Store::default()),
            member: Mutex::default(),
            past: Mutex::default(),
            is_linked: AtomicBool::new(false),
            linked: Condvar::new(),
            order: Mutex::new(order),
            changed: Condvar::new(),
            table: OnceLock::new(),
            known: Mutex::default(),
            told: Mutex::default(),
            holds_all,
            may_fill: Mutex::default(),
            kept: OnceLock::new(),
            own: Mutex::default(),
        })
    }

    /// Goes on from here by itself.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub(crate) fn start(self: &Arc<Self>, site: Site) -> std::io::Result<()> {
        let swarm = Arc::clone(self);
        thread::Builder::new()
            .name("swarm".to_owned())
            .spawn(move || swarm.run(&site))?;
        Ok(())
    }

    /// Learns which chunks the version has, from its pages; it takes as long as those do.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub(crate) fn learn<S: ChunkSource + 'static>(
        self: &Arc<Self>,
        manifest: Manifest,
        version: Digest,
        source: Arc<S>,
    ) -> std::io::Result<()> {
        let swarm = Arc::clone(self);
        let learn = move || {
            // A machine that is not in the swarm reads no page for it.
            swarm.wait_until_on();
            loop {
                match table(&manifest, version, &*source) {
                    Ok(table) => {
                        let _ = swarm.table.set(table);
                        swarm.join_version();
                        return;
                    }
                    Err(error) => {
                        console::warn(format_args!(
                            "other machines are not told yet what is here: {}",
                            console::chain(&error)
                        ));
                        thread::sleep(TABLE_PAUSE);
                    }
                }
            }
        };
        thread::Builder::new()
            .name("swarm-table".to_owned())
            .spawn(learn)?;
        Ok(())
    }

    /// Keeps chunks on this disk from now on, which is at `device`.
    pub(crate) fn attach(&self, disk: &Arc<Keeper>, device: &str) {
        self.store.attach(Arc::clone(disk));
        // Now: there is no /dev for this process once the image runs.
        if let Some(disk) = MemberDisk::of_cache(device) {
            let _ = self.kept.set(disk);
        }
        self.join_version();
    }

    /// How it takes part from now on.
    pub(crate) fn set_order(&self, order: Option<SwarmOrder>) {
        let mut present = lock(&self.order);
        if *present != order {
            *present = order;
            drop(present);
            self.changed.notify_all();
        }
    }

    /// Lets the disk be filled, or not; the bytes that came since it was asked last.
    /// Nothing when the swarm does not fill it.
    pub(crate) fn fill(&self, may: bool) -> Option<u64> {
        *lock(&self.may_fill) = may.then(Instant::now);
        self.reached()?;
        self.table.get()?;
        Some(self.store.take_filled())
    }

    /// The member, when somebody is there to be asked.
    fn reached(&self) -> Option<Arc<Member>> {
        let is_linked = self.is_linked.load(Ordering::Relaxed);
        is_linked.then(|| lock(&self.member).clone()).flatten()
    }

    /// How many of the version's chunks are here, and how many there are, once that is
    /// known.
    pub(crate) fn progress(&self) -> Option<(usize, usize)> {
        let table = self.table.get()?;
        Some((self.store.held(table).ones(), table.len()))
    }

    /// The bytes of memory that chunks may have here, once one found no room.
    pub(crate) fn memory_full_bytes(&self) -> Option<u64> {
        self.store.memory_full_bytes()
    }

    /// The bytes that came from heads and from other machines.
    pub(crate) fn came(&self) -> (u64, u64) {
        let member = lock(&self.member).clone();
        let past = *lock(&self.past);
        let counters = member.map_or(past, |member| self.counters(&member));
        (counters.from_heads, counters.from_peers)
    }

    /// What went on since the start.
    fn counters(&self, member: &Member) -> Counters {
        let (past, now) = (*lock(&self.past), member.peers().counters);
        Counters {
            from_heads: past.from_heads + now.from_heads,
            from_peers: past.from_peers + now.from_peers,
            sent: past.sent + now.sent,
            ..now
        }
    }

    /// Waits until somebody is there to be asked; whether there is.
    fn wait_until_linked(&self, limit: Duration) -> bool {
        if !is_on(lock(&self.order).as_ref()) {
            return false;
        }
        let lack = |_: &mut Option<Arc<Member>>| !self.is_linked.load(Ordering::Relaxed);
        let waited = self
            .linked
            .wait_timeout_while(lock(&self.member), limit, lack);
        drop(waited);
        self.is_linked.load(Ordering::Relaxed)
    }

    fn wait_until_on(&self) -> SwarmOrder {
        let is_off = |order: &mut Option<SwarmOrder>| !is_on(order.as_ref());
        let order = self.changed.wait_while(lock(&self.order), is_off);
        let order = order.unwrap_or_else(PoisonError::into_inner);
        order.clone().unwrap_or_default()
    }

    /// Waits until the machine is to boot others.
    pub(crate) fn wait_until_it_boots_others(&self) {
        let is_not = |order: &mut Option<SwarmOrder>| !boots_others(order.as_ref());
        drop(self.changed.wait_while(lock(&self.order), is_not));
    }

    /// Whether it is to.
    pub(crate) fn boots_others(&self) -> bool {
        boots_others(lock(&self.order).as_ref())
    }

    /// Its rack, and the members that it knows: itself first, which is reached at this
    /// address, and no heads.
    pub(crate) fn introduce(&self, at: IpAddr) -> (String, Vec<SwarmPeer>) {
        let (member, own) = (lock(&self.member).clone(), lock(&self.own).clone());
        let Some((member, (id, rack))) = member.zip(own) else {
            return Default::default();
        };
        let peer = |id, address: SocketAddr, rack: String| SwarmPeer {
            id,
            addresses: vec![address.to_string()],
            rack,
            head: false,
        };
        let mut all = vec![peer(id, SocketAddr::new(at, member.port()), rack.clone())];
        let peers = member.peers();
        for (id, address, rack, is_head) in peers.known {
            // A head that others told of is not known as one, and has no rack.
            if !is_head && !rack.is_empty() && !peers.liars.contains(&id) {
                all.push(peer(id, address, rack));
            }
        }
        (rack, all)
    }

    fn run(&self, site: &Site) {
        let mut thrift = Thrift::new(&site.run);
        let mut last = site.kept.clone();
        loop {
            self.clear_while_off(site);
            let order = self.wait_until_on();
            self.set_store(site, &order);
            let abstains = thrift.abstains(&order);
            match self.join(site, &order, abstains, last.as_ref()) {
                Ok(joined) => last = Some(self.stay(site, joined, order, &mut thrift)),
                Err(error) => {
                    console::warn(format_args!(
                        "this machine is not in the swarm yet: {}",
                        console::chain(&error)
                    ));
                    thread::sleep(RETRY);
                }
            }
        }
    }

    /// A machine that is in no swarm by what a head said is in none when no head answers.
    fn clear_while_off(&self, site: &Site) {
        let is_off = |order: &mut Option<SwarmOrder>| !is_on(order.as_ref());
        loop {
            let waited = self
                .changed
                .wait_timeout_while(lock(&self.order), CLEAR_EVERY, is_off);
            let (order, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if is_on(order.as_ref()) {
                return;
            }
            drop(order);
            if let Some(disk) = self.kept.get()
                && site.service.has_session()
                && disk.clear().is_ok()
            {
                return;
            }
        }
    }

    fn set_store(&self, site: &Site, order: &SwarmOrder) {
        let part = match self.holds_all {
            true => MEMORY_PART_HOLDER,
            false => MEMORY_PART,
        };
        let bytes = order.memory_bytes_max.unwrap_or(site.memory_bytes / part);
        self.store.set_memory_max(bytes);
        self.store.set_takes_guests(order.boots_others);
    }

    /// Has itself introduced, or goes by who it was last, and begins to talk to others.
    fn join(
        &self,
        site: &Site,
        order: &SwarmOrder,
        abstains: bool,
        last: Option<&Membership>,
    ) -> Result<Joined, JoinError> {
        let key = Key::generate()?;
        let hello = SwarmAnnounce {
            public_key: Some(key.public_hex()),
            ..SwarmAnnounce::default()
        };
        let introduction = site.announce(&hello);
        let is_alone = introduction.is_err();
        let (own, others) = match introduction {
            Ok(answer) => (joined::introduced(&answer, &key, order)?, known(&answer)),
            Err(error) => {
                let own = last.cloned().ok_or(error)?;
                let others = own.known();
                console::info(format_args!(
                    "no server answers: this machine looks for {} others that it knew last",
                    others.len()
                ));
                (own, others)
            }
        };
        let tls = match (order.mode, &own.credentials) {
            (SwarmMode::Tls, Some(own)) => Some(joined::tls(own, &site.file)?),
            (SwarmMode::Tls, None) => return Err(JoinError::NoCertificate),
            (SwarmMode::Plain | SwarmMode::Off, _) => None,
        };
        let member = Arc::new(self.serve(&own, order, tls.as_ref(), abstains)?);
        member.know(others);
        *lock(&self.member) = Some(Arc::clone(&member));
        self.join_version();
        Ok(Joined::new(member, own, is_alone))
    }

    fn serve(
        &self,
        own: &Membership,
        order: &SwarmOrder,
        tls: Option<&Tls>,
        abstains: bool,
    ) -> Result<Member, MemberError> {
        let start = |port: Option<u16>| {
            let options = Options {
                node: Config {
                    id: own.id,
                    rack: own.rack.clone(),
                    is_head: false,
                    serves: port.is_some(),
                    copies: usize::from(order.copies.max(1)),
                    upload_max: bytes_a_second(order),
                    // Its id makes it choose otherwise than others among equals.
                    seed: 0,
                },
                listen: port.map(|port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))),
                tls: tls.cloned(),
                takes_plain: false,
                workers: WORKERS,
            };
            Member::start(options, Arc::clone(&self.store) as Arc<dyn Holder>)
        };
        if abstains || own.id.is_guest() {
            return start(None);
        }
        // The image's own programs may have the port.
        start(Some(PORT)).or_else(|_| start(Some(0)))
    }

    /// Is in the swarm for as long as the order is this one, the machine this node, and
    /// gives or abstains as it does now. Who it was then.
    fn stay(
        &self,
        site: &Site,
        mut joined: Joined,
        order: SwarmOrder,
        thrift: &mut Thrift,
    ) -> Membership {
        let mut order = order;
        let member = Arc::clone(&joined.member);
        let mut announce_at = Instant::now();
        let mut gives_way = false;
        loop {
            let now = lock(&self.order).clone();
            match now {
                Some(now) if now.mode == order.mode => {
                    if now != order {
                        // It holds at once.
                        order = now;
                        self.set_store(site, &order);
                        announce_at = Instant::now();
                    }
                }
                _ => break,
            }
            let abstains = thrift.abstains(&order);
            if (abstains || joined.own.id.is_guest()) != (member.port() == 0) {
                // Others take it for what it was when they met it: it meets them anew.
                console::info(match abstains {
                    true => {
                        "this machine gives others nothing now: its battery or its line is spared"
                    }
                    false => "this machine gives others what it has again",
                });
                break;
            }
            if Instant::now() >= announce_at {
                let Some(pause) = self.announce(site, &mut joined, &order) else {
                    break;
                };
                announce_at = Instant::now() + pause;
            }
            let peers = member.peers();
            self.set_linked(!peers.linked.is_empty());
            joined.tell(&peers);
            *lock(&self.own) = Some((joined.own.id, joined.own.rack.clone()));
            if let Some(disk) = self.kept.get() {
                joined.write_down(&site.file, disk, &order, &peers);
            }
            let gave_way = gives_way;
            gives_way = (site.is_busy)() || order.is_quiet || thrift.is_on_battery();
            if gives_way != gave_way {
                member.give_way(gives_way);
            }
            let allowed = *lock(&self.may_fill);
            let may_fill = allowed.is_some_and(|at| at.elapsed() < FILL_LEAVE);
            let fills = may_fill || !self.store.has_disk();
            member.pause(gives_way || !fills);
            thread::sleep(LOOK_EVERY);
        }
        self.set_linked(false);
        *lock(&self.member) = None;
        let past = self.counters(&member);
        *lock(&self.past) = past;
        joined.own.learn(&member.peers());
        joined.own
    }

    /// Says that it is here; when to say so again, unless it is another node now.
    fn announce(&self, site: &Site, joined: &mut Joined, order: &SwarmOrder) -> Option<Duration> {
        let member = Arc::clone(&joined.member);
        let (peers, counters) = (member.peers(), self.counters(&member));
        let held = self.table.get().map(|table| {
            let held = self.store.held(table);
            self.catch_up(&member, table, &held);
            SwarmHolding {
                version: table.version(),
                held_chunks: held.ones() as u32,
            }
        });
        let said = SwarmAnnounce {
            port: member.port(),
            public_key: joined
                .own
                .wants_certificate(&site.file.authority_pem, SystemTime::now()),
            holds: held.into_iter().collect(),
            sent_bytes: counters.sent,
            received_bytes: counters.from_peers,
            liars: self.store.take_liars(),
        };
        let Ok(answer) = site.announce(&said) else {
            // The others go on without a head.
            joined.remember(&peers);
            return Some(RETRY);
        };
        if answer.me != joined.own.id {
            return None;
        }
        member.know(known(&answer));
        let copies = usize::from(order.copies.max(1));
        member.set_order(&answer.rack, copies, bytes_a_second(order));
        joined.hear(&answer, &site.file);
        self.tell_holdings(site, &answer);
        Some(Duration::from_secs(u64::from(answer.again_seconds.max(1))))
    }

    /// What came over HTTP, or was dropped to make room, is told to the member.
    fn catch_up(&self, member: &Member, table: &Table, held: &Bits) {
        let mut known = lock(&self.known);
        let none = Bits::new(table.len());
        let before = known.as_ref().unwrap_or(&none);
        for (at, chunk) in table.chunks().iter().enumerate() {
            match (before.has(at), held.has(at)) {
                (false, true) => member.gained(*chunk),
                (true, false) => member.lost(*chunk),
                _ => {}
            }
        }
        *known = Some(held.clone());
    }

    /// Says which chunks are here, when those are others than it said, or a head does not
    /// know.
    fn tell_holdings(&self, site: &Site, answer: &SwarmAnswer) {
        let Some(table) = self.table.get() else {
            return;
        };
        let held = self.store.held(table);
        let mut told = lock(&self.told);
        let is_known = told.as_ref() == Some(&held);
        if is_known && !answer.holds_wanted.contains(&table.version()) {
            return;
        }
        // What was not heard is said again.
        *told = site
            .holds(table.version(), &held.to_bytes())
            .is_ok()
            .then_some(held);
    }

    /// Takes part in the version, once the member and the version's chunks are there.
    fn join_version(&self) {
        if let (Some(member), Some(table)) = (lock(&self.member).clone(), self.table.get()) {
            let goal = if self.holds_all || self.store.has_disk() {
                Goal::All
            } else {
                Goal::Owned
            };
            let held = self.store.held(table);
            *lock(&self.known) = Some(held.clone());
            // Until it is known whether this machine's user waits; who is there to hold
            // has none.
            member.pause(self.store.has_disk() || !self.holds_all);
            member.join(Arc::clone(table), held, goal);
        }
    }

    fn set_linked(&self, is_linked: bool) {
        if self.is_linked.swap(is_linked, Ordering::Relaxed) != is_linked {
            // Who waits looks under the lock.
            drop(lock(&self.member));
            self.linked.notify_all();
        }
    }
}

impl Site {
    fn announce(&self, said: &SwarmAnnounce) -> Result<SwarmAnswer, CallError> {
        self.first(|url| self.service.swarm(url, said))
    }

    fn holds(&self, version: Digest, bits: &[u8]) -> Result<(), CallError> {
        self.first(|url| self.service.swarm_holds(url, version, bits))
    }

    /// The first head that answers.
    fn first<T>(&self, ask: impl Fn(&str) -> Result<T, CallError>) -> Result<T, CallError> {
        let mut last = None;
        for url in &self.urls {
            match ask(url) {
                Ok(answer) => return Ok(answer),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or(CallError::NoSession))
    }
}

fn is_on(order: Option<&SwarmOrder>) -> bool {
    order.is_some_and(|order| order.mode != SwarmMode::Off)
}

fn boots_others(order: Option<&SwarmOrder>) -> bool {
    order.is_some_and(|order| order.mode != SwarmMode::Off && order.boots_others)
}

fn bytes_a_second(order: &SwarmOrder) -> Option<u64> {
    order.upload_mbit_max.map(|mbit| u64::from(mbit) * 125_000)
}

/// Members that can be reached.
fn known(answer: &SwarmAnswer) -> Vec<(PeerId, SocketAddr, String, bool)> {
    let all = answer.peers.iter();
    let reached = all.filter_map(|peer| {
        let mut addresses = peer.addresses.iter();
        let address = addresses.find_map(|address| address.parse().ok())?;
        Some((peer.id, address, peer.rack.clone(), peer.head))
    });
    reached.collect()
}

/// The distinct chunks and pages of a version, in the order of its manifest's walk.
fn table<S: ChunkSource>(
    manifest: &Manifest,
    version: Digest,
    source: &S,
) -> Result<Arc<Table>, rootstock_image::manifest::LookupError<ReadError>> {
    let mut ids: Vec<ChunkId> = Vec::new();
    manifest.walk(&Pages(source), |visit| {
        ids.push(match visit {
            Visit::Page { id, .. } | Visit::Chunk { id, .. } => id,
        });
        Descend::Into
    })?;
    Ok(Table::new(version, ids))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which of a version's chunks these are.
fn bits_of(table: &Table, has: impl Fn(ChunkId) -> bool) -> Bits {
    let mut bits = Bits::new(table.len());
    for (at, chunk) in table.chunks().iter().enumerate() {
        if has(*chunk) {
            bits.set(at);
        }
    }
    bits
}
