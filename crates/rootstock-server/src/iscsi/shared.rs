//! What all threads of the target share: its sessions, disks and counters.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    os::fd::OwnedFd,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::event::{EventfdFlags, eventfd};

use super::{Limits, Stats, Targets, disk::Disks, jobs::Bell};
use crate::serving::{
    pool::{Pool, share_of_one},
    transport::Socket,
};

/// How long connections that were cut off may take to notice.
const CUT_OFF_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) connections: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) logins_failed: AtomicU64,
    pub(super) commands: AtomicU64,
    pub(super) read_bytes: AtomicU64,
    pub(super) written_bytes: AtomicU64,
}

/// What makes a session the same one (RFC 7143, section 4.4.3: the I_T nexus).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SessionKey {
    pub(super) initiator: String,
    pub(super) isid: [u8; 6],
    /// None for a discovery session.
    pub(super) target: Option<String>,
}

pub(super) struct Shared {
    pub(super) limits: Limits,
    pub(super) targets: Arc<dyn Targets>,
    pub(super) disks: Disks,
    pub(super) counters: Counters,
    /// What the commands of all sessions hold at the workers, in bytes.
    pub(super) carried_bytes: AtomicU64,
    /// For what may wait for a disk.
    pub(super) pool: Arc<Pool>,
    /// Readable once the target stops; never read, so every poll sees it.
    pub(super) stop_event: OwnedFd,
    stopping: AtomicBool,
    connections: Mutex<Connections>,
    workers: Mutex<Vec<JoinHandle<()>>>,
    closed: Condvar,
}

#[derive(Default)]
struct Connections {
    next_id: u64,
    last_tsih: u16,
    /// By age.
    open: BTreeMap<u64, Open>,
    threads: Vec<JoinHandle<()>>,
}

struct Open {
    socket: Arc<Socket>,
    bell: Arc<Bell>,
    pulse: Arc<Pulse>,
    look: Arc<AtomicBool>,
    address: Option<IpAddr>,
    /// None while it logs in.
    session: Option<Session>,
}

struct Session {
    key: SessionKey,
    tsih: u16,
    cid: u16,
}

/// Whether an initiator that is asked for a sign of life gives one.
#[derive(Default)]
struct Pulse(AtomicU8);

impl Pulse {
    /// To be asked, asked, and heard of since; 0 before all that.
    const WANTED: u8 = 1;
    const ASKED: u8 = 2;
    const FELT: u8 = 3;

    fn want(&self) {
        self.0.store(Self::WANTED, Ordering::Release);
    }

    fn is_felt(&self) -> bool {
        self.0.load(Ordering::Acquire) == Self::FELT
    }

    /// Goes on from one to the next; false when it was not there.
    fn step(&self, from: u8, to: u8) -> bool {
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        self.0.compare_exchange(from, to, success, failure).is_ok()
    }
}

impl Connections {
    /// The sessions of an initiator with a target.
    fn of<'a>(&'a self, initiator: &'a str, target: &'a str) -> impl Iterator<Item = &'a Open> {
        let is_theirs = move |key: &SessionKey| {
            key.initiator == initiator && key.target.as_deref() == Some(target)
        };
        let all = self.open.values();
        all.filter(move |open| open.session.as_ref().is_some_and(|it| is_theirs(&it.key)))
    }
}

/// What a login is about with respect to other sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// A session with this number.
    Number(u16),
    /// There is no session of that number.
    Unknown,
    /// There is, and it has its connection.
    Taken,
}

impl Shared {
    pub(super) fn new(limits: Limits, targets: Arc<dyn Targets>) -> io::Result<Self> {
        let stop_event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (pool, workers) =
            Pool::start("iscsi-worker", limits.workers, share_of_one(limits.workers))?;
        Ok(Self {
            limits,
            pool,
            workers: Mutex::new(workers),
            targets,
            disks: Disks::default(),
            counters: Counters::default(),
            carried_bytes: AtomicU64::new(0),
            stop_event,
            stopping: AtomicBool::new(false),
            connections: Mutex::default(),
            closed: Condvar::new(),
        })
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Stops the listeners; logins end, and sessions are asked to leave.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        // It fails only when the counter is full, and then it is readable already.
        let _ = rustix::io::write(&self.stop_event, &1_u64.to_ne_bytes());
        for open in self.lock().open.values() {
            if open.session.is_none() {
                open.socket.close_read();
            }
            open.bell.ring();
        }
    }

