//! Machines: their names, and the addresses of their network cards.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::name::name;

name! {
    /// The name of a node, which is also its host name: one label of RFC 1123,
    /// section 2.1, in lower case.
    NodeName, "node name", crate::name::check_host
}
name! {
    /// The name of a profile.
    ProfileName, "profile name"
}

/// The address of a network card: six bytes (EUI-48).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; Self::LEN]);

impl MacAddress {
    /// Bytes in an address.
    pub const LEN: usize = 6;

    /// The address's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// The address with dashes, `52-54-00-12-34-56`, as it stands in paths and
    /// after `BOOTIF=01-`.
    #[must_use]
    pub fn dashed(&self) -> String {
        self.joined('-')
    }

    /// Whether it can be one card's: not all zeros, not a group's (the lowest bit
    /// of the first byte, IEEE 802-2014, section 8.2.2).
    #[must_use]
    pub fn is_unicast(&self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; Self::LEN]
    }

    fn joined(self, separator: char) -> String {
        use fmt::Write as _;
        let mut text = String::with_capacity(3 * Self::LEN);
        for (place, byte) in self.0.iter().enumerate() {
            if place > 0 {
                text.push(separator);
            }
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        text
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.joined(':'))
    }
}

/// A text that is not the address of a network card.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{}' is not a MAC address: write it as 52:54:00:12:34:56", text.escape_debug())]
pub struct MacError {
    /// How it begins.
    pub text: String,
}

impl FromStr for MacAddress {
    type Err = MacError;

    /// Six pairs of hex digits with `:` or `-` between them.
    fn from_str(text: &str) -> Result<Self, MacError> {
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut bytes = [0; Self::LEN];
        let mut pairs = text.split(separator);
        let read = bytes.iter_mut().all(|byte| {
            let pair = pairs.next().filter(|pair| {
                pair.len() == 2 && pair.bytes().all(|digit| digit.is_ascii_hexdigit())
            });
            let value = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok());
            value.map(|value| *byte = value).is_some()
        });
        if read && pairs.next().is_none() {
            return Ok(Self(bytes));
        }
        Err(MacError {
            text: text.chars().take(32).collect(),
        })
    }
}

impl Serialize for MacAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let address = MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0xab]);
        for text in ["52:54:00:12:34:ab", "52-54-00-12-34-AB"] {
            assert_eq!(text.parse(), Ok(address), "{text}");
        }
        assert_eq!(address.to_string(), "52:54:00:12:34:ab");
        assert_eq!(address.dashed(), "52-54-00-12-34-ab");
        for bad in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:ab:cd",
            "52:54:00:12:34:a",
            "52:54:00:12:34:+b",
            "52:54-00:12:34:ab",
            "52:54:00:12:34:ag",
            "525400123 4ab",
            &"5".repeat(10_000),
        ] {
            let error = bad.parse::<MacAddress>().expect_err(bad).to_string();
            assert!(error.len() < 120, "{error}");
        }
    }

    #[test]
    fn groups_are_no_cards() {
        for (text, unicast) in [
            ("52:54:00:12:34:56", true),
            ("00:00:00:00:00:00", false),
            ("01:00:5e:00:00:01", false),
            ("ff:ff:ff:ff:ff:ff", false),
        ] {
            let address: MacAddress = text.parse().expect(text);
            assert_eq!(address.is_unicast(), unicast, "{text}");
        }
    }

    #[test]
    fn node_names_are_host_names() {
        for good in ["n001", "pc-17", "7", &"a".repeat(63)] {
            assert!(good.parse::<NodeName>().is_ok(), "{good}");
        }
        for bad in ["", "N1", "a_b", "a.b", "a-", "-a", "ä", &"a".repeat(64)] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad}");
        }
    }
}
