//! Certificates: each member has one for its own name, of the site's authority.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rootstock_core::PeerId;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection,
};

/// What is kept of a connection's bytes before they are written, at most.
const BUFFER_BYTES: usize = 128 << 10;

/// Both ends of connections that are encrypted.
#[derive(Clone)]
pub struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

/// Certificates that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file holds none.
    #[error("there is no usable {what} in the PEM text")]
    Pem {
        /// What was looked for.
        what: &'static str,
    },
    /// Certificate, key and authority do not fit.
    #[error("the certificate, its key and the authority do not belong together")]
    Pair(#[source] rustls::Error),
    /// The authority cannot be used to check others.
    #[error("the authority's certificate cannot be used")]
    Authority(#[source] rustls::server::VerifierBuilderError),
}

impl Tls {
    /// Connections of a member with this certificate and key, with members that have one
    /// of the same authority; all three are PEM.
    ///
    /// # Errors
    /// When one of them is not there, or they do not fit.
    pub fn new(certificate: &str, key: &str, authority: &str) -> Result<Self, TlsError> {
        let parsed = |key: &str| PrivateKeyDer::from_pem_slice(key.as_bytes());
        let key = parsed(key).map_err(|_| TlsError::Pem {
            what: "private key",
        })?;
        Self::of(certificates(certificate)?, key, authority)
    }

    /// The same, with a certificate and a key that are read already; the authority is PEM.
    ///
    /// # Errors
    /// When there is no authority in it, or they do not fit.
    pub fn of(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        authority: &str,
    ) -> Result<Self, TlsError> {
        let roots = Arc::new(roots(authority)?);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Pair)?
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(TlsError::Pair)?;
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Pair)?
            .with_client_cert_verifier(verifier.map_err(TlsError::Authority)?)
            .with_single_cert(chain, key)
            .map_err(TlsError::Pair)?;
        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
        })
    }

    /// The end that began a connection with `peer`.
    pub(crate) fn dial(&self, peer: PeerId) -> Result<Connection, rustls::Error> {
        let name = ServerName::try_from(peer.certificate_name())
            .map_err(|_| rustls::Error::UnsupportedNameType)?;
        let mut connection = ClientConnection::new(Arc::clone(&self.client), name)?;
        connection.set_buffer_limit(Some(BUFFER_BYTES));
        Ok(connection.into())
    }

    /// The other end.
    pub(crate) fn accept(&self) -> Result<Connection, rustls::Error> {
        let mut connection = ServerConnection::new(Arc::clone(&self.server))?;
        connection.set_buffer_limit(Some(BUFFER_BYTES));
        Ok(connection.into())
    }
}

/// Whether the certificate of the other end is that of this member.
pub(crate) fn is_of(connection: &Connection, peer: PeerId) -> bool {
    let chain = connection.peer_certificates();
    let Some(certificate) = chain.and_then(<[_]>::first) else {
        return false;
    };
    let name = ServerName::try_from(peer.certificate_name());
    let (Ok(name), Ok(parsed)) = (name, ParsedCertificate::try_from(certificate)) else {
        return false;
    };
    verify_server_name(&parsed, &name).is_ok()
}

/// Whether a certificate (PEM) is this member's, of this authority (PEM), and holds at
/// that time. What cannot be read is not.
#[must_use]
pub fn certifies(certificate: &str, peer: PeerId, authority: &str, at: SystemTime) -> bool {
    let check = || {
        let chain = certificates(certificate).ok()?;
        let (own, between) = chain.split_first()?;
        let name = ServerName::try_from(peer.certificate_name()).ok()?;
        let at = UnixTime::since_unix_epoch(at.duration_since(UNIX_EPOCH).ok()?);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(roots(authority).ok()?);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider);
        let verifier = verifier.build().ok()?;
        let verified = verifier.verify_server_cert(own, between, &name, &[], at);
        verified.ok()
    };
    check().is_some()
}

fn roots(authority: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(authority)? {
        roots.add(certificate).map_err(TlsError::Pair)?;
    }
    Ok(roots)
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    found
        .ok()
        .filter(|found| !found.is_empty())
        .ok_or(TlsError::Pem {
            what: "certificate",
        })
}
