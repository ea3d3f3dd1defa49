//! Nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use axum::{extract::State, http::StatusCode, response::Response};
use jiff::Timestamp;
use rootstock_api::{
    BootEvent, BootList, BootTranscript, Change, ChangeReport, FieldChange, Holder, HolderKind,
    NamedChange, Node, NodeCreate, NodeDelete, NodeEvent, NodeFormat, NodeImport, NodeList,
    NodeNames, NodeRollback, NodeSet, NodeSpec, NodeText, NodesDone, Problem, ProblemCode, Setting,
    boot::NodeReport, paths,
};
use rootstock_catalog::{BootRow, NewNode, NodeChange, NodeRow, Pass, StepRow};
use rootstock_core::{MacAddress, NodeName, ProfileName};
use serde::Deserialize;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::node_health;
use crate::{
    app::App,
    boot::control,
    http::{
        ApiError,
        extract::{ApiJson, ApiPath, ApiQuery},
        progress::{Gone, Progress},
        stopping,
    },
    nodes::{self, Profiles},
    targets,
};

/// How many boots of a node are shown when nobody says.
const BOOTS_SHOWN: usize = 10;

/// How often a live view hears that the daemon is there.
const ALIVE_INTERVAL: Duration = Duration::from_secs(30);

type Boots = BTreeMap<NodeName, (BootRow, Option<StepRow>)>;

/// All nodes
#[utoipa::path(get, path = paths::NODES, tag = "nodes", operation_id = "node_list", responses(
    (status = 200, body = NodeList), (status = "default", body = Problem)))]
pub(crate) async fn list(State(app): State<Arc<App>>) -> Result<ApiJson<NodeList>, ApiError> {
    let profiles = Profiles::read(&app).await?;
    let boots = last_boots(&app).await?;
    let reports = app.boot.sessions.reports();
    let rows = app.catalog.nodes().await?;
    let nodes = rows.into_iter().map(|row| {
        let boot = boots.get(&row.name);
        let report = boot.and_then(|(boot, _)| reports.get(&boot.id).cloned());
        describe(&app, &profiles, row, boot, report)
    });
    let mut nodes: Vec<Node> = nodes.collect::<Result<_, _>>()?;
    node_health::describe(&app, &mut nodes).await?;
    Ok(ApiJson(NodeList { nodes }))
}

/// Adds nodes: all or none
#[utoipa::path(post, path = paths::NODES, tag = "nodes", operation_id = "node_create",
    request_body = NodeCreate,
    responses((status = 201, body = NodeList), (status = "default", body = Problem)))]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    ApiJson(request): ApiJson<NodeCreate>,
) -> Result<(StatusCode, ApiJson<NodeList>), ApiError> {
    let new = request.nodes.into_iter().map(new_node);
    let new: Vec<NewNode> = new.collect::<Result<_, _>>()?;
    app.catalog.add_nodes(&new, Timestamp::now()).await?;
    app.nodes.note_change();
    let profiles = Profiles::read(&app).await?;
    let mut nodes = Vec::with_capacity(new.len());
    for node in &new {
        let row = app.catalog.node(&node.name).await?;
        joined(&app, &row);
        nodes.push(describe(&app, &profiles, row, None, None)?);
    }
    Ok((StatusCode::CREATED, ApiJson(NodeList { nodes })))
}

/// A node
#[utoipa::path(get, path = paths::NODE, tag = "nodes", operation_id = "node_show",
    params(("node" = String, Path, description = "The node's name")),
    responses((status = 200, body = Node), (status = "default", body = Problem)))]
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    ApiPath(node): ApiPath<NodeName>,
) -> Result<ApiJson<Node>, ApiError> {
    let row = app.catalog.node(&node).await?;
    let boot = match app.catalog.boots_of(&node).await?.first() {
        Some(boot) => {
            let (row, mut steps) = app.catalog.boot_transcript(&boot.id).await?;
            Some((row, steps.pop()))
        }
        None => None,
    };
    let report = boot.as_ref();
    let report = report.and_then(|(boot, _)| app.boot.sessions.report_of(&boot.id));
    let profiles = Profiles::read(&app).await?;
    let mut node = describe(&app, &profiles, row, boot.as_ref(), report)?;
    node_health::describe(&app, std::slice::from_mut(&mut node)).await?;
    Ok(ApiJson(node))
}

