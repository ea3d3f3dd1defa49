//! What plug-ins are told, and what becomes of their answers.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rootstock_api::{boot::NodeFile, settings::Settings};
use rootstock_catalog::{LeaseState, NodeRow};
use rootstock_core::{NodeName, VersionSpec};
use serde::Serialize;
use serde_json::json;

use super::{
    identity,
    networks::Network,
    plugins::{PluginAnswer, PluginEvent},
};
use crate::{app::App, config, http::chain};

/// The format of the documents.
const FORMAT: u32 = 1;

/// How long the list of all nodes is believed.
const ROSTER_LIFE: Duration = Duration::from_secs(5);

/// The most boots whose additions are remembered.
const ADDITIONS_MAX: usize = 16_384;

/// How long they are.
const ADDITIONS_LIFE: Duration = Duration::from_secs(900);

/// The most bytes of files that plug-ins add to one node.
const FILES_BYTES_MAX: usize = 512 << 10;

/// The longest line for `/etc/hosts`.
const HOSTS_LINE_BYTES_MAX: usize = 512;

/// A node as plug-ins and `/etc/hosts` see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct RosterEntry {
    pub(crate) name: NodeName,
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) ssh_host_key: Option<String>,
    pub(crate) up: bool,
}

/// All nodes, now and then read anew.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    known: Mutex<Option<(Instant, Arc<Vec<RosterEntry>>)>>,
    keys: Mutex<HashMap<NodeName, String>>,
}

/// What plug-ins added to a boot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Additions {
    pub(crate) kernel_arguments: Vec<String>,
    pub(crate) files: Vec<NodeFile>,
    pub(crate) host_name: Option<String>,
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) hosts: Vec<String>,
    pub(crate) settings: BTreeMap<String, String>,
}

/// Additions by boot: the script and the order are made at different times.
#[derive(Debug, Default)]
pub(crate) struct AdditionsByBoot(Mutex<HashMap<String, (Instant, Arc<Additions>)>>);

impl AdditionsByBoot {
    fn get(&self, boot: &str) -> Option<Arc<Additions>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, additions) = all.get(boot)?;
        (since.elapsed() < ADDITIONS_LIFE).then(|| Arc::clone(additions))
    }

    fn put(&self, boot: &str, additions: Arc<Additions>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= ADDITIONS_MAX {
            all.retain(|_, (since, _)| since.elapsed() < ADDITIONS_LIFE);
        }
        if all.len() < ADDITIONS_MAX {
            all.insert(boot.to_owned(), (Instant::now(), additions));
        }
    }
}

impl Roster {
    /// All nodes with their addresses.
    pub(crate) async fn get(&self, app: &App) -> Arc<Vec<RosterEntry>> {
        {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((since, roster)) = known.as_ref()
                && since.elapsed() < ROSTER_LIFE
            {
                return Arc::clone(roster);
            }
        }
        let read = self.read(app).await;
        let roster = Arc::new(read.unwrap_or_else(|error| {
            tracing::warn!(error = chain(&error), "nodes not listed");
            Vec::new()
        }));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some((Instant::now(), Arc::clone(&roster)));
        roster
    }

    /// Remembers a node's public key.
    pub(crate) fn key(&self, node: &NodeName, public: &str) {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.insert(node.clone(), public.to_owned());
    }

    async fn read(&self, app: &App) -> Result<Vec<RosterEntry>, rootstock_catalog::CatalogError> {
        let nodes = app.catalog.nodes().await?;
        let now = Timestamp::now();
        let mut leased = HashMap::new();
        for lease in app.catalog.leases().await? {
            if lease.state == LeaseState::Bound && lease.expires > now {
                leased.insert(lease.mac, lease.address);
            }
        }
        let up: HashMap<NodeName, bool> = app
            .boot
            .sessions
            .list()
            .iter()
            .map(|session| {
                let up = session.report().is_some_and(|report| report.up);
                (session.node.clone(), up)
            })
            .collect();
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = |node: NodeRow| RosterEntry {
            address: node
                .address
                .or_else(|| node.macs.iter().find_map(|mac| leased.get(mac).copied())),
            ssh_host_key: keys.get(&node.name).cloned(),
            up: up.get(&node.name).copied().unwrap_or(false),
            name: node.name,
        };
        Ok(nodes.into_iter().map(entry).collect())
    }
}

/// Tells plug-ins of something in the background.
pub(crate) fn later(app: &Arc<App>, event: PluginEvent, node: &NodeRow) {
    let (app, node) = (Arc::clone(app), node.clone());
    tokio::spawn(async move {
        if event == PluginEvent::Registered
            && let Ok(key) = identity::host_key(&app, &node).await
        {
            app.boot.roster.key(&node.name, &key.public);
        }
        if app.boot.plugins.is_empty() {
            return;
        }
        let document = document(&app, event, &node, None).await;
        app.boot.plugins.tell(event, &document).await;
    });
}

