//! How machines that hold chunks find one another: announcements to a head, its answers,
//! and the certificates they show each other.
//!
//! A head only introduces: what it knows is soft, and comes again with the next
//! announcements. docs/formats/peer.md has what machines then say to each other.

use rootstock_core::{Digest, PeerId};
use serde::{Deserialize, Serialize};
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

/// How a machine takes part, until it is told otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct SwarmOrder {
    /// Whether it does.
    pub mode: SwarmMode,
    /// What it sends others at most, in Mbit/s; as much as it can when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload_mbit_max: Option<u32>,
    /// Owners of a chunk in each rack.
    pub copies: u8,
    /// Memory in which a machine without a disk for them holds chunks for others; a part
    /// of it when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes_max: Option<u64>,
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
    /// A certificate for the key that was told, and with it the authority's: PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_pem: Option<String>,
    /// The others, heads first, its own rack next.
    pub peers: Vec<SwarmPeer>,
    /// Seconds to the next announcement.
    pub again_seconds: u32,
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
}
