//! Hours of each day: `22:00-06:00`, or several parts with commas between them.
//!
//! They are of the wall clock, in whatever place the reader has in mind: this
//! type knows no dates and no time zones. A part that ends before it begins goes
//! past midnight. However they were written, the same minutes are the same hours.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A day, in minutes of the wall clock.
pub const DAY_MINUTES: u16 = 24 * 60;

/// The most parts as written.
pub const HOUR_PARTS_MAX: usize = 24;

/// Why a text is not hours of each day.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HoursError {
    /// A part that is none.
    #[error("'{}' is not a part of the day: write 22:00-06:00, or several with commas between them", part.escape_debug())]
    Part {
        /// What was written.
        part: String,
    },
    /// A part that ends when it begins.
    #[error("'{}' ends when it begins: write 00:00-24:00 for all day", part.escape_debug())]
    Empty {
        /// What was written.
        part: String,
    },
    /// Too many parts.
    #[error("there are more than {HOUR_PARTS_MAX} parts of the day: join some")]
    TooMany,
}

/// Hours of each day, at least one minute of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DailyHours(Vec<Part>);

/// In minutes since midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Part {
    /// The first minute.
    from: u16,
    /// The first minute after it, 24:00 included; less than `from` past midnight.
    until: u16,
}

impl DailyHours {
    /// Whether a minute of the day, counted from midnight, is in them.
    #[must_use]
    pub fn contains(&self, minute: u16) -> bool {
        let minute = minute % DAY_MINUTES;
        self.0.iter().any(|part| part.contains(minute))
    }

    /// In how many minutes that will be otherwise: at least one, less than a day.
    /// `None` when they are all of the day.
    #[must_use]
    pub fn minutes_until_change(&self, minute: u16) -> Option<u16> {
        let minute = minute % DAY_MINUTES;
        let until = |other: u16| (other + DAY_MINUTES - minute) % DAY_MINUTES;
        match self.0.iter().find(|part| part.contains(minute)) {
            Some(part) if part.is_all() => None,
            Some(part) => Some(until(part.until)),
            None => self.0.iter().map(|part| until(part.from)).min(),
        }
    }

    /// The parts of a day whose minutes are given, joined where they meet.
    fn of(minutes: &[bool; DAY_MINUTES as usize]) -> Self {
        if minutes.iter().all(|is_in| *is_in) {
            return Self(vec![Part::ALL]);
        }
        let is_in = |minute: u16| minutes[usize::from(minute % DAY_MINUTES)];
        let begins = |minute: &u16| is_in(*minute) && !is_in(minute + DAY_MINUTES - 1);
        let part = |from: u16| {
            let mut end = from;
            while is_in(end) {
                end += 1;
            }
            let until = if end > DAY_MINUTES {
                end - DAY_MINUTES
            } else {
                end
            };
            Part { from, until }
        };
        Self((0..DAY_MINUTES).filter(begins).map(part).collect())
    }
}

impl Part {
    const ALL: Self = Self {
        from: 0,
        until: DAY_MINUTES,
    };

    fn is_all(self) -> bool {
        self == Self::ALL
    }

    fn contains(self, minute: u16) -> bool {
        if self.from < self.until {
            (self.from..self.until).contains(&minute)
        } else {
            minute >= self.from || minute < self.until
        }
    }

    fn parse(text: &str) -> Result<Self, HoursError> {
        let shown = || text.chars().take(32).collect();
        let (from, until) = text.split_once('-').unwrap_or((text, ""));
        let from = minute(from.trim()).filter(|minute| *minute < DAY_MINUTES);
        let Some((from, until)) = from.zip(minute(until.trim())) else {
            return Err(HoursError::Part { part: shown() });
        };
        if from == until {
            return Err(HoursError::Empty { part: shown() });
        }
        let until = if until == 0 { DAY_MINUTES } else { until };
        Ok(Self { from, until })
    }
}

/// Minutes since midnight of `6:00`, `06:00` or `24:00`.
fn minute(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(hours) || !digits(minutes) || hours.len() > 2 || minutes.len() != 2 {
        return None;
    }
    let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
    let minute = hours * 60 + minutes;
    (minutes < 60 && minute <= DAY_MINUTES).then_some(minute)
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, until } = self;
        write!(
            f,
            "{:02}:{:02}-{:02}:{:02}",
            from / 60,
            from % 60,
            until / 60,
            until % 60
        )
    }
}

impl fmt::Display for DailyHours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.0.iter().map(Part::to_string).collect();
        f.pad(&parts.join(","))
    }
}

impl FromStr for DailyHours {
    type Err = HoursError;

    fn from_str(text: &str) -> Result<Self, HoursError> {
        let mut minutes = [false; DAY_MINUTES as usize];
        for (at, part) in text.split(',').enumerate() {
            if at >= HOUR_PARTS_MAX {
                return Err(HoursError::TooMany);
            }
            let part = Part::parse(part.trim())?;
            for (minute, is_in) in (0..).zip(&mut minutes) {
                *is_in |= part.contains(minute);
            }
        }
        Ok(Self::of(&minutes))
    }
}

