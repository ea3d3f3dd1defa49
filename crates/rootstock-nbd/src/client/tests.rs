//! The client against the loopback server, and against a lying one.

use proptest::prelude::*;

use super::*;
use crate::{
    TlsOffer,
    loopback::{Loopback, NAME},
};

fn disk(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| if i % 8192 < 4096 { (i / 7) as u8 } else { 0 })
        .collect()
}

#[test]
fn reads_and_asks_what_the_server_has() {
    let expected = disk(100_000);
    let server = Loopback::new(expected.clone(), TlsOffer::Off);
    let mut client = Client::connect(server, NAME).unwrap();
    assert_eq!(client.size_bytes(), 100_000);
    assert!(client.has_block_status() && client.multi_conn());
    for (offset, len) in [(0, 100_000), (4096, 4096), (99_999, 1), (50, 0)] {
        let mut got = vec![1; len];
        client.read_exact_at(offset, &mut got).unwrap();
        assert_eq!(got, expected[offset as usize..][..len]);
    }
    let zero = client.block_status(4096, 4096).unwrap();
    assert_eq!(zero.len(), 1);
    assert!(zero[0].zero && zero[0].len == 4096);
    let error = client.read_exact_at(99_999, &mut [0; 2]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the NBD server could not read 2 B at byte 99999: invalid argument: refused"
    );
    // A failed request leaves the connection good.
    client.read_exact_at(0, &mut [0; 2]).unwrap();
    assert!(client.disconnect().unwrap().is_closed());
}

#[test]
fn a_refusal_names_the_export_and_the_reason() {
    let cases = [
        (
            "image/none",
            TlsOffer::Off,
            "the NBD server refused export 'image/none': no such export (no export image/none)",
        ),
        (
            NAME,
            TlsOffer::Required,
            "the NBD server refused export 'image/debian:3': TLS is required (this server insists on TLS)",
        ),
    ];
    for (export, tls, expected) in cases {
        let error = Client::connect(Loopback::new(vec![0; 10], tls), export).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

/// A server that says fixed bytes whatever it is told.
struct Script(io::Cursor<Vec<u8>>);

impl Read for Script {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Script {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What an honest server says up to the transmission phase.
fn handshake() -> Vec<u8> {
    let mut server = Loopback::new(disk(65_536), TlsOffer::Off);
    let mut said = server.take_output();
    let mut queries = Vec::new();
    codec::put_string(&mut queries, NAME);
    queries.extend_from_slice(&1_u32.to_be_bytes());
    codec::put_string(&mut queries, allocation::NAME);
    let mut go = Vec::new();
    codec::put_string(&mut go, NAME);
    go.extend_from_slice(&0_u16.to_be_bytes());
    server.receive(&3_u32.to_be_bytes());
    for (option, data) in [
        (option::STRUCTURED_REPLY, &[][..]),
        (option::SET_META_CONTEXT, &queries),
        (option::GO, &go),
    ] {
        let mut message = Vec::new();
        codec::put_option(&mut message, option, data);
        server.receive(&message);
        said.extend(server.take_output());
    }
    said
}

proptest! {
    #[test]
    fn a_lying_server_is_an_error(cut in any::<prop::sample::Index>(), flip in 1_u8.., noise in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut said = handshake();
        let at = cut.index(said.len());
        said[at] ^= flip;
        said.extend(&noise);
        if let Ok(mut client) = Client::connect(Script(io::Cursor::new(said)), NAME) {
            let _ = client.read_exact_at(0, &mut [0; 512]);
            let _ = client.block_status(0, 512);
        }
    }

    #[test]
    fn replies_of_noise_are_errors(kind in 0_u16..8, error in any::<bool>(), len in 0_u32..5000, payload in prop::collection::vec(any::<u8>(), 0..5000)) {
        let mut said = handshake();
        said.extend_from_slice(&magic::STRUCTURED_REPLY.to_be_bytes());
        said.extend_from_slice(&chunk::FLAG_DONE.to_be_bytes());
        said.extend_from_slice(&(kind | u16::from(error) << 15).to_be_bytes());
        said.extend_from_slice(&1_u64.to_be_bytes());
        said.extend_from_slice(&len.to_be_bytes());
        said.extend_from_slice(&payload);
        let client = || Client::connect(Script(io::Cursor::new(said.clone())), NAME).unwrap();
        let _ = client().read_exact_at(0, &mut [0; 512]);
        let _ = client().block_status(0, 512);
    }
}
