//! The iSCSI target: volumes as disks for machines that run no agent.
//!
//! A session has one connection, and a connection a thread of its own, as with
//! NBD (`docs/decisions/0005`); what may wait for a disk goes to workers. What the
//! protocol says is in `rootstock-iscsi`, what a command means in `rootstock-scsi`;
//! here are sockets, devices and who may use them.

mod connection;
mod desk;
mod disk;
mod execute;
mod jobs;
mod login;
mod serve;
mod shared;
#[cfg(test)]
mod tests;

use std::{
    any::Any,
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rootstock_volume::BlockDevice;

use shared::Shared;

/// What there is to connect to, and who may.
pub(crate) trait Targets: Send + Sync {
    /// What an initiator at an address may use, and what it has to prove for it.
    fn offered(&self, initiator: &str, address: IpAddr) -> Vec<Offer>;

    /// Opens the disks of a target that one session may use now, by their numbers.
    fn units(&self, target: &str, client: &Client<'_>) -> Vec<OpenUnit>;

    /// Shows that a session is there, until it is dropped.
    fn presence(&self, target: &str, client: &Client<'_>) -> Box<dyn Any + Send>;

    /// What was reserved of a disk before the daemon started, as it was kept.
    fn reservations(&self, unit: &str) -> Option<String>;

    /// Keeps what is reserved of it; false when it cannot.
    fn keep_reservations(&self, unit: &str, state: &str) -> bool;
}

/// Whose session a target is opened for.
pub(crate) struct Client<'a> {
    /// The initiator's name.
    pub(crate) initiator: &'a str,
    /// What tells its sessions apart.
    pub(crate) isid: [u8; 6],
    /// Where it is.
    pub(crate) address: &'a str,
}

/// A target that an initiator may use.
pub(crate) struct Offer {
    /// Its iSCSI name.
    pub(crate) target: String,
    /// What has to be proved; nothing, when none.
    pub(crate) account: Option<rootstock_iscsi::Account>,
    /// Where it is instead, as `HOST:PORT`.
    pub(crate) redirect: Option<String>,
}

/// A disk in use.
pub(crate) struct OpenUnit {
    /// Its number in the target.
    pub(crate) lun: u16,
    /// What it is called, apart from any target.
    pub(crate) name: String,
    /// The device, the same for all sessions.
    pub(crate) device: Arc<dyn BlockDevice>,
    /// A number that no other device has, before or after.
    pub(crate) identity: u64,
    /// Its logical blocks: 512 or 4,096 bytes.
    pub(crate) block_bytes: u32,
    /// Dropped when the session uses it no longer.
    pub(crate) lease: Box<dyn Any + Send>,
}

/// What initiators may cost.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Connections at once. When all are taken, a newcomer takes the place of the
    /// oldest that has not logged in; when there is none, it is closed.
    pub(crate) connections_max: usize,
    /// Connections at once from one address.
    pub(crate) per_address_max: usize,
    /// From connecting to the full-feature phase.
    pub(crate) login_timeout: Duration,
    /// How long an initiator may leave answers unread.
    pub(crate) write_timeout: Duration,
    /// Silence after which it is asked for a sign of life, and after which again
    /// it is given up.
    pub(crate) silence: Duration,
    /// Threads that may wait for disks.
    pub(crate) workers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            per_address_max: 256,
            login_timeout: Duration::from_secs(15),
            write_timeout: Duration::from_secs(60),
            silence: Duration::from_secs(60),
            workers: crate::nbd::NbdLimits::default().workers,
        }
    }
}

/// What the target has done since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    /// Sessions now, those that log in among them.
    pub(crate) sessions: u64,
    /// Connections ever accepted.
    pub(crate) connections_total: u64,
    /// Connections closed because there was no room for them.
    pub(crate) refused_total: u64,
    /// Logins that failed.
    pub(crate) logins_failed_total: u64,
    /// Commands carried out.
    pub(crate) commands_total: u64,
    /// Bytes read by initiators.
    pub(crate) read_bytes_total: u64,
    /// Bytes written by initiators.
    pub(crate) written_bytes_total: u64,
}

/// Serves targets on sockets until the handle is shut down.
pub(crate) fn start(
    listeners: Vec<TcpListener>,
    limits: Limits,
    targets: Arc<dyn Targets>,
) -> io::Result<Handle> {
    let shared = Arc::new(Shared::new(limits, targets)?);
    let mut handle = Handle {
        addresses: Vec::new(),
        threads: Vec::new(),
        shared,
    };
    for listener in listeners {
        handle.addresses.push(listener.local_addr()?);
        handle
            .threads
            .push(connection::listen(listener, &handle.shared)?);
    }
    Ok(handle)
}

/// A running target; shut down when dropped, without patience.
pub(crate) struct Handle {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    addresses: Vec<SocketAddr>,
}

impl Handle {
    /// The addresses listened on.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What was done so far.
    pub(crate) fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Ends the sessions of an initiator with a target, which it may not use any more.
    pub(crate) fn expel(&self, initiator: &str, target: &str) {
        self.shared.expel(initiator, target);
    }

    /// Has the sessions of an initiator with a target look which disks there are now.
    pub(crate) fn refresh(&self, initiator: &str, target: &str) {
        self.shared.refresh(initiator, target);
    }

    /// The sessions, for those who wait for them.
    pub(crate) fn sessions(&self) -> Sessions {
        Sessions(Arc::clone(&self.shared))
    }

    /// Stops listening, lets the sessions answer what they have received for up
    /// to `patience`, and joins all threads.
    pub(crate) fn shutdown(mut self, patience: Duration) {
        self.finish(patience);
    }

    fn finish(&mut self, patience: Duration) {
        if self.threads.is_empty() {
            return;
        }
        self.shared.stop();
        self.shared.close(Instant::now() + patience);
        for thread in self.threads.drain(..) {
            shared::join(thread);
        }
    }
}

/// The sessions of initiators with targets.
pub(crate) struct Sessions(Arc<Shared>);

impl Sessions {
    /// Whether there is one.
    pub(crate) fn has(&self, initiator: &str, target: &str) -> bool {
        self.0.has_session(initiator, target)
    }

    /// Whether there is one whose initiator gives a sign of life within `patience`.
    pub(crate) fn is_alive(&self, initiator: &str, target: &str, patience: Duration) -> bool {
        self.0.is_alive(initiator, target, patience)
    }

    /// Ends them, and waits until their commands are over; false when they do not end.
    pub(crate) fn end(&self, initiator: &str, target: &str) -> bool {
        self.0.end(initiator, target)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.finish(Duration::ZERO);
    }
}
