//! How machines that hold chunks find one another: announcements to a head, its answers,
//! and the certificates they show each other.
//!
//! A head only introduces: what it knows is soft, and comes again with the next
//! announcements. docs/formats/peer.md has what machines then say to each other.

use std::{fmt, str::FromStr};

use rootstock_core::{Digest, PeerId};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::ToSchema;

/// Where a machine announces itself: a [`SwarmAnnounce`], answered by a [`SwarmAnswer`].
pub const SWARM: &str = "/node/v1/swarm";

/// Where it says which chunks of a version it holds, when that is others than it said
/// last: `?version=DIGEST`, and a bitmap as in [`crate::record::Bitmap`], a bit for each
/// chunk in the order of docs/formats/peer.md.
pub const SWARM_HOLDS: &str = "/node/v1/swarm/holds";

/// The most versions in one announcement.
pub const SWARM_VERSIONS_MAX: usize = 8;

/// The most addresses of one peer.
pub const SWARM_ADDRESSES_MAX: usize = 4;

/// The most peers in one answer: a rack, the heads, and some of every other rack.
pub const SWARM_PEERS_MAX: usize = 512;

/// The longest label of a rack, in bytes.
pub const RACK_BYTES_MAX: usize = 64;

/// The most liars in one announcement; what is beyond is not looked at.
pub const SWARM_LIARS_MAX: usize = 64;

/// The most owners of a chunk in a rack.
pub const SWARM_COPIES_MAX: u8 = 8;

/// Whether a machine is in the swarm, and how its connections are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SwarmMode {
    /// It fetches from heads alone, and serves nobody.
    #[default]
    Off,
    /// Both ends of a connection show certificates of the site's authority.
    Tls,
    /// Connections are not encrypted, and nobody proves who they are: for networks that
    /// are trusted, and links that are quicker than the machines' processors. What comes
    /// is checked against its id either way.
    Plain,
}

impl fmt::Display for SwarmMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Off => "off",
            Self::Tls => "tls",
            Self::Plain => "plain",
        })
    }
}

impl FromStr for SwarmMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "tls" => Ok(Self::Tls),
            "plain" => Ok(Self::Plain),
            _ => Err("write off, tls or plain".to_owned()),
        }
    }
}

/// Whether a machine's line is paid for by the byte: then it gives others nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Metered {
    /// As the machine itself knows it.
    #[default]
    Auto,
    /// It is.
    Yes,
    /// It is not, whatever the machine knows.
    No,
}

impl Metered {
    /// Whether the machine finds it out.
    #[must_use]
    pub fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

impl fmt::Display for Metered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Yes => "yes",
            Self::No => "no",
        })
    }
}

impl FromStr for Metered {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "yes" => Ok(Self::Yes),
            "no" => Ok(Self::No),
            _ => Err("write auto, yes or no".to_owned()),
        }
    }
}

/// Owners of a chunk in each rack: 1 to [`SWARM_COPIES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct SwarmCopies(u8);

impl SwarmCopies {
    /// How many.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl Default for SwarmCopies {
    fn default() -> Self {
        Self(2)
    }
}

impl TryFrom<u8> for SwarmCopies {
    type Error = String;

    fn try_from(copies: u8) -> Result<Self, String> {
        if (1..=SWARM_COPIES_MAX).contains(&copies) {
            Ok(Self(copies))
        } else {
            Err(format!("write a number from 1 to {SWARM_COPIES_MAX}"))
        }
    }
}

impl From<SwarmCopies> for u8 {
    fn from(copies: SwarmCopies) -> Self {
        copies.0
    }
}

impl fmt::Display for SwarmCopies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for SwarmCopies {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // What is no number is refused as 0 is.
        text.parse().unwrap_or(0).try_into()
    }
}

/// The label of a rack: machines that reach each other without a slower or dearer link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rack(String);

impl Rack {
    /// The label.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Rack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Rack {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if (1..=RACK_BYTES_MAX).contains(&text.len()) && text.bytes().all(fits) {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!(
                "write at most {RACK_BYTES_MAX} letters, digits, '-', '.' and '_'"
            ))
        }
    }
}

