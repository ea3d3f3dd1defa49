//! The daemon over HTTPS, with tokens.

use std::sync::Arc;

use axum::body::Body;
use hyper::{Method, Request, header};
use rootstock_api::{TokenCreate, TokenCreated, TokenRole, paths};
use rootstock_server::{Daemon, config::ApiAddress};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};

use crate::support::{Answer, Site, config_in, exchange, request};

/// A site that is also to be reached over HTTPS.
pub(crate) async fn site_with_https() -> Site {
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = config_in(dir.path());
    let https = ApiAddress::Https("127.0.0.1:0".to_owned());
    config.api.listen.push(https);
    Site::start_with(dir, config).await
}

impl Site {
    /// Makes a token named after its role, and gives its secret.
    pub(crate) async fn token(&self, role: TokenRole) -> String {
        let create = TokenCreate {
            name: role.as_str().to_owned(),
            role,
        };
        let created: TokenCreated = self.post(paths::TOKENS, &create).await.json();
        created.secret
    }
}

/// A client over HTTPS that trusts the site's authority.
pub(crate) struct Remote {
    address: std::net::SocketAddr,
    tls: Arc<rustls::ClientConfig>,
}

impl Remote {
    pub(crate) fn of(daemon: &Daemon) -> Self {
        let pem = std::fs::read(daemon.authority_path()).expect("is there");
        let mut roots = rustls::RootCertStore::empty();
        let cert = CertificateDer::from_pem_slice(&pem).expect("is a certificate");
        roots.add(cert).expect("is an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            address: daemon.https_addresses()[0],
            tls: Arc::new(tls),
        }
    }

    pub(crate) async fn send(&self, mut request: Request<Body>, secret: Option<&str>) -> Answer {
        if let Some(secret) = secret {
            let value = format!("Bearer {secret}").parse().expect("a header");
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        let stream = tokio::net::TcpStream::connect(self.address)
            .await
            .expect("connects");
        let name = ServerName::try_from("127.0.0.1").expect("a name");
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&self.tls));
        let stream = connector.connect(name, stream).await.expect("trusts");
        exchange(stream, request).await
    }

    pub(crate) async fn get(&self, path: &str, secret: Option<&str>) -> Answer {
        self.send(request(Method::GET, path, Body::empty()), secret)
            .await
    }
}
