//! Chunks for an installation: as gently as the fill brings them, and from the same places.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use bytes::Bytes;
use rootstock_core::ChunkId;
use rootstock_image::grid::ChunkSpan;
use rootstock_store::ReadError;
use rootstock_volume::{BlockError, ChunkSource, VersionDisk};

use super::Installation;
use super::layout::Source;
use crate::remote::{Asker, Fetch};
use crate::tiers::Tiers;
use crate::tiers::keeper::Local;
use crate::tiers::pace::{CALM, LOOK_EVERY};

/// Chunks fetched at once when nobody waits for anything.
const BATCH_MAX: usize = 32;

/// The version that runs, and where its chunks come from.
pub(crate) struct Chunks<F, S> {
    /// All places of chunks.
    pub(crate) tiers: Arc<Tiers<F>>,
    /// Which chunk is where.
    pub(crate) version: VersionDisk<S>,
}

/// The same, whatever it is made of.
pub(crate) trait Bring: Send + Sync {
    /// The chunk in a place.
    fn chunk_at(&self, span: ChunkSpan) -> Result<ChunkId, BlockError>;

    /// Whether the machine's user waits for something.
    fn is_busy(&self) -> bool;

    /// Brings chunks, at most [`BATCH_MAX`]; the bytes that travelled.
    fn bring(
        &self,
        ids: &[ChunkId],
        each: &mut dyn FnMut(ChunkId, Bytes),
    ) -> Result<u64, ReadError>;
}

impl<F: Fetch + 'static, S: ChunkSource + 'static> Bring for Chunks<F, S> {
    fn chunk_at(&self, span: ChunkSpan) -> Result<ChunkId, BlockError> {
        self.version.chunk(span)
    }

    fn is_busy(&self) -> bool {
        self.tiers.is_booting() || self.tiers.foreground().is_busy(CALM)
    }

    fn bring(
        &self,
        ids: &[ChunkId],
        each: &mut dyn FnMut(ChunkId, Bytes),
    ) -> Result<u64, ReadError> {
        let mut left = Vec::with_capacity(ids.len());
        for id in ids {
            match self.tiers.disk().map(|disk| disk.read(*id)) {
                Some(Local::Here(raw)) => each(*id, raw),
                _ => left.push(*id),
            }
        }
        if left.is_empty() {
            return Ok(0);
        }
        // Who asks for one of them meanwhile waits for it.
        let flights = left.iter().map(|id| self.tiers.flights().lead(*id));
        let flights: Vec<_> = flights.flatten().collect();
        let mut bytes = 0;
        self.tiers
            .remote()
            .frames(&left, Asker::Ahead, |frame, raw| {
                bytes += frame.bytes.len() as u64;
                let raw = Bytes::from(raw);
                let flight = flights.iter().find(|one| one.chunk() == frame.chunk);
                if let Some(flight) = flight {
                    flight.land(raw.clone());
                }
                if let Some(disk) = self.tiers.disk() {
                    disk.offer(frame.chunk, raw.clone());
                }
                each(frame.chunk, raw);
            })?;
        Ok(bytes)
    }
}

/// What brings the chunks of one installation, at its pace.
pub(super) struct Paced<'a> {
    pub(super) chunks: &'a dyn Bring,
    pub(super) installation: &'a Installation,
}

impl Source for Paced<'_> {
    fn chunk_at(&self, span: ChunkSpan) -> Result<ChunkId, BlockError> {
        self.chunks.chunk_at(span)
    }

    fn wait_turn(&self, number: usize) {
        self.installation.pace.allowed();
        // One of them always goes on, chunk by chunk.
        while number > 0 && self.chunks.is_busy() {
            thread::sleep(LOOK_EVERY);
            self.installation.pace.allowed();
        }
    }

    fn fetch(
        &self,
        ids: &[ChunkId],
        each: &mut dyn FnMut(ChunkId, Bytes) -> io::Result<()>,
    ) -> Result<io::Result<()>, ReadError> {
        let mut left = ids;
        while !left.is_empty() {
            let mbit_max = self.installation.pace.allowed();
            let size = match self.chunks.is_busy() {
                true => 1,
                false => left.len().min(BATCH_MAX),
            };
            let (batch, rest) = left.split_at(size);
            let began = Instant::now();
            let mut done = Ok(());
            let bytes = self.chunks.bring(batch, &mut |id, raw| {
                if done.is_ok() {
                    done = each(id, raw);
                }
            })?;
            if done.is_err() {
                return Ok(done);
            }
            self.installation.fetched(bytes);
            self.installation.pace.hold(mbit_max, bytes, began);
            left = rest;
        }
        Ok(Ok(()))
    }

    fn is_there(&self, bytes: u64, written_bytes: u64) {
        self.installation.is_there(bytes, written_bytes);
    }
}
