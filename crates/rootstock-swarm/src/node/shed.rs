//! Who waits here for what others have by now, and have less to do, is sent there.
//!
//! Heads give each owner its chunks at random times, and each is wanted by all at once: of
//! sixteen members that fill, a third has nothing to send at any moment, while others have
//! a second's work before them. Only who has it knows how long that is, and to whom it
//! gave a chunk already.

use std::collections::BTreeMap;

use rootstock_core::{ChunkId, PeerId};

use super::{Link, Node, Payload};
use crate::time::{Span, Time};
use crate::wire::{Message, Refusal};

/// From so much to do on.
const FROM: Span = Span::millis(150);

/// To whom takes at most one in so many parts of the time that it would take here.
const PART: u64 = 2;

/// How many are looked at in one go.
const SCAN: usize = 512;

impl<P: Payload> Node<P> {
    /// Sends some elsewhere who would wait for `delay` here.
    pub(super) fn shed(&mut self, now: Time, mut delay: Span) {
        if self.config.is_head || delay < FROM {
            return;
        }
        let each = self.serving.each();
        let waiting: Vec<_> = self.serving.may_go_elsewhere().take(SCAN).collect();
        let mut holders = BTreeMap::new();
        for (peer, request, chunk) in waiting {
            let holders = holders
                .entry(chunk)
                .or_insert_with(|| self.others_with(now, chunk));
            let others = holders.iter().filter(|other| **other != peer);
            let waits =
                others.filter_map(|other| Some((self.links.get(other)?.wait(each), *other)));
            let Some((wait, other)) = waits.min_by_key(|(wait, _)| *wait) else {
                continue;
            };
            if wait.0 * PART > delay.0 {
                continue;
            }
            if let Some(link) = self.links.get_mut(&other) {
                link.sent_there += 1;
            }
            self.send_elsewhere(peer, request, chunk, other);
            delay = Span(delay.0.saturating_sub(each.0));
            if delay < FROM {
                return;
            }
        }
    }

    fn send_elsewhere(&mut self, peer: PeerId, request: u32, chunk: ChunkId, other: PeerId) {
        self.finish(peer, request);
        self.settle(chunk);
        self.release(chunk);
        let (why, hint) = (Refusal::Elsewhere, Some(other));
        self.say(peer, Message::Refuse { request, why, hint });
    }

    /// Members of this rack that hold a chunk. Which is the first is left to chance: all
    /// who send somebody elsewhere at that time see the same members idle.
    fn others_with(&mut self, now: Time, chunk: ChunkId) -> Vec<PeerId> {
        let rack = &self.config.rack;
        let may = |link: &Link<P>| {
            let is_near = link.is_up && !link.is_head && link.rack == *rack;
            is_near && link.serves && !link.is_avoided(now)
        };
        let near = self.links.iter().filter(|(_, link)| may(link));
        let mut near: Vec<PeerId> = near.map(|(peer, _)| *peer).collect();
        near.retain(|peer| self.holds(*peer, chunk));
        if !near.is_empty() {
            let first = self.rng.below(near.len());
            near.rotate_left(first);
        }
        near
    }
}

impl<P> Link<P> {
    /// How long somebody waits who is sent there now.
    fn wait(&self, each: Span) -> Span {
        Span(self.told().0 + u64::from(self.sent_there) * each.0)
    }
}
