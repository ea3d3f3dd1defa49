//! DHCP with the rest of the daemon: leases in the catalog, nodes known by their
//! cards, and every answer a step of a boot.

use std::{
    io,
    sync::{Arc, Weak},
};

use jiff::{SignedDuration, Timestamp};
use rootstock_api::boot::BootStep;
use rootstock_catalog::{LeaseRow, LeaseState as RowState};
use rootstock_core::MacAddress;
use rootstock_netboot::{
    Millis,
    client::{Asker, Client},
    dhcp::{
        CommitError, Config, Event, InterfaceConfig, InterfaceId, Known, Lease, LeaseState, Mode,
        Network, Probes, Subnet, Unknown,
    },
    strategy::RULES,
};
use tokio::runtime::Handle;

use super::{
    dhcp::{BookEntry, BootEvents, DhcpService, LeaseBook, start},
    interfaces::BootPlace,
    programs::PROGRAMS,
    transcript::{DhcpStage, Told},
};
use crate::{
    app::{App, hex},
    config::{self, BootMode, NetworkConfig, UnknownPolicy},
    http::chain,
    nodes::Profiles,
};

/// How long a lease that is over is kept, so that a machine gets the address it had.
const LEASE_KEPT: SignedDuration = SignedDuration::from_hours(30 * 24);

/// How long firmware and iPXE have an address: the system asks again soon.
const BOOT_LEASE_SECONDS: u32 = 120;

/// Starts DHCP on these places.
pub(crate) async fn serve(app: &Arc<App>, places: &[BootPlace]) -> Result<DhcpService, String> {
    let on_links: Vec<_> = places
        .iter()
        .filter(|place| place.mac.is_some())
        .cloned()
        .collect();
    let config = configure(app, &on_links)?;
    let book = Arc::new(Book(Arc::clone(app)));
    let events = Arc::new(Steps {
        app: Arc::downgrade(app),
        interfaces: on_links.iter().map(|place| place.name.clone()).collect(),
        runtime: Handle::current(),
    });
    let service = start(config, known(app).await, book, events).await;
    service.map_err(|error| chain(&error))
}

/// The machines that the site knows.
pub(crate) async fn known(app: &App) -> Vec<Known> {
    let nodes = app.catalog.nodes().await.unwrap_or_default();
    let profiles = Profiles::read(app).await.unwrap_or_default();
    let each = nodes.into_iter().flat_map(|node| {
        // What cannot be read is said when the machine boots.
        let effective = profiles.of_node(&node, None).unwrap_or_default();
        let settings = effective.settings;
        let name = node.name.to_string();
        let address = node.address;
        node.macs.into_iter().map(move |mac| Known {
            mac,
            address,
            host_name: Some(name.clone()),
            strategy: settings.boot_strategy.clone(),
            wants_ipxe: settings.is_iscsi(),
        })
    });
    each.collect()
}

/// How machines were booted the last time that it worked.
pub(crate) async fn worked(app: &App) -> Vec<(MacAddress, String)> {
    let mut worked = Vec::new();
    for known in known(app).await {
        if let Ok(Some(strategy)) = app.catalog.strategy(known.mac).await {
            worked.push((known.mac, strategy));
        }
    }
    worked
}

fn configure(app: &App, places: &[BootPlace]) -> Result<Config, String> {
    let mut seed = [0; 4];
    getrandom::fill(&mut seed).map_err(|error| error.to_string())?;
    let configured = &app.config.network;
    let of = |place: &BootPlace| {
        let mut of = configured.iter();
        of.find(|network| network.interface.as_deref() == Some(&place.name))
            .cloned()
            .unwrap_or_default()
    };
    let mut interfaces = Vec::new();
    let mut networks = Vec::new();
    for (number, place) in places.iter().enumerate() {
        let Some(mac) = place.mac else { continue };
        let own = of(place);
        let mode = match place.mode {
            BootMode::Auto => own.mode,
            mode => mode,
        };
        interfaces.push(InterfaceConfig {
            name: place.name.clone(),
            mac,
            address: place.address,
            mode: mode_of(mode),
            unknown: unknown(own.unknown),
        });
        let subnet = own.subnet.unwrap_or(place.subnet);
        networks.push(network(
            &own,
            place.name.clone(),
            Some(InterfaceId(number)),
            subnet,
        ));
    }
    for relayed in configured
        .iter()
        .filter(|network| network.interface.is_none())
    {
        if let Some(subnet) = relayed.subnet {
            networks.push(network(relayed, relayed.label(), None, subnet));
        }
    }
    let there = PROGRAMS.iter().map(|program| program.name);
    let there = there.filter(|name| app.boot.programs.find(name).is_some());
    Ok(Config {
        interfaces,
        networks,
        http_port: app.config.boot.http_port,
        rules: RULES,
        programs: Some(there.map(str::to_owned).collect()),
        probes: Probes::On,
        seed: u32::from_le_bytes(seed),
    })
}