/// Changes nodes, or works out what a change would do
#[utoipa::path(patch, path = paths::NODES, tag = "nodes", operation_id = "node_set",
    request_body = NodeSet,
    responses((status = 200, body = ChangeReport), (status = "default", body = Problem)))]
pub(crate) async fn set(
    State(app): State<Arc<App>>,
    ApiJson(request): ApiJson<NodeSet>,
) -> Result<ApiJson<ChangeReport>, ApiError> {
    let request = checked(request)?;
    let names = request.nodes.names();
    // Settings that cannot be read are refused before anything changes.
    for name in names {
        nodes::read_settings(&app.catalog.node(name).await?.settings)?;
    }
    let pass = if request.dry_run {
        Pass::DryRun
    } else {
        Pass::Keep
    };
    let changed = app
        .catalog
        .update_nodes(names, pass, |row| edit(row, &request));
    let changed = changed.await?;
    if pass == Pass::Keep {
        // Whoever says what a node is to run wants that tried.
        if request.set.image.is_some() {
            app.catalog.forget_failures(names).await?;
        }
        app.nodes.note_change();
    }
    changed_as(&app, &changed, pass).await
}

/// Brings nodes back to the image that was set on them before, or works out what that
/// would do
#[utoipa::path(post, path = paths::NODES_ROLLBACK, tag = "nodes", operation_id = "node_rollback",
    request_body = NodeRollback,
    responses((status = 200, body = ChangeReport), (status = "default", body = Problem)))]
pub(crate) async fn rollback(
    State(app): State<Arc<App>>,
    ApiJson(request): ApiJson<NodeRollback>,
) -> Result<ApiJson<ChangeReport>, ApiError> {
    let names = request.nodes.names();
    let pass = if request.dry_run {
        Pass::DryRun
    } else {
        Pass::Keep
    };
    let rolled = app.catalog.roll_nodes_back(names, pass, |row, image| {
        nodes::assign(&mut row.settings, image.as_ref());
        row.image = image;
    });
    let changed = rolled.await?;
    if pass == Pass::Keep {
        app.catalog.forget_failures(names).await?;
        app.nodes.note_change();
    }
    changed_as(&app, &changed, pass).await
}

pub(super) async fn changed_as(
    app: &App,
    changed: &[NodeChange],
    pass: Pass,
) -> Result<ApiJson<ChangeReport>, ApiError> {
    let mut changes = Vec::new();
    for change in changed {
        let fields = difference(&change.before, &change.after)?;
        if !fields.is_empty() {
            changes.push(NamedChange {
                name: change.after.name.to_string(),
                is_new: false,
                fields,
            });
        }
    }
    report(app, changes, pass).await
}

/// Deletes nodes: all or none. Nodes that run only when that is said
#[utoipa::path(post, path = paths::NODES_DELETE, tag = "nodes", operation_id = "node_delete",
    request_body = NodeDelete,
    responses((status = 200, body = NodesDone), (status = "default", body = Problem)))]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    ApiJson(request): ApiJson<NodeDelete>,
) -> Result<ApiJson<NodesDone>, ApiError> {
    let names = request.nodes.names();
    for name in names {
        app.catalog.node(name).await?;
    }
    let running = running(&app, names.iter()).await?;
    if !request.force && !running.is_empty() {
        return Err(runs(&running));
    }
    let deleted = app.catalog.delete_nodes(names).await?;
    app.nodes.note_change();
    for row in &deleted {
        tracing::info!(node = %row.name, "node deleted");
        app.boot.commits.forget(&row.name);
        targets::forget_node(&app, &row.name).await?;
        app.nodes.gone(row);
    }
    Ok(ApiJson(NodesDone {
        nodes: deleted.into_iter().map(|row| row.name).collect(),
        running,
    }))
}

