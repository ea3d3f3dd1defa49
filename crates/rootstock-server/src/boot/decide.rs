//! What a machine is told to boot: the way from its card's address to a script.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use rootstock_api::{
    boot::{BootStep, NodeMode},
    settings::Settings,
};
use rootstock_catalog::{
    BootRow, CatalogError, InstallationRow, NewBoot, NewToken, NodeRow, NodeState, Registered,
    Registration, VersionRow,
};
use rootstock_core::{Digest, HostList, MacAddress, VersionSpec};
use rootstock_netboot::{
    dhcp::{Progress, Who},
    script::{Address, Argument, BootPlan, LinuxPlan, SanPlan},
};

use super::{
    files::{self, Asked, url},
    health::{self, Chosen},
    installer,
    installs::{self, Way},
    networks::Network,
    nfs, orders, san,
    stage::Stage,
    staged::TOKEN_LIFE,
    told::{self, Additions},
    transcript::Told,
};
use crate::{
    app::{App, random_id},
    config::UnknownPolicy,
    http::{ApiError, chain},
    nodes,
};

/// What a machine is told.
pub(crate) enum Decision {
    /// To boot.
    Boot(Box<Ready>),
    /// To wait, and why.
    Wait {
        /// For its screen.
        lines: Vec<String>,
    },
    /// To wait, since it asks in the name of another machine.
    Refused {
        /// For its screen.
        lines: Vec<String>,
    },
    /// To start what is installed on its own disk.
    OwnDisk {
        /// For its screen.
        title: String,
    },
    /// To start what is on its disk, which it reaches over iSCSI.
    San(Box<SanPlan>),
    /// To start a kernel and an initrd that are not ours: an installer's, or its disk's.
    Linux(Box<LinuxPlan>),
    /// To boot what it has on its own disk.
    Local {
        /// Why.
        reason: String,
    },
    /// That it cannot be booted now.
    Failed {
        /// What the server could not do.
        step: &'static str,
        /// Why.
        reason: String,
    },
}

/// A machine that may go on.
pub(crate) struct Ready {
    title: String,
    token: String,
    arguments: Vec<Argument>,
    address: Option<Address>,
}

impl Ready {
    /// The boot token.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    /// The plan that a script is made of.
    pub(crate) fn plan(
        &self,
        app: &App,
        asked: Asked<'_>,
        mac: MacAddress,
        address: Address,
    ) -> BootPlan<'_> {
        let boot = &app.config.boot;
        let mut urls = vec![url("https", asked.local, boot.https_port)];
        if boot.plain_orders {
            urls.push(url("http", asked.local, boot.http_port));
        }
        BootPlan {
            title: self.title.clone(),
            base: asked.base(app),
            mac: mac.dashed(),
            urls,
            token: &self.token,
            address: self.address.unwrap_or(address),
            arguments: &self.arguments,
            shim: files::shim(app, asked),
        }
    }
}

pub(super) type Step<T> = Result<T, Decision>;

/// Decides, registers, and makes a token when the machine may boot.
pub(crate) async fn decide(app: &Arc<App>, asked: Asked<'_>, mac: MacAddress) -> Decision {
    app.boot.progress(Who::Card(mac), Progress::Script);
    noted(app, mac, decided(app, asked, mac, None).await)
}

/// As [`decide`], for a machine that runs a version from its own disk: there is a
/// token for that one alone.
pub(crate) async fn decide_local(
    app: &Arc<App>,
    asked: Asked<'_>,
    mac: MacAddress,
    runs: &Runs,
) -> Decision {
    noted(app, mac, decided(app, asked, mac, Some(runs)).await)
}

/// What a machine runs that started from its own disk.
pub(crate) struct Runs {
    /// By its number.
    pub(crate) version: VersionSpec,
    /// By its content, which a number does not tell after an image was deleted and made
    /// anew; an agent of an older release does not say it.
    pub(crate) manifest: Option<Digest>,
}

