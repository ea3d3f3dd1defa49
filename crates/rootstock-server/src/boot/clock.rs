//! The site's clock: what time of the day it is for those who set hours.

use jiff::{SignedDuration, Timestamp, Zoned, tz::TimeZone};

/// The clock of this machine, in the site's time zone.
#[derive(Debug)]
pub(crate) struct SiteClock {
    zone: TimeZone,
    /// How far it is ahead of this machine's: nothing, but in tests.
    ahead: SignedDuration,
}

impl SiteClock {
    /// A clock in a time zone; UTC when it has no name or a wrong one, which the
    /// configuration does not let in.
    pub(crate) fn new(zone: Option<&str>) -> Self {
        let zone = zone.and_then(|name| TimeZone::get(name).ok());
        Self {
            zone: zone.unwrap_or(TimeZone::UTC),
            ahead: SignedDuration::ZERO,
        }
    }

    /// One that shows this time now, and goes on from there.
    #[cfg(test)]
    pub(crate) fn at(time: &Zoned) -> Self {
        Self {
            zone: time.time_zone().clone(),
            ahead: time.timestamp().duration_since(Timestamp::now()),
        }
    }

    pub(crate) fn now(&self) -> Zoned {
        let now = Timestamp::now();
        let ahead = now.checked_add(self.ahead).unwrap_or(now);
        ahead.to_zoned(self.zone.clone())
    }
}