    /// Waits for the connections to end, and cuts them off at the deadline.
    pub(super) fn close(&self, deadline: Instant) {
        self.wait_until(deadline, |connections| connections.open.is_empty());
        for open in self.lock().open.values() {
            open.socket.close_both();
        }
        let cut_off = Instant::now() + CUT_OFF_TIMEOUT;
        let all = self.wait_until(cut_off, |connections| connections.open.is_empty());
        let threads = std::mem::take(&mut self.lock().threads);
        self.pool.stop();
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.into_iter().chain(workers.drain(..)) {
            if all || thread.is_finished() {
                join(thread);
            } else {
                tracing::error!("an iSCSI session is stuck in its device and was left behind");
            }
        }
    }

    fn wait_until(&self, deadline: Instant, done: impl Fn(&Connections) -> bool) -> bool {
        let mut connections = self.lock();
        while !done(&connections) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            connections = self
                .closed
                .wait_timeout(connections, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }

    /// Takes a connection in, or `None` when there is no room.
    pub(super) fn admit(
        self: &Arc<Self>,
        socket: &Arc<Socket>,
        address: Option<IpAddr>,
    ) -> Option<Admission> {
        let bell = match Bell::new() {
            Ok(bell) => Arc::new(bell),
            Err(error) => {
                tracing::warn!(%error, "no descriptor for an iSCSI connection");
                return None;
            }
        };
        let mut connections = self.lock();
        reap(&mut connections.threads);
        let places = connections.open.values();
        let alike = places.filter(|open| open.address == address).count();
        let full = connections.open.len() >= self.limits.connections_max;
        if full || alike >= self.limits.per_address_max {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            // A flood of silent connections cannot lock others out.
            let oldest = connections
                .open
                .iter()
                .find(|(_, open)| open.session.is_none() && (full || open.address == address));
            let oldest = *oldest?.0;
            if let Some(open) = connections.open.remove(&oldest) {
                open.socket.close_both();
            }
        }
        if self.is_stopping() {
            return None;
        }
        self.counters.connections.fetch_add(1, Ordering::Relaxed);
        let id = connections.next_id;
        connections.next_id += 1;
        let pulse = Arc::new(Pulse::default());
        let look = Arc::new(AtomicBool::new(false));
        let open = Open {
            socket: Arc::clone(socket),
            bell: Arc::clone(&bell),
            pulse: Arc::clone(&pulse),
            look: Arc::clone(&look),
            address,
            session: None,
        };
        connections.open.insert(id, open);
        Some(Admission {
            shared: Arc::clone(self),
            id,
            bell,
            pulse,
            look,
        })
    }

    /// A number for a new session, or the one that a connection wants to reinstate.
    pub(super) fn standing(&self, key: &SessionKey, tsih: u16, cid: u16) -> Standing {
        let mut connections = self.lock();
        if tsih != 0 {
            let sessions = connections
                .open
                .values()
                .filter_map(|open| open.session.as_ref());
            let mut same = sessions.filter(|session| session.tsih == tsih && session.key == *key);
            return match same.next() {
                Some(session) if session.cid == cid => Standing::Number(tsih),
                Some(_) => Standing::Taken,
                None => Standing::Unknown,
            };
        }
        // There are fewer sessions than numbers.
        loop {
            connections.last_tsih = connections.last_tsih.checked_add(1).unwrap_or(1);
            let number = connections.last_tsih;
            let mut sessions = connections
                .open
                .values()
                .filter_map(|open| open.session.as_ref());
            if !sessions.any(|session| session.tsih == number) {
                return Standing::Number(number);
            }
        }
    }

    /// Ends an older session with the same key, and waits until its commands are
    /// over (RFC 7143, section 6.3.5); false when they do not end.
    pub(super) fn reinstate(&self, admission: &Admission, key: &SessionKey) -> bool {
        let others = |connections: &Connections| {
            let alike = |(id, open): (&u64, &Open)| {
                let same = open.session.as_ref().is_some_and(|it| it.key == *key);
                (same && *id != admission.id).then(|| Arc::clone(&open.socket))
            };
            connections
                .open
                .iter()
                .filter_map(alike)
                .collect::<Vec<_>>()
        };
        for socket in others(&self.lock()) {
            socket.close_both();
        }
        let deadline = Instant::now() + CUT_OFF_TIMEOUT;
        self.wait_until(deadline, |connections| others(connections).is_empty())
    }

    pub(super) fn expel(&self, initiator: &str, target: &str) {
        for open in self.lock().of(initiator, target) {
            open.socket.close_both();
        }
    }

    pub(super) fn refresh(&self, initiator: &str, target: &str) {
        for open in self.lock().of(initiator, target) {
            open.look.store(true, Ordering::Release);
            open.bell.ring();
        }
    }

    /// Ends all sessions with a target but this one.
    pub(super) fn expel_others(&self, admission: &Admission, target: &str) {
        for (id, open) in &self.lock().open {
            let session = open.session.as_ref();
            let target_of = session.and_then(|it| it.key.target.as_deref());
            if target_of == Some(target) && *id != admission.id {
                open.socket.close_both();
            }
        }
    }

    /// Whether an initiator that has a session with a target gives a sign of life.
    pub(super) fn is_alive(&self, initiator: &str, target: &str, patience: Duration) -> bool {
        for open in self.lock().of(initiator, target) {
            open.pulse.want();
            open.bell.ring();
        }
        let deadline = Instant::now() + patience;
        self.wait_until(deadline, |connections| {
            let mut sessions = connections.of(initiator, target).peekable();
            sessions.peek().is_none() || sessions.any(|open| open.pulse.is_felt())
        });
        let connections = self.lock();
        connections
            .of(initiator, target)
            .any(|open| open.pulse.is_felt())
    }

    /// Ends the sessions of an initiator with a target, and waits until their commands
    /// are over; false when they do not end.
    pub(super) fn end(&self, initiator: &str, target: &str) -> bool {
        self.expel(initiator, target);
        let deadline = Instant::now() + CUT_OFF_TIMEOUT;
        self.wait_until(deadline, |connections| {
            connections.of(initiator, target).next().is_none()
        })
    }

    pub(super) fn has_session(&self, initiator: &str, target: &str) -> bool {
        self.lock().of(initiator, target).next().is_some()
    }

    pub(super) fn keep_thread(&self, thread: JoinHandle<()>) {
        self.lock().threads.push(thread);
    }

    pub(super) fn stats(&self) -> Stats {
        let sessions = self.lock().open.len() as u64;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            sessions,
            connections_total: get(&self.counters.connections),
            refused_total: get(&self.counters.refused),
            logins_failed_total: get(&self.counters.logins_failed),
            commands_total: get(&self.counters.commands),
            read_bytes_total: get(&self.counters.read_bytes),
            written_bytes_total: get(&self.counters.written_bytes),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place among the others, given back when dropped.
pub(super) struct Admission {
    pub(super) shared: Arc<Shared>,
    pub(super) id: u64,
    /// Rung when the target stops, and when a sign of life is wanted.
    pub(super) bell: Arc<Bell>,
    pulse: Arc<Pulse>,
    look: Arc<AtomicBool>,
}

impl Admission {
    /// Whether there may be other disks than before; said once.
    pub(super) fn must_look(&self) -> bool {
        self.look.swap(false, Ordering::AcqRel)
    }

    /// Whether the initiator is to be asked for a sign of life; said once.
    pub(super) fn must_ask(&self) -> bool {
        self.pulse.step(Pulse::WANTED, Pulse::ASKED)
    }

    /// The initiator was heard of.
    pub(super) fn heard(&self) {
        if self.pulse.step(Pulse::ASKED, Pulse::FELT) {
            self.shared.closed.notify_all();
        }
    }

    /// The login is over: the place is safe now. `false` when it had been given to
    /// a newcomer, or when another login to the same session was quicker.
    pub(super) fn settle(&self, key: SessionKey, tsih: u16, cid: u16) -> bool {
        let mut connections = self.shared.lock();
        let mut sessions = connections
            .open
            .values()
            .filter_map(|it| it.session.as_ref());
        if sessions.any(|session| session.key == key) {
            return false;
        }
        let open = connections.open.get_mut(&self.id);
        open.map(|open| open.session = Some(Session { key, tsih, cid }))
            .is_some()
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.shared.lock().open.remove(&self.id);
        self.shared.closed.notify_all();
    }
}

/// Joins a thread and reports its panic.
pub(super) fn join(thread: JoinHandle<()>) {
    let name = thread.thread().name().unwrap_or_default().to_owned();
    if thread.join().is_err() {
        tracing::error!(thread = name, "an iSCSI thread panicked");
    }
}

fn reap(threads: &mut Vec<JoinHandle<()>>) {
    let mut at = 0;
    while at < threads.len() {
        if threads[at].is_finished() {
            join(threads.swap_remove(at));
        } else {
            at += 1;
        }
    }
}