impl Runs {
    /// Whether a machine that started so goes on as it is to.
    fn goes_on_as(&self, node: &NodeRow, settings: &Settings, version: &VersionRow) -> Step<()> {
        let (name, to_run) = (&node.name, version.spec());
        let reason = if self.version != to_run {
            format!("{name} runs {} and is to run {to_run}", self.version)
        } else if self
            .manifest
            .is_some_and(|manifest| manifest != version.manifest)
        {
            format!("{name} runs another {to_run} than there is now")
        } else {
            match settings.mode.unwrap_or_default() {
                NodeMode::Diskless => return Ok(()),
                mode => format!("{name} runs as diskless and is to be {mode}"),
            }
        };
        Err(Decision::Local { reason })
    }
}

/// A token for a machine with a system of its own, which is to hold its image for
/// others.
pub(crate) async fn decide_hold(
    app: &Arc<App>,
    asked: Asked<'_>,
    mac: MacAddress,
) -> Result<String, Decision> {
    let decided = holds(app, asked, mac).await;
    decided.inspect_err(|decision| note(app, mac, decision))
}

async fn holds(app: &Arc<App>, asked: Asked<'_>, mac: MacAddress) -> Step<String> {
    let network = app.boot.networks.of(asked.peer, asked.local);
    let node = node(app, asked, mac, &network).await?;
    refuse_impostor(app, &node, asked.peer).await?;
    let settings = settings(app, &node, &network).await?;
    if node.state == NodeState::Held {
        return Err(wait(&node, mac));
    }
    if settings.mode != Some(NodeMode::Hold) {
        let name = &node.name;
        let line = format!(
            "{name} is not to hold an image: `rootstock node set {name} --mode hold` says so"
        );
        return Err(Decision::Refused { lines: vec![line] });
    }
    let image = settings.image.clone().ok_or_else(|| no_image(&node))?;
    let chosen = choose(app, &node, &settings, image).await?;
    let (_, token) = begin(app, &node, mac, asked.peer, &settings, &chosen.version).await?;
    Ok(token)
}

fn noted(app: &App, mac: MacAddress, decided: Step<Ready>) -> Decision {
    match decided {
        Ok(ready) => Decision::Boot(Box::new(ready)),
        Err(decision) => {
            note(app, mac, &decision);
            decision
        }
    }
}

/// Why a machine does not go on is to be found later.
fn note(app: &App, mac: MacAddress, decision: &Decision) {
    match decision {
        Decision::Failed { step, reason } => {
            let detail = format!("the server could not {step}: {reason}");
            app.boot
                .transcripts
                .step(mac, Told::new(BootStep::Failed, detail));
        }
        Decision::Wait { .. } => app
            .boot
            .transcripts
            .step(mac, Told::new(BootStep::Held, "")),
        Decision::Local { reason } => tracing::info!(%mac, reason, "machine boots its own disk"),
        Decision::Boot(_)
        | Decision::OwnDisk { .. }
        | Decision::San(_)
        | Decision::Linux(_)
        | Decision::Refused { .. } => {}
    }
}

async fn settings(app: &App, node: &NodeRow, network: &Network) -> Step<Settings> {
    let settings = orders::settings(app, node, network).await;
    settings.map_err(|error| failed("read the node's settings", error.0.to_string()))
}

