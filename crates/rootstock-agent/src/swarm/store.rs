//! What this machine has for others: on its disk, or in a bounded part of its memory.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use rootstock_core::{ChunkId, PeerId};
use rootstock_image::frame::{Codec, Decoder, Encoder, Frame};
use rootstock_peer::{Holder, Proof, Verdict};
use rootstock_swarm::{Bits, Table, Whole};

use super::{bits_of, lock};
use crate::tiers::keeper::{Keeper, Local};

/// How long a chunk waits for room to be written, before it is done without.
const ROOM_LIMIT: Duration = Duration::from_millis(200);

/// How long a slow disk is waited for on behalf of others.
const READ_LIMIT: Duration = Duration::from_secs(1);

/// A chunk that came, checked: as it travelled, and its raw bytes.
pub(super) type Found = (Frame, Bytes);

/// What came for somebody here: nothing when nobody reached has it.
pub(super) type Came = (ChunkId, Option<Found>);

/// Who waits, by number.
type Waiter = (u64, Sender<Came>);

/// The chunks, and who waits for which.
#[derive(Default)]
pub(super) struct Store {
    disk: OnceLock<Arc<Keeper>>,
    memory: Mutex<Memory>,
    /// By the number of who waits.
    waiting: Mutex<HashMap<ChunkId, Vec<Waiter>>>,
    waiters: AtomicU64,
    liars: Mutex<Vec<PeerId>>,
    decoders: Mutex<Vec<Decoder>>,
    encoders: Mutex<Vec<Encoder>>,
    /// Bytes that came to be kept, since somebody looked.
    filled: AtomicU64,
    /// Whether machines are answered that nobody knows.
    takes_guests: AtomicBool,
}

/// Frames for others, on a machine without a disk for them.
#[derive(Default)]
struct Memory {
    frames: HashMap<ChunkId, Whole>,
    bytes: u64,
    bytes_max: u64,
    /// Whether a chunk found no room.
    is_full: bool,
}

impl Store {
    pub(super) fn attach(&self, disk: Arc<Keeper>) {
        // There is one.
        let _ = self.disk.set(disk);
    }

    pub(super) fn has_disk(&self) -> bool {
        self.disk.get().is_some()
    }

    pub(super) fn set_memory_max(&self, bytes: u64) {
        let mut memory = lock(&self.memory);
        memory.bytes_max = bytes;
        memory.is_full = false;
    }

    /// How much memory chunks may have, once one found no room.
    pub(super) fn memory_full_bytes(&self) -> Option<u64> {
        let memory = lock(&self.memory);
        memory.is_full.then_some(memory.bytes_max)
    }

    /// Whether machines are answered that nobody knows: what is here is no secret then.
    pub(super) fn set_takes_guests(&self, takes: bool) {
        self.takes_guests.store(takes, Ordering::Relaxed);
    }

    /// Which of a version's chunks are here.
    pub(super) fn held(&self, table: &Table) -> Bits {
        let memory = lock(&self.memory);
        let on_disk = |chunk| self.disk.get().is_some_and(|disk| disk.has(chunk));
        bits_of(table, |chunk| {
            memory.frames.contains_key(&chunk) || on_disk(chunk)
        })
    }

    pub(super) fn take_liars(&self) -> Vec<PeerId> {
        std::mem::take(&mut *lock(&self.liars))
    }

    pub(super) fn take_filled(&self) -> u64 {
        self.filled.swap(0, Ordering::Relaxed)
    }

    /// The number of somebody who waits.
    pub(super) fn waiter(&self) -> u64 {
        self.waiters.fetch_add(1, Ordering::Relaxed)
    }

    /// Has `sender` told when this comes.
    pub(super) fn wait(&self, number: u64, chunk: ChunkId, sender: &Sender<Came>) {
        let mut waiting = lock(&self.waiting);
        let waiters = waiting.entry(chunk).or_default();
        waiters.push((number, sender.clone()));
    }

    /// This one waits no more; those of the chunks for which nobody does now.
    pub(super) fn give_up(&self, number: u64, ids: &[ChunkId]) -> Vec<ChunkId> {
        let mut waiting = lock(&self.waiting);
        let mut unwanted = Vec::new();
        for id in ids {
            let Some(waiters) = waiting.get_mut(id) else {
                continue;
            };
            waiters.retain(|(other, _)| *other != number);
            if waiters.is_empty() {
                waiting.remove(id);
                unwanted.push(*id);
            }
        }
        unwanted
    }