fn network(
    config: &NetworkConfig,
    name: String,
    interface: Option<InterfaceId>,
    subnet: config::Subnet,
) -> Network {
    let pool = config.pool.or_else(|| subnet.upper_half());
    Network {
        name,
        interface,
        subnet: Subnet::of(subnet.network, subnet.prefix),
        pool: pool.map(|pool| (pool.first, pool.last)),
        gateway: config.gateway,
        name_servers: config.name_servers.clone(),
        domain: config.domain.clone(),
        lease: Millis::seconds(config.lease_seconds()),
        boot_lease: Millis::seconds(BOOT_LEASE_SECONDS),
        relays: config.relays.clone(),
        unknown: unknown(config.unknown),
    }
}

/// What DHCP calls a mode.
pub(super) fn mode_of(mode: BootMode) -> Mode {
    match mode {
        BootMode::Auto => Mode::Auto,
        BootMode::Dhcp => Mode::Dhcp,
        BootMode::Proxy => Mode::Proxy,
        BootMode::Observe | BootMode::Off => Mode::Observe,
    }
}

fn unknown(policy: UnknownPolicy) -> Unknown {
    match policy {
        UnknownPolicy::Auto => Unknown::Auto,
        UnknownPolicy::Ignore => Unknown::Ignore,
        // Both fetch a script, which registers them.
        UnknownPolicy::Hold | UnknownPolicy::Register => Unknown::Boot,
    }
}

/// Leases in the catalog.
struct Book(Arc<App>);

impl LeaseBook for Book {
    async fn load(&self) -> io::Result<Vec<Lease>> {
        let catalog = &self.0.catalog;
        let old = Timestamp::now() - LEASE_KEPT;
        catalog.leases_expire(old).await.map_err(io::Error::other)?;
        let rows = catalog.leases().await.map_err(io::Error::other)?;
        Ok(rows.into_iter().map(lease).collect())
    }

    async fn write(&self, entries: Vec<BookEntry>) -> Vec<Result<(), CommitError>> {
        let mut answers = Vec::with_capacity(entries.len());
        let mut commits = Vec::new();
        for entry in entries {
            match entry {
                BookEntry::Commit(lease) => commits.push(row(&lease)),
                // In their order: what was to be given before is given first.
                BookEntry::Release { address, mac, now } => {
                    answers.append(&mut self.commit(&mut commits).await);
                    let done = self.0.catalog.lease_release(address, mac, time(now)).await;
                    answers.push(done.map(drop).map_err(|_| CommitError::Failed));
                }
                BookEntry::Decline {
                    address,
                    mac,
                    until,
                } => {
                    answers.append(&mut self.commit(&mut commits).await);
                    let done = self
                        .0
                        .catalog
                        .lease_decline(address, mac, time(until))
                        .await;
                    answers.push(done.map(drop).map_err(|_| CommitError::Failed));
                }
            }
        }
        answers.append(&mut self.commit(&mut commits).await);
        answers
    }
}

impl Book {
    async fn commit(&self, rows: &mut Vec<LeaseRow>) -> Vec<Result<(), CommitError>> {
        if rows.is_empty() {
            return Vec::new();
        }
        let rows = std::mem::take(rows);
        match self.0.catalog.lease_commit_many(&rows).await {
            Ok(answers) => {
                let answers = answers.into_iter();
                answers
                    .map(|done| done.map_err(|_| CommitError::Taken))
                    .collect()
            }
            Err(error) => {
                tracing::error!(error = chain(&error), "leases not written");
                vec![Err(CommitError::Failed); rows.len()]
            }
        }
    }
}

