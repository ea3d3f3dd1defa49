//! The services of each boot address, and DHCP on all of them together.
//!
//! Interfaces come and go, and so do their addresses: they are looked at now and
//! then. What `auto` finds and cannot have is said once and tried again; what was
//! named and cannot be had ends the start ([`claim`]), since its administrator is
//! there to read it, and machines would wait in vain.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, UdpSocket},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rootstock_netboot::tftp;
use tokio::{net::TcpListener, runtime::Handle, sync::watch, task::JoinHandle};
use tokio_rustls::TlsAcceptor;

use super::{
    dhcp::{DhcpService, DhcpStartError, try_interface},
    exports, http,
    interfaces::{self, BootPlace, Interface, Wanted},
    leasing,
    listen::{Listener, Places},
    swarm::Head,
    tftp::{TftpServer, Transfers},
};
use crate::{
    app::App,
    config::{BootConfig, BootInterface, BootMode, Config},
    http::chain,
    nbd::{NbdConfig, NbdHandle, NbdLimits, NbdListener, NbdServer, NbdTls},
    stop::Stop,
    tls,
};

/// How often interfaces are looked at.
const SCAN_INTERVAL: Duration = Duration::from_secs(10);

/// How long NBD connections of personal machines may take to end.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// Why machines cannot be booted on an interface that was named.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// DHCP.
    #[error(transparent)]
    Dhcp(#[from] DhcpStartError),
    /// A port of another service.
    #[error(
        "open port {port} of {address} for {purpose}: another program may have it (see \
         'ss -lnptu'), or the daemon lacks CAP_NET_BIND_SERVICE"
    )]
    Port {
        /// The address.
        address: Ipv4Addr,
        /// The port.
        port: u16,
        /// What it is for.
        purpose: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Tries all that the interfaces need which were named; nothing stays open. One that
/// is not there, or has no address yet, may come.
///
/// # Errors
/// The interface, and what cannot be had there.
pub(crate) fn claim(config: &Config) -> Result<(), (String, ClaimError)> {
    let named: Vec<_> = config
        .boot
        .interfaces
        .iter()
        .filter(|one| one.names_a_place())
        .cloned()
        .collect();
    if named.is_empty() {
        return Ok(());
    }
    let wanted = Wanted {
        interfaces: &named,
        networks: &config.network,
        now: &[],
    };
    // What cannot be listed now is said by the services.
    let all = interfaces::discover().unwrap_or_default();
    for place in interfaces::choose(wanted, &all).0 {
        claim_place(&config.boot, &place).map_err(|error| (place.name, error))?;
    }
    Ok(())
}

fn claim_place(config: &BootConfig, place: &BootPlace) -> Result<(), ClaimError> {
    if let Some(mac) = place.mac {
        try_interface(&place.name, mac, leasing::mode_of(place.mode))?;
    }
    if place.mode == BootMode::Observe {
        return Ok(());
    }
    let address = place.address;
    let udp = UdpSocket::bind((address, tftp::PORT)).map(drop);
    let tcp = |port| std::net::TcpListener::bind((address, port)).map(drop);
    for (purpose, port, tried) in [
        ("TFTP", tftp::PORT, udp),
        ("HTTP", config.http_port, tcp(config.http_port)),
        ("HTTPS", config.https_port, tcp(config.https_port)),
        ("NBD", config.nbd_port, tcp(config.nbd_port)),
    ] {
        tried.map_err(|source| ClaimError::Port {
            address,
            port,
            purpose,
            source,
        })?;
    }
    claim_swarm(config.swarm_port)
}

/// Its port is had once, for all addresses. 0, which is none, can always be had.
fn claim_swarm(port: u16) -> Result<(), ClaimError> {
    let address = Ipv4Addr::UNSPECIFIED;
    let tried = std::net::TcpListener::bind((address, port)).map(drop);
    tried.map_err(|source| ClaimError::Port {
        address,
        port,
        purpose: "the swarm",
        source,
    })
}

/// The services of one address.
struct Served {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    nbd: Option<NbdHandle>,
    tftp: Option<TftpServer>,
}

impl Served {
    /// Starts TFTP unless it runs. Its port may be another server's for a while, and
    /// everything else works without it.
    fn ensure_tftp(&mut self, app: &Arc<App>, place: &BootPlace, transfers: &Arc<Transfers>) {
        if self.tftp.is_none() {
            match TftpServer::of_app(app, place.address, transfers) {
                Ok(tftp) => self.tftp = Some(tftp),
                Err(error) => {
                    let address = place.address;
                    lacks(
                        app,
                        &format!(
                            "cannot listen on {address}:69 for TFTP: {error} (is another TFTP server running?)"
                        ),
                    );
                }
            }
        }
    }

    async fn end(self) {
        self.stop.send_replace(true);
        if let Some(tftp) = self.tftp {
            let ended = tokio::task::spawn_blocking(move || tftp.shutdown());
            if ended.await.is_err() {
                tracing::error!("the TFTP server of a boot address panicked");
            }
        }
        if let Some(nbd) = self.nbd {
            let ended = tokio::task::spawn_blocking(move || nbd.shutdown(SHUTDOWN_PATIENCE));
            if ended.await.is_err() {
                tracing::error!("the NBD server of a boot address panicked");
            }
        }
        for task in self.tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a boot service panicked");
            }
        }
    }
}