    /// A chunk that this machine holds in its memory for others.
    pub(super) fn own(&self, chunk: ChunkId) -> Option<Found> {
        let whole = lock(&self.memory).frames.get(&chunk).cloned()?;
        let raw = self.raw(chunk, &whole)?;
        Some((frame(chunk, &whole)?, raw))
    }

    /// The raw bytes, if it is the chunk that it should be.
    fn raw(&self, chunk: ChunkId, whole: &Whole) -> Option<Bytes> {
        let codec = Codec::from_byte(whole.codec)?;
        let mut decoder = lock(&self.decoders).pop().unwrap_or_default();
        let raw = decoder.decode(chunk, whole.raw_bytes, codec, &whole.data);
        lock(&self.decoders).push(decoder);
        Some(raw.ok()?.into())
    }

    /// Whether it is the chunk that it should be.
    fn is_right(&self, chunk: ChunkId, whole: &Whole) -> bool {
        let Some(codec) = Codec::from_byte(whole.codec) else {
            return false;
        };
        let mut decoder = lock(&self.decoders).pop().unwrap_or_default();
        let checked = decoder.check(chunk, whole.raw_bytes, codec, &whole.data);
        lock(&self.decoders).push(decoder);
        checked.is_ok()
    }

    /// Gives what came to whoever waits, of whom mostly there are none.
    fn tell(&self, chunk: ChunkId, came: impl Fn() -> Option<Found>) {
        let senders = lock(&self.waiting).remove(&chunk).unwrap_or_default();
        for (_, sender) in senders {
            // Who waited may be gone.
            let _ = sender.send((chunk, came()));
        }
    }

    fn keep(&self, chunk: ChunkId, whole: &Whole, raw: Option<&Bytes>) -> bool {
        self.filled
            .fetch_add(whole.data.len() as u64, Ordering::Relaxed);
        if let Some((disk, raw)) = self.disk.get().zip(raw) {
            return disk.store_within(chunk, raw.clone(), ROOM_LIMIT);
        }
        let mut memory = lock(&self.memory);
        let len = whole.data.len() as u64;
        if memory.bytes + len > memory.bytes_max {
            memory.is_full = true;
            return false;
        }
        if memory.frames.insert(chunk, whole.clone()).is_none() {
            memory.bytes += len;
        }
        true
    }
}

impl Holder for Store {
    fn admits(&self, peer: PeerId, _: IpAddr, _: Proof) -> bool {
        !peer.is_guest() || self.takes_guests.load(Ordering::Relaxed)
    }

    fn load(&self, chunk: ChunkId) -> Option<Whole> {
        if let Some(whole) = lock(&self.memory).frames.get(&chunk) {
            return Some(whole.clone());
        }
        let disk = self.disk.get()?;
        let raw = match disk.read(chunk) {
            Local::Here(raw) => raw,
            Local::Late(late) => match disk.wait(late, READ_LIMIT) {
                Ok(Local::Here(raw)) => raw,
                _ => return None,
            },
            Local::Lacking => return None,
        };
        // Links are narrower than this is slow.
        let mut encoder = lock(&self.encoders).pop().unwrap_or_default();
        let frame = encoder.encode(chunk, &raw);
        lock(&self.encoders).push(encoder);
        Some(Whole {
            codec: frame.codec.to_byte(),
            raw_bytes: frame.raw_bytes,
            data: frame.bytes.into(),
        })
    }

    fn arrived(&self, chunk: ChunkId, whole: &Whole, keep: bool) -> Verdict {
        // What only travels on is kept as it came.
        let is_read = self.has_disk() || lock(&self.waiting).contains_key(&chunk);
        let raw = is_read.then(|| self.raw(chunk, whole)).flatten();
        if raw.is_none() && (is_read || !self.is_right(chunk, whole)) {
            return Verdict::Wrong;
        }
        let is_kept = keep && self.keep(chunk, whole, raw.as_ref());
        self.tell(chunk, || {
            let raw = raw.clone().or_else(|| self.raw(chunk, whole))?;
            Some((frame(chunk, whole)?, raw))
        });
        if is_kept {
            Verdict::Kept
        } else {
            Verdict::Right
        }
    }

    fn settled(&self, chunk: ChunkId) {
        self.tell(chunk, || None);
    }

    fn no_source(&self, chunk: ChunkId) {
        self.tell(chunk, || None);
    }

    fn lied(&self, peer: PeerId) {
        lock(&self.liars).push(peer);
    }
}

/// A chunk as it is stored.
fn frame(chunk: ChunkId, whole: &Whole) -> Option<Frame> {
    Some(Frame {
        chunk,
        raw_bytes: whole.raw_bytes,
        codec: Codec::from_byte(whole.codec)?,
        bytes: whole.data.to_vec(),
    })
}
