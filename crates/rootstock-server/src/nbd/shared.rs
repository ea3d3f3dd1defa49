//! What all threads of the server share: its limits, counters and connections.

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::event::{EventfdFlags, eventfd};

use super::{Exports, NbdLimits, NbdStats, NbdTls};
use crate::serving::{pool::Pool, transport::Socket};

/// How long connections that were cut off may take to notice.
const CUT_OFF_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) connections: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) read_bytes: AtomicU64,
    pub(super) written_bytes: AtomicU64,
    pub(super) errors: AtomicU64,
}

pub(super) struct Shared {
    pub(super) tls: NbdTls,
    pub(super) limits: NbdLimits,
    pub(super) exports: Arc<dyn Exports>,
    pub(super) pool: Arc<Pool>,
    pub(super) counters: Counters,
    /// Readable once the server stops; never read, so every poll sees it.
    pub(super) stop_event: OwnedFd,
    stopping: AtomicBool,
    connections: Mutex<Connections>,
    all_closed: Condvar,
}

#[derive(Default)]
struct Connections {
    next_id: u64,
    /// By age.
    open: BTreeMap<u64, Open>,
    threads: Vec<JoinHandle<()>>,
}

struct Open {
    socket: Arc<Socket>,
    negotiating: bool,
}

impl Shared {
    pub(super) fn start(
        tls: NbdTls,
        limits: NbdLimits,
        exports: Arc<dyn Exports>,
    ) -> io::Result<(Arc<Self>, Vec<JoinHandle<()>>)> {
        let (pool, threads) = Pool::start("nbd-worker", limits.workers, limits.workers)?;
        let shared = Self {
            tls,
            limits,
            exports,
            pool,
            counters: Counters::default(),
            stop_event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stopping: AtomicBool::new(false),
            connections: Mutex::default(),
            all_closed: Condvar::new(),
        };
        Ok((Arc::new(shared), threads))
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Stops the listeners, and each connection after what it has received.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        ring(&self.stop_event);
        for open in self.lock().open.values() {
            open.socket.close_read();
        }
    }

    /// Waits for the connections to end, and cuts them off at the deadline.
    pub(super) fn close_connections(&self, deadline: Instant) {
        self.wait_closed(deadline);
        for open in self.lock().open.values() {
            open.socket.close_both();
        }
        self.wait_closed(Instant::now() + CUT_OFF_TIMEOUT);
        self.pool.stop();
        let threads = std::mem::take(&mut self.lock().threads);
        for thread in threads {
            if thread.is_finished() || self.lock().open.is_empty() {
                join(thread);
            } else {
                tracing::error!(
                    thread = thread.thread().name(),
                    "an NBD connection is stuck in its device and was left behind"
                );
            }
        }
    }

    fn wait_closed(&self, deadline: Instant) {
        let mut connections = self.lock();
        while !connections.open.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            connections = self
                .all_closed
                .wait_timeout(connections, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Takes a connection in, or `None` when there is no room.
    pub(super) fn admit(self: &Arc<Self>, socket: &Arc<Socket>) -> Option<Admission> {
        let mut connections = self.lock();
        reap(&mut connections.threads);
        if connections.open.len() >= self.limits.connections_max {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            // A place is given up to a newcomer only by those who have not
            // begun: a flood of silent connections cannot lock others out.
            let oldest = connections
                .open
                .iter()
                .find(|(_, open)| open.negotiating)
                .map(|(id, _)| *id)?;
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
        let open = Open {
            socket: Arc::clone(socket),
            negotiating: true,
        };
        connections.open.insert(id, open);
        Some(Admission {
            shared: Arc::clone(self),
            id,
        })
    }

    pub(super) fn keep_thread(&self, thread: JoinHandle<()>) {
        self.lock().threads.push(thread);
    }

    pub(super) fn stats(&self) -> NbdStats {
        let connections = self.lock().open.len() as u64;
        self.counters.snapshot(connections)
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
}

impl Admission {
    /// The negotiation is over: the place is safe now. `false` when it had been
    /// given to a newcomer.
    pub(super) fn settle(&self) -> bool {
        let mut connections = self.shared.lock();
        let open = connections.open.get_mut(&self.id);
        open.map(|open| open.negotiating = false).is_some()
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut connections = self.shared.lock();
        connections.open.remove(&self.id);
        if connections.open.is_empty() {
            self.shared.all_closed.notify_all();
        }
    }
}

/// Makes an eventfd readable.
pub(super) fn ring(event: &OwnedFd) {
    // It fails only when the counter is full, and then it is readable already.
    let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
}

/// Joins a thread and reports its panic.
pub(super) fn join(thread: JoinHandle<()>) {
    let name = thread.thread().name().unwrap_or_default().to_owned();
    if thread.join().is_err() {
        tracing::error!(thread = name, "an NBD thread panicked");
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
