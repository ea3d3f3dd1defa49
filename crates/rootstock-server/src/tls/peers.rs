//! Certificates of the swarm's members: each for one name, made of its peer id, and good
//! for both ends of a connection.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use ed25519_dalek::VerifyingKey;
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ED25519, PublicKeyData, SignatureAlgorithm,
};
use rootstock_core::PeerId;

use super::{Identity, TlsError, authority_key, authority_params, private_key};

/// How much earlier than now a certificate holds: a machine's clock may be behind.
const CLOCK_PATIENCE: Duration = Duration::from_secs(3600);

/// How long it holds.
pub(crate) const CERTIFICATE_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

/// A SubjectPublicKeyInfo with an ed25519 key, up to the key (RFC 8410, section 4).
const ED25519_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// The public key of a machine, of one boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PeerKey([u8; 32]);

/// Why a text is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the public key is not the SubjectPublicKeyInfo of an ed25519 key in hex")]
pub(crate) struct PeerKeyError;

impl PeerKey {
    /// Reads a SubjectPublicKeyInfo in hex.
    pub(crate) fn from_hex(text: &str) -> Result<Self, PeerKeyError> {
        let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let digits = text.as_bytes().as_chunks::<2>().0;
        if !is_hex || text.len() != 2 * (ED25519_PREFIX.len() + 32) {
            return Err(PeerKeyError);
        }
        let value = |digit: u8| (digit as char).to_digit(16).unwrap_or(0) as u8;
        let byte = |[high, low]: &[u8; 2]| value(*high) << 4 | value(*low);
        let der: Vec<u8> = digits.iter().map(byte).collect();
        let key = der.strip_prefix(&ED25519_PREFIX);
        let key = key
            .and_then(|key| key.try_into().ok())
            .ok_or(PeerKeyError)?;
        let is_strong = VerifyingKey::from_bytes(&key).is_ok_and(|key| !key.is_weak());
        is_strong.then_some(Self(key)).ok_or(PeerKeyError)
    }
}

impl PublicKeyData for PeerKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

/// The site's authority, as far as it signs members' certificates.
pub(crate) struct PeerAuthority(Issuer<'static, KeyPair>);

impl PeerAuthority {
    /// The authority of a keys directory; it is made when it is not there yet.
    pub(crate) fn open(keys: &Path) -> Result<Self, TlsError> {
        Ok(Self(Issuer::new(authority_params(), authority_key(keys)?)))
    }

    /// A member's certificate for a key of its own, PEM.
    pub(crate) fn certify(
        &self,
        key: &PeerKey,
        peer: PeerId,
        now: SystemTime,
    ) -> Result<String, TlsError> {
        let signed = params(peer, now)?.signed_by(key, &self.0);
        Ok(signed.map_err(TlsError::Make)?.pem())
    }

    /// A new key with a certificate for all guests that holds for so long, PEM: they
    /// begin connections and take none.
    pub(crate) fn guest(
        &self,
        now: SystemTime,
        life: Duration,
    ) -> Result<(String, String), TlsError> {
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(TlsError::Make)?;
        let mut params = params(PeerId::guest(0), now)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_after = (now + life).into();
        let signed = params.signed_by(&key, &self.0);
        let certificate = signed.map_err(TlsError::Make)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// A new key with its certificate: what a head shows.
    pub(crate) fn identity(&self, peer: PeerId, now: SystemTime) -> Result<Identity, TlsError> {
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(TlsError::Make)?;
        let signed = params(peer, now)?.signed_by(&key, &self.0);
        let certificate = signed.map_err(TlsError::Make)?;
        Ok((vec![certificate.der().clone()], private_key(&key)?))
    }
}

fn params(peer: PeerId, now: SystemTime) -> Result<CertificateParams, TlsError> {
    let name = peer.certificate_name();
    let mut params = CertificateParams::new([name.clone()]).map_err(TlsError::Make)?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    params.not_before = (now - CLOCK_PATIENCE).into();
    params.not_after = (now + CERTIFICATE_LIFE).into();
    Ok(params)
}

#[cfg(test)]
mod tests;