async fn decided(
    app: &Arc<App>,
    asked: Asked<'_>,
    mac: MacAddress,
    runs: Option<&Runs>,
) -> Step<Ready> {
    let network = app.boot.networks.of(asked.peer, asked.local);
    let node = node(app, asked, mac, &network).await?;
    refuse_impostor(app, &node, asked.peer).await?;
    let settings = settings(app, &node, &network).await?;
    let held = node.state == NodeState::Held;
    if !held && runs.is_none() {
        installer::next(app, asked, &node, mac, &settings, &network).await?;
    }
    if settings.mode == Some(NodeMode::Hold) {
        let reason = format!(
            "{} holds its image for others and starts by itself",
            node.name
        );
        return Err(Decision::Local { reason });
    }
    let Some(image) = image(app, &node, &settings).await else {
        return Err(if held {
            wait(&node, mac)
        } else {
            no_image(&node)
        });
    };
    let goes_on = app.boot.transcripts.open_boot(mac);
    health::judge_earlier(app, &node.name, goes_on.as_deref()).await;
    let chosen = choose(app, &node, &settings, image).await;
    if settings.is_iscsi() {
        if held {
            return Err(wait(&node, mac));
        }
        let chosen = chosen?;
        if let Some(runs) = runs {
            runs.goes_on_as(&node, &settings, &chosen.version)?;
        }
        return Err(san::start(app, asked, &node, mac, &settings, &network, chosen).await?);
    }
    let mut back_from = None;
    if let Ok(chosen) = &chosen
        && !held
    {
        back_from = own_disk(app, asked, &node, mac, &settings, chosen).await?;
    }
    let staged = match chosen {
        Ok(chosen) => stage(app, &settings, chosen).await,
        Err(decision) => Err(decision),
    };
    let (chosen, stage) = match staged {
        Ok(staged) => staged,
        // The machine would have nothing to wait in.
        Err(_) if held => return Err(wait(&node, mac)),
        Err(decision) => return Err(decision),
    };
    if let Some(runs) = runs {
        runs.goes_on_as(&node, &settings, &chosen.version)?;
    }
    let Chosen { version, abandoned } = chosen;
    let (boot, token) = begin(app, &node, mac, asked.peer, &settings, &version).await?;
    nfs::prepare(app, &node, &boot, &settings, &version, &stage.root).await?;
    let spec = version.spec();
    let plan = told::booting(app, &boot, &node, &settings, &spec, &network).await;
    let arguments = arguments(&settings, &stage, &plan.kernel_arguments);
    let arguments = arguments.map_err(|reason| failed("use the kernel arguments", reason))?;
    let address = address(app, &plan, &network, &boot);
    if let Some(Address::Known { ip, .. }) = address {
        // The first stage gives the token in from its own address.
        let again = new_token(&token, ip.into());
        let armed = app.catalog.arm_boot(&boot, &again).await;
        armed.map_err(|error| failed("begin a boot", chain(&error)))?;
    }
    app.boot
        .staged
        .offer(&token, asked.peer, mac, node.name.clone(), boot, stage);
    let title = if held {
        format!(
            "{} ({mac}) is held: `rootstock node approve {}`",
            node.name, node.name
        )
    } else {
        format!("{} boots {spec}", node.name)
    };
    let says = health::says(&spec, &node.name, abandoned.as_ref());
    app.boot
        .transcripts
        .step(mac, Told::new(BootStep::ScriptServed, says));
    if let (Some(row), Some(boot)) = (back_from, app.boot.transcripts.open_boot(mac)) {
        app.boot.transcripts.note(&boot, installs::says_back(&row));
    }
    Ok(Ready {
        title,
        token,
        arguments,
        address,
    })
}

/// Sends a machine to its own disk that has what it is to run installed there, and ends
/// its way here. Answers the installation when it was there and is back.
async fn own_disk(
    app: &Arc<App>,
    asked: Asked<'_>,
    node: &NodeRow,
    mac: MacAddress,
    settings: &Settings,
    chosen: &Chosen,
) -> Step<Option<InstallationRow>> {
    let lost = |error: ApiError| failed("look for an installation", error.0.to_string());
    let way = installs::way(app, &node.name, settings, &chosen.version, asked.query).await;
    match way.map_err(lost)? {
        Way::Network => Ok(None),
        Way::BackFrom(row) => Ok(Some(row)),
        Way::OwnDisk(row) => {
            let left = installs::leave(app, node, mac, &row).await;
            left.map_err(lost)?;
            Err(Decision::OwnDisk {
                title: format!("{} starts {} from its own disk", node.name, row.version),
            })
        }
    }
}

