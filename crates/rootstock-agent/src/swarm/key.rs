//! The machine's key of this boot. It never leaves the machine.

use std::fmt::Write as _;

use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::{
    DecodePrivateKey as _, Document, EncodePrivateKey as _, EncodePublicKey as _,
    spki::der::pem::LineEnding,
};

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// A key, and its public half as heads are told it.
pub(super) struct Key {
    pem: String,
    public_hex: String,
}

impl Key {
    pub(super) fn generate() -> Result<Self, Errno> {
        let mut secret = [0; 32];
        getrandom(&mut secret, GetRandomFlags::empty())?;
        Ok(Self::of(&SigningKey::from_bytes(&secret)))
    }

    /// The key in a text of [`Key::pem`], if there is one.
    pub(super) fn from_pem(pem: &str) -> Option<Self> {
        Some(Self::of(&SigningKey::from_pkcs8_pem(pem).ok()?))
    }

    fn of(key: &SigningKey) -> Self {
        // Neither fails: a key of 32 B has one encoding (RFC 8410).
        let pem = key.to_pkcs8_pem(LineEnding::LF);
        let pem = pem.map_or_else(|_| String::new(), |pem| pem.to_string());
        let public = key.verifying_key().to_public_key_der();
        let mut public_hex = String::new();
        for byte in public.iter().flat_map(Document::as_bytes) {
            let _ = write!(public_hex, "{byte:02x}");
        }
        Self { pem, public_hex }
    }

    /// The private key: PKCS #8, PEM.
    pub(super) fn pem(&self) -> String {
        self.pem.clone()
    }

    /// The DER of its SubjectPublicKeyInfo, in hex.
    pub(super) fn public_hex(&self) -> String {
        self.public_hex.clone()
    }
}