/// Lets held nodes boot
#[utoipa::path(post, path = paths::NODES_APPROVE, tag = "nodes", operation_id = "node_approve",
    request_body = NodeNames,
    responses((status = 200, body = NodesDone), (status = "default", body = Problem)))]
pub(crate) async fn approve(
    State(app): State<Arc<App>>,
    ApiJson(request): ApiJson<NodeNames>,
) -> Result<ApiJson<NodesDone>, ApiError> {
    let names = request.nodes.names();
    let approved = app.catalog.approve_nodes(names, Timestamp::now()).await?;
    app.nodes.note_change();
    for row in &approved {
        joined(&app, row);
    }
    Ok(ApiJson(NodesDone {
        nodes: approved.into_iter().map(|row| row.name).collect(),
        running: Vec::new(),
    }))
}

/// The text's format.
#[derive(Debug, Deserialize)]
pub(crate) struct ExportQuery {
    format: Option<NodeFormat>,
}

/// All nodes as text
#[utoipa::path(get, path = paths::NODES_EXPORT, tag = "nodes", operation_id = "node_export",
    params(("format" = Option<NodeFormat>, Query, description = "json, toml or csv; json when absent")),
    responses((status = 200, body = NodeText), (status = "default", body = Problem)))]
pub(crate) async fn export(
    State(app): State<Arc<App>>,
    ApiQuery(query): ApiQuery<ExportQuery>,
) -> Result<ApiJson<NodeText>, ApiError> {
    let format = query.format.unwrap_or(NodeFormat::Json);
    let rows = app.catalog.nodes().await?;
    let specs = rows.into_iter().map(spec).collect::<Result<_, _>>()?;
    let text = nodes::export(specs, format)?;
    Ok(ApiJson(NodeText { format, text }))
}

/// Adds and changes nodes so that they are as a text says: all or none
#[utoipa::path(post, path = paths::NODES_IMPORT, tag = "nodes", operation_id = "node_import",
    request_body = NodeImport,
    responses((status = 200, body = ChangeReport), (status = "default", body = Problem)))]
pub(crate) async fn import(
    State(app): State<Arc<App>>,
    ApiJson(request): ApiJson<NodeImport>,
) -> Result<ApiJson<ChangeReport>, ApiError> {
    let specs = nodes::parse(&request.text, request.format)?;
    let new = specs.into_iter().map(new_node);
    let new: Vec<NewNode> = new.collect::<Result<_, _>>()?;
    let pass = if request.dry_run {
        Pass::DryRun
    } else {
        Pass::Keep
    };
    let put = app.catalog.put_nodes(&new, pass, Timestamp::now()).await?;
    if pass == Pass::Keep {
        app.nodes.note_change();
    }
    let mut changes = Vec::new();
    for (before, after) in &put {
        let nothing = NodeRow {
            profile: None,
            macs: Vec::new(),
            uuid: None,
            address: None,
            settings: "{}".to_owned(),
            ..after.clone()
        };
        let fields = difference(before.as_ref().unwrap_or(&nothing), after)?;
        let is_new = before.is_none();
        if is_new || !fields.is_empty() {
            let name = after.name.to_string();
            changes.push(NamedChange {
                name,
                is_new,
                fields,
            });
        }
        if is_new && pass == Pass::Keep {
            joined(&app, after);
        }
    }
    report(&app, changes, pass).await
}

/// How many boots are asked for.
#[derive(Debug, Deserialize)]
pub(crate) struct BootsQuery {
    limit: Option<usize>,
}

/// A node's boots, newest first, step by step
#[utoipa::path(get, path = paths::NODE_BOOTS, tag = "nodes", operation_id = "node_boots",
    params(("node" = String, Path, description = "The node's name"),
        ("limit" = Option<usize>, Query, description = "The most boots; 10 when absent")),
    responses((status = 200, body = BootList), (status = "default", body = Problem)))]
