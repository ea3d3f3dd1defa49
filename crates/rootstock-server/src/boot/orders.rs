//! Orders: what a machine is to run, and who it is.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use rootstock_api::{
    ProblemCode,
    boot::{
        BootOrder, Check, FillOrder, Identity, NodeMode, ORDER_BYTES_MAX, RootPlace, VolumePlace,
    },
    personal::PersonalOrder,
    settings::Settings,
};
use rootstock_catalog::{NodeRow, VersionRow};
use rootstock_core::{NodeName, VersionSpec, VolumeName};

use super::{
    control,
    exports::export_name,
    files::url,
    health, identity, installs,
    networks::Network,
    nfs,
    sessions::{REPORT_SECONDS, Session, Writes},
    swarm,
    told::{self, Additions},
};
use crate::{app::App, http::ApiError, nodes, volumes};

/// Memory for decompressed chunks on a node, unless its settings say otherwise.
const CACHE_BYTES: u64 = 64 << 20;

/// What holds for a node that is in a network.
pub(crate) async fn settings(
    app: &App,
    node: &NodeRow,
    network: &Network,
) -> Result<Settings, ApiError> {
    let interface = network.config.interface.as_deref();
    Ok(nodes::effective(app, node, interface).await?.settings)
}

/// The version that a node is to run. A personal volume stays on the version that
/// it was made from.
pub(crate) fn to_run(settings: &Settings, volume: Option<VersionSpec>) -> Option<VersionSpec> {
    let volume = volume.filter(|_| settings.has_volume());
    volume.or_else(|| settings.image.clone())
}

/// The order of a machine's session.
pub(crate) async fn make(
    app: &Arc<App>,
    session: &Session,
    secret: &str,
    peer: IpAddr,
    local: IpAddr,
) -> Result<BootOrder, ApiError> {
    let node = app.catalog.node(&session.node).await?;
    let network = app.boot.networks.of(peer, local);
    let settings = settings(app, &node, &network).await?;
    let version = &session.version;
    // Its kernel reads files, so that it has no chunks to give.
    let swarm = swarm::order(&settings).filter(|_| !settings.is_nfs());
    let fill = control::fill(&settings, &app.boot.clock.now()).order;
    if settings.mode == Some(NodeMode::Hold) {
        let no_root = RootPlace::default();
        return Ok(BootOrder {
            boot: secret.to_owned(),
            fill,
            swarm,
            ..plain(app, &node.name, version, &settings, no_root, local)
        });
    }
    let stages = app.boot.stages().ok_or_else(|| {
        ApiError::new(ProblemCode::Unavailable, "there is no first stage here")
            .with_hint("`rootstock boot doctor` says what is missing")
    })?;
    let stage = stages.get(app, version, &settings).await;
    let stage = stage.map_err(|reason| ApiError::new(ProblemCode::BadValue, reason))?;
    let spec = version.spec();
    let additions = told::booting(app, &session.boot, &node, &settings, &spec, &network).await;
    let volume = match settings.has_volume() {
        true => Some(place(app, session, &settings, &spec, local).await?),
        false => None,
    };
    let nfs = match settings.is_nfs() {
        true => {
            let ends = [peer, local];
            let at = nfs::place(app, &session.boot, &settings, version, &stage.root, ends);
            Some(at.await?)
        }
        false => None,
    };
    let _ = session.writes.set(Writes::of(&settings));
    let order = BootOrder {
        boot: secret.to_owned(),
        volume,
        nfs,
        personal: personal(app, &session.node, &settings).await?,
        install: installs::order(app, session, &settings).await?,
        fill,
        swarm,
        identity: identity(app, &node, &settings, &network, &additions).await?,
        ..plain(app, &node.name, version, &settings, stage.root, local)
    };
    Ok(order)
}

/// The order of a version without anything that is of one boot or secret.
pub(super) fn plain(
    app: &App,
    node: &NodeName,
    version: &VersionRow,
    settings: &Settings,
    root: RootPlace,
    local: IpAddr,
) -> BootOrder {
    BootOrder {
        boot: String::new(),
        node: node.to_string(),
        mode: settings.mode.unwrap_or_default(),
        image: version.image.clone(),
        version: version.number,
        manifest: version.manifest,
        disk_bytes: version.disk_bytes,
        root,
        volume: None,
        personal: None,
        nfs: None,
        chunk_urls: vec![url("http", local, app.config.boot.http_port)],
        overlay_bytes_max: settings.overlay_bytes_max,
        cache_bytes: settings.cache_bytes.unwrap_or(CACHE_BYTES),
        cache: settings.cache.clone().unwrap_or_default(),
        cache_disk_bytes_max: settings.cache_disk_bytes_max,
        install: None,
        fill: FillOrder::default(),
        swarm: None,
        keep: settings.keep.clone().unwrap_or_default(),
        report_seconds: REPORT_SECONDS,
        check: settings.check.clone().map(|command| Check {
            command,
            limit_seconds: health::limit(settings).seconds(),
        }),
        rescue_shell: settings.rescue_shell.unwrap_or(false),
        identity: Identity::default(),
    }
}