/// The address that a plug-in gave the machine, when it is one of its network.
fn address(app: &App, plan: &Additions, network: &Network, boot: &str) -> Option<Address> {
    let ip = plan.address?;
    let Some(subnet) = network.subnet.filter(|subnet| subnet.contains(ip)) else {
        let detail = format!("a plug-in's address left out: {ip} is not in the machine's network");
        tracing::warn!(boot, %ip, "a plug-in's address is not in the machine's network");
        app.boot.transcripts.note(boot, detail);
        return None;
    };
    let mask = u32::MAX
        .checked_shl(32 - u32::from(subnet.prefix))
        .unwrap_or(0);
    Some(Address::Known {
        ip,
        netmask: Ipv4Addr::from_bits(mask),
        gateway: network.config.gateway,
        name_server: network.config.name_servers.first().copied(),
    })
}

/// Refuses whoever asks in the name of a machine that is on its way or up, from
/// another address and another card: what they got would end that machine's boot.
/// Where nobody knows the asker's card, or it has the same address, the machine
/// itself may have been switched off and on.
async fn refuse_impostor(app: &Arc<App>, node: &NodeRow, peer: IpAddr) -> Step<()> {
    let card = app.boot.card_at(peer).await;
    let Some(card) = card.filter(|card| !node.macs.contains(card)) else {
        return Ok(());
    };
    let boots = app.catalog.boots_of(&node.name).await;
    let boots = boots.map_err(|error| failed("look the machine up", chain(&error)))?;
    let is_live = |boot: &BootRow| {
        boot.ended.is_none()
            && boot.source.is_some_and(|source| source != peer)
            && (app.boot.transcripts.is_followed(&boot.id) || app.boot.sessions.is_alive(&boot.id))
    };
    let Some(boot) = boots.into_iter().find(is_live) else {
        return Ok(());
    };
    tracing::warn!(%peer, %card, node = %node.name, boot = boot.id, "impostor refused");
    let detail = format!("refused {peer} ({card}): it asked for this machine's script");
    app.boot.transcripts.note(&boot.id, detail);
    Err(Decision::Refused {
        lines: vec![
            format!("{} is on its way or up, at another address.", node.name),
            format!("This card is {card}, which is not one of its cards."),
        ],
    })
}

/// The node of a card, found or registered.
async fn node(
    app: &Arc<App>,
    asked: Asked<'_>,
    mac: MacAddress,
    network: &Network,
) -> Step<NodeRow> {
    let lost = |error: CatalogError| failed("look the machine up", chain(&error));
    let uuid = asked.query.and_then(uuid_of);
    if let Some(node) = app.catalog.node_by_mac(mac).await.map_err(lost)? {
        return Ok(node);
    }
    if let Some(uuid) = &uuid
        && let Some(node) = app.catalog.node_by_uuid(uuid).await.map_err(lost)?
    {
        return Ok(node);
    }
    let state = match network.unknown() {
        UnknownPolicy::Ignore => {
            return Err(Decision::Local {
                reason: format!("{mac} is not managed here, its own disk boots"),
            });
        }
        UnknownPolicy::Register => NodeState::Ready,
        UnknownPolicy::Hold | UnknownPolicy::Auto => NodeState::Held,
    };
    register(app, mac, uuid, network, state).await
}

async fn register(
    app: &Arc<App>,
    mac: MacAddress,
    uuid: Option<String>,
    network: &Network,
    state: NodeState,
) -> Step<NodeRow> {
    let refused = |reason: String| failed("register the machine", reason);
    let names: HostList = network
        .names()
        .parse()
        .map_err(|error: rootstock_core::HostListError| refused(error.to_string()))?;
    let profile = network.config.profile.as_deref();
    let profile = profile.map(str::parse).transpose();
    let profile = profile.map_err(|error: rootstock_core::NameError| refused(error.to_string()))?;
    let registration = Registration {
        names: &names,
        macs: vec![mac],
        uuid,
        profile,
        state,
        inventory: None,
    };
    let registered = nodes::register(app, registration).await;
    match registered.map_err(|error| refused(error.0.to_string()))? {
        Registered::Known(node) | Registered::New(node) => Ok(node),
    }
}

