//! The site, its store and its tokens, and the long operations' progress.

use rootstock_core::{ChunkId, ImageName, VersionNumber};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::problem::Problem;

/// The daemon is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`.
    pub status: String,
}

/// The site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Site {
    /// The daemon's release.
    pub release: String,
    /// The site's public key (ed25519), in hex: it signs every version.
    pub public_key: String,
    /// When the daemon started.
    pub started: String,
    /// The caller's role.
    pub role: TokenRole,
    /// Where NBD clients connect: `HOST:PORT` or `unix:PATH`.
    pub nbd: Vec<String>,
    /// Where iSCSI initiators connect: `HOST:PORT`.
    #[serde(default)]
    pub iscsi: Vec<String>,
}

/// What the store holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreReport {
    /// Different chunks, pages included.
    pub chunk_count: u64,
    /// Their raw bytes.
    pub raw_bytes: u64,
    /// Bytes of their frames.
    pub stored_bytes: u64,
    /// Packs.
    pub pack_count: u64,
    /// Bytes of the packs: frames, indexes and what is not yet collected.
    pub pack_bytes: u64,
    /// Bytes of the versions' disks in chunks that are not all zero.
    pub used_bytes: u64,
    /// Bytes free in the file system under the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// Bytes of decompressed chunks in memory.
    pub cache_bytes: u64,
    /// The most that they may take.
    pub cache_bytes_max: u64,
    /// Reads that found their chunk in memory.
    #[serde(default)]
    pub cache_hit_count: u64,
    /// Reads that did not.
    #[serde(default)]
    pub cache_miss_count: u64,
}

/// One line of a collection's progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum CollectEvent {
    /// Versions are being read for what they need.
    Marking {
        /// Versions read.
        done_count: u64,
        /// Versions to read.
        total_count: u64,
    },
    /// Packs are being looked at.
    Sweeping {
        /// Chunks that something needs.
        live_chunk_count: u64,
    },
    /// It is done.
    Done(CollectReport),
    /// It failed.
    Failed(Problem),
}

/// What a collection did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CollectReport {
    /// Chunks that something needs.
    pub live_chunk_count: u64,
    /// Chunks that were freed.
    pub freed_chunk_count: u64,
    /// Bytes of pack files that were freed.
    pub freed_bytes: u64,
    /// Packs that were removed whole.
    pub removed_pack_count: u64,
    /// Packs that were written anew without their dead frames.
    pub rewritten_pack_count: u64,
}

/// One line of a verification's progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum VerifyEvent {
    /// How far it is.
    Progress {
        /// Bytes of the disk that were checked.
        done_bytes: u64,
        /// Bytes of the disk.
        total_bytes: u64,
    },
    /// A place on the disk that cannot be read.
    Damage(Damage),
    /// It is done.
    Done(VerifyReport),
    /// It failed.
    Failed(Problem),
}

/// A place on a version's disk that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Damage {
    /// The image.
    #[schema(value_type = String)]
    pub image: ImageName,
    /// The version.
    #[schema(value_type = u32)]
    pub version: VersionNumber,
    /// Where on the disk.
    pub offset_bytes: u64,
    /// How much of it.
    pub len_bytes: u64,
    /// The chunk or page.
    #[schema(value_type = String)]
    pub chunk: ChunkId,
    /// What is wrong with it.
    pub reason: String,
}

/// What a verification found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerifyReport {
    /// Different chunks and pages that were read.
    pub chunk_count: u64,
    /// Bytes of the disk they make up.
    pub checked_bytes: u64,
    /// Places that are damaged.
    pub damage_count: u64,
}

/// How far the background scrub is, and what it found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScrubStatus {
    /// Whether a pass is under way.
    pub running: bool,
    /// Packs read in this pass.
    pub done_pack_count: u64,
    /// Packs of this pass.
    pub total_pack_count: u64,
    /// How fast it reads, bytes per second; 0 when it runs only when started.
    pub rate_bytes: u64,
    /// When the last whole pass ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_pass: Option<String>,
    /// What the present pass or the last one found, the first 1,000.
    pub damage: Vec<Damage>,
    /// Damaged chunks that no version needs.
    pub unused_damage_count: u64,
}

/// What can be opened over NBD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExportList {
    /// The exports.
    pub exports: Vec<Export>,
}

/// An export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Export {
    /// Its name: `image/NAME:VERSION` or `volume/NAME`.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// Connections that have it open.
    pub client_count: u64,
}

/// Who has what open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClientList {
    /// The connections.
    pub clients: Vec<Client>,
}

/// A connection over NBD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Client {
    /// Its address.
    pub address: String,
    /// The export it has open.
    pub export: String,
    /// Since when.
    pub since: String,
}

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TokenRole {
    /// Everything that only reads.
    Reader,
    /// Everything.
    Admin,
}

impl TokenRole {
    /// The role as it stands in documents.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Admin => "admin",
        }
    }
}

/// Tokens, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenList {
    /// The tokens.
    pub tokens: Vec<Token>,
}

/// A token, without its secret, which the daemon does not keep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its name.
    pub name: String,
    /// What it allows.
    pub role: TokenRole,
    /// When it was made.
    pub created: String,
    /// When it was last used, to the minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used: Option<String>,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<String>,
}

/// Makes a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenCreate {
    /// Its name, by the rules for names.
    pub name: String,
    /// What it allows.
    pub role: TokenRole,
}

/// A token that was made. The secret is shown this once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenCreated {
    /// Its name.
    pub name: String,
    /// What it allows.
    pub role: TokenRole,
    /// What goes after `Bearer ` in the Authorization header.
    pub secret: String,
}

impl std::fmt::Debug for TokenCreated {
    /// Without the secret, which must not reach a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenCreated")
            .field("name", &self.name)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_one_flat_line() {
        let event = CollectEvent::Done(CollectReport::default());
        let json = serde_json::to_string(&event).expect("serializes");
        assert!(
            json.starts_with(r#"{"event":"done","live_chunk_count":0"#),
            "{json}"
        );
        assert_eq!(
            serde_json::from_str::<CollectEvent>(&json).ok(),
            Some(event)
        );
    }

    #[test]
    fn a_secret_is_not_printed() {
        let token = TokenCreated {
            name: "ci".to_owned(),
            role: TokenRole::Admin,
            secret: "hush".to_owned(),
        };
        assert!(!format!("{token:?}").contains("hush"));
    }
}
