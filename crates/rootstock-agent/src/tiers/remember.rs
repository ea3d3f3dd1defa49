//! The versions that a machine keeps: the one that runs, and the one before.

use rootstock_cache::{Cache, CacheError, STATE_BYTES_MAX};
use rootstock_core::{ChunkId, ImageName, VersionNumber};
use rootstock_image::manifest::{Manifest, PageSource};
use serde::{Deserialize, Serialize};

use super::plan::Plan;

/// Versions whose chunks stay: going back to the one before moves nothing.
const VERSIONS_KEPT: usize = 2;

/// The format of the state document.
const FORMAT: u32 = 1;

/// The state document.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Document {
    format: u32,
    /// The newest first.
    versions: Vec<Version>,
}

/// A version that the machine ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Version {
    /// The image.
    pub(crate) image: ImageName,
    /// Its version.
    pub(crate) version: VersionNumber,
    /// The manifest's bytes.
    #[serde(with = "hex")]
    pub(crate) manifest: Vec<u8>,
}

/// Enters the version that runs; gives all that are kept, this one first. A
/// document that cannot be read is begun anew: it only costs fetching.
///
/// # Errors
/// The disk's.
pub(crate) fn enter(cache: &Cache, runs: Version) -> Result<Vec<Version>, CacheError> {
    let known: Document = serde_json::from_slice(&cache.state()).unwrap_or_default();
    let mut versions = vec![runs];
    if known.format == FORMAT {
        let others = known.versions.iter().filter(|one| **one != versions[0]);
        let others: Vec<Version> = others.take(VERSIONS_KEPT - 1).cloned().collect();
        versions.extend(others);
    }
    let document = Document {
        format: FORMAT,
        versions,
    };
    if document != known
        && let Ok(text) = serde_json::to_vec(&document)
        && text.len() <= STATE_BYTES_MAX
    {
        cache.set_state(&text)?;
    }
    Ok(document.versions)
}

/// The versions that are kept.
pub(crate) fn versions(cache: &Cache) -> Vec<Version> {
    let known: Document = serde_json::from_slice(&cache.state()).unwrap_or_default();
    if known.format == FORMAT {
        known.versions
    } else {
        Vec::new()
    }
}

/// What the other versions need, as far as their pages are here.
pub(crate) fn needed_by(cache: &Cache, others: &[Version]) -> Vec<ChunkId> {
    let mut needed = Vec::new();
    for version in others {
        if let Ok(manifest) = Manifest::decode(&version.manifest)
            && let Ok(plan) = Plan::walk(&manifest, &Local(cache))
        {
            needed.extend(plan.needed());
        }
    }
    needed
}

/// How many chunks of a version are not here; nothing when that cannot be known,
/// since its pages are not here either.
pub(crate) fn lacking(cache: &Cache, manifest: &Manifest) -> Option<usize> {
    let plan = Plan::walk(manifest, &Local(cache)).ok()?;
    let chunks = plan.chunks().iter();
    Some(chunks.filter(|planned| !cache.has(planned.chunk)).count())
}

/// Pages from the disk alone.
struct Local<'a>(&'a Cache);

/// A page is not here.
#[derive(Debug, thiserror::Error)]
#[error("the page is not on this machine")]
struct NotHere;

impl PageSource for Local<'_> {
    type Error = NotHere;
    type Bytes = bytes::Bytes;

    fn page(&self, id: ChunkId) -> Result<bytes::Bytes, NotHere> {
        self.0.read(id).ok().flatten().ok_or(NotHere)
    }
}

mod hex {
    //! Bytes as text.

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        serializer.serialize_str(&digits)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        crate::order::unhex(&text).ok_or_else(|| D::Error::custom("these are no hex digits"))
    }
}
