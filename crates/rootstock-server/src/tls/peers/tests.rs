//! Tests of members' certificates: real TLS between two ends, in memory.

use std::sync::Arc;

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
    crypto::ring::default_provider,
    pki_types::{
        CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject as _,
    },
    server::WebPkiClientVerifier,
};
use tempfile::TempDir;

use super::*;
use crate::{app::hex, tls::authority_pem};

/// A site's authority, with what trusts it.
struct Site {
    authority: PeerAuthority,
    roots: Arc<RootCertStore>,
    _keys: TempDir,
}

impl Site {
    fn new() -> Self {
        let keys = tempfile::tempdir().expect("a directory");
        let pem = authority_pem(keys.path()).expect("is made");
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).expect("is PEM");
        let mut roots = RootCertStore::empty();
        roots.add(certificate).expect("is an authority");
        Self {
            authority: PeerAuthority::open(keys.path()).expect("opens"),
            roots: Arc::new(roots),
            _keys: keys,
        }
    }

    /// A machine that keeps its key, and got a certificate at this time.
    fn machine(&self, peer: PeerId, now: SystemTime) -> Identity {
        let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        let told = PeerKey::from_hex(&hex(&key.subject_public_key_info())).expect("a key");
        let pem = self.authority.certify(&told, peer, now).expect("signs");
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).expect("is PEM");
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        (vec![certificate], PrivateKeyDer::from(key))
    }

    fn server(&self, (chain, key): Identity) -> ServerConnection {
        let provider = Arc::new(default_provider());
        let roots = Arc::clone(&self.roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("has versions")
            .with_client_cert_verifier(verifier.build().expect("has roots"))
            .with_single_cert(chain, key)
            .expect("belong together");
        ServerConnection::new(Arc::new(config)).expect("begins")
    }

    fn client(&self, (chain, key): Identity, peer: PeerId) -> ClientConnection {
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("has versions")
            .with_root_certificates(Arc::clone(&self.roots))
            .with_client_auth_cert(chain, key)
            .expect("belong together");
        let name = ServerName::try_from(peer.certificate_name()).expect("is a name");
        ClientConnection::new(Arc::new(config), name).expect("begins")
    }
}

/// Moves bytes both ways until both ends are content, or one is not.
fn shake(
    client: &mut ClientConnection,
    server: &mut ServerConnection,
) -> Result<(), rustls::Error> {
    while client.is_handshaking() || server.is_handshaking() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).expect("writes to memory");
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).expect("reads from memory");
            server.process_new_packets()?;
        }
        let is_silent = bytes.is_empty();
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).expect("writes to memory");
        }
        assert!(!is_silent || !bytes.is_empty(), "both ends wait");
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("reads from memory");
            client.process_new_packets()?;
        }
    }
    Ok(())
}

#[test]
fn members_of_a_site_accept_each_other_and_nobody_else() {
    let (site, other) = (Site::new(), Site::new());
    let (one, two) = (PeerId::of("n001"), PeerId::of("n002"));
    let head = PeerId::of("head:lab");
    let now = SystemTime::now();
    let member = |peer| site.machine(peer, now);
    let mut server = site.server(member(two));
    let shaken = shake(&mut site.client(member(one), two), &mut server);
    assert_eq!(shaken, Ok(()));
    // A head is a member as others are.
    let identity = site.authority.identity(head, now).expect("is made");
    let mut server = site.server(identity);
    let shaken = shake(&mut site.client(member(one), head), &mut server);
    assert_eq!(shaken, Ok(()));
    // Each end refuses another authority's, and the client whom it did not mean.
    let stranger = || other.machine(one, now);
    let old = now - CERTIFICATE_LIFE - CLOCK_PATIENCE;
    for (client, server, said) in [
        (stranger(), member(two), "invalid peer certificate"),
        (
            member(one),
            other.machine(two, now),
            "invalid peer certificate",
        ),
        (member(one), member(head), "NotValidForName"),
        (site.machine(one, old), member(two), "Expired"),
        (member(one), site.machine(two, old), "Expired"),
        (
            site.machine(one, now + 2 * CLOCK_PATIENCE),
            member(two),
            "NotValidYet",
        ),
    ] {
        let mut server = site.server(server);
        let error = shake(&mut site.client(client, two), &mut server).expect_err(said);
        let shown = format!("{error} {error:?}");
        assert!(shown.contains(said), "{said} in {shown}");
    }
}

#[test]
fn only_an_ed25519_key_is_certified() {
    let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let good = hex(&key.subject_public_key_info());
    assert!(PeerKey::from_hex(&good).is_ok());
    assert!(PeerKey::from_hex(&good.to_uppercase()).is_ok());
    let p256 = KeyPair::generate().expect("a key");
    let x25519 = good.replacen("2b6570", "2b656e", 1);
    // The neutral element of the curve, to which anybody can sign.
    let weak = format!("{}01{}", &good[..24], "0".repeat(62));
    for bad in [
        "",
        "x",
        &good[2..],
        &format!("{good}00"),
        &format!("+{}", &good[1..]),
        &hex(&p256.subject_public_key_info()),
        &x25519,
        &weak,
        &good.replacen('3', "ü", 1),
    ] {
        assert_eq!(PeerKey::from_hex(bad), Err(PeerKeyError), "{bad}");
    }
}