impl Serialize for Rack {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Rack {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// How a machine takes part, until it is told otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct SwarmOrder {
    /// Whether it does.
    pub mode: SwarmMode,
    /// What it sends others at most, in Mbit/s; as much as it can when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload_mbit_max: Option<u32>,
    /// Whether nothing is sent or fetched but what somebody waits for: exam mode.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_quiet: bool,
    /// Whether its line is paid for by the byte.
    #[serde(skip_serializing_if = "Metered::is_auto")]
    pub metered: Metered,
    /// Owners of a chunk in each rack.
    pub copies: u8,
    /// Memory in which a machine without a disk for them holds chunks for others; a part
    /// of it when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes_max: Option<u64>,
    /// Whether it boots others' first stage.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub boots_others: bool,
}

/// A machine says that it is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct SwarmAnnounce {
    /// The TCP port on which it serves others, at the address it asks from; 0 when it
    /// serves nobody.
    pub port: u16,
    /// The machine's key of this boot, when it lacks a certificate for it: the DER of a
    /// SubjectPublicKeyInfo (RFC 5280, section 4.1) with an ed25519 key (RFC 8410), hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// The versions it holds chunks of, at most [`SWARM_VERSIONS_MAX`].
    pub holds: Vec<SwarmHolding>,
    /// What it sent others, in bytes of this boot.
    pub sent_bytes: u64,
    /// What came from others that are no heads, in bytes of this boot.
    pub received_bytes: u64,
    /// Members that gave it what was not what it asked for, since it said so last.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub liars: Vec<PeerId>,
}

/// How much of a version a machine holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SwarmHolding {
    /// The manifest's id.
    #[schema(value_type = String)]
    pub version: Digest,
    /// Its chunks and pages that the machine holds.
    pub held_chunks: u32,
}

/// Who else is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SwarmAnswer {
    /// Who the machine is.
    #[schema(value_type = String)]
    pub me: PeerId,
    /// Its rack: machines that reach each other without a slower or dearer link.
    pub rack: String,
    /// How it takes part.
    pub order: SwarmOrder,
    /// A certificate for the key that was told, PEM: for the name that
    /// [`PeerId::certificate_name`] says, of the site's authority, whose own the machine
    /// has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_pem: Option<String>,
    /// The others, heads first, its own rack next.
    pub peers: Vec<SwarmPeer>,
    /// Versions of which the head does not know which chunks the machine holds, such as
    /// after its own restart: the machine says so at [`SWARM_HOLDS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub holds_wanted: Vec<Digest>,
    /// Seconds to the next announcement.
    pub again_seconds: u32,
}

/// How a node takes part, as it said last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeSwarm {
    /// Its rack.
    pub rack: String,
    /// What it sent others, in bytes of this boot.
    pub sent_bytes: u64,
    /// What came from others that are no heads, in bytes of this boot.
    pub received_bytes: u64,
    /// Seconds for which the others are not told of it: it gave several of them what was
    /// not what they had asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out_seconds: Option<u64>,
}

/// How many machines of the swarm could go before a chunk of a version is on none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LiveCopies {
    /// Machines that hold the chunk which the fewest hold.
    pub rarest_count: u32,
    /// Machines that hold some of the version.
    pub machine_count: u32,
}

/// A member of the swarm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SwarmPeer {
    /// Who it is.
    #[schema(value_type = String)]
    pub id: PeerId,
    /// Where it is reached, as `10.0.0.7:8486`.
    pub addresses: Vec<String>,
    /// Its rack; a head's is empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rack: String,
    /// Whether it is a head, which has every chunk of every version.
    #[serde(default)]
    pub head: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_answer_is_read() {
        let text = r#"{"me":"00000000000012ab","rack":"","order":{"mode":"tls"},"peers":[],
                       "again_seconds":10,"newer":1}"#;
        let answer: SwarmAnswer = serde_json::from_str(text).expect("an answer");
        assert_eq!(answer.order.mode, SwarmMode::Tls);
        assert_eq!(answer.certificate_pem, None);
    }

    #[test]
    fn what_a_rack_and_a_number_of_copies_can_be() {
        let long = "r".repeat(RACK_BYTES_MAX);
        for text in ["r", "room-1.shelf_2", &long] {
            assert_eq!(text.parse::<Rack>().expect(text).to_string(), text);
        }
        let longer = format!("{long}r");
        for text in ["", "10.0.3.0/24", "a b", "ra\u{308}ck", "a\n", &longer] {
            assert!(text.parse::<Rack>().is_err(), "{text:?}");
            let json = serde_json::to_string(text).expect("serializes");
            assert!(serde_json::from_str::<Rack>(&json).is_err(), "{text:?}");
        }
        for text in ["1", "2", "8"] {
            assert_eq!(text.parse::<SwarmCopies>().expect(text).to_string(), text);
            assert!(serde_json::from_str::<SwarmCopies>(text).is_ok(), "{text}");
        }
        for text in ["0", "9", "-1", "257"] {
            assert!(text.parse::<SwarmCopies>().is_err(), "{text}");
            assert!(serde_json::from_str::<SwarmCopies>(text).is_err(), "{text}");
        }
        assert!("two".parse::<SwarmCopies>().is_err());
    }
}
