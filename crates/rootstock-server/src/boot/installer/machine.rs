//! What the templates of an installer see of a machine.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use rootstock_api::settings::Settings;
use rootstock_catalog::{NodeRow, Secret, Shareable};
use rootstock_core::VolumeName;
use serde::Serialize;

use crate::{
    app::App,
    boot::{files::url, networks::Network, orders, san},
    http::ApiError,
    targets,
};

/// What stands in the place of secrets where nothing is started.
const SHOWN: &str = "SECRET";

/// A machine, by the names that templates know. It has secrets in it.
#[derive(Serialize)]
pub(crate) struct Machine {
    node: Node,
    network: Addresses,
    /// The server's address.
    server: String,
    /// Where the installer's files are, without a slash at the end.
    url: String,
    /// What is called when it is done.
    done: String,
    /// What is called when it gives up, with `?reason=…`.
    failed: String,
    /// What is called with `?text=…` for the node's log.
    say: String,
    /// The machine's disk, where it is reached over iSCSI.
    disk: Option<Disk>,
    console: Option<String>,
    kernel_arguments: Option<String>,
}

#[derive(Serialize)]
struct Node {
    name: String,
    mac: Option<String>,
    macs: Vec<String>,
    uuid: Option<String>,
    tags: Vec<String>,
}

#[derive(Serialize)]
struct Addresses {
    address: Option<String>,
    netmask: Option<String>,
    gateway: Option<String>,
    name_servers: Vec<String>,
    domain: Option<String>,
}

#[derive(Serialize)]
struct Disk {
    volume: String,
    address: String,
    port: u16,
    target: String,
    lun: u8,
    initiator: String,
    user: Option<String>,
    password: Option<String>,
}

/// What a machine is, as the catalog and its network know it.
pub(super) struct Known<'a> {
    pub(super) node: &'a NodeRow,
    pub(super) settings: &'a Settings,
    pub(super) network: &'a Network,
    /// Its address, where it has asked.
    pub(super) peer: Option<IpAddr>,
    /// The address of ours that it reaches.
    pub(super) local: IpAddr,
}

impl Machine {
    /// A machine that has a token.
    pub(super) async fn with_token(
        app: &App,
        known: Known<'_>,
        token: &str,
    ) -> Result<Self, ApiError> {
        let disk = match known.settings.is_iscsi() {
            true => Some(disk(app, &known).await?),
            false => None,
        };
        Ok(Self::new(app, &known, token, disk))
    }

    /// A machine as it would be seen, with no secrets in it.
    pub(super) fn without_token(app: &App, known: &Known<'_>) -> Self {
        let volume = orders::volume_of(&known.node.name, known.settings);
        let volume = volume.ok().filter(|_| known.settings.is_iscsi());
        let portal = SocketAddr::new(known.local, 3260);
        let portal = san::portal(app, known.local).unwrap_or(portal);
        let has_secret = known.settings.chap == Some(true);
        let secret = has_secret.then(|| Secret::new(SHOWN.to_owned()));
        let disk = volume.map(|volume| Disk::new(app, known, &volume, portal, secret.as_ref()));
        Self::new(app, known, SHOWN, disk)
    }

    fn new(app: &App, known: &Known<'_>, token: &str, disk: Option<Disk>) -> Self {
        let Known {
            node,
            settings,
            network,
            peer,
            local,
        } = known;
        let base = url("http", *local, app.config.boot.http_port);
        let path = super::path(token);
        let url = format!("{base}{}", path.trim_end_matches('/'));
        let text = |address: Ipv4Addr| address.to_string();
        let mask = network.subnet.map(|subnet| {
            let bits = u32::MAX.checked_shl(32 - u32::from(subnet.prefix));
            text(Ipv4Addr::from_bits(bits.unwrap_or(0)))
        });
        let peer = peer.map(|peer| peer.to_string());
        let config = &network.config;
        Self {
            node: Node {
                name: node.name.to_string(),
                mac: node.macs.first().map(ToString::to_string),
                macs: node.macs.iter().map(ToString::to_string).collect(),
                uuid: node.uuid.clone(),
                tags: settings.tags.clone().unwrap_or_default(),
            },
            network: Addresses {
                address: peer.or_else(|| node.address.map(text)),
                netmask: mask,
                gateway: config.gateway.map(text),
                name_servers: config.name_servers.iter().copied().map(text).collect(),
                domain: config.domain.clone(),
            },
            server: local.to_string(),
            done: format!("{url}/done"),
            failed: format!("{url}/failed"),
            say: format!("{url}/say"),
            url,
            disk,
            console: settings.console.clone(),
            kernel_arguments: settings.kernel_arguments.clone(),
        }
    }
}

impl Disk {
    fn new(
        app: &App,
        known: &Known<'_>,
        volume: &VolumeName,
        portal: SocketAddr,
        secret: Option<&Secret>,
    ) -> Self {
        let initiator = targets::node_name(app, &known.node.name);
        Self {
            volume: volume.to_string(),
            address: portal.ip().to_string(),
            port: portal.port(),
            target: targets::own_target(app, volume),
            lun: 0,
            user: secret.map(|_| initiator.clone()),
            password: secret.map(|secret| secret.reveal().to_owned()),
            initiator,
        }
    }
}

/// The disk that was made ready when the installer was started.
async fn disk(app: &App, known: &Known<'_>) -> Result<Disk, ApiError> {
    let volume = orders::volume_of(&known.node.name, known.settings)?;
    let initiator = targets::node_name(app, &known.node.name);
    let shares = app.catalog.shares_with(&initiator).await?;
    let disk = Shareable::Volume(volume.clone());
    let share = shares.into_iter().find(|share| share.disk == disk);
    let secret = share.and_then(|share| share.secret);
    let portal = san::portal(app, known.local)?;
    Ok(Disk::new(app, known, &volume, portal, secret.as_ref()))
}
