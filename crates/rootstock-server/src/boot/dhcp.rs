//! DHCP on real interfaces: moves packets, times, probes and leases between the
//! network, the lease book and the state machine of `rootstock-netboot`.
//!
//! One task owns the state machine and takes packets from the sockets itself: what
//! another task would hand over costs a wake-up each. Leases are written in groups: while one
//! transaction is under way the next gathers, so that a burst of clients costs a few
//! of them. A thread for each client, or a transaction for each lease, would wait for
//! the disk as often as there are clients.

mod links;

use std::{
    collections::{HashMap, VecDeque},
    future::{Future, poll_fn},
    io,
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    task::Poll,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rootstock_core::MacAddress;
use rootstock_netboot::{
    Millis,
    dhcp::{
        Action, CLIENT_PORT, CommitError, Config, Event, Incoming, InterfaceId, Known, Lease, Link,
        Mode, Outgoing, PROBE_WAIT, Probed, Progress, Server, Ticket, Who,
    },
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use links::{Links, PORTS};

/// The longest packet that is taken in, in bytes; clients send about 300 to 600.
const PACKET_BYTES_MAX: usize = 4096;

/// The most packets of one socket before others have their turn; the kernel holds
/// what waits. Faults of a socket count as packets.
const TURN_PACKETS_MAX: usize = 64;

/// Words of other services that wait for the task.
const COMMANDS_MAX: usize = 1024;

/// The most entries of one transaction.
const WRITE_MAX: usize = 512;

/// What can be written into the book.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BookEntry {
    /// A lease, unless somebody else has the address.
    Commit(Lease),
    /// A client gave its address back.
    Release {
        /// The address.
        address: Ipv4Addr,
        /// The client.
        mac: MacAddress,
        /// When.
        now: Millis,
    },
    /// A client found its address used.
    Decline {
        /// The address.
        address: Ipv4Addr,
        /// The client.
        mac: MacAddress,
        /// Until when nobody gets it.
        until: Millis,
    },
}

/// Where leases are kept, by all servers of a site together.
pub trait LeaseBook: Send + Sync + 'static {
    /// All leases that are not long over.
    fn load(&self) -> impl Future<Output = io::Result<Vec<Lease>>> + Send;

    /// Writes entries in their order, in as few transactions as possible, and answers
    /// each once it is durable.
    fn write(
        &self,
        entries: Vec<BookEntry>,
    ) -> impl Future<Output = Vec<Result<(), CommitError>>> + Send;
}

/// Who wants to know what happens.
pub trait BootEvents: Send + Sync + 'static {
    /// Something happened. Must not wait.
    fn event(&self, now: Millis, event: &Event);
}

