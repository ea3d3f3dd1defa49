//! A version's bytes, read from the daemon; who reads waits while it is away.

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use rootstock_core::{VersionSpec, chain};
use rootstock_image::ReadAt;
use rootstock_nbd::client::{Client, ClientError};

use crate::address::{NbdAddress, Stream};

/// Threads that read at once, each over a connection of its own.
pub(crate) const READERS: usize = 4;
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

type Connection = Client<Box<dyn Stream>>;

/// A version's disk.
pub(crate) struct Disk {
    address: NbdAddress,
    export: String,
    size_bytes: u64,
    idle: Mutex<Vec<Connection>>,
}

impl Disk {
    /// Opens a version, which must be there.
    pub(crate) fn open(address: &NbdAddress, version: &VersionSpec) -> io::Result<Self> {
        let export = format!("image/{version}");
        let first = connect(address, &export)?;
        Ok(Self {
            address: address.clone(),
            size_bytes: first.size_bytes(),
            export,
            idle: Mutex::new(vec![first]),
        })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connection(&self) -> io::Result<Connection> {
        if let Some(connection) = self.idle().pop() {
            return Ok(connection);
        }
        let connection = connect(&self.address, &self.export)?;
        if connection.size_bytes() != self.size_bytes {
            return Err(io::Error::other("the version has another size now"));
        }
        Ok(connection)
    }

    /// Reads once; an error of the outer kind passes with time.
    fn try_read(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<io::Result<()>> {
        let mut connection = self.connection()?;
        match connection.read_exact_at(offset_bytes, buffer) {
            Ok(()) => {
                let mut idle = self.idle();
                if idle.len() < READERS {
                    idle.push(connection);
                }
                Ok(Ok(()))
            }
            // The daemon is there, and cannot read it: its log says why.
            Err(error @ ClientError::Failed { .. }) => Ok(Err(io::Error::other(error))),
            Err(error) => {
                // The others are of the same daemon.
                self.idle().clear();
                Err(io::Error::other(error))
            }
        }
    }
}

fn connect(address: &NbdAddress, export: &str) -> io::Result<Connection> {
    Client::connect(address.connect()?, export).map_err(io::Error::other)
}

impl ReadAt for Disk {
    fn read_exact_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut pause = PAUSE_MIN;
        loop {
            match self.try_read(offset_bytes, buffer) {
                Ok(outcome) => return outcome,
                Err(error) if pause == PAUSE_MIN => tracing::warn!(
                    export = self.export,
                    address = %self.address,
                    error = chain(&error),
                    "the daemon is away, and readers wait for it"
                ),
                Err(_) => {}
            }
            thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn len_bytes(&self) -> u64 {
        self.size_bytes
    }
}
