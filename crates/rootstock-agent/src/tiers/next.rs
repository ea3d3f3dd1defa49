//! The version that the machine is to run next: what it lacks of it is fetched while
//! the present one runs, as little of it as can be.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use bytes::Bytes;
use rootstock_api::boot::{FETCH_IDS_MAX, NextVersion};
use rootstock_api::record::{CODEC_DELTA, Record, Records};
use rootstock_core::ChunkId;
use rootstock_image::frame::{Codec, Decoder};
use rootstock_image::manifest::PageSource;
use rootstock_image::recipe::{Delta, Rebuilder};

use super::keeper::{Keeper, Local};
use super::plan::Plan;
use super::remember;
use crate::console;
use crate::order::{Site, TrustError};
use crate::service::{CallError, Service};

#[cfg(test)]
mod tests;

/// How long a source on the disk is waited for.
const SOURCE_LIMIT: Duration = Duration::from_secs(10);

/// Why a version is not on the disk yet.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NextError {
    /// The server did not answer, or said no.
    #[error("the next version cannot be fetched")]
    Call(#[from] CallError),
    /// What it gave is not what the site sealed.
    #[error("the next version is refused")]
    Trust(#[from] TrustError),
    /// Its pages make no sense.
    #[error("the next version's manifest cannot be read: {what}")]
    Manifest {
        /// What is wrong.
        what: String,
    },
    /// A chunk did not come, or came damaged, in every form.
    #[error("chunk {chunk} of the next version does not come whole")]
    Chunk {
        /// Its id.
        chunk: ChunkId,
    },
    /// There is no room.
    #[error("{lacking} chunks of the next version found no room on the machine's disk")]
    Full {
        /// How many.
        lacking: usize,
    },
}

/// What fetches another version than the one that runs; the network in production.
pub(crate) trait Upgrades: Send {
    /// The manifest's bytes and its seal in hex.
    fn manifest(&self, next: &NextVersion) -> Result<(Vec<u8>, String), CallError>;

    /// Records of these chunks of `next`, as deltas out of `from` where that is given.
    fn deltas(
        &self,
        from: Option<&str>,
        next: &NextVersion,
        ids: &[ChunkId],
    ) -> Result<Vec<u8>, CallError>;
}

/// The node service as it is reached for chunks.
pub(crate) struct ServiceUpgrades {
    /// The client.
    pub(crate) service: Service,
    /// Base URLs, best first.
    pub(crate) urls: Vec<String>,
}

impl ServiceUpgrades {
    /// The answer of the first server that gives one.
    fn first<T>(&self, ask: impl Fn(&str) -> Result<T, CallError>) -> Result<T, CallError> {
        let mut answer = ask(self.urls.first().map_or("", String::as_str));
        for url in self.urls.iter().skip(1) {
            answer = answer.or_else(|_| ask(url));
        }
        answer
    }
}

impl Upgrades for ServiceUpgrades {
    fn manifest(&self, next: &NextVersion) -> Result<(Vec<u8>, String), CallError> {
        self.first(|url| self.service.manifest_of(url, next))
    }

    fn deltas(
        &self,
        from: Option<&str>,
        next: &NextVersion,
        ids: &[ChunkId],
    ) -> Result<Vec<u8>, CallError> {
        self.first(|url| self.service.deltas(url, from, next, ids))
    }
}

/// What brings a version to the disk.
pub(crate) struct Upgrade<U> {
    /// Where it comes from.
    pub(crate) upgrades: U,
    /// Who must have sealed it.
    pub(crate) site: Site,
    /// The version that runs, as `lab:3`.
    pub(crate) runs: String,
}

impl<U: Upgrades> Upgrade<U> {
    /// Fetches what the disk lacks of a version; gives the bytes that travelled.
    /// `pace` is called with the bytes of each answer and waits as the site asks.
    ///
    /// # Errors
    /// [`NextError`]; what came stays, and the next try goes on from there.
    pub(crate) fn fetch(
        &self,
        disk: &Keeper,
        next: &NextVersion,
        pace: &dyn Fn(u64),
    ) -> Result<u64, NextError> {
        let fetched = Cell::new(0);
        let (bytes, seal) = self.upgrades.manifest(next)?;
        fetched.set(bytes.len() as u64);
        let manifest = self.site.sealed(&bytes, &seal, next)?;
        let fetch = Fetching {
            upgrade: self,
            disk,
            next,
            pace,
            fetched: &fetched,
            decoder: RefCell::default(),
            rebuilder: RefCell::default(),
        };
        let plan = Plan::walk(&manifest, &fetch).map_err(|error| NextError::Manifest {
            what: console::chain(&error),
        })?;
        // Nothing of it is forgotten while it comes, nor of what is kept already.
        let kept = remember::versions(disk.cache());
        let kept = remember::needed_by(disk.cache(), &kept);
        disk.cache().set_needed(plan.needed().chain(kept));
        let lacking = || {
            let chunks = plan.chunks().iter().map(|planned| planned.chunk);
            chunks.filter(|chunk| !disk.has(*chunk)).collect::<Vec<_>>()
        };
        for ids in lacking().chunks(FETCH_IDS_MAX) {
            fetch.all(ids)?;
        }
        // Who pulls the plug now has all of it.
        disk.settle();
        match lacking().len() {
            0 => Ok(fetched.get()),
            lacking => Err(NextError::Full { lacking }),
        }
    }
}

/// One version on its way.
struct Fetching<'a, U> {
    upgrade: &'a Upgrade<U>,
    disk: &'a Keeper,
    next: &'a NextVersion,
    pace: &'a dyn Fn(u64),
    fetched: &'a Cell<u64>,
    decoder: RefCell<Decoder>,
    rebuilder: RefCell<Rebuilder>,
}

