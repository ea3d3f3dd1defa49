//! Connections in TLS, optional and required.

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned};

use super::*;

/// A stream on which STARTTLS was done already: it shows the client a greeting
/// again and swallows the flags it answers.
struct AfterStartTls {
    tls: StreamOwned<ClientConnection, TcpStream>,
    greeting: io::Cursor<[u8; 18]>,
    flags_left: usize,
}

impl Read for AfterStartTls {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.greeting.read(buffer)? {
            0 => self.tls.read(buffer),
            len => Ok(len),
        }
    }
}

impl Write for AfterStartTls {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let swallowed = self.flags_left.min(bytes.len());
        self.flags_left -= swallowed;
        self.tls.write_all(&bytes[swallowed..])?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tls.flush()
    }
}

fn configs() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let certificate: CertificateDer<'static> = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), Arc::new(client))
}

fn tls_client(address: SocketAddr, config: &Arc<ClientConfig>) -> Client<AfterStartTls> {
    let mut stream = connect(address);
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    let mut hello = 3_u32.to_be_bytes().to_vec();
    put_option(&mut hello, option::STARTTLS, &[]);
    stream.write_all(&hello).unwrap();
    let mut ack = [0; 20];
    stream.read_exact(&mut ack).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let tls = ClientConnection::new(Arc::clone(config), name).unwrap();
    let stream = AfterStartTls {
        tls: StreamOwned::new(tls, stream),
        greeting: io::Cursor::new(greeting),
        flags_left: 4,
    };
    Client::connect(stream, NAME).unwrap()
}

#[test]
fn tls_carries_everything() {
    let (server, config) = configs();
    let device = Arc::new(MemoryDevice::new(SIZE, Temperature::Cold));
    let expected = pattern(SIZE as usize);
    device.write(0, &expected).unwrap();
    let tls = NbdTls::Required(server);
    let (handle, address) = start_with(device, NbdLimits::default(), tls);
    let mut client = tls_client(address, &config);
    let mut got = vec![0; SIZE as usize];
    client.read_exact_at(0, &mut got).unwrap();
    assert!(got == expected);
    client.disconnect().unwrap();
    until(&handle, "the connection ends", |stats| {
        stats.connections == 0
    });
}

#[test]
fn the_clear_is_refused_only_when_tls_is_required() {
    let (server, _) = configs();
    for (tls, refused) in [
        (NbdTls::Optional(Arc::clone(&server)), false),
        (NbdTls::Required(server), true),
    ] {
        let (_handle, address) = start_with(memory(), NbdLimits::default(), tls);
        let outcome = Client::connect(connect(address), NAME);
        assert_eq!(outcome.is_err(), refused);
    }
}

#[test]
fn a_broken_tls_handshake_ends_the_connection() {
    let (server, _) = configs();
    let tls = NbdTls::Optional(server);
    let (handle, address) = start_with(memory(), NbdLimits::default(), tls);
    for noise in [&b"not a ClientHello at all"[..], b""] {
        let mut stream = connect(address);
        let mut hello = 3_u32.to_be_bytes().to_vec();
        put_option(&mut hello, option::STARTTLS, &[]);
        stream.write_all(&hello).unwrap();
        stream.read_exact(&mut [0; 38]).unwrap();
        stream.write_all(noise).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(is_closed(&mut stream));
    }
    until(&handle, "both are gone", |stats| stats.connections == 0);
}
