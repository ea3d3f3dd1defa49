//! Nodes: what holds for each, who joins and leaves, and how all do, live.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use jiff::Timestamp;
use rootstock_api::{
    BootSummary, FillSwitch, NodeEvent, NodeState, NodeStatus, Origin, ProblemCode, Setting,
    Settings, SwarmMode, TEXT_BYTES_MAX,
    boot::{BootStep, CacheChoice, NodeMode, NodeReport},
    paths::NODE_NAMES_RESERVED,
};
use rootstock_catalog::{
    BootRow, NodeRow, NodeSettingsRow, ProfileRow, Registered, Registration, StepRow,
};
use rootstock_core::{CHUNK_BYTES, NodeName, ProfileName, TimeLimit, VersionSelector, VersionSpec};
use tokio::sync::{Notify, broadcast, watch};

use crate::{app::App, config::NetworkConfig, http::ApiError};

mod text;

pub(crate) use text::{export, parse};

/// Events that a slow reader may be behind; then it gets everything anew.
const EVENTS_WAITING_MAX: usize = 4096;

/// How long a boot of a new version may take, unless settings say otherwise.
pub(crate) const BOOT_LIMIT: TimeLimit = TimeLimit::minutes(10);

/// Whether machines are in the swarm, unless settings say otherwise.
pub(crate) const SWARM_MODE: SwarmMode = SwarmMode::Off;

/// The most tags of a node.
const TAGS_MAX: usize = 32;

/// What hears of nodes that join and leave, such as plug-ins. It is called when
/// the catalog has it already, and must not block: what takes time is spawned.
pub(crate) trait NodeHooks: Send + Sync {
    /// A node was added, registered or approved, and may boot.
    fn registered(&self, node: &NodeRow);
    /// A node was deleted.
    fn gone(&self, node: &NodeRow);
}

/// What is known of nodes in memory only.
pub(crate) struct Nodes {
    /// Closed when the daemon stops, so that live views end.
    events: Mutex<Option<broadcast::Sender<NodeEvent>>>,
    hooks: OnceLock<Box<dyn NodeHooks>>,
    changed: Notify,
    /// How often what nodes are to do may have changed. Closed when the daemon
    /// stops, so that machines that wait for it are answered.
    turn: Mutex<Option<watch::Sender<u64>>>,
}

impl Default for Nodes {
    fn default() -> Self {
        Self {
            events: Mutex::new(Some(broadcast::Sender::new(EVENTS_WAITING_MAX))),
            hooks: OnceLock::new(),
            changed: Notify::new(),
            turn: Mutex::new(Some(watch::Sender::new(0))),
        }
    }
}

impl Nodes {
    /// Who is to hear of nodes that join and leave; the first call counts.
    pub(crate) fn set_hooks(&self, hooks: Box<dyn NodeHooks>) {
        // A second set of hooks would be a mistake of this program's own start.
        let _ = self.hooks.set(hooks);
    }

    /// Tells all live views.
    pub(crate) fn tell(&self, event: NodeEvent) {
        if let Some(events) = &*self.events() {
            // An error means that nobody looks.
            let _ = events.send(event);
        }
    }

    /// Tells all live views, if there are any, of what comes often.
    pub(crate) fn tell_watchers(&self, event: impl FnOnce() -> NodeEvent) {
        if let Some(events) = &*self.events()
            && events.receiver_count() > 0
        {
            // An error means that the last one just went.
            let _ = events.send(event());
        }
    }

    /// Everything that is told from now on; `None` when the daemon stops.
    pub(crate) fn listen(&self) -> Option<broadcast::Receiver<NodeEvent>> {
        self.events().as_ref().map(broadcast::Sender::subscribe)
    }

    /// Notes that the nodes or their settings are not what they were.
    pub(crate) fn note_change(&self) {
        self.changed.notify_one();
        self.note_version_change();
    }

    /// Notes that a name may stand for another version than it did.
    pub(crate) fn note_version_change(&self) {
        if let Some(turn) = &*self.turn() {
            turn.send_modify(|turn| *turn += 1);
        }
    }