/// What a node is assigned: an image, or what the volume was made from that it was
/// given, or that it has without an image.
async fn image(app: &App, node: &NodeRow, settings: &Settings) -> Option<VersionSpec> {
    let is_given = settings.has_volume() && settings.volume.is_some();
    match &settings.image {
        Some(image) if !is_given => Some(image.clone()),
        _ if settings.has_volume() => {
            let volume = orders::volume_of(&node.name, settings).ok()?;
            Some(app.catalog.volume(&volume).await.ok()?.base())
        }
        _ => None,
    }
}

/// The version that a node is to run.
async fn choose(
    app: &Arc<App>,
    node: &NodeRow,
    settings: &Settings,
    image: VersionSpec,
) -> Step<Chosen> {
    let volume = match orders::volume_of(&node.name, settings) {
        Ok(name) => app.catalog.volume(&name).await.ok(),
        Err(_) => None,
    };
    let volume = volume.map(|volume| volume.base());
    let spec = orders::to_run(settings, volume).unwrap_or(image);
    let version = app.catalog.resolve(&spec).await;
    let version = version.map_err(|error| failed("find the image", chain(&error)))?;
    let chosen = health::choose(app, &node.name, settings, version).await;
    chosen.map_err(|error| failed("choose the version", error.0.to_string()))
}

/// What a version boots with.
async fn stage(app: &Arc<App>, settings: &Settings, chosen: Chosen) -> Step<(Chosen, Stage)> {
    let Some(stages) = app.boot.stages() else {
        return Err(failed(
            "make a first stage",
            "this daemon has none: rootstock-agent was not found (`rootstock boot doctor`)"
                .to_owned(),
        ));
    };
    let stage = stages.get(app, &chosen.version, settings).await;
    let stage = stage.map_err(|reason| failed("make the first stage", reason))?;
    Ok((chosen, stage))
}

/// The boot of a version by a machine, and a new token for it.
pub(super) async fn begin(
    app: &App,
    node: &NodeRow,
    mac: MacAddress,
    peer: IpAddr,
    settings: &Settings,
    version: &VersionRow,
) -> Step<(String, String)> {
    let begun = armed(app, node, mac, peer).await;
    let (boot, token) = begun.map_err(|error| failed("begin a boot", error))?;
    let limit = health::limit(settings).duration();
    let order = app
        .catalog
        .set_boot_order(&boot, "{}", &version.image, version.number, limit);
    let recorded = order.await;
    recorded.map_err(|error| failed("record the boot", chain(&error)))?;
    Ok((boot, token))
}

/// A script that is fetched twice is one boot.
async fn armed(
    app: &App,
    node: &NodeRow,
    mac: MacAddress,
    peer: IpAddr,
) -> Result<(String, String), String> {
    let now = Timestamp::now();
    let id = |error: ApiError| error.0.to_string();
    let token = random_id().map_err(id)?;
    let new = new_token(&token, peer);
    if let Some(boot) = app.boot.transcripts.open_boot(mac) {
        match app.catalog.arm_boot(&boot, &new).await {
            Ok(()) => return Ok((boot, token)),
            Err(CatalogError::BootNotFound { .. }) => {}
            Err(error) => return Err(chain(&error)),
        }
    }
    let boot = random_id().map_err(id)?;
    let row = NewBoot {
        id: boot.clone(),
        node: node.name.clone(),
        token: Some(new),
    };
    let begun = app.catalog.begin_boot(&row, now).await;
    begun.map_err(|error| chain(&error))?;
    app.boot.transcripts.adopt(mac, &node.name, &boot);
    Ok((boot, token))
}