/// Why DHCP does not start.
#[derive(Debug, thiserror::Error)]
pub enum DhcpStartError {
    /// A port cannot be had.
    #[error(
        "open UDP port {port} on {interface}: another DHCP or PXE server may run on this machine \
         (see 'ss -ulpn'), or the daemon lacks CAP_NET_RAW and CAP_NET_BIND_SERVICE"
    )]
    Port {
        /// The interface.
        interface: String,
        /// The port.
        port: u16,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Other servers cannot be heard, on which `auto` depends.
    #[error(
        "open UDP port {CLIENT_PORT} on {interface}, where mode auto listens for other DHCP \
         servers: say which mode it is, {interface}=dhcp or {interface}=proxy"
    )]
    Deaf {
        /// The interface.
        interface: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Frames cannot be sent.
    #[error("open a socket for frames on {interface}: the daemon needs CAP_NET_RAW for it")]
    Frames {
        /// The interface.
        interface: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The leases cannot be read.
    #[error("read the DHCP leases")]
    Leases(#[source] io::Error),
}

/// A running DHCP service. It ends when this and all handles are dropped, or by
/// [`DhcpService::stop`].
#[derive(Debug)]
pub struct DhcpService {
    handle: DhcpHandle,
    task: JoinHandle<()>,
}

impl DhcpService {
    /// What other services tell it by.
    #[must_use]
    pub fn handle(&self) -> DhcpHandle {
        self.handle.clone()
    }

    /// Ends it, and waits until leases under way are written.
    pub async fn stop(self) {
        let _ = self.handle.commands.send(Command::Stop).await;
        let _ = self.task.await;
    }
}

/// Tells a DHCP service what other services saw.
#[derive(Debug, Clone)]
pub struct DhcpHandle {
    commands: mpsc::Sender<Command>,
}

impl DhcpHandle {
    /// The machines that the site knows, in place of all known before.
    pub async fn set_known(&self, known: Vec<Known>) {
        let _ = self.commands.send(Command::Known(known)).await;
    }

    /// Strategies that worked in earlier runs, by card.
    pub async fn set_worked(&self, worked: Vec<(MacAddress, String)>) {
        let _ = self.commands.send(Command::Worked(worked)).await;
    }

    /// A machine fetched something. Lost when very much happens.
    pub fn progress(&self, who: Who, progress: Progress) {
        let _ = self.commands.try_send(Command::Progress(who, progress));
    }

    /// A machine runs on with the address that its firmware had: nobody else gets it
    /// for this long. To be repeated as long as the machine reports.
    pub fn keep(&self, address: Ipv4Addr, mac: MacAddress, span: Duration) {
        let span = Millis(u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
        let _ = self.commands.try_send(Command::Keep(address, mac, span));
    }

    /// The card that has an address, as far as DHCP saw.
    pub async fn card_at(&self, address: Ipv4Addr) -> Option<MacAddress> {
        let (answer, answered) = oneshot::channel();
        self.commands
            .send(Command::CardAt(address, answer))
            .await
            .ok()?;
        answered.await.ok().flatten()
    }
}

#[derive(Debug)]
enum Command {
    Known(Vec<Known>),
    Worked(Vec<(MacAddress, String)>),
    Progress(Who, Progress),
    Keep(Ipv4Addr, MacAddress, Millis),
    CardAt(Ipv4Addr, oneshot::Sender<Option<MacAddress>>),
    Stop,
}

/// Whether the ports and rights of an interface can be had now; nothing stays open.
///
/// # Errors
/// [`DhcpStartError`], as [`start`] would.
pub(crate) fn try_interface(name: &str, mac: MacAddress, mode: Mode) -> Result<(), DhcpStartError> {
    Links::open(name, mac, mode).map(drop)
}

/// Opens the ports, reads the leases and starts to answer.
///
/// # Errors
/// [`DhcpStartError`]: nothing is left open.
pub async fn start<B: LeaseBook, E: BootEvents>(
    config: Config,
    known: Vec<Known>,
    book: Arc<B>,
    events: Arc<E>,
) -> Result<DhcpService, DhcpStartError> {
    let clock = Clock::new();
    let interfaces = config.interfaces.iter();
    let interfaces =
        interfaces.map(|interface| Links::open(&interface.name, interface.mac, interface.mode));
    let interfaces = interfaces.collect::<Result<_, _>>()?;
    let mut server = Server::new(config);
    let leases = book.load().await.map_err(DhcpStartError::Leases)?;
    server.load(clock.now(), &leases);
    server.set_known(known);
    let (commands, commanded) = mpsc::channel(COMMANDS_MAX);
    let driver = Driver {
        server,
        clock,
        interfaces,
        book,
        events,
        queue: VecDeque::new(),
        writing: None,
        probes: VecDeque::new(),
        asked: HashMap::new(),
    };
    let task = tokio::spawn(driver.run(commanded));
    Ok(DhcpService {
        handle: DhcpHandle { commands },
        task,
    })
}

/// Wall time that never steps back while we run.
#[derive(Debug, Clone, Copy)]
struct Clock {
    wall_ms: u64,
    start: Instant,
}

impl Clock {
    fn new() -> Self {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            wall_ms: u64::try_from(wall.as_millis()).unwrap_or(0),
            start: Instant::now(),
        }
    }

    fn now(self) -> Millis {
        let passed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        Millis(self.wall_ms.saturating_add(passed))
    }

    fn until(self, time: Millis) -> Duration {
        Duration::from_millis(time.since(self.now()).0)
    }
}

/// An address that is asked after.
#[derive(Debug)]
struct Probe {
    ticket: Ticket,
    until: Millis,
    place: (InterfaceId, Ipv4Addr),
}

type Written = Vec<(Option<Ticket>, Result<(), CommitError>)>;

/// A write under way, and who waits for each of its answers.
type Writing = (
    Vec<Option<Ticket>>,
    JoinHandle<Vec<Result<(), CommitError>>>,
);

struct Driver<B, E> {
    server: Server,
    clock: Clock,
    interfaces: Vec<Links>,
    book: Arc<B>,
    events: Arc<E>,
    /// What waits to be written, in order.
    queue: VecDeque<(Option<Ticket>, BookEntry)>,
    writing: Option<Writing>,
    probes: VecDeque<Probe>,
    /// Who is to get an address that is asked after.
    asked: HashMap<(InterfaceId, Ipv4Addr), (Ticket, MacAddress)>,
}

impl<B: LeaseBook, E: BootEvents> Driver<B, E> {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        loop {
            let wait = self
                .next_wake()
                .map_or(Duration::MAX, |time| self.clock.until(time));
            // Answers of the book first: clients wait for them.
            tokio::select! {
                biased;
                written = written(&mut self.writing) => self.written(written),
                command = commands.recv() => match command {
                    Some(Command::Stop) | None => break,
                    Some(command) => self.command(command),
                },
                () = readable(&self.interfaces) => self.receive(&mut buffer),
                () = sleep(wait) => self.wake(),
            }
            self.write();
        }
        while self.writing.is_some() {
            let done = written(&mut self.writing).await;
            self.written(done);
            self.write();
        }
    }

    fn next_wake(&self) -> Option<Millis> {
        let probe = self.probes.front().map(|probe| probe.until);
        self.server.next_wake().into_iter().chain(probe).min()
    }

    /// Takes what the sockets have, from each in its turn.
    fn receive(&mut self, buffer: &mut [u8]) {
        for place in 0..self.interfaces.len() {
            for port in PORTS {
                self.receive_packets(InterfaceId(place), port, buffer);
            }
            self.receive_arp(InterfaceId(place));
        }
    }

    /// A fault of a socket, such as an interface that went down, is waited out.
    fn receive_packets(&mut self, interface: InterfaceId, port: u16, buffer: &mut [u8]) {
        for _ in 0..TURN_PACKETS_MAX {
            match self.interfaces[interface.0].receive(port, buffer) {
                Ok(Some(datagram)) => {
                    let now = self.clock.now();
                    let incoming = Incoming {
                        interface,
                        source: datagram.source,
                        destination: SocketAddrV4::new(datagram.destination, port),
                        bytes: &buffer[..datagram.bytes.min(PACKET_BYTES_MAX)],
                    };
                    let actions = self.server.handle(now, &incoming);
                    self.follow(now, actions);
                }
                Ok(None) => return,
                Err(error) => tracing::debug!(%error, port, "receive a DHCP packet"),
            }
        }
    }

    fn receive_arp(&mut self, interface: InterfaceId) {
        for _ in 0..TURN_PACKETS_MAX {
            match self.interfaces[interface.0].arp.receive_arp() {
                Ok(Some(Some((mac, address)))) => self.has(interface, mac, address),
                Ok(Some(None)) => {}
                Ok(None) => return,
                Err(error) => tracing::debug!(%error, "receive ARP"),
            }
        }
    }

    /// Somebody has an address.
    fn has(&mut self, interface: InterfaceId, mac: MacAddress, address: Ipv4Addr) {
        let asked = self.asked.get(&(interface, address)).copied();
        // The client itself may still answer at the address that it had.
        if let Some((ticket, _)) = asked.filter(|(_, client)| *client != mac) {
            self.asked.remove(&(interface, address));
            let now = self.clock.now();
            let actions = self.server.probed(now, ticket, Probed::Used);
            self.follow(now, actions);
        }
    }

    fn command(&mut self, command: Command) {
        let now = self.clock.now();
        let actions = match command {
            Command::Known(known) => {
                self.server.set_known(known);
                return;
            }
            Command::Worked(worked) => {
                self.server.set_worked(worked);
                return;
            }
            Command::CardAt(address, answer) => {
                let _ = answer.send(self.server.card_at(address));
                return;
            }
            Command::Progress(who, progress) => self.server.progress(now, who, progress),
            Command::Keep(address, mac, span) => self.server.keep(now, address, mac, span),
            Command::Stop => return,
        };
        self.follow(now, actions);
    }

    fn wake(&mut self) {
        let now = self.clock.now();
        while self.probes.front().is_some_and(|probe| probe.until <= now) {
            let Some(probe) = self.probes.pop_front() else {
                break;
            };
            let waits = self
                .asked
                .get(&probe.place)
                .is_some_and(|asked| asked.0 == probe.ticket);
            if waits {
                self.asked.remove(&probe.place);
                let actions = self.server.probed(now, probe.ticket, Probed::Silent);
                self.follow(now, actions);
            }
        }
        let actions = self.server.wake(now);
        self.follow(now, actions);
    }

    fn follow(&mut self, now: Millis, actions: Vec<Action>) {
        let mut rest = VecDeque::from(actions);
        while let Some(action) = rest.pop_front() {
            match action {
                Action::Send(outgoing) => self.send(&outgoing),
                Action::Event(event) => self.events.event(now, &event),
                Action::Commit { ticket, lease } => {
                    self.queue
                        .push_back((Some(ticket), BookEntry::Commit(lease)));
                }
                Action::Release { address, mac, now } => {
                    let entry = BookEntry::Release { address, mac, now };
                    self.queue.push_back((None, entry));
                }
                Action::Decline {
                    address,
                    mac,
                    until,
                } => {
                    let entry = BookEntry::Decline {
                        address,
                        mac,
                        until,
                    };
                    self.queue.push_back((None, entry));
                }
                Action::Probe {
                    ticket,
                    interface,
                    address,
                    mac,
                    link,
                } => {
                    if self
                        .probe(now, ticket, interface, address, mac, link)
                        .is_err()
                    {
                        rest.extend(self.server.probed(now, ticket, Probed::Silent));
                    }
                }
            }
        }
    }

    fn send(&self, outgoing: &Outgoing) {
        let Some(links) = self.interfaces.get(outgoing.interface.0) else {
            return;
        };
        if let Err(error) = links.send(outgoing) {
            tracing::warn!(%error, to = ?outgoing.to, "send a DHCP packet");
        }
    }

    /// Asks by ARP. Behind a relay nobody would answer it; there the client's own
    /// check has to do.
    fn probe(
        &mut self,
        now: Millis,
        ticket: Ticket,
        interface: InterfaceId,
        address: Ipv4Addr,
        mac: MacAddress,
        link: Link,
    ) -> io::Result<()> {
        let unsupported = || io::Error::from(io::ErrorKind::Unsupported);
        let links = self
            .interfaces
            .get(interface.0)
            .filter(|_| link == Link::Own);
        links.ok_or_else(unsupported)?.arp.ask(address)?;
        let place = (interface, address);
        self.asked.insert(place, (ticket, mac));
        let until = now.after(PROBE_WAIT);
        self.probes.push_back(Probe {
            ticket,
            until,
            place,
        });
        Ok(())
    }

    /// Starts to write what waits, unless a write is under way.
    fn write(&mut self) {
        if self.writing.is_some() || self.queue.is_empty() {
            return;
        }
        let count = self.queue.len().min(WRITE_MAX);
        let (tickets, entries): (Vec<_>, Vec<_>) = self.queue.drain(..count).unzip();
        let book = Arc::clone(&self.book);
        let task = tokio::spawn(async move { book.write(entries).await });
        self.writing = Some((tickets, task));
    }

    fn written(&mut self, written: Written) {
        let now = self.clock.now();
        for (ticket, result) in written {
            if let Some(ticket) = ticket {
                let actions = self.server.committed(now, ticket, result);
                self.follow(now, actions);
            }
        }
    }
}

/// Waits for a write; forever when there is none. What it does not answer, since it
/// panicked, has failed.
async fn written(writing: &mut Option<Writing>) -> Written {
    let Some((tickets, task)) = writing else {
        return std::future::pending().await;
    };
    let answers = task.await.unwrap_or_else(|error| {
        tracing::error!(%error, "write DHCP leases");
        Vec::new()
    });
    let tickets = std::mem::take(tickets);
    *writing = None;
    let missing = std::iter::repeat(Err(CommitError::Failed));
    tickets
        .into_iter()
        .zip(answers.into_iter().chain(missing))
        .collect()
}

/// Waits until a socket may have something.
async fn readable(interfaces: &[Links]) {
    poll_fn(|context| {
        let polls = interfaces.iter().map(|links| links.poll_readable(context));
        // All of them, each of which is to wake the task.
        let ready = polls.fold(false, |any, poll| any | poll.is_ready());
        if ready {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

async fn sleep(wait: Duration) {
    /// No wait is longer: a clock may step.
    const WAIT_MAX: Duration = Duration::from_secs(3600);
    tokio::time::sleep(wait.min(WAIT_MAX)).await;
}
