//! The daemon as a member, a head: it gives machines the chunks of their versions out of
//! its store, and wants none itself.
//!
//! One listener serves all boot addresses. Whoever connects is told nothing and given
//! nothing that its session could not read over HTTP ([`super::readers`]), so a listener
//! for each address, as the other services have, would keep nobody out.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread,
    time::Instant,
};

use rootstock_core::{ChunkId, PeerId};
use rootstock_peer::{Holder, Member, Options, Peers, Proof, Tls, Verdict};
use rootstock_store::{ChunkStore, ReadError};
use rootstock_swarm::{Config, Whole};

use super::{SAME_CERTIFICATE, head_id, head_identity, readers::Readers};
use crate::{app::App, boot::services::lacks, http::chain, tls};

/// The daemon's membership, and when it got its certificate.
#[derive(Default)]
pub(in crate::boot) struct Head(Option<Instant>);

/// How it does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HeadFigures {
    pub(crate) connections: u64,
    /// Bytes of chunks.
    pub(crate) sent_bytes: u64,
    /// Questions for what the member may not have.
    pub(crate) refused: u64,
}

impl Head {
    /// Starts it where it does not run yet, as configured, and renews its certificate.
    /// What cannot be had is said, and tried again the next time.
    pub(in crate::boot) async fn follow(&mut self, app: &Arc<App>, keys: &Path) {
        let port = app.config.boot.swarm_port;
        let is_young = |certified: Instant| certified.elapsed() < SAME_CERTIFICATE;
        if port == 0 || self.0.is_some_and(is_young) {
            return;
        }
        let listen = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
        let (on, keys) = (Arc::clone(app), keys.to_owned());
        let started = tokio::task::spawn_blocking(move || follow(&on, &keys, listen)).await;
        match started {
            Ok(Ok(())) => self.0 = Some(Instant::now()),
            Ok(Err(text)) => lacks(app, &text),
            Err(error) => tracing::error!(%error, "starting the head of the swarm panicked"),
        }
    }

    /// Ends it.
    pub(in crate::boot) async fn end(self, app: &App) {
        app.boot.swarm.listens.store(false, Relaxed);
        let member = app.boot.swarm.head().take();
        let ended = tokio::task::spawn_blocking(move || drop(member)).await;
        if let Err(error) = ended {
            tracing::error!(%error, "ending the head of the swarm panicked");
        }
    }
}

/// Starts the member, or has it show a new certificate.
pub(in crate::boot) fn follow(app: &App, keys: &Path, listen: SocketAddr) -> Result<(), String> {
    let failed = |text: String| format!("no chunks for the machines of the swarm: {text}");
    let tls = identity(app, keys).map_err(failed)?;
    let mut head = app.boot.swarm.head();
    if let Some(member) = &*head {
        member.set_tls(tls);
        return Ok(());
    }
    let shelf = Arc::new(Shelf {
        store: app.store.clone(),
        readers: Arc::clone(&app.boot.swarm.readers),
    });
    let started = Member::start(options(app, tls, listen), shelf);
    let member = started.map_err(|error| {
        failed(format!(
            "{}: another program may have the port (see 'ss -lntp'); boot.swarm_port names \
             another, or 0 for none",
            chain(&error)
        ))
    })?;
    tracing::info!(port = member.port(), "members of the swarm are served");
    *head = Some(Arc::new(member));
    app.boot.swarm.listens.store(true, Relaxed);
    Ok(())
}

fn identity(app: &App, keys: &Path) -> Result<Tls, String> {
    let (certificates, key) = head_identity(app).map_err(|error| error.0.detail)?;
    let authority = tls::authority_pem(keys).map_err(|error| chain(&error))?;
    Tls::of(certificates, key, &authority).map_err(|error| chain(&error))
}

fn options(app: &App, tls: Tls, listen: SocketAddr) -> Options {
    Options {
        node: Config {
            id: head_id(app),
            // It is in none: it owns nothing, and sends to all alike.
            rack: String::new(),
            is_head: true,
            serves: true,
            copies: 0,
            upload_max: None,
            // It chooses nothing but whom it tells of whom.
            seed: 0,
        },
        listen: Some(listen),
        tls: Some(tls),
        // Who may do without is asked of the readers.
        takes_plain: true,
        workers: thread::available_parallelism().map_or(1, usize::from),
    }
}

/// The store, as far as members may read it.
struct Shelf {
    store: ChunkStore,
    readers: Arc<Readers>,
}

impl Holder for Shelf {
    fn admits(&self, peer: PeerId, address: IpAddr, proof: Proof) -> bool {
        self.readers.admits(peer, address, proof)
    }

    fn may_have(&self, peer: PeerId, chunk: ChunkId) -> bool {
        self.readers.may_have(peer, chunk)
    }

    fn load(&self, chunk: ChunkId) -> Option<Whole> {
        match self.store.frame(chunk) {
            Ok(frame) => Some(Whole {
                codec: frame.codec.to_byte(),
                raw_bytes: frame.raw_bytes,
                data: frame.bytes,
            }),
            Err(ReadError::Missing { .. }) => {
                tracing::error!(%chunk, "a chunk of a version is lost");
                None
            }
            Err(error) => {
                tracing::error!(%chunk, error = chain(&error), "a chunk for a member not read");
                None
            }
        }
    }

    /// It asks for none, so none comes.
    fn arrived(&self, _: ChunkId, _: &Whole, _: bool) -> Verdict {
        Verdict::Right
    }

    fn no_source(&self, _: ChunkId) {}

    fn lied(&self, _: PeerId) {}
}

impl HeadFigures {
    /// Of what the member counted, and how often it refused.
    pub(super) fn of(peers: &Peers, refused: u64) -> Self {
        Self {
            connections: peers.linked.len() as u64,
            sent_bytes: peers.counters.sent,
            refused,
        }
    }
}