/// Serves each boot address as long as it is there.
pub(super) async fn serve(app: Arc<App>, keys: PathBuf, mut stop: Stop) {
    let connections = Places::default();
    let transfers = Arc::default();
    let mut served: HashMap<(String, Ipv4Addr), Served> = HashMap::new();
    let mut dhcp = Dhcp::default();
    let mut head = Head::default();
    let mut idle = Idle::default();
    missing_directories(&app);
    loop {
        let (places, all) = look(&app).await;
        idle.tell(&app, &places, &all);
        let gone: Vec<_> = served
            .keys()
            .filter(|(name, address)| {
                let same = |place: &BootPlace| place.name == *name && place.address == *address;
                !places.iter().any(same)
            })
            .cloned()
            .collect();
        for key in gone {
            if let Some(services) = served.remove(&key) {
                tracing::info!(interface = key.0, address = %key.1, "boot services end");
                services.end().await;
            }
        }
        // Where it is only looked on, nothing is answered, however it is asked.
        let observed = |place: &BootPlace| place.mode == BootMode::Observe;
        let mut ready = Vec::with_capacity(places.len());
        for place in places {
            if observed(&place) {
                ready.push(place);
                continue;
            }
            let key = (place.name.clone(), place.address);
            if let Some(services) = served.get_mut(&key) {
                services.ensure_tftp(&app, &place, &transfers);
                ready.push(place);
                continue;
            }
            match start(&app, &keys, &place, &connections).await {
                Ok(mut services) => {
                    services.ensure_tftp(&app, &place, &transfers);
                    tracing::info!(
                        interface = place.name,
                        address = %place.address,
                        mode = %place.mode,
                        "boot services start"
                    );
                    served.insert(key, services);
                    ready.push(place);
                }
                Err(text) => lacks(&app, &text),
            }
        }
        if !served.is_empty() {
            head.follow(&app, &keys).await;
        }
        // Last: machines are sent to services that are there.
        dhcp.follow(&app, &ready).await;
        // A machine that was just added or changed is known at its next question.
        let stopped = tokio::select! {
            stopped = stop.rest(SCAN_INTERVAL) => stopped,
            () = app.nodes.changed() => false,
        };
        if stopped {
            break;
        }
    }
    dhcp.end().await;
    head.end(&app).await;
    for services in served.into_values() {
        services.end().await;
    }
}

/// Directories of boot programs that are not there may be mounted later.
fn missing_directories(app: &App) {
    for path in &app.config.boot.files {
        if !path.is_dir() {
            let path = path.display();
            lacks(
                app,
                &format!(
                    "{path} of boot.files is no directory: make or mount it, or take it out; it \
                     is looked at again whenever a boot program is asked for"
                ),
            );
        }
    }
}

/// Says that `auto` finds nothing to do, once until it does.
#[derive(Debug, Default)]
struct Idle {
    is_told: bool,
}

impl Idle {
    fn tell(&mut self, app: &App, places: &[BootPlace], all: &[Interface]) {
        let is_auto = app.config.boot.interfaces.contains(&BootInterface::Auto);
        let is_idle = is_auto && app.boot.auto_lack.is_none() && places.is_empty();
        if is_idle && !self.is_told {
            tracing::warn!(
                interfaces = interfaces::reasons(all),
                hint =
                    "name one with --boot IFACE=dhcp, IFACE=proxy or IFACE=auto, or say --boot off",
                "no interface on which machines could boot yet"
            );
        }
        self.is_told = is_idle;
    }
}

/// DHCP on all places together: it begins anew when they change. A place that cannot
/// be had keeps nothing from the others.
#[derive(Default)]
struct Dhcp {
    service: Option<DhcpService>,
    places: Vec<BootPlace>,
    /// Those of the places that cannot be had.
    refused: Vec<BootPlace>,
}

impl Dhcp {
    async fn follow(&mut self, app: &Arc<App>, places: &[BootPlace]) {
        let has_link = |place: &&BootPlace| place.mac.is_some();
        let places: Vec<_> = places.iter().filter(has_link).cloned().collect();
        let is_freed = self.refused.iter().any(|place| try_place(place).is_ok());
        if self.places == places && !is_freed {
            if let Some(service) = &self.service {
                service.handle().set_known(leasing::known(app).await).await;
            }
            return;
        }
        self.end().await;
        self.refused.clear();
        let mut free = Vec::with_capacity(places.len());
        for place in &places {
            match try_place(place) {
                Ok(()) => free.push(place.clone()),
                Err(error) => {
                    let why = chain(&error);
                    lacks(app, &format!("no DHCP for booting machines: {why}"));
                    self.refused.push(place.clone());
                }
            }
        }
        // When reading the leases fails, the next look tries all of it again.
        self.places.clear();
        if free.is_empty() {
            self.places = places;
            return;
        }
        match leasing::serve(app, &free).await {
            Ok(service) => {
                let handle = service.handle();
                handle.set_worked(leasing::worked(app).await).await;
                *app.boot.dhcp() = Some(handle);
                self.service = Some(service);
                self.places = places;
            }
            Err(text) => lacks(app, &format!("no DHCP for booting machines: {text}")),
        }
    }

