//! The signed root: what a site vouches for when it publishes a version.
//!
//! A seal names the image, the number of the version and the manifest, so that
//! nobody can pass off an older version, or another image's, as the one that was
//! asked for. `docs/formats/seal.md` has the bytes.

use ed25519_dalek::{SIGNATURE_LENGTH, Signature, Signer, SigningKey, VerifyingKey};
use rootstock_core::{Digest, ImageName, VersionNumber, name::NAME_BYTES_MAX};

use crate::fields::Fields;

const MAGIC: [u8; 8] = *b"RSTKSEAL";
const VERSION: u32 = 1;
const KEY_BYTES: usize = 32;

/// What is signed: the magic, so that no signature over something else is one
/// over a seal, and all fields but the signature.
const SIGNED_BYTES: usize = 8 + 4 + 4 + KEY_BYTES + Digest::LEN + 4 + NAME_BYTES_MAX;

/// The size of every seal, in bytes.
pub const SEAL_BYTES: usize = SIGNED_BYTES + SIGNATURE_LENGTH;

/// Why a seal was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Not [`SEAL_BYTES`] long.
    #[error("a seal has {SEAL_BYTES} bytes, and this one {len_bytes}")]
    Length {
        /// Its length.
        len_bytes: usize,
    },
    /// It begins with something else.
    #[error("these bytes are not a seal: they do not begin with its magic")]
    Magic,
    /// A version of the format that this release does not know.
    #[error("seal format {version} is not known here: a newer release wrote it")]
    Version {
        /// The version it claims.
        version: u32,
    },
    /// A field has a value that it cannot have.
    #[error("the seal's {field} is not valid")]
    Field {
        /// Which.
        field: &'static str,
    },
    /// Another site's key signed it.
    #[error("the seal was made with another site's key")]
    OtherKey,
    /// The signature is not the key's over these fields.
    #[error("the seal's signature does not match: it was changed after it was made")]
    Signature,
    /// It is good, and for something else.
    #[error("the seal is for {sealed}, and {wanted} was expected")]
    OtherVersion {
        /// What it is for.
        sealed: String,
        /// What was expected.
        wanted: String,
    },
}

/// A signature over a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    /// The image.
    pub image: ImageName,
    /// The version's number.
    pub version: VersionNumber,
    /// The manifest's id.
    pub manifest: Digest,
    key: [u8; KEY_BYTES],
    signature: [u8; SIGNATURE_LENGTH],
}

impl Seal {
    /// Seals a version with the site's key.
    #[must_use]
    pub fn sign(
        key: &SigningKey,
        image: &ImageName,
        version: VersionNumber,
        manifest: Digest,
    ) -> Self {
        let mut seal = Self {
            image: image.clone(),
            version,
            manifest,
            key: key.verifying_key().to_bytes(),
            signature: [0; SIGNATURE_LENGTH],
        };
        seal.signature = key.sign(&seal.signed()).to_bytes();
        seal
    }

    /// Checks that the site with this key made the seal.
    ///
    /// # Errors
    /// [`SealError::OtherKey`] or [`SealError::Signature`].
    pub fn verify(&self, key: &VerifyingKey) -> Result<(), SealError> {
        if self.key != key.to_bytes() {
            return Err(SealError::OtherKey);
        }
        // Strict: a signature has one encoding, and weak keys are refused.
        key.verify_strict(&self.signed(), &Signature::from_bytes(&self.signature))
            .map_err(|_| SealError::Signature)
    }

    /// Checks that the site with this key made the seal for just this version.
    ///
    /// # Errors
    /// As [`Seal::verify`], and [`SealError::OtherVersion`].
    pub fn verify_for(
        &self,
        key: &VerifyingKey,
        image: &ImageName,
        version: VersionNumber,
        manifest: Digest,
    ) -> Result<(), SealError> {
        self.verify(key)?;
        if (&self.image, self.version, self.manifest) == (image, version, manifest) {
            return Ok(());
        }
        Err(SealError::OtherVersion {
            sealed: format!("{}:{} ({})", self.image, self.version, self.manifest),
            wanted: format!("{image}:{version} ({manifest})"),
        })
    }

    /// The seal's bytes, [`SEAL_BYTES`] of them.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.signed();
        bytes.extend(self.signature);
        bytes
    }

    /// The seal in these bytes; its signature is not checked yet.
    ///
    /// # Errors
    /// [`SealError`] for anything that [`Seal::encode`] would not have written.
    pub fn decode(bytes: &[u8]) -> Result<Self, SealError> {
        if bytes.len() != SEAL_BYTES {
            let len_bytes = bytes.len();
            return Err(SealError::Length { len_bytes });
        }
        let mut fields = Fields::new(bytes);
        if fields.array() != MAGIC {
            return Err(SealError::Magic);
        }
        let version = fields.u32();
        if version != VERSION {
            return Err(SealError::Version { version });
        }
        let name_bytes = fields.u32() as usize;
        let key = fields.array();
        let manifest = Digest::from_bytes(fields.array());
        let number = fields.u32();
        let name = fields.array::<NAME_BYTES_MAX>();
        let signature = fields.array();
        let image = name
            .split_at_checked(name_bytes)
            .filter(|(_, rest)| rest.iter().all(|byte| *byte == 0))
            .and_then(|(name, _)| std::str::from_utf8(name).ok()?.parse().ok())
            .ok_or(SealError::Field {
                field: "image name",
            })?;
        if number == 0 {
            return Err(SealError::Field {
                field: "version number",
            });
        }
        Ok(Self {
            image,
            version: VersionNumber(number),
            manifest,
            key,
            signature,
        })
    }

    fn signed(&self) -> Vec<u8> {
        let name = self.image.as_str().as_bytes();
        let mut bytes = Vec::with_capacity(SEAL_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((name.len() as u32).to_le_bytes());
        bytes.extend(self.key);
        bytes.extend(self.manifest.as_bytes());
        bytes.extend(self.version.0.to_le_bytes());
        bytes.extend(name);
        bytes.resize(SIGNED_BYTES, 0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn seal() -> Seal {
        let image = "debian-12".parse().expect("a name");
        Seal::sign(&key(1), &image, VersionNumber(7), Digest::of(b"manifest"))
    }

    #[test]
    fn round_trip() {
        let seal = seal();
        let bytes = seal.encode();
        assert_eq!(bytes.len(), SEAL_BYTES);
        assert_eq!(Seal::decode(&bytes), Ok(seal.clone()));
        assert_eq!(seal.verify(&key(1).verifying_key()), Ok(()));
        let other = seal.verify(&key(2).verifying_key());
        assert_eq!(other, Err(SealError::OtherKey));
    }

    #[test]
    fn every_changed_bit_is_found() {
        let bytes = seal().encode();
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let good = Seal::decode(&bytes).and_then(|s| s.verify(&key(1).verifying_key()));
            assert!(good.is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(Seal::decode(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn a_seal_is_for_one_version() {
        let seal = seal();
        let site = key(1).verifying_key();
        let check = |image: &str, version, manifest: &[u8]| {
            let image = image.parse().expect("a name");
            seal.verify_for(&site, &image, VersionNumber(version), Digest::of(manifest))
        };
        assert_eq!(check("debian-12", 7, b"manifest"), Ok(()));
        assert!(check("debian-1", 7, b"manifest").is_err());
        assert!(check("debian-12", 6, b"manifest").is_err());
        assert!(check("debian-12", 7, b"another").is_err());
    }
}
