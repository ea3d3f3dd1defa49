//! TFTP for firmware: a listener for each boot address, a thread for each file.
//!
//! A listener is bound to one address, never to all of them: what a broadcast asks
//! is not heard (RFC 1123, section 4.2.3.4), and answers come from the address that
//! was asked, each file's from a port of its own. Threads with blocking sockets need
//! two system calls for a block where an event loop needs four, which is what counts
//! for firmware that wants every block acknowledged.

use std::{
    collections::HashMap,
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rootstock_netboot::tftp::{First, PACKET_BYTES_MAX, PORT, Refusal};
use tokio::runtime::Handle;

use super::{
    body::{Content, OnSent},
    files::{self, Asked, Missing, Via},
};
use crate::app::App;

mod ahead;
mod send;

#[cfg(test)]
mod tests;

/// The most files on their way at once, over all addresses.
const TRANSFERS_MAX: usize = 1024;

/// The most files on their way to one client.
const CLIENT_TRANSFERS_MAX: usize = 8;

/// How long a thread waits before it looks whether the server stops, or whether
/// something has to be sent again.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// The stack of a thread that sends a file, in bytes; most of it is never touched.
const STACK_BYTES: usize = 512 << 10;

/// A file to be sent.
pub(super) struct TftpFile {
    /// Its bytes.
    pub(super) content: Content,
    /// To be called when the client has all of them.
    pub(super) on_sent: OnSent,
}

/// Where files come from.
pub(super) trait TftpFiles: Send + Sync {
    /// A file for a client that asked our address `local`. May wait.
    ///
    /// # Errors
    /// What the client is told instead.
    fn open(&self, name: &str, peer: Ipv4Addr, local: Ipv4Addr) -> Result<TftpFile, Refusal>;
}

/// The files of the boot service.
struct BootFiles {
    app: Arc<App>,
    runtime: Handle,
}

impl TftpFiles for BootFiles {
    fn open(&self, name: &str, peer: Ipv4Addr, local: Ipv4Addr) -> Result<TftpFile, Refusal> {
        let (app, wanted) = (Arc::clone(&self.app), name.to_owned());
        // A task of its own: this thread's stack is too small for it.
        let found = self.runtime.spawn(async move {
            let asked = Asked {
                name: &wanted,
                query: None,
                peer: peer.into(),
                local: local.into(),
                via: Via::Tftp,
            };
            files::find(&app, asked).await
        });
        let name = name.to_owned();
        match self.runtime.block_on(found) {
            Ok(Ok(found)) => Ok(TftpFile {
                content: found.content,
                on_sent: found.on_sent,
            }),
            Ok(Err(Missing::Nothing | Missing::Otherwise(_))) => Err(Refusal::NotFound { name }),
            Ok(Err(Missing::Refused)) => Err(Refusal::Denied { name }),
            Err(error) => {
                tracing::error!(%error, name, "looking for a boot file panicked");
                Err(Refusal::Unreadable)
            }
        }
    }
}

/// A client and the address of ours that it asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Pair {
    peer: SocketAddrV4,
    local: Ipv4Addr,
}

/// The files that are on their way, of all listeners.
#[derive(Debug, Default)]
pub(super) struct Transfers(Mutex<HashMap<Pair, Arc<Entry>>>);

#[derive(Debug)]
struct Entry {
    request: Vec<u8>,
    asked_again: AtomicBool,
    is_superseded: AtomicBool,
}

