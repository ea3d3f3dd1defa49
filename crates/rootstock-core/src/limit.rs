//! Limits of time, as people write them: `90s`, `10m`, `1h`.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest limit, in seconds: a day.
pub const TIME_LIMIT_SECONDS_MAX: u32 = 24 * 3600;

/// A text that is no limit of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{}' is no limit of time: write 90s, 10m or 1h, at most a day", text.escape_debug())]
pub struct TimeLimitError {
    /// What was written.
    text: String,
}

/// How long something may take: at least a second, at most a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimeLimit(u32);

impl TimeLimit {
    /// So many minutes, as far as there are as many in a day.
    #[must_use]
    pub const fn minutes(minutes: u16) -> Self {
        let seconds = minutes as u32 * 60;
        Self(match seconds {
            0 => 1,
            TIME_LIMIT_SECONDS_MAX.. => TIME_LIMIT_SECONDS_MAX,
            seconds => seconds,
        })
    }

    /// In seconds.
    #[must_use]
    pub const fn seconds(self) -> u32 {
        self.0
    }

    /// As time that passes.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0 as u64)
    }
}

impl fmt::Display for TimeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            seconds if seconds % 3600 == 0 => f.pad(&format!("{}h", seconds / 3600)),
            seconds if seconds % 60 == 0 => f.pad(&format!("{}m", seconds / 60)),
            seconds => f.pad(&format!("{seconds}s")),
        }
    }
}

impl FromStr for TimeLimit {
    type Err = TimeLimitError;

    fn from_str(text: &str) -> Result<Self, TimeLimitError> {
        let error = || TimeLimitError {
            text: text.chars().take(32).collect(),
        };
        let digits = text.trim_end_matches(|c: char| c.is_ascii_lowercase());
        let factor = match &text[digits.len()..] {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return Err(error()),
        };
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number: u32 = digits.parse().map_err(|_| error())?;
        match number.checked_mul(factor) {
            Some(seconds @ 1..=TIME_LIMIT_SECONDS_MAX) if is_number => Ok(Self(seconds)),
            _ => Err(error()),
        }
    }
}

impl Serialize for TimeLimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TimeLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_and_written_in_the_largest_unit() {
        for (text, seconds, shown) in [
            ("1s", 1, "1s"),
            ("90s", 90, "90s"),
            ("120s", 120, "2m"),
            ("10m", 600, "10m"),
            ("60m", 3600, "1h"),
            ("24h", 86_400, "24h"),
        ] {
            let limit: TimeLimit = text.parse().expect(text);
            assert_eq!(
                (limit.seconds(), limit.to_string().as_str()),
                (seconds, shown)
            );
        }
        for text in [
            "",
            "s",
            "10",
            "0s",
            "25h",
            "-1m",
            "+1m",
            "1.5h",
            "1 m",
            "1d",
            "9999999999h",
            "10M",
            "ä",
        ] {
            assert!(text.parse::<TimeLimit>().is_err(), "{text}");
        }
        assert_eq!(TimeLimit::minutes(10).to_string(), "10m");
        assert_eq!(
            TimeLimit::minutes(u16::MAX).seconds(),
            TIME_LIMIT_SECONDS_MAX
        );
    }
}
