//! Serves DHCP on one interface with leases in a file, to try clients on and to measure.
//!
//! It prints `ready` and then what happens, one event a line, serves until its
//! standard input ends, and shuts down in good order.

use std::{
    collections::HashMap,
    env,
    fs::{self, File},
    io::{self, Read, Write},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rootstock_core::MacAddress;
use rootstock_netboot::{
    Millis,
    dhcp::{
        CommitError, Config, Event, InterfaceConfig, InterfaceId, Lease, LeaseState, Mode, Network,
        Probes, Subnet, Unknown,
    },
    strategy,
};
use rootstock_server::dhcp::{self, BookEntry, BootEvents, LeaseBook};

const USAGE: &str = "usage: dhcp_memory INTERFACE dhcp|proxy|observe|auto MAC ADDRESS PREFIX \
                     FIRST LAST BOOK [--no-probes]";

type Error = Box<dyn std::error::Error>;

/// Leases in memory, each also a line of a file that is synced once for each write.
struct Book {
    leases: Mutex<HashMap<Ipv4Addr, Lease>>,
    file: Mutex<File>,
}

impl Book {
    fn open(path: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(path).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(String::new()),
            _ => Err(error),
        })?;
        let leases = text
            .lines()
            .filter_map(lease_of)
            .map(|lease| (lease.address, lease));
        Ok(Self {
            leases: Mutex::new(leases.collect()),
            file: Mutex::new(File::options().create(true).append(true).open(path)?),
        })
    }

    fn apply(&self, entry: &BookEntry, lines: &mut String) -> Result<(), CommitError> {
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        let (address, lease) = match entry {
            BookEntry::Commit(lease) => {
                let taken = leases.get(&lease.address).is_some_and(|row| {
                    row.expires > lease.started
                        && (row.mac != lease.mac || row.state == LeaseState::Declined)
                });
                if taken {
                    return Err(CommitError::Taken);
                }
                (lease.address, lease.clone())
            }
            BookEntry::Release {
                address,
                mac,
                now: end,
            }
            | BookEntry::Decline {
                address,
                mac,
                until: end,
            } => {
                let Some(row) = leases.get(address).filter(|row| row.mac == *mac) else {
                    return Ok(());
                };
                let mut lease = row.clone();
                lease.expires = *end;
                lease.state = match entry {
                    BookEntry::Decline { .. } => LeaseState::Declined,
                    _ => LeaseState::Released,
                };
                (*address, lease)
            }
        };
        let declined = lease.state == LeaseState::Declined;
        lines.push_str(&format!(
            "{address} {} {} {declined}\n",
            lease.mac, lease.expires.0
        ));
        leases.insert(address, lease);
        Ok(())
    }
}

fn lease_of(line: &str) -> Option<Lease> {
    let mut words = line.split(' ');
    Some(Lease {
        address: words.next()?.parse().ok()?,
        mac: words.next()?.parse().ok()?,
        client_id: Vec::new(),
        host_name: None,
        network: "lab".to_owned(),
        expires: Millis(words.next()?.parse().ok()?),
        state: if words.next()? == "true" {
            LeaseState::Declined
        } else {
            LeaseState::Bound
        },
        started: Millis(0),
    })
}

impl LeaseBook for Book {
    async fn load(&self) -> io::Result<Vec<Lease>> {
        let leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(leases.values().cloned().collect())
    }

    async fn write(&self, entries: Vec<BookEntry>) -> Vec<Result<(), CommitError>> {
        let mut lines = String::new();
        let answers = entries
            .iter()
            .map(|entry| self.apply(entry, &mut lines))
            .collect();
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let written = (&*file)
            .write_all(lines.as_bytes())
            .and_then(|()| file.sync_data());
        match written {
            Ok(()) => answers,
            Err(_) => vec![Err(CommitError::Failed); entries.len()],
        }
    }
}

/// Prints what matters to a test.
struct Printer;

impl BootEvents for Printer {
    fn event(&self, _now: Millis, event: &Event) {
        match event {
            Event::Rival { server, .. } => println!("rival {server}"),
            Event::Decided { mode, .. } => println!("decided {mode:?}"),
            Event::Conflict { address, .. } => println!("conflict {address}"),
            Event::Released { address, .. } => println!("released {address}"),
            Event::Discovered { client, .. } => println!("discovered {}", client.mac),
            Event::NotWritten { address, .. } => println!("not written {address}"),
            Event::Exhausted { network, .. } => println!("exhausted {network}"),
            _ => {}
        }
    }
}

fn config(words: &[String], probes: Probes) -> Result<Config, Error> {
    let [interface, mode, mac, address, prefix, first, last, _] = words else {
        return Err(USAGE.into());
    };
    let mac: MacAddress = mac.parse()?;
    let mode = match mode.as_str() {
        "dhcp" => Mode::Dhcp,
        "proxy" => Mode::Proxy,
        "observe" => Mode::Observe,
        "auto" => Mode::Auto,
        _ => return Err(USAGE.into()),
    };
    let address: Ipv4Addr = address.parse()?;
    Ok(Config {
        interfaces: vec![InterfaceConfig {
            name: interface.clone(),
            mac,
            address,
            mode,
            unknown: Unknown::Boot,
        }],
        networks: vec![Network {
            name: "lab".to_owned(),
            interface: Some(InterfaceId(0)),
            subnet: Subnet::of(address, prefix.parse()?),
            pool: Some((first.parse()?, last.parse()?)),
            gateway: Some(address),
            name_servers: vec![address],
            domain: Some("lab".to_owned()),
            lease: Millis::seconds(3600),
            boot_lease: Millis::seconds(120),
            relays: Vec::new(),
            unknown: Unknown::Auto,
        }],
        http_port: 8480,
        rules: strategy::RULES,
        programs: None,
        probes,
        seed: std::process::id(),
    })
}

fn main() -> Result<(), Error> {
    let mut words: Vec<String> = env::args().skip(1).collect();
    let before = words.len();
    words.retain(|word| word != "--no-probes");
    let probes = if words.len() < before {
        Probes::Off
    } else {
        Probes::On
    };
    let config = config(&words, probes)?;
    let book = Arc::new(Book::open(&PathBuf::from(&words[7]))?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let service = dhcp::start(config, Vec::new(), book, Arc::new(Printer)).await?;
        println!("ready");
        tokio::task::spawn_blocking(|| io::stdin().read_to_end(&mut Vec::new())).await??;
        service.stop().await;
        Ok(())
    })
}