    /// How often one of them was noted, and hears of the next; `None` when the
    /// daemon stops.
    pub(crate) fn turns(&self) -> Option<watch::Receiver<u64>> {
        self.turn().as_ref().map(watch::Sender::subscribe)
    }

    /// Returns when they are not, once however often they changed; for one listener.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Ends all live views, and answers all machines that wait.
    pub(crate) fn close(&self) {
        *self.events() = None;
        *self.turn() = None;
    }

    pub(crate) fn registered(&self, node: &NodeRow) {
        if let Some(hooks) = self.hooks.get() {
            hooks.registered(node);
        }
    }

    pub(crate) fn gone(&self, node: &NodeRow) {
        if let Some(hooks) = self.hooks.get() {
            hooks.gone(node);
        }
        self.tell(NodeEvent::Deleted {
            node: node.name.clone(),
        });
    }

    fn events(&self) -> MutexGuard<'_, Option<broadcast::Sender<NodeEvent>>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self) -> MutexGuard<'_, Option<watch::Sender<u64>>> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What holds for a node or profile, and where each setting comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Effective {
    pub(crate) settings: Settings,
    pub(crate) origins: BTreeMap<Setting, Origin>,
}

impl Effective {
    /// What holds when nobody sets anything.
    fn defaults() -> Self {
        let mut effective = Self::default();
        let defaults = Settings {
            mode: Some(NodeMode::Diskless),
            cache: Some(CacheChoice::Auto),
            fill: Some(FillSwitch::On),
            exam: Some(false),
            swarm: Some(SWARM_MODE),
            boot_limit: Some(BOOT_LIMIT),
            rescue_shell: Some(false),
            ..Settings::default()
        };
        effective.set(&defaults, &Origin::Default);
        effective
    }

    fn set(&mut self, settings: &Settings, origin: &Origin) {
        for setting in Setting::ALL {
            if settings.text(*setting).is_some() {
                self.origins.insert(*setting, origin.clone());
            }
        }
        self.settings.set_all(settings);
    }

    /// The origins by the settings' names.
    pub(crate) fn named_origins(&self) -> BTreeMap<String, Origin> {
        let named = |(setting, origin): (&Setting, &Origin)| (setting.to_string(), origin.clone());
        self.origins.iter().map(named).collect()
    }
}

/// All profiles, read once for many nodes.
#[derive(Debug, Default)]
pub(crate) struct Profiles(BTreeMap<ProfileName, (Option<ProfileName>, Settings)>);

impl Profiles {
    pub(crate) fn new(rows: &[ProfileRow]) -> Result<Self, ApiError> {
        let entry = |row: &ProfileRow| {
            let settings = read_settings(&row.settings)?;
            Ok((row.name.clone(), (row.parent.clone(), settings)))
        };
        let map: Result<_, ApiError> = rows.iter().map(entry).collect();
        Ok(Self(map?))
    }

    pub(crate) async fn read(app: &App) -> Result<Self, ApiError> {
        Self::new(&app.catalog.profiles().await?)
    }

    /// What heirs of a profile get.
    pub(crate) fn effective(&self, profile: &ProfileName) -> Effective {
        let mut effective = Effective::defaults();
        self.apply(&mut effective, profile, |name| Origin::Profile { name });
        effective
    }

    /// What holds for a node: its own settings, over its profiles', over those of
    /// its network's profile, over the defaults.
    pub(crate) fn of_node(
        &self,
        node: &NodeRow,
        network: Option<&ProfileName>,
    ) -> Result<Effective, ApiError> {
        self.of(node.profile.as_ref(), &node.settings, network)
    }

    /// The same, of what is set on it.
    pub(crate) fn of_settings(
        &self,
        node: &NodeSettingsRow,
        network: Option<&ProfileName>,
    ) -> Result<Effective, ApiError> {
        self.of(node.profile.as_ref(), &node.settings, network)
    }

