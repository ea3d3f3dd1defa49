//! The NBD server: exports block devices over TCP and Unix sockets.
//!
//! Each connection has a thread of its own with blocking system calls: one
//! receive takes in as many requests as there are, and one send carries all
//! their replies, from where the cached chunks lie. What would have to wait for
//! a disk or a decompressor goes to a pool of workers, and only the connection's
//! thread ever touches its socket: a worker leaves its result and rings. So a
//! client that does not read its replies holds up its own thread and nobody
//! else. Why threads and no event loop: `docs/decisions/0005`.

mod batch;
mod connection;
mod listener;
pub mod memory;
mod serve;
mod shared;

#[cfg(test)]
pub(crate) mod tests;

use std::{
    any::Any,
    io,
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixListener,
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rootstock_volume::BlockDevice;

use shared::Shared;

/// What the server exports.
pub trait Exports: Send + Sync {
    /// The names a client may list.
    fn list(&self) -> Vec<String>;

    /// Opens an export for one connection of `client`, which is told apart by
    /// its address.
    ///
    /// # Errors
    /// [`ExportError`]; its text is told to the client.
    fn open(&self, name: &str, client: &str) -> Result<OpenExport, ExportError>;
}

/// An export in use.
///
/// All connections to an export must share one device (or devices without state
/// of their own), because a flush on one connection is promised to cover all.
pub struct OpenExport {
    /// The device.
    pub device: Arc<dyn BlockDevice>,
    /// A text for people, shown by `nbdinfo`.
    pub description: String,
    /// Dropped when the connection ends: what keeps the device from being
    /// deleted until then.
    pub lease: Box<dyn Any + Send>,
}

/// Why an export cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// There is none of that name.
    #[error("there is no export '{}': names are image/NAME:VERSION and volume/NAME", name.escape_debug())]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// It exists, and cannot be used now.
    #[error("{reason}")]
    Refused {
        /// Why, and what to do.
        reason: String,
    },
}

/// A socket to listen on. It must be bound.
#[derive(Debug)]
pub enum NbdListener {
    /// A TCP socket.
    Tcp(TcpListener),
    /// A Unix socket. TLS is never insisted on here: what can open the socket
    /// was let in by the file system.
    Unix(UnixListener),
}

/// Whether connections are encrypted.
#[derive(Debug, Clone, Default)]
pub enum NbdTls {
    /// Never.
    #[default]
    Off,
    /// When the client wants it.
    Optional(Arc<rustls::ServerConfig>),
    /// Always, on TCP.
    Required(Arc<rustls::ServerConfig>),
}

/// What a client may cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdLimits {
    /// Connections at once. When they are all taken, a newcomer takes the place
    /// of the oldest connection that is still negotiating; when there is none,
    /// it is closed.
    pub connections_max: usize,
    /// Requests of one connection that wait for workers.
    pub requests_in_flight_max: usize,
    /// Bytes of reads of one connection that wait for workers; a single larger
    /// read is let through alone.
    pub in_flight_bytes_max: u64,
    /// Threads that may wait for disks and decompressors.
    pub workers: usize,
    /// From connecting to the transmission phase, TLS included.
    pub negotiation_timeout: Duration,
    /// How long a client may leave replies unread.
    pub write_timeout: Duration,
}

impl Default for NbdLimits {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            connections_max: 1024,
            requests_in_flight_max: 64,
            in_flight_bytes_max: 32 << 20,
            workers: (2 * cores).clamp(4, 64),
            negotiation_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(60),
        }
    }
}

/// How a server is started.
#[derive(Debug, Default)]
pub struct NbdConfig {
    /// Where to listen.
    pub listeners: Vec<NbdListener>,
    /// Whether to encrypt.
    pub tls: NbdTls,
    /// What a client may cost.
    pub limits: NbdLimits,
}

/// What the server has done since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NbdStats {
    /// Connections now.
    pub connections: u64,
    /// Connections ever accepted.
    pub connections_total: u64,
    /// Connections closed because there was no room for them.
    pub connections_refused_total: u64,
    /// Requests served.
    pub requests_total: u64,
    /// Bytes read by clients.
    pub read_bytes_total: u64,
    /// Bytes written by clients.
    pub written_bytes_total: u64,
    /// Requests answered with an error.
    pub errors_total: u64,
}

/// Starts NBD servers.
pub struct NbdServer;

impl NbdServer {
    /// Listens on the configured sockets until the handle is shut down.
    ///
    /// # Errors
    /// When threads or descriptors cannot be had.
    pub fn start(config: NbdConfig, exports: Arc<dyn Exports>) -> io::Result<NbdHandle> {
        let (shared, mut threads) = Shared::start(config.tls, config.limits, exports)?;
        let mut addresses = Vec::new();
        for listener in config.listeners {
            if let NbdListener::Tcp(listener) = &listener {
                addresses.push(listener.local_addr()?);
            }
            match listener::spawn(listener, &shared) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    shared.stop();
                    return Err(error);
                }
            }
        }
        Ok(NbdHandle {
            shared,
            threads,
            addresses,
        })
    }
}

/// A running server; shut down when dropped, without patience.
pub struct NbdHandle {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    addresses: Vec<SocketAddr>,
}

impl NbdHandle {
    /// The TCP addresses listened on, in the order they were given.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What was done so far.
    #[must_use]
    pub fn stats(&self) -> NbdStats {
        self.shared.stats()
    }

    /// Stops listening, lets the requests in flight finish for up to `patience`,
    /// closes the connections and joins all threads.
    pub fn shutdown(mut self, patience: Duration) {
        self.finish(patience);
    }

    fn finish(&mut self, patience: Duration) {
        if self.threads.is_empty() {
            return;
        }
        self.shared.stop();
        let deadline = Instant::now() + patience;
        self.shared.close_connections(deadline);
        for thread in self.threads.drain(..) {
            shared::join(thread);
        }
    }
}

impl Drop for NbdHandle {
    fn drop(&mut self) {
        self.finish(Duration::ZERO);
    }
}

impl shared::Counters {
    fn snapshot(&self, connections: u64) -> NbdStats {
        let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        NbdStats {
            connections,
            connections_total: get(&self.connections),
            connections_refused_total: get(&self.refused),
            requests_total: get(&self.requests),
            read_bytes_total: get(&self.read_bytes),
            written_bytes_total: get(&self.written_bytes),
            errors_total: get(&self.errors),
        }
    }
}