/// Asks plug-ins what to add to a boot, once for each boot.
pub(crate) async fn booting(
    app: &Arc<App>,
    boot: &str,
    node: &NodeRow,
    settings: &Settings,
    version: &VersionSpec,
    network: &Network,
) -> Arc<Additions> {
    if let Some(known) = app.boot.additions.get(boot) {
        return known;
    }
    let mut additions = Additions::default();
    if !app.boot.plugins.is_empty() {
        let more = json!({
            "id": boot,
            "image": version.to_string(),
            "settings": settings,
            "domain": network.config.domain,
        });
        let event = PluginEvent::Booting;
        let document = document(app, event, node, Some(more)).await;
        for (name, answer) in app.boot.plugins.tell(event, &document).await {
            match answer {
                Ok(answer) => additions.add(&name, answer),
                Err(error) => {
                    let detail = format!("plug-in {name} left out: {}", chain(&error));
                    app.boot.transcripts.note(boot, detail);
                }
            }
        }
    }
    let additions = Arc::new(additions);
    app.boot.additions.put(boot, Arc::clone(&additions));
    additions
}

async fn document(
    app: &App,
    event: PluginEvent,
    node: &NodeRow,
    boot: Option<serde_json::Value>,
) -> serde_json::Value {
    let roster = app.boot.roster.get(app).await;
    let inventory: Option<serde_json::Value> = node
        .inventory
        .as_deref()
        .and_then(|text| serde_json::from_str(text).ok());
    json!({
        "format": FORMAT,
        "event": event,
        "node": {
            "name": node.name,
            "macs": node.macs,
            "uuid": node.uuid,
            "address": node.address,
            "profile": node.profile,
            "inventory": inventory,
        },
        "boot": boot,
        "nodes": *roster,
    })
}

impl Additions {
    /// Takes what can be used of an answer, and says by name what cannot.
    fn add(&mut self, plugin: &str, answer: PluginAnswer) {
        let leave = |what: &str, value: &str| {
            let value: String = value.chars().take(100).collect();
            tracing::warn!(plugin, what, value, "a part of a plug-in's answer left out");
        };
        self.kernel_arguments.extend(answer.kernel_arguments);
        for file in answer.files {
            let bytes: usize = self.files.iter().map(|file| file.text.len()).sum();
            if !is_file_path(&file.path) || file.mode & !0o7777 != 0 {
                leave("file", &file.path);
            } else if bytes + file.text.len() > FILES_BYTES_MAX {
                leave("file, since all are too large together", &file.path);
            } else {
                self.files.retain(|other| other.path != file.path);
                self.files.push(file);
            }
        }
        match answer.host_name {
            Some(name) if config::is_domain(&name) => self.host_name = Some(name),
            Some(name) => leave("host name", &name),
            None => {}
        }
        self.address = answer.address.or(self.address);
        for line in answer.hosts {
            if line.len() <= HOSTS_LINE_BYTES_MAX && !line.chars().any(char::is_control) {
                self.hosts.push(line);
            } else {
                leave("line for hosts", &line);
            }
        }
        self.settings.extend(answer.settings);
    }
}

/// Whether this is an absolute path without `..`, to a file.
fn is_file_path(path: &str) -> bool {
    let mut parts = path.split('/');
    parts.next() == Some("")
        && path.len() <= 4096
        && !path.contains('\0')
        && parts.all(|part| !matches!(part, "" | "." | ".."))
        && path.len() > 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_joined_and_what_is_wrong_is_left_out() {
        let file = |path: &str, text: &str| NodeFile {
            path: path.to_owned(),
            mode: 0o644,
            text: text.to_owned(),
        };
        let mut additions = Additions::default();
        additions.add(
            "one",
            PluginAnswer {
                kernel_arguments: vec!["quiet".to_owned()],
                files: vec![
                    file("/etc/motd", "one"),
                    file("/etc/../shadow", "x"),
                    file("etc/x", "x"),
                    file("/etc/", "x"),
                    file("/", "x"),
                    file("/etc/large", &"x".repeat(FILES_BYTES_MAX)),
                ],
                host_name: Some("bad name".to_owned()),
                hosts: vec!["10.0.0.1 a".to_owned(), "10.0.0.2 b\n10.0.0.3 c".to_owned()],
                ..PluginAnswer::default()
            },
        );
        additions.add(
            "two",
            PluginAnswer {
                files: vec![file("/etc/motd", "two")],
                host_name: Some("desk-1".to_owned()),
                address: Some([10, 0, 0, 9].into()),
                ..PluginAnswer::default()
            },
        );
        assert_eq!(additions.files, [file("/etc/motd", "two")]);
        assert_eq!(additions.host_name.as_deref(), Some("desk-1"));
        assert_eq!(additions.hosts, ["10.0.0.1 a"]);
        assert_eq!(additions.kernel_arguments, ["quiet"]);
        assert_eq!(additions.address, Some([10, 0, 0, 9].into()));
    }
}
