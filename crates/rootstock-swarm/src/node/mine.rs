//! What is held here, and what of it is to be.

use std::sync::Arc;

use rootstock_core::{ChunkId, Digest, PeerId};

use super::{Node, Payload};
use crate::bits::Bits;
use crate::holdings::Table;
use crate::time::Time;
use crate::wire::{BITS_BYTES_MAX, Message};

/// The most versions at once: a slot's number is a byte, and each costs every peer.
const VERSIONS_MAX: usize = 8;

/// What of a version is to be here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Goal {
    /// What is asked for, no more.
    Nothing,
    /// What this member owns besides.
    Owned,
    /// All of it.
    All,
}

/// A version.
pub(super) struct Mine {
    pub(super) table: Arc<Table>,
    pub(super) held: Bits,
    /// Those that are held or on their way.
    pub(super) taken: Bits,
    /// Those that were announced before they were held.
    pub(super) announced: Bits,
    pub(super) goal: Goal,
    /// How many peers hold each, heads left out.
    pub(super) holders: Vec<u16>,
    /// Where the search for owned chunks began: elsewhere than others', who may not know
    /// yet that this member is there.
    pub(super) start: usize,
    /// How far from there it is.
    pub(super) cursor: usize,
    /// The same, of what another owns first, from the end.
    pub(super) back: usize,
}

impl Mine {
    pub(super) fn is(&self, version: Digest) -> bool {
        self.table.version() == version
    }

    pub(super) fn count(&mut self, numbers: &[usize], more: bool) {
        for at in numbers {
            let Some(count) = self.holders.get_mut(*at) else {
                continue;
            };
            *count = if more {
                count.saturating_add(1)
            } else {
                count.saturating_sub(1)
            };
        }
    }

    /// All that is held, as messages.
    pub(super) fn said<P>(&self, slot: u8) -> Vec<Message<P>> {
        let mut said = vec![Message::Version {
            slot,
            version: self.table.version(),
            chunks: self.table.len() as u32,
        }];
        let mut first = 0;
        while first < self.table.len() {
            let bits = self.announced.bytes(first, BITS_BYTES_MAX);
            if bits.iter().any(|byte| *byte != 0) {
                let first = first as u32;
                said.push(Message::Held { slot, first, bits });
            }
            first += BITS_BYTES_MAX * 8;
        }
        said
    }
}

impl<P: Payload> Node<P> {
    /// Takes part in a version: holds these of its chunks, and fetches what `goal` says.
    /// The oldest version is left when there are too many.
    pub fn join(&mut self, now: Time, table: Arc<Table>, held: Bits, goal: Goal) {
        debug_assert_eq!(table.len(), held.len(), "a bit for each chunk");
        self.leave(now, table.version());
        if self.mine.len() == VERSIONS_MAX {
            let oldest = self.mine[0].table.version();
            self.leave(now, oldest);
        }
        let (start, back) = (self.rng.below(table.len()), table.len());
        let mut mine = Mine {
            holders: vec![0; table.len()],
            table,
            taken: held.clone(),
            announced: held.clone(),
            held,
            goal,
            start,
            cursor: 0,
            back,
        };
        for link in self.links.values().filter(|link| !link.is_head) {
            for slot in link.slots.values() {
                if !mine.is(slot.version) {
                    continue;
                }
                let all = slot.held.without(&Bits::new(0), 0, usize::MAX);
                mine.count(&all, true);
            }
        }
        self.mine.push(mine);
        self.renumber();
        self.pump(now);
    }

    /// Holds nothing of a version any more.
    fn leave(&mut self, now: Time, version: Digest) {
        if let Some(at) = self.mine.iter().position(|mine| mine.is(version)) {
            self.mine.remove(at);
            self.renumber();
            self.pump(now);
        }
    }

    /// A chunk is held from now on: [`super::Action::Load`] finds it.
    pub fn gained(&mut self, now: Time, chunk: ChunkId) {
        let mut is_news = false;
        for mine in &mut self.mine {
            if let Some(at) = mine.table.find(chunk) {
                mine.held.set(at);
                mine.taken.set(at);
                is_news |= mine.announced.set(at);
            }
        }
        if is_news {
            self.tell_all(chunk, true);
        }
        self.release(chunk);
        self.pump(now);
    }

    /// A chunk is not held any more.
    pub fn lost(&mut self, now: Time, chunk: ChunkId) {
        let mut is_news = false;
        for mine in &mut self.mine {
            if let Some(at) = mine.table.find(chunk) {
                mine.held.clear(at);
                mine.taken.clear(at);
                is_news |= mine.announced.clear(at);
            }
        }
        if is_news {
            self.tell_all(chunk, false);
        }
        self.release(chunk);
        self.pump(now);
    }

    /// Whether a chunk can be read here.
    pub(super) fn has(&self, chunk: ChunkId) -> bool {
        let held = |mine: &Mine| mine.table.find(chunk).is_some_and(|at| mine.held.has(at));
        self.config.is_head || self.mine.iter().any(held)
    }

    /// Whether a chunk is to be kept once it comes.
    pub(super) fn keeps(&self, chunk: ChunkId) -> bool {
        let goal = self
            .mine
            .iter()
            .filter(|mine| mine.table.find(chunk).is_some());
        match goal.map(|mine| mine.goal).max() {
            None | Some(Goal::Nothing) => false,
            Some(Goal::Owned) => self.owns(chunk),
            Some(Goal::All) => true,
        }
    }

    /// A chunk is on its way, or is not any more.
    pub(super) fn set_taken(&mut self, chunk: ChunkId, is_taken: bool) {
        for mine in &mut self.mine {
            if let Some(at) = mine.table.find(chunk) {
                if is_taken {
                    mine.taken.set(at);
                } else if !mine.held.has(at) {
                    mine.taken.clear(at);
                }
            }
        }
    }

    /// Says that a chunk can be had here, though not all of it is here yet.
    pub(super) fn announce(&mut self, chunk: ChunkId) {
        let mut is_news = false;
        for mine in &mut self.mine {
            if let Some(at) = mine.table.find(chunk) {
                is_news |= mine.announced.set(at);
            }
        }
        if is_news {
            self.tell_all(chunk, true);
        }
    }

    /// Takes that back, unless it is held.
    pub(super) fn unannounce(&mut self, chunk: ChunkId) {
        let mut is_news = false;
        for mine in &mut self.mine {
            if let Some(at) = mine.table.find(chunk) {
                is_news |= !mine.held.has(at) && mine.announced.clear(at);
            }
        }
        if is_news {
            self.tell_all(chunk, false);
        }
    }

    /// The slots stand for other versions now: all is said anew.
    fn renumber(&mut self) {
        let all: Vec<PeerId> = self.links.keys().copied().collect();
        for peer in all {
            if let Some(link) = self.links.get_mut(&peer).filter(|link| link.is_up) {
                link.control.retain(|message| {
                    !matches!(message, Message::Version { .. } | Message::Held { .. })
                });
                self.introduce(peer);
                self.ready(peer);
            }
        }
    }
}
