//! Serves a disk in memory over NBD, to try clients on and to measure.
//!
//! It prints where it listens and `ready`, serves until its standard input ends,
//! and then shuts down in good order.

use std::{
    env,
    io::{self, Read},
    net::TcpListener,
    os::unix::net::UnixListener,
    path::Path,
    sync::Arc,
    time::Duration,
};

use rootstock_server::nbd::{
    ExportError, Exports, NbdConfig, NbdListener, NbdServer, NbdTls, OpenExport,
    memory::{MemoryDevice, Temperature},
};
use rootstock_volume::BlockDevice;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

const USAGE: &str = "usage: nbd_memory [--tcp ADDR] [--unix PATH] [--size BYTES] [--fill FILE] \
                     [--tls-dir DIR] [--tls-required] [--connections N] \
                     [--negotiation-timeout-ms N] [--write-timeout-ms N]";

type Error = Box<dyn std::error::Error>;

/// Three views of memory: one writable, one read-only, one slow.
struct Memory {
    volume: Arc<MemoryDevice>,
    image: Arc<MemoryDevice>,
    cold: Arc<MemoryDevice>,
}

impl Exports for Memory {
    fn list(&self) -> Vec<String> {
        ["volume/disk", "image/disk:1", "volume/cold"]
            .map(str::to_owned)
            .to_vec()
    }

    fn open(&self, name: &str, _client: &str) -> Result<OpenExport, ExportError> {
        let device: Arc<dyn BlockDevice> = match name {
            "" | "volume/disk" => self.volume.clone(),
            "image/disk:1" => self.image.clone(),
            "volume/cold" => self.cold.clone(),
            _ => {
                return Err(ExportError::Unknown {
                    name: name.to_owned(),
                });
            }
        };
        Ok(OpenExport {
            device,
            description: "a disk in memory".to_owned(),
            lease: Box::new(()),
        })
    }
}

fn main() -> Result<(), Error> {
    let mut config = NbdConfig::default();
    let mut size_bytes = 1 << 30;
    let mut content = Vec::new();
    let mut tls_dir = None;
    let mut tls_required = false;
    let mut arguments = env::args().skip(1);
    while let Some(flag) = arguments.next() {
        if flag == "--tls-required" {
            tls_required = true;
            continue;
        }
        let value = arguments.next().ok_or(USAGE)?;
        let millis = || -> Result<Duration, Error> { Ok(Duration::from_millis(value.parse()?)) };
        match flag.as_str() {
            "--tcp" => config
                .listeners
                .push(NbdListener::Tcp(TcpListener::bind(&value)?)),
            "--unix" => config
                .listeners
                .push(NbdListener::Unix(UnixListener::bind(&value)?)),
            "--size" => size_bytes = value.parse()?,
            "--fill" => content = std::fs::read(&value)?,
            "--tls-dir" => tls_dir = Some(value),
            "--connections" => config.limits.connections_max = value.parse()?,
            "--negotiation-timeout-ms" => config.limits.negotiation_timeout = millis()?,
            "--write-timeout-ms" => config.limits.write_timeout = millis()?,
            _ => return Err(USAGE.into()),
        }
    }
    if let Some(dir) = tls_dir {
        let server = Arc::new(tls(Path::new(&dir))?);
        config.tls = if tls_required {
            NbdTls::Required(server)
        } else {
            NbdTls::Optional(server)
        };
    }
    if !content.is_empty() {
        size_bytes = content.len() as u64;
    }
    let disk = |temperature| -> Result<MemoryDevice, Error> {
        let device = MemoryDevice::new(size_bytes, temperature);
        for (number, piece) in content.chunks(256 << 10).enumerate() {
            if piece.iter().any(|byte| *byte != 0) {
                device.write((number * (256 << 10)) as u64, piece)?;
            }
        }
        Ok(device)
    };
    let memory = Memory {
        volume: Arc::new(disk(Temperature::Warm)?),
        image: Arc::new(disk(Temperature::Warm)?.into_read_only()),
        cold: Arc::new(disk(Temperature::Cold)?),
    };
    let server = NbdServer::start(config, Arc::new(memory))?;
    for address in server.addresses() {
        println!("listening {address}");
    }
    println!("ready");
    io::stdin().read_to_end(&mut Vec::new())?;
    eprintln!("{:?}", server.stats());
    server.shutdown(Duration::from_secs(5));
    Ok(())
}

fn tls(dir: &Path) -> Result<rustls::ServerConfig, Error> {
    let certificates = CertificateDer::pem_file_iter(dir.join("server-cert.pem"))?
        .collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(dir.join("server-key.pem"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, key)?)
}
