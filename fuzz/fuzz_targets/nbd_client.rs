//! Arbitrary bytes as a server's answers to the NBD client.

#![no_main]

use std::io::{self, Cursor, Read, Write};

use libfuzzer_sys::fuzz_target;
use rootstock_nbd::client::{Client, EXTENTS_MAX};

const READ_BYTES: usize = 4096;
const STATUS_BYTES: u64 = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let Ok(mut client) = Client::connect(Script(Cursor::new(data)), "d") else {
        return;
    };
    let mut buffer = [0; READ_BYTES];
    let _ = client.read_exact_at(0, &mut buffer);
    if let Ok(extents) = client.block_status(0, STATUS_BYTES) {
        assert!(!extents.is_empty() && extents.len() <= EXTENTS_MAX);
        let total: u64 = extents.iter().map(|extent| extent.len).sum();
        assert!(total <= STATUS_BYTES, "extents pass what was asked for");
    }
});

/// Answers from a script and takes whatever is said.
struct Script<'a>(Cursor<&'a [u8]>);

impl Read for Script<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Script<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
