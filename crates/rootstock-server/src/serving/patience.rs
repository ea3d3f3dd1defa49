//! Whether it is worth to look for the next request for a moment before going to sleep.
//!
//! To wake a thread on another processor takes as long as some requests take to answer, in
//! a virtual machine several times as long: a client that asks again at once when it
//! was answered would wait for that each time. So a connection whose requests have lately
//! followed closely looks for a moment, and gives its processor to whoever wants it
//! meanwhile; one whose requests have not goes to sleep at once, and costs nothing.

use std::time::Duration;

/// How long it looks. A request that comes later was not waiting for this thread.
const MOMENT: Duration = Duration::from_micros(100);
/// So many requests have to follow closely before it looks, and at most so many more may
/// then come late until it stops.
const ENOUGH: u8 = 8;
const MOST: u8 = 16;

/// How closely requests have followed lately.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    close: u8,
}

impl Patience {
    /// Whether it is worth to look again, after so long.
    pub(crate) fn looks(&self, waited: Duration) -> bool {
        self.close >= ENOUGH && waited < MOMENT
    }

    /// The next request, or something else, came after so long.
    pub(crate) fn followed(&mut self, waited: Duration) {
        self.close = if waited < MOMENT {
            (self.close + 1).min(MOST)
        } else if self.close >= ENOUGH {
            self.close - 1
        } else {
            0
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_only_while_requests_follow_closely() {
        let (soon, late) = (MOMENT / 2, MOMENT * 2);
        let mut patience = Patience::default();
        for _ in 0..ENOUGH {
            assert!(!patience.looks(Duration::ZERO));
            patience.followed(soon);
        }
        assert!(patience.looks(soon) && !patience.looks(MOMENT));
        // One that is late among many is forgiven; many are not.
        for _ in 0..MOST {
            patience.followed(soon);
        }
        patience.followed(late);
        assert!(patience.looks(soon));
        for _ in ENOUGH..=MOST {
            patience.followed(late);
        }
        assert!(!patience.looks(Duration::ZERO));
        // And they have to begin anew.
        patience.followed(late);
        patience.followed(soon);
        assert!(!patience.looks(Duration::ZERO));
    }
}