impl Serialize for DailyHours {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DailyHours {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hours(text: &str) -> DailyHours {
        text.parse().expect(text)
    }

    #[test]
    fn hours_are_written_one_way() {
        for (text, written) in [
            ("22:00-06:00", "22:00-06:00"),
            ("8:00-12:30", "08:00-12:30"),
            (" 12:00 - 13:00 , 01:00-02:00", "01:00-02:00,12:00-13:00"),
            ("22:00-00:00", "22:00-24:00"),
            ("22:00-24:00,00:00-06:00", "22:00-06:00"),
            ("01:00-03:00,02:00-04:00", "01:00-04:00"),
            ("01:00-02:00,02:00-03:00", "01:00-03:00"),
            ("00:00-24:00", "00:00-24:00"),
            ("12:00-06:00,05:00-12:01", "00:00-24:00"),
            ("23:59-00:01", "23:59-00:01"),
        ] {
            assert_eq!(hours(text).to_string(), written, "{text}");
        }
    }

    #[test]
    fn mistakes_are_said() {
        for (text, said) in [
            ("", "'' is not a part of the day"),
            ("22:00", "'22:00' is not a part of the day"),
            ("22-6", "is not a part of the day"),
            ("22:00-06:60", "is not a part of the day"),
            ("24:00-06:00", "is not a part of the day"),
            ("22:00-24:01", "is not a part of the day"),
            ("22:00-6:0", "is not a part of the day"),
            ("-1:00-06:00", "is not a part of the day"),
            ("22:00-06:00,", "'' is not a part of the day"),
            ("٢٢:00-06:00", "is not a part of the day"),
            ("08:00-8:00", "'08:00-8:00' ends when it begins"),
            ("00:00-00:00", "write 00:00-24:00 for all day"),
        ] {
            let error = text.parse::<DailyHours>().expect_err(text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
        let many = vec!["01:00-02:00"; HOUR_PARTS_MAX + 1].join(",");
        assert_eq!(many.parse::<DailyHours>(), Err(HoursError::TooMany));
    }

    #[test]
    fn a_minute_is_in_them_or_not_until_some_other() {
        for (text, minute, is_in, until) in [
            ("22:00-06:00", 0, true, Some(360)),
            ("22:00-06:00", 359, true, Some(1)),
            ("22:00-06:00", 360, false, Some(960)),
            ("22:00-06:00", 1319, false, Some(1)),
            ("22:00-06:00", 1320, true, Some(480)),
            ("22:00-24:00", 1439, true, Some(1)),
            ("00:00-01:00", 1439, false, Some(1)),
            ("01:00-02:00,12:00-13:00", 120, false, Some(600)),
            ("01:00-02:00,12:00-13:00", 780, false, Some(720)),
            ("00:00-24:00", 77, true, None),
        ] {
            let hours = hours(text);
            let said = (hours.contains(minute), hours.minutes_until_change(minute));
            assert_eq!(said, (is_in, until), "{text} at {minute}");
        }
    }

    /// A part of the day as people write it, and whether each minute is in it.
    fn part() -> impl Strategy<Value = (String, Vec<bool>)> {
        let ends = (0..DAY_MINUTES, 1..=DAY_MINUTES);
        let differ = |(from, until): &(u16, u16)| from != until && (*from, *until) != (0, 0);
        ends.prop_filter("ends when it begins", differ)
            .prop_map(|(from, until)| {
                let text = format!(
                    "{:02}:{:02}-{:02}:{:02}",
                    from / 60,
                    from % 60,
                    until / 60,
                    until % 60
                );
                let is_in = |minute: u16| match from < until {
                    true => from <= minute && minute < until,
                    false => from <= minute || minute < until,
                };
                (text, (0..DAY_MINUTES).map(is_in).collect())
            })
    }

    proptest! {
        #[test]
        fn they_are_what_a_list_of_all_minutes_is(
            parts in proptest::collection::vec(part(), 1..5),
            minute in 0..DAY_MINUTES,
        ) {
            let texts: Vec<&str> = parts.iter().map(|(text, _)| text.as_str()).collect();
            let hours = hours(&texts.join(","));
            let model = |minute: u16| {
                parts.iter().any(|(_, minutes)| minutes[usize::from(minute % DAY_MINUTES)])
            };
            for minute in 0..DAY_MINUTES {
                prop_assert_eq!(hours.contains(minute), model(minute));
            }
            let now = model(minute);
            let change = (1..DAY_MINUTES).find(|later| model(minute + later) != now);
            prop_assert_eq!(hours.minutes_until_change(minute), change);
            // What is written is read again as the same.
            prop_assert_eq!(self::hours(&hours.to_string()), hours);
        }

        #[test]
        fn no_text_is_a_panic(text in "[0-9:, -]{0,24}") {
            let _ = text.parse::<DailyHours>();
        }
    }
}