    fn of(
        &self,
        profile: Option<&ProfileName>,
        settings: &str,
        network: Option<&ProfileName>,
    ) -> Result<Effective, ApiError> {
        let mut effective = Effective::defaults();
        if let Some(profile) = network {
            let origin = |profile| Origin::Network { profile };
            self.apply(&mut effective, profile, origin);
        }
        if let Some(profile) = profile {
            self.apply(&mut effective, profile, |name| Origin::Profile { name });
        }
        effective.set(&read_settings(settings)?, &Origin::Node);
        Ok(effective)
    }

    /// Sets what a profile and those above it set, the farthest first.
    fn apply(
        &self,
        effective: &mut Effective,
        profile: &ProfileName,
        origin: impl Fn(ProfileName) -> Origin,
    ) {
        let mut chain = Vec::new();
        let mut next = Some(profile);
        while let Some((name, (parent, settings))) =
            next.and_then(|name| self.0.get_key_value(name))
        {
            chain.push((name, settings));
            // The catalog lets no longer chain in; a damaged one must end too.
            next = parent.as_ref().filter(|_| chain.len() < self.0.len());
        }
        for (name, settings) in chain.into_iter().rev() {
            effective.set(settings, &origin(name.clone()));
        }
    }
}

/// The profile of the network that a node boots in: of the interface that it asks
/// by where that is known, else of the site's only network.
pub(crate) fn network_profile(
    networks: &[NetworkConfig],
    interface: Option<&str>,
) -> Option<ProfileName> {
    let network = match interface {
        Some(interface) => networks
            .iter()
            .find(|network| network.interface.as_deref() == Some(interface)),
        None => match networks {
            [only] => Some(only),
            _ => None,
        },
    };
    network?.profile.as_deref()?.parse().ok()
}

/// The profile of the network that a node is in, as far as its settings tell.
pub(crate) fn network_of(app: &App, node: &NodeRow) -> Result<Option<ProfileName>, ApiError> {
    let own = read_settings(&node.settings)?;
    Ok(network_profile(&app.config.network, own.network.as_deref()))
}

/// What holds for a node that boots by an interface of the server.
pub(crate) async fn effective(
    app: &App,
    node: &NodeRow,
    interface: Option<&str>,
) -> Result<Effective, ApiError> {
    let profiles = Profiles::read(app).await?;
    let network = network_profile(&app.config.network, interface);
    profiles.of_node(node, network.as_ref())
}

/// Makes a node of a machine that was found on the wire, and tells of it.
pub(crate) async fn register(app: &App, new: Registration<'_>) -> Result<Registered, ApiError> {
    let registered = app.catalog.register_node(new, Timestamp::now()).await?;
    app.nodes.note_change();
    if let Registered::New(row) = &registered {
        tracing::info!(node = %row.name, state = ?row.state, "node registered");
        if row.state == rootstock_catalog::NodeState::Ready {
            app.nodes.registered(row);
        }
        app.nodes.tell(NodeEvent::Node(status(row, None, None)));
    }
    Ok(registered)
}

/// How a node does, by its row, its last boot and what it said last in that.
pub(crate) fn status(
    node: &NodeRow,
    boot: Option<&(BootRow, Option<StepRow>)>,
    report: Option<NodeReport>,
) -> NodeStatus {
    NodeStatus {
        node: node.name.clone(),
        state: state(node, boot),
        boot: boot.map(|(boot, step)| summary(boot, step.as_ref())),
        report,
    }
}

/// Tells live views how a node does now.
pub(crate) async fn tell_status(app: &App, node: &NodeName) -> Result<(), ApiError> {
    let row = app.catalog.node(node).await?;
    let boot = match app.catalog.boots_of(node).await?.into_iter().next() {
        Some(boot) => {
            let (row, mut steps) = app.catalog.boot_transcript(&boot.id).await?;
            Some((row, steps.pop()))
        }
        None => None,
    };
    let report = boot.as_ref();
    let report = report.and_then(|(boot, _)| app.boot.sessions.report_of(&boot.id));
    let status = status(&row, boot.as_ref(), report);
    app.nodes.tell(NodeEvent::Node(status));
    Ok(())
}

fn state(node: &NodeRow, boot: Option<&(BootRow, Option<StepRow>)>) -> NodeState {
    if node.state == rootstock_catalog::NodeState::Held {
        return NodeState::Held;
    }
    let Some((boot, step)) = boot else {
        return NodeState::Ready;
    };
    match step.as_ref().and_then(|step| read_step(&step.step)) {
        Some(BootStep::Failed) => NodeState::Failed,
        Some(BootStep::OwnDisk) => NodeState::OwnDisk,
        Some(BootStep::Installer | BootStep::Installed) if boot.ended.is_none() => {
            NodeState::Installing
        }
        _ if boot.ended.is_some() => NodeState::Gone,
        Some(BootStep::Gone) => NodeState::Gone,
        Some(BootStep::Up) => NodeState::Up,
        _ => NodeState::Booting,
    }
}

fn summary(boot: &BootRow, step: Option<&StepRow>) -> BootSummary {
    BootSummary {
        boot: boot.id.clone(),
        started: boot.started.to_string(),
        step: step.and_then(|step| read_step(&step.step)),
        at: step.map(|step| step.time.to_string()),
        detail: step.map(|step| step.detail.clone()).unwrap_or_default(),
        bytes: step.map_or(0, |step| step.bytes),
        running: running(boot),
    }
}

/// The version that a boot was told to run.
pub(crate) fn image_of(boot: &BootRow) -> Option<VersionSpec> {
    let (image, number) = boot.image.clone()?;
    Some(VersionSpec {
        image,
        selector: VersionSelector::Number(number),
    })
}

/// The version that a boot runs now.
pub(crate) fn running(boot: &BootRow) -> Option<VersionSpec> {
    image_of(boot).filter(|_| boot.ended.is_none())
}

/// A step by its name in documents, which is the one in the catalog too.
pub(crate) fn read_step(name: &str) -> Option<BootStep> {
    serde_json::from_value(serde_json::Value::String(name.to_owned())).ok()
}

/// A step's name in documents and in the catalog.
#[cfg(test)]
pub(crate) fn step_name(step: BootStep) -> String {
    match serde_json::to_value(step) {
        Ok(serde_json::Value::String(name)) => name,
        _ => format!("{step:?}"),
    }
}

/// Settings out of the catalog.
pub(crate) fn read_settings(json: &str) -> Result<Settings, ApiError> {
    serde_json::from_str(json).map_err(|error| ApiError::internal("read settings", &error))
}

/// Settings for the catalog.
pub(crate) fn write_settings(settings: &Settings) -> Result<String, ApiError> {
    serde_json::to_string(settings).map_err(|error| ApiError::internal("write settings", &error))
}

/// Changes settings as the catalog keeps them; what it cannot read it leaves.
pub(crate) fn edit_settings(json: &mut String, set: &Settings, unset: &[Setting]) {
    let Ok(mut settings) = read_settings(json) else {
        return;
    };
    settings.set_all(set);
    for setting in unset {
        settings.clear(*setting);
    }
    if let Ok(written) = write_settings(&settings) {
        *json = written;
    }
}

/// Sets the image in settings as the catalog keeps them.
pub(crate) fn assign(settings: &mut String, image: Option<&VersionSpec>) {
    let set = Settings {
        image: image.cloned(),
        ..Settings::default()
    };
    let unset: &[Setting] = match image {
        Some(_) => &[],
        None => &[Setting::Image],
    };
    edit_settings(settings, &set, unset);
}

/// Refuses settings that could never work.
pub(crate) fn check_settings(settings: &Settings) -> Result<(), ApiError> {
    for setting in Setting::ALL {
        let text = settings.text(*setting).unwrap_or_default();
        let wrong = |reason: &str| {
            let shown: String = text.chars().take(80).collect();
            let detail = format!("'{}' is no {setting}: {reason}", shown.escape_debug());
            Err(ApiError::new(ProblemCode::BadValue, detail))
        };
        if text.len() > TEXT_BYTES_MAX {
            return wrong(&format!("the limit is {TEXT_BYTES_MAX} bytes"));
        }
        if text.chars().any(char::is_control) {
            return wrong("it has control characters in it");
        }
        let is_path = matches!(setting, Setting::Kernel | Setting::Initrd);
        if is_path && !text.is_empty() && !is_path_inside(&text) {
            return wrong("write a path inside the image that begins with '/' and has no '..'");
        }
        let is_word = matches!(
            setting,
            Setting::Network | Setting::BootStrategy | Setting::Console
        );
        if is_word && text.contains(char::is_whitespace) {
            return wrong("it is one word");
        }
    }
    if let Some(bytes) = settings.cache_disk_bytes_max.filter(|b| *b < CHUNK_BYTES) {
        let detail = format!("'{bytes}' is no cache_disk_bytes_max: no chunk would fit");
        return Err(ApiError::new(ProblemCode::BadValue, detail)
            .with_hint("write at least the size of what a machine reads to boot, such as 1G"));
    }
    if let Some(bytes) = settings.swarm_memory.filter(|bytes| *bytes < CHUNK_BYTES) {
        let detail = format!("'{bytes}' is no swarm_memory: no chunk would fit");
        return Err(ApiError::new(ProblemCode::BadValue, detail)
            .with_hint("write at least some hundred megabytes, or turn the swarm off"));
    }
    let tags = settings.tags.as_deref().unwrap_or_default();
    if tags.len() > TAGS_MAX {
        let detail = format!("there are {} tags, and the limit is {TAGS_MAX}", tags.len());
        return Err(ApiError::new(ProblemCode::BadValue, detail));
    }
    if let Some(tag) = tags.iter().find(|tag| !is_tag(tag)) {
        let shown: String = tag.chars().take(80).collect();
        let detail = format!(
            "'{}' is no tag: tags are letters, digits, '.', '_' and '-'",
            shown.escape_debug()
        );
        return Err(ApiError::new(ProblemCode::BadValue, detail));
    }
    Ok(())
}

fn is_path_inside(path: &str) -> bool {
    path.starts_with('/') && path.split('/').all(|part| part != "..")
}

fn is_tag(tag: &str) -> bool {
    tag.parse::<rootstock_core::TagName>().is_ok()
}

/// Refuses names that paths have, cards that are none, and UUIDs that many
/// machines share because their maker set none. Answers the UUID in lower case.
pub(crate) fn check_name(name: &NodeName) -> Result<(), ApiError> {
    if NODE_NAMES_RESERVED.contains(&name.as_str()) {
        let detail = format!("'{name}' cannot be a node's name: a path of the API has it");
        return Err(ApiError::new(ProblemCode::BadName, detail).with_hint("choose another name"));
    }
    Ok(())
}

/// A card's address that can be one node's.
pub(crate) fn check_mac(mac: rootstock_core::MacAddress) -> Result<(), ApiError> {
    if mac.is_unicast() {
        return Ok(());
    }
    let detail = format!("{mac} is not the address of one network card");
    Err(ApiError::new(ProblemCode::BadValue, detail)
        .with_hint("write the address that the card itself has"))
}

/// A UUID in lower case, when it can tell one machine from another: makers that
/// set none leave the same digits in all of their boards.
pub(crate) fn usable_uuid(text: &str) -> Option<String> {
    const SHARED: [&str; 3] = [
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "03000200-0400-0500-0006-000700080009",
    ];
    let uuid = text.trim().to_ascii_lowercase();
    let lengths: Vec<usize> = uuid.split('-').map(str::len).collect();
    let digits = uuid
        .bytes()
        .all(|byte| byte == b'-' || byte.is_ascii_hexdigit());
    let usable = lengths == [8, 4, 4, 4, 12] && digits && !SHARED.contains(&uuid.as_str());
    usable.then_some(uuid)
}

/// A UUID that an administrator writes.
pub(crate) fn check_uuid(text: &str) -> Result<String, ApiError> {
    usable_uuid(text).ok_or_else(|| {
        let shown: String = text.chars().take(80).collect();
        let detail = format!("'{}' is not one machine's UUID", shown.escape_debug());
        ApiError::new(ProblemCode::BadValue, detail)
            .with_hint("write it as 12345678-9abc-4def-8123-456789abcdef, as `dmidecode` shows it")
    })
}

#[cfg(test)]
mod tests;