pub(crate) async fn boots(
    State(app): State<Arc<App>>,
    ApiPath(node): ApiPath<NodeName>,
    ApiQuery(query): ApiQuery<BootsQuery>,
) -> Result<ApiJson<BootList>, ApiError> {
    let rows = app.catalog.boots_of(&node).await?;
    let mut boots = Vec::new();
    for row in rows.iter().take(query.limit.unwrap_or(BOOTS_SHOWN)) {
        let (row, steps) = app.catalog.boot_transcript(&row.id).await?;
        boots.push(transcript(&row, &steps));
    }
    Ok(ApiJson(BootList { boots }))
}

/// How nodes do, live: a line for each node, then one for each change
#[utoipa::path(get, path = paths::NODES_WATCH, tag = "nodes", operation_id = "node_watch", responses(
    (status = 200, body = NodeEvent, content_type = "application/x-ndjson"),
    (status = "default", body = Problem)))]
pub(crate) async fn watch(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    // Whoever listens first and looks then misses nothing.
    let events = app.nodes.listen().ok_or_else(stopping)?;
    let (progress, response) = Progress::response();
    tokio::spawn(async move {
        // An end means that the reader went away or that the daemon stops.
        let _ = tell(&app, &progress, events).await;
    });
    Ok(response)
}

async fn tell(app: &App, progress: &Progress, mut events: Receiver<NodeEvent>) -> Result<(), Gone> {
    all(app, progress).await?;
    loop {
        match tokio::time::timeout(ALIVE_INTERVAL, events.recv()).await {
            Ok(Ok(event)) => progress.send_async(&event).await?,
            Ok(Err(RecvError::Lagged(_))) => all(app, progress).await?,
            Ok(Err(RecvError::Closed)) => return Err(Gone),
            Err(_) => progress.send_async(&NodeEvent::Alive).await?,
        }
    }
}

async fn all(app: &App, progress: &Progress) -> Result<(), Gone> {
    let read = async { Ok::<_, ApiError>((app.catalog.nodes().await?, last_boots(app).await?)) };
    let (rows, boots) = read.await.map_err(|_| Gone)?;
    let reports = app.boot.sessions.reports();
    for row in &rows {
        let boot = boots.get(&row.name);
        let report = boot.and_then(|(boot, _)| reports.get(&boot.id).cloned());
        let status = nodes::status(row, boot, report);
        progress.send_async(&NodeEvent::Node(status)).await?;
    }
    Ok(())
}

async fn last_boots(app: &App) -> Result<Boots, ApiError> {
    let boots = app.catalog.last_boots().await?;
    let by_node = boots.into_iter().map(|boot| (boot.0.node.clone(), boot));
    Ok(by_node.collect())
}

/// Those of these nodes that run a version now.
pub(super) async fn running<'a>(
    app: &App,
    names: impl Iterator<Item = &'a NodeName>,
) -> Result<Vec<NodeName>, ApiError> {
    let mut running = BTreeSet::new();
    for (row, _) in app.catalog.last_boots().await? {
        if nodes::running(&row).is_some() {
            running.insert(row.node);
        }
    }
    Ok(names
        .filter(|name| running.contains(*name))
        .cloned()
        .collect())
}

pub(super) fn runs(running: &[NodeName]) -> ApiError {
    let holders = running.iter().map(|name| Holder {
        kind: HolderKind::Node,
        name: name.to_string(),
    });
    let names = rootstock_core::fold(running);
    let verb = if running.len() == 1 { "runs" } else { "run" };
    let detail = format!("{names} {verb} now, and would lose the disk");
    Problem::new(ProblemCode::InUse, detail)
        .with_hint("shut down first, or force it")
        .with_holders(holders.collect())
        .into()
}

