//! The daemon's TLS identity: what it was given, or one from the site's own authority.

use std::{fs, io, path::Path, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::{config::ApiConfig, data_dir::write_secret};

mod peers;

pub(crate) use peers::{CERTIFICATE_LIFE, PeerAuthority, PeerKey};

/// The file in the keys directory that clients are given to trust.
pub(crate) const AUTHORITY_FILE: &str = "ca.pem";

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or written.
    #[error("cannot {doing} {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file holds no certificate or key.
    #[error("{path} holds no usable {what}: it has to be PEM")]
    Pem {
        /// The file.
        path: String,
        /// What it should hold.
        what: &'static str,
    },
    /// Certificate and key do not work together.
    #[error("the TLS certificate and key cannot be used: do they belong together?")]
    Pair(#[source] rustls::Error),
    /// A certificate could not be made.
    #[error("cannot make the site's own TLS certificate")]
    Make(#[source] rcgen::Error),
}

/// The TLS configuration of the API and of NBD. Without a configured certificate
/// one is made for `names`, signed by the site's own authority, whose certificate
/// clients are given to trust (`keys/ca.pem`).
pub(crate) fn server_config(
    api: &ApiConfig,
    keys: &Path,
    names: &[String],
) -> Result<Arc<ServerConfig>, TlsError> {
    let (chain, key) = match (&api.tls_cert, &api.tls_key) {
        (Some(cert), Some(key)) => (read_chain(cert)?, read_key(key)?),
        _ => site_identity(keys, names)?,
    };
    config_of(chain, key)
}

/// The TLS configuration of the node service: first stages know the site's own
/// authority, whatever certificate the API has.
pub(crate) fn site_config(keys: &Path, names: &[String]) -> Result<Arc<ServerConfig>, TlsError> {
    let (chain, key) = site_identity(keys, names)?;
    config_of(chain, key)
}

fn config_of(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(TlsError::Pair)?;
    Ok(Arc::new(config))
}

/// The certificate of the site's own authority, PEM; both are made when they are
/// not there yet.
pub(crate) fn authority_pem(keys: &Path) -> Result<String, TlsError> {
    authority_key(keys)?;
    let path = keys.join(AUTHORITY_FILE);
    fs::read_to_string(&path).map_err(failed("read", &path))
}

/// A chain of certificates, and the key of the first.
pub(crate) type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// A certificate made anew at each start, so that it is for the names of today;
/// the authority that signs it stays.
fn site_identity(keys: &Path, names: &[String]) -> Result<Identity, TlsError> {
    let issuer = Issuer::new(authority_params(), authority_key(keys)?);
    let key = KeyPair::generate().map_err(TlsError::Make)?;
    let mut params = CertificateParams::new(names).map_err(TlsError::Make)?;
    params
        .distinguished_name
        .push(DnType::CommonName, "Rootstock");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let cert = params.signed_by(&key, &issuer).map_err(TlsError::Make)?;
    Ok((vec![cert.der().clone()], private_key(&key)?))
}

fn private_key(key: &KeyPair) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::try_from(key.serialize_der()).map_err(|_| TlsError::Pem {
        path: "the new key".to_owned(),
        what: "key",
    })
}

/// The authority's certificate is made of these and its key: they must not change.
fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "Rootstock site authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn authority_key(keys: &Path) -> Result<KeyPair, TlsError> {
    let cert_path = keys.join(AUTHORITY_FILE);
    let key_path = keys.join("ca-key.pem");
    if cert_path.exists() {
        let pem = fs::read_to_string(&key_path).map_err(failed("read", &key_path))?;
        return KeyPair::from_pem(&pem).map_err(|_| TlsError::Pem {
            path: key_path.display().to_string(),
            what: "key",
        });
    }
    let key = KeyPair::generate().map_err(TlsError::Make)?;
    let cert = authority_params()
        .self_signed(&key)
        .map_err(TlsError::Make)?;
    // The key first: a certificate without its key would stay useless.
    write_secret(&key_path, key.serialize_pem().as_bytes()).map_err(failed("write", &key_path))?;
    write_secret(&cert_path, cert.pem().as_bytes()).map_err(failed("write", &cert_path))?;
    Ok(key)
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = fs::read(path).map_err(failed("read", path))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(TlsError::Pem {
            path: path.display().to_string(),
            what: "certificate",
        }),
    }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = fs::read(path).map_err(failed("read", path))?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| TlsError::Pem {
        path: path.display().to_string(),
        what: "key",
    })
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TlsError {
    let path = path.display().to_string();
    move |source| TlsError::Io {
        doing,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_stays_and_given_files_are_checked() {
        let dir = tempfile::tempdir().expect("a directory");
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        server_config(&ApiConfig::default(), dir.path(), &names).expect("is made");
        let first = fs::read(dir.path().join(AUTHORITY_FILE)).expect("is there");
        server_config(&ApiConfig::default(), dir.path(), &names).expect("is made again");
        let second = fs::read(dir.path().join(AUTHORITY_FILE)).expect("is there");
        assert_eq!(first, second);
        let api = ApiConfig {
            tls_cert: Some(dir.path().join(AUTHORITY_FILE)),
            tls_key: Some(dir.path().join(AUTHORITY_FILE)),
            ..ApiConfig::default()
        };
        let error = server_config(&api, dir.path(), &names).expect_err("no key there");
        assert!(error.to_string().contains("no usable key"), "{error}");
    }
}
