//! What pid 1 and the root's server say to each other: lines of JSON over a socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use rootstock_api::boot::{BootOrder, Identity, SessionCreate, SiteFile, StepReport};
use rootstock_core::MacAddress;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::swarm::membership::Membership;

/// The longest line: a manifest of 1,024 regions as numbers, and an order.
const LINE_BYTES_MAX: u64 = 4 << 20;

/// From pid 1.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToServer {
    /// The first line: serve this.
    Start(Box<Start>),
    /// Tell this to the site's server.
    Step(StepReport),
}

/// What the server needs.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    /// Node services, the one that answered first.
    pub(crate) urls: Vec<String>,
    /// The session's secret; none while no server knows of this boot.
    pub(crate) session: Option<String>,
    /// How it is asked for one.
    pub(crate) join: Option<Join>,
    /// Who it is in the swarm, and whom it knew last, while no server says so.
    pub(crate) membership: Option<Membership>,
    /// What boots read, while no server says so.
    pub(crate) trace: Option<Vec<u8>>,
    /// The site.
    pub(crate) site: SiteFile,
    /// The order; without the machine's identity, unless it is to be installed.
    pub(crate) order: BootOrder,
    /// The manifest's bytes, checked.
    pub(crate) manifest: Vec<u8>,
    /// Who the machine is, for a disk that it starts from.
    pub(crate) identity: Identity,
    /// The words of the kernel's command line that a later start has, too.
    pub(crate) words: Vec<String>,
}

/// What a machine says that started from its own disk, when its server is back.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Join {
    /// Its card.
    pub(crate) mac: MacAddress,
    /// All but the token.
    pub(crate) ask: SessionCreate,
}

/// To pid 1.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromServer {
    /// The device can be opened.
    Ready {
        /// Bytes that came over the network so far.
        bytes: u64,
        /// The device of the root's file system, when it is not its partition.
        root: Option<String>,
        /// Why what is to be kept is not.
        lost: Option<String>,
    },
    /// There will be no device.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Sends a line.
///
/// # Errors
/// When the other end is gone.
pub(crate) fn send(mut socket: &UnixStream, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    socket.write_all(&line)
}

/// Lines as they come.
pub(crate) struct Lines<'a> {
    reader: BufReader<&'a UnixStream>,
}

impl<'a> Lines<'a> {
    /// The lines from this socket.
    pub(crate) fn new(socket: &'a UnixStream) -> Self {
        Self {
            reader: BufReader::new(socket),
        }
    }

    /// The next line; `None` when the other end closed.
    ///
    /// # Errors
    /// When the socket fails, or the line is none of ours.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let mut line = Vec::new();
        let mut bounded = io::Read::take(&mut self.reader, LINE_BYTES_MAX);
        if bounded.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        serde_json::from_slice(&line)
            .map(Some)
            .map_err(io::Error::from)
    }
}
