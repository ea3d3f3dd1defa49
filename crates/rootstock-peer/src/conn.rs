//! A connection from its first byte until it belongs to a member.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::time::Instant;

use bytes::Bytes;
use rootstock_core::PeerId;
use rootstock_swarm::wire::{self, Hello, Message, WireError};

use crate::io::Io;
use crate::tls;
use crate::work::Proof;

/// A connection.
pub(crate) struct Conn {
    pub(crate) io: Io,
    pub(crate) address: IpAddr,
    /// Whom it was begun to reach.
    pub(crate) dialed: Option<PeerId>,
    pub(crate) since: Instant,
    /// Whether the socket is connected.
    pub(crate) is_open: bool,
    has_preface: bool,
    /// Who the other end is, once it has said so.
    pub(crate) peer: Option<PeerId>,
}

/// Why a connection is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnError {
    #[error("the other end does not follow the protocol")]
    Wire(#[from] WireError),
    #[error("the other end did not say who it is first")]
    NoHello,
    #[error("{peer} was to be there, and {other} is")]
    Other { peer: PeerId, other: PeerId },
    #[error("the other end says that it is {peer}, and its certificate does not")]
    Certificate { peer: PeerId },
    #[error("nobody is known as {peer} there")]
    Stranger { peer: PeerId },
}

impl Conn {
    pub(crate) fn new(io: Io, address: IpAddr, dialed: Option<PeerId>) -> Self {
        Self {
            io,
            address,
            dialed,
            since: Instant::now(),
            is_open: dialed.is_none(),
            has_preface: false,
            peer: None,
        }
    }

    /// Whether a connection that was begun is there.
    pub(crate) fn opened(&self) -> io::Result<bool> {
        if let Some(error) = self.io.stream.take_error()? {
            return Err(error);
        }
        match self.io.stream.peer_addr() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Leaves out members that the other end cannot reach: to a head come those with TLS
    /// and those without, which are of no use to each other. `plain` is who came without.
    pub(crate) fn keep_alike(&self, message: &mut Message, plain: &HashSet<PeerId>) {
        if let Message::Peers(known) = message {
            let is_plain = self.proof() == Proof::Nothing;
            known.retain(|member| plain.contains(&member.id) == is_plain);
        }
    }

    /// Says who this end is.
    pub(crate) fn greet(&mut self, hello: &Hello) {
        let mut out = wire::preface().to_vec();
        // It has no bytes of chunks.
        let _ = Message::Hello(hello.clone()).encode(&mut out);
        self.io.push(Bytes::from(out));
    }

    /// Adds a message to what is to be written.
    pub(crate) fn say(&mut self, message: &Message) {
        let mut out = Vec::with_capacity(64);
        let data = message.encode(&mut out);
        self.io.push(Bytes::from(out));
        if let Some(data) = data {
            self.io.push(data);
        }
    }

    /// Writes what waits, and messages of `next` for as long as the socket takes them. It
    /// ends only when the socket takes no more, which says when it does again, or when
    /// nothing is left: otherwise what is left would stay here.
    ///
    /// # Errors
    /// When the connection fails.
    pub(crate) fn pump(
        &mut self,
        mut next: impl FnMut(&Self) -> Option<Message>,
    ) -> io::Result<()> {
        loop {
            // What had no room now may have some when this is written.
            let mut is_dry = self.io.has_room();
            while self.io.has_room()
                && let Some(message) = next(self)
            {
                self.say(&message);
                is_dry = false;
            }
            if !self.io.write()? || is_dry {
                return Ok(());
            }
        }
    }

    /// The next message of what was read.
    pub(crate) fn next(&mut self) -> Result<Option<Message>, ConnError> {
        if !self.has_preface {
            self.has_preface = wire::take_preface(&mut self.io.input)?;
            if !self.has_preface {
                return Ok(None);
            }
        }
        Ok(Message::take(&mut self.io.input)?)
    }

    /// What the other end showed for who it is, once it has said so.
    pub(crate) fn proof(&self) -> Proof {
        match self.io.tls {
            Some(_) => Proof::Certificate,
            None => Proof::Nothing,
        }
    }

    /// Takes the first message for who the other end is.
    pub(crate) fn meet(&mut self, message: Message) -> Result<Hello, ConnError> {
        let Message::Hello(hello) = message else {
            return Err(ConnError::NoHello);
        };
        let other = hello.id;
        if let Some(peer) = self.dialed.filter(|peer| *peer != other) {
            return Err(ConnError::Other { peer, other });
        }
        if let Some(connection) = &self.io.tls
            && !tls::is_of(connection, other)
        {
            return Err(ConnError::Certificate { peer: other });
        }
        self.peer = Some(other);
        Ok(hello)
    }
}