    async fn end(&mut self) {
        if let Some(service) = self.service.take() {
            service.stop().await;
        }
    }
}

fn try_place(place: &BootPlace) -> Result<(), DhcpStartError> {
    let mode = leasing::mode_of(place.mode);
    place
        .mac
        .map_or(Ok(()), |mac| try_interface(&place.name, mac, mode))
}

/// Where machines are to be booted now, and what interfaces there are.
async fn look(app: &Arc<App>) -> (Vec<BootPlace>, Vec<Interface>) {
    let now = app.boot.networks.places();
    let before = now.clone();
    let looking = Arc::clone(app);
    let found = tokio::task::spawn_blocking(move || {
        let all = interfaces::discover()?;
        let config = &looking.config;
        let is_allowed =
            |one: &&BootInterface| **one != BootInterface::Auto || looking.boot.auto_lack.is_none();
        let asked: Vec<_> = config
            .boot
            .interfaces
            .iter()
            .filter(is_allowed)
            .cloned()
            .collect();
        let wanted = Wanted {
            interfaces: &asked,
            networks: &config.network,
            now: &before,
        };
        Ok::<_, io::Error>((interfaces::choose(wanted, &all), all))
    });
    match found.await {
        Ok(Ok(((places, missing), all))) => {
            for text in missing {
                lacks(app, &text);
            }
            app.boot.networks.set_places(places.clone());
            (places, all)
        }
        Ok(Err(error)) => {
            lacks(
                app,
                &format!("network interfaces cannot be listed: {error}"),
            );
            (now, Vec::new())
        }
        Err(error) => {
            tracing::error!(%error, "looking at interfaces panicked");
            (now, Vec::new())
        }
    }
}

/// Says once what the boot services lack.
pub(super) fn lacks(app: &App, text: &str) {
    if app.boot.networks.lack(text.to_owned()) {
        tracing::warn!(lack = text, "boot services lack something");
    }
}

async fn start(
    app: &Arc<App>,
    keys: &Path,
    place: &BootPlace,
    connections: &Places,
) -> Result<Served, String> {
    let config = &app.config.boot;
    let http = bind(place.address, config.http_port, "HTTP").await?;
    let https = bind(place.address, config.https_port, "HTTPS").await?;
    let nbd = bind(place.address, config.nbd_port, "NBD").await?;
    let names = [place.address.to_string(), "localhost".to_owned()];
    let keys = keys.to_owned();
    let tls = tokio::task::spawn_blocking(move || tls::site_config(&keys, &names)).await;
    let tls = match tls {
        Ok(tls) => tls.map_err(|error| chain(&error))?,
        Err(error) => return Err(format!("the certificate was not made: {error}")),
    };
    let (stop, stopped) = Stop::new();
    let router = http::router(Arc::clone(app));
    let listener = |tls: Option<TlsAcceptor>| Listener {
        router: router.clone(),
        places: connections.clone(),
        tls,
        stop: stopped.clone(),
    };
    let acceptor = TlsAcceptor::from(Arc::clone(&tls));
    let nbd = volumes_server(app, nbd, tls)?;
    let tasks = vec![
        tokio::spawn(listener(None).serve(http)),
        tokio::spawn(listener(Some(acceptor)).serve(https)),
    ];
    Ok(Served {
        stop,
        tasks,
        nbd: Some(nbd),
        tftp: None,
    })
}

async fn bind(address: Ipv4Addr, port: u16, what: &str) -> Result<TcpListener, String> {
    TcpListener::bind((address, port)).await.map_err(|error| {
        format!("cannot listen on {address}:{port} for {what} of booting machines: {error}")
    })
}

/// NBD for personal machines: their own volumes and nothing else.
fn volumes_server(
    app: &Arc<App>,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
) -> Result<NbdHandle, String> {
    let failed = |error: io::Error| format!("cannot serve NBD to booting machines: {error}");
    let listener = listener.into_std().map_err(failed)?;
    listener.set_nonblocking(false).map_err(failed)?;
    let config = NbdConfig {
        listeners: vec![NbdListener::Tcp(listener)],
        tls: NbdTls::Required(tls),
        limits: NbdLimits {
            connections_max: app.config.nbd.connections_max as usize,
            ..NbdLimits::default()
        },
    };
    let exports = exports::SessionExports::new(app, Handle::current());
    NbdServer::start(config, Arc::new(exports)).map_err(failed)
}