/// The bytes of an order, which are what is signed.
pub(crate) fn encode(order: &BootOrder) -> Result<Vec<u8>, ApiError> {
    let bytes = serde_json::to_vec(order);
    let bytes = bytes.map_err(|error| ApiError::internal("write an order", &error))?;
    if bytes.len() > ORDER_BYTES_MAX {
        let detail = format!(
            "the order of {} has {} bytes, and the limit is {ORDER_BYTES_MAX}",
            order.node,
            bytes.len()
        );
        return Err(ApiError::new(ProblemCode::TooLarge, detail)
            .with_hint("let plug-ins add fewer or smaller files"));
    }
    Ok(bytes)
}

async fn identity(
    app: &App,
    node: &NodeRow,
    settings: &Settings,
    network: &Network,
    additions: &Additions,
) -> Result<Identity, ApiError> {
    let key = identity::host_key(app, node).await?;
    app.boot.roster.key(&node.name, &key.public);
    let domain = network.config.domain.as_deref();
    let mut hosts = Vec::new();
    for entry in app.boot.roster.get(app).await.iter() {
        if let Some(address) = entry.address {
            hosts.push(match domain {
                Some(domain) => format!("{address} {0}.{domain} {0}", entry.name),
                None => format!("{address} {}", entry.name),
            });
        }
    }
    hosts.extend(additions.hosts.iter().cloned());
    let mut files = Vec::from(key.files());
    files.retain(|file| additions.files.iter().all(|other| other.path != file.path));
    files.extend(additions.files.iter().cloned());
    let mut more = BTreeMap::new();
    if let Some(tags) = &settings.tags {
        more.insert("tags".to_owned(), tags.join(" "));
    }
    more.extend(additions.settings.clone());
    let name_servers = network.config.name_servers.iter();
    Ok(Identity {
        host_name: additions
            .host_name
            .clone()
            .unwrap_or_else(|| node.name.to_string()),
        domain: network.config.domain.clone(),
        machine_id: identity::machine_id(&app.key, node),
        hosts,
        name_servers: name_servers.map(ToString::to_string).collect(),
        files,
        settings: more,
    })
}

/// What a node needs before it boots for the first time: in the modes that have one, its
/// own volume, once it is known what that is a clone of.
pub(crate) async fn allocate(app: &Arc<App>, node: &NodeRow) -> Result<(), ApiError> {
    let settings = nodes::effective(app, node, None).await?.settings;
    match &settings.image {
        Some(image) if settings.has_volume() || settings.is_iscsi() => {
            own_volume(app, &node.name, &settings, image).await
        }
        _ => Ok(()),
    }
}

/// Makes a node's own volume, unless it has one. One that it was given is not made
/// here.
pub(super) async fn own_volume(
    app: &Arc<App>,
    node: &NodeName,
    settings: &Settings,
    version: &VersionSpec,
) -> Result<(), ApiError> {
    let name = volume_of(node, settings)?;
    match app.catalog.volume(&name).await {
        Ok(_) => return Ok(()),
        Err(error) if settings.volume.is_some() => return Err(error.into()),
        Err(_) => {}
    }
    match volumes::create(app, name, version, None, volumes::Kind::bootable(false)).await {
        // Another request of the same node was quicker.
        Err(error) if error.0.code == ProblemCode::Exists => Ok(()),
        made => made.map(|_| ()),
    }
}

/// How a personal machine without a volume keeps what it writes.
async fn personal(
    app: &App,
    node: &NodeName,
    settings: &Settings,
) -> Result<Option<PersonalOrder>, ApiError> {
    if settings.mode != Some(NodeMode::Personal) || settings.has_volume() {
        return Ok(None);
    }
    Ok(Some(PersonalOrder {
        resets: app.catalog.personal_resets(node).await?,
        others: settings.other_writes.unwrap_or_default(),
    }))
}

/// Where a personal machine finds its own volume. It is made here when the node got
/// its mode or its image after it was registered.
async fn place(
    app: &Arc<App>,
    session: &Session,
    settings: &Settings,
    version: &VersionSpec,
    local: IpAddr,
) -> Result<VolumePlace, ApiError> {
    own_volume(app, &session.node, settings, version).await?;
    Ok(VolumePlace {
        address: std::net::SocketAddr::new(local, app.config.boot.nbd_port).to_string(),
        export: export_name(&app.key, &session.boot),
        tls: true,
    })
}

/// The name of a node's volume: its own, unless it was given another.
pub(crate) fn volume_of(node: &NodeName, settings: &Settings) -> Result<VolumeName, ApiError> {
    if let Some(name) = &settings.volume {
        return Ok(name.clone());
    }
    let name = node.as_str().parse();
    name.map_err(|error: rootstock_core::NameError| {
        ApiError::new(ProblemCode::BadName, error.to_string())
    })
}