fn lease(row: LeaseRow) -> Lease {
    Lease {
        address: row.address,
        mac: row.mac,
        client_id: unhex(&row.client_id),
        host_name: row.host_name,
        network: row.network,
        state: match row.state {
            RowState::Bound => LeaseState::Bound,
            RowState::Released => LeaseState::Released,
            RowState::Declined => LeaseState::Declined,
        },
        started: millis(row.started),
        expires: millis(row.expires),
    }
}

fn row(lease: &Lease) -> LeaseRow {
    LeaseRow {
        address: lease.address,
        mac: lease.mac,
        client_id: hex(&lease.client_id),
        host_name: lease.host_name.clone(),
        node: None,
        network: lease.network.clone(),
        state: match lease.state {
            LeaseState::Bound => RowState::Bound,
            LeaseState::Released => RowState::Released,
            LeaseState::Declined => RowState::Declined,
        },
        started: time(lease.started),
        expires: time(lease.expires),
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let pair = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    (0..text.len()).step_by(2).filter_map(pair).collect()
}

fn time(millis: Millis) -> Timestamp {
    let millis = i64::try_from(millis.0).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX)
}

fn millis(time: Timestamp) -> Millis {
    Millis(u64::try_from(time.as_millisecond()).unwrap_or(0))
}

/// Makes steps of what happens.
struct Steps {
    app: Weak<App>,
    interfaces: Vec<String>,
    runtime: Handle,
}

impl Steps {
    fn name(&self, interface: InterfaceId) -> &str {
        self.interfaces.get(interface.0).map_or("?", String::as_str)
    }
}

impl BootEvents for Steps {
    fn event(&self, _: Millis, event: &Event) {
        let Some(app) = self.app.upgrade() else {
            return;
        };
        let step = |client: &Client, step, detail: String| {
            let told = Told::new(step, detail);
            app.boot.transcripts.dhcp(client.mac, stage(client), told);
        };
        match event {
            Event::Discovered { client, .. } => step(client, BootStep::Discovered, String::new()),
            Event::Offered {
                client,
                address,
                boot,
            } => {
                let address = address.map(|address| address.to_string());
                let file = boot.as_ref().map(|boot| boot.file.clone());
                let parts: Vec<_> = address.into_iter().chain(file).collect();
                step(client, BootStep::Offered, parts.join(" "));
            }
            Event::Acknowledged {
                client, address, ..
            } => step(client, BootStep::Acknowledged, address.to_string()),
            Event::Rival {
                interface, server, ..
            } => {
                let name = self.name(*interface);
                app.boot.networks.rival(name, *server);
                tracing::warn!(interface = name, %server, "another DHCP server answers");
            }
            Event::Decided {
                interface, mode, ..
            } => {
                let mode = match mode {
                    Mode::Auto => BootMode::Auto,
                    Mode::Dhcp => BootMode::Dhcp,
                    Mode::Proxy => BootMode::Proxy,
                    Mode::Observe => BootMode::Observe,
                };
                let name = self.name(*interface);
                app.boot.networks.set_mode(name, mode);
                tracing::info!(interface = name, %mode, "boot mode decided");
            }
            Event::Worked { mac, strategy } => {
                let (mac, strategy): (MacAddress, &'static str) = (*mac, strategy);
                self.runtime.spawn(async move {
                    let now = Timestamp::now();
                    let kept = app.catalog.remember_strategy(mac, strategy, now).await;
                    if let Err(error) = kept {
                        tracing::warn!(%mac, error = chain(&error), "strategy not kept");
                    }
                });
            }
            Event::Conflict { address, mac, .. } => {
                tracing::warn!(%address, %mac, "somebody uses an address of the pool");
            }
            Event::Exhausted { network, mac } => {
                tracing::error!(network, %mac, "no address left");
            }
            Event::Silent {
                mac,
                strategy,
                next,
            } => tracing::warn!(%mac, strategy, next, "machine did not go on"),
            Event::Refused { .. }
            | Event::Released { .. }
            | Event::NotWritten { .. }
            | Event::Ignored { .. } => tracing::debug!(?event, "DHCP"),
        }
    }
}

fn stage(client: &Client) -> DhcpStage {
    match client.program {
        Asker::Pxe | Asker::Http => DhcpStage::Firmware,
        Asker::Ipxe(_) => DhcpStage::Ipxe,
        Asker::System => DhcpStage::System,
    }
}