impl<U: Upgrades> Fetching<'_, U> {
    /// Brings all these chunks to the disk: as deltas, and what cannot be rebuilt as
    /// frames.
    fn all(&self, ids: &[ChunkId]) -> Result<(), NextError> {
        let mut left = ids.to_vec();
        for from in [Some(self.upgrade.runs.as_str()), None] {
            while !left.is_empty() {
                let before = left.len();
                self.some(from, &mut left)?;
                if left.len() == before {
                    break;
                }
            }
        }
        match left.first() {
            Some(chunk) => Err(NextError::Chunk { chunk: *chunk }),
            None => Ok(()),
        }
    }

    /// Asks once, and keeps what came whole.
    fn some(&self, from: Option<&str>, left: &mut Vec<ChunkId>) -> Result<(), NextError> {
        (self.pace)(0);
        let body = self.upgrade.upgrades.deltas(from, self.next, left)?;
        self.fetched.set(self.fetched.get() + body.len() as u64);
        for record in Records::new(&body).map_while(Result::ok) {
            let Some(at) = left.iter().position(|id| *id == record.chunk) else {
                continue;
            };
            if let Some(raw) = self.raw(&record) {
                left.swap_remove(at);
                self.disk.store(record.chunk, raw.into());
            }
        }
        (self.pace)(body.len() as u64);
        Ok(())
    }

    /// A record's chunk, checked against its id.
    fn raw(&self, record: &Record<'_>) -> Option<Vec<u8>> {
        if record.codec != CODEC_DELTA {
            let codec = Codec::from_byte(record.codec)?;
            let mut decoder = self.decoder.borrow_mut();
            let raw = decoder.decode(record.chunk, record.raw_bytes, codec, record.frame);
            return raw.ok();
        }
        let delta = Delta::decode(record.frame, record.raw_bytes).ok()?;
        let mut rebuilder = self.rebuilder.borrow_mut();
        rebuilder
            .rebuild(record.chunk, &delta, |source| local(self.disk, source))
            .ok()
    }
}

/// What is not on the disk.
#[derive(Debug, thiserror::Error)]
#[error("it is not on this machine's disk")]
struct NotHere;

/// A chunk from the disk alone.
fn local(disk: &Keeper, chunk: ChunkId) -> Result<Bytes, NotHere> {
    match disk.read(chunk) {
        Local::Here(raw) => Ok(raw),
        Local::Late(late) => match disk.wait(late, SOURCE_LIMIT) {
            Ok(Local::Here(raw)) => Ok(raw),
            _ => Err(NotHere),
        },
        Local::Lacking => Err(NotHere),
    }
}

impl<U: Upgrades> PageSource for Fetching<'_, U> {
    type Error = NextError;
    type Bytes = Bytes;

    fn page(&self, id: ChunkId) -> Result<Bytes, NextError> {
        if let Ok(page) = local(self.disk, id) {
            return Ok(page);
        }
        self.all(&[id])?;
        // It waits to be written, and can be read meanwhile.
        local(self.disk, id).map_err(|_| NextError::Chunk { chunk: id })
    }
}
