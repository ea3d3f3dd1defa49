//! The loop: sockets on one side, the state machine on the other.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use rootstock_core::{ChunkId, PeerId};
use rootstock_swarm::wire::Hello;
use rootstock_swarm::{
    Action, Bits, Class, Config, Counters, Goal, Leaving, Message, Node, Table, Time, Whole,
};

use crate::conn::{Conn, ConnError};
use crate::io::{Came, Io, ROOM_BYTES};
use crate::tls::Tls;
use crate::work::{Holder, Job, Proof, Verdict, Workers};

/// Connections at once, those that have not said who they are included.
const CONNS_MAX: usize = 512;

/// How long a connection may take until both ends have said who they are.
const GREETING_LIMIT: Duration = Duration::from_secs(5);

/// A connection that is older than this gives way to a new one of the same member:
/// it began anew.
const YOUNG: Duration = Duration::from_secs(3);

/// How often what is shown is counted.
const SHOWN_EVERY: Duration = Duration::from_millis(500);

const LISTENER: Token = Token(0);
const WAKER: Token = Token(1);
const FIRST_CONN: usize = 2;

/// What a member is.
pub struct Options {
    /// Who, and what it may do.
    pub node: Config,
    /// Where it serves others; nobody is served when absent.
    pub listen: Option<SocketAddr>,
    /// How connections are kept secret; they are not when absent.
    pub tls: Option<Tls>,
    /// Whether who begins a connection may also do without: a head serves machines of
    /// both kinds.
    pub takes_plain: bool,
    /// Threads that read and check chunks.
    pub workers: usize,
}

/// Why there is no member.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// Its address cannot be had.
    #[error("cannot listen for other machines at {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The system has no threads or no events to give.
    #[error("cannot start to talk to other machines")]
    Start(#[source] io::Error),
}

/// What is told to the loop.
pub(crate) enum Command {
    Want(ChunkId, Class),
    Unwant(ChunkId),
    Know(Vec<(PeerId, SocketAddr, String, bool)>),
    Join(Arc<Table>, Bits, Goal),
    Gained(ChunkId),
    Lost(ChunkId),
    Order(String, usize, Option<u64>),
    GiveWay(bool),
    Pause(bool),
    Tls(Tls),
    Loaded {
        chunk: ChunkId,
        whole: Option<Whole>,
    },
    Checked {
        chunk: ChunkId,
        peer: PeerId,
        request: u32,
        verdict: Verdict,
        keep: bool,
    },
    Stop,
}

/// The way to the loop.
#[derive(Clone)]
pub(crate) struct Post {
    commands: Sender<Command>,
    waker: Arc<Waker>,
}

impl Post {
    pub(crate) fn send(&self, command: Command) {
        // Without a loop there is nobody to be told.
        if self.commands.send(command).is_ok() {
            let _ = self.waker.wake();
        }
    }
}

/// Who else is there, by now.
#[derive(Debug, Clone, Default)]
pub struct Peers {
    /// Members with a connection.
    pub linked: Vec<PeerId>,
    /// All that are known, with whether they are heads.
    pub known: Vec<(PeerId, SocketAddr, String, bool)>,
    /// Those that lied.
    pub liars: Vec<PeerId>,
    /// What went on.
    pub counters: Counters,
}

/// A member that runs. It ends when this is dropped.
pub struct Member {
    post: Post,
    shown: Arc<Mutex<Peers>>,
    port: u16,
    thread: Option<JoinHandle<()>>,
}

