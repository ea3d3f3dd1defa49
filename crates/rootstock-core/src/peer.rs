//! Who is in the swarm.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Digest;

/// A member of the swarm: 16 hex digits, made of the machine's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u64);

/// Ids of machines that no head knows by a name begin with these bits, and no others do.
const GUEST_BITS: u64 = 0xffff << 48;

/// What the certificate of all of those is for.
const GUEST_NAME: &str = "guest.peer.rootstock";

impl PeerId {
    /// The id of the machine, or head, of this name.
    #[must_use]
    pub fn of(name: &str) -> Self {
        let digest = Digest::of(name.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&digest.as_bytes()[..8]);
        let id = u64::from_le_bytes(first);
        // One name of 65,536 would get the id of a guest.
        Self(if Self(id).is_guest() { id >> 1 } else { id })
    }

    /// An id for a machine that no head knows by a name.
    #[must_use]
    pub fn guest(random: u64) -> Self {
        Self(random | GUEST_BITS)
    }

    /// Whether it is such a machine's: whoever wants has its key.
    #[must_use]
    pub fn is_guest(self) -> bool {
        self.0 & GUEST_BITS == GUEST_BITS
    }

    /// The one name that a peer's certificate is for; guests have one together.
    #[must_use]
    pub fn certificate_name(self) -> String {
        if self.is_guest() {
            return GUEST_NAME.to_owned();
        }
        format!("{self}.peer.rootstock")
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A text that is not 16 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a peer's id: expected 16 hexadecimal digits")]
pub struct PeerIdError;

impl FromStr for PeerId {
    type Err = PeerIdError;

    fn from_str(text: &str) -> Result<Self, PeerIdError> {
        let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let id = is_hex.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        id.map(Self).ok_or(PeerIdError)
    }
}

impl Serialize for PeerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PeerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_id_is_sixteen_hex_digits() {
        let id = PeerId(0x12ab);
        assert_eq!(id.to_string(), "00000000000012ab");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.certificate_name(), "00000000000012ab.peer.rootstock");
        for bad in [
            "",
            "12ab",
            "+0000000000012ab",
            "00000000000012abc",
            "x000000000000000",
        ] {
            assert_eq!(bad.parse::<PeerId>(), Err(PeerIdError), "{bad:?}");
        }
    }

    #[test]
    fn guests_have_ids_and_a_name_of_their_own() {
        for random in [0, 1, u64::MAX] {
            let guest = PeerId::guest(random);
            assert!(guest.is_guest());
            assert_eq!(guest.certificate_name(), "guest.peer.rootstock");
            assert_eq!(guest.to_string().parse(), Ok(guest));
        }
        let mut names = (0..400_000).map(|number| format!("n{number}"));
        assert!(names.all(|name| !PeerId::of(&name).is_guest()));
    }
}