fn new_token(token: &str, source: IpAddr) -> NewToken {
    let life = SignedDuration::try_from(TOKEN_LIFE).unwrap_or_default();
    NewToken {
        digest: Digest::of(token.as_bytes()),
        source,
        expires: Timestamp::now() + life,
    }
}

/// The image's arguments, the node's, its console, and what plug-ins add.
pub(super) fn arguments(
    settings: &Settings,
    stage: &Stage,
    plugins: &[String],
) -> Result<Vec<Argument>, String> {
    let mut arguments = Vec::new();
    // What the image has that a boot loader cannot pass on is left out.
    arguments.extend(
        stage
            .arguments
            .iter()
            .filter_map(|word| Argument::new(word).ok()),
    );
    if let Some(console) = &settings.console {
        for console in console.split_whitespace() {
            let text = format!("console={console}");
            arguments.push(Argument::new(&text).map_err(|error| error.to_string())?);
        }
    }
    if let Some(text) = &settings.kernel_arguments {
        arguments.extend(Argument::all(text).map_err(|error| error.to_string())?);
    }
    for word in plugins {
        match Argument::new(word) {
            Ok(argument) => arguments.push(argument),
            Err(error) => tracing::warn!(%error, "a plug-in's kernel argument left out"),
        }
    }
    Ok(arguments)
}

pub(super) fn failed(step: &'static str, reason: String) -> Decision {
    Decision::Failed { step, reason }
}

fn no_image(node: &NodeRow) -> Decision {
    failed(
        "choose an image",
        format!(
            "{0} has none: `rootstock node set {0} --image NAME`",
            node.name
        ),
    )
}

fn wait(node: &NodeRow, mac: MacAddress) -> Decision {
    Decision::Wait {
        lines: vec![
            format!(
                "This machine ({mac}) is new here and waits as {}.",
                node.name
            ),
            format!("Let it boot with: rootstock node approve {}", node.name),
        ],
    }
}

/// UUIDs that makers put into every board: they tell no machine from another.
const SHARED_UUIDS: &[&str] = &[
    "00000000-0000-0000-0000-000000000000",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
    "03000200-0400-0500-0006-000700080009",
    "12345678-1234-5678-90ab-cddeefaabbcc",
];

/// The machine's UUID in a query, in lower case.
fn uuid_of(query: &str) -> Option<String> {
    let mut values = query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("uuid="));
    known_uuid(values.next_back()?)
}

/// A UUID that tells machines apart, in lower case.
pub(crate) fn known_uuid(text: &str) -> Option<String> {
    let uuid = text.to_ascii_lowercase();
    let groups: Vec<_> = uuid.split('-').collect();
    let lengths: Vec<_> = groups.iter().map(|group| group.len()).collect();
    let is_hex = groups
        .iter()
        .all(|group| group.bytes().all(|digit| digit.is_ascii_hexdigit()));
    let valid = is_hex && lengths == [8, 4, 4, 4, 12];
    (valid && !SHARED_UUIDS.contains(&uuid.as_str())).then_some(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_of_machines() {
        for (query, expected) in [
            (
                "uuid=4C4C4544-0043-4A10-8056-B4C04F4D4E32&arch=x86_64",
                Some("4c4c4544-0043-4a10-8056-b4c04f4d4e32"),
            ),
            ("arch=x86_64", None),
            ("uuid=", None),
            ("uuid=x", None),
            ("uuid=03000200-0400-0500-0006-000700080009", None),
            ("uuid=00000000-0000-0000-0000-000000000000", None),
            ("uuid=4c4c4544-0043-4a10-8056-b4c04f4d4e3g", None),
        ] {
            assert_eq!(uuid_of(query).as_deref(), expected, "{query}");
        }
    }
}