impl Member {
    /// Starts a member.
    ///
    /// # Errors
    /// When its port is taken, or the system has nothing to give.
    pub fn start(options: Options, holder: Arc<dyn Holder>) -> Result<Self, MemberError> {
        let poll = Poll::new().map_err(MemberError::Start)?;
        let waker = Waker::new(poll.registry(), WAKER).map_err(MemberError::Start)?;
        let (commands, told) = channel();
        let post = Post {
            commands,
            waker: Arc::new(waker),
        };
        let mut listener = None;
        let mut port = 0;
        if let Some(address) = options.listen {
            let failed = |source| MemberError::Listen { address, source };
            let mut bound = TcpListener::bind(address).map_err(failed)?;
            port = bound.local_addr().map_err(failed)?.port();
            let registry = poll.registry();
            let registered = registry.register(&mut bound, LISTENER, Interest::READABLE);
            registered.map_err(MemberError::Start)?;
            listener = Some(bound);
        }
        let workers =
            Workers::start(options.workers.max(1), &holder, &post).map_err(MemberError::Start)?;
        let shown = Arc::new(Mutex::new(Peers::default()));
        let hello = Hello {
            id: options.node.id,
            rack: options.node.rack.clone(),
            port,
            is_head: options.node.is_head,
        };
        let mut run = Loop {
            poll,
            listener,
            told,
            hello,
            tls: options.tls,
            takes_plain: options.takes_plain,
            node: Node::new(options.node),
            conns: HashMap::new(),
            by_peer: HashMap::new(),
            plain: HashSet::new(),
            next_token: FIRST_CONN,
            began: Instant::now(),
            workers,
            holder,
            shown: Arc::clone(&shown),
            shown_at: Instant::now(),
            room: vec![0; ROOM_BYTES],
        };
        let thread = thread::Builder::new()
            .name("peer".to_owned())
            .spawn(move || run.run())
            .map_err(MemberError::Start)?;
        Ok(Self {
            post,
            shown,
            port,
            thread: Some(thread),
        })
    }

    /// The port at which others are served.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Wants a chunk: [`Holder::arrived`] brings it.
    pub fn want(&self, chunk: ChunkId, class: Class) {
        self.post.send(Command::Want(chunk, class));
    }

    /// Wants it no more.
    pub fn unwant(&self, chunk: ChunkId) {
        self.post.send(Command::Unwant(chunk));
    }

    /// These are there: who, where, in which rack, and whether it is a head.
    pub fn know(&self, members: Vec<(PeerId, SocketAddr, String, bool)>) {
        self.post.send(Command::Know(members));
    }

    /// Takes part in a version.
    pub fn join(&self, table: Arc<Table>, held: Bits, goal: Goal) {
        self.post.send(Command::Join(table, held, goal));
    }

    /// A chunk is held from now on, that came another way.
    pub fn gained(&self, chunk: ChunkId) {
        self.post.send(Command::Gained(chunk));
    }

    /// A chunk is not held any more.
    pub fn lost(&self, chunk: ChunkId) {
        self.post.send(Command::Lost(chunk));
    }

    /// Changes the rack, the owners of a chunk, and what is sent a second at most.
    pub fn set_order(&self, rack: &str, copies: usize, upload_max: Option<u64>) {
        let order = Command::Order(rack.to_owned(), copies, upload_max);
        self.post.send(order);
    }

    /// Whether this machine's user waits for the link or the disk.
    pub fn give_way(&self, gives_way: bool) {
        self.post.send(Command::GiveWay(gives_way));
    }

    /// Stops or resumes what nobody waits for.
    pub fn pause(&self, is_paused: bool) {
        self.post.send(Command::Pause(is_paused));
    }

    /// Shows another certificate over connections that begin from now on: one that is to
    /// run out is replaced while the member runs.
    pub fn set_tls(&self, tls: Tls) {
        self.post.send(Command::Tls(tls));
    }

    /// Who else is there, as it was counted last.
    #[must_use]
    pub fn peers(&self) -> Peers {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.clone()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.post.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            // It said itself why it ended.
            let _ = thread.join();
        }
    }
}

struct Loop {
    poll: Poll,
    listener: Option<TcpListener>,
    told: Receiver<Command>,
    hello: Hello,
    tls: Option<Tls>,
    takes_plain: bool,
    node: Node,
    conns: HashMap<Token, Conn>,
    /// The connection of each member that has said who it is.
    by_peer: HashMap<PeerId, Token>,
    /// Those of them that came without TLS last, as long as this is a head.
    plain: HashSet<PeerId>,
    next_token: usize,
    began: Instant,
    workers: Workers,
    holder: Arc<dyn Holder>,
    shown: Arc<Mutex<Peers>>,
    shown_at: Instant,
    /// What is read goes through here.
    room: Vec<u8>,
}