/// What becomes of a request.
#[derive(Debug)]
enum Admission {
    /// Its file is sent.
    Begin(Place),
    /// It came before.
    Repeated,
    /// There is no room: the client will ask again.
    Full(&'static str),
}

impl Transfers {
    fn admit(self: &Arc<Self>, pair: Pair, request: &[u8]) -> Admission {
        let mut all = self.all();
        if let Some(entry) = all.get(&pair) {
            if entry.request == request {
                entry.asked_again.store(true, Relaxed);
                return Admission::Repeated;
            }
            // Firmware that has seen the size asks anew, and its word that it gave up
            // may come later than that.
            entry.is_superseded.store(true, Relaxed);
            all.remove(&pair);
        }
        if all.len() >= TRANSFERS_MAX {
            return Admission::Full("too many files are on their way");
        }
        let mut pairs = all.keys();
        let own = pairs.by_ref().filter(|at| at.peer.ip() == pair.peer.ip());
        if own.count() >= CLIENT_TRANSFERS_MAX {
            return Admission::Full("too many files are on their way to this client");
        }
        let entry = Arc::new(Entry {
            request: request.to_vec(),
            asked_again: AtomicBool::new(false),
            is_superseded: AtomicBool::new(false),
        });
        all.insert(pair, Arc::clone(&entry));
        Admission::Begin(Place {
            transfers: Arc::clone(self),
            pair,
            entry,
        })
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Pair, Arc<Entry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A transfer's place among all, given back when dropped.
#[derive(Debug)]
struct Place {
    transfers: Arc<Transfers>,
    pair: Pair,
    entry: Arc<Entry>,
}

impl Place {
    /// Whether the client asked for something else from the same port.
    fn is_superseded(&self) -> bool {
        self.entry.is_superseded.load(Relaxed)
    }

    /// Whether the client asked for the same again meanwhile. When not, the place is
    /// free from now on.
    fn keep_if_asked_again(&self) -> bool {
        let mut all = self.transfers.all();
        let again = self.entry.asked_again.swap(false, Relaxed);
        if !again {
            self.leave(&mut all);
        }
        again && !self.is_superseded()
    }

    fn leave(&self, all: &mut HashMap<Pair, Arc<Entry>>) {
        let mine = |entry: &Arc<Entry>| Arc::ptr_eq(entry, &self.entry);
        if all.get(&self.pair).is_some_and(mine) {
            all.remove(&self.pair);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave(&mut self.transfers.all());
    }
}

/// A listener, which ends with [`TftpServer::shutdown`].
#[derive(Debug)]
pub(super) struct TftpServer {
    address: SocketAddrV4,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl TftpServer {
    /// Sends boot files to who asks this address. Must be called in the runtime.
    ///
    /// # Errors
    /// When the port is taken, or needs rights that are not there.
    pub(super) fn of_app(
        app: &Arc<App>,
        address: Ipv4Addr,
        transfers: &Arc<Transfers>,
    ) -> io::Result<Self> {
        let files = Arc::new(BootFiles {
            app: Arc::clone(app),
            runtime: Handle::current(),
        });
        Self::start(SocketAddrV4::new(address, PORT), files, transfers)
    }

    /// Sends `files` to who asks `address`; port 0 takes any.
    ///
    /// # Errors
    /// As [`TftpServer::of_app`].
    fn start(
        address: SocketAddrV4,
        files: Arc<dyn TftpFiles>,
        transfers: &Arc<Transfers>,
    ) -> io::Result<Self> {
        let socket = UdpSocket::bind(address)?;
        socket.set_read_timeout(Some(LOOK_INTERVAL))?;
        let SocketAddr::V4(address) = socket.local_addr()? else {
            return Err(io::Error::other("an IPv4 socket has another address"));
        };
        let stop = Arc::new(AtomicBool::new(false));
        let listener = Listener {
            socket,
            local: *address.ip(),
            files,
            transfers: Arc::clone(transfers),
            stop: Arc::clone(&stop),
            threads: Vec::new(),
        };
        let thread = thread::Builder::new()
            .name("tftp".to_owned())
            .spawn(move || listener.run())?;
        Ok(Self {
            address,
            stop,
            thread,
        })
    }

    /// Ends it and what it sends. Waits a moment.
    pub(super) fn shutdown(self) {
        self.stop.store(true, Relaxed);
        if self.thread.join().is_err() {
            tracing::error!(address = %self.address, "a TFTP listener panicked");
        }
    }
}

struct Listener {
    socket: UdpSocket,
    local: Ipv4Addr,
    files: Arc<dyn TftpFiles>,
    transfers: Arc<Transfers>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Listener {
    fn run(mut self) {
        let mut packet = [0; PACKET_BYTES_MAX];
        while !self.stop.load(Relaxed) {
            match self.socket.recv_from(&mut packet) {
                Ok((len, SocketAddr::V4(peer))) => self.take(peer, &packet[..len]),
                Ok(_) => {}
                Err(error) if is_pause(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, address = %self.local, "TFTP requests not received");
                    thread::sleep(LOOK_INTERVAL);
                }
            }
            self.reap(JoinHandle::is_finished);
        }
        self.reap(|_| true);
    }

    fn take(&mut self, peer: SocketAddrV4, packet: &[u8]) {
        let request = match First::of(packet) {
            First::Read(request) => request,
            First::Refused(refusal) => {
                tracing::info!(%peer, reason = %refusal, "TFTP request refused");
                // It is asked again when this is lost.
                let _ = self.socket.send_to(&refusal.packet(), peer);
                return;
            }
            First::Ignored => return,
        };
        let pair = Pair {
            peer,
            local: self.local,
        };
        let place = match self.transfers.admit(pair, packet) {
            Admission::Begin(place) => place,
            Admission::Repeated => return,
            Admission::Full(reason) => {
                tracing::warn!(%peer, name = request.name, reason, "TFTP request not answered");
                return;
            }
        };
        let job = send::Job {
            place,
            request,
            files: Arc::clone(&self.files),
            stop: Arc::clone(&self.stop),
        };
        let thread = thread::Builder::new()
            .name("tftp-send".to_owned())
            .stack_size(STACK_BYTES);
        match thread.spawn(move || job.run()) {
            Ok(thread) => self.threads.push(thread),
            Err(error) => tracing::warn!(%error, %peer, "no thread for a TFTP transfer"),
        }
    }

    fn reap(&mut self, which: impl Fn(&JoinHandle<()>) -> bool) {
        for thread in self.threads.extract_if(.., |thread| which(thread)) {
            if thread.join().is_err() {
                tracing::error!("a TFTP transfer panicked");
            }
        }
    }
}

/// Whether an error only says that nothing has come yet.
fn is_pause(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}