/// Tells of a node that may boot.
fn joined(app: &App, row: &NodeRow) {
    tracing::info!(node = %row.name, "node may boot");
    app.nodes.registered(row);
    app.nodes
        .tell(NodeEvent::Node(nodes::status(row, None, None)));
}

async fn report(
    app: &App,
    changes: Vec<NamedChange>,
    pass: Pass,
) -> Result<ApiJson<ChangeReport>, ApiError> {
    let waits = |change: &&NamedChange| {
        let holds = |field: &FieldChange| field.field.parse().is_ok_and(Setting::holds_at_once);
        !change.fields.iter().all(holds)
    };
    let names = changes.iter().filter(waits);
    let names: Vec<NodeName> = names.filter_map(|c| c.name.parse().ok()).collect();
    Ok(ApiJson(ChangeReport {
        running: running(app, names.iter()).await?,
        applied: pass == Pass::Keep,
        changes,
    }))
}

/// Refuses a change that could not be one of these nodes.
fn checked(mut request: NodeSet) -> Result<NodeSet, ApiError> {
    nodes::check_settings(&request.set)?;
    for setting in &request.unset {
        if request.set.text(*setting).is_some() {
            let detail = format!("{setting} is both set and unset");
            return Err(ApiError::new(ProblemCode::BadValue, detail).with_hint("choose one"));
        }
    }
    let of_one = [
        ("a UUID", matches!(request.uuid, Change::Set(_))),
        ("an address", matches!(request.address, Change::Set(_))),
        (
            "a network card",
            !request.add_macs.is_empty() || !request.remove_macs.is_empty(),
        ),
    ];
    let of_one = of_one.into_iter().find(|(_, is_there)| *is_there);
    if let Some((what, _)) = of_one.filter(|_| request.nodes.len() > 1) {
        let detail = format!(
            "{what} is one node's, and {} are named",
            request.nodes.len()
        );
        return Err(ApiError::new(ProblemCode::BadValue, detail).with_hint("name one node"));
    }
    if let Change::Set(uuid) = &mut request.uuid {
        *uuid = nodes::check_uuid(uuid)?;
    }
    request
        .add_macs
        .iter()
        .try_for_each(|mac| nodes::check_mac(*mac))?;
    Ok(request)
}

fn edit(row: &mut NodeRow, request: &NodeSet) {
    apply(&mut row.profile, &request.profile);
    apply(&mut row.uuid, &request.uuid);
    apply(&mut row.address, &request.address);
    row.macs.retain(|mac| !request.remove_macs.contains(mac));
    row.macs.extend(&request.add_macs);
    row.macs.sort_unstable();
    row.macs.dedup();
    nodes::edit_settings(&mut row.settings, &request.set, &request.unset);
    if request.set.image.is_some() || request.unset.contains(&Setting::Image) {
        row.image.clone_from(&request.set.image);
    }
}

pub(super) fn apply<T: Clone>(value: &mut Option<T>, change: &Change<T>) {
    match change {
        Change::Keep => {}
        Change::Unset => *value = None,
        Change::Set(new) => *value = Some(new.clone()),
    }
}

fn difference(before: &NodeRow, after: &NodeRow) -> Result<Vec<FieldChange>, ApiError> {
    let text = |row: &NodeRow| {
        let macs: Vec<String> = row.macs.iter().map(MacAddress::to_string).collect();
        [
            ("macs", (!macs.is_empty()).then(|| macs.join(" "))),
            ("profile", row.profile.as_ref().map(ProfileName::to_string)),
            ("uuid", row.uuid.clone()),
            ("address", row.address.map(|address| address.to_string())),
        ]
    };
    let mut fields = Vec::new();
    for ((field, before), (_, after)) in text(before).into_iter().zip(text(after)) {
        push_change(&mut fields, field, before, after);
    }
    settings_difference(&mut fields, &before.settings, &after.settings)?;
    Ok(fields)
}

