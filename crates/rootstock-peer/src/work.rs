//! What takes time: chunks are read and checked by threads of their own.

use std::io;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use bytes::Bytes;
use rootstock_core::{ChunkId, PeerId};
use rootstock_swarm::Whole;

use crate::member::{Command, Post};

/// What became of a chunk that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is not what was asked for.
    Wrong,
    /// It is, and was handed on.
    Right,
    /// It is, and can be read here from now on.
    Kept,
}

/// What the other end of a connection showed for who it says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// A certificate of the site for that name.
    Certificate,
    /// Nothing: the connection does without.
    Nothing,
}

/// Where chunks are kept, and who waits for them. Called by several threads.
pub trait Holder: Send + Sync + 'static {
    /// Whether a member is spoken to that says it is `peer`, at this address. The loop
    /// waits for the answer.
    fn admits(&self, peer: PeerId, address: IpAddr, proof: Proof) -> bool {
        let _ = (peer, address, proof);
        true
    }

    /// Whether a member may have a chunk that it asks for by its id. The loop waits for
    /// the answer. Runs are of versions that this member takes part in itself: nobody is
    /// asked about those.
    fn may_have(&self, peer: PeerId, chunk: ChunkId) -> bool {
        let _ = (peer, chunk);
        true
    }

    /// Reads a chunk that is held, as it is to travel.
    fn load(&self, chunk: ChunkId) -> Option<Whole>;

    /// A chunk came: it is checked, and goes to whoever waits; it is kept where `keep`
    /// says so and there is room. Its bytes have a buffer of their own.
    fn arrived(&self, chunk: ChunkId, whole: &Whole, keep: bool) -> Verdict;

    /// A chunk that came is done with. Who began to wait for it after it was given to all
    /// who waited, and before this, has to ask again: nothing more comes.
    fn settled(&self, chunk: ChunkId) {
        let _ = chunk;
    }

    /// Nobody who is reached has this chunk by now.
    fn no_source(&self, chunk: ChunkId);

    /// A member gave what was not what was asked for.
    fn lied(&self, peer: PeerId);
}

/// Something to do.
pub(crate) enum Job {
    Load(ChunkId),
    Check {
        chunk: ChunkId,
        peer: PeerId,
        request: u32,
        codec: u8,
        raw_bytes: u32,
        pieces: Vec<Bytes>,
        keep: bool,
    },
}

/// The threads.
pub(crate) struct Workers {
    jobs: Sender<Job>,
}

impl Workers {
    /// Starts `count` threads that end with this.
    pub(crate) fn start(count: usize, holder: &Arc<dyn Holder>, post: &Post) -> io::Result<Self> {
        let (jobs, work) = channel();
        let work = Arc::new(Mutex::new(work));
        for number in 0..count {
            let (work, holder, post) = (Arc::clone(&work), Arc::clone(holder), post.clone());
            thread::Builder::new()
                .name(format!("peer-work-{number}"))
                .spawn(move || run(&work, &*holder, &post))?;
        }
        Ok(Self { jobs })
    }

    /// Has something done. The state machine bounds how much there is at once.
    pub(crate) fn give(&self, job: Job) {
        // They end after this.
        let _ = self.jobs.send(job);
    }
}

fn run(work: &Mutex<Receiver<Job>>, holder: &dyn Holder, post: &Post) {
    loop {
        let next = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else {
            return;
        };
        let command = done(job, holder);
        let liar = match &command {
            Command::Checked {
                peer,
                verdict: Verdict::Wrong,
                ..
            } => Some(*peer),
            _ => None,
        };
        post.send(command);
        // Told when the loop will know it before anything that is asked of it after.
        if let Some(liar) = liar {
            holder.lied(liar);
        }
    }
}

fn done(job: Job, holder: &dyn Holder) -> Command {
    match job {
        Job::Load(chunk) => {
            let whole = holder.load(chunk);
            Command::Loaded { chunk, whole }
        }
        Job::Check {
            chunk,
            peer,
            request,
            codec,
            raw_bytes,
            pieces,
            keep,
        } => {
            let whole = Whole {
                codec,
                raw_bytes,
                data: joined(&pieces),
            };
            let verdict = holder.arrived(chunk, &whole, keep);
            Command::Checked {
                chunk,
                peer,
                request,
                verdict,
                keep,
            }
        }
    }
}

/// One stretch of bytes, in a buffer of its own: those that they came in hold other
/// things, too, and would live as long as a chunk that is kept.
fn joined(pieces: &[Bytes]) -> Bytes {
    pieces.concat().into()
}