impl Loop {
    fn run(&mut self) {
        let mut events = Events::with_capacity(256);
        loop {
            let wait = Duration::from_micros(self.node.wakes().since(self.now()).0);
            match self.poll.poll(&mut events, Some(wait)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(%error, "talking to other machines ended");
                    return;
                }
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(),
                    WAKER => {}
                    token => self.moves(token, event.is_readable(), event.is_writable()),
                }
            }
            while let Ok(command) = self.told.try_recv() {
                if matches!(command, Command::Stop) {
                    return;
                }
                self.do_as_told(command);
                self.act();
            }
            if self.node.wakes() <= self.now() {
                self.node.tick(self.now());
                self.end_late();
                self.act();
            }
            if self.shown_at.elapsed() > SHOWN_EVERY {
                self.show();
            }
        }
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn do_as_told(&mut self, command: Command) {
        let now = self.now();
        let node = &mut self.node;
        match command {
            Command::Want(chunk, class) => node.want(now, chunk, class),
            Command::Unwant(chunk) => node.unwant(now, chunk),
            Command::Know(members) => {
                let known = members.into_iter().map(|(id, address, rack, is_head)| {
                    rootstock_swarm::Member::new(id, address, &rack, is_head, now)
                });
                node.know(now, known);
            }
            Command::Join(table, held, goal) => node.join(now, table, held, goal),
            Command::Gained(chunk) => node.gained(now, chunk),
            Command::Lost(chunk) => node.lost(now, chunk),
            Command::Order(rack, copies, upload_max) => {
                self.hello.rack.clone_from(&rack);
                node.set_order(now, &rack, copies, upload_max);
            }
            Command::GiveWay(gives_way) => node.give_way(gives_way),
            Command::Pause(is_paused) => node.pause(now, is_paused),
            Command::Tls(tls) => self.tls = Some(tls),
            Command::Loaded { chunk, whole } => node.loaded(now, chunk, whole),
            Command::Checked {
                chunk,
                peer,
                request,
                verdict,
                keep,
            } => {
                node.checked(now, peer, request, verdict != Verdict::Wrong);
                if verdict != Verdict::Wrong {
                    self.holder.settled(chunk);
                }
                match verdict {
                    Verdict::Kept => node.gained(now, chunk),
                    Verdict::Right if keep => node.had_no_room(now, chunk),
                    Verdict::Right | Verdict::Wrong => {}
                }
            }
            Command::Stop => {}
        }
    }

    /// Does what the state machine says.
    fn act(&mut self) {
        while let Some(action) = self.node.action() {
            match action {
                Action::Connect { peer, address } => {
                    if let Err(error) = self.dial(peer, address) {
                        tracing::debug!(%peer, %address, %error, "cannot connect");
                        self.node.down(self.now(), peer);
                    }
                }
                Action::Disconnect { peer, why } => self.part(peer, why),
                Action::Ready { peer } => {
                    if let Some(token) = self.by_peer.get(&peer).copied() {
                        self.send(token);
                    }
                }
                Action::Load { chunk } => self.workers.give(Job::Load(chunk)),
                Action::Arrived {
                    chunk,
                    peer,
                    request,
                    codec,
                    raw_bytes,
                    pieces,
                    keep,
                } => self.workers.give(Job::Check {
                    chunk,
                    peer,
                    request,
                    codec,
                    raw_bytes,
                    pieces,
                    keep,
                }),
                Action::NoSource { chunk } => self.holder.no_source(chunk),
            }
        }
    }

    fn accept(&mut self) {
        while let Some(listener) = &self.listener {
            match listener.accept() {
                Ok((stream, address)) if self.conns.len() < CONNS_MAX => {
                    if let Err(error) = self.welcome(stream, address) {
                        tracing::debug!(%address, %error, "a connection was refused");
                    }
                }
                // What is too much is closed at once.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn welcome(&mut self, stream: TcpStream, address: SocketAddr) -> io::Result<()> {
        let tls = self.tls.as_ref().map(Tls::accept).transpose();
        let io = Io::new(stream, tls.map_err(io::Error::other)?);
        let conn = Conn::new(io, address.ip().to_canonical(), None);
        self.add(conn)?;
        Ok(())
    }

    fn dial(&mut self, peer: PeerId, address: SocketAddr) -> io::Result<()> {
        let stream = TcpStream::connect(address)?;
        let tls = self.tls.as_ref().map(|tls| tls.dial(peer)).transpose();
        let io = Io::new(stream, tls.map_err(io::Error::other)?);
        let conn = Conn::new(io, address.ip().to_canonical(), Some(peer));
        self.add(conn)?;
        Ok(())
    }

    fn add(&mut self, mut conn: Conn) -> io::Result<Token> {
        let token = Token(self.next_token);
        self.next_token += 1;
        conn.io.stream.set_nodelay(true)?;
        conn.io.begin()?;
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(&mut conn.io.stream, token, both)?;
        conn.greet(&self.hello);
        self.conns.insert(token, conn);
        Ok(token)
    }

    /// A socket can be read or written.
    fn moves(&mut self, token: Token, is_readable: bool, is_writable: bool) {
        let Some(conn) = self.conns.get_mut(&token) else {
            return;
        };
        if !conn.is_open {
            match conn.opened() {
                Ok(true) => conn.is_open = true,
                Ok(false) => return,
                Err(error) => return self.failed(token, &error),
            }
        }
        let takes_plain = self.takes_plain && conn.dialed.is_none() && conn.peer.is_none();
        if is_readable && takes_plain && conn.io.begins_plain() {
            conn.io.tls = None;
        }
        if is_readable {
            self.receive(token);
        }
        if is_writable || is_readable {
            self.send(token);
        }
        self.act();
    }

    fn receive(&mut self, token: Token) {
        loop {
            let Some(conn) = self.conns.get_mut(&token) else {
                return;
            };
            let read = conn.io.read(&mut self.room);
            self.take(token);
            match read {
                Ok(Came::All) => return,
                // Events come at the edge: all that is there has to be read.
                Ok(Came::Part) => {}
                Ok(Came::End) => {
                    return self.failed(token, &io::Error::from(io::ErrorKind::UnexpectedEof));
                }
                Err(error) => return self.failed(token, &error),
            }
        }
    }

    /// Takes the messages that are whole.
    fn take(&mut self, token: Token) {
        loop {
            let Some(conn) = self.conns.get_mut(&token) else {
                return;
            };
            let message = match conn.next() {
                Ok(Some(message)) => message,
                Ok(None) => return,
                Err(error) => return self.failed(token, &error),
            };
            if let Some(peer) = conn.peer {
                self.hear(peer, message);
                continue;
            }
            match conn.meet(message) {
                Ok(hello) if self.holder.admits(hello.id, conn.address, conn.proof()) => {
                    self.met(token, &hello);
                }
                Ok(hello) => return self.failed(token, &ConnError::Stranger { peer: hello.id }),
                Err(error) => return self.failed(token, &error),
            }
        }
    }

    /// A member said something.
    fn hear(&mut self, peer: PeerId, message: Message) {
        let now = self.now();
        let Some(message) = believed(peer, message) else {
            return;
        };
        match message {
            Message::Ask { request, chunk, .. } if !self.holder.may_have(peer, chunk) => {
                self.node.deny(peer, request);
            }
            message => self.node.received(now, peer, message),
        }
        self.act();
    }

    /// The other end has said who it is. Two members may have begun a connection each at
    /// the same time: both keep the one that the smaller id began.
    fn met(&mut self, token: Token, hello: &Hello) {
        let peer = hello.id;
        let Some(conn) = self.conns.get(&token) else {
            return;
        };
        let (address, proof) = (conn.address, conn.proof());
        let is_mine = conn.dialed.is_some();
        if let Some(other) = self.by_peer.get(&peer).copied()
            && let Some(old) = self.conns.get(&other)
        {
            let is_young = old.since.elapsed() < YOUNG;
            let wins = is_mine == (self.hello.id < peer);
            if is_young && !wins && old.dialed.is_some() != is_mine {
                self.forget(token);
                return;
            }
            self.forget(other);
        }
        self.by_peer.insert(peer, token);
        match proof {
            Proof::Certificate => self.plain.remove(&peer),
            Proof::Nothing => self.plain.insert(peer),
        };
        self.node.up(self.now(), hello, address);
        self.act();
        self.send(token);
    }

    /// Writes what waits, and what the state machine has for this connection.
    fn send(&mut self, token: Token) {
        let Some(conn) = self.conns.get_mut(&token).filter(|conn| conn.is_open) else {
            return;
        };
        let peer = conn
            .peer
            .filter(|peer| self.by_peer.get(peer) == Some(&token));
        let (node, began) = (&mut self.node, self.began);
        let sent = conn.pump(|conn| {
            let now = Time(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
            let mut message = node.message(now, peer?)?;
            if self.hello.is_head {
                conn.keep_alike(&mut message, &self.plain);
            }
            Some(message)
        });
        if let Err(error) = sent {
            self.failed(token, &error);
        }
    }

    /// A connection failed.
    fn failed(&mut self, token: Token, error: &dyn std::error::Error) {
        let Some(conn) = self.conns.get(&token) else {
            return;
        };
        let (peer, dialed) = (conn.peer, conn.dialed);
        tracing::debug!(address = %conn.address, %error, "a connection to another machine ended");
        self.forget(token);
        let Some(peer) = peer.or(dialed) else {
            return;
        };
        // Another connection to it may be there.
        let is_up = self.by_peer.get(&peer).is_some_and(|other| *other != token);
        if !is_up {
            self.by_peer.remove(&peer);
            self.node.down(self.now(), peer);
            self.act();
        }
    }

    /// The state machine is done with a member.
    fn part(&mut self, peer: PeerId, why: Leaving) {
        tracing::debug!(%peer, ?why, "left another machine");
        if let Some(token) = self.by_peer.remove(&peer) {
            self.forget(token);
        }
    }

    fn forget(&mut self, token: Token) {
        if let Some(mut conn) = self.conns.remove(&token) {
            // It ends with the socket.
            let _ = self.poll.registry().deregister(&mut conn.io.stream);
        }
    }

    /// Ends connections whose other end has not said who it is.
    fn end_late(&mut self) {
        let late = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.peer.is_none() && conn.since.elapsed() > GREETING_LIMIT);
        let late: Vec<Token> = late.map(|(token, _)| *token).collect();
        for token in late {
            self.failed(token, &io::Error::from(io::ErrorKind::TimedOut));
        }
    }

    fn show(&mut self) {
        self.shown_at = Instant::now();
        let known = self.node.members();
        let known = known.map(|member| {
            let rack = member.rack.clone();
            (member.id, member.address, rack, member.is_head)
        });
        let peers = Peers {
            linked: self.node.linked().collect(),
            known: known.collect(),
            liars: self.node.liars().collect(),
            counters: self.node.counters(),
        };
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = peers;
    }
}

/// What is heard of a message. A guest may ask, and nothing is believed of what it says
/// of itself or of others: anybody can be one.
pub(crate) fn believed(peer: PeerId, message: Message) -> Option<Message> {
    if !peer.is_guest() {
        return Some(message);
    }
    match message {
        Message::Held { .. } | Message::Gained { .. } | Message::Lost { .. } => None,
        Message::Peers(_) => Some(Message::Peers(Vec::new())),
        message => Some(message),
    }
}