pub(super) fn push_change(
    fields: &mut Vec<FieldChange>,
    field: &str,
    before: Option<String>,
    after: Option<String>,
) {
    if before != after {
        let field = field.to_owned();
        fields.push(FieldChange {
            field,
            before,
            after,
        });
    }
}

pub(super) fn settings_difference(
    fields: &mut Vec<FieldChange>,
    before: &str,
    after: &str,
) -> Result<(), ApiError> {
    let (before, after) = (nodes::read_settings(before)?, nodes::read_settings(after)?);
    for setting in Setting::ALL {
        push_change(
            fields,
            setting.as_str(),
            before.text(*setting),
            after.text(*setting),
        );
    }
    Ok(())
}

fn new_node(spec: NodeSpec) -> Result<NewNode, ApiError> {
    nodes::check_name(&spec.name)?;
    nodes::check_settings(&spec.settings)?;
    spec.macs
        .iter()
        .try_for_each(|mac| nodes::check_mac(*mac))?;
    let uuid = spec.uuid.as_deref().map(nodes::check_uuid).transpose()?;
    if spec.macs.is_empty() && uuid.is_none() {
        let detail = format!("'{}' has neither a MAC address nor a UUID", spec.name);
        return Err(ApiError::new(ProblemCode::BadValue, detail)
            .with_hint("give it one: a node is known by its network cards or its UUID"));
    }
    Ok(NewNode {
        settings: nodes::write_settings(&spec.settings)?,
        image: spec.settings.image,
        name: spec.name,
        profile: spec.profile,
        macs: spec.macs,
        uuid,
        address: spec.address,
    })
}

fn spec(row: NodeRow) -> Result<NodeSpec, ApiError> {
    Ok(NodeSpec {
        settings: nodes::read_settings(&row.settings)?,
        name: row.name,
        macs: row.macs,
        uuid: row.uuid,
        address: row.address,
        profile: row.profile,
    })
}

fn describe(
    app: &App,
    profiles: &Profiles,
    row: NodeRow,
    boot: Option<&(BootRow, Option<StepRow>)>,
    report: Option<NodeReport>,
) -> Result<Node, ApiError> {
    let own = nodes::read_settings(&row.settings)?;
    let network = nodes::network_of(app, &row)?;
    let effective = profiles.of_node(&row, network.as_ref())?;
    let status = nodes::status(&row, boot, report);
    let fill = control::fill(&effective.settings, &app.boot.clock.now());
    let inventory = row
        .inventory
        .as_deref()
        .map(serde_json::from_str)
        .transpose();
    Ok(Node {
        swarm: app.boot.swarm.of(&row.name),
        name: row.name,
        state: status.state,
        profile: row.profile,
        macs: row.macs,
        uuid: row.uuid,
        address: row.address,
        settings: own,
        origins: effective.named_origins(),
        effective: effective.settings,
        inventory: inventory.map_err(|error| ApiError::internal("read an inventory", &error))?,
        created: row.created.to_string(),
        approved: row.approved.map(|time| time.to_string()),
        seen: row.seen.map(|time| time.to_string()),
        boot: status.boot,
        report: status.report,
        abandoned: None,
        installed: None,
        installer: None,
        fill_paused: fill.order.paused,
    })
}

fn transcript(row: &BootRow, steps: &[StepRow]) -> BootTranscript {
    let event = |step: &StepRow| {
        let since = step.time.as_millisecond() - row.started.as_millisecond();
        Some(BootEvent {
            step: nodes::read_step(&step.step)?,
            at: step.time.to_string(),
            since_start_ms: u64::try_from(since).unwrap_or(0),
            uptime_ms: step.uptime_ms,
            bytes: step.bytes,
            detail: step.detail.clone(),
        })
    };
    BootTranscript {
        boot: row.id.clone(),
        node: row.node.clone(),
        started: row.started.to_string(),
        ended: row.ended.map(|time| time.to_string()),
        image: nodes::image_of(row),
        steps: steps.iter().filter_map(event).collect(),
    }
}
