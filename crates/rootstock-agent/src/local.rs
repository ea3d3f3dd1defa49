//! Starting from the machine's own disk: what is kept there, and how it is found again.
//!
//! docs/formats/start.md has the files, docs/decisions/0011 what is kept of a
//! machine's secrets.

use rootstock_api::boot::Identity;
use rootstock_api::local::LocalOrder;
use rootstock_core::Digest;
use rootstock_image::manifest::Manifest;
use serde::{Deserialize, Serialize};

use crate::order::{Site, TrustError};

pub(crate) mod disk;
pub(crate) mod files;
pub(crate) mod keep;
pub(crate) mod member;

pub(crate) mod loader;
pub(crate) mod write;

/// The format of [`Kept`].
const FORMAT: u32 = 1;

/// The longest document, in bytes: an order and an identity of 1 MiB with its files,
/// and a manifest in hex.
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 8 << 20;

/// What a start needs besides the kernel and the first stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    format: u32,
    /// The local order's bytes, as they were signed.
    order: String,
    /// The site's signature of them, in hex.
    signature: String,
    /// The manifest's bytes, in hex.
    manifest: String,
    /// Its seal, in hex.
    seal: String,
    /// Who the machine is, as its last boot from the network was told.
    identity: Identity,
}

/// A start that the site signed.
pub(crate) struct Start {
    /// What is started; its order has the kept identity.
    pub(crate) local: LocalOrder,
    /// The manifest's bytes.
    pub(crate) manifest: Vec<u8>,
}

impl Kept {
    /// Puts together what a machine keeps.
    pub(crate) fn new(
        order: Vec<u8>,
        signature: String,
        (manifest, seal): (&[u8], String),
        identity: Identity,
    ) -> Result<Self, TrustError> {
        let order = String::from_utf8(order).map_err(|error| TrustError::Order {
            what: error.to_string(),
        })?;
        let digits = manifest.iter().map(|byte| format!("{byte:02x}"));
        Ok(Self {
            format: FORMAT,
            order,
            signature,
            manifest: digits.collect(),
            seal,
            identity,
        })
    }

    /// The start in a document of this name.
    ///
    /// # Errors
    /// When it is not what it was, or not what the site signed.
    pub(crate) fn open(text: &[u8], name: &str, site: &Site) -> Result<Start, TrustError> {
        let bad = |what: &str| TrustError::Order {
            what: format!("the document {name} on this machine's disk {what}"),
        };
        if file_name(Digest::of(text)) != name {
            return Err(bad("is not the one that was written"));
        }
        let kept: Self = serde_json::from_slice(text).map_err(|error| bad(&error.to_string()))?;
        if kept.format != FORMAT {
            return Err(bad("has a format of another release"));
        }
        let mut local = site.local_order(kept.order.as_bytes(), &kept.signature)?;
        let manifest = crate::order::unhex(&kept.manifest).ok_or_else(|| bad("has no manifest"))?;
        let _: Manifest = site.manifest(&manifest, &kept.seal, &local.order)?;
        local.order.identity = kept.identity;
        Ok(Start { local, manifest })
    }
}

/// What a file with these bytes is called: FAT's short names have 8 and 3 letters.
pub(crate) fn file_name(digest: Digest) -> String {
    let digits = digest.to_string();
    format!("{}.{}", &digits[..8], &digits[8..11])
}

/// Whether this is a name of [`file_name`].
pub(crate) fn is_file_name(name: &str) -> bool {
    let is_hex = |part: &str| {
        part.bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    name.len() == 12
        && name
            .split_once('.')
            .is_some_and(|(one, two)| one.len() == 8 && is_hex(one) && is_hex(two))
}
