//! Who gave others what they had not asked for. One machine's word is not believed: it may
//! be the liar.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use rootstock_core::PeerId;

/// Machines that have to say it of another.
const ACCUSERS: usize = 3;

/// For how long an accusation counts, and for how long others are not told of a liar then.
const LEFT_OUT: Duration = Duration::from_secs(600);

/// What was said of members.
#[derive(Debug, Default)]
pub(super) struct Liars(HashMap<PeerId, Accused>);

#[derive(Debug, Default)]
struct Accused {
    /// Who accused it and when, at most [`ACCUSERS`].
    by: Vec<(PeerId, Instant)>,
    left_out_until: Option<Instant>,
}

impl Accused {
    fn tidy(&mut self, now: Instant) {
        self.by
            .retain(|(_, at)| now.saturating_duration_since(*at) < LEFT_OUT);
        self.left_out_until = self.left_out_until.filter(|until| *until > now);
    }
}

impl Liars {
    /// One member accuses another. Says whether the other is left out from now on.
    pub(super) fn accuse(&mut self, accused: PeerId, by: PeerId, now: Instant) -> bool {
        // Who is left out itself is not believed.
        if accused == by || self.left_out(by, now).is_some() {
            return false;
        }
        let accused = self.0.entry(accused).or_default();
        accused.tidy(now);
        if accused.left_out_until.is_some() {
            return false;
        }
        accused.by.retain(|(other, _)| *other != by);
        accused.by.push((by, now));
        if accused.by.len() < ACCUSERS {
            return false;
        }
        accused.by.clear();
        accused.left_out_until = Some(now + LEFT_OUT);
        true
    }

    /// For how long others are not told of a member, if so.
    pub(super) fn left_out(&self, id: PeerId, now: Instant) -> Option<Duration> {
        let until = self.0.get(&id)?.left_out_until?;
        until
            .checked_duration_since(now)
            .filter(|rest| !rest.is_zero())
    }

    /// Forgets what is over.
    pub(super) fn tidy(&mut self, now: Instant) {
        self.0.retain(|_, accused| {
            accused.tidy(now);
            !accused.by.is_empty() || accused.left_out_until.is_some()
        });
    }
}
